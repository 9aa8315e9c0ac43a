r"""Cooperative games whose Shapley and Banzhaf values have closed forms.

A game of n players is a table of :math:`2^n` worths, (2^n,), in which bit i of the index says whether player i is in the coalition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from theorylab.core.ranges import chance, nonnegative, whole


def membership(n: int) -> np.ndarray:
    """Who is in each coalition, bool (2^n, n), in the order of a table.

    Raises:
        ValueError: ``n`` is no whole number of at least 0.

    Example:
        >>> membership(2).astype(int).tolist()
        [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    whole(0, n=n)
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1


def players(table: np.ndarray) -> int:
    """Number of players, n, of a table of 2^n worths.

    Raises:
        ValueError: its length is no power of two.
    """
    n = int(np.asarray(table).size).bit_length() - 1
    if np.ndim(table) != 1 or 2**n != len(table):
        raise ValueError(f"a game's table must have 2^n entries, got shape {np.shape(table)}.")
    return n


def from_dividends(dividends: np.ndarray) -> np.ndarray:
    r"""The game :math:`v(S) = \sum_{T\subseteq S} a_T`, a sum of unanimity games: every game is one, for a single :math:`a`.

    Args:
        dividends: a, Harsanyi's dividends or Möbius coefficients, (2^n,).

    Example:
        >>> from_dividends(np.array([0.0, 1.0, 2.0, 10.0])).tolist()  # a_1 = 1, a_2 = 2, together 10 more
        [0.0, 1.0, 2.0, 13.0]

    Source: Harsanyi 1963, doi:10.2307/2525487; Shapley 1953, Lemma 3 (unanimity games are a basis).
    """
    n = players(dividends)
    v = np.array(dividends, dtype=float)
    for i in range(n):
        halves = v.reshape(-1, 2, 2**i)
        halves[:, 1] += halves[:, 0]
    return v


def dividends_of(table: np.ndarray) -> np.ndarray:
    r"""Harsanyi's dividends :math:`a_T = \sum_{S\subseteq T} (-1)^{|T|-|S|} v(S)` of a table, (2^n,): the inverse of `from_dividends`.

    Example:
        >>> dividends_of(np.array([0.0, 1.0, 2.0, 13.0])).tolist()
        [0.0, 1.0, 2.0, 10.0]

    Source: Harsanyi 1963, doi:10.2307/2525487.
    """
    n = players(table)
    a = np.array(table, dtype=float)
    for i in range(n):
        halves = a.reshape(-1, 2, 2**i)
        halves[:, 1] -= halves[:, 0]
    return a


def fourier(table: np.ndarray) -> np.ndarray:
    r"""Walsh coefficients :math:`\hat v(T) = 2^{-n}\sum_S (-1)^{|S\cap T|} v(S)`, (2^n,).

    The Banzhaf value of player i is :math:`-2\hat v(\{i\})`.

    Example:
        >>> fourier(np.array([0.0, 1.0, 2.0, 13.0])).tolist()
        [4.0, -3.0, -3.5, 2.5]

    Source: O'Donnell 2014, doi:10.1017/CBO9781139814782, Theorem 1.1 and Proposition 2.19 (influences).
    """
    n = players(table)
    v = np.array(table, dtype=float)
    for i in range(n):
        halves = v.reshape(-1, 2, 2**i)
        halves[:] = np.stack([halves[:, 0] + halves[:, 1], halves[:, 0] - halves[:, 1]], 1)
    return v / 2**n


def shapley_of_dividends(dividends: np.ndarray) -> np.ndarray:
    r"""Shapley values :math:`\phi_i = \sum_{T\ni i} a_T/|T|`: the members of a coalition share its dividend evenly, (n,).

    Source: Harsanyi 1963, doi:10.2307/2525487.
    """
    inside = membership(players(dividends))
    return np.where(inside, dividends[:, None], 0.0).T @ (1 / np.maximum(inside.sum(1), 1))


def banzhaf_of_dividends(dividends: np.ndarray, p: float = 0.5) -> np.ndarray:
    r"""Banzhaf values :math:`\sum_{T\ni i} a_T\,p^{|T|-1}`, of coalitions that the others join with chance p, (n,).

    Raises:
        ValueError: ``p`` is no chance.

    Example:
        >>> banzhaf_of_dividends(np.array([0.0, 1.0, 2.0, 10.0])).tolist()
        [6.0, 7.0]

    Source: Hammer and Holzman 1992, Zeitschrift für Operations Research 36:3-21 (p = 1/2); Owen 1972, doi:10.1287/mnsc.18.5.64 (the
    multilinear extension).
    """
    chance(p=p)
    inside = membership(players(dividends))
    return np.where(inside, dividends[:, None], 0.0).T @ p ** np.maximum(inside.sum(1) - 1.0, 0)


def interaction_of_dividends(dividends: np.ndarray, coalition: Sequence[int], index: str = "sii", order: int = 2) -> float:
    r"""An interaction index of one coalition S from the dividends of its supersets T.

    ``"sii"`` is :math:`\sum_{T\supseteq S} a_T/(t-s+1)`, ``"banzhaf"`` :math:`\sum_T a_T\,2^{s-t}`, and ``"stii"``, the Shapley-Taylor
    index of an order, :math:`\sum_T a_T/\binom ts` where s is the order, and :math:`a_S` below it.

    Raises:
        ValueError: an unknown index, or a coalition in which a player does not exist or is named twice.

    Example:
        >>> interaction_of_dividends(np.array([0.0, 1.0, 2.0, 10.0]), [0, 1])
        10.0
        >>> interaction_of_dividends(np.array([0.0, 1.0, 2.0, 10.0]), [0, 1], "stii", order=2)
        10.0

    Source: Grabisch and Roubens 1999, doi:10.1007/s001820050125; Sundararajan, Dhamdhere and Agarwal 2020, arXiv:1902.05622.
    """
    n = players(dividends)
    whole(1, order=order)
    if index not in ("sii", "banzhaf", "stii"):
        raise ValueError(f'index must be "sii", "banzhaf" or "stii", got {index!r}.')
    if len(set(coalition)) != len(coalition) or not set(coalition) <= set(range(n)):
        raise ValueError(f"coalition must name different players of 0..{n - 1}, got {list(coalition)}.")
    inside = membership(n)
    s, t = len(coalition), inside.sum(1)
    above = inside[:, list(coalition)].all(1)
    if index == "stii" and s < order:
        return float(dividends[sum(2**i for i in coalition)])
    weights = {
        "sii": 1 / np.maximum(t - s + 1, 1),
        "banzhaf": 0.5 ** np.maximum(t - s, 0.0),
        "stii": 1 / np.array([max(math.comb(int(k), s), 1) for k in t]),
    }
    return float((dividends * weights[index])[above].sum())


def airport(costs: np.ndarray) -> np.ndarray:
    r"""Shares of a runway as long as the largest plane in the coalition needs: :math:`v(S) = \max_{i\in S} c_i`, (n,).

    Every stretch of the runway is shared evenly by the planes that need it.

    Args:
        costs: c, (n,), not negative.

    Raises:
        ValueError: a cost that is negative or not finite.

    Example:
        >>> airport(np.array([1.0, 3.0, 7.0])).round(4).tolist()
        [0.3333, 1.3333, 5.3333]

    Source: Littlechild and Owen 1973, doi:10.1287/mnsc.20.3.370.
    """
    nonnegative(costs=costs)
    order = np.argsort(costs)
    steps = np.diff(costs[order], prepend=0.0) / np.arange(len(costs), 0, -1)
    shares = np.empty(len(costs))
    shares[order] = np.cumsum(steps)
    return shares


def glove(left: int, right: int) -> tuple[float, float]:
    r"""Shapley value of an owner of a left and of a right glove, where a coalition is worth the pairs that it can make.

    An owner on the scarcer side, l ≤ r, has

    .. math:: \frac12 + \frac{r-l}{2l} \sum_{k=1}^{l} \frac{l!\,r!}{(l-k)!\,(r+k)!},

    and the other side shares what is left of the l pairs.

    Args:
        left: Owners of a left glove, at least 1.
        right: Owners of a right glove, at least 1.

    Raises:
        ValueError: a count that is no whole number of at least 1.

    Example:
        >>> [round(v, 4) for v in glove(1, 2)]
        [0.6667, 0.1667]

    Source: Shapley and Shubik 1969, International Economic Review 10(3):337-362 (pure competition of two goods).
    """
    whole(1, left=left, right=right)
    few, many = min(left, right), max(left, right)
    terms = [Fraction(math.perm(few, k), math.perm(many + k, k)) for k in range(1, few + 1)]
    scarce = Fraction(1, 2) + Fraction(many - few, 2 * few) * sum(terms)
    common = (few - few * scarce) / many
    return (float(scarce), float(common)) if left <= right else (float(common), float(scarce))


def weighted_voting(quota: int, weights: Sequence[int], index: str = "shapley") -> np.ndarray:
    r"""Power of each voter where a coalition wins, v = 1, once its votes reach the quota, (n,).

    The coalitions of the others of each size and number of votes are counted by dynamic programming, in :math:`O(n^2 q)` a voter: no
    enumeration, so that hundreds of voters take seconds.

    Args:
        quota: Votes needed, at least 1.
        weights: Votes of each, whole numbers not below 0.
        index: ``"shapley"`` (Shapley-Shubik) or ``"banzhaf"``.

    Raises:
        ValueError: an unknown index, a quota below 1, or votes that are negative or not whole.

    Example:
        >>> weighted_voting(51, [50, 49, 1]).round(4).tolist()
        [0.6667, 0.1667, 0.1667]

    Source: Shapley and Shubik 1954, doi:10.2307/1951053; Mann and Shapley 1962, RAND RM-3158 (generating functions).
    """
    if index not in ("shapley", "banzhaf"):
        raise ValueError(f'index must be "shapley" or "banzhaf", got {index!r}.')
    whole(1, quota=quota)
    whole(0, **{f"weights[{i}]": votes for i, votes in enumerate(weights)})
    n = len(weights)
    power = []
    for i in range(n):
        counts = [[0] * quota for _ in range(n)]  # [size][votes below the quota], exact integers
        counts[0][0] = 1
        for j, w in enumerate(weights):
            if j != i:
                for s in range(n - 1, 0, -1):
                    below, here = counts[s - 1], counts[s]
                    for votes in range(quota - 1, w - 1, -1):
                        here[votes] += below[votes - w]
        pivotal = [sum(row[max(0, quota - weights[i]) :]) for row in counts]
        weight = shapley_weight if index == "shapley" else banzhaf_weight
        power.append(float(sum(c * weight(n, s) for s, c in enumerate(pivotal))))
    return np.array(power)


def shapley_weight(n: int, s: int) -> Fraction:
    r"""Weight :math:`\frac{s!\,(n-1-s)!}{n!}` of a marginal contribution to a coalition of s others, exactly.

    Raises:
        ValueError: ``n`` is no whole number of at least 1, or ``s`` not one of 0 ... n − 1.

    Example:
        >>> shapley_weight(3, 1)
        Fraction(1, 6)
    """
    _sizes(n, s)
    return Fraction(1, n * math.comb(n - 1, s))


def banzhaf_weight(n: int, s: int) -> Fraction:
    """Weight 2^{1−n} of any marginal contribution, exactly.

    Raises:
        ValueError: ``n`` is no whole number of at least 1, or ``s`` not one of 0 ... n − 1.

    Example:
        >>> banzhaf_weight(3, 1)
        Fraction(1, 4)
    """
    _sizes(n, s)
    return Fraction(1, 2 ** (n - 1))


def _sizes(n: int, s: int) -> None:
    whole(1, n=n)
    if s not in range(n):
        raise ValueError(f"s must be one of 0 ... {n - 1}, the others' number, got {s}.")


def quadratic_game(linear: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Table and Shapley value of :math:`v(S) = \sum_{i\in S} w_i + \sum_{i<j\in S} Q_{ij}`: each pair is shared half and half.

    Every semivalue whose law of participation has mean ½ gives the same, so Shapley and Banzhaf agree here. With Q = 0 the game is
    linear and each player's value is its own weight, under any semivalue.

    Args:
        linear: w, (n,).
        pairs: Q, symmetric (n, n); its diagonal is ignored.

    Raises:
        ValueError: ``pairs`` is not (n, n), or not symmetric.

    Example:
        >>> table, values = quadratic_game(np.array([1.0, 2.0]), np.array([[0.0, 4.0], [4.0, 0.0]]))
        >>> table.tolist(), values.tolist()
        ([0.0, 1.0, 2.0, 7.0], [3.0, 4.0])

    Source: Deng and Papadimitriou 1994, doi:10.1287/moor.19.2.257, Theorem 1 (games on weighted graphs).
    """
    if np.shape(pairs) != (len(linear), len(linear)) or not np.allclose(pairs, pairs.T):
        raise ValueError(f"pairs must be symmetric ({len(linear)}, {len(linear)}): give each pair's worth twice, as Q_ij and Q_ji.")
    off = pairs - np.diag(np.diag(pairs))
    inside = membership(len(linear)).astype(float)
    return inside @ linear + np.einsum("si,ij,sj->s", inside, off, inside) / 2, linear + off.sum(1) / 2


def linear_model_values(weights: np.ndarray, x: np.ndarray, background: np.ndarray) -> np.ndarray:
    r"""Feature Shapley values :math:`w_i(x_i - \bar b_i)` of :math:`w^\top x` where absent features are drawn from a background, (d,).

    Of the *interventional* game, which replaces absent features whatever the present ones are; the conditional game has other values
    where features depend on each other.

    Source: Štrumbelj and Kononenko 2014, doi:10.1007/s10115-013-0679-x, Section 3; Lundberg and Lee 2017, arXiv:1705.07874, Corollary 1.
    """
    return weights * (x - background.mean(0))


def conditional_linear_game(weights: np.ndarray, x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    r"""Table of the *conditional* game of :math:`w^\top x` whose features are normal, :math:`v(S) = E[w^\top X \mid X_S = x_S]`, (2^d,).

    .. math:: v(S) = w_S^\top x_S + w_{\bar S}^\top \bigl(\mu_{\bar S} + \Sigma_{\bar S S}\Sigma_{SS}^{-1}(x_S - \mu_S)\bigr)

    Of two standard normal features of correlation ρ the Shapley value of the first is
    :math:`w_1 x_1 + \frac\rho2(w_2 x_1 - w_1 x_2)`: a feature of weight zero is worth something where it goes with one that counts.

    Args:
        weights: w, (d,).
        x: The row, (d,).
        mean: μ, (d,).
        covariance: Σ, (d, d), positive definite.

    Example:
        >>> table = conditional_linear_game(np.array([0.0, 1.0]), np.array([2.0, 2.0]), np.zeros(2), np.array([[1.0, 0.5], [0.5, 1.0]]))
        >>> table.tolist(), shapley_of_dividends(dividends_of(table)).tolist()
        ([0.0, 1.0, 2.0, 2.0], [0.5, 1.5])

    Source: Aas, Jullum and Løland 2021, arXiv:1903.10464, Section 3 (normal features).
    """
    inside = membership(len(x))
    both = inside[:, :, None] & inside[:, None, :]
    seen = np.where(both, covariance, np.eye(len(x)))  # Σ_SS, and a one for each absent feature
    regressed = np.linalg.solve(seen, np.where(inside, x - mean, 0.0)[:, :, None])[:, :, 0]
    return np.where(inside, x, mean + regressed @ covariance) @ weights


def knn_values(correct: np.ndarray, k: int) -> np.ndarray:
    r"""Shapley values of training rows in the order of their distance to one test row, by the recursion over that order, (n,).

    A coalition is worth 1/k for each of its k nearest rows that has the test row's label.

    .. math:: s_n = \frac{c_n}{\max(n, k)}, \qquad s_i = s_{i+1} + \frac{c_i - c_{i+1}}{k}\,\frac{\min(k, i)}{i}

    Args:
        correct: c, whether the i-th nearest row has the right label, bool (n,).
        k: Neighbours, at least 1; may exceed n.

    Raises:
        ValueError: ``k`` is no whole number of at least 1, or there is no row.

    Example:
        >>> knn_values(np.array([True, False]), 1).tolist()
        [1.0, 0.0]

    Source: Jia et al. 2019, arXiv:1908.08619, Theorem 1.
    """
    whole(1, k=k)
    c, n = np.asarray(correct, dtype=float), len(correct)
    if c.ndim != 1 or n == 0 or not np.isin(c, (0, 1)).all():
        raise ValueError(f"correct must say true or false of each of at least one row, got shape {c.shape}.")
    s = np.empty(n)
    s[-1] = c[-1] / max(n, k)
    for i in range(n - 1, 0, -1):
        s[i - 1] = s[i] + (c[i - 1] - c[i]) / k * min(k, i) / i
    return s
