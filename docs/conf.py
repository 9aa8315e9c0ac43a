"""Sphinx: MyST pages, and a reference made from the docstrings of what `theorylab` exports."""

from __future__ import annotations

import sys
from pathlib import Path

import theorylab

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "theorylab"
author = copyright = "The theorylab developers"
version = release = theorylab.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "mathml", "reference"]
html_math_renderer = "mathml"
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "theorylab"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
nitpicky = False
