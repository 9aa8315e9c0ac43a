"""Extreme eigenpairs of a symmetric operator from products with vectors: Lanczos with full reorthogonalization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from theorylab.core.operator import Operator, check_operator

Which = Literal["LM", "LA", "SA"]
MEMORY = 2**32
"""Bytes that a basis may take by default."""
SPARE = 6
"""Vectors beyond the wanted ones that a restarted basis has at least."""


@dataclass(frozen=True)
class Tridiagonal:
    """The operator on a Krylov space: Qᵀ A Q = T, with ``basis`` Q (p, m).

    ``alpha`` (m,) is the diagonal of T and ``beta`` (m,) its off-diagonal, both float64 on the CPU; ``beta[-1]`` couples T to what lies
    outside.
    """

    alpha: Tensor
    beta: Tensor
    basis: Tensor

    def matrix(self) -> Tensor:
        """T itself, (m, m)."""
        off = self.beta[:-1]
        return torch.diag(self.alpha) + torch.diag(off, 1) + torch.diag(off, -1)


@dataclass(frozen=True)
class Eigs:
    """Eigenpairs with their error bounds.

    Some eigenvalue of the operator lies within ``residuals[i]`` of ``values[i]``. ``vectors`` (p, k) are orthonormal columns, and
    ``converged`` says whether every residual reached the tolerance.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool
    n_matvecs: int


def check_symmetric(A: Operator) -> None:
    """Refuse an operator that is not declared symmetric.

    Raises:
        TypeError: it is no operator.
        ValueError: it is rectangular or not symmetric.
    """
    check_operator(A)
    if not A.symmetric:
        raise ValueError(f"{A.name} of shape {A.shape} must be a symmetric operator (symmetric=True).")


class Krylov:
    """A growing orthonormal basis of a Krylov space, and the operator's tridiagonal matrix in it.

    Each `step` costs one product. Where the space turns out invariant, a new random direction continues it, with ``beta`` exactly 0 there.
    After `restart` the basis begins with Ritz vectors, on which the matrix is diagonal, and all of them are coupled to the vector that
    follows.

    Args:
        A: Symmetric map on R^p.
        start: Vector (p,), not zero.
        generator: Of new directions.
        reorthogonalize: Against the whole basis at every step.
        most: Vectors that the basis may hold, the one to be multiplied next left out.
    """

    def __init__(
        self, A: Operator, start: Tensor, generator: torch.Generator, *, reorthogonalize: bool = True, most: int | None = None
    ) -> None:
        self.A, self.generator, self.reorthogonalize = A, generator, reorthogonalize
        self.most = A.shape[0] if most is None else most
        self.products = 0
        self.coupling = torch.zeros(0, dtype=torch.float64, device="cpu")  # of the Ritz vectors kept by a restart to the vector after them
        self.alpha: list[float] = []
        self.beta: list[float] = []
        self.blocks = [0]  # where each invariant space begins
        self.scale = 0.0  # largest entry of T, a lower estimate of ‖A‖
        # rows are the basis vectors: products with Q and Qᵀ then read it once
        self._basis = start.new_empty(min(16, self.most + 1), A.shape[1])
        self._basis[0] = start / length(start)

    def __len__(self) -> int:
        return len(self.alpha)

    def step(self) -> None:
        """Extend the basis by one product.

        Raises:
            ValueError: a product that is not finite, or one that shows the operator to be asymmetric.
        """
        j = len(self)
        q = self._basis[j]
        w = self.A @ q
        size = length(w)
        if not math.isfinite(size):
            raise ValueError(f"{self.A.name}: a product with a unit vector is not finite; the model or the data overflow.")
        Q = self._basis[: j + 1]
        h = products(Q, w) if self.reorthogonalize else torch.stack([w.new_zeros(()).double(), *products(Q[-2:], w)])[-(j + 1) :]
        if self.reorthogonalize:
            self._check(h, size)
            w = w - h.to(w) @ Q
            w = w - products(Q, w).to(w) @ Q  # twice is enough (Giraud et al. 2005)
        else:
            w = w - h[-1].to(w) * q - (self.beta[-1] * self._basis[j - 1] if j else 0.0)
        self.products += 1
        self.alpha.append(float(h[-1]))
        beta = length(w)
        self.scale = max(self.scale, abs(self.alpha[-1]), beta)
        if j + 1 == self.A.shape[0]:
            self.beta.append(0.0)
            return
        if j + 2 > len(self._basis):
            more = min(len(self._basis), self.most + 1 - len(self._basis))
            self._basis = torch.cat([self._basis, self._basis.new_empty(more, self.A.shape[1])])
        if beta <= 100 * torch.finfo(w.dtype).eps * max(self.scale, size):
            beta = 0.0
            self.blocks.append(j + 1)
            w = random_vector(self.A, self.generator)
            for _ in range(2):
                w = w / length(w)
                w = w - products(Q, w).to(w) @ Q
        self.beta.append(beta)
        self._basis[j + 1] = w / (beta or length(w))

    def _check(self, h: Tensor, size: float) -> None:
        # For a symmetric operator Qᵀ A q_j is (0, …, 0, β_{j−1}, α_j): what lies elsewhere is asymmetry, found without another product.
        surplus = h[:-1].clone()
        if len(self.coupling) == len(surplus):
            surplus -= self.coupling.to(surplus)
        else:
            surplus[-1:] -= self.beta[-1] if self.beta else 0.0
        gap = length(surplus)
        if gap > torch.finfo(self._basis.dtype).eps ** 0.5 * max(size, self.scale):
            raise ValueError(
                f"{self.A.name} must be symmetric: the products uᵀAv and vᵀAu of two test vectors differ by {gap:.2g} at a norm of about "
                f"{max(size, self.scale):.2g}."
            )

    def restart(self, values: Tensor, coefficients: Tensor) -> None:
        """Keep some Ritz vectors, and the vector that was to be multiplied next, and forget the rest of the basis.

        Args:
            values: Ritz values, (r,), r at least 1 and less than the basis holds.
            coefficients: Their vectors in the basis, (m, r): eigenvectors of `matrix`.
        """
        m, r = coefficients.shape
        self.coupling = self.beta[-1] * coefficients[-1].clone()
        for block in self._basis[:m].split(SUMMED, dim=1):  # in place, a few columns at a time
            block[:r] = coefficients.T.to(block) @ block
        self._basis[r] = self._basis[m]
        self.alpha, self.beta, self.blocks = values.tolist(), [0.0] * r, [0]

    def matrix(self) -> Tensor:
        """The operator in the basis, (m, m): tridiagonal, but for the Ritz vectors that a restart kept."""
        T, r = self.tridiagonal().matrix(), len(self.coupling)
        if 0 < r < len(T):
            T[r, :r] = T[:r, r] = self.coupling
        return T

    def tridiagonal(self) -> Tridiagonal:
        """What has been built so far, without a restart."""
        m = len(self)
        alpha, beta = (torch.tensor(c, dtype=torch.float64, device="cpu") for c in (self.alpha, self.beta))
        return Tridiagonal(alpha, beta, self._basis[:m].T)

    @property
    def rounding(self) -> float:
        """What rounding may add to a residual: ε‖A‖ for each of the products that made the basis."""
        return float(torch.finfo(self._basis.dtype).eps) * self.scale * max(len(self), self.products)


SUMMED = 2**16  # entries that are summed in the vectors' own precision


def products(Q: Tensor, w: Tensor) -> Tensor:
    """Q w in float64, (m,), for the rows of Q (m, p).

    Single precision summed over a hundred million entries would be wrong by a thousandth, which looks like asymmetry.
    """
    if len(w) <= SUMMED:
        return (Q @ w).double()
    parts = zip(Q.split(SUMMED, dim=1), w.split(SUMMED), strict=True)
    return torch.stack([(block @ piece).double() for block, piece in parts]).sum(0)


def length(w: Tensor) -> float:
    """The norm of a vector, summed in float64."""
    return float(torch.linalg.vector_norm(w, dtype=torch.float64))


def random_vector(A: Operator, generator: torch.Generator) -> Tensor:
    """A Gaussian vector that ``A`` can multiply; drawn on the CPU in float64, so the same on every device and in every precision."""
    return torch.randn(A.shape[1], generator=generator, dtype=torch.float64, device="cpu").to(A.device, A.dtype)


def lanczos(A: Operator, start: Tensor, steps: int, *, seed: int = 0, reorthogonalize: bool = True) -> Tridiagonal:
    r"""``steps`` of Lanczos from ``start``.

    The eigenvalues θ_j of T and the squared first entries w_j of its eigenvectors are a Gauss quadrature:
    :math:`\sum_j w_j \theta_j^m = v^\top A^m v` for the unit vector v along ``start`` and all m ≤ 2·steps − 1.

    Args:
        A: Symmetric map on R^p.
        start: Vector (p,), not zero.
        steps: Products, at most p. Fewer come back where the Krylov space is invariant sooner.
        seed: Of the random directions that continue an invariant space.
        reorthogonalize: Off is the textbook's three-term recurrence, which finds ghost copies of eigenvalues: for demonstrations.

    Raises:
        ValueError: an asymmetric operator, a start of zero, or ``steps`` outside 1 … p.

    Example:
        >>> A = Operator((3, 3), lambda v: torch.tensor([1.0, 2.0, 4.0]).double() * v, symmetric=True)
        >>> T = lanczos(A, torch.ones(3).double(), 3)
        >>> [round(v, 6) for v in torch.linalg.eigvalsh(T.matrix()).tolist()]
        [1.0, 2.0, 4.0]

    Source: Golub and Meurant 2010, "Matrices, Moments and Quadrature with Applications", Chapter 6 (Gauss quadrature).
    """
    check_symmetric(A)
    if not 1 <= steps <= A.shape[0]:
        raise ValueError(f"steps must lie in 1 … {A.shape[0]}, the operator's size, got {steps}.")
    if start.shape != (A.shape[0],) or not float(start.norm()) > 0:
        raise ValueError(f"start must be a vector ({A.shape[0]},) other than zero, got shape {tuple(start.shape)}.")
    krylov = Krylov(A, start, torch.Generator().manual_seed(seed), reorthogonalize=reorthogonalize)
    while len(krylov) < steps and len(krylov.blocks) == 1:
        krylov.step()
    return krylov.tridiagonal()


def _order(values: Tensor, which: Which) -> Tensor:
    key = {"LM": values.abs(), "LA": values, "SA": -values}[which]
    return key.argsort(descending=True)


def _pause(m: int, excess: float, earlier: tuple[int, float] | None) -> int:
    """Products until convergence is worth testing again: the test costs O(m³), but a product too many may cost more.

    Half as many as the decline since the earlier test promises, where there was one; at least one, and at most a twelfth more than before
    or, on such a promise, a quarter.

    Args:
        m: Products so far.
        excess: The largest residual over what is allowed.
        earlier: The same two at the test before, if there was one.
    """
    if earlier is None or not 0 < excess < earlier[1] < math.inf:
        return max(1, m // 12)
    rate = math.log(earlier[1] / excess) / (m - earlier[0])
    return max(1, min(int(0.5 * math.log(max(excess, 1.0)) / rate), m // 4))


def eigs(
    A: Operator,
    k: int = 10,
    which: Which = "LM",
    tol: float = 1e-4,
    max_matvecs: int | None = None,
    seed: int = 0,
    start: Tensor | None = None,
    memory: int = MEMORY,
) -> Eigs:
    r"""The ``k`` extreme eigenpairs of a symmetric operator, each with a bound of its error.

    For a pair (θ, q) of the Krylov space the residual ‖Aq − θq‖ is the last entry of T's eigenvector times the last β, and some eigenvalue
    lies within it of θ. The reported residual also holds what rounding may have added. Iteration stops when all k residuals are at most
    ``tol·|θ|`` (or ``tol·ε^{1/2}‖A‖`` for eigenvalues near zero).

    Where the space turns out invariant, another random direction is explored until it shows nothing beyond the k pairs, so the copies
    of a multiple eigenvalue are found. Without invariance, exact copies amid many other eigenvalues may be counted once: a Krylov space
    from one vector sees one direction of each eigenspace.

    Where the basis would exceed ``memory``, it is restarted from the Ritz vectors of the wanted pairs and some more (thick restart), which
    costs more products and no accuracy.

    Args:
        A: Symmetric map on R^p.
        k: How many pairs, 1 … p.
        which: "LM" largest magnitude, "LA" largest, "SA" smallest; the values come in that order.
        tol: Relative residual at which to stop.
        max_matvecs: Products allowed; default: 300 + 4k, or p where that is less and the whole basis fits.
        seed: Of the starting vector.
        start: A guess of the wanted vector (p,), or several (p, j), e.g. those of a nearby operator. A tenth of a random vector is
            added, so that a pair that has meanwhile overtaken the guess is still seen.
        memory: Bytes that the basis may take, one vector a product; at least k + 6 vectors are kept.

    Raises:
        ValueError: an operator that is not symmetric (also if it only claims to be), k outside 1 … p, or a start of the wrong shape.

    Example:
        >>> A = Operator((4, 4), lambda v: torch.tensor([5.0, 5.0, 1.0, -9.0]).double() * v, symmetric=True)
        >>> found = eigs(A, k=2, which="LA")
        >>> [round(v, 6) for v in found.values.tolist()], found.converged
        ([5.0, 5.0], True)

    Source: Parlett 1998, "The Symmetric Eigenvalue Problem", Chapter 13; the residual bound is its Theorem 4.5.1. Restarts: Wu and Simon
    2000, doi:10.1137/S0895479898334605, Section 2 (thick-restart Lanczos).
    """
    check_symmetric(A)
    p = A.shape[0]
    if not 1 <= k <= p:
        raise ValueError(f"k must lie in 1 … {p}, the operator's size, got {k}.")
    if which not in ("LM", "LA", "SA"):
        raise ValueError(f'which must be "LM", "LA" or "SA", got {which!r}.')
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}.")
    most = min(p, max(k + SPARE, memory // (p * A.dtype.itemsize)))
    limit = 300 + 4 * k if max_matvecs is None else max_matvecs
    limit = min(limit, p) if most == p else limit  # a restarted basis forgets, and may take more products than there are dimensions
    if limit < k:
        raise ValueError(f"max_matvecs must be at least k = {k}, got {max_matvecs}.")
    generator = torch.Generator().manual_seed(seed)
    first = random_vector(A, generator)
    if start is not None:
        if start.shape[0] != p or start.ndim > 2:
            raise ValueError(f"start must have shape ({p},) or ({p}, j), got {tuple(start.shape)}.")
        guess = start.to(first).reshape(p, -1).sum(1)
        if float(guess.norm()) > 0:
            first = guess / guess.norm() + 0.1 * first / first.norm()

    krylov = Krylov(A, first, generator, most=most)
    values = residuals = order = coefficients = torch.empty(0, device="cpu")
    done = False
    m, earlier = min(limit, k + k // 2), None  # k pairs do not converge in hardly more products
    while True:
        while krylov.products < m and len(krylov) < most:
            krylov.step()
        T = krylov.matrix()
        values, coefficients = torch.linalg.eigh(T)
        ranked = _order(values, which)
        order = ranked[:k]
        residuals = krylov.beta[-1] * coefficients[-1].abs()
        allowed = tol * values[order].abs().clamp(min=torch.finfo(A.dtype).eps ** 0.5 * krylov.scale)
        small = residuals[order] <= allowed
        done = len(order) == k and bool(small.all()) and (len(krylov) == p or _nothing_beyond(T, krylov, k, which, tol))
        if done or krylov.products >= limit:
            break
        if len(krylov) == most:
            keep = ranked[: k + (most - k) // 2]
            krylov.restart(values[keep], coefficients[:, keep])
        if krylov.products >= m:
            excess = float((residuals[order] / allowed).max()) if krylov.scale else math.inf
            m, earlier = min(limit, m + _pause(m, excess, earlier)), (m, excess)
    basis = krylov.tridiagonal().basis
    vectors = basis @ coefficients[:, order].to(basis)
    bounds = (residuals[order] + krylov.rounding).to(vectors)
    return Eigs(values[order].to(vectors), vectors, bounds, done, krylov.products)


def _nothing_beyond(T: Tensor, krylov: Krylov, k: int, which: Which, tol: float) -> bool:
    """After an invariant space: whether the latest random direction holds no pair that belongs among the k."""
    begin = krylov.blocks[-1]
    if begin == 0:
        return True
    if begin == len(krylov) or begin < k:
        return False  # the new direction is still unexplored, or the exact pairs are too few
    known = torch.linalg.eigvalsh(T[:begin, :begin])
    kth = known[_order(known, which)[k - 1]]
    values, coefficients = torch.linalg.eigh(T[begin:, begin:])
    best = _order(values, which)[0]
    slack = tol * max(abs(float(kth)), torch.finfo(krylov.A.dtype).eps ** 0.5 * krylov.scale)
    if float(krylov.beta[-1] * coefficients[-1, best].abs()) > slack:
        return False
    key = {"LM": lambda v: abs(float(v)), "LA": float, "SA": lambda v: -float(v)}[which]
    return key(values[best]) <= key(kth) + slack
