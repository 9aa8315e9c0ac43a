"""Linear models refitted on many weightings of one data set at once: ridge in closed form, logistic regression by Newton's method."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

WORKING = 1 << 24
"""Numbers that a step may hold at a time; members are fitted in chunks that stay below it."""

DENSE = 200
"""Coefficients of all classes together up to which a softmax model's Newton equations are factored; more are solved by products."""

GAIN = 1e-14
"""Relative decrease of the objective below which a Newton step is the last: weak penalties make steps that rounding does not let shrink."""


@dataclass(frozen=True)
class LinearFits:
    """P linear models: outputs are ``x @ weights + intercept``.

    Attributes:
        weights: (P, d, k).
        intercept: (P, k); zero where none was fitted, and infinite where a class has no row.
        steps: Newton steps of the slowest member; 1 for ridge.
    """

    weights: Tensor
    intercept: Tensor
    steps: int

    def outputs(self, x: Tensor) -> Tensor:
        """Predictions or logits (P, m, k) at rows (m, d); k is 1 for a logistic model of two classes, the logit of class 1."""
        return x @ self.weights + self.intercept[:, None, :]

    def classes(self, x: Tensor) -> Tensor:
        """Class (P, m) of each row of ``x`` (m, d): the largest output, the lowest class among equals; of one output, whether it is > 0."""
        outputs = self.outputs(x)
        return (outputs[..., 0] > 0).long() if outputs.shape[-1] == 1 else outputs.argmax(-1)


def _check(x: Tensor, y: Tensor, row_weights: Tensor, l2: float) -> None:
    if x.ndim != 2 or not x.is_floating_point() or len(x) == 0:
        raise ValueError(f"x must be a floating-point matrix (n, d) with a row, got {x.dtype} of shape {tuple(x.shape)}.")
    if len(y) != len(x):
        raise ValueError(f"y must have one entry for each of the {len(x)} rows of x, got {len(y)}.")
    if row_weights.ndim != 2 or row_weights.shape[1] != len(x) or len(row_weights) == 0:
        raise ValueError(f"row_weights must have shape (P, {len(x)}), P ≥ 1, one weight for each row of x, got {tuple(row_weights.shape)}.")
    if not (row_weights.isfinite().all() and (row_weights >= 0).all()):
        raise ValueError("row_weights must be finite and not negative.")
    if not x.isfinite().all():
        raise ValueError("x must be finite.")
    if not (math.isfinite(l2) and l2 >= 0):
        raise ValueError(f"l2 must be finite and at least 0, got {l2}.")
    empty = (row_weights.sum(1) == 0).nonzero()
    if len(empty):
        raise ValueError(f"row_weights of member {int(empty[0])} sum to zero: there is nothing to fit. Give such members a value yourself.")


class _Moments:
    """Sums Σ cᵢ xᵢxᵢᵀ for many vectors c, as one matrix product with the rows' outer products where these fit into memory."""

    def __init__(self, x: Tensor):
        self.x, (n, d) = x, x.shape
        self.outer = (x[:, :, None] * x[:, None, :]).reshape(n, d * d) if n * d * d <= WORKING else None

    def __call__(self, coefficients: Tensor) -> Tensor:
        """(P, d, d) from (P, n)."""
        n, d = self.x.shape
        if self.outer is not None:
            return (coefficients @ self.outer).view(-1, d, d)
        chunk = max(1, WORKING // (n * d))
        return torch.cat([(self.x.T * part[:, None, :]) @ self.x for part in coefficients.split(chunk)])


def _cholesky(matrices: Tensor, advice: str, rounding: float = 0.0) -> Tensor:
    """Cholesky factors; batched LU is avoided everywhere, for it is wrong in some versions of torch at sizes from 150.

    A pivot over its diagonal entry is the share of an input that those before it do not explain, whatever its unit; one of ``rounding`` or
    less is none, positive as rounding may leave it.
    """
    factors, info = torch.linalg.cholesky_ex(matrices)
    shares = factors.diagonal(dim1=-2, dim2=-1).square() / matrices.diagonal(dim1=-2, dim2=-1)
    singular = (info > 0) | (shares <= rounding).any(-1)
    if bool(singular.any()):
        raise ValueError(f"the normal equations of member {int(singular.nonzero()[0])} are singular: {advice}")
    return factors


def _within_span(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows (n, n) in a basis (d, n) of their span, where there are more inputs than rows: penalized weights lie in it, with their norm."""
    if x.shape[1] <= len(x):
        return x, None
    basis, coordinates = torch.linalg.qr(x.T)
    return coordinates.T.contiguous(), basis


def _from_span(weights: Tensor, basis: Tensor | None) -> Tensor:
    return weights if basis is None else basis @ weights


def ridge(x: Tensor, y: Tensor, row_weights: Tensor, *, l2: float, intercept: bool = True) -> LinearFits:
    r"""Least squares with a penalty, one fit for each row of weights.

    .. math:: \min_{W,b} \sum_i c_i \|x_i^\top W + b - y_i\|^2 + l_2 \|W\|^2

    The intercept is not penalized. Weights of 0 and 1 fit subsets, those of a multinomial draw fit bootstrap samples. The cost is a product
    of (P, n) with (n, d²) and P Cholesky factorizations of order d; of order n, in the span of the rows, where d > n and l2 > 0.

    Args:
        x: Rows (n, d).
        y: Targets (n,) or (n, k).
        row_weights: c, (P, n), not negative, with a positive entry in each member.
        l2: At least 0; 0 needs members whose rows span the inputs.
        intercept: Whether b is fitted.

    Raises:
        ValueError: wrong shapes, a member of weight zero, numbers that are not finite, or normal equations that are singular, without a
            penalty also those that are so but for rounding.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
        >>> fits = ridge(x, 3 * x[:, 0] + 1, torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), l2=0.0)
        >>> fits.outputs(x).round(decimals=6)[:, :, 0].tolist()
        [[1.0, 4.0, 7.0], [1.0, 4.0, 7.0]]

    Source: Hoerl and Kennard 1970, doi:10.1080/00401706.1970.10488634, Section 2.
    """
    _check(x, y, row_weights, l2)
    targets = (y[:, None] if y.ndim == 1 else y).to(x)
    if targets.ndim != 2 or not targets.isfinite().all():
        raise ValueError(f"y must be finite, (n,) or (n, k), got shape {tuple(y.shape)}.")
    x, basis = _within_span(x) if l2 > 0 else (x, None)
    d, k = x.shape[1], targets.shape[1]
    center = x.mean(0) if intercept else torch.zeros_like(x[0])  # the same for all members, for the sake of rounding only
    design = torch.cat([x - center, torch.ones_like(x[:, :1])], 1) if intercept else x
    penalty = torch.full((design.shape[1],), float(l2), dtype=x.dtype, device=x.device)
    penalty[d:] = 0.0
    moments = _Moments(design)
    products = (design[:, :, None] * targets[:, None, :]).reshape(len(x), -1)
    # of sums over n rows and d pivots; in dependent inputs, of 10 to 20000 rows, the largest share seen is below a quarter of it
    rounding = 4 * (len(x) ** 0.5 + design.shape[1]) * torch.finfo(x.dtype).eps if l2 == 0 else 0.0
    found = []
    for part in row_weights.to(x).split(max(1, WORKING // (len(x) + design.shape[1] ** 2))):
        factors = _cholesky(moments(part) + penalty.diag(), "raise l2, or give each member rows that span the inputs.", rounding)
        found.append(torch.cholesky_solve((part @ products).view(len(part), -1, k), factors))
    solution = torch.cat(found)
    weights = solution[:, :d]
    shift = solution[:, d] - center @ weights if intercept else torch.zeros_like(solution[:, 0])
    return LinearFits(_from_span(weights, basis), shift, 1)


def logistic(
    x: Tensor,
    y: Tensor,
    row_weights: Tensor,
    *,
    l2: float,
    intercept: bool = True,
    classes: int | None = None,
    tol: float = 1e-5,
    max_steps: int = 100,
) -> LinearFits:
    r"""Logistic regression, one fit for each row of weights.

    .. math:: \min_{W,b} \sum_i c_i\,\ell(x_i^\top W + b, y_i) + \tfrac{l_2}{2} \|W\|^2

    Two classes have one logit, more have one each (softmax), every class penalized alike. Members are fitted together by Newton's method,
    each with its own step length, halved until the objective falls enough; members that are done leave the batch. With more than 200
    coefficients the Newton equations of a softmax are solved by preconditioned conjugate gradients, and where there are more inputs than
    rows all is done in the span of the rows, which holds the optimum. It is unique, and that of scikit-learn's
    ``LogisticRegression(C=1 / l2)``.

    A class without a row of positive weight in a member is never predicted by it: its logit is −∞ there (of two classes, the one logit is
    ±∞), so a member with rows of a single class predicts that class. Without an intercept two classes are fitted as they are.

    Args:
        x: Rows (n, d).
        y: Classes (n,), integers from 0.
        row_weights: c, (P, n), not negative, with a positive entry in each member.
        l2: Positive, for separable rows have no optimum without a penalty.
        intercept: Whether b, which is not penalized, is fitted.
        classes: Their number; by default that of ``y``.
        tol: Ends a member where its Newton step is at most ``tol`` relative to its weights, or 1; what is left after that step is
            of order tol², since Newton's method squares the error.
        max_steps: Newton steps allowed.

    Raises:
        ValueError: wrong shapes, a single class among all rows, labels that are no classes, a member of weight zero, or ``l2``
            that is not positive.
        ArithmeticError: a member has not converged after ``max_steps``.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0], [2.0]], dtype=torch.float64)
        >>> fits = logistic(x, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), l2=1.0)
        >>> fits.weights[:, 0, 0].round(decimals=4).tolist(), fits.classes(x).tolist()
        ([0.6748, 0.0], [[0, 1, 1], [1, 1, 1]])

    Source: Green 1984, doi:10.1111/j.2517-6161.1984.tb01288.x, Section 2 (Newton's method as iteratively reweighted least squares).
    """
    _check(x, y, row_weights, l2)
    if not l2 > 0:
        raise ValueError("l2 must be positive: rows that a plane separates have no optimum without a penalty.")
    if y.ndim != 1 or y.is_floating_point() or y.is_complex() or int(y.min()) < 0:
        raise ValueError(f"y must hold integer classes from 0, (n,), got {y.dtype} of shape {tuple(y.shape)}.")
    k = int(y.max()) + 1 if classes is None else classes
    if k < 2 or int(y.max()) >= k or bool((y == y[0]).all()):
        raise ValueError(f"y must hold at least two of the {k} classes 0 ... {k - 1}, got {y.unique().tolist()}.")
    x, basis = _within_span(x)
    problem = _Logistic(x, y.long(), k, float(l2), intercept)
    fits = [problem.fit(part, tol, max_steps) for part in row_weights.to(x).split(problem.together())]
    weights = _from_span(torch.cat([f.weights for f in fits]), basis)
    return LinearFits(weights, torch.cat([f.intercept for f in fits]), max(f.steps for f in fits))


class _Logistic:
    """The objective, gradient and Hessian of many weightings, with the intercept as the last column of the design."""

    def __init__(self, x: Tensor, y: Tensor, k: int, l2: float, intercept: bool):
        self.d, self.k, self.l2, self.has_intercept = x.shape[1], k, l2, intercept
        self.outputs = 1 if k == 2 else k
        self.design = torch.cat([x, torch.ones_like(x[:, :1])], 1) if intercept else x
        self.columns = self.design.shape[1]
        self.moments = _Moments(self.design)
        self.one_hot = torch.nn.functional.one_hot(y, k).to(x)  # (n, k)
        self.targets = self.one_hot[:, 1:] if k == 2 else self.one_hot
        self.penalty = torch.full((self.columns, 1), l2, dtype=x.dtype, device=x.device)
        self.penalty[self.d :] = 0.0
        self.by_products = k > 2 and self.columns * self.outputs > DENSE

    def together(self) -> int:
        """Members to be fitted at a time."""
        if not self.by_products:
            return self._factored_together()
        rows, size = len(self.design) * self.outputs, self.columns * self.outputs
        return max(1, WORKING // (12 * (rows + size) + 2 * self.columns**2))

    def _factored_together(self) -> int:
        return max(1, WORKING // (len(self.design) * self.outputs**2 + 2 * (self.columns * self.outputs) ** 2))

    def fit(self, c: Tensor, tol: float, max_steps: int) -> LinearFits:
        absent = c @ self.one_hot == 0  # (P, k)
        floor = torch.where(absent, -torch.inf, 0.0).to(c) if self.k > 2 else None
        alone = absent.any(1) if self.k == 2 and self.has_intercept else torch.zeros(len(c), dtype=torch.bool, device=c.device)
        theta = c.new_zeros(len(c), self.columns, self.outputs)
        if self.has_intercept:  # from the classes' frequencies, where the Hessian is well conditioned
            share = (c @ self.one_hot).clamp(min=1e-12 * float(c.sum(1).max())).log()
            theta[:, -1] = share[:, 1:] - share[:, :1] if self.k == 2 else torch.where(absent, 0.0, share)
        live, steps = (~alone).nonzero()[:, 0], 0
        theta[alone] = 0.0
        while len(live):
            if steps == max_steps:
                raise ArithmeticError(f"a member has not converged in {max_steps} Newton steps: raise l2 or max_steps.")
            steps += 1
            mine, mask = c[live], None if floor is None else floor[live]
            theta[live], step, gain = self._step(theta[live], mine, mask)
            size = theta[live].abs().amax((1, 2)).clamp(min=1.0)
            live = live[(step > tol * size) & (gain > GAIN)]
        weights, shift = theta[:, : self.d], theta[:, -1].clone() if self.has_intercept else torch.zeros_like(theta[:, 0])
        if self.k == 2:
            shift[alone, 0] = torch.where(absent[alone, 1], -torch.inf, torch.inf).to(c)
        else:
            shift = shift.masked_fill(absent, -torch.inf)
        return LinearFits(weights, shift, steps)

    def _logits(self, theta: Tensor, floor: Tensor | None) -> Tensor:
        z = self.design @ theta
        return z if floor is None else z + floor[:, None, :]

    def _objective(self, theta: Tensor, z: Tensor, c: Tensor) -> Tensor:
        """(P,), of logits z (P, n, outputs)."""
        if self.k == 2:
            excess = (1 - 2 * self.targets[:, 0]) * z[..., 0]
        else:  # of the other classes together over the right one
            excess = torch.logsumexp(z.masked_fill(self.targets > 0, -torch.inf), 2) - torch.where(self.targets > 0, z, 0.0).sum(2)
            excess = torch.where(c > 0, excess, 0.0)  # a row of an absent class has no weight, and an infinite loss
        losses = torch.nn.functional.softplus(excess, threshold=30.0)  # exact to the last digits also where nearly all is fitted
        return (c * losses).sum(1) + (self.penalty * theta.square()).sum((1, 2)) / 2

    def _step(self, theta: Tensor, c: Tensor, floor: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters after one damped Newton step, the full step's largest entry and what it promised, relative to the objective; (P,)."""
        z = self._logits(theta, floor)
        p = torch.sigmoid(z) if self.k == 2 else torch.softmax(z, 2)
        gradient = self.design.T @ (c[..., None] * (p - self.targets)) + self.penalty * theta  # (P, columns, outputs)
        full = self._by_products(p, c, gradient, floor) if self.by_products else None
        if full is None:
            parts = torch.arange(len(c), device=c.device).split(self._factored_together())
            full = torch.cat([self._by_factors(p[i], c[i], gradient[i], None if floor is None else floor[i]) for i in parts])
        slope = (gradient * full).sum((1, 2))  # the squared Newton decrement, not negative
        start, length, rounding = self._objective(theta, z, c), torch.ones_like(slope), 10 * torch.finfo(c.dtype).eps
        new = theta
        for _ in range(50):
            new = theta - length[:, None, None] * full
            value = self._objective(new, self._logits(new, floor), c)
            short = ~(value <= start - 1e-4 * length * slope + rounding * start.abs())
            if not bool(short.any()):
                break
            length = torch.where(short, length / 2, length)
        return new, full.abs().amax((1, 2)), slope / start.abs().clamp(min=1e-300)

    def _by_factors(self, p: Tensor, c: Tensor, gradient: Tensor, floor: Tensor | None) -> Tensor:
        """The full Newton step from Cholesky factors of the Hessian, (P, columns, outputs)."""
        if self.k == 2:
            curvature = (c * (p * (1 - p))[..., 0])[:, None]  # (P, 1, n)
        else:
            q = (c[..., None] * p).mT  # (P, k, n)
            curvature = -q[:, :, None] * p.mT[:, None]  # (P, k, k, n), of which the diagonal is completed
            curvature.diagonal(dim1=1, dim2=2).add_(q.mT)
        shape, m = (len(c), self.outputs, self.outputs, self.columns, self.columns), self.outputs * self.columns
        hessian = self.moments(curvature.reshape(-1, c.shape[1])).view(shape).transpose(2, 3).reshape(len(c), m, m)
        hessian.diagonal(dim1=1, dim2=2).add_(self.penalty[:, 0].repeat(self.outputs))
        if self.has_intercept and self.k > 2:
            # the softmax does not feel the same shift of all intercepts, nor that of an absent class: no curvature and no gradient there,
            # so that any curvature keeps the step away from it
            block = hessian[:, self.d :: self.columns, self.d :: self.columns]
            present = (floor == 0).to(c) if floor is not None else torch.ones_like(block[..., 0])
            shift = present[:, :, None] * present[:, None, :] + (1 - present).diag_embed()
            block += block.diagonal(dim1=1, dim2=2).amax(1)[:, None, None] * shift
        # rounding may leave a curvature of zero or less where all rows are fitted; this changes the way there and not the optimum
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        diagonal.mul_(1 + 10 * torch.finfo(c.dtype).eps).add_(torch.finfo(c.dtype).tiny)
        factors = _cholesky(hessian, "raise l2, or scale the inputs.")
        flat = gradient.mT.reshape(len(c), m, 1)
        return torch.cholesky_solve(flat, factors).view(len(c), self.outputs, self.columns).mT

    def _by_products(self, p: Tensor, c: Tensor, gradient: Tensor, floor: Tensor | None, tol: float = 1e-4) -> Tensor | None:
        """The same of a softmax by conjugate gradients, to a residual of ``tol`` relative to the gradient; None where these fail.

        The Hessian of one class alone, at the mean curvature of the classes, preconditions all of them alike: that keeps the intercepts
        from a common shift, which the softmax does not feel, and absent classes, whose gradient is zero, where they are. What is left by
        the last step is ``tol`` times that step.
        """
        P, shape = len(c), (self.columns, len(c), self.outputs)
        p, weight = p.transpose(0, 1).contiguous(), c.T[:, :, None]  # (n, P, k): one matrix product serves all members
        mean = self.moments((weight * p * (1 - p)).mean(2).T.contiguous()) + self.penalty[:, 0].diag()
        mean.diagonal(dim1=1, dim2=2).mul_(1 + 10 * torch.finfo(c.dtype).eps).add_(torch.finfo(c.dtype).tiny)
        factors, info = torch.linalg.cholesky_ex(mean)
        if bool(info.any()):
            return None

        def product(v: Tensor) -> Tensor:
            z = (self.design @ v.reshape(self.columns, -1)).view(-1, P, self.outputs)
            s = weight * p * (z - (p * z).sum(2, keepdim=True))
            return (self.design.T @ s.reshape(len(s), -1)).view(shape) + self.penalty[:, :, None] * v

        def precondition(r: Tensor) -> Tensor:
            return torch.cholesky_solve(r.transpose(0, 1), factors).transpose(0, 1)

        residual = gradient.transpose(0, 1).contiguous()
        solution, direction = torch.zeros_like(residual), precondition(residual)
        energy = (residual * direction).sum((0, 2))  # (P,)
        goal = tol * residual.square().sum((0, 2)).sqrt()
        for _ in range(300):  # more would cost what factors do
            live = residual.square().sum((0, 2)).sqrt() > goal
            if not bool(live.any()):
                if self.has_intercept:  # rounding of the sum of the classes' gradients, over a small curvature, is a common shift after all
                    present = (floor == 0).to(c) if floor is not None else torch.ones_like(solution[0])
                    mean_shift = (present * solution[self.d]).sum(1, keepdim=True) / present.sum(1, keepdim=True)
                    solution[self.d] -= present * mean_shift
                return solution.transpose(0, 1) if bool(solution.isfinite().all()) else None
            curved = product(direction)
            step = torch.where(live, energy / (direction * curved).sum((0, 2)).clamp(min=torch.finfo(c.dtype).tiny), 0.0)[:, None]
            solution, residual = solution + step * direction, residual - step * curved
            refined = precondition(residual)
            before, energy = energy, (residual * refined).sum((0, 2))
            direction = refined + (energy / before.clamp(min=torch.finfo(c.dtype).tiny))[:, None] * direction
        return None
