"""Run the benchmarks and write their table: ``python -m benchmarks [names] [--out FOLDER]``.

Every module of this package with a function ``rows() -> list[dict]`` takes part. A row has ``name``, ``setting``, ``ratio``, ``goal`` (or
None), ``better`` (``"higher"`` or ``"lower"``, which side of the goal is reached; lower by default) and ``unit``, what the ratio is of.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.timing import pinned_malloc

FOLDER = Path(__file__).parent


def modules() -> list[str]:
    """Names of the modules with benchmarks, found by their text, so that nothing is imported for a wrong name."""
    names = (info.name for info in pkgutil.iter_modules([str(FOLDER)]) if not info.ispkg)
    return sorted(n for n in names if "def rows(" in (FOLDER / f"{n}.py").read_text(encoding="utf-8") and not n.startswith("_"))


def reached(row: dict) -> bool | None:
    """Whether a row reaches its goal; None without one."""
    if row.get("goal") is None:
        return None
    return row["ratio"] >= row["goal"] if row.get("better", "lower") == "higher" else row["ratio"] <= row["goal"]


def machine() -> dict[str, str]:
    """What the figures depend on."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }


def table(rows: list[dict], about: dict[str, str]) -> str:
    """The rows as Markdown."""
    lines = ["# Benchmarks", "", ", ".join(f"{k}: {v}" for k, v in about.items()), ""]
    lines += ["| benchmark | setting | ratio | goal | reached | the ratio is of |", "|---|---|---:|---:|---|---|"]
    for r in rows:
        sign = "≥" if r.get("better", "lower") == "higher" else "≤"
        goal = "" if r.get("goal") is None else f"{sign} {r['goal']:g}"
        word = {True: "yes", False: "**no**", None: ""}[reached(r)]
        lines.append(f"| {r['name']} | {r['setting']} | {r['ratio']:.2f} | {goal} | {word} | {r.get('unit', '')} |")
    return "\n".join(lines) + "\n"


def rows_of(name: str) -> list[dict]:
    """The rows of one module, by a Python of its own: in memory that others leave in pieces, small products take a tenth longer."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "benchmarks", name, "--out", folder], stdout=subprocess.DEVNULL, check=False)
        return json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def main() -> int:
    """0 where all goals are reached, 1 where not, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which to run (default: all of {', '.join(modules())})")
    parser.add_argument("--out", type=Path, default=FOLDER / "results", help="folder of the table (default: %(default)s)")
    args = parser.parse_args()
    unknown = set(args.names) - set(modules())
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(modules())}.")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {args.out} cannot be made: {error}")
    pinned_malloc()
    import torch

    torch.set_num_threads(1)
    names = args.names or modules()
    if len(names) == 1:
        print(f"{names[0]} ...", file=sys.stderr, flush=True)
        rows = importlib.import_module(f"benchmarks.{names[0]}").rows()
    else:
        rows = [row for name in names for row in rows_of(name)]
    about = machine()
    text = table(rows, about)
    stem = "benchmarks" if not args.names else "-".join(args.names)
    (args.out / f"{stem}.md").write_text(text, encoding="utf-8")
    (args.out / f"{stem}.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1), encoding="utf-8")
    print(text)
    return 0 if all(reached(r) is not False for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
