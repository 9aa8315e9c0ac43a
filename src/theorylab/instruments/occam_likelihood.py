"""How well a language model predicts new text: a bound, in bits, for the network that a short message describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from theorylab.core.huggingface import IGNORED
from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.problem import Params, Problem
from theorylab.core.source import Source
from theorylab.instruments.attributed import token_losses
from theorylab.instruments.bounds import INDEPENDENT, Bound
from theorylab.instruments.coded import LEVELS, Describe, assumed, best, check, describe, messages, slow_describe, slow_kl_inverse
from theorylab.instruments.occam import _carries_statistics
from theorylab.instruments.output_hessian import known_loss
from theorylab.instruments.refusals import couples_rows, hides_outputs
from theorylab.instruments.row_trust import couples_outputs
from theorylab.stats.binomial import kl_inverse

Unit = Literal["document", "token"]
Means = Callable[[Problem, Params, Unit, Sequence[float]], list[float]]
"""(problem, parameters, unit, smoothing) → the mean loss in bits, under each smoothing."""

SMOOTHING = (0.5, 0.25, 0.1, 0.05, 0.01, 0.005, 0.001, 0.0001)
QUANTITY: dict[Unit, str] = {
    "document": "bits a prediction on a new row, network coded and smoothed",
    "token": "bits a prediction in the contexts of these rows, network coded and smoothed",
}
KIND: dict[Unit, str] = {"document": "Occam-Hoeffding", "token": "Occam-Azuma"}
COUNTED: dict[Unit, str] = {"document": "rows", "token": "tokens"}
SAMPLED: dict[Unit, tuple[str, ...]] = {
    "document": (INDEPENDENT,),
    "token": (
        "a token is drawn after all before it, in its row and in earlier rows, and predicted from no other",
        "which tokens are predicted, and how many, is fixed before they are drawn",
    ),
}


def _not_tokens(problem: Problem) -> str | None:
    """Bits are counted where outputs are logits of a vocabulary on axis 1, each with its token or a label that says there is none."""
    loss = known_loss(problem)
    if loss is None or loss.name != "cross_entropy" or loss.options.get("weight") is not None or loss.options.get("label_smoothing"):
        return (
            "the loss is not known as the cross-entropy of logits. Give cross_entropy itself, without class weights and label smoothing, "
            "whatever the network was trained with."
        )
    if loss.options.get("ignore_index", IGNORED) != IGNORED:
        return f"tokens that are not predicted must be labelled {IGNORED}: leave ignore_index as it is."
    with problem.safe(), torch.no_grad():
        vocabulary = problem.outputs(0).shape[1]
    for batch in problem.batches:
        targets = batch.content[1]
        if targets.is_floating_point() or vocabulary < 2:
            return (
                f"this predicts no tokens: targets {targets.dtype} {tuple(targets.shape)} and {vocabulary} logits. Give tokens as integers."
            )
        if not bool((targets != IGNORED).reshape(batch.rows, -1).any(1).all()):
            return f"a row predicts no token, for all of its targets are {IGNORED}. Leave it out."
    return None


REFUSES = (hides_outputs, couples_rows, couples_outputs, _not_tokens, _carries_statistics)


def interval(alpha: float, vocabulary: int) -> tuple[float, float]:
    """The least loss in bits of a prediction smoothed by α, that of a token of probability one, and how much more any other can lose."""
    return -math.log2(1 - alpha + alpha / vocabulary), math.log2(1 + (1 - alpha) * vocabulary / alpha)


def upper(mean: float, alpha: float, vocabulary: int, complexity: float, unit: Unit, inverse: Callable[[float, float], float]) -> float:
    """The bound, from the mean loss in bits and (b ln 2 + ln(1/δ)) / n."""
    least, width = interval(alpha, vocabulary)
    if math.isnan(mean):  # a code that is no network
        return math.inf
    if unit == "token":
        return mean + width * math.sqrt(complexity / 2)
    return least + width * inverse(min(1.0, max(0.0, (mean - least) / width)), complexity)


def _means(problem: Problem, params: Params, unit: Unit, smoothing: Sequence[float]) -> list[float]:
    nats: list[Tensor] = []
    weights: list[Tensor] = []
    vocabulary = 0
    with problem.safe(), torch.no_grad():
        for k, batch in enumerate(problem.batches):
            logits, targets = problem.outputs(k, params), batch.content[1]
            vocabulary = logits.shape[1]
            each = token_losses(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets).reshape(batch.rows, -1).cpu()
            kept = (targets != IGNORED).reshape(batch.rows, -1).cpu()
            nats.append(each[kept].double())
            count = kept.double().sum(1, keepdim=True)
            weights.append((kept / (count if unit == "document" else 1.0))[kept].double())
    losses, weight = torch.cat(nats), torch.cat(weights)
    found = []
    for alpha in smoothing:
        floor = losses.new_tensor(math.log(alpha / vocabulary))
        bits = -torch.logaddexp(math.log1p(-alpha) - losses, floor) / math.log(2)
        found.append(float((weight * bits).sum() / weight.sum()))
    return found


def _best(
    problem: Problem,
    unit: Unit,
    smoothing: Sequence[float],
    start: Params | None,
    levels: Sequence[int],
    delta: float,
    describe: Describe,
    means: Means,
    inverse: Callable[[float, float], float],
) -> tuple[Bound, Params]:
    count, vocabulary, choice = _count(problem, unit), _vocabulary(problem), math.ceil(math.log2(len(smoothing)))

    def bounds() -> Iterator[tuple[Bound, Params]]:
        for coded, bits, chosen in messages(problem, start, levels, describe):
            complexity = ((bits + choice) * math.log(2) + math.log(1 / delta)) / count
            for alpha, mean in zip(smoothing, means(problem, coded, unit, smoothing), strict=True):
                value = upper(mean, alpha, vocabulary, complexity, unit, inverse)
                terms = {"empirical": mean, "bits": bits + choice, **chosen, "smoothing": alpha, COUNTED[unit]: float(count)}
                assumptions = SAMPLED[unit] + assumed(problem, start)
                yield Bound(value, {"union over codes": delta}, terms, assumptions, KIND[unit], QUANTITY[unit]), coded

    bound, coded = best(bounds())
    (before,) = means(problem, problem.params, unit, [bound.terms["smoothing"]])
    rest = {"bits a weight": bound.terms["bits"] / problem.P, "empirical before coding": before, "uniform guess": math.log2(vocabulary)}
    return replace(bound, terms={**bound.terms, **rest}), coded


def _count(problem: Problem, unit: Unit) -> int:
    return problem.n if unit == "document" else sum(int((b.content[1] != IGNORED).sum()) for b in problem.batches)


def _vocabulary(problem: Problem) -> int:
    with problem.safe(), torch.no_grad():
        return problem.outputs(0).shape[1]


def _beside(bound: Bound, test: Problem, unit: Unit, delta: float) -> Bound:
    """The same inequality with a message of no bits, for a network and a smoothing that the test rows had no part in."""
    alpha, count, vocabulary = bound.terms["smoothing"], _count(test, unit), _vocabulary(test)
    (mean,) = _means(test, test.params, unit, [alpha])
    value = upper(mean, alpha, vocabulary, math.log(1 / delta) / count, unit, kl_inverse)
    terms = {"empirical": mean, "smoothing": alpha, COUNTED[unit]: float(count)}
    assumptions = (*SAMPLED[unit], "no row was used to train or choose the model")
    return Bound(value, {"test set": delta}, terms, assumptions, bound.kind.removeprefix("Occam-"), bound.quantity)


def slow_occam_likelihood(
    problem: Problem,
    *,
    unit: Unit = "document",
    coding: Literal["full", "difference"] = "full",
    levels: Sequence[int] = LEVELS,
    smoothing: Sequence[float] = SMOOTHING,
    init: Params | None = None,
    delta: float = 0.05,
    test: Problem | None = None,
) -> Bound:
    """Coding symbol by symbol, smoothing the probability of token by token, inverting by root finding: the oracle of `occam_likelihood`."""

    def means(problem: Problem, params: Params, unit: Unit, smoothing: Sequence[float]) -> list[float]:
        documents: list[list[float]] = []
        vocabulary = 0
        with problem.safe(), torch.no_grad():
            for k, batch in enumerate(problem.batches):
                outputs = problem.outputs(k, params)
                vocabulary = outputs.shape[1]
                rows = outputs.movedim(1, -1).reshape(batch.rows, -1, vocabulary).tolist()
                for logits, tokens in zip(rows, batch.content[1].reshape(batch.rows, -1).tolist(), strict=True):
                    pairs = [(z, y) for z, y in zip(logits, tokens, strict=True) if y != -100]
                    documents.append([1 / math.fsum(math.exp(min(other - z[y], 700.0)) for other in z) for z, y in pairs])
        found = []
        for alpha in smoothing:
            bits = [[-math.log2((1 - alpha) * p + alpha / vocabulary) for p in chances] for chances in documents]
            if unit == "document":
                found.append(math.fsum(math.fsum(b) / len(b) for b in bits) / len(bits))
            else:
                found.append(math.fsum(map(math.fsum, bits)) / sum(map(len, bits)))
        return found

    return _best(problem, unit, smoothing, init, levels, delta, slow_describe, means, slow_kl_inverse)[0]


@instrument(
    oracle=slow_occam_likelihood,
    source=Source("Lotfi et al. 2024", "prediction smoothing", "arXiv:2312.17173"),
    refuses=REFUSES,
    family="bounds",
)
def occam_likelihood(
    problem: Problem,
    *,
    unit: Unit = "document",
    coding: Literal["full", "difference"] = "full",
    levels: Sequence[int] = LEVELS,
    smoothing: Sequence[float] = SMOOTHING,
    init: Params | None = None,
    delta: float = 0.05,
    test: Problem | None = None,
) -> Bound:
    r"""A bound on the bits that a language model needs for a token, after rounding its parameters and smoothing its predictions.

    The network is coded as in `occam`, by a message of b bits, and predicts :math:`\tilde p = (1-\alpha)p + \alpha/V` over V tokens. So no
    token costs more than :math:`\log_2(V/\alpha)` bits, and all costs lie between some :math:`\ell_0` and :math:`\ell_0 + \Delta`, with
    :math:`\Delta = \log_2(1 + (1-\alpha)V/\alpha)`. Let :math:`\hat R` be the mean over n documents, or over n tokens, and
    :math:`\varepsilon = (b\ln 2 + \ln(1/\delta))/n`.

    - ``unit="document"``: :math:`\ell_0 + \Delta\,\mathrm{kl}^{-1}((\hat R - \ell_0)/\Delta, \varepsilon)`, which is at most
      :math:`\hat R + \Delta\sqrt{\varepsilon/2}`, bounds what is expected on a new document. A row is a document, an independent draw; what
      counts is the mean over its tokens, however many they are.
    - ``unit="token"``: :math:`\hat R + \Delta\sqrt{\varepsilon/2}` bounds the mean, over the tokens that are predicted, of
      :math:`\mathrm E[-\log_2\tilde p(x_t) \mid \text{all tokens before}]`: each drawn anew, its context as it is in these rows. That says
      nothing of other contexts, and in return asks for no independent rows: one long text will do. A token that earlier rows hold already
      is not drawn anew, so rows must not overlap.

    Hoeffding's inequality, or for tokens his lemma for each given those before it (Azuma's), is united over all messages, weighed by
    :math:`2^{-b}`; b counts the choice of α too. The sources' messages need their length in front, by some 2 log₂ b more bits; these end by
    themselves. The sources take the square root for documents as well, and may let α depend on the context.

    Args:
        problem: Logits (n, k, token) with tokens (n, token), as of `Problem.from_hf`, or (n, k) with classes (n,), at trained parameters;
            its loss is cross_entropy, and targets of −100 are not predicted. Of a model that returns (n, token, k), give
            ``read=lambda outputs: outputs.transpose(1, 2)``.
        unit: What n counts, and what is bounded: see above.
        coding: ``"full"`` codes the selected parameters, ``"difference"`` their change since ``init``.
        levels: Odd numbers that may be chosen from; fix them before looking.
        smoothing: Values of α in (0, 1) that may be chosen from; fix them before looking.
        init: Where training began, known to the receiver: its seed must not depend on the rows.
        delta: Probability with which the bound may fail.
        test: A problem on unseen rows; the bound that they give of the same coded and smoothed network is then beside this one.

    Raises:
        Inapplicable: other outputs, targets or losses, a row without a predicted token, or BatchNorm, whose running statistics would have
            to be sent as well.
        ValueError: the loss is not finite, or an argument out of its range.

    Example:
        >>> start = torch.randint(4, (2000, 1), generator=torch.Generator().manual_seed(0))
        >>> text = (start + torch.arange(9)) % 4  # each token follows from the one before
        >>> table = torch.nn.Embedding.from_pretrained(12.0 * torch.eye(4).roll(1, 1), freeze=False)
        >>> read = lambda outputs: outputs.transpose(1, 2)
        >>> problem = Problem(table, torch.nn.functional.cross_entropy, (text[:, :-1], text[:, 1:]), read=read)
        >>> bound = occam_likelihood(problem)
        >>> round(bound.terms["empirical"], 3), round(bound.value, 3), bound.terms["uniform guess"]
        (0.011, 0.147, 2.0)

    Source: Lotfi et al. 2024, arXiv:2312.17173 (prediction smoothing, documents) and arXiv:2407.18158 (tokens); Hoeffding 1963,
    doi:10.1080/01621459.1963.10500830, Theorem 1.
    """
    check(coding, problem, levels, init, delta)
    if unit not in QUANTITY:
        raise ValueError(f"unit must be 'document' or 'token', got {unit!r}.")
    if not smoothing or not all(0 < alpha < 1 for alpha in smoothing):
        raise ValueError(f"smoothing must name at least one number, all in (0, 1), got {tuple(smoothing)}.")
    reason = None if test is None else next((reason for refuses in REFUSES if (reason := refuses(test)) is not None), None)
    if reason is not None:
        raise Inapplicable(f"occam_likelihood does not apply to the test rows: {reason}")
    with torch.no_grad():
        problem.loss()
    bound, coded = _best(problem, unit, smoothing, init, levels, delta, describe, _means, kl_inverse)
    return bound if test is None else replace(bound, beside=_beside(bound, test.at(coded), unit, delta))
