"""Fits with every family, against what does not depend on our own code.

One factor's marginal likelihood by Gauss-Hermite quadrature, written out with SciPy and maximised;
statsmodels where there is no variance between groups; R's clmm for InstEval; simulations.
"""

from __future__ import annotations

from collections.abc import Callable

import lmmbook as lmm
from lmmbook.engine.init import start_values
from lmmbook.families import Custom

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import tensorflow_probability as tfp
from scipy import optimize, special, stats
from statsmodels.miscmodels.ordinal_model import OrderedModel

tfb, tfd = tfp.bijectors, tfp.distributions

STUDENT = Custom(lambda loc, scale: tfd.StudentT(4.0, loc, scale), {"scale": tfb.Exp()})
NORMAL = Custom(lambda loc, scale: tfd.Normal(loc, scale), {"scale": tfb.Exp()})
NAMES = [
    "cumulative", "bernoulli", "binomial", "poisson", "negativebinomial", "categorical", "student"
]  # fmt: skip
FORMULA = dict.fromkeys(NAMES, "y ~ x + (1|g)") | {
    "poisson": "y ~ x + offset(np.log(t)) + (1|g)",
    "negativebinomial": "y ~ x + offset(np.log(t)) + (1|g)",
    "binomial": "p(y, n) ~ x + (1|g)",
}
# Of a shape the logarithm, as errors are given.
TRUTH = {
    "cumulative": {"threshold(1|2)": -1.0, "threshold(2|3)": 0.3, "threshold(3|4)": 1.6, "x": 0.7},
    "bernoulli": {"Intercept": -0.4, "x": 0.7},
    "binomial": {"Intercept": -0.4, "x": 0.7},
    "poisson": {"Intercept": 0.3, "x": 0.3},
    "negativebinomial": {"Intercept": 0.6, "x": 0.3, "shape": np.log(1.5)},
    "categorical": {
        "intercept(bus)": 0.6, "intercept(car)": 0.2, "x": 1.0, "score(bus)": 0.4
    },
    "student": {"Intercept": 1.0, "x": 0.5, "scale": 0.8},
}  # fmt: skip
SD = {"poisson": 0.6, "negativebinomial": 0.6, "categorical": 1.4, "student": 0.7}


def family_of(name: str):
    return STUDENT if name == "student" else name


def response(name: str, eta: np.ndarray, t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One draw a row, written without the package; ``eta`` is what covariates and groups add."""
    truth, u = TRUTH[name], rng.uniform(size=len(eta))
    if name == "cumulative":
        return np.digitize(eta + special.logit(u), list(truth.values())[:3]) + 1
    if name == "bernoulli":
        return (u < special.expit(truth["Intercept"] + eta)).astype(int)
    if name == "binomial":
        return rng.binomial(np.ceil(3 * t), special.expit(truth["Intercept"] + eta))
    if name == "poisson":
        return rng.poisson(t * np.exp(truth["Intercept"] + eta))
    if name == "negativebinomial":  # a Poisson's, with a gamma variable of mean 1 in its rate
        shape = np.exp(truth["shape"])
        rate = t * np.exp(truth["Intercept"] + eta) * rng.gamma(shape, 1 / shape, len(eta))
        return rng.poisson(rate)
    if name == "student":
        return truth["Intercept"] + eta + truth["scale"] * rng.standard_t(4, len(eta))
    bus = truth["intercept(bus)"] + truth["score(bus)"] * eta
    odds = np.exp(np.stack([np.zeros_like(eta), bus, truth["intercept(car)"] + eta]))
    shares = np.cumsum(odds / odds.sum(0), axis=0)
    return np.array(["bike", "bus", "car"])[(u > shares[:2]).sum(0)]


def simulate(
    name: str, seed: int, groups: int = 30, each: int = 10, sd: float | None = None
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), each)
    data = pd.DataFrame({"g": g, "x": rng.normal(size=len(g)), "t": rng.uniform(0.5, 3, len(g))})
    data["n"] = np.ceil(3 * data["t"])  # trials of a binomial row
    effects = rng.normal(0, SD.get(name, 1.0) if sd is None else sd, groups)
    data["y"] = response(name, TRUTH[name]["x"] * data["x"] + effects[g], data["t"], rng)
    return data


# By quadrature


def log_densities(name: str, data: pd.DataFrame, p: np.ndarray, u: np.ndarray) -> np.ndarray:
    """``[rows, nodes]``; ``p`` without the sd, as in TRUTH; ``u`` ``[nodes]``, or of each row."""
    y, x = data["y"].to_numpy(), data["x"].to_numpy()
    names = list(TRUTH[name])
    eta = (p[names.index("x")] * x)[:, np.newaxis] + u
    if name == "cumulative":
        cuts = np.concatenate([[-1e3], p[:3], [1e3]])
        high, low = (cuts[y - 1 + i][:, np.newaxis] - eta for i in (1, 0))
        return np.log(np.maximum(special.expit(high) - special.expit(low), 1e-300))
    if name == "bernoulli":
        return special.log_expit(np.where(y == 1, 1, -1)[:, np.newaxis] * (p[0] + eta))
    if name == "binomial":
        n = data["n"].to_numpy()[:, np.newaxis]
        return stats.binom.logpmf(y[:, np.newaxis], n, special.expit(p[0] + eta))
    if name == "poisson":
        mean = np.exp(p[0] + eta + np.log(data["t"].to_numpy())[:, np.newaxis])
        return stats.poisson.logpmf(y[:, np.newaxis], mean)
    if name == "negativebinomial":
        mean = np.exp(p[0] + eta + np.log(data["t"].to_numpy())[:, np.newaxis])
        shape = np.exp(p[2])
        return stats.nbinom.logpmf(y[:, np.newaxis], shape, shape / (shape + mean))
    if name == "student":
        return stats.t.logpdf(y[:, np.newaxis], 4, p[0] + eta, p[2])
    logits = np.stack([0 * eta, p[0] + p[3] * eta, p[1] + eta])
    code = pd.Categorical(y).codes
    return logits[code, np.arange(len(y))] - special.logsumexp(logits, axis=0)


class Quadrature:
    """The maximum of one factor's marginal likelihood, by names as in the table of a fit.

    The nodes lie around each level's own effect: adaptive Gauss-Hermite quadrature.
    """

    def __init__(self, name: str, data: pd.DataFrame) -> None:
        self.name, self.data, self.g = name, data, data["g"].to_numpy()
        point = np.array([*TRUTH[name].values(), np.log(SD.get(name, 1.0))])
        for _ in range(2):
            self.place(point, 30)
            point = optimize.minimize(lambda p: -self.value(p), point, method="BFGS").x
        index = list(TRUTH[name])
        own = [n for n in index if n.startswith(("score", "scale", "shape"))]
        order = [n for n in index if n not in own] + ["sd(g)"] + own
        errors = np.sqrt(np.diag(np.linalg.inv(self.information(point))))
        self.estimate = pd.Series(point, [*index, "sd(g)"])[order]  # of the sd its logarithm
        self.std_error = pd.Series(errors, [*index, "sd(g)"])[order]
        # It is the maximum, and the nodes are close enough.
        value = self.value(point)
        for error, step in zip(errors, np.eye(len(errors)), strict=True):
            for sign in (1, -1):
                assert self.value(point + sign * 0.02 * error * step) < value
        self.place(point, 60)
        assert abs(self.value(point) - value) < 1e-6

    def place(self, p: np.ndarray, nodes: int) -> None:
        """Put the nodes where the levels' effects are, by a sum over a grid."""
        grid = np.linspace(-5, 5, 401)
        logs = self.by_level(p, np.tile(grid, (self.g.max() + 1, 1))) - grid**2 / 2
        weights = np.exp(logs - special.logsumexp(logs, axis=1, keepdims=True))
        mean = weights @ grid
        sd = np.sqrt(weights @ grid**2 - mean**2)
        x, weights = special.roots_hermitenorm(nodes)
        self.nodes = mean[:, np.newaxis] + sd[:, np.newaxis] * x  # [levels, nodes]
        self.log_weights = (
            np.log(weights / weights.sum()) + (x**2 - self.nodes**2) / 2 + np.log(sd)[:, np.newaxis]
        )

    def by_level(self, p: np.ndarray, standard: np.ndarray) -> np.ndarray:
        """Log likelihood ``[levels, nodes]`` at standardised effects of that shape."""
        total = np.zeros(standard.shape)
        effects = np.exp(p[-1]) * standard[self.g]
        np.add.at(total, self.g, log_densities(self.name, self.data, p[:-1], effects))
        return total

    def value(self, p: np.ndarray) -> float:
        return special.logsumexp(self.by_level(p, self.nodes) + self.log_weights, axis=1).sum()

    def information(self, p: np.ndarray) -> np.ndarray:
        h, size = 1e-3, len(p)
        steps = h * np.eye(size)
        hessian = np.zeros((size, size))
        for i in range(size):
            for j in range(i + 1):
                signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
                values = [self.value(p + a * steps[i] + b * steps[j]) for a, b in signs]
                hessian[i, j] = hessian[j, i] = np.dot(values, [1, -1, -1, 1]) / (4 * h * h)
        return -hessian


def on_log_scale(fit: lmm.Fit) -> pd.Series:
    """Estimates, with the logarithms of sds and shapes, as errors are given."""
    estimate = fit.parameters["estimate"].copy()
    sds = estimate.index.str.startswith(("sd(", "shape"))
    estimate[sds] = np.log(estimate[sds])
    return estimate


def assert_close(fit: lmm.Fit, estimate: pd.Series, std_error: pd.Series) -> None:
    """Within what a converged fit promises: 0.2 standard errors, and its Monte Carlo error."""
    assert fit.converged
    assert list(fit.parameters.index) == list(estimate.index)
    away = (on_log_scale(fit) - estimate).abs()
    assert np.all(away < 0.2 * std_error + 3 * fit.parameters["mcse"]), away / std_error


@pytest.fixture(scope="session")
def fitted() -> Callable[[str], tuple[pd.DataFrame, lmm.Fit]]:
    """A data set and its fit for each family, made once."""
    made: dict[str, tuple[pd.DataFrame, lmm.Fit]] = {}

    def get(name: str) -> tuple[pd.DataFrame, lmm.Fit]:
        if name not in made:
            data = simulate(name, seed=1)
            made[name] = data, lmm.fit(FORMULA[name], data, family_of(name), seed=1)
        return made[name]

    return get


@pytest.mark.parametrize(
    "name",
    [
        "cumulative", "bernoulli", "poisson", "negativebinomial", "categorical",
        pytest.param("binomial", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_maximum_is_that_of_quadrature(name, fitted):
    data, fit = fitted(name)
    exact = Quadrature(name, data)
    assert_close(fit, exact.estimate, exact.std_error)
    ratio = fit.parameters["std_error"] / exact.std_error
    assert np.all(np.abs(np.log(ratio)) < 0.1), ratio  # Monte Carlo: some thousand draws
    with pytest.raises(AssertionError):  # the tolerance is not so wide that anything passes
        assert_close(fit, exact.estimate + 0.5 * exact.std_error, exact.std_error)


@pytest.mark.parametrize(("name", "times"), [("bernoulli", 20.0), ("cumulative", 0.02)])
def test_from_a_bad_start_a_fit_gets_to_the_same_maximum(name, times, fitted, monkeypatch):
    """All start values so many times what they would be, thresholds in the same order."""
    data, fit = fitted(name)

    def bad(design):
        return {name: times * value for name, value in start_values(design).items()}

    monkeypatch.setattr("lmmbook.engine.init.start_values", bad)
    again = lmm.fit(FORMULA[name], data, name, seed=1)
    assert not again.trace.equals(fit.trace)
    exact = Quadrature(name, data)
    assert_close(again, exact.estimate, exact.std_error)


def test_the_posterior_of_the_effects_is_that_of_quadrature(fitted):
    """At the estimates, to the kept draws' Monte Carlo error: 1,000 draws, some of them alike."""
    data, fit = fitted("cumulative")
    p = fit.parameters["estimate"]
    u = np.linspace(-6, 6, 2001)
    names = list(TRUTH["cumulative"])
    rows = log_densities("cumulative", data, p[names].to_numpy(), u)
    logs = np.zeros((30, len(u))) + stats.norm.logpdf(u, 0, p["sd(g)"])
    np.add.at(logs, data["g"].to_numpy(), rows)
    weights = np.exp(logs - special.logsumexp(logs, axis=1, keepdims=True))
    mean = weights @ u
    sd = np.sqrt(weights @ u**2 - mean**2)
    z = (fit.effects["g"]["mean"].to_numpy() - mean) / sd * np.sqrt(1000 / 3)
    assert np.abs(z).max() < 5
    assert np.all(np.abs(np.log(fit.effects["g"]["sd"] / sd)) < 0.25)


def test_two_ordered_categories_fit_as_a_logit(fitted):
    data, logit = fitted("bernoulli")
    fit = lmm.fit(FORMULA["bernoulli"], data, "cumulative", seed=2)
    estimate = on_log_scale(logit).rename({"Intercept": "threshold(0|1)"})
    estimate["threshold(0|1)"] *= -1
    errors = logit.parameters[["std_error", "mcse"]].rename({"Intercept": "threshold(0|1)"})
    assert_close(fit, estimate, errors["std_error"] + 15 * errors["mcse"])
    np.testing.assert_allclose(fit.parameters["std_error"], errors["std_error"], rtol=0.1)


# What does not matter, and what decides


def test_labels_of_ordered_categories_do_not_matter(fitted):
    """Other labels, declared in the same order, with rows' codes the same: the identical fit. And
    the same seed gives the same fit."""
    data, fit = fitted("cumulative")
    labels = np.array(["zero", "few", "many", "all"])
    ordered = pd.Categorical(labels[data["y"] - 1], labels, ordered=True)
    again = lmm.fit(FORMULA["cumulative"], data.assign(y=ordered), "cumulative", seed=1)
    names = {
        f"threshold({i}|{i + 1})": f"threshold({labels[i - 1]}|{labels[i]})" for i in (1, 2, 3)
    }
    pd.testing.assert_frame_equal(again.parameters, fit.parameters.rename(names))
    np.testing.assert_array_equal(again.posterior["g"], fit.posterior["g"])


def test_the_seed_decides(fitted):
    data, fit = fitted("poisson")
    same, other = (lmm.fit(FORMULA["poisson"], data, "poisson", seed=s) for s in (1, 2))
    pd.testing.assert_frame_equal(same.parameters, fit.parameters)
    assert not np.allclose(other.parameters["estimate"], fit.parameters["estimate"], rtol=1e-6)
    assert_close(other, on_log_scale(fit), fit.parameters["std_error"])


def test_a_constant_offset_goes_into_the_intercept(fitted):
    """Nothing else changes: with the same seed not even the noise, but for rounding."""
    data, fit = fitted("poisson")
    longer = lmm.fit(FORMULA["poisson"], data.assign(t=data["t"] * 10), "poisson", seed=1)
    error = fit.parameters["std_error"]
    shift = pd.Series(0.0, error.index)
    shift["Intercept"] = np.log(10)
    away = (on_log_scale(longer) + shift - on_log_scale(fit)).abs()
    assert np.all(away < 0.2 * error + 3 * fit.parameters["mcse"])
    assert longer.parameters.loc["Intercept", "estimate"] < -1.5


def test_a_gaussian_offset_is_subtracted():
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"g": np.repeat(np.arange(20), 8), "z": rng.normal(size=160)})
    data["y"] = rng.normal(size=20)[data["g"]] + 3 * data["z"] + rng.normal(size=160)
    with_offset = lmm.fit("y ~ offset(3 * z) + (1|g)", data, seed=0)
    without = lmm.fit("y ~ 1 + (1|g)", data.assign(y=data["y"] - 3 * data["z"]), seed=0)
    exact = lmm.exact.fit("y ~ offset(3 * z) + (1|g)", data).parameters
    for fit in (with_offset, without):
        away = np.abs(fit.parameters["estimate"] - exact["estimate"])
        unit = np.where(exact.index.str.startswith("sd"), exact["estimate"], 1.0)
        assert np.all(away < (0.2 * exact["std_error"] + 3 * fit.parameters["mcse"]) * unit)
    # One seed, one way: float32's rounding, made larger on the way, is all that differs.
    error = exact["std_error"]
    away = (with_offset.parameters["estimate"] - without.parameters["estimate"]).abs()
    assert np.all(away < 0.02 * error)


# No variance between the groups: the ordinary regression


def dealt(name: str, seed: int = 5) -> pd.DataFrame:
    """Groups that differ less than by chance: rows dealt to them like cards, sorted by what an
    ordinary regression leaves of them."""
    data = simulate(name, seed, sd=0.0)
    x = sm.add_constant(data["x"])
    if name == "poisson":
        model = sm.GLM(data["y"], x, sm.families.Poisson(), offset=np.log(data["t"]))
        left = data["y"] - model.fit().fittedvalues
    else:
        code = pd.Categorical(data["y"]).codes
        left = code - sm.OLS(code, x).fit().fittedvalues
    order = np.argsort(left, kind="stable").to_numpy()
    groups, each = 30, 10
    for i in range(each):
        hand = order[i * groups : (i + 1) * groups]
        data.loc[hand, "g"] = np.arange(groups)[:: 1 if i % 2 else -1]
    return data


def ordinary(name: str, data: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """statsmodels' estimates in the order of our table, and standard errors of x."""
    x = sm.add_constant(data["x"])
    if name == "bernoulli":
        fit = sm.Logit(data["y"], x).fit(disp=0)
        return fit.params.to_numpy(), fit.bse.to_numpy()
    if name == "poisson":
        fit = sm.GLM(data["y"], x, sm.families.Poisson(), offset=np.log(data["t"])).fit()
        return fit.params.to_numpy(), fit.bse.to_numpy()
    if name == "cumulative":
        fit = OrderedModel(data["y"], data[["x"]], distr="logit").fit(
            method="bfgs", disp=0, gtol=1e-6
        )
        cuts = fit.model.transform_threshold_params(np.asarray(fit.params))[1:-1]
        return np.array([*cuts, fit.params["x"]]), np.array([np.nan] * 3 + [fit.bse["x"]])
    fit = sm.MNLogit(pd.Categorical(data["y"]).codes, x).fit(disp=0)
    (bus, car), (of_bus, of_car) = np.asarray(fit.params)
    error = np.asarray(fit.bse)
    return np.array([bus, car, of_car, of_bus / of_car]), np.array(
        [error[0, 0], error[0, 1], error[1, 1], np.nan]
    )


@pytest.mark.parametrize(
    "name",
    [
        "bernoulli",
        "poisson",
        pytest.param("cumulative", marks=pytest.mark.slow),
        pytest.param("categorical", marks=pytest.mark.slow),
    ],
)
def test_without_variance_it_is_the_ordinary_regression(name):
    data = dealt(name)
    fit = lmm.fit(FORMULA[name], data, family_of(name), seed=1)
    assert fit.converged
    assert fit.parameters.loc["sd(g)", "at_boundary"]
    assert fit.parameters.loc["sd(g)", "estimate"] == 0.0
    assert np.isnan(fit.parameters.loc["sd(g)", "std_error"])
    assert np.all(fit.posterior["g"] == 0.0)
    rest = fit.parameters.drop("sd(g)")
    assert not rest["at_boundary"].any()
    params, error = ordinary(name, data)
    assert np.all(np.abs(rest["estimate"] - params) < 0.2 * rest["std_error"] + 3 * rest["mcse"])
    known = np.isfinite(error)
    np.testing.assert_allclose(rest["std_error"][known], error[known], rtol=0.05)


@pytest.mark.parametrize("counts", ["less than a Poisson's", "all alike"])
def test_counts_that_vary_no_more_than_a_poissons_have_no_best_shape(counts):
    """Known from the binomial: its variance is less than its mean."""
    data = simulate("poisson", 1)
    rng = np.random.default_rng(0)
    data["y"] = rng.binomial(6, 0.7, len(data)) if counts.startswith("less") else 4
    with pytest.warns(UserWarning, match="not converged: 'shape' could as well be infinite"):
        fit = lmm.fit("y ~ x + (1|g)", data, "negativebinomial", seed=0)
    assert not fit.converged
    assert lmm.fit("y ~ x + (1|g)", data, "poisson", seed=0).converged


# Your own distribution


@pytest.mark.slow
def test_a_custom_normal_is_the_gaussian():
    data = simulate("student", seed=2)
    custom = lmm.fit("y ~ x + (1|g)", data, NORMAL, seed=1)
    exact = lmm.exact.fit("y ~ x + (1|g)", data).parameters
    estimate = exact["estimate"].copy()
    estimate["sd(g)"] = np.log(estimate["sd(g)"])
    error = exact["std_error"].copy()
    error["sd(residual)"] *= estimate["sd(residual)"]  # of the sd itself, as `custom` has it
    names = {"sd(residual)": "scale"}
    assert_close(custom, estimate.rename(names), error.rename(names))
    np.testing.assert_allclose(custom.parameters["std_error"], error, rtol=0.1)


@pytest.mark.slow
def test_a_custom_student_is_that_of_quadrature(fitted):
    data, fit = fitted("student")
    exact = Quadrature("student", data)
    assert_close(fit, exact.estimate, exact.std_error)
    gaussian = lmm.exact.fit(FORMULA["student"], data).parameters
    assert gaussian.loc["sd(residual)", "estimate"] > exact.estimate["scale"] * 1.1


# Simulations

REPEATS = 12


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_intervals_cover_the_truth(name):
    """z-scores of all parameters over data sets: their mean square is 1, and few exceed 2."""
    scores = []
    for seed in range(REPEATS):
        data = simulate(name, 100 + seed)
        fit = lmm.fit(FORMULA[name], data, family_of(name), seed=seed)
        assert fit.converged
        truth = pd.Series(TRUTH[name] | {"sd(g)": np.log(SD.get(name, 1.0))})
        scores.append((on_log_scale(fit) - truth) / fit.parameters["std_error"])
    scores = pd.DataFrame(scores)
    count = len(scores)
    # A mean of z-scores has an sd of 1 / sqrt(count), but maximum likelihood is biased by a
    # fraction of a standard error itself.
    assert np.all(np.abs(scores.mean()) < 4 / np.sqrt(count) + 0.3), scores.mean()
    square = (scores**2).to_numpy().mean()
    assert 0.5 < square < 1.7, square
    outside = (scores.abs() > 2).to_numpy().mean()
    assert outside < 0.05 + 4 * np.sqrt(0.05 / count / 2), outside


CLMM = {
    "threshold(1|2)": -2.2427, "threshold(2|3)": -1.0262, "threshold(3|4)": 0.1617,
    "threshold(4|5)": 1.4159, "service": -0.1403, "sd(students)": 0.4996,
    "sd(instructors)": 0.7826, "sd(departments)": 0.1179,
}  # fmt: skip


@pytest.mark.slow
def test_insteval_is_that_of_clmm(insteval):
    """R's ordinal::clmm; it approximates the integrals (Laplace), so within 0.01. And seeds agree
    to a tenth of a standard error."""
    formula = "ratings ~ service + (1|students) + (1|instructors) + (1|departments)"
    fits = [lmm.fit(formula, insteval, "cumulative", seed=seed) for seed in (1, 2, 3)]
    for fit in fits:
        assert fit.converged
        away = fit.parameters["estimate"] - pd.Series(CLMM)
        assert list(fit.parameters.index) == list(CLMM)
        assert away.abs().max() < 0.01
    found = pd.DataFrame([on_log_scale(fit) for fit in fits])
    rms = np.sqrt(((found - found.mean()) ** 2).mean())
    assert np.all(rms < 0.1 * fits[0].parameters["std_error"])
