"""Where a statement comes from: an identifier plus the place inside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A citation precise enough to be checked.

    Args:
        work: Authors and year, as the field says it: ``"Cohen et al. 2021"``.
        locator: Theorem, equation, section, figure or page: ``"Section 3.1"``.
        ref: ``"arXiv:2103.00065"``, ``"doi:10.1080/..."`` or, for a book that has neither, its title.

    Raises:
        ValueError: one of the three is empty.

    Example:
        >>> Source("Cohen et al. 2021", "Section 3", "arXiv:2103.00065").url
        'https://arxiv.org/abs/2103.00065'
    """

    work: str
    locator: str
    ref: str

    def __post_init__(self) -> None:
        for name in ("work", "locator", "ref"):
            if not getattr(self, name).strip():
                raise ValueError(f"Source.{name} must not be empty: a citation names the work, the place in it, and an identifier.")

    @property
    def url(self) -> str | None:
        """Address of the work, or None where the identifier is a title."""
        scheme, _, rest = self.ref.partition(":")
        return {"arXiv": f"https://arxiv.org/abs/{rest}", "doi": f"https://doi.org/{rest}"}.get(scheme)

    def __str__(self) -> str:
        return f"{self.work}, {self.ref}, {self.locator}"
