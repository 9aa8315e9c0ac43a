"""The theory of deep learning, executable: instruments, studies of claims, and a report."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name → module that defines it. Imported on first use, so that `import theorylab` and the command line do not pay for torch.
_PUBLIC = {
    "Problem": "core.problem",
    "Operator": "core.operator",
    "Estimate": "core.estimate",
    "Source": "core.source",
    "Claim": "core.claim",
    "Finding": "core.claim",
    "Verdict": "core.claim",
    "Equals": "core.claim",
    "Within": "core.claim",
    "AtMost": "core.claim",
    "AtLeast": "core.claim",
    "Orders": "core.claim",
    "Scales": "core.claim",
    "Series": "core.series",
    "Stage": "core.series",
    "Scale": "core.scale",
    "Config": "core.config",
    "setting": "core.config",
    "study": "core.study",
    "instrument": "core.instrument",
    "instruments": "core.instrument",
    "Inapplicable": "core.instrument",
    "hessian": "instruments.curvature",
    "ggn": "instruments.curvature",
    "sharpness": "instruments.curvature",
    "sharpness_along": "instruments.sharpness_along",
    "coordinate_check": "instruments.coordinate_check",
    "mup": "learning.parametrization",
    "kfac": "instruments.kfac",
    "ekfac": "instruments.kfac",
    "gradient_noise": "instruments.gradient_noise",
    "noise_scale": "instruments.noise_scale",
    "landscape": "instruments.landscape",
    "mode_connectivity": "instruments.mode_connectivity",
    "adam_preconditioner": "instruments.curvature",
    "fisher": "instruments.fisher",
    "true_fisher": "instruments.fisher",
    "empirical_fisher": "instruments.fisher",
    "jacobian": "instruments.jacobian",
    "certify": "instruments.certify",
    "occam": "instruments.occam",
    "flatness": "instruments.flatness",
    "invariances": "instruments.invariances",
    "balancedness": "instruments.invariances",
    "angular_update": "instruments.invariances",
    "row_space_residual": "instruments.row_space",
    "audit": "instruments.audit",
    "norms": "instruments.norms",
    "path_norm": "instruments.path_norm",
    "test_bound": "instruments.bounds",
    "Bound": "instruments.bounds",
    "Reading": "core.reading",
    "kl_inverse": "stats.binomial",
    "ntk": "instruments.kernels",
    "preflight": "instruments.preflight",
    "Notice": "core.notice",
    "kernel_spectrum": "instruments.kernel_learning",
    "kernel_alignment": "instruments.kernel_learning",
    "kernel_regression": "instruments.kernel_learning",
    "distance_moved": "instruments.lazy",
    "influence": "instruments.attribution",
    "tracin": "instruments.tracin",
    "trak": "instruments.trak",
    "evaluate_attribution": "instruments.attribution_quality",
    "datamodels": "stats.datamodels",
    "per_example_grads": "instruments.rows",
    "per_example_grad_norms": "instruments.rows",
    "eigs": "linalg.lanczos",
    "spectrum": "linalg.spectrum",
    "trace": "linalg.trace",
    "diag": "linalg.diagonal",
    "logdet": "linalg.logdet",
    "solve": "linalg.solve",
    "Population": "learning.population",
    "retrain": "learning.retraining",
    "half_subsets": "learning.retraining",
    "lds": "stats.lds",
    "noise_ceiling": "stats.lds",
    "Recipe": "learning.scaling_rules",
    "scaling_check": "learning.scaling_check",
    "scaling_plan": "learning.scaling_check",
    "measure": "measuring.measure",
    "ReportCard": "report.card",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'theorylab' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"theorylab.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
