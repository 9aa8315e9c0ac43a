"""A study: the claims it declares, its settings at each scale, and the run that confronts prediction with measurement."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from theorylab.core import claim as claim_module
from theorylab.core.cache import recall, remember
from theorylab.core.claim import Claim, Finding
from theorylab.core.config import Config
from theorylab.core.scale import Scale
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source

ENTRY_POINTS = "theorylab.studies"
"""Installed packages announce their studies under this entry-point group, naming a package or a module."""

Run = Callable[[Any], Iterator[Finding | Series | Stage]]


class StudyError(Exception):
    """A study broke its contract, could not be found, or could not be imported; the message says which and what to do."""


@dataclass
class Result:
    """What one run of a study yielded, in order."""

    findings: list[Finding] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """A registered study; made by `study`, not by hand."""

    key: str
    claims: tuple[Claim, ...]
    scales: Mapping[Scale, Config]
    run: Run
    module: str

    def validate(self, config: Config) -> None:
        """Refuse a config before any work.

        Raises:
            TypeError: it is not of the study's own config class.
            ValueError: less than float64 for a study that checks exact claims, or one replica for one that checks statistical ones.
        """
        expected = type(next(iter(self.scales.values())))
        if not isinstance(config, expected):
            raise TypeError(f"study {self.key}: config must be a {expected.__qualname__}, got {type(config).__qualname__}.")
        exact = [c.key.rpartition("/")[2] for c in self.claims if c.kind in ("identity", "inequality")]
        if config.dtype != "float64" and exact:
            raise ValueError(
                f"dtype must be float64, got {config.dtype}, whose rounding hides a violation of exact claims ({', '.join(exact)})."
            )
        replicated = all(own.seeds > 1 for own in self.scales.values())  # elsewhere what is repeated is something else
        if config.seeds < 2 and replicated and any(c.kind == "statistical" for c in self.claims):
            raise ValueError(
                f"seeds must be at least 2, got {config.seeds}: study {self.key} has statistical claims, about a mean of replicas."
            )

    def execute(self, config: Config, on_stage: Callable[[str], None] = lambda _: None, *, into: Result | None = None) -> Result:
        """Run and check the contract: a finding and a control for every declared claim, and nothing else.

        Args:
            config: Settings, of the study's own config class.
            on_stage: Told the name of each stage as it begins.
            into: Filled while the study runs, and returned; what it yielded before it raised is there.

        Raises:
            StudyError: a finding of an undeclared claim, or a claim without a finding or without its control.
        """
        self.validate(config)
        declared = {c.key for c in self.claims}
        result = Result() if into is None else into
        with _undisturbed():
            for item in self.run(config):
                if isinstance(item, Stage):
                    on_stage(item.name)
                elif isinstance(item, Series):
                    result.series.append(item)
                elif isinstance(item, Finding):
                    if item.claim not in declared:
                        raise StudyError(f"study {self.key} yields a finding of {item.claim}, which it does not declare.")
                    result.findings.append(item)
                else:
                    raise StudyError(f"study {self.key} yields a {type(item).__name__}; a study yields Finding, Series and Stage.")
        for role in ("claim", "control"):
            missing = declared - {f.claim for f in result.findings if f.role == role}
            if missing:
                raise StudyError(f"study {self.key} yields no {role} finding for {', '.join(sorted(missing))}.")
        return result


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What users chose for models of their own does not reach a study: formats shorter than float32, a default device."""
    if "torch" not in sys.modules:  # a study without torch runs without it
        yield
        return
    import torch

    from theorylab.core.precision import full_float32

    with full_float32(), torch.device("cpu") if torch.get_default_device().type != "cpu" else nullcontext():
        yield


_registry: dict[str, Study] = {}


def study(key: str, *, claims: Iterable[Claim], tiny: Config, small: Config, large: Config) -> Callable[[Run], Run]:
    """Register a generator function as the study ``key`` ("topic/study").

    The decorated function takes the config and yields `Finding`, `Series` and `Stage`. Its module's docstring is the study's text.

    Args:
        key: ``"topic/study"``, the place of the file under ``studies/``.
        claims: Every claim that the run checks; their keys begin with ``key``.
        tiny: Settings of the tests: a second or two.
        small: Settings of a laptop: about ten seconds.
        large: Settings of the paper, on a GPU or a cluster.

    Raises:
        ValueError: a key that another module took, a claim of another study, or configs of different classes.
    """
    claims = tuple(claims)
    scales = {Scale.TINY: tiny, Scale.SMALL: small, Scale.LARGE: large}
    if len({type(c) for c in scales.values()}) != 1:
        raise ValueError(f"study {key}: tiny, small and large must be of one config class.")
    if not claims:
        raise ValueError(f"study {key} declares no claim.")
    for c in claims:
        if not c.key.startswith(f"{key}/"):
            raise ValueError(f"study {key}: the key of claim {c.key!r} must begin with {key + '/'!r}.")

    def register(run: Run) -> Run:
        taken = _registry.get(key)
        if taken is not None and taken.module != run.__module__:
            raise ValueError(f"study {key} is registered by {taken.module} already; {run.__module__} must choose another key.")
        _registry[key] = Study(key, claims, scales, run, run.__module__)
        return run

    return register


@dataclass(frozen=True)
class StudyCard:
    """What can be said of a study without importing it (and torch): read from its source text."""

    key: str
    title: str
    text: str
    claims: tuple[Claim, ...]
    module: str
    path: Path


_LITERALS: dict[str, Any] = {
    name: value
    for name, value in vars(claim_module).items()
    if inspect.isclass(value) and issubclass(value, (Claim, claim_module.Relation))
} | {"Source": Source}


_MODULES = (claim_module.__name__, Source.__module__, __name__, "theorylab.core", "theorylab")
_NAMES = {*_LITERALS, "core", "claim", "source", "study"}
"""All that a card is made of: where a file may import it from, and by which names. Others of ``theorylab`` would import torch."""


def read_card(path: Path, module: str) -> StudyCard | None:
    """The card of the study in a source file, or None where the file registers none.

    Raises:
        StudyError: the file does not parse, or registers a study or writes a claim in a way that cannot be read without importing it.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise StudyError(f"{module} cannot be read as Python: {error}.") from error
    imported = _imported(tree, module)
    names = {**_LITERALS, "study": study} | imported
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    decorators = [d for node in functions for d in node.decorator_list if isinstance(d, ast.Call) and _meaning(d.func, names) is study]
    if not decorators:
        nodes = list(ast.walk(tree))
        own = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        own |= {node.arg for node in nodes if isinstance(node, ast.arg)}  # such as a variable of helpers that is named study
        elsewhere = {name: value for name, value in imported.items() if name not in own}
        for node in nodes:
            if isinstance(node, ast.Name | ast.Attribute) and _meaning(node, elsewhere) is study:
                raise StudyError(
                    f'{module}, line {node.lineno}: no study is registered in a way that can be read; write @study("topic/study", ...) on '
                    "a function at the top level of its file, or begin the name of a file of helpers with _."
                )
        return None
    if len(decorators) > 1:
        raise StudyError(f"{module} registers {len(decorators)} studies; a file holds one.")
    key = _key(decorators[0], tree)
    if key is None:
        raise StudyError(
            f'{module}, line {decorators[0].lineno}: the key of a study must be written out, as in @study("topic/study", ...).'
        )
    claims = []
    values = [node.value for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None]
    for value in (node for root in (*values, decorators[0]) for node in ast.walk(root)):
        if isinstance(value, ast.Call) and _meaning(value.func, names) is Claim:
            try:
                code = compile(ast.Expression(value), str(path), "eval")
                claims.append(eval(code, {"__builtins__": {}, **names}))
            except Exception as error:
                raise StudyError(f"{module}, line {value.lineno}: a claim must be written as a literal ({error}).") from error
    text = inspect.cleandoc(ast.get_docstring(tree) or "")
    return StudyCard(key, text.split("\n")[0].rstrip("."), text, tuple(claims), module, path)


def _imported(tree: ast.Module, module: str) -> dict[str, Any]:
    """What a file's imports bind of all that a card is made of, under the file's own names."""
    names: dict[str, Any] = {}
    for node in tree.body:
        kept: ast.stmt | None = None
        if isinstance(node, ast.Import):
            kept = ast.Import([alias for alias in node.names if alias.name in _MODULES])
        elif isinstance(node, ast.ImportFrom) and node.module in _MODULES and not node.level:
            kept = ast.ImportFrom(node.module, [alias for alias in node.names if alias.name in _NAMES], 0)
        if kept is None or not kept.names:
            continue
        try:
            exec(compile(ast.Module([ast.copy_location(kept, node)], []), module, "exec"), names)
        except ImportError as error:
            raise StudyError(f"{module}, line {node.lineno}: {error}.") from error
    names.pop("__builtins__", None)
    return names


def _meaning(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """What a name or a dotted name stands for; None where it is nothing that a card is made of."""
    if isinstance(node, ast.Attribute):
        return getattr(_meaning(node.value, names), node.attr, None) if node.attr in _NAMES else None
    return names.get(node.id) if isinstance(node, ast.Name) else None


def _key(decorator: ast.Call, tree: ast.Module) -> str | None:
    """The key of a study: a text, or the name of one that is assigned at the top level; None where it is anything else."""
    given = [*decorator.args[:1], *(k.value for k in decorator.keywords if k.arg == "key")]
    named = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    value = given[0] if given else None
    value = named.get(value.id) if isinstance(value, ast.Name) else value
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def _files(entry: metadata.EntryPoint) -> Iterator[tuple[str, Path]]:
    spec = importlib.util.find_spec(entry.module)
    if spec is None:
        raise StudyError(f"no module named {entry.module}")
    if spec.submodule_search_locations is None:
        yield entry.module, Path(str(spec.origin))
        return
    for root in map(Path, spec.submodule_search_locations):
        for path in sorted(root.rglob("*.py")):
            if not path.name.startswith("_"):
                yield ".".join((entry.module, *path.relative_to(root).with_suffix("").parts)), path


@lru_cache
def find_studies() -> tuple[dict[str, StudyCard], tuple[str, ...]]:
    """All installed studies by key, and one line for each package or file that could not be read.

    Nothing of theorylab's own studies is imported. A broken package never hides the others.
    """
    cards: dict[str, StudyCard] = {}
    problems: list[str] = []
    stamp = (sys.version, *(_mark(Path(str(source))) for source in (__file__, claim_module.__file__)))
    known: dict[Any, StudyCard | None] = recall("cards", stamp) or {}
    seen: dict[Any, StudyCard | None] = {}
    for entry in sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda e: (e.name != "theorylab", e.name)):
        try:
            files = list(_files(entry))
        except Exception as error:  # an import of someone else's package may raise anything
            problems.append(f"studies of package {entry.name!r} ({entry.value}) cannot be found: {type(error).__name__}: {error}")
            continue
        for module, path in files:
            try:
                mark = (module, *_mark(path))
                card = seen[mark] = known[mark] if mark in known else read_card(path, module)  # parsing is most of the time
                if card is not None and card.key in cards:
                    raise StudyError(f"{module} registers {card.key}, which {cards[card.key].module} registers already.")
            except (StudyError, OSError) as error:
                problems.append(str(error))
                continue
            if card is not None:
                cards[card.key] = card
    if seen.keys() - known.keys():
        remember("cards", stamp, seen)
    return cards, tuple(problems)


def _mark(path: Path) -> tuple[str, int, int]:
    """What tells a file from a changed one."""
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size


def load_study(key: str) -> Study:
    """Import the module that registers ``key`` and return the study.

    Raises:
        StudyError: no such study, its module raises on import, or it registers other claims than can be read from its text.
    """
    card = find_studies()[0].get(key)
    if key not in _registry:
        if card is None:
            raise StudyError(f"no study {key!r}; `theorylab syllabus` lists what there is.")
        try:
            importlib.import_module(card.module)
        except Exception as error:
            sys.modules.pop(card.module, None)
            raise StudyError(f"study {key}: importing {card.module} raised {type(error).__name__}: {error}") from error
        if key not in _registry:
            raise StudyError(f"study {key}: importing {card.module} registered no such study.")
    found = _registry[key]
    if card is not None:  # of which records and the syllabus are made: a claim that it lacks would be checked, and count for nothing
        read, registered = ({c.key: c for c in claims} for claims in (card.claims, found.claims))
        differ = sorted(k for k in read.keys() | registered.keys() if read.get(k) != registered.get(k))
        if differ:
            raise StudyError(
                f"study {key}: {', '.join(differ)} cannot be read from the text of {card.module} as registered; write each claim of the "
                "study, and no other, as NAME = Claim(...) with literals, at the top level of the file."
            )
    return found
