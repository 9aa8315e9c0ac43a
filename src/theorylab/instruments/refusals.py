"""Why an instrument may not apply to a problem: reasons that several instruments share, each checked before any work."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from theorylab.core.batches import tensors_of
from theorylab.core.huggingface import own_loss
from theorylab.core.problem import Problem
from theorylab.core.safe import BATCH_COUPLED


def hides_outputs(problem: Problem) -> str | None:
    """A loss of the form loss(model, batch) does not show the outputs; of several it is not known which count; complex are two each."""
    if not problem.batches[0].is_pair:
        advice = with_labels(problem) or "Give batches as pairs (x, y)."
        return f"the loss has the form loss(model, batch), which hides the model's outputs. {advice}"
    if problem.complex_outputs:
        return (
            "the model's outputs are complex, and instruments of outputs take real ones. Give read=torch.view_as_real, and a loss of real "
            "and imaginary parts, (..., 2)."
        )
    if problem.output_type is None or issubclass(problem.output_type, torch.Tensor):
        return None
    return f"the model returns a {problem.output_type.__name__}, not one tensor. Give read=, what of it the loss and the instruments see."


def with_labels(problem: Problem) -> str:
    """What shows outputs and rows where the data are a dict with labels and the model is of `transformers`; "" for others."""
    content, config = problem.batches[0].content, getattr(problem.model, "config", None)
    if not (isinstance(content, Mapping) and "labels" in content and hasattr(config, "_attn_implementation")):
        return ""
    if problem.criterion is own_loss:  # by from_hf, to which the model's loss is none of the usual ones
        return "Give pairs (inputs, labels), a loss of the logits, and read=lambda outputs: outputs.logits."
    return "Make the problem by Problem.from_hf(model, batches), which sees the logits and each row's share of the labels."


def couples_rows(problem: Problem) -> str | None:
    """BatchNorm by batch statistics makes the output of one row depend on the others, so that nothing is the row's own."""
    norms = [m for m in problem.model.modules() if isinstance(m, BATCH_COUPLED)]
    if problem.train and norms:
        return "BatchNorm in training mode couples the rows of a batch. Use train=False."
    if any(m.running_mean is None for m in norms):
        return "BatchNorm without running statistics couples the rows of a batch, also in evaluation mode. Use track_running_stats=True."
    batch = problem.batches[0]
    shared = any(t.shape[:1] != (batch.rows,) for t in tensors_of(batch.content))
    raised = fails_on(problem, 1) if shared else None  # what is not of single rows may refer to the others
    if raised is not None:
        return f"rows depend on each other: the first cannot be evaluated alone ({raised}). Give a model that treats every row by itself."
    return None


def fails_on(problem: Problem, rows: int) -> str | None:
    """What the model or the loss raises on the first ``rows`` rows alone, as where the nodes of a graph need their neighbours, or None."""
    part = problem.on([problem.batches[0].part(slice(rows))])
    try:
        with problem.safe(), torch.no_grad():
            part.batch_loss(0)
    except Exception as error:  # of the model or the loss, which took all rows
        return f"{type(error).__name__}: {error}"
    return None


def too_few_digits(problem: Problem) -> str | None:
    """Half precision leaves no digits to a spectrum or a solve: its rounding is of the size of what is asked for."""
    if torch.finfo(problem.dtype).bits >= 32:
        return None
    return (
        f"parameters are {problem.dtype}, which has too few digits for eigenvalues, solves and small differences. Pass dtype=torch.float32."
    )
