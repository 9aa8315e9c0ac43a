"""How does an SVG file of matplotlib become a part of the page? With the page's colours and fonts, and ids of its own."""

from __future__ import annotations

import hashlib
import re
from xml.etree import ElementTree

MEASURED = 6
"""Colours of measured curves; the page's CSS names them --c1, --c2, ... (Okabe and Ito's, shaded for light and dark)."""

# Colours that stand in for the page's variables: matplotlib writes them out as they are, and they are replaced in the text.
STAND_INS = {f"#0101{k:02x}": f"var(--c{k})" for k in range(1, MEASURED + 1)} | {
    "#020201": "var(--ink)",
    "#020202": "var(--ink-2)",
    "#020203": "var(--rule)",
    "#020204": "var(--paper)",
    "#020205": "var(--control)",
}
COLOUR = {name: key for key, name in STAND_INS.items()}
"""The stand-in of each variable."""

CLASSES = {
    "fill: none; stroke: var(--rule); stroke-width: 0.6; stroke-linecap: square": "gl",
    "fill: var(--rule); stroke: var(--rule); stroke-width: 0.8": "tk",
    "text-anchor: middle; fill: var(--ink-2)": "tm",
    "text-anchor: end; fill: var(--ink-2)": "te",
}
"""What grid lines, ticks and their labels look like, hundreds of times on a page; ``colours.css`` has the classes."""

_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_REFERENCE = re.compile(r"^#(.+)|url\(#([^)]+)\)")
_FONT = re.compile(r"font(?:-size|-family|-style|-weight)?: [^;]*(?:; )?")


_COMMAND = re.compile(r"([MLz])([^MLz]*)")
_CURVE = re.compile("[^MLz0-9. \\n-]")


def _shorter(match: re.Match[str]) -> str:
    return f"{round(float(match[0]), 1) + 0.0:g}"  # + 0.0: no minus before a zero


def _path(d: str) -> str:
    """A path in tenths of a point, lines by their steps: half of the letters that their ends take.

    Example:
        >>> _path("M 10 20.04 L 10.5 19.96 L 12 20 z M 1.26 2 L 1.26 12")
        'M10 20l.5 0 1.5 0zM1.3 2l0 10'
    """
    if _CURVE.search(d):
        return " ".join(_NUMBER.sub(_shorter, d).split())
    parts: list[tuple[str, list[int]]] = []
    x = y = 0
    for command, numbers in _COMMAND.findall(d):
        if command == "z":
            parts.append((command, []))
            continue
        before, (x, y) = (x, y), (round(10 * float(v)) for v in numbers.split())
        if command == "M":
            parts.append((command, [x, y]))
        elif parts[-1][0] == "l":
            parts[-1][1].extend((x - before[0], y - before[1]))
        else:
            parts.append(("l", [x - before[0], y - before[1]]))
    return "".join(command + " ".join(map(_tenth, values)).replace(" -", "-") for command, values in parts)


def _tenth(value: int) -> str:
    whole, digit = divmod(abs(value), 10)
    return "-" * (value < 0) + (str(whole) if whole or not digit else "") + (f".{digit}" if digit else "")


def _flatten(node: ElementTree.Element) -> None:
    """Leave out groups that say nothing, with their content in their place, and what is empty or invisible."""
    kept: list[ElementTree.Element] = []
    for child in node:
        _flatten(child)
        if child.tag == "g" and not child.attrib:
            kept += child
        elif not (child.tag == "defs" and not len(child)) and child.get("style") != "fill: none; opacity: 0":
            kept.append(child)
    node[:] = kept


def inlined(svg: str, prefix: str) -> tuple[str, str]:
    """An SVG file's ``viewBox`` and its content, ready for an ``<svg>`` element of the page.

    Ids that are referred to become short ones, made of ``prefix``, and the others go, coordinates are rounded to a tenth of a point,
    colours become the page's variables, and text takes the page's font. Attributes alone are rewritten, so a label may say what it likes.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            # The style sheet would rule the whole page (the figure's class says the same); the metadata names matplotlib's own title.
            if child.tag.endswith(("}metadata", "}style", "}title")):
                parent.remove(child)
    nodes = list(root.iter())
    referred = [a or b for node in nodes for value in node.attrib.values() for a, b in _REFERENCE.findall(value)]
    # Every marker of a curve refers to its shape: short ids, of this figure alone, are a good part of a page's size.
    stem = "g" + hashlib.blake2s(prefix.encode(), digest_size=4).hexdigest()
    short = {name: f"{stem}-{i:x}" for i, name in enumerate(dict.fromkeys(referred))}
    for node in nodes:
        node.tag = node.tag.rpartition("}")[2]
        node.attrib = {name.rpartition("}")[2]: value for name, value in node.attrib.items()}
        for name, value in list(node.attrib.items()):
            if name == "id":
                if value not in short:
                    del node.attrib[name]
                    continue
                value = short[value]
            elif name in ("href", "clip-path"):
                value = _REFERENCE.sub(lambda m: m[0].replace(m[1] or m[2], short[m[1] or m[2]]), value)
            elif name == "style":
                value = re.sub(r"#0[12]0[12]0[0-9a-f]", lambda m: STAND_INS.get(m[0], m[0]), value)
                value = _FONT.sub("", value) if node.tag == "text" else value
            elif name == "d":
                value = _path(value)
            elif name in ("x", "y"):
                value = _NUMBER.sub(_shorter, value)
            elif name == "transform" and value.startswith("rotate(-0 "):
                del node.attrib[name]
                continue
            node.attrib[name] = value
        if node.tag != "text":
            node.text = None
        node.tail = None
    for node in nodes:  # the markers of a curve look alike: say it once
        looks = {child.get("style") for child in node}
        if len(node) > 1 and len(looks) == 1 and all(child.tag == "use" for child in node):
            node.set("style", looks.pop() or "")
            for child in node:
                child.attrib.pop("style", None)
    for node in nodes:
        if (look := CLASSES.get(node.get("style", "").rstrip("; "))) is not None:
            del node.attrib["style"]
            node.set("class", look)
    _flatten(root)
    body = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    return root.attrib["viewBox"], body
