"""What each command does with its options, as a function that returns the exit status.

What a command needs is imported by that command, so that none pays for another: `syllabus` imports no torch.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from theorylab.cli.options import Measure, Measuring, Plan, PlanMeasure, Run, Selection, Settings, Show, Syllabus

if TYPE_CHECKING:
    from theorylab.core.study import StudyCard
    from theorylab.runners.job import Job
    from theorylab.runners.outcome import Outcome, RunResult

LONG = 7200
"""Seconds from which on a plan counts in hours."""


def complain(line: str, status: int) -> int:
    """Say what is wrong on stderr; returns the exit status."""
    print(f"theorylab: {line}", file=sys.stderr)
    return status


def _cards() -> tuple[dict[str, StudyCard], tuple[str, ...]]:
    """The installed studies; packages that cannot be read are named on stderr and hide no other."""
    from theorylab.core.study import find_studies

    cards, problems = find_studies()
    for line in problems:
        complain(line, 1)
    return cards, problems


def _jobs(options: Selection, *, here: bool = True) -> tuple[list[Job], list[Outcome], list[StudyCard], tuple[str, ...]]:
    from theorylab.core.scale import Scale
    from theorylab.runners.run import jobs_of
    from theorylab.runners.selection import UsageError, assignments, check_device, select

    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {options.jobs}.")
    if options.threads < 1:
        raise UsageError(f"--threads must be at least 1, got {options.threads}.")
    own = assignments(options.set)
    cards, problems = _cards()
    chosen = select(cards, (*options.globs, *options.only))
    common = {k: v for k in ("seeds", "seed", "device", "dtype") if (v := getattr(options, k)) is not None}
    jobs, broken = jobs_of(chosen, Scale(options.scale), common, own)
    if here:
        for device in sorted({job.settings["device"] for job in jobs}):  # asked for here, or the scale's own
            check_device(device)
    for outcome in broken:
        complain(outcome.reason, 1)
    return jobs, broken, chosen, problems


def _processes(options: Selection, jobs: Sequence[Job]) -> int:
    from theorylab.runners.local import available_cores

    on_gpu = any(not str(job.settings["device"]).startswith("cpu") for job in jobs)
    return min(options.jobs or (1 if on_gpu else max(1, available_cores() // options.threads)), max(1, len(jobs)))


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
    if options.cluster and options.threads > 1:
        raise UsageError("--threads is of processes of this machine; those of a --cluster compute in one: leave --threads out.")
    course = load_syllabus(options.syllabus)
    check_folder(options.out)
    jobs, broken, chosen, problems = _jobs(options, here=not options.cluster)
    console = _console()
    progress = watch(console)
    workers = (
        ClusterWorkers(options.cluster, progress.stage)
        if options.cluster
        else LocalWorkers(_processes(options, jobs), progress.stage, progress.output, options.out, threads=options.threads)
    )
    with contextlib.closing(workers), progress:
        result = compute(
            jobs, workers, options.out, progress, broken=broken, force=options.force, costs=load_costs(), threads=options.threads
        )
    result = dataclasses.replace(result, problems=(*problems, *result.problems))
    for line in result.problems[len(problems) :]:
        complain(line, 1)
    if result.interrupted:
        complain(f"stopped: {len(result.records)} of {len(chosen)} studies are saved; the same command goes on from there.", 130)
        if not result.records:
            return 130  # and an earlier report stays

    from theorylab.core.topic import topic_texts
    from theorylab.report import write

    _summarize(result, console)
    done = {record.study for record in result.records}
    pending = [card for card in chosen if card.key not in done]
    try:
        page = write(result.records, dict(course.raw), options.out, pending=pending, topics=topic_texts(chosen))
    except OSError as error:
        raise UsageError(
            f"the report cannot be written to {error.filename2 or error.filename or options.out} ({error.strerror or error}); the records "
            "are kept: make way for it, and the same command writes it."
        ) from None
    print(page.resolve())
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
    wanted = [job for job in jobs if decisions[job.study].record is None]
    costs = {job.study: expect(job, options.out, table, speed, floor, threads=options.threads) for job in wanted}
    shown = Table("study", "seconds", "memory", "from", box=None, pad_edge=False)
    for key, decision in decisions.items():
        cost = costs.get(key)
        if cost is None:
            shown.add_row(key, "0", "", "a valid record: not computed again")
        else:
            expected = "unknown" if cost.seconds is None else f"{cost.seconds:.1f}"
            size = "unknown" if cost.bytes is None else _size(cost.bytes)
            shown.add_row(key, expected, size, cost.basis if cost.seconds is None else f"{cost.basis}; {decision.reason}")
    console = _console()
    console.print(shown)
    processes = _processes(options, jobs)
    known = [costs[key] for key in longest_first(costs)]
    seconds = makespan([c.seconds for c in known if c.seconds is not None], processes)
    sizes = sorted((c.bytes for c in known if c.bytes is not None), reverse=True)
    unknown = sum(c.seconds is None for c in known)
    memory = f"at most {_size(sum(sizes[:processes]))} at a time" if len(sizes) + unknown == len(known) else "in memory that is not known"
    beside_it = f" --threads {options.threads}" if options.threads > 1 else ""
    span = f"{seconds:.0f} s" if seconds < LONG else f"{seconds / 3600:.0f} hours"
    total = f"about {span} with --jobs {processes}{beside_it}, {memory}"
    beside = f"{_many(unknown, 'study')} of unknown cost, which a run measures"
    parts = [total] * (unknown < len(known) or not known) + [beside] * (unknown > 0)
    console.print(f"\nIn all: {', and '.join(parts)}.", highlight=False)
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
        return complain(str(error), 1)
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
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(as_text(course, cards, options.out, width))  # plain: importing rich would take a fifth of the time of this command
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


def _console() -> Any:
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=200)  # a file or a pipe has no width to keep to
    return console


DO: dict[type, Callable[[Any], int]] = {
    Syllabus: syllabus,
    Run: run,
    Plan: plan,
    Show: show,
    Settings: config,
    Measure: measure,
    PlanMeasure: plan_measure,
}
