"""The command line: ``theorylab syllabus | run | plan | show | config | measure``.

Everything beyond the parser is imported by the command that needs it, so that ``--help`` costs no numpy and ``syllabus`` no torch.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Union

import tyro
from tyro.conf import DisallowNone, Positional, UseAppendAction, arg, subcommand

if TYPE_CHECKING:
    from theorylab.core.study import StudyCard
    from theorylab.runners.job import Job
    from theorylab.runners.outcome import Outcome, RunResult

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
    jobs: Annotated[int | None, arg(help="processes at a time; default: one a core, and one in all on a GPU", help_behavior_hint="")] = None
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
  theorylab run --cluster tcp://head:8786                on a Dask cluster

Exit status: 0 no claim fails (inconclusive ones are named); 1 a claim fails, a control holds, or a study errs;
2 wrong usage; 130 stopped by Ctrl-C."""
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

Exit status: 0 all that apply are measured; 1 an instrument failed; 2 wrong usage, or the file cannot be used; 130 stopped by Ctrl-C."""
_PLAN_MEASURE = """Say what `measure` would cost, in seconds and bytes, from a few gradients of the problem.

Examples:
  theorylab plan measure my_model.py:problem --with curvature
  theorylab plan measure my_model.py:problem --memory 4GiB"""

_COMMANDS: dict[str, tuple[type, str]] = {
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


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; ``args`` are those of the process where None."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show λ shows ?
    command = _parse(sys.argv[1:] if args is None else args)
    from theorylab.course.syllabus import SyllabusError
    from theorylab.runners.selection import UsageError

    try:
        return _DO[type(command)](command)
    except (UsageError, SyllabusError) as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("stopped.", 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parse(args: Sequence[str]) -> Any:
    """The options of the command that ``args`` name; ends the process on wrong usage (2) and after ``--help`` (0)."""
    if tuple(args[:2]) == ("plan", "measure"):
        args = ("plan measure", *args[2:])
    kinds = [
        # the list of commands shows one line each, a command's own help all of its text
        Annotated[kind, subcommand(name, description=text if args and args[0] == name else text.partition("\n")[0])]
        for name, (kind, text) in _COMMANDS.items()
    ]
    return tyro.cli(Union[tuple(kinds)], prog="theorylab", description=_ABOUT, args=args, config=(DisallowNone,))  # type: ignore[call-overload]  # noqa: UP007


def _complain(line: str, status: int) -> int:
    print(f"theorylab: {line}", file=sys.stderr)
    return status


def _cards() -> tuple[dict[str, StudyCard], tuple[str, ...]]:
    """The installed studies; packages that cannot be read are named on stderr and hide no other."""
    from theorylab.core.study import find_studies

    cards, problems = find_studies()
    for line in problems:
        _complain(line, 1)
    return cards, problems


def _jobs(options: Selection, *, here: bool = True) -> tuple[list[Job], list[Outcome], list[StudyCard], tuple[str, ...]]:
    from theorylab.core.scale import Scale
    from theorylab.runners.run import jobs_of
    from theorylab.runners.selection import UsageError, assignments, check_device, select

    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {options.jobs}.")
    own = assignments(options.set)
    cards, problems = _cards()
    chosen = select(cards, (*options.globs, *options.only))
    common = {k: v for k in ("seeds", "seed", "device", "dtype") if (v := getattr(options, k)) is not None}
    jobs, broken = jobs_of(chosen, Scale(options.scale), common, own)
    if here:
        for device in sorted({job.settings["device"] for job in jobs}):  # asked for here, or the scale's own
            check_device(device)
    for outcome in broken:
        _complain(outcome.reason, 1)
    return jobs, broken, chosen, problems


def _processes(options: Selection, jobs: Sequence[Job]) -> int:
    from theorylab.runners.local import available_cores

    on_gpu = any(not str(job.settings["device"]).startswith("cpu") for job in jobs)
    return min(options.jobs or (1 if on_gpu else available_cores()), max(1, len(jobs)))


def run(options: Run) -> int:
    """``theorylab run``."""
    import contextlib
    import dataclasses

    from theorylab.course.costs import load_costs
    from theorylab.course.syllabus import load_syllabus
    from theorylab.runners.cluster import ClusterWorkers
    from theorylab.runners.local import LocalWorkers
    from theorylab.runners.progress import watch
    from theorylab.runners.run import check_folder
    from theorylab.runners.run import run as compute
    from theorylab.runners.selection import UsageError

    if options.cluster and options.jobs:
        raise UsageError("--jobs counts processes of this machine; with --cluster its workers decide: leave --jobs out.")
    course = load_syllabus(options.syllabus)
    check_folder(options.out)
    jobs, broken, chosen, problems = _jobs(options, here=not options.cluster)
    console = _console()
    progress = watch(console)
    workers = (
        ClusterWorkers(options.cluster, progress.stage)
        if options.cluster
        else LocalWorkers(_processes(options, jobs), progress.stage, progress.output)
    )
    with contextlib.closing(workers), progress:
        result = compute(jobs, workers, options.out, progress, broken=broken, force=options.force, costs=load_costs())
    result = dataclasses.replace(result, problems=(*problems, *result.problems))
    for line in result.problems[len(problems) :]:
        _complain(line, 1)
    if result.interrupted:
        _complain(f"stopped: {len(result.records)} of {len(chosen)} studies are saved; the same command goes on from there.", 130)
        if not result.records:
            return 130  # and an earlier report stays

    from theorylab.core.topic import topic_texts
    from theorylab.report import write

    _summarize(result, console)
    done = {record.study for record in result.records}
    pending = [card for card in chosen if card.key not in done]
    print(write(result.records, dict(course.raw), options.out, pending=pending, topics=topic_texts(chosen)).resolve())
    return result.exit_status


def _summarize(result: RunResult, console: Any) -> None:
    from theorylab.runners.outcome import in_numbers, lines

    say = {"markup": False, "highlight": False, "soft_wrap": True}
    counts = result.counts
    reused = sum(o.reused for o in result.outcomes)
    console.print()
    for claim, found, state in lines(result):
        console.print(f"{state.upper()}  {claim}  {found}", style="yellow" if "inconclusive" in state else "red", **say)
    console.print(
        f"{_many(sum(counts.values()), 'claim')}: {in_numbers(counts) or 'none'}. "
        f"{_many(len(result.outcomes), 'study')}, {reused} of them reused.",
        **say,
    )


def _many(n: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{n} {noun if n == 1 else plural}"


def plan(options: Plan) -> int:
    """``theorylab plan``."""
    from rich.table import Table

    from theorylab.course.costs import load_costs
    from theorylab.runners.memory import peak_bytes
    from theorylab.runners.plan import calibrate, expect, longest_first, makespan
    from theorylab.runners.schedule import decide

    jobs, broken, _, problems = _jobs(options)
    table = load_costs()
    speed = calibrate() / table["calibration_seconds"]
    decisions = {job.study: decide(job, options.out, force=False) for job in jobs}
    floor = peak_bytes()  # this process has imported the studies, as a worker would
    costs = {job.study: expect(job, options.out, table, speed, floor) for job in jobs if decisions[job.study].record is None}
    shown = Table("study", "seconds", "memory", "from", box=None, pad_edge=False)
    for key, decision in decisions.items():
        cost = costs.get(key)
        if cost is None:
            shown.add_row(key, "0", "", "a valid record: not computed again")
        else:
            known = cost.seconds is not None and cost.bytes is not None
            row = (f"{cost.seconds:.1f}", _size(cost.bytes)) if known else ("unknown", "unknown")
            shown.add_row(key, *row, f"{cost.basis}; {decision.reason}")
    console = _console()
    console.print(shown)
    processes = _processes(options, jobs)
    known = [costs[key] for key in longest_first(costs)]
    seconds = makespan([c.seconds for c in known if c.seconds is not None], processes)
    memory = sum(sorted((c.bytes for c in known if c.bytes is not None), reverse=True)[:processes])
    unknown = sum(c.seconds is None for c in known)
    beside = f", and {_many(unknown, 'study')} of unknown cost" if unknown else ""
    console.print(f"\nIn all: about {seconds:.0f} s with --jobs {processes}, at most {_size(memory)} at a time{beside}.", highlight=False)
    return int(bool(broken or problems))


def _size(size: int | None) -> str:
    return f"{(size or 0) / 2**20:.0f} MiB"


def config(options: Settings) -> int:
    """``theorylab config``."""
    from rich.table import Table

    from theorylab.core.scale import Scale
    from theorylab.core.study import StudyError, load_study
    from theorylab.runners.selection import UsageError, describe, select

    cards, problems = _cards()
    chosen = select(cards, [options.study])
    if len(chosen) != 1:
        raise UsageError(f"config takes one study, {options.study!r} names {len(chosen)}: {', '.join(c.key for c in chosen)}.")
    try:
        study = load_study(chosen[0].key)
    except StudyError as error:
        return _complain(str(error), 1)
    table = Table("setting", f"at {options.scale}", "takes", "meaning", box=None, pad_edge=False)
    for row in describe(study.scales[Scale(options.scale)]):
        table.add_row(*row)
    _console().print(table, markup=False, highlight=False)
    return int(bool(problems))


def show(options: Show) -> int:
    """``theorylab show``."""
    import webbrowser

    from theorylab.runners.selection import UsageError

    page = options.out.resolve() / "report.html"
    if not page.is_file():
        raise UsageError(f"there is no report in {options.out}; `theorylab run --out {options.out}` writes one.")
    print(page, flush=True)
    webbrowser.open(page.as_uri())
    return 0


def syllabus(options: Syllabus) -> int:
    """``theorylab syllabus``."""
    import json

    from theorylab.course.listing import as_json, as_text
    from theorylab.course.syllabus import load_syllabus

    course = load_syllabus(options.syllabus)
    cards, problems = _cards()
    if options.json:
        print(json.dumps(as_json(course, cards, options.out), indent=1, ensure_ascii=False))
    else:
        print(as_text(course, cards, options.out))  # plain: importing rich would take a fifth of the time of this command
    return int(bool(problems))


def measure(options: Measure) -> int:
    """``theorylab measure``."""
    from theorylab.measuring import command

    return command.measure(_request(options), options.out, json=options.json, console=_console())


def plan_measure(options: PlanMeasure) -> int:
    """``theorylab plan measure``."""
    from theorylab.measuring import command

    return command.plan(_request(options), _console())


def _request(options: Measuring) -> Any:
    import dataclasses

    from theorylab.measuring.command import Request

    return Request(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Request)})


_DO: dict[type, Callable[[Any], int]] = {
    Syllabus: syllabus,
    Run: run,
    Plan: plan,
    Show: show,
    Settings: config,
    Measure: measure,
    PlanMeasure: plan_measure,
}


def _console() -> Any:
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=200)  # a file or a pipe has no width to keep to
    return console
