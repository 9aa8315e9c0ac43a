"""What every study needs at the large scale, and whether it works there: ``python -m benchmarks.large [GLOB ...]``.

Each study runs in a process of its own, on one thread or ``--threads``, within a limit of processor seconds and of memory. Where its cost
is in replicas and durations (steps, epochs) that `PARTS` names, it first runs with few of the ones and the others cut, everything else,
widths, rows, data and depths, being those of the scale; then once more for every group of durations, with that group doubled. The cost of
the whole is taken as affine in each group and proportional to the replicas, which is too much for a population trained at once. Then it is
run whole, if that is expected to stay within the limit. Of a study whose whole takes days ``--set seeds=8`` runs fewer replicas for the
durations of the scale. The table gives verdicts of whole runs and of such, for that many replicas; those of a part with its durations cut
mean nothing. On another device than the CPU (``--device cuda``) the limits and the peak are still those of the process on the CPU, of which
memory is not limited.

A run of whole durations that reaches its limit leaves the state of its training under ``--runs``, and the same command goes on from there;
its row has the processor seconds of all its pieces. Rows of studies that are not asked for stay as they were in the table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from theorylab.core.config import Config
from theorylab.core.scale import Scale
from theorylab.core.study import find_studies, load_study
from theorylab.runners.selection import UsageError, assignments, configure

FOLDER = Path(__file__).parent / "results"
GIB = 2**30
SPENT = "seconds.txt"
"""Beside the states of a run that was stopped: what it has taken so far."""
Settings = dict[str, Any]

PARTS: dict[str, tuple[Settings, ...]] = {
    "convolution/cntk": ({"seeds": 2},),
    "convolution/equivariance": ({"seeds": 4}, {"steps": 30}),
    "convolution/layers": ({"seeds": 1},),
    "convolution/mnist1d": ({"seeds": 4}, {"steps": 100}),
    "convolution/separation": ({"seeds": 2},),
    "convolution/signal": ({"seeds": 2, "deep": 2},),
    "generalization/bounds": ({"seeds": 2}, {"epochs": 4}),
    "generalization/capacity": ({"seeds": 2},),
    "generalization/grokking": ({"seeds": 2}, {"steps": 200}),
    "generalization/interpolation": ({"seeds": 2, "designs": 20}, {"steps": 40}, {"signals": 100}),
    "generalization/kernels": ({"seeds": 1, "networks": 1}, {"steps": (1, 10, 1000)}),
    "generalization/measures": ({"seeds": 3}, {"epochs": 2}, {"permutations": 10}),
    "generalization/memorization": ({"seeds": 2}, {"steps": 10}),
    "generalization/uniform": ({"seeds": 2},),
    "implicit_bias/diagonal": ({"seeds": 4}, {"flow_steps": 100, "rich_steps": 1000, "noise_steps": 1000}),
    "implicit_bias/lazy": ({}, {"steps": 20}),
    "implicit_bias/least_squares": ({"seeds": 2}, {"steps": 100}),
    "implicit_bias/margins": ({}, {"steps": 4000}),
    "implicit_bias/matrix": ({"seeds": 8}, {"steps": 1000}, {"complete_steps": 100}),
    "implicit_bias/mirror": ({}, {"steps": 1000}),
    "implicit_bias/tensor": ({"seeds": 4}, {"steps": 50}),
    "normalization/depth": ({"seeds": 2, "plain": 8, "curve": 2},),
    "normalization/equilibrium": ({"seeds": 4, "pairs": 8}, {"periods": 2.0, "pairs_periods": 6.0}),
    "normalization/exp_lr": ({}, {"steps": 10}),
    "normalization/inference": ({}, {"batches": 10}),
    "normalization/invariance": ({"seeds": 2}, {"steps": 20}),
    "normalization/transformer": ({"seeds": 2},),
    "optimization/edge_of_stability": ({"seeds": 2}, {"steps": 40, "momentum_steps": 8}, {"measurements": 2}),
    "optimization/online": ({}, {"rounds": 200}),
    "optimizers/adaptive": ({}, {"stream": 3000, "steps": 3000}),
    "optimizers/edges": ({"seeds": 2}, {"steps": 20}, {"measurements": 2}),
    "optimizers/mup": ({"seeds": 2},),
    "optimizers/scaling": ({"seeds": 8},),
}
"""Of the studies that are long at this scale: the counts of replicas that a part takes, and groups of durations as it cuts them."""


@dataclass(frozen=True)
class Ran:
    """One run: processor seconds and peak bytes of its processes, imports included; verdicts by role; what went wrong, or nothing."""

    seconds: float
    peak: int
    verdicts: dict[str, dict[str, int]]
    error: str


def over(seconds: float) -> str:
    """What is said of a run that was stopped."""
    return f"more than {seconds:.0f} processor seconds"


def text(value: Any) -> str:
    """A setting in the table."""
    return "/".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def say(key: str, stage: str) -> None:
    """The stage of a study."""
    print(f"{key}: {stage}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Limits:
    """What a run may take: processor ``seconds``, GiB of ``memory``, ``threads``; its records go under ``runs``."""

    seconds: float
    memory: float
    runs: Path
    threads: int = 1


def run(key: str, settings: Settings, limits: Limits, *, resume: bool = False) -> Ran:
    """One study with these settings, within the limits; its record is left under ``limits.runs``.

    Where it may ``resume``, long training goes on from the state that an earlier run left, and its seconds are those of both.
    """
    from theorylab.core.checkpoints import discard
    from theorylab.core.record import folder_of, load, save, training_folder
    from theorylab.runners.job import prepare, run_job

    job = prepare(find_studies()[0][key], Scale.LARGE, replace(large(key), **settings))
    folder, training = folder_of(limits.runs, job.provenance), training_folder(limits.runs, job.provenance)
    (folder / "record.json").unlink(missing_ok=True)
    if not resume:
        discard(training)
    before = float((training / SPENT).read_text()) if (training / SPENT).exists() else 0.0
    child = os.fork()  # the modules are imported once, and what a study leaves behind goes with its process
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limits.seconds),) * 2)
            if settings.get("device", "cpu") == "cpu":  # a driver maps more memory than there is
                resource.setrlimit(resource.RLIMIT_DATA, (round(limits.memory * GIB),) * 2)
            save(run_job(job, partial(say, key), limits.runs, threads=limits.threads), limits.runs)
        finally:
            os._exit(0)
    status, used = os.wait4(child, 0)[1:]
    spent, peak = before + used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
    if training.exists():  # it did not end
        (training / SPENT).write_text(str(spent))
    if not (folder / "record.json").exists():
        too_long = spent - before > limits.seconds - 2
        return Ran(spent, peak, {}, over(limits.seconds) if too_long else f"it ended without a record (status {status})")
    record = load(folder, series=False)
    found = {role: Counter(str(f.verdict) for f in record.findings if f.role == role) for role in ("claim", "control")}
    return Ran(spent, peak, {role: dict(count) for role, count in found.items()}, record.error.strip())


def ratio(whole: Any, part: Any) -> float:
    """How many times as long the whole is; of several durations, by the longest."""
    return max(whole) / max(part) if isinstance(part, tuple) else whole / part


def doubled(group: Settings) -> Settings:
    """All of a group twice as long."""
    return {name: tuple(2 * v for v in value) if isinstance(value, tuple) else 2 * value for name, value in group.items()}


def expected(whole: Settings, base: Ran, longer: list[Ran], groups: tuple[Settings, ...]) -> float:
    """Processor seconds of the whole."""

    def share(group: Settings) -> float:
        return max((ratio(whole[name], value) for name, value in group.items()), default=1.0)

    replicas, *durations = groups
    slopes = [max(0.0, more.seconds - base.seconds) * (share(group) - 1) for more, group in zip(longer, durations, strict=True)]
    return share(replicas) * (base.seconds + sum(slopes))


def large(key: str) -> Config:
    """A study's settings at the scale."""
    return load_study(key).scales[Scale.LARGE]


def config_of_fewer(key: str, fewer: dict[str, str]) -> Config:
    """The settings of the scale with fewer replicas, as the command line gives them.

    Raises:
        UsageError: another setting than a number of replicas: verdicts would not be those of the scale.
    """
    counts = {"seeds", *PARTS.get(key, ({},))[0]}
    if other := fewer.keys() - counts:
        raise UsageError(f"study {key}: --set takes numbers of replicas ({', '.join(sorted(counts))}), got {', '.join(other)}.")
    return configure(load_study(key), Scale.LARGE, {}, fewer)


def empty_row(key: str, device: str, threads: int) -> dict[str, Any]:
    """What a row says before anything was run."""
    there: dict[str, Any] = ({} if device == "cpu" else {"device": device}) | ({"threads": threads} if threads > 1 else {})
    return {"study": key, "claims": len(load_study(key).claims), "date": datetime.now(UTC).strftime("%Y-%m-%d"), "cut": {}} | there


def measure(key: str, limits: Limits, *, parts: bool = True, device: str = "cpu") -> dict[str, Any]:
    """One row of the table: a part first, where there is one, then the whole if it is expected to fit; or the whole at once."""
    row, there = empty_row(key, device, limits.threads), {"device": device}
    groups = PARTS.get(key, ()) if parts else ()
    if groups:
        cut = {name: value for group in groups for name, value in group.items()}
        base = run(key, cut | there, limits)
        longer = [] if base.error else [run(key, cut | doubled(group) | there, limits) for group in groups[1:]]
        row |= {"cut": cut, "seconds": base.seconds, "peak": base.peak, "error": base.error}
        if any(r.error for r in (base, *longer)):
            return row  # of unknown cost where a longer one did not end
        row["expected"] = expected(large(key).as_dict(), base, longer, groups)
        row |= {} if longer else {"verdicts": base.verdicts}
        if row["expected"] > limits.seconds:
            return row
    whole = run(key, there, limits, resume=True)
    if whole.error == over(limits.seconds) and groups:
        return row  # it was expected to take less
    return row | {"cut": {}, "seconds": whole.seconds, "peak": whole.peak, "error": whole.error, "verdicts": whole.verdicts}


def measure_fewer(key: str, fewer: dict[str, str], limits: Limits, *, device: str = "cpu") -> dict[str, Any]:
    """One row of the table, of fewer replicas for the durations of the scale."""
    config = config_of_fewer(key, fewer)
    cut = {name: getattr(config, name) for name in fewer}
    ran = run(key, cut | {"device": device}, limits, resume=True)
    row = empty_row(key, device, limits.threads) | {"cut": cut, "seconds": ran.seconds, "peak": ran.peak, "error": ran.error}
    return row if ran.error else row | {"verdicts": ran.verdicts, "expected": expected(large(key).as_dict(), ran, [], (cut,))}


def verdicts(row: dict[str, Any]) -> str:
    """The verdicts of a run whose durations were whole in words."""
    if row["error"]:
        return row["error"].splitlines()[-1]
    if "verdicts" not in row:
        return ""
    claims, controls = row["verdicts"]["claim"], row["verdicts"]["control"]
    words = [f"{claims[name]} {name}" for name in ("holds", "inconclusive", "fails") if claims.get(name)]
    words += [f"{controls['holds']} controls hold"] if controls.get("holds") else []
    return ", ".join(words)


def table(rows: list[dict[str, Any]], about: dict[str, str]) -> str:
    """The rows as Markdown."""
    lines = [", ".join(f"{k}: {v}" for k, v in about.items()), ""]
    lines += ["| study | claims | checks at whole durations | processor seconds | peak GiB | run | whole, in core hours |"]
    lines += ["|---|---:|---|---:|---:|---|---:|"]
    for r in rows:
        cut = ", ".join(f"{name} {text(value)}" for name, value in r["cut"].items()) or "whole"
        cut += f", on {r['device']}" if "device" in r else ""
        cut += f", {r['threads']} threads" if "threads" in r else ""
        hours = f"{r['expected'] / 3600:.2g}" if r["cut"] and "expected" in r else ""
        lines.append(f"| {r['study']} | {r['claims']} | {verdicts(r)} | {r['seconds']:.0f} | {r['peak'] / GIB:.1f} | {cut} | {hours} |")
    return "\n".join(lines) + "\n"


def into_costs(rows: list[dict[str, Any]]) -> None:
    """What whole runs took, and what parts let expect, in the table behind ``theorylab plan``; it keeps whole runs of the same settings."""
    from theorylab.course.costs import default_settings, load_costs, write_costs

    table = load_costs()
    for row in rows:
        if "device" in row:
            continue  # the table is of the CPU's seconds
        config, whole = default_settings(row["study"], "large"), not row["cut"]
        at_scale = table["studies"].setdefault(row["study"], {})
        known = at_scale.get("large", {})
        if row["error"] or (not whole and ("expected" not in row or (known.get("config") == config and not known.get("part")))):
            continue
        seconds = row["seconds"] if whole else row["expected"]
        at_scale["large"] = {"seconds": round(seconds, 3), "bytes": row["peak"], "config": config, **({} if whole else {"part": True})}
    write_costs(table)


def kept(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an earlier table."""
    if path.exists():
        yield from json.loads(path.read_text(encoding="utf-8"))["rows"]


def main() -> None:
    """Measure, and write the table after every study, so that a run that is stopped loses nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("globs", nargs="*", default=["*"], help="which studies (default: all of theorylab's own)")
    parser.add_argument("--seconds", type=float, default=150.0, help="processor seconds that one run may take (default: %(default)g)")
    parser.add_argument("--memory", type=float, default=24.0, help="GiB of data that one run may hold (default: %(default)g)")
    parser.add_argument("--threads", type=int, default=1, help="of a run; processor seconds are of all (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the studies calculate; choose an --out of its own (default: %(default)s)")
    parser.add_argument("--whole", action="store_true", help="no part first: for a study whose cost is known")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=N", help="no part first, and fewer replicas: --set seeds=8")
    parser.add_argument("--runs", type=Path, default=Path("runs-large"), help="folder of the records (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the table (default: %(default)s)")
    parser.add_argument("--costs", action="store_true", help="measure nothing; bring the table into the one behind theorylab plan")
    args = parser.parse_args()
    if args.costs:
        return into_costs(list(kept(args.out / "large.json")))
    import torch

    from benchmarks.__main__ import machine
    from benchmarks.studies import own_studies

    chosen = own_studies(parser, args.globs)
    try:
        fewer = assignments(args.set)
        for key in chosen:
            config_of_fewer(key, fewer)
    except UsageError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.out / "large.json"
    rows = {row["study"]: row for row in kept(data)}
    for key in chosen:
        limits = Limits(args.seconds, args.memory, args.runs, args.threads)
        if fewer:
            rows[key] = measure_fewer(key, fewer, limits, device=args.device)
        else:
            rows[key] = measure(key, limits, parts=not args.whole, device=args.device)
        print(json.dumps(rows[key]), flush=True)
        whole = {"about": machine(), "rows": [rows[k] for k in sorted(rows)]}
        data.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        (args.out / "large.md").write_text(table(whole["rows"], whole["about"]), encoding="utf-8")
    print(args.out / "large.md")


if __name__ == "__main__":
    main()
