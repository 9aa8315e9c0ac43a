"""How is a LaTeX formula shown without a script? As MathML, or as its own source where the converter does not know it."""

from __future__ import annotations

import html
import re
import textwrap
from itertools import pairwise
from xml.etree import ElementTree

from markupsafe import Markup, escape

from theorylab.report.numbers import powers_set

_NAMES = ("arg", "tr", "sign", "diag", "rank")
"""Operator names that the converter passes through with their backslash."""

_REWRITES = (
    (re.compile(rf"\\({'|'.join(_NAMES)})(?![a-zA-Z])"), r"\\operatorname{\1}"),
    (re.compile(r"\\operatorname\*\{([a-z]+)(?:\\,| )?([a-z]*)\}"), r"\\operatorname{\1\2}"),
    (re.compile(r"\\[bB]igg?[lrm]?(?=\\)"), ""),  # the converter sizes ( and [, but no delimiter that is a command
)
"""What the converter does not read, in words that it does: the same formula, a delimiter's size apart."""

_LIMITS = {"min", "max", "inf", "sup", "lim", "argmin", "argmax"}
"""Operators under which a displayed formula writes what others carry as a subscript."""

_FUNCTIONS = {"ln", "log", "exp", "sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"}
"""Which the converter sets as it sets letters, close to what stands beside them; TeX leaves a thin space, but for a bracket or bar."""

_ENTITY_LETTER = re.compile(r"&#x000(?:4|5|6|7)[0-9A-F];")


def mathml(latex: str, *, display: bool = True) -> Markup:
    r"""A ``<math>`` element for a formula, its LaTeX source as the text for readers that cannot see it.

    A formula that the converter does not understand in full (it raises, or leaves a command unread) is shown as code, whole: a formula with
    a symbol missing would be a different claim.

    Args:
        latex: LaTeX without delimiters.
        display: Set on a line of its own, or in running text.

    Example:
        >>> str(mathml(r"a < \lambda", display=False))
        '<math display="inline" aria-label="a &lt; \\lambda"><mrow><mi>a</mi><mo>&lt;</mo><mi>λ</mi></mrow></math>'
        >>> str(mathml(r"\unknown x"))
        '<code class="latex">\\unknown x</code>'
    """
    from latex2mathml.converter import convert_to_element

    as_code = Markup('<code class="latex">{}</code>').format(latex)
    try:
        readable = latex
        for pattern, replacement in _REWRITES:
            readable = pattern.sub(replacement, readable)
        root = convert_to_element(readable, display="block" if display else "inline")
    except Exception:  # the converter's own error classes, and KeyError or IndexError for what it did not foresee
        return as_code
    for node in root.iter():
        if node.text:
            if _ENTITY_LETTER.fullmatch(node.text):  # \mathrm of one letter: without this, a single letter is set in italics
                node.set("mathvariant", "normal")
            # The converter writes entities as text and leaves < and & alone; read the former, and let the serializer escape the latter.
            node.text = html.unescape(node.text)
            if "\\" in node.text and node.tag != "mtext":
                return as_code
            if node.tag == "mo" and node.text in ("|", "‖", "/"):  # bars and a solidus stand close; \mid is another character
                node.attrib.update(lspace="0", rspace="0")
                node.attrib.setdefault(
                    "stretchy", "false"
                )  # an opening bar grows with its row by default, a closing one in a power does not
        if display and node.tag == "msub" and node[0].text in _LIMITS:
            node.tag = "munder"
    for row in root.iter("mrow"):
        _set_apart_functions(row)
    root.attrib.pop("xmlns", None)
    root.set("aria-label", latex)
    return Markup(ElementTree.tostring(root, encoding="unicode").replace(" />", "/>"))


def _set_apart_functions(row: ElementTree.Element) -> None:
    """A thin space between the name of a function and the letter, number or fraction on either side of it."""
    for left, right in pairwise(list(row)):
        named = any(_named(node).text in _FUNCTIONS for node in (left, right))
        if named and not any(node.tag in ("mo", "mspace") for node in (left, _first(right))):
            row.insert(list(row).index(right), ElementTree.Element("mspace", width="0.167em"))


def _named(node: ElementTree.Element) -> ElementTree.Element:
    """What carries the scripts of a node, log in log₂; or the node."""
    return node[0] if node.tag in ("msub", "msup", "msubsup", "munder") else node


def _first(node: ElementTree.Element) -> ElementTree.Element:
    """What stands first in it: the bracket of a row in brackets."""
    while node.tag in ("mrow", "mstyle", "msup", "msub", "msubsup") and len(node):
        node = node[0]
    return node


_SCRIPT = re.compile(
    r"(?P<base>(?:(?<![A-Za-z_])(?<![A-Za-z_]\d)[^\W\d_]|(?<=[a-z0-9}])[A-Z])[′*]?|‖)"  # one letter: θ_t, 2W_jW_k, but no snake_case
    r"_(?P<sub>\{[^{}]+\}|[A-Za-z0-9α-ω]{1,2}(?![a-z0-9_])|[A-Za-z0-9α-ω](?=[A-Z]_))"
    r"|(?<=[\w)\]|‖])\^(?P<sup>\{[^{}]+\}|\([^()]+\)|[-−]?[^\W_]{1,3})(?!\w)"
)


def typeset(text: str) -> Markup:
    """Plain words with the indices and powers of their formulas raised and lowered, also those of ten; everything escaped.

    Example:
        >>> str(typeset("θ_t, W_{j+1}ᵀW_k, (1 − μ/L)^k, snake_case, x_train"))
        'θ<sub>t</sub>, W<sub>j+1</sub>ᵀW<sub>k</sub>, (1 − μ/L)<sup>k</sup>, snake_case, x_train'
    """

    def script(text: str) -> str:
        return (text[1:-1] if text[0] in "{(" else text).replace("-", "−")

    text = powers_set(text)
    parts, end = [], 0
    for match in _SCRIPT.finditer(text):
        parts.append(escape(text[end : match.start()]))
        if match["sub"]:
            parts.append(Markup("{}<sub>{}</sub>").format(match["base"], script(match["sub"])))
        else:
            parts.append(Markup("<sup>{}</sup>").format(script(match["sup"])))
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


_INLINE = re.compile(r"``(?P<code>.+?)``|:math:`(?P<math>.+?)`|`(?P<name>[^`\n]+)`|\*(?P<emphasis>[^*\s](?:[^*]*[^*\s])?)\*", re.DOTALL)


def inline(text: str) -> Markup:
    r"""Running text of a docstring: code, names, emphasis and inline mathematics marked up, everything else escaped.

    Example:
        >>> str(inline("``lr`` < *two*"))
        '<code>lr</code> &lt; <em>two</em>'
    """
    parts, end = [], 0
    for match in _INLINE.finditer(text):
        parts.append(typeset(text[end : match.start()]))
        if match["math"]:
            parts.append(mathml(match["math"], display=False))
        elif match["emphasis"]:
            parts.append(Markup("<em>{}</em>").format(match["emphasis"]))
        else:
            parts.append(Markup("<code>{}</code>").format(match["code"] or match["name"]))
        end = match.end()
    return Markup("").join([*parts, typeset(text[end:])])


def paragraphs(text: str) -> Markup:
    r"""A docstring as paragraphs, lists and literal blocks.

    Example:
        >>> str(paragraphs("One & two.\n\n- three\n- four"))
        '<p>One &amp; two.</p>\n<ul><li>three</li><li>four</li></ul>'
    """
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        items = re.split(r"(?:^|\n)\s*[-*] ", block)
        if not block.strip():
            continue
        if len(items) > 1 and not items[0].strip():
            body = Markup("").join(Markup("<li>{}</li>").format(inline(" ".join(i.split()))) for i in items[1:])
            blocks.append(Markup("<ul>{}</ul>").format(body))
        elif all(line.startswith("    ") for line in block.split("\n")):
            blocks.append(Markup("<pre>{}</pre>").format(textwrap.dedent(block)))
        else:
            blocks.append(Markup("<p>{}</p>").format(inline(" ".join(block.split()))))
    return Markup("\n").join(blocks)
