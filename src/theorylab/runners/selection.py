"""Which studies a run is about, and with which settings: the scale's own, changed by what the user asked for."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from theorylab.core.config import Config
from theorylab.core.scale import Scale
from theorylab.core.study import Study, StudyCard


class UsageError(Exception):
    """A request that cannot be carried out as given; the message is one line: what, why, and what to do."""


def select(cards: Mapping[str, StudyCard], patterns: Sequence[str]) -> list[StudyCard]:
    """The studies that any pattern names, in the order of ``cards``; all of them where there is no pattern.

    Args:
        cards: The installed studies by key.
        patterns: A study (``optimization/saddle``), a topic (``optimization``), a claim, or a glob over studies (``opt*/s*``).

    Raises:
        UsageError: a pattern that matches nothing, with the nearest names.
    """
    if not patterns:
        return list(cards.values())
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {key for key, card in cards.items() if _matches(card, pattern)}
        if not matched:
            raise UsageError(f"no study matches {pattern!r}{_near(pattern, cards.values())}")
        chosen |= matched
    return [card for key, card in cards.items() if key in chosen]


def _matches(card: StudyCard, pattern: str) -> bool:
    names = (card.key, card.key.partition("/")[0], *(claim.key for claim in card.claims))
    return any(fnmatch.fnmatchcase(name, pattern.strip("/")) for name in names)


def _near(pattern: str, cards: Iterable[StudyCard]) -> str:
    names: dict[str, str] = {}  # what a user may have meant to write → what to write
    for card in cards:
        topic, _, short = card.key.partition("/")
        names |= {topic: topic, short: card.key, card.key: card.key}
    near = difflib.get_close_matches(pattern, names, n=1)
    advice = f"; did you mean {names[near[0]]}?" if near else "."
    return f"{advice} `theorylab syllabus` lists the studies."


def assignments(texts: Sequence[str]) -> dict[str, str]:
    """Split ``name=value`` texts.

    Raises:
        UsageError: a text without ``=``, or a name given twice.

    Example:
        >>> assignments(["step=0.1", "decades=6"])
        {'step': '0.1', 'decades': '6'}
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise UsageError(f"--set takes name=value, got {text!r}; for example --set seeds=16.")
        if name in pairs:
            raise UsageError(f"--set gives {name} twice; give it once.")
        pairs[name] = value.strip()
    return pairs


def configure(study: Study, scale: Scale, common: Mapping[str, Any], own: Mapping[str, str]) -> Config:
    """The settings of ``study`` at ``scale``, with the user's changes.

    Args:
        study: The loaded study.
        scale: Which of its three settings to start from.
        common: Values of settings that every study has (``seeds``, ``seed``, ``device``, ``dtype``), of the right types.
        own: Texts of any settings by name, as the command line gives them; read by the type of the field.

    Raises:
        UsageError: a setting that the study does not have, a text that is not of its type, a value out of range, or two for one setting.
    """
    base = study.scales[scale]
    hints = typing.get_type_hints(type(base))
    values = dict(common)
    for name, text in own.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UsageError(
                f"study {study.key} has no setting {name!r}{hint}; it has {', '.join(f.name for f in dataclasses.fields(base))}."
            )
        try:
            value = parse(text, hints[name])
        except ValueError:
            raise UsageError(f"study {study.key}: {name} must be {in_words(hints[name])}, got {text!r}.") from None
        if name in values and values[name] != value:
            raise UsageError(f"study {study.key}: --{name} {values[name]} and --set {name}={text} contradict each other: give {name} once.")
        values[name] = value
    try:
        config = dataclasses.replace(base, **values)
        study.validate(config)
        return config
    except ValueError as error:
        raise UsageError(f"study {study.key}: {error}") from None


def check_device(device: str) -> None:
    """Refuse a device that this machine lacks before any work; ``cpu`` costs no import of torch.

    Raises:
        UsageError: torch does not know the device, or cannot use it here.
    """
    if device == "cpu":
        return
    import torch

    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
        if kind == "cuda":  # without a tensor: its context would take memory here, and the device itself where it admits one process
            if index >= torch.cuda.device_count():
                raise RuntimeError(f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices")
        else:
            torch.empty(1, device=device)
    except Exception as error:  # RuntimeError for a wrong name, NotImplementedError for a device that this torch was not built for
        why = str(error).strip().split("\n")[0] or type(error).__name__
        raise UsageError(
            f"--device {device} cannot be used here ({why}); leave --device out for the CPU, or install a torch for it."
        ) from None


def parse(text: str, hint: Any) -> Any:
    """A value of type ``hint`` from its text: int, float, bool, str, Literal, X | None, and tuples (comma-separated).

    Raises:
        ValueError: the text is not of that type.
        TypeError: a type that has no text form here.

    Example:
        >>> parse("1e-3, 0.1", tuple[float, ...])
        (0.001, 0.1)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return next((choice for choice in args if str(choice) == text), text)  # the config names the choices when it refuses
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in args:
            return None
        return parse(text, next(a for a in args if a is not type(None)))
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
        kinds = [args[0]] * len(parts) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(kinds) != len(parts):
            raise ValueError(f"{len(kinds)} values needed, got {len(parts)}")
        return tuple(parse(part, kind) for part, kind in zip(parts, kinds, strict=True))
    if hint is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise ValueError(text)
        return words[text.lower()]
    if hint in (int, float, str):
        return hint(text)
    raise TypeError(f"a setting of type {hint} cannot be given as text")


def in_words(hint: Any) -> str:
    """The type of a setting for a reader: "a whole number", "numbers, comma-separated", ...

    Example:
        >>> in_words(tuple[int, ...])
        'whole numbers, comma-separated'
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else in_words(a) for a in args)
    if origin is tuple:
        return f"{in_words(args[0]).removeprefix('a ')}s, comma-separated"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(hint, str(hint))


def describe(config: Config) -> list[tuple[str, str, str, str]]:
    """The settings of a study for a table: name, value, type with its range, and meaning."""
    hints = typing.get_type_hints(type(config))
    rows = []
    for f in dataclasses.fields(config):
        low, high = f.metadata.get("low"), f.metadata.get("high")
        limits = {(True, True): f", {low} … {high}", (True, False): f", at least {low}", (False, True): f", at most {high}"}
        value = getattr(config, f.name)
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        rows.append(
            (f.name, shown, in_words(hints[f.name]) + limits.get((low is not None, high is not None), ""), f.metadata.get("help", ""))
        )
    return rows


def together(errors: Collection[tuple[str, str]]) -> str:
    """One line of many studies' errors, given as (study, message): equal messages are said once, with all the studies' names.

    Example:
        >>> together([("a/b", "study a/b: seeds must be at least 1"), ("a/c", "study a/c: seeds must be at least 1")])
        'a/b, a/c: seeds must be at least 1'
    """
    grouped: dict[str, list[str]] = {}
    for key, message in errors:
        grouped.setdefault(message.removeprefix(f"study {key}: "), []).append(key)
    return " ".join(f"{', '.join(keys)}: {message}" for message, keys in grouped.items())
