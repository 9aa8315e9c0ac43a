"""Collects the Python examples of README and docs as tests; each page runs from top to bottom in one namespace."""

from __future__ import annotations

from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["README.md", "docs/*.md", "docs/*/*.md"]).pytest()

collect_ignore_glob = ["docs/*.py", "docs/_ext/*"]  # what builds the pages needs Sphinx, and has no examples
