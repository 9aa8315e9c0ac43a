"""The battery over every installed study: at tiny it yields exactly its declared claims, and each control fails."""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile

import numpy as np
import pytest
import torch

from theorylab.core.checkpoints import checkpoints
from theorylab.core.claim import Claim, Verdict
from theorylab.core.scale import Scale
from theorylab.core.study import Result, StudyError, find_studies, load_study
from theorylab.core.topic import topic_texts
from theorylab.data.synthetic import teacher_student
from theorylab.report.mathml import paragraphs
from theorylab.studies.generalization.interpolation import TEACHER_INPUTS, InterpolationConfig, prominence, random_directions

CARDS, PROBLEMS = find_studies()
EVERY = pytest.mark.parametrize("key", CARDS)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a study, whether it left torch's and numpy's global generators alone, and a second that finds all training done."""

    result: Result
    alone: bool
    again: Result | None


@functools.lru_cache
def run_tiny(key: str) -> Run:
    """One a study and process."""
    study = load_study(key)
    config = study.scales[Scale.TINY]
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as folder:
        with checkpoints(folder, every=0):
            result = study.execute(config)
        alone = torch.equal(before, torch.get_rng_state()) and np.array_equal(before_numpy, np.random.get_state()[1])  # type: ignore[index]
        again = None
        if os.listdir(folder):
            with checkpoints(folder, every=0):
                again = study.execute(config)
    return Run(result, alone, again)


def tiny(key: str) -> Result:
    """The result that all tests of a study read."""
    return run_tiny(key).result


def test_all_studies_are_readable() -> None:
    assert not PROBLEMS
    assert CARDS


@EVERY
def test_the_card_read_from_the_text_is_the_registered_study(key: str) -> None:
    card, study = CARDS[key], load_study(key)
    assert card.claims == study.claims  # all claims are registered, as literals, and none is left out
    assert card.title
    assert len(card.text) > 200, "the docstring of the module is the text of the study: say what is claimed and when it stops"


@EVERY
def test_tiny_yields_its_claims_and_each_control_fails(key: str) -> None:
    result = tiny(key)  # raises unless every declared claim has a finding and a control
    for finding in result.findings:
        if finding.role == "control":
            assert finding.verdict is Verdict.FAILS, f"the control of {finding.claim} ({finding.setting}) must fail: {finding}"
        else:  # few replicas may leave a law open, but a scale that refutes what holds at small is no test
            assert finding.verdict is not Verdict.FAILS, finding


@EVERY
def test_what_goes_on_after_its_training_finds_the_same(key: str) -> None:
    """What a study wants to know of its training it must not keep where a later process does not find it."""
    run = run_tiny(key)
    assert run.again is None or run.again.findings == run.result.findings  # None where nothing was trained


@EVERY
def test_identities_and_inequalities_hold_at_any_scale(key: str) -> None:
    """A mean may be out of reach with the few replicas of tiny; what is exact is not."""
    exact = {c.key for c in load_study(key).claims if c.kind in ("identity", "inequality")}
    for finding in tiny(key).findings:
        if finding.role == "claim" and finding.claim in exact:
            assert finding.verdict is Verdict.HOLDS, finding


@EVERY
def test_every_claim_can_be_looked_up_and_shown(key: str) -> None:
    result, study = tiny(key), load_study(key)
    for claim in study.claims:
        assert any(c.isdigit() for c in claim.source.locator) or len(claim.source.locator) > 8, "a source needs a locator"
        assert ":" in claim.source.ref or len(claim.source.ref) > 8
        assert claim.statement.endswith(".")
        assert len(claim.reading) > 60
    assert {s.claim for s in result.series} <= {c.key for c in study.claims} | {""}
    assert len({s.key for s in result.series}) == len(result.series)
    for series in result.series:
        for line in series.lines:
            scales = ((series.x_scale, line.x), (series.y_scale, line.y))
            assert all(np.all(v > 0) for scale, v in scales if scale == "log"), f"{series.key}, {line.label}: not positive on a log axis"


@EVERY
def test_a_study_leaves_the_global_generators_alone(key: str) -> None:
    assert run_tiny(key).alone


@EVERY
def test_configs_check_their_ranges(key: str) -> None:
    study = load_study(key)
    with pytest.raises(ValueError, match="seeds must be at least"):
        dataclasses.replace(study.scales[Scale.SMALL], seeds=0)
    for f in dataclasses.fields(study.scales[Scale.SMALL]):
        assert f.metadata.get("help") or f.type == "str", f"{key}: setting {f.name} needs a help text (use `setting`)"


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("implicit_bias/diagonal", {"nonzero": 31}, "nonzero must be at most d = 30, got 31"),
        ("implicit_bias/diagonal", {"noise_nonzero": 41}, "noise_nonzero must be at most noise_d = 40, got 41"),
        ("implicit_bias/diagonal", {"n": 30}, "n must be less than d"),
        ("implicit_bias/diagonal", {"alphas": (10.0, 1.0, 0.1)}, "alphas must be at least two numbers in rising order"),
        ("implicit_bias/diagonal", {"alphas": (10.0,)}, "alphas must be at least two numbers in rising order"),
        ("implicit_bias/diagonal", {"lrs": (1e-3, 1e-3)}, "lrs must hold at least two step sizes"),
        ("generalization/grokking", {"decays": (3.0,)}, "decays must be at least two numbers in rising order"),
        ("generalization/grokking", {"decays": (1.0, 1.0)}, "decays must be at least two numbers in rising order"),
        ("generalization/interpolation", {"ratios": (0.2, 0.5)}, "ratios must hold one above 1"),
        ("generalization/kernels", {"steps": (100, 10)}, "steps must be at least two numbers in rising order"),
        ("implicit_bias/matrix", {"complete_depths": (2, 4)}, "complete_depths must hold 3"),
        ("implicit_bias/matrix", {"complete_depths": (3,), "starts": (1e-3,)}, "complete_depths must hold 2, or starts several"),
        ("optimization/backward_error", {"time": 5.0}, "time must be at most 2"),
    ],
)
def test_settings_that_could_not_be_measured_are_refused_before_any_work(key: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(load_study(key).scales[Scale.SMALL], **changes)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("implicit_bias/balancedness", {"depth": 2, "seeds": 1}),
        ("implicit_bias/mirror", {"start": 10.0, "steps": 100, "seeds": 2}),
        ("convolution/signal", {"layers": 90, "width": 30, "seeds": 12}),
    ],
)
def test_settings_at_the_end_of_their_range_can_be_measured(key: str, changes: dict) -> None:
    study = load_study(key)
    assert study.execute(dataclasses.replace(study.scales[Scale.TINY], **changes)).findings


def test_a_peak_elsewhere_is_no_peak_at_the_threshold() -> None:
    """Losses (size, replica) that are highest at the threshold, beside it, and at a quarter of its size."""
    sizes, level = [10, 25, 40, 50, 100], 1.2
    at = torch.tensor([[1.0, 2.0, 9.0, 4.0, 1.0], [1.0, 2.0, 9.0, 9.5, 1.0], [1.0, 2.0, 9.0, 4.0, 8.0], [20.0, 2.0, 9.0, 4.0, 1.0]]).T
    assert (prominence(at, sizes, 2).exp() > level).tolist() == [True, True, False, False]
    middle = torch.tensor([[1.0, 20.0, 9.0, 1.0]]).T
    assert float(prominence(middle, [1, 20, 40, 80], 2).exp()) < level


def test_contract_violations_are_named() -> None:
    study = load_study("optimization/saddle")
    config = study.scales[Scale.TINY]
    (claim,) = study.claims
    stranger = dataclasses.replace(claim, key="a/b/c")

    def broken(*findings: object):
        return dataclasses.replace(study, run=lambda _: iter(findings))

    good = claim.check(predicted=1.0, measured=1.0)
    with pytest.raises(StudyError, match="no control finding for optimization/saddle/escape_time"):
        broken(good).execute(config)
    with pytest.raises(StudyError, match="a/b/c, which it does not declare"):
        broken(stranger.check(predicted=1.0, measured=1.0)).execute(config)
    with pytest.raises(StudyError, match="yields a float"):
        broken(1.0).execute(config)
    with pytest.raises(TypeError, match="config must be a SaddleConfig"):
        study.execute(object())  # type: ignore[arg-type]
    with pytest.raises(StudyError, match="no study 'nope/nope'"):
        load_study("nope/nope")


def test_all_claim_keys_differ() -> None:
    keys = [claim.key for card in CARDS.values() for claim in card.claims]
    assert len(keys) == len(set(keys))
    assert all(isinstance(claim, Claim) for card in CARDS.values() for claim in card.claims)


@pytest.mark.parametrize("topic", sorted({key.partition("/")[0] for key, card in CARDS.items() if card.module.startswith("theorylab.")}))
def test_every_topic_opens_with_setting_notation_what_is_known_and_what_is_open(topic: str) -> None:
    text = topic_texts(CARDS.values())[topic]
    for heading, paragraph in zip(("Setting.", "Notation.", "What is known.", "What is open."), text.split("\n\n")[1:], strict=True):
        assert paragraph.startswith(f"*{heading}* ")
        assert len(paragraph) > 200
        assert 'class="latex"' not in paragraphs(paragraph), "the report cannot set a formula of it"


def test_random_features_share_no_numbers_with_the_inputs_of_their_seed() -> None:
    """One seed in two generators gives one stream: the directions of the features were entries of the inputs."""
    config = InterpolationConfig(seeds=3, seed=5)
    for p in (10, 25, 100):
        for seed, directions in zip(config.replica_seeds, random_directions(config, p), strict=True):
            x = teacher_student(200, TEACHER_INPUTS, seed=seed).x
            assert not bool(torch.isin(directions, x).any())
