"""The log-likelihood of any family, against exact algebra and quadrature; and its error."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

import lmmbook as lmm
from lmmbook import exact, families
from lmmbook.formula import build_design
from lmmbook.formula.design import Design
from lmmbook.inference.likelihood import ALLOWED, from_ends, integrate

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import as_lme4_had_it, conditional_draws
from scipy.special import logsumexp
from scipy.stats import chi2
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

DATA_SETS = int(os.environ.get("LIKELIHOODS", "8"))  # more of them take 2 s each
GRID = np.linspace(-8.0, 8.0, 241)  # standardised effects, for sums over a grid
T4 = families.Custom(lambda loc, scale: tfd.StudentT(4.0, loc, scale), {"scale": tfb.Exp()})
FAMILIES = {
    "bernoulli": ("bernoulli", {"Intercept": -0.5}),
    "binomial": ("binomial", {"Intercept": -0.5}),
    "poisson": ("poisson", {"Intercept": 0.3}),
    "negativebinomial": ("negativebinomial", {"Intercept": 0.3, "shape": 2.0}),
    "cumulative": ("cumulative", {f"threshold({j}|{j + 1})": j - 1.0 for j in range(3)}),
    "categorical": ("categorical", None),
    "custom": (T4, {"Intercept": 0.5, "scale": 0.8}),
}


def response(family: str, predictor: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Something that the family takes; it need not come from the model that is integrated."""
    yes = rng.uniform(size=len(predictor)) < 1 / (1 + np.exp(-predictor))
    if family == "binomial":
        n = rng.integers(1, 6, len(predictor))
        return {"k": rng.binomial(n, 1 / (1 + np.exp(-predictor))), "n": n}
    if family in ("poisson", "negativebinomial"):
        return {"y": rng.poisson(np.exp(predictor))}
    if family in ("cumulative", "categorical"):
        return {"y": np.digitize(predictor + rng.logistic(size=len(predictor)), [-1, 0, 1])}
    return {
        "y": yes.astype(int) if family == "bernoulli" else predictor + rng.normal(size=len(yes))
    }


def one_factor(
    family: str, levels: int, each: int, sd: float, seed: int
) -> tuple[Design, pd.Series]:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(levels), each)
    data = pd.DataFrame({"g": g} | response(family, sd * rng.normal(size=levels)[g], rng))
    left = "p(k, n)" if family == "binomial" else "y"
    kind, values = FAMILIES[family]
    design = build_design(f"{left} ~ 1 + (1|g)", data, families.resolve(kind))
    if values is None:
        first, last = design.family.constrain(*design.family.start(design.response))
        values = {name: float(value) for name, value in (first | last).items()}
    return design, pd.Series(values | {"sd(g)": sd})


def log_density(design: Design, at: pd.Series, predictor: np.ndarray) -> np.ndarray:
    """``[rows, n]`` for a predictor of that shape, by the distribution itself."""
    _, auxiliary = design.family.unconstrain(at)
    family, y = design.family.given(design.response[:, np.newaxis])
    found = family.distribution(
        tf.constant(predictor, tf.float32), tf.constant(auxiliary, tf.float32)
    ).log_prob(y.astype(np.int32 if family.categories else np.float32))
    return found.numpy().astype(float)


def on_a_grid(design: Design, at: pd.Series) -> np.ndarray:
    """``log p(y_l, x)`` of each level l of the first factor, ``[levels, grid]``."""
    intercept, _ = design.family.unconstrain(at)
    factor = design.factors[0]
    predictor = intercept + at[f"sd({factor.name})"] * GRID
    predictor = np.broadcast_to(predictor, (design.rows, len(GRID)))
    sums = np.zeros((factor.levels, len(GRID)))
    np.add.at(sums, factor.codes, log_density(design, at, predictor))
    return sums - GRID**2 / 2 - np.log(2 * np.pi) / 2


def draws_from(log_p: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``[n, levels]``, from densities on the grid."""
    below = np.cumsum(np.exp(log_p - log_p.max(1, keepdims=True)), axis=1)
    below /= below[:, -1:]
    return np.stack([np.interp(rng.uniform(size=n), b, GRID) for b in below], axis=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_factor_is_a_sum_over_a_grid(family: str) -> None:
    """Rounding of single precision, in which the sums over the grid are made, is what is left."""
    design, at = one_factor(family, levels=40, each=6, sd=0.8, seed=1)
    log_p = on_a_grid(design, at)
    truth = (logsumexp(log_p, axis=1) + np.log(GRID[1] - GRID[0])).sum()
    posterior = {"g": 0.8 * draws_from(log_p, 40, np.random.default_rng(0))}
    value, error = integrate(design, at, posterior, chains=4, draws=40, seed=0)
    assert value == pytest.approx(truth, abs=2e-3)
    assert error < 2e-3


def two_factors(seed: int) -> tuple[Design, pd.Series, dict[str, np.ndarray], float]:
    """Yes or no by 30 levels of g and 2 of h. All effects of h are summed over, on a grid of
    pairs, and given these, those of g."""
    rng = np.random.default_rng(seed)
    at = pd.Series({"Intercept": -0.3, "sd(g)": 0.9, "sd(h)": 0.7})
    g, h = np.repeat(np.arange(30), 8), np.resize(np.arange(2), 240)
    predictor = -0.3 + 0.9 * rng.normal(size=30)[g] + 0.7 * rng.normal(size=2)[h]
    y = (rng.uniform(size=240) < 1 / (1 + np.exp(-predictor))).astype(int)
    data = pd.DataFrame({"y": y, "g": g, "h": h})
    design = build_design("y ~ 1 + (1|g) + (1|h)", data, families.resolve("bernoulli"))
    yes = data.pivot_table("y", "g", "h", "sum").to_numpy()

    def given(pair: np.ndarray) -> np.ndarray:
        eta = -0.3 + 0.9 * GRID + 0.7 * pair[:, np.newaxis]  # [levels of h, grid]
        of_rows = yes @ eta - 4 * np.logaddexp(0, eta).sum(0)
        return of_rows - GRID**2 / 2 - np.log(2 * np.pi) / 2

    fine = np.linspace(-4.0, 4.0, 61)
    step = fine[1] - fine[0]
    pairs = np.array(list(itertools.product(fine, fine)))
    each = np.array([logsumexp(given(pair), axis=1).sum() for pair in pairs])
    joint = each - (pairs**2).sum(1) / 2 - np.log(2 * np.pi) + 2 * np.log(step)
    joint += 30 * np.log(GRID[1] - GRID[0])
    chosen = rng.choice(len(pairs), 100, p=np.exp(joint - logsumexp(joint)))
    effects = np.array([draws_from(given(pairs[i]), 1, rng)[0] for i in chosen])
    return design, at, {"g": 0.9 * effects, "h": 0.7 * pairs[chosen]}, float(logsumexp(joint))


def test_two_factors_and_what_the_error_says() -> None:
    """z scores over data sets: their mean within 3.5 of its standard errors, their variance within
    the middle 99.9 % of a chi-square's. With ``LIKELIHOODS=200`` their mean was .03, their sd .96:
    recorded once."""
    scores = []
    for seed in range(DATA_SETS):
        design, at, posterior, truth = two_factors(seed)
        value, error = integrate(design, at, posterior, chains=4, draws=100, seed=seed)
        assert error < 0.05
        scores.append((value - truth) / error)
    assert abs(np.mean(scores)) < 3.5 / np.sqrt(len(scores))
    print("mean and sd of z scores:", np.mean(scores), np.std(scores))
    assert np.sum(np.square(scores)) < chi2.ppf(0.999, DATA_SETS)


def test_what_the_rule_makes_of_two_gaussians() -> None:
    """w linear in x: m(t) is straight, and the integral known; then the calibration of the error,
    over many repetitions: z scores have an sd within 3.5 of its standard errors, of 1."""
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(300):
        at_q, at_p = rng.normal(0.0, 2.0, 100), rng.normal(4.0, 2.0, (25, 4))
        value, error = from_ends(at_q, at_p)
        scores.append((value - 2.0) / error)  # log E exp(w) = 2^2 / 2
    assert abs(np.mean(scores)) < 3.5 / np.sqrt(300)
    assert np.std(scores) < 1.0 + 3.5 / np.sqrt(600)
    assert np.std(scores) > 0.8  # a part of the error is a bound, which nothing exceeds here


def test_what_the_rule_makes_of_a_skewed_w() -> None:
    """w is minus an exponential variable of mean 1: ``log E exp(w) = -log 2``, and ``p(x | y)`` has
    it with mean 1/2. The rule's correction for how m bends is 1/16, and leaves less than .01; and
    the error knows the third moments, which a variance shares with its mean: without them, or with
    the wrong sign, it would be off by a tenth."""
    rng, n = np.random.default_rng(0), 400_000
    at_q, at_p = -rng.exponential(1.0, n), -rng.exponential(0.5, (n // 4, 4))
    value, error = from_ends(at_q, at_p)
    assert abs(value + np.log(2)) < 0.01
    # Of w / 2 + (w - m)^2 / 12 and of w / 2 - (w - m)^2 / 12, with moments of s^2, -2 s^3, 9 s^4.
    of_q = 1 / 4 - 2 / 12 + 8 / 144
    of_p = (1 / 4 + 2 / 12 * 0.5 + 8 / 144 * 0.25) / 4
    known = np.sqrt((of_q + of_p) / n)
    rest = ALLOWED * (at_q.var(ddof=1) - at_p.var(ddof=1)) / 12
    assert np.sqrt(error**2 - rest**2) == pytest.approx(known, rel=0.05)


GAUSSIAN = {
    "crossed": ("y ~ x + (1|g) + (1|h)", {"sd(g)": 2.0, "sd(h)": 1.0}),
    "slopes": ("y ~ x + (1|g) + (1+x|h)",
               {"sd(g)": 2.0, "sd(h)": 1.0, "sd(x|h)": 0.5, "cor(Intercept,x|h)": -0.6}),
    "slopes first": ("y ~ x + (1+x|g) + (1|h)",
                     {"sd(g)": 2.0, "sd(x|g)": 0.3, "cor(Intercept,x|g)": 0.2, "sd(h)": 1.0}),
    "singular": ("y ~ x + (1|g) + (1+x|h)",
                 {"sd(g)": 2.0, "sd(h)": 1.0, "sd(x|h)": 0.5, "cor(Intercept,x|h)": -1.0}),
    "no variance": ("y ~ x + (1|g) + (1|h)", {"sd(g)": 0.0, "sd(h)": 0.0}),
}  # fmt: skip


@pytest.mark.parametrize("case", GAUSSIAN)
def test_gaussian_ratings_are_exact(case: str) -> None:
    formula, sds = GAUSSIAN[case]
    at = pd.Series({"Intercept": 3.0, "x": 0.4} | sds | {"sd(residual)": 1.5})
    design = build_design(formula, as_lme4_had_it(), families.Gaussian())
    posterior = {
        f.name: u[..., 0].T if f.intercept_only else np.moveaxis(u, 0, 1)
        for f, u in zip(design.factors, conditional_draws(design, dict(at), 4, seed=0), strict=True)
    }
    value, error = integrate(design, at, posterior, chains=4, draws=4, seed=0)
    assert value == pytest.approx(exact.log_likelihood(formula, as_lme4_had_it(), at), abs=1e-8)
    assert error == 0.0


def test_a_fit_and_one_that_was_loaded_say_the_same() -> None:
    data, _ = lmm.simulate.crossed(400, {"g": (30, 0.7)}, residual_sd=1.0, seed=0)
    data["y"] = (data["y"] > data["y"].median()).astype(int)
    fit = lmm.fit("y ~ x + (1|g)", data, "bernoulli", seed=0, progress=False)
    found = fit.log_likelihood()
    assert found.aic == pytest.approx(2 * 3 - 2 * found.value)
    assert found.bic == pytest.approx(3 * np.log(400) - 2 * found.value)
    with tempfile.TemporaryDirectory() as folder:
        fit.save(Path(folder) / "fit.lmm")
        loaded = lmm.load(Path(folder) / "fit.lmm")
    with pytest.raises(ValueError, match="pass data="):
        loaded.log_likelihood()
    assert loaded.log_likelihood(data) == found
    with pytest.raises(ValueError, match="400 rows, got 399"):
        loaded.log_likelihood(data[1:])
    with pytest.raises(ValueError, match="new levels of g"):
        loaded.log_likelihood(data.assign(g=data["g"].replace(3, 77)))
