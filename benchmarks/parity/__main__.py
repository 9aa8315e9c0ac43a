"""Compare every instrument with its peers and write the table: ``python -m benchmarks.parity [families] [--out FOLDER]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.timing import pinned_malloc

WORDS = {True: "yes", False: "**no**", None: ""}


def table(records: list[dict[str, Any]], about: dict[str, str]) -> str:
    """The records as Markdown."""
    lines = ["# Parity with other packages", "", ", ".join(f"{k}: {v}" for k, v in about.items()), ""]
    lines += [
        "Agreement is the largest difference relative to the largest number, in float64; for random estimates, marked ‡, it is the root",
        "mean square error of ours over that of the peer's, from as many products. Time is ours over the peer's, in float32 on one thread.",
        "",
        "| instrument | setting | peer | difference | allowed | time | goal | reached | remark |",
        "|---|---|---|---:|---:|---:|---:|---|---|",
    ]
    for r in records:
        if "deviation" not in r:
            lines.append(f"| {r['instrument']} | {r['setting']} | {r['peer']} | | | | | | {r['note']} |")
            continue
        shown = f"{r['deviation']:.2f} ‡" if r["errors"] else f"{r['deviation']:.1e}"
        allowed = f"{r['tolerance']:.2f}" if r["errors"] else f"{r['tolerance']:.0e}"
        remark = r["note"] if r["agrees"] else f"**does not agree** {r['note']}".strip()
        goal = "" if r["goal"] is None else f"≤ {r['goal']:g}"
        lines.append(
            f"| {r['instrument']} | {r['setting']} | {r['peer']} | {shown} | {allowed} | {r['ratio']:.2f} | {goal} | {WORDS[r['reached']]} "
            f"| {remark} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """0 where every comparison that ran agrees, 1 where one does not; times do not decide, for they depend on the machine."""
    from benchmarks.parity import families

    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which families to run (default: all of {', '.join(families())})")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "results", help="folder of the table (default: %(default)s)"
    )
    parser.add_argument("--rows", type=int, default=1024, help="rows of data that are measured (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing (default: %(default)s)")
    args = parser.parse_args()
    unknown = set(args.names) - set(families())
    if unknown:
        parser.error(f"no family {', '.join(sorted(unknown))}; there are {', '.join(families())}.")
    pinned_malloc()
    import torch

    from benchmarks.__main__ import machine
    from benchmarks.parity import measured

    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    records = []
    for record in measured(args.rows, args.rounds, args.names or families()):
        print(
            f"  {record['instrument']}, {record['setting']}: {record['peer']} {record.get('ratio', record['note'])}",
            file=sys.stderr,
            flush=True,
        )
        records.append(record)
    about = machine()
    text = table(records, about)
    stem = "parity" if not args.names else "parity-" + "-".join(args.names)
    (args.out / f"{stem}.md").write_text(text, encoding="utf-8")
    (args.out / f"{stem}.json").write_text(json.dumps({"machine": about, "rows": records}, indent=1), encoding="utf-8")
    print(text)
    return 0 if all(r.get("agrees", True) for r in records) else 1


if __name__ == "__main__":
    sys.exit(main())
