"""Figures of studies: what is claimed is drawn as predicted or measured, and only what breaks a hypothesis as a control."""

from __future__ import annotations

import pytest

from theorylab.core.scale import Scale
from theorylab.core.study import load_study


@pytest.mark.parametrize(
    ("study", "figure", "roles"),
    [
        ("optimization/backward_error", "orders", {"slope 1": "predicted", "slope 2": "predicted"}),
        ("optimizers/scaling", "sgd_linear_rule", {"as at k = 1": "predicted", "the rule, beyond": "control"}),
        ("optimizers/muon", "band", {"lower end": "predicted", "upper end": "predicted"}),
        ("optimizers/duality", "singular", {"Shampoo, one gradient": "measured", "Shampoo, two gradients": "control"}),
        (
            "optimizers/adaptive",
            "reddi",
            {"Adam": "measured", "AMSGrad": "measured", "Adam, β₂ = 0.999": "control", "AMSGrad's end: −1": "predicted"},
        ),
    ],
)
def test_roles_are_those_of_the_claim(study: str, figure: str, roles: dict[str, str]) -> None:
    found = load_study(study)
    series = next(s for s in found.execute(found.scales[Scale.TINY]).series if s.key == figure)
    drawn = {line.label: line.role for line in series.lines}
    assert {name: drawn.get(name) for name in roles} == roles
