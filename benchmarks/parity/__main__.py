"""Compare every instrument with its peers: ``python -m benchmarks.parity [families] [--peers] [--out FOLDER]``.

What is measured replaces those rows of the table, and the others stay. ``--peers`` first installs the packages whose pins conflict with
ours, each in a folder of its own (`benchmarks.apart`); where one is installed, its rows are measured by a process of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import apart
from benchmarks.timing import pinned_malloc


def measured_apart(families: list[str], peer: str, options: list[str], install: bool) -> Iterator[dict[str, Any]]:
    """Rows of a peer that is kept apart, by a process that finds its packages first; or, for each family, why there are none."""
    from benchmarks.parity import MODULES, not_compared
    from benchmarks.parity.records import load

    module = MODULES[peer]
    why = ""
    if install:
        try:
            apart.make(module)
        except (RuntimeError, OSError) as error:
            why = f"cannot be installed: {error}"
    if not why and apart.made(module):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.parity", *families, "--only", peer, "--out", folder, *options]
            done = subprocess.run(command, env=apart.environment(module), stdout=subprocess.DEVNULL, check=False)
            runs = load(Path(folder) / "parity.json")
            if runs:
                yield from (row for run in runs for row in run["rows"])
                return
            why = f"its process ended with exit status {done.returncode}"
    for family in families:
        yield not_compared(family, peer, why)


def main() -> int:
    """0 where every comparison that ran agrees, 1 where one does not; times do not decide, for they depend on the machine."""
    from benchmarks.parity import families

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"which families to run (default: all of {', '.join(families())})")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "results", help="folder of the table (default: %(default)s)"
    )
    parser.add_argument("--rows", type=int, default=1024, help="rows of data that are measured (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--peers", action="store_true", help="install the peers that are kept apart, unless they are")
    parser.add_argument("--only", metavar="PEER", help="compare with this peer alone")
    args = parser.parse_args()
    unknown = set(args.names) - set(families())
    if unknown:
        parser.error(f"no family {', '.join(sorted(unknown))}; there are {', '.join(families())}.")
    os.environ.setdefault("TQDM_DISABLE", "1")  # some peers show their progress
    pinned_malloc()
    import importlib

    import torch

    from benchmarks.__main__ import machine
    from benchmarks.parity import MODULES, measured, missing
    from benchmarks.parity.records import load, merged, table

    if args.only is not None and args.only not in MODULES:
        parser.error(f"no peer {args.only}; there are {', '.join(MODULES)}.")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = args.names or families()
    peers = {
        name: {c.peer for c in importlib.import_module(f"benchmarks.parity.{name}").rows(args.rows) if args.only in (None, c.peer)}
        for name in chosen
    }
    away = {p for p in set().union(*peers.values()) if missing(p) and apart.pins(MODULES[p]).is_file()}
    options = ["--rows", str(args.rows), "--rounds", str(args.rounds)]

    def every() -> Iterator[dict[str, Any]]:
        yield from measured(args.rows, args.rounds, chosen, sorted(set().union(*peers.values()) - away))
        for peer in sorted(away):
            yield from measured_apart([name for name in chosen if peer in peers[name]], peer, options, args.peers)

    records = []
    for record in every():
        said = record.get("ratio", record["note"])
        print(f"  {record['instrument']}, {record['setting']}: {record['peer']} {said}", file=sys.stderr, flush=True)
        records.append(record)
    path = args.out / "parity.json"
    runs = merged(load(path), machine(), records, families())
    text = table(runs)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    path.write_text(json.dumps({"runs": runs}, indent=1), encoding="utf-8")
    print(text)
    return 0 if all(r.get("agrees", True) for r in records) else 1


if __name__ == "__main__":
    sys.exit(main())
