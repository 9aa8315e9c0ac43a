"""Text from the data folder, as strings; how it is cut into tokens is the model's business."""

from __future__ import annotations

from typing import Literal

from theorylab.data.folder import data_file

Corpus = Literal["tinyshakespeare", "wikitext2_valid", "wikitext2_test", "names"]


def text(corpus: Corpus) -> str:
    """A whole corpus; ``names`` holds one name a line.

    Raises:
        ValueError: an unknown corpus.
        DataError: its file is missing or not the file expected.
    """
    known = Corpus.__args__  # pyright: ignore[reportAttributeAccessIssue]
    if corpus not in known:
        raise ValueError(f"corpus must be one of {', '.join(known)}, got {corpus!r}.")
    return data_file(f"{corpus}.txt").read_text(encoding="utf-8")
