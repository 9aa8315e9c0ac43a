"""What every study costs, and what training its replicas together saves: ``python -m benchmarks.studies [GLOB ...] [--scale small]``.

Each study runs once, in this process and on one thread. Seconds are processor seconds of the study. Of every population that it trains a
step is then timed, in the way that was chosen and one replica after another in turns (`theorylab.learning.fastest`). The gain is the time
that all steps of the study would have taken in a loop over the time that they take.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.timing import pinned_malloc

FOLDER = Path(__file__).parent / "results"


@dataclass
class Trained:
    """What was trained by populations: replica steps, and seconds of a replica step in each way, summed over populations."""

    replicas: int = 0
    steps: int = 0
    together: float = 0.0
    loop: float = 0.0
    aside: float = 0.0

    @property
    def gain(self) -> float | None:
        """The time of a loop over the population's own; None where no population was trained, or none that can be split."""
        return self.loop / self.together if self.together else None


@contextmanager
def watched(total: Trained) -> Iterator[None]:
    """Within it, every population that trains is timed afterwards; what the timing takes is kept in ``aside``."""
    from theorylab.learning.fastest import RECORD_FROM, seconds_per_step
    from theorylab.learning.population import Population

    original: Callable[..., Any] = Population.train
    seen: dict[int, tuple[Population, dict[str, float] | None]] = {}  # the population too, so that no other takes its id

    def train(self: Population, steps: int, **kwargs: Any) -> Any:
        result = original(self, steps, **kwargs)
        start = time.process_time()
        if id(self) not in seen:
            group = self._groups[0]
            seconds = None
            if steps and group.optimizer.select is not None:
                one = slice(0, 1)
                alone = group.part(one, group.optimizer.select(one), False, group.device)
                record = group.stacked and self.step_count * self.size >= RECORD_FROM
                seconds = seconds_per_step({"together": group, "loop": alone}, record)  # type: ignore[dict-item, arg-type]
            seen[id(self)] = self, seconds
        total.replicas = max(total.replicas, self.size)
        total.steps += steps * self.size
        seconds = seen[id(self)][1]
        if seconds:
            total.together += seconds["together"] * steps * self.size
            total.loop += seconds["loop"] * steps * self.size
        total.aside += time.process_time() - start
        return result

    with mock.patch.object(Population, "train", train):
        yield


def measure(key: str, scale: str) -> dict[str, Any]:
    """One row of the table."""
    from theorylab.core.scale import Scale
    from theorylab.core.study import load_study

    study, total = load_study(key), Trained()
    with watched(total):
        start = time.process_time()
        study.execute(study.scales[Scale(scale)])
        seconds = time.process_time() - start - total.aside
    return {
        "study": key,
        "claims": len(study.claims),
        "seconds": seconds,
        "replicas": total.replicas,
        "steps": total.steps,
        "gain": total.gain,
    }


def table(rows: list[dict[str, Any]], scale: str, about: dict[str, str]) -> str:
    """The rows as Markdown, with a sum."""
    lines = [", ".join(f"{k}: {v}" for k, v in about.items()) + f", scale: {scale}", ""]
    lines += ["| study | claims | processor seconds | replicas | steps of a replica | gain over a loop |", "|---|---:|---:|---:|---:|---:|"]
    for r in rows:
        gain = f"{r['gain']:.1f}" if r["gain"] else ""
        trained = (str(r["replicas"]), f"{r['steps']:,}") if r["steps"] else ("", "")
        lines.append(f"| {r['study']} | {r['claims']} | {r['seconds']:.1f} | {trained[0]} | {trained[1]} | {gain} |")
    lines.append(f"| all | {sum(r['claims'] for r in rows)} | {sum(r['seconds'] for r in rows):.0f} | | | |")
    return "\n".join(lines) + "\n"


def own_studies(parser: argparse.ArgumentParser, globs: list[str]) -> list[str]:
    """Keys of theorylab's own studies that fit one of the globs; ends the program as wrong usage where none does."""
    from theorylab.core.study import find_studies

    cards = find_studies()[0]
    chosen = [k for k in cards if cards[k].module.startswith("theorylab.") and any(fnmatch(k, g) for g in globs)]
    if not chosen:
        parser.error(f"no study fits {', '.join(globs)}; `theorylab syllabus` lists what there is.")
    return chosen


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("globs", nargs="*", default=["*"], help="which studies (default: all of theorylab's own)")
    parser.add_argument("--scale", choices=("tiny", "small", "large"), default="small")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the table (default: %(default)s)")
    args = parser.parse_args()
    pinned_malloc()
    from benchmarks.__main__ import machine

    rows = []
    for key in own_studies(parser, args.globs):
        rows.append(measure(key, args.scale))
        print(json.dumps(rows[-1]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "studies.md").write_text(table(rows, args.scale, machine()), encoding="utf-8")
    (args.out / "studies.json").write_text(json.dumps({"about": machine(), "scale": args.scale, "rows": rows}, indent=1), encoding="utf-8")
    print(args.out / "studies.md")


if __name__ == "__main__":
    main()
