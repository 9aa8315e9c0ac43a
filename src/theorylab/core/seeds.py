"""Seeds of replicas, and of the other streams that a replica draws from its seed, independent of its first numbers."""

from __future__ import annotations

import hashlib
import operator
from typing import Any


def derived_seed(seed: int, *stream: int | str) -> int:
    """The seed of another stream of random numbers, named by words or numbers, of whoever has ``seed``.

    Two generators with one seed give the same numbers: a network's weights drawn from it *are* the first entries of data drawn from it,
    in other places. An offset such as ``seed + 1000`` only moves the clash to another replica. The first 63 bits of SHA-256 of seed and
    name leave no two streams alike but by a chance of 2⁻⁶³ a pair.

    Args:
        seed: Of the replica, at least 0.
        stream: What is drawn: ``"data"``, ``"test rows"``, or a word with a count, ``"batch", 3``. At least one part.

    Returns:
        An integer in 0 ... 2⁶³ − 1, the same on every machine; any generator of torch or numpy takes it.

    Raises:
        ValueError: no name, which would be the stream of ``seed`` itself; or a negative seed.
        TypeError: a part that is neither a word nor a whole number.

    Example:
        >>> derived_seed(0, "data") == derived_seed(0, "data"), derived_seed(0, "data") == derived_seed(1, "data")
        (True, False)
    """
    if not stream:
        raise ValueError("stream must name what is drawn, got nothing: without a name the stream is that of the seed itself.")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}.")
    name = repr((int(seed), *map(_plain, stream)))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _plain(part: int | str) -> int | str:
    """Python's own number or string: those of NumPy and torch print otherwise, in some versions."""
    if isinstance(part, str):
        return str(part)
    try:
        return operator.index(part)
    except TypeError:
        raise TypeError(f"stream must hold words and whole numbers, got {part!r}.") from None


def several_seeds(seeds: Any) -> tuple[int, ...]:
    """The seeds of an interval over replicas: so many, counted from 0, or those that are given.

    Raises:
        TypeError: neither a whole number nor a list of such.
        ValueError: fewer than two, or the same twice: a seed that is repeated gives the same number again, and an interval too narrow.

    Example:
        >>> several_seeds(3), several_seeds([7, 4])
        ((0, 1, 2), (7, 4))
    """
    try:
        found = tuple(range(operator.index(seeds)) if hasattr(seeds, "__index__") else map(operator.index, seeds))
    except TypeError:
        raise TypeError(f"seeds must be how many, or a list of whole numbers, as 4 or [0, 1, 2, 3], got {seeds!r}.") from None
    if len(found) < 2:
        raise ValueError(f"seeds must be at least 2 to give an interval, got {len(found)}.")
    if len(set(found)) < len(found):
        raise ValueError(f"seeds must be different, or an interval over them is too narrow, got {found}.")
    return found
