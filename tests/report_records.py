"""Records to try the report on: every kind of finding, hostile strings, a study that broke off, and the real saddle study."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import tomllib
from typing import Any

import numpy as np

from theorylab.core.claim import AtLeast, AtMost, Claim, Equals, Finding, Orders, Scales, Within
from theorylab.core.record import Provenance, Record, claim_dict, source_digest
from theorylab.core.scale import Scale
from theorylab.core.series import Series
from theorylab.core.source import Source
from theorylab.core.study import load_study

HOSTILE = "<script>alert(\"x\")</script> & <b>bold</b> 'quote' $x_1$"

SYLLABUS = tomllib.loads("""
[course]
title = "The theory of deep learning"
about = "A mathematical and conceptual introduction to deep learning: basic concepts, model classes, paradigms, and attempts at analysis."
[[lecture]]
date = 2025-09-03
title = "Optimization theory"
topics = ["optimization"]
[[lecture]]
date = 2025-09-08
title = "Optimization, continued"
topics = ["optimization"]
[[lecture]]
date = 2025-09-10
title = "Generalization theory"
topics = ["generalization"]
[[lecture]]
date = 2025-09-17
title = "Role of the training algorithm in generalization (implicit bias)"
topics = ["implicit_bias"]
[[lecture]]
date = 2025-10-08
title = "Architectures: normalization and its theory"
topics = ["normalization"]
[[lecture]]
date = 2025-10-27
title = "Post-training: making language models useful"
topics = ["post_training", "fine_tuning"]
[[lecture]]
date = 2025-11-19
title = "Project ideas"
topics = []
[beyond_the_schedule]
topics = ["private_learning", "optimization"]
""")


def claim(key: str, statement: str, formula: str, kind: str, relation: Any, control: str, **other: str) -> Claim:
    reading = other.get("reading", "It says what the method does in the long run. It stops being true where the step is too long.")
    source = Source(other.get("work", "Author et al. 2020"), other.get("locator", "Theorem 2.1"), other.get("ref", "arXiv:2001.00001"))
    return Claim(key, statement, formula, source, kind, relation, control, reading)  # pyright: ignore[reportArgumentType]


def record(
    study: str,
    title: str,
    text: str,
    claims: list[Claim],
    findings: list[Finding],
    series: list[Series],
    *,
    error: str = "",
    seconds: float = 4.2,
) -> Record:
    versions = {"theorylab": "0.1.0", "torch": "2.13.0", "numpy": "2.3.5", "scipy": "1.17.0", "scikit-learn": "1.9.1"}
    config = {"seeds": 8, "seed": 0, "device": "cpu", "dtype": "float64", "steps": (0.05, 0.5)}
    return Record(
        Provenance(study, config, "0" * 16, versions),
        "small",
        title,
        f"{title}.\n\n{text}",
        f"theorylab_tests.{study.replace('/', '.')}",
        f"theorylab_tests/{study}.py",
        [claim_dict(c) for c in claims],
        findings,
        series,
        error,
        "2025-11-25T10:00:00",
        seconds,
        412_000_000,
        {"system": "Linux", "processor": "x86_64", "python": "3.11.7", "cores": "2"},
    )


def saddle() -> Record:
    """The real study, run at tiny."""
    study = load_study("optimization/saddle")
    config = study.scales[Scale.TINY]
    result = study.execute(config)
    text = inspect.cleandoc(sys.modules[study.module].__doc__ or "")
    made = record(
        "optimization/saddle", text.split("\n")[0].rstrip("."), "", list(study.claims), result.findings, result.series, seconds=0.31
    )
    provenance = Provenance(study.key, config.as_dict(), source_digest(study.module), made.provenance.versions)
    return dataclasses.replace(
        made, provenance=provenance, text=text, scale="tiny", module=study.module, path="theorylab/studies/optimization/saddle.py"
    )


def worst_case() -> Record:
    """Identities at rounding error, an inequality with an infinite region, a control far away."""
    tight = claim(
        "optimization/worst_case/gd_tight",
        "Gradient descent with step 1/L is at its worst on a Huber function, where the gap after n steps is LR²/(4n+2).",
        r"f(x_n) - f^\star \le \frac{L\,\|x_0 - x^\star\|^2}{4n + 2}",
        "identity",
        Equals(rtol=1e-12),
        "h = 1.9 on the quadratic, where the bound of the long step is another one",
        work="Drori and Teboulle 2014",
        locator="Theorem 3.1",
        ref="arXiv:1206.3209",
    )
    regret = claim(
        "optimization/worst_case/hedge",
        "With its best constant step, Hedge has a regret of at most √(T ln N / 2) against every sequence of losses in [0, 1].",
        r"\sum_{t=1}^T \langle p_t, \ell_t\rangle - \min_i \sum_{t=1}^T \ell_{t,i} \le \sqrt{\tfrac{T \ln N}{2}}",
        "inequality",
        AtMost(),
        "follow the leader on alternating losses",
        work="Cesa-Bianchi and Lugosi 2006",
        locator="Theorem 2.2",
        ref="Prediction, Learning, and Games",
    )
    findings = [
        tight.check(predicted=1 / (4 * n + 2), measured=(1 + e) / (4 * n + 2), setting=f"n = {n}")
        for n, e in ((1, 0), (5, 2e-16), (20, 7e-15), (100, -3e-14))
    ]
    findings.append(tight.control_check(predicted=1 / 22, measured=3.8 / 22, setting="h = 1.9, n = 5"))
    rng = np.random.default_rng(0)
    findings.append(regret.check(predicted=33.93, measured=rng.uniform(3, 23, 200), setting="T = 1000, N = 10"))
    findings.append(regret.control_check(predicted=18.6, measured=500.0))
    t = np.arange(1, 1001)
    regrets = Series(
        "regret", "Regret of Hedge stays below its bound", x="round T", y="regret [loss]", claim=regret.key, x_scale="log", y_scale="log"
    )
    for name, size in (("random losses", 0.4), ("drifting losses", 0.6), ("alternating losses", 0.15)):
        regrets.line(name, t, size * np.sqrt(t), low=size * np.sqrt(t) * 0.7, high=size * np.sqrt(t) * 1.3)
    regrets.line("√(T ln N / 2)", t, np.sqrt(t * np.log(10) / 2), role="predicted").line("follow the leader", t, t / 2, role="control")
    text = "Worst cases are *exact*: some function attains them, with ``L`` its smoothness.\n\n- Huber functions for GD\n- a game for Hedge"
    return record(
        "optimization/worst_case",
        "The worst case of first-order methods is attained",
        text,
        [tight, regret],
        findings,
        [regrets],
        seconds=8.04,
    )


def edge() -> Record:
    """Statistics over replicas in several settings, one of them inconclusive; long noisy curves."""
    rng = np.random.default_rng(1)
    gd = claim(
        "optimization/edge_of_stability/gd",
        "Full-batch gradient descent on a network brings its sharpness to 2/η and keeps it there, while the loss still falls.",
        r"\lambda_1\bigl(\nabla^2 L(\theta_t)\bigr) \to \frac{2}{\eta}",
        "statistical",
        Within(0.95, 1.1),
        "batch size 4: the noise of the gradient holds the sharpness below the edge",
        work="Cohen et al. 2021",
        locator="Section 3.1",
        ref="arXiv:2103.00065",
    )
    rise = claim(
        "optimization/edge_of_stability/progressive_sharpening",
        "Below the edge the sharpness grows along the path.",
        r"\lambda_1(t_1) - \lambda_1(t_0) > 0 \quad\text{for } t_1 > t_0",
        "statistical",
        Orders(),
        "a linear model, whose Hessian is constant",
        work="Cohen et al. 2021",
        ref="arXiv:2103.00065",
    )
    findings = [
        gd.check(predicted=2 / eta, measured=2 / eta * rng.normal(mean, spread, 8), setting=f"η = {eta:g}")
        for eta, mean, spread in ((0.5, 1.03, 0.012), (0.25, 1.02, 0.01), (0.125, 0.97, 0.05))
    ]
    findings += [
        gd.control_check(
            predicted=8.0,
            measured=rng.normal(3.7, 0.2, 8),
            setting="η = 0.25, batch 4",
            note="Batches of 32 come closer: 0.88 of the edge.",
        )
    ]
    findings += [rise.check(measured=rng.normal(6.6, 0.8, 8)), rise.control_check(measured=rng.normal(0, 1e-9, 8), setting="linear model")]
    steps = np.arange(2500)
    curves = Series("sharpness", "Sharpness rises to the edge and stays", x="step", y="λ₁ of the Hessian", claim=gd.key)
    for eta in (0.5, 0.25):
        edge = 2 / eta
        rising = edge * (1 - 0.7 * np.exp(-steps * eta / 150)) + rng.normal(0, 0.05 * edge, 2500)
        curves.line(f"η = {eta}", steps, rising, low=rising - 0.1 * edge, high=rising + 0.1 * edge)
        curves.line(f"2/η = {edge:g}", steps, np.full(2500, edge), role="predicted")
    curves.line("batch 4, η = 0.25", steps, 3.7 + rng.normal(0, 0.1, 2500), role="control")
    loss = Series("loss", "The loss falls, not monotonically", x="step", y="risk [nats]", y_scale="log")
    loss.line("η = 0.5", steps, np.exp(-steps / 600) * (1 + 0.3 * np.abs(rng.normal(size=2500))))
    text = "Classical theory asks for a step below 2/λ₁. Networks do not stay there: :math:`\\lambda_1` rises until it fails."
    return record(
        "optimization/edge_of_stability",
        "Gradient descent trains at the edge of stability",
        text,
        [gd, rise],
        findings,
        [curves, loss],
        seconds=13.7,
    )


def bias() -> Record:
    """A claim that fails, a slope, and a control that holds."""
    rng = np.random.default_rng(2)
    slope = claim(
        "implicit_bias/balance/drift",
        "The imbalance between the layers of a deep linear network drifts in proportion to the square of the step.",
        r"\bigl\|W_{k+1}^\top W_{k+1} - W_k W_k^\top\bigr\|_F \propto \eta^2",
        "asymptotic",
        Scales(2.0, 0.05),
        "momentum, which keeps no balance",
    )
    margin = claim(
        "implicit_bias/balance/max_margin",
        "On separable data gradient descent with the logistic loss turns towards the direction of largest margin.",
        r"\frac{w_t}{\|w_t\|} \to \arg\min_{w}\,\|w\|_2 \quad\text{s.t.}\quad y_i\,w^\top x_i \ge 1",
        "statistical",
        AtLeast(rtol=0.01),
        "steps in the sign of the gradient, which maximize another margin",
        work="Soudry et al. 2018",
        locator="Theorem 3",
        ref="arXiv:1710.10345",
    )
    findings = [slope.check(measured=1.62), slope.control_check(measured=1.0)]
    findings += [
        margin.check(predicted=1.0, measured=rng.normal(0.9991, 1e-4, 8)),
        margin.control_check(predicted=1.0, measured=rng.normal(0.9985, 2e-4, 8), setting="sign descent"),
    ]
    return record(
        "implicit_bias/balance", "What gradient descent conserves, and what it prefers", "", [slope, margin], findings, [], seconds=2.9
    )


def hostile() -> Record:
    """Strings that would break a careless page, and numbers that would break a careless axis."""
    c = claim(
        "private_learning/hostile/strings",
        f"Every text is shown as it is: {HOSTILE}",
        r"\text{<script>alert(1)</script>} \unknowncommand{x} & < 3",
        "statistical",
        Equals(atol=0.5),
        f"nothing of {HOSTILE}",
        work=HOSTILE,
        locator=HOSTILE,
        ref=f"A title with {HOSTILE}",
        reading=HOSTILE,
    )
    d = claim(
        "private_learning/hostile/numbers",
        "Small against large, with both signs.",
        r"0 = \text{<b>}0\,x < y",
        "statistical",
        Equals(atol=1e-3),
        "none",
    )
    findings = [
        c.check(predicted=0.0, measured=[0.1, -0.1, 0.05, 0.0], setting=HOSTILE, note=HOSTILE),
        c.control_check(predicted=0.0, measured=[1e9, 1.1e9], setting=HOSTILE),
    ]
    findings += [d.check(predicted=p, measured=[p - 1e-5, p + 1e-5, p], setting=f"p = {p:g}") for p in (-100.0, 0.0, 1e6)]
    findings += [d.control_check(predicted=0.0, measured=[3.0, 3.1, 2.9])]
    series = Series(f"../{HOSTILE}", HOSTILE, x=HOSTILE, y=HOSTILE, claim=c.key, y_scale="log")
    series.line(HOSTILE, [1, 2, 3], [0.0, 1.0, 10.0]).line("=1+1", [1, 2], [5, 6], role="control", mark="points")
    constant = Series("constant", "A constant at zero", x="x", y="y", y_scale="log").line("zero", [1, 1], [0, 0])
    return record("private_learning/hostile", HOSTILE, f"{HOSTILE}\n\n    {HOSTILE}", [c, d], findings, [series, constant])


def broken() -> Record:
    """A study that broke off after its first check."""
    first = claim(
        "normalization/equilibrium/rate",
        "The effective learning rate settles at √(2ηλ).",
        r"\gamma_t \to \sqrt{2\eta\lambda}",
        "statistical",
        Equals(rtol=0.05),
        "no weight decay",
    )
    second = claim(
        "normalization/equilibrium/time",
        "It takes 1/(4ηλ) steps.",
        r"T \approx \frac{1}{4\eta\lambda}",
        "statistical",
        Within(0.5, 2.0),
        "no normalization",
    )
    error = (
        'Traceback (most recent call last):\n  File "equilibrium.py", line 88, in equilibrium\n    raise ValueError("<lr> & co")\n'
        "ValueError: measured must be finite, got nan at position 3 (2 of 8 are not finite)."
    )
    findings = [first.check(predicted=0.1, measured=[0.099, 0.1, 0.101, 0.1])]
    return record(
        "normalization/equilibrium",
        "The effective learning rate finds its own level",
        "Weight decay and normalization balance.",
        [first, second],
        findings,
        [],
        error=error,
    )


def records() -> list[Record]:
    return [edge(), broken(), saddle(), hostile(), worst_case(), bias()]
