"""Why an instrument may not apply to a problem: reasons that several instruments share, each checked before any work."""

from __future__ import annotations

from theorylab.core.problem import Problem
from theorylab.core.safe import BATCH_COUPLED


def hides_outputs(problem: Problem) -> str | None:
    """A loss of the form loss(model, batch) does not show the model's outputs."""
    if problem.batches[0].is_pair:
        return None
    return "the loss has the form loss(model, batch), which hides the model's outputs. Give batches as pairs (x, y)."


def couples_rows(problem: Problem) -> str | None:
    """BatchNorm in training mode makes the output of one row depend on the others, so that nothing is the row's own."""
    if not problem.train or not any(isinstance(m, BATCH_COUPLED) for m in problem.model.modules()):
        return None
    return "BatchNorm in training mode couples the rows of a batch. Use train=False."
