"""What the ground truth of attribution costs: hundreds of networks trained on halves of the digits, in seconds."""

from __future__ import annotations

import time
from functools import partial

from torch import Tensor
from torch.nn.functional import cross_entropy

from theorylab.data.digits import digits
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.retraining import half_subsets, retrain
from theorylab.models.mlp import mlp

ROWS, TARGETS, SUBSETS, RETRAININGS = 500, 100, 256, 2
DECAY, STEPS, BATCH = 1e-2, 300, 50
GOAL = 20.0
Pair = tuple[Tensor, Tensor]

make_model = partial(mlp, [64, 32, 10])


def method() -> Optimizer:
    """Gradient descent on the objective with weight decay λ, which is the damping of every influence."""
    return sgd(0.1, momentum=0.9, weight_decay=DECAY)


def split(n: int, m: int) -> tuple[Pair, Pair]:
    """N digits to train on, and m others that are predicted; float32."""
    x, y = digits(n + m)
    return (x[:n].float(), y[:n]), (x[n:].float(), y[n:])


def outcomes(train: Pair, test: Pair, masks: Tensor) -> Tensor:
    """The loss at each test row of networks trained on each subset, (subset, retraining, target)."""
    seeds = [10**6 + k for k in range(RETRAININGS)]
    return retrain(make_model, cross_entropy, train, masks, seeds, optimizer=method(), steps=STEPS, batch_size=BATCH, targets=test)


def rows() -> list[dict]:
    """One row: seconds, not a ratio, for nobody else trains so many at once; a loop is in the rows of populations."""
    train, test = split(ROWS, TARGETS)
    masks = half_subsets(ROWS, SUBSETS)
    start = time.process_time()
    outcomes(train, test, masks)
    taken = time.process_time() - start
    setting = f"{SUBSETS * RETRAININGS} MLPs 64-32-10 on halves of {ROWS} digits, {STEPS} steps of {BATCH} rows"
    return [{"name": "retraining", "setting": setting, "ratio": taken, "goal": GOAL, "better": "lower", "unit": "processor seconds"}]
