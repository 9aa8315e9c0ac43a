"""Why an instrument may not apply to a problem: reasons that several instruments share, each checked before any work."""

from __future__ import annotations

import torch

from theorylab.core.problem import Problem
from theorylab.core.safe import BATCH_COUPLED


def hides_outputs(problem: Problem) -> str | None:
    """A loss of the form loss(model, batch) does not show the model's outputs."""
    if problem.batches[0].is_pair:
        return None
    return "the loss has the form loss(model, batch), which hides the model's outputs. Give batches as pairs (x, y)."


def couples_rows(problem: Problem) -> str | None:
    """BatchNorm by batch statistics makes the output of one row depend on the others, so that nothing is the row's own."""
    norms = [m for m in problem.model.modules() if isinstance(m, BATCH_COUPLED)]
    if problem.train and norms:
        return "BatchNorm in training mode couples the rows of a batch. Use train=False."
    if any(m.running_mean is None for m in norms):
        return "BatchNorm without running statistics couples the rows of a batch, also in evaluation mode. Use track_running_stats=True."
    return None


def too_few_digits(problem: Problem) -> str | None:
    """Half precision leaves no digits to a spectrum or a solve: its rounding is of the size of what is asked for."""
    if torch.finfo(problem.dtype).bits >= 32:
        return None
    return (
        f"parameters are {problem.dtype}, which has too few digits for eigenvalues, solves and small differences. Pass dtype=torch.float32."
    )
