"""Records: what is written is what is read, and a damaged one is told from a good one."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from theorylab.core import record as records
from theorylab.core.claim import AtMost, Claim, Verdict
from theorylab.core.files import write_atomically
from theorylab.core.record import Provenance, Record, RecordError
from theorylab.core.series import Series
from theorylab.core.source import Source

CLAIM = Claim("topic/study/name", "s", "f", Source("Somebody 2000", "Theorem 1", "arXiv:0000.00000"), "inequality", AtMost(), "c", "r")


def make(error: str = "") -> Record:
    provenance = Provenance("topic/study", {"seeds": 3, "rates": [0.1, 0.2]}, "abc", {"torch": "1"})
    series = Series("curve", "A curve", x="step", y="loss", claim=CLAIM.key).line("a", [0, 1], [1.0, 0.1 + 0.2], low=[0, 0], high=[2, 2])
    findings = [CLAIM.check(predicted=1.0, measured=[0.1 + 0.2]), CLAIM.control_check(predicted=1.0, measured=[3.0], setting="η > 2")]
    return Record(provenance, "tiny", "Title", "Text.", "m", "p", [records.claim_dict(CLAIM)], findings, [series], error, seconds=1.5)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    original = make()
    folder = records.save(original, tmp_path)
    read = records.load(folder)
    assert read.findings == original.findings
    assert math.isinf(read.findings[0].region[0])
    assert dataclasses.asdict(read.provenance) == dataclasses.asdict(original.provenance)
    assert read.provenance.key == original.provenance.key == folder.name
    (line,), (line0,) = read.series[0].lines, original.series[0].lines
    assert line.y.tolist() == line0.y.tolist()
    assert line.high.tolist() == [2, 2]
    assert read.verdict(CLAIM.key) is Verdict.HOLDS
    assert read.verdict(CLAIM.key, "control") is Verdict.FAILS
    assert list(records.stored(tmp_path)) == [folder]
    assert not list(folder.glob(".*"))  # no temporary file is left


@pytest.mark.parametrize("part", ["record.json", "series-*.npz"])
@pytest.mark.parametrize("damage", ["truncate", "remove", "garbage"])
def test_every_damage_is_noticed(tmp_path: Path, part: str, damage: str) -> None:
    folder = records.save(make(), tmp_path)
    (path,) = folder.glob(part)
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20] if damage == "truncate" else b"{}")
    with pytest.raises(RecordError, match="will be computed again"):
        records.load(folder)


def other(value: float) -> Record:
    """Of the same run as `make`, with other numbers."""
    series = Series("curve", "A curve", x="step", y="loss").line("a", [0, 1], [1.0, 5.0])
    return dataclasses.replace(make(), series=[series], seconds=value)


@pytest.mark.parametrize("stopped", [1, 2], ids=["before the series", "before the record"])
def test_a_record_stays_whole_until_another_has_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int) -> None:
    first = make()
    folder = records.save(first, tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        records.save(other(math.nan), tmp_path)  # JSON knows no NaN
    written: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) == stopped:
            raise KeyboardInterrupt
        write_atomically(path, data)

    monkeypatch.setattr(records, "write_atomically", write)
    with pytest.raises(KeyboardInterrupt):
        records.save(other(2.0), tmp_path)
    read = records.load(folder)
    assert (read.seconds, read.series[0].lines[0].y.tolist()) == (1.5, first.series[0].lines[0].y.tolist())
    records.save(other(2.0), tmp_path)
    read = records.load(folder)
    assert (read.seconds, read.series[0].lines[0].y.tolist()) == (2.0, [1.0, 5.0])
    assert len(list(folder.iterdir())) == 2  # nothing of the earlier one is left


def test_a_record_whose_series_have_the_old_name_is_read_and_replaced(tmp_path: Path) -> None:
    folder = records.save(make(), tmp_path)
    (series,) = folder.glob("series-*.npz")
    series.rename(folder / "series.npz")
    assert records.load(folder).series[0].lines[0].y.tolist() == make().series[0].lines[0].y.tolist()
    records.save(make(), tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["record.json", series.name]


def test_of_several_controls_each_must_fail() -> None:
    passing = CLAIM.control_check(predicted=1.0, measured=[0.5], setting="η = 1")
    record = make()
    record.findings.insert(1, passing)
    assert record.verdict(CLAIM.key, "control") is Verdict.HOLDS
    record.findings[1] = dataclasses.replace(passing, verdict=Verdict.INCONCLUSIVE)
    assert record.verdict(CLAIM.key, "control") is Verdict.INCONCLUSIVE


OTHER_JSON = {
    "null": lambda body: None,
    "a text": lambda body: "record",
    "a number": lambda body: 3,
    "a list": lambda body: [body],
    "claims null": lambda body: body | {"claims": None},
    "claims of texts": lambda body: body | {"claims": ["a/b/c"]},
    "a claim without a key": lambda body: body | {"claims": [{}]},
    "a claim without a source": lambda body: body | {"claims": [body["claims"][0] | {"source": {}}]},
    "a config that is a list": lambda body: body | {"provenance": body["provenance"] | {"config": []}},
    "a version that is a number": lambda body: body | {"provenance": body["provenance"] | {"versions": {"torch": 2}}},
    "no provenance": lambda body: body | {"provenance": None},
    "an error that is a number": lambda body: body | {"error": 1},
    "a measured text": lambda body: body | {"findings": [body["findings"][0] | {"measured": "3"}]},
    "a finding that is a number": lambda body: body | {"findings": [3]},
    "a title of nothing": lambda body: body | {"series": [body["series"][0] | {"title": None}]},
}
"""What is JSON, and no record."""


@pytest.mark.parametrize("change", OTHER_JSON)
def test_json_that_is_no_record_is_noticed(tmp_path: Path, change: str) -> None:
    folder = records.save(make(), tmp_path)
    path = folder / "record.json"
    path.write_text(json.dumps(OTHER_JSON[change](json.loads(path.read_text()))))
    with pytest.raises(RecordError, match="will be computed again"):
        records.load(folder)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(records.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_key_depends_on_all_that_matters_and_says_what_changed() -> None:
    base = make().provenance
    for change, words in (
        ({"config": {"seeds": 4, "rates": [0.1, 0.2]}}, "seeds: 3 → 4"),
        ({"versions": {"torch": "2"}}, "torch 1 → 2"),
        ({"source": "xyz"}, "source"),
    ):
        other = dataclasses.replace(base, **change)
        assert other.key != base.key
        assert words in other.differs_from(base)


def test_versions_are_of_all_that_makes_numbers_installed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = records.versions()
    assert {"torch", "mnist1d", "pillow"} <= set(found)
    assert "not installed" not in found.values()
    monkeypatch.setattr(records, "VERSIONED", ("torch", "a-package-that-is-not-there"))
    records.versions.cache_clear()
    assert records.versions() == {"torch": found["torch"], "a-package-that-is-not-there": "not installed"}
    records.versions.cache_clear()


def test_the_source_digest_follows_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "madeup"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "study.py").write_text("from madeup import helper\nimport json\n")
    (package / "helper.py").write_text("def f():\n    import madeup.deep\n")
    (package / "deep.py").write_text("x = 1\n")
    (package / "apart.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    def digest() -> str:
        records.imported_files.cache_clear()
        return records.source_digest("madeup.study")

    first = digest()
    (package / "apart.py").write_text("x = 2\n")
    assert digest() == first
    (package / "deep.py").write_text("x = 2\n")
    assert digest() != first
    assert {p.name for p in records.imported_files("madeup.study")} == {"__init__.py", "study.py", "helper.py", "deep.py"}


def test_the_source_digest_follows_relative_imports_and_what_theorylab_has_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "kindred"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "study.py").write_text(
        "from .helper import K\nfrom . import beside\nfrom .inner import below\nfrom theorylab import hessian\n"
    )
    (package / "helper.py").write_text("K = 1\n")
    (package / "beside.py").write_text("import theorylab as tl\nf = lambda p: tl.trace(p)\n")
    (package / "inner" / "__init__.py").write_text("from .... import nowhere\n")  # leads out of the package
    (package / "inner" / "below.py").write_text("from ..helper import K\nfrom .level import *\n")
    (package / "inner" / "level.py").write_text("raise RuntimeError('never imported to be read')\n")
    monkeypatch.syspath_prepend(tmp_path)
    files = records.imported_files("kindred.study")
    own = {str(p.relative_to(package)) for p in files if p.is_relative_to(package)}
    assert own == {"study.py", "__init__.py", "helper.py", "beside.py", "inner/__init__.py", "inner/below.py", "inner/level.py"}
    assert {"curvature.py", "operator.py", "trace.py"} <= {p.name for p in files}  # of hessian and of trace
    before = records.source_digest("kindred.study")
    (package / "helper.py").write_text("K = 2\n")
    assert records.source_digest("kindred.study") != before


def test_a_module_of_theorylab_brings_the_modules_it_uses() -> None:
    names = {p.name for p in records.imported_files("theorylab.studies.optimization.saddle")}
    assert {"saddle.py", "sgd.py", "base.py", "dynamics.py", "claim.py", "estimate.py"} <= names
    assert "page.py" not in names
