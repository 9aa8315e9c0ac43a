"""What the course's studies cost on the machine where they were last timed: the table behind ``theorylab plan``.

``python -m theorylab.course.costs RUNS`` brings the records under RUNS of runs with default settings into the table.
"""

from __future__ import annotations

import contextlib
import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from theorylab.core.record import Record, RecordError, load, stored
from theorylab.core.scale import Scale
from theorylab.core.study import StudyError, load_study

_FILE = "costs.json"


def load_costs() -> dict[str, Any]:
    """The packaged table; its layout is `theorylab.runners.plan.Costs`."""
    return json.loads((resources.files("theorylab.course") / _FILE).read_text(encoding="utf-8"))


def default_settings(study: str, scale: str) -> dict[str, Any]:
    """A study's own settings at a scale, as the table and records hold them."""
    return json.loads(json.dumps(load_study(study).scales[Scale(scale)].as_dict()))


def write_costs(table: dict[str, Any], path: Path | None = None) -> None:
    """Write the table, next to this file unless told otherwise."""
    (path or Path(__file__).with_name(_FILE)).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _is_default(record: Record) -> bool:
    try:
        return default_settings(record.study, record.scale) == record.provenance.config
    except StudyError:
        return False


def _merged(table: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new table, and of the old one the rows that it has none for and whose settings still are the study's, in its seconds."""
    slower = new["calibration_seconds"] / table["calibration_seconds"]
    studies = {key: dict(rows) for key, rows in new["studies"].items()}
    for key, rows in table["studies"].items():
        for scale, row in rows.items():
            with contextlib.suppress(StudyError):
                if scale not in studies.get(key, {}) and default_settings(key, scale) == row["config"]:
                    studies.setdefault(key, {})[scale] = row | {"seconds": round(slower * row["seconds"], 3)}
    return new | {"studies": dict(sorted(studies.items()))}


def main(runs: Path, path: Path | None = None) -> None:
    """Bring the newest record of each study and scale under ``runs`` into the table, next to this file unless told otherwise."""
    from theorylab.runners.plan import table_of

    records = []
    for folder in sorted(stored(runs), key=lambda f: (f / "record.json").stat().st_mtime):
        with contextlib.suppress(RecordError):
            records.append(load(folder))
    write_costs(_merged(load_costs(), table_of([r for r in records if _is_default(r)])), path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
