"""The table of comparisons as it is stored: runs, each with the machine it was on, and how a new run replaces part of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from theorylab.core.estimate import mean_interval

Row = dict[str, Any]
WORDS = {True: "yes", False: "**no**", None: ""}


def is_measured(row: Row) -> bool:
    """Whether the peer was there: a row of one that was not has no version."""
    return bool(row["version"])


def load(path: Path) -> list[Row]:
    """The runs of an earlier table; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []


def merged(runs: list[Row], machine: dict[str, str], found: list[Row], families: list[str]) -> list[Row]:
    """Earlier runs without what a new one has measured again, and the new one.

    Rows are replaced for each family and peer that was measured, all of its rows together. A peer that was not there now keeps the rows of
    when it was, and only without any is it said that it is missing. Rows of families that no longer exist are dropped.

    Args:
        runs: As `load` gives them.
        machine: What the new run was on.
        found: Its rows.
        families: Those that exist.
    """
    again = {(r["family"], r["peer"]) for r in found if is_measured(r)}
    kept = []
    for run in runs:
        rows = [r for r in run["rows"] if is_measured(r) and r["family"] in families and (r["family"], r["peer"]) not in again]
        if rows:
            kept.append({"machine": run["machine"], "rows": rows})
    known = again | {(r["family"], r["peer"]) for run in kept for r in run["rows"]}
    # nothing else says that a peer of a family which was not run is missing
    told = {r["family"] for r in found}
    gaps = [r for run in runs for r in run["rows"] if not is_measured(r) and r["family"] in families and r["family"] not in told]
    new = [r for r in [*found, *gaps] if is_measured(r) or (r["family"], r["peer"]) not in known]
    return [*kept, {"machine": machine, "rows": new}] if new else kept


def _heading(runs: list[Row]) -> list[str]:
    """What the figures depend on: one line, or one for each run, with its families."""
    lines = [", ".join(f"{k}: {v}" for k, v in run["machine"].items()) for run in runs]
    if len(lines) < 2:
        return lines
    found = []
    for line, run in zip(lines, runs, strict=True):
        elsewhere = {r["family"] for other in runs if other is not run for r in other["rows"]}
        names: list[str] = []
        for family in dict.fromkeys(r["family"] for r in run["rows"]):
            peers = ", ".join(dict.fromkeys(r["peer"] for r in run["rows"] if r["family"] == family))
            names.append(f"{family} ({peers})" if family in elsewhere else family)
        found.append(f"- {', '.join(names)}: {line}")
    return found


def table(runs: list[Row]) -> str:
    """All rows as Markdown, by family."""
    rows = sorted((r for run in runs for r in run["rows"]), key=lambda r: r["family"])
    contests = [r for r in rows if "ours" in r]
    lines = ["# Parity with other packages", "", *_heading(runs), ""]
    lines += [
        "Agreement is the largest difference relative to the largest number, in float64; for random estimates, marked ‡, it is the root",
        "mean square error of ours over that of the peer's, from as many products. Time is ours over the peer's, in float32 on one thread.",
        "",
        "| instrument | setting | peer | difference | allowed | time | goal | reached | remark |",
        "|---|---|---|---:|---:|---:|---:|---|---|",
        *(_agreement(r) for r in rows if "ours" not in r),
    ]
    if contests:
        lines += [
            "",
            "Where definitions differ, what decides is how well scores predict retraining: the linear datamodeling score, larger being",
            "better. Ours less the peer's is a mean over networks of several seeds, with its 99 % interval, for the subsets at hand.",
            "",
            "| instrument | setting | peer | ours | the peer's | ours less the peer's | at least as good | remark |",
            "|---|---|---|---:|---:|---:|---|---|",
            *(_contest(r, contests) for r in contests),
        ]
    return "\n".join(lines) + "\n"


def _named(row: Row) -> str:
    return f"{row['peer']} {row['version']}".strip()


def _agreement(r: Row) -> str:
    if "deviation" not in r:
        return f"| {r['instrument']} | {r['setting']} | {_named(r)} | | | | | | {r['note']} |"
    shown = f"{r['deviation']:.2f} ‡" if r["errors"] else f"{r['deviation']:.1e}"
    allowed = f"{r['tolerance']:.2f}" if r["errors"] else f"{r['tolerance']:.0e}"
    remark = r["note"] if r["agrees"] else f"**does not agree** {r['note']}".strip()
    goal = "" if r["goal"] is None else f"≤ {r['goal']:g}"
    taken = f"{r['ratio']:.2f}" if r["ratio"] >= 0.01 else f"{r['ratio']:.1g}"
    return (
        f"| {r['instrument']} | {r['setting']} | {_named(r)} | {shown} | {allowed} | {taken} | {goal} | {WORDS[r['reached']]} | {remark} |"
    )


def verdict(row: Row) -> str:
    """Whether ours is at least as good: yes where its mean is, to the three digits shown; no where the whole interval is below."""
    if round(_mean(row["ours"]) - _mean(row["theirs"]), 3) >= 0:
        return "yes"
    return "**no**" if _interval(row)[1] < 0 else "not told apart"


def _interval(row: Row) -> tuple[float, float]:
    return mean_interval([a - b for a, b in zip(row["ours"], row["theirs"], strict=True)])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _contest(r: Row, every: list[Row]) -> str:
    rivals = [_mean(o["theirs"]) for o in every if (o["instrument"], o["setting"]) == (r["instrument"], r["setting"])]
    best = "the best peer" if len(rivals) > 1 and _mean(r["theirs"]) == max(rivals) else ""
    low, high = _interval(r)
    ours, theirs = _mean(r["ours"]), _mean(r["theirs"])
    return (
        f"| {r['instrument']} | {r['setting']} | {_named(r)} | {ours:.3f} | {theirs:.3f} | {ours - theirs:+.3f} [{low:+.3f}, {high:+.3f}] "
        f"| {verdict(r)} | {'; '.join(filter(None, [best, r['note']]))} |"
    )
