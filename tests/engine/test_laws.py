"""Laws that hold whatever the numbers are: calibration, changes of units, split ratings, seeds."""

from __future__ import annotations

from typing import NamedTuple

import lmmbook
from lmmbook import families
from lmmbook.engine import arrays
from lmmbook.engine.e_step import adaptation, block_hmc
from lmmbook.engine.linear_predictor import linear_predictor, rows_of
from lmmbook.formula import build_design
from lmmbook.formula.covariance import parameter_names
from lmmbook.results.fit import Fit

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from conftest import Simulated, assert_conditional
from scipy import stats

# Simulation-based calibration (Talts et al. 2018; Modrák et al. 2025)

REPLICATIONS = 6000
DRAWS = 15  # kept of each replication, so that a rank is one of 16
THIN = 15  # sweeps between them, after which nothing is left of where a chain was
FALSE_ALARM = 1e-4  # all quantities together
SHORT, LONG = adaptation.MAX_STEP_SIZE, 1.7  # of long steps, up to a third are refused


def crossed_slopes() -> Simulated:
    """Correlated slopes beside a crossed intercept; x is not centred."""
    rng = np.random.default_rng(11)
    rows = 40
    data = pd.DataFrame(
        {
            "g": rng.permutation(np.resize(np.arange(5), rows)),
            "h": rng.choice(4, rows, p=[0.1, 0.2, 0.3, 0.4]),
            "x": rng.normal(0.7, 1.0, rows),
            "y": rng.normal(size=rows),  # not used: each replication has its own
        }
    )
    return _named("y ~ x + (1 + x|g) + (1|h)", data, [3.0, -0.5, 0.9, 0.6, -0.4, 0.5, 0.8])


def nested_ages() -> Simulated:
    """Pots in blocks; each pot has an age, whose slope differs between blocks.

    So a block's intercept trades with its pots' effects, and its slope does with weights.
    """
    rng = np.random.default_rng(12)
    block, pot = np.repeat(np.arange(4), 12), np.tile(np.repeat(np.arange(3), 4), 4)
    data = pd.DataFrame(
        {"block": block, "pot": pot, "age": rng.normal(0.5, 1.0, 12)[3 * block + pot]}
    )
    data = data.assign(y=rng.normal(size=len(data))).sample(frac=0.8, random_state=0)
    formula = "y ~ 1 + (1 + age|block) + (1|block:pot)"
    return _named(formula, data, [1.0, 0.9, 0.5, 0.3, 0.6, 0.8])


def _named(formula: str, data: pd.DataFrame, values: list[float]) -> Simulated:
    names = parameter_names(build_design(formula, data))
    return Simulated(formula, data, dict(zip(names, values, strict=True)))


class Calibration:
    """Replications as chains: each chain has true effects, and ratings, of its own.

    That works because a sweep sees ratings and linear predictor only through their difference,
    ``left``, ``[rows, chains]``: a chain with other ratings is one with another predictor.
    """

    def __init__(self, simulated: Simulated) -> None:
        self.design = build_design(simulated.formula, simulated.data)
        self.layout, self.arrays = arrays.on_device(self.design, REPLICATIONS)
        self.values = simulated.truth
        self.parameters = arrays.to_parameters(self.design, simulated.truth)

    def compiled(self):
        """``(parameters, effects, left, step_sizes, seed)`` to effects and left, THIN sweeps on."""

        def run(parameters, effects, left, step_sizes, seed):
            response = self.arrays.response[:, tf.newaxis]
            rows = rows_of(self.layout, self.arrays, parameters)
            state = arrays.State(parameters, effects, step_sizes, [], rows, response - left)

            def body(i, state):
                own_seed = tf.stack([seed, i])
                return i + 1, block_hmc.sweep(self.layout, self.arrays, state, own_seed)[0]

            _, state = tf.while_loop(lambda i, _: i < THIN, body, (0, state))
            return state.effects, response - state.predictor

        return tf.function(run, jit_compile=True, autograph=False)

    def steps(self, size: float) -> list[tf.Tensor]:
        """The same step size for all levels."""
        return [tf.fill([f.levels], np.float32(size)) for f in self.design.factors]

    def prior(self, rng: np.random.Generator) -> list[np.ndarray]:
        """A draw of all effects for each replication, ``[levels, chains, columns]`` a factor."""
        return [
            (rng.normal(size=(f.levels, REPLICATIONS, len(f.effects))) @ np.asarray(scale).T)
            for f, scale in zip(self.design.factors, self.parameters.scales, strict=True)
        ]

    def predictor(self, effects: list[np.ndarray]) -> np.ndarray:
        """``[rows, chains]``, what the effects add; rows in the order of the arrays."""
        order = arrays.row_order(self.design)
        return sum(
            np.einsum("rcj,rj->rc", u[f.codes[order]], f.z[order])
            for u, f in zip(effects, self.design.factors, strict=True)
        )

    def quantities(self, effects: list[np.ndarray], left: np.ndarray) -> dict[str, np.ndarray]:
        """Name to ``[chains]``: what is ranked. The log-likelihood and the log prior densities, up
        to constants, see what an effect alone does not: that the ratings were heeded."""
        found = {}
        for f, u, scale in zip(self.design.factors, effects, self.parameters.scales, strict=True):
            for j, effect in enumerate(f.effects):
                found[f"{effect}|{f.name}, first"] = u[0, :, j]
                found[f"{effect}|{f.name}, mean"] = u[..., j].mean(0)
            found[f"log p({f.name})"] = -0.5 * np.square(u @ np.linalg.inv(scale).T).sum((0, 2))
        found["log prior"] = sum(v for name, v in found.items() if name.startswith("log p("))
        found["first row"] = sum(
            u[f.codes[0]] @ f.z[0] for f, u in zip(self.design.factors, effects, strict=True)
        )
        found["log p(y|u)"] = -0.5 * np.square(left / self.values["sd(residual)"]).sum(0)
        found["log p(y,u)"] = found["log p(y|u)"] + found.pop("log prior")
        return found

    def p_values(self, run, parameters, step_size: float, seed: int) -> dict[str, float]:
        """Quantity to the p-value of chi-square: are the ranks of the truth uniform?

        The truth is drawn from the prior, the ratings given the truth, and the sampler begins at
        another draw of the prior.
        """
        rng = np.random.default_rng(seed)
        truth, start = self.prior(rng), self.prior(rng)
        noise = rng.normal(0, self.values["sd(residual)"], (self.design.rows, REPLICATIONS))
        signal = noise + self.predictor(truth)  # ratings less fixed effects
        known = self.quantities(truth, noise)
        ranks = dict.fromkeys(known, 0)
        state = (
            [tf.constant(u, tf.float32) for u in start],
            tf.constant(signal - self.predictor(start), tf.float32),
        )
        sizes = self.steps(step_size)
        for i in range(-2, DRAWS):  # two are left out, to forget the start
            state = run(parameters, *state, sizes, tf.constant(1000 * seed + i + 2))
            if i >= 0:
                drawn = [u.numpy().astype(float) for u in state[0]]
                now = self.quantities(drawn, signal - self.predictor(drawn))
                ranks = {name: ranks[name] + (now[name] < known[name]) for name in known}
        counts = {name: np.bincount(r, minlength=DRAWS + 1) for name, r in ranks.items()}
        return {name: float(stats.chisquare(c).pvalue) for name, c in counts.items()}


class Calibrated(NamedTuple):
    calibration: Calibration
    run: object


@pytest.fixture(scope="module", params=[crossed_slopes, nested_ages])
def calibrated(request) -> Calibrated:
    calibration = Calibration(request.param())
    return Calibrated(calibration, calibration.compiled())


def worst(p_values: dict[str, float]) -> float:
    """The smallest p-value, corrected for how many there are (Bonferroni)."""
    return len(p_values) * min(p_values.values())


@pytest.mark.parametrize("step_size", [SHORT, LONG])
def test_the_truth_is_just_another_draw(calibrated, step_size):
    """Right, it fails once in 10,000 seeds: chi-square of 16 ranks, Bonferroni over quantities."""
    calibration, run = calibrated
    p_values = calibration.p_values(run, calibration.parameters, step_size, seed=1)
    assert worst(p_values) > FALSE_ALARM, p_values


@pytest.mark.parametrize("what", ["residual", "prior"])
def test_calibration_finds_a_sampler_of_another_model(calibrated, what):
    """Parameters that are not the data's. The detection is not by a hair."""
    calibration, run = calibrated
    wrong = "sd(residual)" if what == "residual" else f"sd({calibration.design.factors[0].name})"
    values = calibration.values
    parameters = arrays.to_parameters(calibration.design, values | {wrong: 1.3 * values[wrong]})
    p_values = calibration.p_values(run, parameters, SHORT, seed=2)
    assert worst(p_values) < FALSE_ALARM**2, p_values


def test_calibration_finds_a_sampler_that_ignores_the_ratings(calibrated):
    """Draws of the prior are calibrated effect by effect, and only the likelihood tells."""
    calibration, run = calibrated
    deaf = calibration.parameters._replace(auxiliary=tf.math.log([1e4]))
    p_values = calibration.p_values(run, deaf, SHORT, seed=3)
    heeding = {"first row", "log p(y|u)", "log p(y,u)"}
    assert worst({name: p for name, p in p_values.items() if name not in heeding}) > FALSE_ALARM
    assert p_values["log p(y|u)"] < FALSE_ALARM**2


@pytest.mark.slow
def test_calibration_finds_a_sampler_that_accepts_everything(calibrated, monkeypatch):
    class Accepting(tfp.mcmc.HamiltonianMonteCarlo):
        def one_step(self, *arguments, **keywords):
            _, results = super().one_step(*arguments, **keywords)
            return results.proposed_state, results

    monkeypatch.setattr(tfp.mcmc, "HamiltonianMonteCarlo", Accepting)
    calibration, _ = calibrated
    p_values = calibration.p_values(calibration.compiled(), calibration.parameters, LONG, seed=4)
    assert worst(p_values) < FALSE_ALARM**2, p_values


# Split ratings


def split(data: pd.DataFrame) -> pd.DataFrame:
    """Each rating y as two, y + d and y - d, rows shuffled.

    With a residual sd sqrt(2) times as large, they say about the effects what y said: the terms in
    d do not depend on the effects.
    """
    d = np.random.default_rng(21).normal(0, 2, len(data))
    both = pd.concat([data.assign(y=data["y"] + d), data.assign(y=data["y"] - d)])
    return both.sample(frac=1, random_state=0)


@pytest.mark.parametrize("make", [crossed_slopes, nested_ages])
def test_split_ratings_say_the_same_about_the_effects(make):
    """Draws given the split ratings have the exact conditional distribution given the ratings as
    they were: about 120 comparisons at 5 standard errors, a false alarm in 10,000 seeds."""
    simulated = make()
    truth = simulated.truth
    doubled = truth | {"sd(residual)": np.sqrt(2) * truth["sd(residual)"]}
    calibration = Calibration(Simulated(simulated.formula, split(simulated.data), doubled))
    start = [tf.constant(u, tf.float32) for u in calibration.prior(np.random.default_rng(22))]
    predictor = linear_predictor(calibration.arrays, calibration.parameters, start)
    left = calibration.arrays.response[:, tf.newaxis] - predictor
    run, sizes = calibration.compiled(), calibration.steps(SHORT)
    for seed in range(23, 26):
        start, left = run(calibration.parameters, start, left, sizes, tf.constant(seed))
    original = build_design(simulated.formula, simulated.data)
    assert_conditional(original, truth, [u.numpy() for u in start])


@pytest.mark.slow
def test_split_ratings_have_the_same_maximum(ratings):
    """With the residual sd fixed. 7 comparisons of means over seeds, see `assert_same`."""
    formula, data, _ = ratings
    one = fits(formula, data, families.Gaussian(sd=0.8), first=0)
    two = fits(formula, split(data), families.Gaussian(sd=0.8 * np.sqrt(2)), first=SEEDS)
    free = [name for name in one[0].parameters.index if name != "sd(residual)"]
    assert_same(in_units(one, {}).loc[free], in_units(two, {}).loc[free])


# Other units, other order, other names

SEEDS = 6


def fits(formula: str, data: pd.DataFrame, family="gaussian", *, first: int) -> list[Fit]:
    found = [lmmbook.fit(formula, data, family, seed=first + i) for i in range(SEEDS)]
    assert all(fit.converged for fit in found)
    return found


class Ratings(NamedTuple):
    formula: str
    data: pd.DataFrame
    fits: list[Fit]


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    rng = np.random.default_rng(31)
    n, groups, hosts = 600, 40, 12
    data = pd.DataFrame({"g": rng.integers(0, groups, n), "h": rng.integers(0, hosts, n)})
    data = data.assign(x=rng.normal(1, 1, n), age=rng.normal(size=groups)[data["g"]])
    u = rng.multivariate_normal([0, 0], [[0.6, 0.2], [0.2, 0.3]], groups)[data["g"]]
    data["y"] = 1 + 0.5 * data["x"] + 0.3 * data["age"] + u[:, 0] + u[:, 1] * data["x"]
    data["y"] += rng.normal(0, 0.5, hosts)[data["h"]] + rng.normal(0, 0.8, n)
    formula = "y ~ x + age + (1 + x|g) + (1|h)"
    return Ratings(formula, data, fits(formula, data, first=0))


def in_units(
    found: list[Fit], back: dict[str, float] | None = None, added: float = 0.0
) -> pd.DataFrame:
    """Mean over fits of each parameter, and its Monte Carlo standard error.

    ``back`` has the factors that take estimates to the units of the ratings as they were, and
    ``added`` what is then added to the intercept. Sds become logarithms, and correlations Fisher's
    z, as their errors are.
    """
    names = found[0].parameters.index
    by = np.array([(back or {}).get(name, 1.0) for name in names])
    values = np.array([fit.parameters["estimate"] for fit in found], float) * by
    errors = np.array([fit.parameters["mcse"] for fit in found], float)
    values[:, names == "Intercept"] += added
    sd, cor = names.str.startswith("sd("), names.str.startswith("cor(")
    values[:, sd], values[:, cor] = np.log(values[:, sd]), np.arctanh(values[:, cor])
    errors[:, ~(sd | cor)] *= np.abs(by[~(sd | cor)])
    error = np.sqrt((errors**2).sum(0)) / len(found)
    return pd.DataFrame({"estimate": values.mean(0), "mcse": error}, index=names)


def assert_same(one: pd.DataFrame, two: pd.DataFrame) -> None:
    """Parameters within 5 combined Monte Carlo standard errors of the means over seeds.

    If these are right, one comparison fails once in 1,700,000 times, a table of 8 once in 200,000;
    if they are a fifth too small, once in 15,000 and 2,000.
    """
    assert list(one.index) == list(two.index)
    z = (one["estimate"] - two["estimate"]) / np.hypot(one["mcse"], two["mcse"])
    assert z.notna().all()
    assert z.abs().max() < 5, z


ORDER = np.random.default_rng(32).permutation(40)


def shuffled(data: pd.DataFrame) -> pd.DataFrame:
    return data.sample(frac=1, random_state=1)


def renamed(data: pd.DataFrame) -> pd.DataFrame:
    """The levels have other names, which come in another order."""
    return data.assign(
        g=pd.Series(ORDER)[data["g"]].map("g{:02}".format).to_numpy(),
        h=pd.Categorical.from_codes(data["h"], [f"h{i}" for i in range(12)]),  # "h10" before "h2"
    )


def covariates_in_other_units(data: pd.DataFrame) -> pd.DataFrame:
    return data.assign(x=-1000 * data["x"], age=0.001 * data["age"])


def ratings_in_other_units(data: pd.DataFrame) -> pd.DataFrame:
    return data.assign(y=100 - 10 * data["y"])


# What takes the estimates back: factors, and what is added to the intercept.
BACK: dict = {
    shuffled: ({}, 0.0),
    renamed: ({}, 0.0),
    covariates_in_other_units: (
        {"x": -1000.0, "sd(x|g)": 1000.0, "cor(Intercept,x|g)": -1.0, "age": 0.001},
        0.0,
    ),
    ratings_in_other_units: (
        dict.fromkeys(["Intercept", "x", "age"], -0.1)
        | dict.fromkeys(["sd(g)", "sd(x|g)", "sd(h)", "sd(residual)"], 0.1),
        10.0,
    ),
}


@pytest.mark.parametrize("change", BACK)
def test_order_names_and_units_are_conventions(ratings, change):
    """Other seeds, so that the law does not lean on how random numbers are used. Parameters as in
    `assert_same`."""
    formula, data, before = ratings
    after = fits(formula, change(data), first=SEEDS)
    assert_same(in_units(before), in_units(after, *BACK[change]))


def test_effects_keep_to_their_levels(ratings):
    """Conditional means, found by the levels' names. How far seeds are apart gives the error, one
    for all levels (some 60 degrees of freedom at least). 92 comparisons at 6 errors; for a level of
    few ratings these may be 4.2 of its own, so a false alarm in some thousands of seeds."""
    formula, data, before = ratings
    after = fits(formula, shuffled(renamed(data)), first=SEEDS)
    names = {
        "g": [f"g{i:02}" for i in ORDER],  # of 0, 1, 2, ...
        "h": [f"h{i}" for i in range(12)],
    }
    for factor, labels in names.items():
        one = np.array([_means(fit.effects[factor].sort_index()) for fit in before])
        two = np.array([_means(fit.effects[factor].loc[labels]) for fit in after])
        error = np.sqrt((one.var(0, ddof=1) + two.var(0, ddof=1)) / SEEDS)
        z = (one.mean(0) - two.mean(0)) / np.sqrt(np.square(error).mean(0))
        assert np.abs(z).max() < 6
        assert np.all(one.mean(0).std(0) > 10 * error.mean(0))  # or any order would do


def _means(effects: pd.DataFrame) -> np.ndarray:
    """``[levels, columns]``"""
    if "mean" in effects:
        return effects[["mean"]].to_numpy()
    return effects.xs("mean", axis=1, level=1).to_numpy()


# Seeds


def by_chain(fit: Fit, factor: str) -> np.ndarray:
    """Standardised draws ``[draws, chains, levels]``."""
    draws = fit.posterior[factor]
    draws = (draws - draws.mean(0)) / draws.std(0)
    return draws.reshape(-1, fit.chains, draws.shape[1])


def correlated(one: np.ndarray, two: np.ndarray) -> float:
    """Mean correlation over levels, in standard errors. Chains are independent, so their spread
    gives the error, however much the draws of a chain have to do with each other."""
    draws = min(len(one), len(two))
    r = (one[:draws] * two[:draws]).mean((0, 2))
    return float(r.mean() / (r.std(ddof=1) / np.sqrt(len(r))))


def test_seeds_and_chains_have_nothing_to_do_with_each_other(tiny):
    """Within 5 standard errors: t with 63 degrees of freedom, 20 comparisons, false once in 10,000
    choices of seeds. Draw beside draw, and beside draws of other chains and later ones."""
    one, two = (lmmbook.fit(tiny.formula, tiny.data, seed=seed) for seed in (0, 1))
    assert one.chains == 64
    for factor in ("g", "h"):
        a, b = by_chain(one, factor), by_chain(two, factor)
        assert correlated(a, a) > 20  # what would be found
        for shift in range(1, 4):
            assert abs(correlated(a, np.roll(a, shift, axis=1))) < 5
        for shift in range(4):
            assert abs(correlated(a, np.roll(b, shift, axis=1))) < 5
        for later in range(1, 4):
            assert abs(correlated(a[later:], b)) < 5
