"""A study's result on disk: what ran, what it found, and enough to know whether it is still valid."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import io
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from theorylab.core.checkpoints import discard
from theorylab.core.claim import Claim, Finding, Verdict
from theorylab.core.files import write_atomically
from theorylab.core.series import Line, Series

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
"""Raised when the layout changes; records of another schema are computed again."""

OURS = __name__.partition(".")[0]
"""Our own package, by the name under which it is imported."""

VERSIONED = ("theorylab", "torch", "numpy", "scipy", "scikit-learn", "mnist1d", "pillow")
"""The packages whose versions can change a number, those that make or decode data among them."""


class RecordError(Exception):
    """A record that cannot be read: missing parts, not JSON, of another schema, or not matching its own checksum."""


@dataclass(frozen=True)
class Provenance:
    """All that a result depends on; its digest is the key of the record."""

    study: str
    config: dict[str, Any]
    source: str  # digest of the study's source and of every module of its package that it imports
    versions: dict[str, str]

    @property
    def key(self) -> str:
        """Sixteen hex digits that name the record."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def differs_from(self, other: Provenance) -> str:
        """What changed, in words: the reason for computing a study again."""
        changed = [f"{k}: {other.config.get(k)} → {v}" for k, v in self.config.items() if other.config.get(k) != v]
        changed += [f"{k} {other.versions.get(k)} → {v}" for k, v in self.versions.items() if other.versions.get(k) != v]
        if self.source != other.source:
            changed.append("its source or a module that it imports")
        return ", ".join(changed) or "nothing"


@dataclass
class Record:
    """One run of a study, finished or failed.

    ``error`` is "" for a finished run, else the traceback. ``text`` is the study's docstring. ``module`` and ``path`` (relative to the
    folder of its top-level package) locate the source for the report. ``seconds`` is wall time, ``peak_bytes`` the worker's peak RSS.
    """

    provenance: Provenance
    scale: str
    title: str
    text: str
    module: str
    path: str
    claims: list[dict[str, Any]]
    findings: list[Finding] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    error: str = ""
    started: str = ""  # ISO 8601, UTC
    seconds: float = 0.0
    peak_bytes: int = 0
    machine: dict[str, str] = field(default_factory=dict)

    @property
    def study(self) -> str:
        """The study's key."""
        return self.provenance.study

    def verdict(self, claim: str, role: str = "claim") -> Verdict | None:
        """The verdict of all checks of a claim together, or None where the run did not get to it.

        Of several settings of a claim the worst counts; of several controls the best, for all of them must fail.
        """
        verdicts = [f.verdict for f in self.findings if f.claim == claim and f.role == role]
        together = Verdict.best if role == "control" else Verdict.worst
        return together(verdicts) if verdicts else None

    def outcome(self, claim: str) -> Literal["holds", "fails", "inconclusive", "error"]:
        """What the run found of a claim, its control aside.

        A run that broke off leaves a claim's settings incomplete: what it saw may refute the claim, but cannot confirm it.
        """
        verdict = self.verdict(claim)
        if verdict is None or (self.error and verdict is not Verdict.FAILS):
            return "error"
        return verdict.value


def claim_dict(claim: Claim) -> dict[str, Any]:
    """A claim as JSON: its texts, source (with url), and relation in words."""
    source = dataclasses.asdict(claim.source) | {"url": claim.source.url}
    return dataclasses.asdict(claim) | {"source": source, "relation": claim.relation.describe()}


def machine(threads: int = 1) -> dict[str, str]:
    """Where this process runs, as far as a reader of a report may want to know; of threads, where there is more than one."""
    here = {"system": platform.system(), "processor": platform.machine(), "python": platform.python_version(), "cores": str(os.cpu_count())}
    return here | ({"threads": str(threads)} if threads > 1 else {})


@lru_cache
def versions() -> dict[str, str]:
    """The installed versions that can change a number."""
    return {name: _version(name) for name in VERSIONED}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a study that needs it will say so
        return "not installed"


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every statement in ``node``, however deep; expressions, which are most of a tree, hold no imports and are left out."""
    for place in ("body", "orelse", "finalbody", "handlers", "cases"):
        part = getattr(node, place, ())
        for inner in part if isinstance(part, list) else ():  # a conditional expression and a lambda have a body, too
            yield inner
            yield from _statements(inner)


@cache
def _spec(name: str) -> ModuleSpec | None:
    """Where a module lies; unlike `importlib.util.find_spec` this imports none of the packages around it. None where there is none."""
    package = name.rpartition(".")[0]
    if not package:
        try:
            return importlib.util.find_spec(name)
        except ValueError:  # a module made by hand, or the program itself
            return None
    around = _spec(package)
    places = None if around is None else around.submodule_search_locations
    return None if places is None else PathFinder.find_spec(name, places)  # of `from package.module import name` the last part is none


@cache  # studies share most of what they import
def _module(name: str) -> tuple[Path, tuple[str, ...]] | None:
    """The source file of a module and the full names of what it imports; None where there is no such file."""
    spec = _spec(name)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    if path.suffix != ".py":  # an extension counts by its bytes
        return path, ()
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # it cannot be imported, and whoever needs it will say so
        return path, ()
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    names, ours = [], set()
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
            ours |= {a.asname or OURS for a in node.names if a.name == OURS or (a.name.startswith(f"{OURS}.") and a.asname is None)}
        elif isinstance(node, ast.ImportFrom) and (source := absolute_name(node.module or "", node.level, package)):
            names += [source, *(f"{source}.{a.name}" for a in node.names)]
    if ours:  # what is an attribute of theorylab itself is imported when it is used
        names += [f"{OURS}.{n.attr}" for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", None) in ours]
    return path, tuple(names)


def absolute_name(name: str, level: int, package: str) -> str:
    """What ``level`` dots and a name mean within a package; empty where they lead out of it."""
    try:
        return importlib.util.resolve_name("." * level + name, package)
    except ImportError:
        return ""


def public_names() -> Mapping[str, str]:
    """The names that theorylab has itself, and the modules in it that define them."""
    return vars(sys.modules[OURS])["_PUBLIC"]  # not imported: every change of that list would be one of the source of all studies


@lru_cache
def imported_files(module: str, follows: Callable[[str], bool] | None = None) -> frozenset[Path]:
    """The source files of ``module`` and of the modules that it imports, however deep.

    ``follows`` tells of a module's name whether it is looked into; by default those of the same top-level package, and of theorylab.
    """
    roots = (module.partition(".")[0], OURS)
    seen: set[str] = set()
    files: set[Path] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        top, _, rest = name.partition(".")
        if name in seen or not (top in roots if follows is None else follows(name)):
            continue
        seen.add(name)
        if top == OURS and rest in public_names():
            queue.append(f"{OURS}.{public_names()[rest]}")
        found = _module(name)
        if found is not None:
            files.add(found[0])
            queue += found[1]
    return frozenset(files)


def source_digest(module: str, follows: Callable[[str], bool] | None = None) -> str:
    """Digest of the text of `imported_files`: it changes when any code that the study runs changes."""
    digest = hashlib.sha256()
    for text in sorted(path.read_bytes() for path in imported_files(module, follows)):
        digest.update(hashlib.sha256(text).digest())
    return digest.hexdigest()[:16]


def folder_of(runs: Path, provenance: Provenance) -> Path:
    """Where a record lies: ``runs/<topic>/<study>/<key>``."""
    return runs / provenance.study / provenance.key


def training_folder(runs: Path, provenance: Provenance) -> Path:
    """Where training that takes long leaves its state until the record is there, see `theorylab.core.checkpoints`."""
    return folder_of(runs, provenance) / "training"


def save(record: Record, runs: Path) -> Path:
    """Write a record: its series first, under a name that their checksum makes, then ``record.json``, which holds the checksum.

    An earlier record stays whole until the new ``record.json`` takes the place of the old. Of a finished run the checkpoints are removed.

    Raises:
        ValueError: a number that JSON does not know, as NaN; nothing is written.
        OSError: it cannot be written.
    """
    import numpy as np

    folder = folder_of(runs, record.provenance)
    arrays: dict[str, np.ndarray] = {}
    series = []
    for i, s in enumerate(record.series):
        lines = []
        for j, line in enumerate(s.lines):
            for part in ("x", "y", "low", "high"):
                if getattr(line, part) is not None:
                    arrays[f"{i}.{j}.{part}"] = getattr(line, part)
            lines.append({"label": line.label, "role": line.role, "mark": line.mark, "band": line.band})
        series.append({k: v for k, v in vars(s).items() if k != "lines"} | {"lines": lines})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    body = (
        {"schema": SCHEMA}
        | vars(record)
        | {
            "provenance": dataclasses.asdict(record.provenance),
            "findings": [_encode(f) for f in record.findings],
            "series": series,
            "series_sha256": digest,
        }
    )
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)
    path = _series_path(folder, digest)
    write_atomically(path, buffer.getvalue())
    write_atomically(folder / "record.json", text.encode())
    for old in folder.glob("series*.npz"):
        if old != path:
            old.unlink(missing_ok=True)
    if not record.error:
        discard(training_folder(runs, record.provenance))
    return folder


def _series_path(folder: Path, digest: str) -> Path:
    """Where the series of a checksum lie."""
    return folder / f"series-{digest[:16]}.npz"


def load(folder: Path, *, series: bool = True) -> Record:
    """Read a record back; without its series (and without numpy) where only the findings are wanted.

    Raises:
        RecordError: it is incomplete, damaged or of another schema; the message names the file and the reason.
    """
    path = folder / "record.json"
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(read, dict):
            raise ValueError(f"it holds a {type(read).__name__} instead of an object")
        body: dict[str, Any] = read
        if body.pop("schema") != SCHEMA:
            raise ValueError("it was written by another version of theorylab")
        digest, stored_series = body.pop("series_sha256"), body.pop("series")
        body["series"] = _read_series(folder, digest, stored_series) if series else []
        body["findings"] = [_decode(f) for f in body["findings"]]
        body["provenance"] = Provenance(**body["provenance"])
        record = Record(**body)
        _check_kinds(record)
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} cannot be read ({error}); the study will be computed again.") from error


def _check_kinds(record: Record) -> None:
    """Refuse what is JSON and no record: a file that something else wrote, or that was edited."""
    for part in (record, record.provenance, *record.findings, *record.series):
        for name, hint in _hints(type(part)).items():
            if not _fits(getattr(part, name), hint):
                raise ValueError(f"{name} of its {type(part).__name__.lower()} is of another kind than {hint}")
    texts = {f.name for f in dataclasses.fields(Claim)} - {"source"}
    for claim in record.claims:
        if not all(isinstance(claim.get(name), str) for name in texts) or not {"work", "locator", "ref", "url"} <= set(claim["source"]):
            raise ValueError(f"one of its claims lacks a text or its source: it has {', '.join(claim)}")


_hints = lru_cache(get_type_hints)


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, args[1]) for v in value.values())
    if origin in (list, tuple):
        return isinstance(value, origin) and all(_fits(v, args[0]) for v in value)
    if origin is Literal:
        return value in args
    return hint is Any or isinstance(value, (int, float) if hint is float else hint)


def _read_series(folder: Path, digest: str, bodies: list[dict[str, Any]]) -> list[Series]:
    import numpy as np

    path, before = _series_path(folder, digest), folder / "series.npz"
    if not path.exists() and before.exists():  # as records named it at first
        path = before
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != digest:
        raise ValueError(f"{path.name} does not match its checksum")
    arrays = np.load(io.BytesIO(packed), allow_pickle=False)
    found = []
    for i, body in enumerate(bodies):
        lines = []
        for j, line in enumerate(body["lines"]):
            parts = {p: arrays[name] for p in ("x", "y", "low", "high") if (name := f"{i}.{j}.{p}") in arrays}
            lines.append(Line(**line, **parts))
        fields: dict[str, Any] = body | {"lines": lines}
        found.append(Series(**fields))
    return found


def _encode(finding: Finding) -> dict[str, Any]:
    # JSON knows no infinity: an open end of a region is null
    return dataclasses.asdict(finding) | {"region": [v if math.isfinite(v) else None for v in finding.region]}


def _decode(body: dict[str, Any]) -> Finding:
    low, high = body["region"]
    region = (-math.inf if low is None else low, math.inf if high is None else high)
    return Finding(**body | {"region": region, "verdict": Verdict(body["verdict"]), "samples": tuple(body["samples"])})


def stored(runs: Path) -> Iterator[Path]:
    """The folders of all records under ``runs``, readable or not."""
    yield from sorted(p.parent for p in runs.glob("*/*/*/record.json"))
