"""Directives that write what the code knows, so that no page repeats it: the public names, and the instruments of a family."""

from __future__ import annotations

import importlib
import inspect
from collections import defaultdict
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

import theorylab
import theorylab.instruments
from theorylab.core.instrument import instruments


class _Generated(SphinxDirective):
    """Parses in place the MyST that `lines` returns; docstrings, being reStructuredText, go through {eval-rst}."""

    has_content = False

    def lines(self) -> list[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        holder = nodes.section()
        holder.document = self.state.document
        text = StringList(self.lines(), source=self.get_source_info()[0])
        nested_parse_with_titles(self.state, text, holder)
        return holder.children


class PublicNames(_Generated):
    """``{public-names}``: the reference of everything that ``import theorylab as tl`` offers, by module."""

    def lines(self) -> list[str]:
        homes: dict[str, list[str]] = defaultdict(list)
        for name, module in theorylab._PUBLIC.items():
            homes[module].append(name)
        text: list[str] = []
        for module, names in homes.items():
            opening = (inspect.getdoc(importlib.import_module(f"theorylab.{module}")) or "").partition("\n")[0]
            text += [f"## theorylab.{module}", "", opening, "", "```{eval-rst}"]
            for name in names:
                kind = "autoclass" if inspect.isclass(getattr(theorylab, name)) else "autofunction"
                text += [f".. {kind}:: theorylab.{module}.{name}", *(["   :members:"] if kind == "autoclass" else []), ""]
            text += ["```", ""]
        return text


class Family(_Generated):
    """``{family} curvature``: the instruments of a family, what each measures in a sentence, and its source."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {}

    def lines(self) -> list[str]:
        family = self.arguments[0]
        found = [i for i in instruments().values() if i.family == family]
        if not found:
            raise self.error(f"there is no family {family!r}; there are {', '.join(sorted({i.family for i in instruments().values()}))}.")
        text = [
            "```{eval-rst}",
            ".. list-table::",
            "   :widths: 22 48 30",
            "   :header-rows: 1",
            "",
            "   * - instrument",
            "     - measures",
            "     - source",
        ]
        for tool in found:
            sentence = (inspect.getdoc(tool.measure) or "").partition("\n")[0]
            home = tool.measure.__module__
            text += [f"   * - :py:func:`~{home}.{tool.name}`", f"     - {sentence}", f"     - {tool.source}"]
        return [*text, "```"]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("public-names", PublicNames)
    app.add_directive("family", Family)
    return {"parallel_read_safe": True}
