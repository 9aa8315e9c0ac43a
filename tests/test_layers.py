"""The tree is the architecture: who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "theorylab"

ALLOWED = {
    "core": set(),
    "linalg": {"core"},
    "stats": {"core"},
    "data": {"core"},
    "models": {"core"},
    "theory": {"core"},
    "learning": {"core", "linalg", "stats", "models", "data"},
    "instruments": {"core", "linalg", "stats", "learning"},
    "studies": {"core", "linalg", "stats", "data", "models", "learning", "theory", "instruments"},
    "runners": {"core"},
    "report": {"core"},
    # the face that points instruments at a user's model and hands what they say to the report
    "measuring": {"core", "linalg", "stats", "learning", "instruments", "runners", "report"},
}
EVERYTHING = {"course", "cli", "__init__", "__main__"}
"""The outermost layer: may import all."""


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every absolute import of theorylab in a file, also inside functions and under TYPE_CHECKING; relative imports fail."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by the full name, so that the layer is seen"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "theorylab" else [str(node.module)]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "theorylab")


def violation(layer: str, topic: str, name: str) -> bool:
    """Whether a module of ``layer`` (and, among studies, of the file ``topic``) may not import ``name``."""
    parts = name.split(".")
    target = parts[1] if len(parts) > 1 else "__init__"
    if layer in EVERYTHING:
        return False
    if target == layer:
        return layer == "studies" and ".".join(parts[2:4]) != topic  # a study never imports another
    return target not in ALLOWED[layer]


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    wrong = [f"line {line}: {name}" for line, name in imports(path) if violation(parts[0], ".".join(parts[1:3]), name)]
    assert not wrong, f"layer {parts[0]} may import {sorted(ALLOWED.get(parts[0], ()))} only: {wrong}"


def test_every_folder_is_a_layer() -> None:
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert folders - EVERYTHING == set(ALLOWED)


@pytest.mark.parametrize(
    ("layer", "topic", "name", "wrong"),
    [
        ("core", "claim", "theorylab.linalg.lanczos", True),
        ("theory", "optimization", "theorylab.instruments.curvature", True),
        ("instruments", "curvature", "theorylab.theory.optimization", True),
        ("studies", "optimization.saddle", "theorylab.studies.optimization.quadratics", True),
        ("studies", "optimization.saddle", "theorylab.instruments.curvature", False),
        ("report", "page", "theorylab.studies", True),
        ("report", "card", "theorylab.measuring.measure", True),
        ("instruments", "curvature", "theorylab.measuring.measure", True),
        ("measuring", "measure", "theorylab.theory.optimization", True),
        ("measuring", "measure", "theorylab.instruments.curvature", False),
        ("runners", "local", "theorylab.core.record", False),
        ("linalg", "lanczos", "theorylab", True),
    ],
)
def test_the_rule_itself(layer: str, topic: str, name: str, wrong: bool) -> None:
    assert violation(layer, topic, name) is wrong


def test_first_line_says_what_a_file_is_for() -> None:
    silent = [str(p.relative_to(ROOT)) for p in FILES if len(ast.get_docstring(ast.parse(p.read_text(encoding="utf-8"))) or "") < 15]
    assert not silent
