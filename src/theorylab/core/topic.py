"""What a topic says before its studies: the docstring of the package that holds them."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterable

from theorylab.core.study import StudyCard


def topic_texts(cards: Iterable[StudyCard]) -> dict[str, str]:
    """Topic → the docstring of the folder of its studies, read without importing it.

    A topic whose folder has another name has none, nor has one whose ``__init__.py`` is no Python: its studies say so when they run.

    Example:
        >>> from theorylab.core.study import find_studies
        >>> "optimization" in topic_texts(find_studies()[0].values())
        True
    """
    texts: dict[str, str] = {}
    for card in cards:
        topic, folder = card.key.partition("/")[0], card.path.parent
        path = folder / "__init__.py"
        if topic in texts or folder.name != topic or not path.exists():
            continue
        with contextlib.suppress(SyntaxError, UnicodeDecodeError):
            if text := ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
                texts[topic] = text
    return texts
