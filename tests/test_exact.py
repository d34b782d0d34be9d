"""The oracle, against dense algebra, closed forms and the published fit of InstEval."""

from __future__ import annotations

import itertools

from lmmbook import exact, families
from lmmbook.covariance import parameter_names
from lmmbook.formula import build_design
from lmmbook.marginal import Marginal

import numpy as np
import pandas as pd
import pytest
from conftest import dense, dense_conditional
from scipy import optimize, stats


def small(seed: int = 0, rows: int = 45) -> pd.DataFrame:
    """Unbalanced on purpose: level i of g occurs about i times as often as level 0."""
    rng = np.random.default_rng(seed)
    g = np.concatenate([np.arange(6), rng.choice(6, rows - 6, p=np.arange(1, 7) / 21)])
    return pd.DataFrame(
        {
            "g": g,
            "h": np.concatenate([np.arange(4), rng.integers(0, 4, rows - 4)]),
            "k": np.concatenate([np.arange(3), rng.integers(0, 3, rows - 3)]),
            "x": rng.normal(size=rows),
            "c": rng.permutation(np.resize(["u", "v", "w"], rows)),
            "y": 3 + rng.normal(size=6)[g] + rng.normal(size=rows),
        }
    )


CASES = {
    "one": ("y ~ 1 + (1|g)", [3.1], [0.7, 1.3]),
    "crossed": ("y ~ x + (1|g) + (1|h)", [3.1, 0.4], [0.7, 0.2, 1.3]),
    "largest factor last": ("y ~ x + (1|h) + (1|g)", [3.1, 0.4], [0.2, 0.7, 1.3]),
    "nested": ("y ~ 1 + (1|h/k)", [2.5], [0.7, 0.9, 0.4]),
    "three": ("y ~ 1 + (1|g) + (1|h) + (1|k)", [2.5], [0.7, 1.9, 0.3, 0.8]),
    "covariates": ("y ~ x*c + (1|g) + (1|h)", [3, -0.5, 0.2, 1, 0.3, 0.1], [0.5, 0.4, 1.0]),
    "no intercept": ("y ~ 0 + x + (1|g) + (1|h)", [0.4], [3.0, 0.4, 1.0]),
    "one sd is zero": ("y ~ x + (1|g) + (1|h)", [3.1, 0.4], [0.0, 0.5, 1.3]),
    "the other sd is zero": ("y ~ x + (1|g) + (1|h)", [3.1, 0.4], [0.5, 0.0, 1.3]),
    "all sds are zero": ("y ~ x + (1|g) + (1|h)", [3.1, 0.4], [0.0, 0.0, 1.3]),
    "slopes": ("y ~ x + (1 + x|g) + (1|h)", [3.1, 0.4], [0.7, 0.4, -0.5, 0.3, 1.3]),
    "independent slopes": ("y ~ x + (1 + x||g) + (1|h)", [3.1, 0.4], [0.7, 0.4, 0.3, 1.3]),
    "slopes alone": ("y ~ x + (0 + x|g) + (x|h)", [3.1, 0.4], [0.7, 0.4, 0.2, 0.6, 1.3]),
    "slopes in a small factor": ("y ~ x + (1|g) + (1 + x|k)", [3, 0.4], [0.7, 0.4, 0.2, 0.9, 1.3]),
    "correlation of one": ("y ~ x + (1 + x|g)", [3.1, 0.4], [0.7, 0.4, 1.0, 1.3]),
    "slope without spread": ("y ~ x + (1 + x|g)", [3.1, 0.4], [0.7, 0.0, 0.0, 1.3]),
    "sds far apart": ("y ~ x + (1|g) + (1|h)", [3.1, 0.4], [1e-3, 50.0, 0.1]),
}


def case(name: str) -> tuple[str, pd.DataFrame, dict[str, float]]:
    formula, beta, sds = CASES[name]
    data = small()
    design = build_design(formula, data)
    return formula, data, dict(zip(parameter_names(design), [*beta, *sds], strict=True))


@pytest.mark.parametrize("name", CASES)
def test_log_likelihood_is_the_dense_normal_density(name):
    formula, data, parameters = case(name)
    mean, covariance, *_ = dense(build_design(formula, data), parameters)
    truth = stats.multivariate_normal.logpdf(data["y"], mean, covariance)
    assert exact.log_likelihood(formula, data, parameters) == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_effects_are_those_of_dense_gaussian_conditioning(name):
    formula, data, parameters = case(name)
    design = build_design(formula, data)
    mean, covariance = dense_conditional(design, parameters)
    effects = exact.effects(formula, data, parameters)
    assert list(effects) == [f.name for f in design.factors]
    for factor in design.factors:
        assert effects[factor.name].index.equals(factor.labels)
        assert effects[factor.name].index.name == factor.name
    slopes = [f.effects != ("Intercept",) for f in design.factors]

    def stacked(what: str) -> np.ndarray:  # level by level, columns fastest
        parts = [
            frame.xs(what, axis=1, level=1) if has else frame[[what]]
            for frame, has in zip(effects.values(), slopes, strict=True)
        ]
        return np.concatenate([part.to_numpy().ravel() for part in parts])

    np.testing.assert_allclose(stacked("mean"), mean, rtol=1e-7, atol=1e-9)
    variances = np.maximum(np.diag(covariance), 0)  # where the sd is zero, rounding is all there is
    np.testing.assert_allclose(stacked("sd") ** 2, variances, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_that_of_finite_differences(name):
    """In the fixed effects, in every entry of every covariance, and in log residual sd."""
    formula, data, parameters = case(name)
    design = build_design(formula, data)
    marginal = Marginal(design)
    beta, covariances, residual_sd = exact._unpack(design, parameters)
    found = marginal.evaluate(beta, covariances, residual_sd)

    def value(db=0.0, k=None, dc=0.0, ds=0.0) -> float:
        moved = [c + dc if j == k else c for j, c in enumerate(covariances)]
        return marginal.evaluate(beta + db, moved, residual_sd * np.exp(ds)).value

    h = 1e-5
    for i, slope in enumerate(found.beta_score):
        e = h * np.eye(len(beta))[i]
        assert slope == pytest.approx((value(db=e) - value(db=-e)) / (2 * h), rel=1e-4, abs=1e-3)
    for k, c in enumerate(covariances):
        slopes = (found.observed[k] - found.expected[k]) / 2
        scale = max(np.abs(c).max(), 1e-3)
        for a, b in itertools.combinations_with_replacement(range(len(c)), 2):
            e = np.zeros_like(c)
            e[a, b] = e[b, a] = h * scale
            truth = (value(k=k, dc=e) - value(k=k, dc=0 * e)) / (h * scale)  # a zero cannot go down
            slope = slopes[a, b] * (1 if a == b else 2)
            assert slope == pytest.approx(truth, rel=2e-3, abs=1e-2 * np.abs(slopes).max())
    truth = (value(ds=h) - value(ds=-h)) / (2 * h)
    assert found.residual_score == pytest.approx(truth, rel=1e-4, abs=1e-3)


def test_profiling_takes_the_best_fixed_effects():
    formula, data, parameters = case("covariates")
    design = build_design(formula, data)
    marginal = Marginal(design)
    _, covariances, residual_sd = exact._unpack(design, parameters)
    x, (_, covariance, *_) = design.fixed, dense(design, parameters)
    weighted = np.linalg.solve(covariance, x)
    beta = np.linalg.solve(x.T @ weighted, weighted.T @ design.response)
    profiled = marginal.evaluate(None, covariances, residual_sd)
    at = marginal.evaluate(beta, covariances, residual_sd)
    assert profiled.value == pytest.approx(at.value, rel=1e-12)
    np.testing.assert_allclose(profiled.beta_score, 0, atol=1e-9)


def test_rows_and_labels_are_only_names(crossed):
    formula, data, truth = crossed
    g, h = data["g"], data["h"]
    other = data.assign(g=(99 - g).map("g{:03}".format), h=(-h).astype("category"))
    other = other.sample(frac=1, random_state=0).set_index(np.arange(len(data))[::-1])
    value = exact.log_likelihood(formula, data, truth)
    assert exact.log_likelihood(formula, other, truth) == pytest.approx(value, rel=1e-12)
    effects, renamed = (exact.effects(formula, d, truth)["g"] for d in (data, other))
    np.testing.assert_allclose(renamed.iloc[::-1], effects, rtol=1e-8)
    one, two = (exact.fit(formula, d).parameters for d in (data, other))
    for column in ("estimate", "std_error"):
        np.testing.assert_allclose(two[column], one[column], rtol=1e-5)


@pytest.mark.parametrize("name", ["crossed", "nested"])
@pytest.mark.parametrize("family", ["gaussian", families.Gaussian(sd=1.0)])
def test_the_fit_is_a_maximum(name, family, request):
    formula, data, _ = request.getfixturevalue(name)
    fit = exact.fit(formula, data, family)
    estimate, se = fit.parameters["estimate"], fit.parameters["std_error"]
    assert exact.log_likelihood(formula, data, estimate) == pytest.approx(fit.log_likelihood)
    free = se.index[se.notna()]
    assert (set(se.index) - set(free)) == ({"sd(residual)"} if family != "gaussian" else set())

    def rise(step: pd.Series) -> float:
        """By how much a step in standard errors (of logs, for sds) raises the log-likelihood."""
        is_sd = estimate.index.str.startswith("sd(")
        change = (se * step).reindex(se.index).fillna(0)  # what is fixed stays
        moved = (estimate + change).where(~is_sd, estimate * np.exp(change))
        return exact.log_likelihood(formula, data, moved) - fit.log_likelihood

    rng = np.random.default_rng(0)
    directions = [*np.eye(len(free)), *rng.normal(size=(10, len(free)))]
    for direction, size in itertools.product(directions, [0.01, 0.3]):
        step = pd.Series(size * direction, free)
        up, down = rise(step), rise(-step)
        assert max(up, down) < 0
        # At a stationary point the two falls are equal to first order. A slope of as little as
        # 1e-3 per standard error would tell them apart.
        if size == 0.01:
            assert abs(up - down) < 1e-5 * np.abs(direction).sum()


@pytest.mark.parametrize("family", ["gaussian", families.Gaussian(sd=1.2)])
def test_standard_errors_are_those_of_a_numerical_hessian(crossed, family):
    """Second differences of the log-likelihood, in the logarithms of the sds."""
    formula, data, _ = crossed
    table = exact.fit(formula, data, family).parameters
    free = table.index[table["std_error"].notna()]
    is_sd = free.str.startswith("sd(")
    centre = np.where(is_sd, np.log(table["estimate"][free]), table["estimate"][free])
    steps = np.diag(0.02 * table["std_error"][free])  # the truncation error is 1e-4 or so

    def value(point: np.ndarray) -> float:
        moved = table["estimate"].copy()
        moved[free] = np.where(is_sd, np.exp(point), point)
        return exact.log_likelihood(formula, data, moved)

    hessian = np.array(
        [
            [
                value(centre + a + b) - value(centre + a - b)
                - value(centre - a + b) + value(centre - a - b)
                for b in steps
            ]
            for a in steps
        ]
    ) / (4 * np.outer(np.diag(steps), np.diag(steps)))  # fmt: skip
    truth = np.sqrt(np.diag(np.linalg.inv(-hessian)))
    np.testing.assert_allclose(table["std_error"][free], truth, rtol=2e-3)


def one_way(seed: int, sd: float, groups: int = 7, each: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), each)
    return pd.DataFrame({"g": g, "y": 4 + rng.normal(0, sd, groups)[g] + rng.normal(size=len(g))})


def anova(data: pd.DataFrame) -> tuple[float, float, float]:
    """Of a balanced one-way layout: mean square within, the ML and the REML variance between."""
    by_group = data.groupby("g")["y"]
    each = len(data) // by_group.ngroups
    within = by_group.var(ddof=1).mean()
    between_ml = by_group.mean().var(ddof=0) - within / each
    between_reml = by_group.mean().var(ddof=1) - within / each
    return within, between_ml, between_reml


def test_a_balanced_one_way_layout_gives_the_anova_estimates_of_ml_not_reml():
    data = one_way(seed=4, sd=1.0)
    within, between_ml, between_reml = anova(data)
    estimate = exact.fit("y ~ 1 + (1|g)", data).parameters["estimate"]
    assert estimate["Intercept"] == pytest.approx(data["y"].mean(), rel=1e-8)
    assert estimate["sd(residual)"] == pytest.approx(np.sqrt(within), rel=1e-6)
    assert estimate["sd(g)"] == pytest.approx(np.sqrt(between_ml), rel=1e-6)
    assert abs(estimate["sd(g)"] / np.sqrt(between_reml) - 1) > 0.05


def test_an_sd_is_zero_exactly_where_the_groups_differ_less_than_by_chance():
    zeros = 0
    for seed in range(60):
        data = one_way(seed, sd=0.3)
        _, between, _ = anova(data)
        table = exact.fit("y ~ 1 + (1|g)", data).parameters
        if between > 0:
            assert table["estimate"]["sd(g)"] == pytest.approx(np.sqrt(between), rel=1e-3), seed
            assert table["std_error"].notna().all()
        else:
            zeros += 1
            assert table["estimate"]["sd(g)"] == 0.0, seed
            assert np.isnan(table["std_error"]["sd(g)"])
            assert table["estimate"]["sd(residual)"] == pytest.approx(data["y"].std(ddof=0))
            assert table["std_error"].drop("sd(g)").notna().all()
    assert 10 < zeros < 50  # both happened


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_no_variance_of_zero_wants_to_grow(scale):
    """At a maximum the score is zero, and in a variance that is zero it is not positive."""
    formula = "y ~ x + (1|g) + (1|h)"
    zeros = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rows, groups, hosts = rng.integers(25, 120), rng.integers(3, 12), rng.integers(3, 8)
        data = pd.DataFrame(
            {
                "g": rng.integers(0, groups, rows),
                "h": rng.integers(0, hosts, rows),
                "x": rng.normal(size=rows),
            }
        )
        sd_g, sd_h = rng.choice([0, 0.2, 0.5, 2.0], 2)
        data["y"] = scale * (
            2
            + 0.5 * data["x"]
            + rng.normal(0, sd_g, groups)[data["g"]]
            + rng.normal(0, sd_h, hosts)[data["h"]]
            + rng.normal(size=rows)
        )
        design = build_design(formula, data)
        estimate = exact.fit(formula, data).parameters["estimate"]
        mean, covariance, *_ = dense(design, estimate)
        white = np.linalg.solve(covariance, data["y"] - mean)
        np.testing.assert_allclose(design.fixed.T @ white * scale, 0, atol=1e-3)
        for factor in design.factors:
            z = np.eye(factor.levels)[factor.codes]
            expected = np.trace(z.T @ np.linalg.solve(covariance, z))
            surplus = np.sum((z.T @ white) ** 2) / expected - 1  # the score, relative
            if estimate[f"sd({factor.name})"] == 0:
                zeros += 1
                assert surplus <= 1e-6, (seed, factor.name)
            else:
                assert abs(surplus) < 1e-3, (seed, factor.name)
    assert 15 < zeros < 105


def test_the_residual_sd_stays_where_it_is_fixed(crossed):
    table = exact.fit(crossed.formula, crossed.data, families.Gaussian(sd=0.9)).parameters
    assert table["estimate"]["sd(residual)"] == 0.9
    assert np.isnan(table["std_error"]["sd(residual)"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "parameters: expected"),
        ({"sd(h)": None}, "parameters: expected"),
        ({"slope": 1.0}, "parameters: expected"),
        ({"sd(g)": -0.1}, "expected sds >= 0"),
        ({"sd(residual)": 0.0}, r"sd\(residual\) > 0"),
        ({"sd(g)": np.nan}, "expected sds >= 0"),
    ],
)
@pytest.mark.parametrize("function", [exact.log_likelihood, exact.effects])
def test_wrong_parameters_are_refused(tiny, function, change, message):
    parameters = {k: v for k, v in (tiny.truth | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        function(tiny.formula, tiny.data, parameters)


def test_other_families_are_refused(tiny):
    with pytest.raises(ValueError, match="family: expected"):
        exact.fit(tiny.formula, tiny.data, "poisson")


# InstEval: the published fit (lme4; MixedModels.jl's own tests assert the log-likelihood).

INSTEVAL = "ratings ~ service + (1|students) + (1|instructors) + (1|departments)"
NAMES = [
    "Intercept", "service", "sd(students)", "sd(instructors)", "sd(departments)", "sd(residual)"
]  # fmt: skip
PUBLISHED = {
    "estimated": ([3.28258, -0.09259, 0.32553, 0.51498, 0.07852, 1.17749], -118860.8844),
    "fixed": ([3.28637, -0.08913, 0.35306, 0.52734, 0.08410, 1.0], -120934.2910),
}
STD_ERRORS = [0.0284, 0.0134, 0.0212, 0.0249, 0.3124, 0.0027]


@pytest.fixture(scope="session")
def insteval_fits(insteval) -> dict[str, exact.ExactFit]:
    return {
        "estimated": exact.fit(INSTEVAL, insteval),
        "fixed": exact.fit(INSTEVAL, insteval, families.Gaussian(sd=1.0)),
    }


@pytest.mark.parametrize("residual", PUBLISHED)
def test_insteval_is_fitted_as_published(insteval_fits, residual):
    fit, (truth, log_likelihood) = insteval_fits[residual], PUBLISHED[residual]
    assert list(fit.parameters.index) == NAMES
    np.testing.assert_allclose(fit.parameters["estimate"], truth, rtol=0, atol=1e-4)
    assert fit.log_likelihood == pytest.approx(log_likelihood, abs=1e-3)


def test_insteval_standard_errors_are_as_published(insteval_fits):
    # To 1%, and to the last printed digit of the source.
    found = insteval_fits["estimated"].parameters["std_error"]
    np.testing.assert_allclose(found, STD_ERRORS, rtol=0.01, atol=5e-5)


def test_insteval_log_likelihood_is_that_of_mixedmodels(insteval_fits):
    assert -2 * insteval_fits["estimated"].log_likelihood == pytest.approx(237721.76877, abs=1e-3)


def test_a_correlation_and_its_standard_error_are_those_of_a_dense_optimiser():
    """Slopes with correlation, away from the boundary: another way up, by the dense density."""
    rng = np.random.default_rng(1)
    data = small(1, 160).assign(x=rng.normal(size=160))
    u = rng.multivariate_normal([0, 0], [[0.8, 0.3], [0.3, 0.5]], 6)
    data["y"] = 1 + data["x"] + u[data["g"], 0] + u[data["g"], 1] * data["x"] + rng.normal(size=160)
    formula = "y ~ x + (1 + x|g)"
    found = exact.fit(formula, data)
    names = found.parameters.index

    def value(point: np.ndarray) -> float:
        back = [float, float, np.exp, np.exp, np.tanh, np.exp]
        values = {n: f(v) for n, f, v in zip(names, back, point, strict=True)}
        mean, covariance, *_ = dense(build_design(formula, data), values)
        return stats.multivariate_normal.logpdf(data["y"], mean, covariance)

    estimate = found.parameters["estimate"].to_numpy()
    point = np.concatenate([estimate[:2], np.log(estimate[2:4]), [np.arctanh(estimate[4])],
                            [np.log(estimate[5])]])  # fmt: skip
    best = optimize.minimize(lambda p: -value(p), point + 0.1, method="BFGS")
    assert found.log_likelihood == pytest.approx(-best.fun, abs=1e-4)
    np.testing.assert_allclose(point, best.x, atol=2e-3)
    steps = 1e-2 * np.eye(6)
    hessian = [
        [(value(point + a + b) - value(point + a - b) - value(point - a + b) + value(point - a - b))
         / 4e-4 for b in steps] for a in steps
    ]  # fmt: skip
    errors = np.sqrt(np.diag(np.linalg.inv(-np.array(hessian))))
    np.testing.assert_allclose(found.parameters["std_error"], errors, rtol=0.02)


@pytest.mark.parametrize("seed", range(12))
def test_a_boundary_is_only_reported_where_nothing_is_to_be_gained(seed):
    """No start from elsewhere gets higher, singular covariances included."""
    rng = np.random.default_rng(seed)
    data = small(seed, 90)
    sd = rng.choice([0.0, 0.1, 0.6], 2)
    data["y"] = sd[0] * rng.normal(size=6)[data["g"]] + rng.normal(size=90)
    data["y"] += sd[1] * rng.normal(size=6)[data["g"]] * data["x"]
    formula = "y ~ x + (1 + x|g) + (1|h)"
    found = exact.fit(formula, data)
    start = found.parameters["estimate"].fillna(0.0)
    for _ in range(30):
        moved = start.copy()
        for name in start.index[start.index.str.startswith("sd(")]:
            moved[name] = abs(start[name] + rng.normal(0, 0.1))
        moved["cor(Intercept,x|g)"] = rng.uniform(-1, 1)
        assert exact.log_likelihood(formula, data, moved) <= found.log_likelihood + 1e-6
