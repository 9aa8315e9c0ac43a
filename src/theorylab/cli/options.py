"""What may be typed after ``theorylab``: the options of each command, their help, and the parser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import tyro
from tyro.conf import DisallowNone, Positional, UseAppendAction, arg, subcommand

_GLOBS = "studies: optimization/saddle, a topic (optimization), a claim, or a quoted glob ('opt*/*'); none means all"
_COURSE = "a course's own syllabus (TOML); default: the packaged example"
_TARGET = "a Problem, a tuple (model, loss, data), or a function that returns one, in a file of yours"
_WITH = "families of instruments, or single ones: curvature,kernels; repeatable; none means all"
_MEMORY = "bytes to take beside Python and torch: 4GiB, 500MB; batches and Krylov spaces are cut to fit"
_SET = "a study's own setting as name=value, repeatable; `theorylab config STUDY` lists them"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which studies, with which settings: what ``run`` and ``plan`` share."""

    globs: Annotated[Positional[tuple[str, ...]], arg(help=_GLOBS, metavar="[GLOB ...]", help_behavior_hint="")] = ()
    only: Annotated[UseAppendAction[tuple[str, ...]], arg(help="the same as a positional glob, repeatable", help_behavior_hint="")] = ()
    scale: Annotated[Literal["tiny", "small", "large"], arg(help="tiny: seconds; small: a laptop; large: a GPU or a cluster")] = "small"
    seeds: Annotated[int | None, arg(help="replicas of every study; default: the scale's own", help_behavior_hint="")] = None
    seed: Annotated[int | None, arg(help="base seed; replica k uses seed + k", help_behavior_hint="")] = None
    device: Annotated[str | None, arg(help="torch device: cpu, cuda, cuda:1, ...", help_behavior_hint="")] = None
    dtype: Annotated[
        Literal["float64", "float32"] | None, arg(help="floating-point type; exact identities need float64", help_behavior_hint="")
    ] = None
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(help=_SET, help_behavior_hint="")] = ()
    jobs: Annotated[
        int | None, arg(help="processes at a time; default: the cores over --threads, and one on a GPU", help_behavior_hint="")
    ] = None
    threads: Annotated[int, arg(help="threads of each process; more help where one large study runs alone")] = 1
    out: Annotated[Path, arg(help="folder of the records and the report")] = Path("runs")


@dataclass(frozen=True, kw_only=True)
class Run(Selection):
    """Options of ``theorylab run``."""

    force: Annotated[bool, tyro.conf.FlagCreatePairsOff, arg(help="compute studies that have a valid record, too")] = False
    cluster: Annotated[
        str | None, arg(help="address of a Dask scheduler, tcp://head:8786; needs theorylab[cluster]", help_behavior_hint="")
    ] = None
    syllabus: Annotated[Path | None, arg(help=_COURSE, help_behavior_hint="")] = None


@dataclass(frozen=True, kw_only=True)
class Plan(Selection):
    """Options of ``theorylab plan``."""


@dataclass(frozen=True, kw_only=True)
class Syllabus:
    """Options of ``theorylab syllabus``."""

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff, arg(help="print JSON for programs")] = False
    out: Annotated[Path, arg(help="folder of the records that tell the claims' state")] = Path("runs")
    # Optional, not Path | None: tyro checks the latter's default by importing typeguard, a third of this command's time
    syllabus: Annotated[Optional[Path], arg(help=_COURSE, help_behavior_hint="")] = None  # noqa: UP045


@dataclass(frozen=True, kw_only=True)
class Show:
    """Options of ``theorylab show``."""

    out: Annotated[Path, arg(help="folder of the run")] = Path("runs")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of ``theorylab config``."""

    study: Annotated[Positional[str], arg(help="one study: optimization/saddle", metavar="STUDY", help_behavior_hint="")]
    scale: Annotated[Literal["tiny", "small", "large"], arg(help="whose values to show")] = "small"


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What is measured, by which instruments: what ``measure`` and ``plan measure`` share."""

    target: Annotated[Positional[str], arg(help=_TARGET, metavar="FILE.py:OBJECT", help_behavior_hint="")]
    families: Annotated[UseAppendAction[tuple[str, ...]], arg(name="with", help=_WITH, metavar="FAMILY[,...]", help_behavior_hint="")] = ()
    only: Annotated[
        UseAppendAction[tuple[str, ...]], arg(help="of these, single instruments", metavar="INSTRUMENT[,...]", help_behavior_hint="")
    ] = ()
    seed: Annotated[int, arg(help="of every instrument that draws random numbers")] = 0
    device: Annotated[str | None, arg(help="move the problem to this torch device: cpu, cuda, cuda:1, ...", help_behavior_hint="")] = None
    dtype: Annotated[
        Literal["float64", "float32", "bfloat16"] | None, arg(help="convert the problem; default: as it is", help_behavior_hint="")
    ] = None
    memory: Annotated[str | None, arg(help=_MEMORY, metavar="SIZE", help_behavior_hint="")] = None


@dataclass(frozen=True, kw_only=True)
class Measure(Measuring):
    """Options of ``theorylab measure``."""

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff, arg(help="print the card as JSON instead of a table")] = False
    out: Annotated[Path, arg(help="folder of the card, as a page and as JSON")] = Path("cards")


@dataclass(frozen=True, kw_only=True)
class PlanMeasure(Measuring):
    """Options of ``theorylab plan measure``."""


_RUN = """Check the claims: compute what has no valid record, then write the report.

The report covers the studies that this command names, computed now or earlier. Ctrl-C stops a run, with a report of what is done;
the same command goes on from there.

Examples:
  theorylab run                                          the whole syllabus at laptop scale
  theorylab run optimization --scale tiny                one topic, in seconds
  theorylab run optimization/saddle --set decades=8      one study with a setting of its own
  theorylab run 'opt*/*' --scale large --seeds 32 --device cuda
  theorylab run optimization/edge_of_stability --scale large --threads 16
  theorylab run --cluster tcp://head:8786                on a Dask cluster

Exit status: 0 no claim fails (inconclusive ones are named); 1 a claim fails, a control holds, or a study errs;
2 wrong usage, or the report cannot be written; 130 stopped by Ctrl-C."""
_PLAN = """Say what a run would cost, in seconds and bytes, before it starts; takes the options of `run`.

Examples:
  theorylab plan
  theorylab plan optimization --scale large --seeds 32 --jobs 4
  theorylab plan measure my_model.py:problem --with curvature   what a report card would cost"""
_SYLLABUS = """List the lectures in order with their topics, studies and claims, and what the last run found.

Examples:
  theorylab syllabus
  theorylab syllabus --json
  theorylab syllabus --syllabus my_course.toml --out runs"""
_SHOW = """Open the last report in a browser and print its path.

Examples:
  theorylab show
  theorylab show --out runs"""
_CONFIG = """List the settings of a study with values, ranges and meaning; change them with `run --set name=value`.

Examples:
  theorylab config optimization/saddle
  theorylab config optimization/saddle --scale large"""

_MEASURE = """Measure your own model: a report card by families of instruments, as a table, a page and JSON.

OBJECT is a theorylab.Problem, a tuple (model, loss, data), or a function without arguments that returns one of these. What would spoil the
measurement is said first. An instrument that does not apply, or that fails, is on the card with the reason, and the others go on.
Ctrl-C stops, with a card of what is done.

Examples:
  theorylab measure my_model.py:problem                              every instrument that applies
  theorylab measure my_model.py:problem --with curvature,kernels     two families
  theorylab measure my_model.py:problem --only sharpness --json      one number, for a program
  theorylab measure my_model.py:problem --memory 4GiB --device cuda

Exit status: 0 all that apply are measured; 1 an instrument failed; 2 wrong usage, the file cannot be used, or the card cannot be written;
130 stopped by Ctrl-C."""
_PLAN_MEASURE = """Say what `measure` would cost, in seconds and bytes, from a few gradients of the problem.

Examples:
  theorylab plan measure my_model.py:problem --with curvature
  theorylab plan measure my_model.py:problem --memory 4GiB"""

COMMANDS: dict[str, tuple[type, str]] = {
    "syllabus": (Syllabus, _SYLLABUS),
    "run": (Run, _RUN),
    "plan": (Plan, _PLAN),
    "show": (Show, _SHOW),
    "config": (Settings, _CONFIG),
    "measure": (Measure, _MEASURE),
    "plan measure": (PlanMeasure, _PLAN_MEASURE),
}
_ABOUT = """The theory of deep learning, executable: claims of the theory, measured on your machine.

Examples:
  theorylab run --scale tiny       a first look, in a minute or two
  theorylab run                    the syllabus at laptop scale
  theorylab measure my_model.py:problem   the report card of your own model
  theorylab show                   open the report"""


def parse(args: Sequence[str]) -> Any:
    """The options of the command that ``args`` name; ends the process on wrong usage (2) and after ``--help`` (0)."""
    if tuple(args[:2]) == ("plan", "measure"):
        args = ("plan measure", *args[2:])
    kinds = [
        # the list of commands shows one line each, a command's own help all of its text
        Annotated[kind, subcommand(name, description=text if args and args[0] == name else text.partition("\n")[0])]
        for name, (kind, text) in COMMANDS.items()
    ]
    return tyro.cli(Union[tuple(kinds)], prog="theorylab", description=_ABOUT, args=args, config=(DisallowNone,))  # type: ignore[call-overload]  # noqa: UP007
