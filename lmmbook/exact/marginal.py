"""The Gaussian marginal likelihood and its gradient: the linear algebra of the oracle.

Chapters 04 and 09. For a Gaussian likelihood the random effects can be integrated out by hand:

    y ~ Normal(X beta, V),    V = s^2 I + sum_k Z_k (I ⊗ Σ_k) Z_k',

with s the residual sd, Σ_k the covariance of the effects of one level of factor k, and Z_k [rows,
levels * columns] level by level. V is rows x rows, far too large to write down. With all Z_k side
by side in Z, and Λ = blockdiag(I ⊗ L_k) for any L_k L_k' = Σ_k, everything follows from the smaller
matrix M = s^2 I + Λ'Z'ZΛ [effects, effects] (Bates et al. 2015, section 3, in other letters):

    V^-1    = (I - Z P Z') / s^2,    P = Λ M^-1 Λ',
    log|V|  = log|M| + (rows - effects) log s^2.

Λ enters as a product and never as an inverse, so a singular Σ_k, as with a standard deviation of
zero or a correlation of one, is no special case. P is s^-2 times the covariance of the effects
given the ratings. The levels of one factor share no rows, so the largest factor's part of M falls
apart into one small block a level. With G a block of its Z'Z, C = Z_1'Z_rest and R = Z_rest'Z_rest,
eliminating it leaves a dense matrix over the effects of the rest (1,142 of them on InstEval):

    Q = s^2 (s^2 I + G Σ)^-1,  W = Σ Q / s^2    a level of the largest factor, [columns, columns]
    B = R - C'WC,  S = s^2 I + Λ'BΛ             [rest, rest]
    P_rest = Λ S^-1 Λ',  P_level = W + W T W    with T the level's block of C P_rest C'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lmmbook.formula.covariance import root
from lmmbook.formula.design import Design

import numpy as np
from scipy import linalg, sparse


class Evaluation(NamedTuple):
    """The log-likelihood at one point, and what its gradient is made of.

    With g_l = Z_l'V^-1(y - X beta) of a level l, and C_l = Z_l'V^-1Z_l its expected square,

        d log-likelihood = sum_k tr((observed_k - expected_k) dΣ_k) / 2 + ...

    Attributes
    ----------
    value
        Log-likelihood (natural log, constants included).
    beta, beta_score
        ``[fixed columns]``: the fixed effects, and the derivative in them.
    residual_score
        The derivative in the logarithm of the residual sd.
    observed, expected
        A factor: sum over its levels of ``g g'`` and of ``C``, ``[columns, columns]``.
    fixed_information
        ``[fixed columns, fixed columns]``: X'V^-1X, the information on the fixed effects.
    """

    value: float
    beta: np.ndarray
    beta_score: np.ndarray
    residual_score: float
    observed: list[np.ndarray]
    expected: list[np.ndarray]
    fixed_information: np.ndarray


class Marginal:
    """The marginal likelihood of one design; the cross-products are computed once."""

    def __init__(self, design: Design) -> None:
        self.design = design
        sizes = [f.levels * len(f.effects) for f in design.factors]
        # The factor with most effects goes first: it is the one that is eliminated.
        self.first, *self.rest = sorted(range(len(sizes)), key=lambda k: -sizes[k])
        self.z = [f.matrix() for f in design.factors]
        ends = np.cumsum([0, *(sizes[k] for k in self.rest)])
        self.parts = {k: slice(*ends[i : i + 2]) for i, k in enumerate(self.rest)}  # of [rest]
        self.effects = sum(sizes)
        self.head = self.z[self.first]
        self.tail = (
            sparse.hstack([self.z[k] for k in self.rest], format="csr")
            if self.rest
            else sparse.csr_array((design.rows, 0))
        )
        self.gram = design.factors[self.first].gram()  # G, a level
        self.corner = (self.head.T @ self.tail).tocsr()  # C
        self.inner = (self.tail.T @ self.tail).toarray()  # R

    def evaluate(
        self,
        beta: np.ndarray | None,
        covariances: Sequence[np.ndarray],
        residual_sd: float,
        reml: bool = False,
    ) -> Evaluation:
        """Log-likelihood and gradient; ``beta=None`` profiles the fixed effects out.

        ``covariances``: ``[columns, columns]`` a factor, in the order of the design. With ``reml``
        it is the restricted likelihood: the fixed effects integrated out under a flat prior
        (Harville 1977), and ``expected`` is Z_l'(V^-1 - V^-1 X (X'V^-1 X)^-1 X'V^-1)Z_l.
        """
        inverse = _Inverse(self, covariances, residual_sd)
        x, y = self.design.fixed, self.design.response - self.design.offset
        wx = inverse @ x
        information = x.T @ wx
        if beta is None:
            beta = np.linalg.solve(information, wx.T @ y)
        residual = y - x @ beta
        white = inverse @ residual[:, None]
        quadratic = float(residual @ white[:, 0])
        constant = self.design.rows * np.log(2 * np.pi)
        value = -0.5 * (constant + inverse.log_determinant + quadratic)

        pulls = [z.T @ white for z in self.z]
        pulls = [g.reshape(-1, len(c)) for g, c in zip(pulls, covariances, strict=True)]
        expected = inverse.expected()
        # s^2 tr(V^-1) = rows - sum_k tr(Σ_k expected_k)
        explained = sum(np.sum(c * e) for c, e in zip(covariances, expected, strict=True))
        own = residual_sd**2 * np.sum(white**2) - (self.design.rows - explained)
        observed = [g.T @ g for g in pulls]
        if reml:
            half = np.linalg.cholesky(information)
            shared = linalg.solve_triangular(half, wx.T, lower=True).T  # what X takes of V^-1
            value += 0.5 * len(half) * np.log(2 * np.pi) - np.log(np.diag(half)).sum()
            own += residual_sd**2 * np.sum(shared**2)
            for k, z in enumerate(self.z):
                of_level = (z.T @ shared).reshape(-1, len(covariances[k]), len(half))
                expected[k] = expected[k] - np.einsum("lap,lbp->ab", of_level, of_level)
        return Evaluation(
            value, beta, x.T @ white[:, 0], float(own), observed, expected, information
        )  # fmt: skip

    def solve(
        self, covariances: Sequence[np.ndarray], residual_sd: float, right: np.ndarray
    ) -> np.ndarray:
        """``V^-1 right``, ``[rows, n]``."""
        return _Inverse(self, covariances, residual_sd) @ right

    def conditional(
        self, beta: np.ndarray, covariances: Sequence[np.ndarray], residual_sd: float
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Conditional mean and sd of the effects, a factor: two arrays ``[levels, columns]``."""
        inverse = _Inverse(self, covariances, residual_sd)
        residual = self.design.response - self.design.offset - self.design.fixed @ beta
        white = inverse @ residual[:, None]
        # E(effects | y) = Σ Z'V^-1 r, and their variance is s^2 P
        found = []
        for k, (z, c) in enumerate(zip(self.z, covariances, strict=True)):
            p = inverse.level if k == self.first else inverse.rest[self.parts[k], self.parts[k]]
            of_p = np.diagonal(p, axis1=-2, axis2=-1).reshape(-1, len(c))
            sd = residual_sd * np.sqrt(np.maximum(of_p, 0))  # rounding made it < 0
            found.append(((z.T @ white).reshape(-1, len(c)) @ c, sd))
        return found


class _Inverse:
    """V^-1 at given covariances, by elimination of the largest factor."""

    def __init__(
        self, marginal: Marginal, covariances: Sequence[np.ndarray], residual_sd: float
    ) -> None:
        self.marginal, self.variance = marginal, residual_sd**2
        own = covariances[marginal.first]
        corner, columns = marginal.corner, len(own)
        block = self.variance * np.eye(columns) + marginal.gram @ own  # s^2 I + G Σ
        self.shrink = self.variance * np.linalg.inv(block)  # Q
        gain = own @ self.shrink / self.variance
        self.gain = (gain + gain.swapaxes(1, 2)) / 2  # W
        self.inner = marginal.inner - (corner.T @ (_block_diagonal(self.gain) @ corner)).toarray()

        roots = [
            sparse.kron(sparse.eye_array(marginal.design.factors[k].levels), root(covariances[k]))
            for k in marginal.rest
        ]
        scale = sparse.block_diag(roots, format="csr") if roots else sparse.csr_array((0, 0))
        self.half = scale.T @ self.inner  # Λ'B
        schur = self.half @ scale
        schur.flat[:: len(schur) + 1] += self.variance
        self.chol = np.linalg.cholesky(schur)
        self.rest = scale @ (scale @ linalg.cho_solve((self.chol, True), np.eye(len(schur)))).T
        # The diagonal blocks of C P_rest C'
        shape = (*gain.shape[:2], -1 if self.rest.size else 0)
        product = (corner @ self.rest).reshape(shape)
        self.middle = product @ corner.toarray().reshape(shape).swapaxes(1, 2)  # T
        self.level = self.gain + self.gain @ self.middle @ self.gain
        self.log_determinant = (
            np.linalg.slogdet(block)[1].sum()
            + 2 * np.log(np.diag(self.chol)).sum()
            + (marginal.design.rows - marginal.effects) * np.log(self.variance)
        )

    def __matmul__(self, right: np.ndarray) -> np.ndarray:
        """``V^-1 right`` for ``[rows, columns]``."""
        m = self.marginal
        first, gain = m.head.T @ right, _block_diagonal(self.gain)
        tail = self.rest @ (m.tail.T @ right - m.corner.T @ (gain @ first))
        head = gain @ (first - m.corner @ tail)
        return (right - m.head @ head - m.tail @ tail) / self.variance

    def expected(self) -> list[np.ndarray]:
        """A factor: the sum of ``Z_l'V^-1Z_l`` over its levels l, ``[columns, columns]``."""
        m = self.marginal
        shrunk = self.shrink @ (m.gram - self.middle @ self.shrink.swapaxes(1, 2))
        sums = {m.first: shrunk.sum(axis=0)}
        # Z_rest'V^-1Z_rest = (B - BΛ S^-1 Λ'B) / s^2
        white = linalg.solve_triangular(self.chol, self.half, lower=True)
        for k, part in m.parts.items():
            shape = m.design.factors[k].levels, len(m.design.factors[k].effects)
            own = white[:, part].reshape(-1, *shape)
            within = self.inner[part, part].reshape(shape * 2)
            sums[k] = np.einsum("lalb->ab", within) - np.einsum("rla,rlb->ab", own, own)
        return [sums[k] / self.variance for k in range(len(sums))]


def _block_diagonal(blocks: np.ndarray) -> sparse.bsr_array:
    """``[levels, columns, columns]`` as one sparse matrix."""
    where = np.arange(len(blocks) + 1)
    return sparse.bsr_array((blocks, where[:-1], where))
