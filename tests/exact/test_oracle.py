"""The oracle, against dense algebra, closed forms and the published fit of InstEval."""

from __future__ import annotations

import itertools

from lmmbook import exact, families
from lmmbook.exact import oracle
from lmmbook.exact.marginal import Marginal
from lmmbook.exact.theta import Theta, lower
from lmmbook.formula import build_design
from lmmbook.formula.covariance import parameter_names

import numpy as np
import pandas as pd
import pytest
from conftest import dense, dense_conditional
from scipy import linalg, optimize, stats


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
    beta, covariances, residual_sd = oracle._unpack(design, parameters)
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
    _, covariances, residual_sd = oracle._unpack(design, parameters)
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


# Hard data: few levels, and effects that are nought, or the same but for a factor. Most of the
# maxima are singular covariances.

HARD = {
    0: "y ~ x + (1 + x|g)",
    1: "y ~ x + z + (1 + x + z|g) + (1|h)",
    2: "y ~ 1 + (1 + x + z|g)",
    3: "y ~ x + (1 + x + z|g) + (1 + x|h)",
}


def hard(seed: int) -> tuple[str, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    rows, g_levels, h_levels = rng.integers(40, 110), rng.integers(4, 9), rng.integers(3, 7)
    data = pd.DataFrame(
        {
            "g": np.resize(np.arange(g_levels), rows),
            "h": np.concatenate(
                [np.arange(h_levels), rng.integers(0, h_levels, rows - h_levels)]
            ),
            "x": rng.normal(rng.choice([0, 2]), 1, rows),
            "z": rng.normal(size=rows),
        }
    )  # fmt: skip
    sd, rank = rng.choice([0, 0.3, 1.0, 2.0], 3), seed % 3
    root = sd[:, None] * rng.choice([-1, 1], (3, 1)) if rank else np.diag(sd)
    effects = rng.normal(size=(g_levels, root.shape[1])) @ root.T
    columns = np.column_stack([np.ones(rows), data["x"], data["z"]])
    data["y"] = 1 + (effects[data["g"]] * columns).sum(1) + rng.normal(size=rows)
    data["y"] += rng.choice([0, 0.5]) * rng.normal(size=h_levels)[data["h"]]
    return HARD[seed % len(HARD)], data


def yardstick(formula: str, data: pd.DataFrame, starts: int) -> float:
    """The highest of many climbs by the dense density, each with its square roots and its start."""
    design = build_design(formula, data)
    x, y, spread = design.fixed, design.response, float(np.std(design.response))
    parts = []  # [rows, levels, columns] a block, each column of the spread of y
    for factor in design.factors:
        indicators = np.eye(factor.levels)[factor.codes]
        for block in factor.blocks:
            z = factor.z[:, block] / np.sqrt((factor.z[:, block] ** 2).mean(0)) * spread
            parts.append(indicators[:, :, None] * z[:, None, :])
    ends = np.cumsum([part.shape[2] ** 2 for part in parts])

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        roots = [
            p.reshape(part.shape[2], -1)
            for p, part in zip(np.split(point[:-1], ends[:-1]), parts, strict=True)
        ]
        scaled = [(part @ root) for part, root in zip(parts, roots, strict=True)]
        flat = np.hstack([s.reshape(len(y), -1) for s in scaled])
        variance = np.exp(2 * point[-1])
        covariance = variance * np.eye(len(y)) + flat @ flat.T
        inverse = np.linalg.inv(covariance)
        residual = y - x @ np.linalg.solve(x.T @ inverse @ x, x.T @ inverse @ y)
        white = inverse @ residual
        value = np.linalg.slogdet(covariance)[1] + residual @ white + len(y) * np.log(2 * np.pi)
        slope = inverse - np.outer(white, white)  # twice that of -log-likelihood
        by_root = [
            np.einsum("nlq,nlr->qr", part, (slope @ s.reshape(len(y), -1)).reshape(s.shape)).ravel()
            for part, s in zip(parts, scaled, strict=True)
        ]
        return value / 2, np.concatenate([*by_root, [variance * np.trace(slope)]])

    rng, best = np.random.default_rng(0), np.inf
    for _ in range(starts):
        point = np.append(rng.normal(0, 0.3, ends[-1]), np.log(spread * rng.uniform(0.2, 0.9)))
        bounds = [(None, None)] * ends[-1] + [(np.log(spread) - 6, np.log(spread) + 1)]
        for _ in range(3):
            found = optimize.minimize(
                objective, point, jac=True, method="L-BFGS-B", bounds=bounds,
                options={"ftol": 1e-13, "gtol": 1e-6, "maxiter": 1000},
            )  # fmt: skip
            point, best = found.x, min(best, found.fun)
    return -best


@pytest.mark.parametrize("seed", range(16))
def test_hard_data_are_fitted_as_by_many_climbs(seed):
    formula, data = hard(seed)
    found = exact.fit(formula, data)
    assert found.log_likelihood > yardstick(formula, data, starts=6) - 1e-3
    table = found.parameters
    assert (table["std_error"].notna() == ~table["at_boundary"]).all()
    value = exact.log_likelihood(formula, data, table["estimate"])
    assert value == pytest.approx(found.log_likelihood, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_covariate_has_no_scale_and_columns_have_no_order(seed):
    formula, data = hard(seed)
    fit = exact.fit(formula, data)
    scaled = exact.fit(formula, data.assign(x=1000 * data["x"]))
    assert scaled.log_likelihood == pytest.approx(fit.log_likelihood, abs=1e-6)
    one, other = fit.parameters["estimate"], scaled.parameters["estimate"]
    for name in one.index:
        by = 1000 if name in ("x", "sd(x|g)", "sd(x|h)") else 1
        assert by * other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-3, nan_ok=True), name
    order = formula.replace("1 + x + z|g", "1 + z + x|g").replace("(1 + x|", "(0 + x + w|")
    turned = exact.fit(order, data.assign(w=1.0))
    assert turned.log_likelihood == pytest.approx(fit.log_likelihood, abs=1e-6)
    shared = list(set(one.index) & set(turned.parameters.index))
    moved = turned.parameters["estimate"][shared]
    np.testing.assert_allclose(moved, one[shared], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_the_slope_in_roots_is_that_of_finite_differences_at_singular_points_too(seed):
    theta = Theta(build_design(*hard(seed)), None)
    rng = np.random.default_rng(seed)
    theta.roots = [  # of any rank, nought included
        lower(root @ rng.normal(size=(len(root), rng.integers(0, len(root) + 1))))
        for root in theta.roots
    ]
    scales = theta.natural_scales()
    point = theta.point(scales)
    _, slope = theta.slope(point, scales)
    h = 1e-5
    values = [
        [theta.slope(point + sign * step, scales)[0].value for sign in (1, -1)]
        for step in h * np.eye(len(point))
    ]
    truth = np.diff(values, axis=1)[:, 0] / (-2 * h)
    np.testing.assert_allclose(slope, truth, rtol=1e-4, atol=1e-4 * np.abs(slope).max())
    theta.move(point, scales)
    np.testing.assert_allclose(theta.point(scales), point, rtol=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_no_direction_of_a_singular_covariance_wants_to_grow(seed):
    """By dense algebra: the slope in every covariance has no positive eigenvalue."""
    formula, data = hard(seed)
    design = build_design(formula, data)
    estimate = exact.fit(formula, data).parameters["estimate"].fillna(0.0)
    mean, covariance, *_ = dense(design, estimate)
    inverse = np.linalg.inv(covariance)
    white = inverse @ (data["y"].to_numpy() - mean)
    for factor in design.factors:
        by_level = [factor.z * (factor.codes == level)[:, None] for level in range(factor.levels)]
        observed = sum(np.outer(z.T @ white, z.T @ white) for z in by_level)
        expected = sum(z.T @ inverse @ z for z in by_level)
        assert linalg.eigh(observed, expected, eigvals_only=True)[-1] < 1 + 1e-3


# Two classic data sets, from the R package lme4 (Bates, Maechler, Bolker, Walker and contributors):
# `sleepstudy` (Belenky et al. 2003; 18 subjects, 10 days) and `Dyestuff2` (Box and Tiao 1973; 6
# batches of 5). The numbers expected are those of lme4 itself, by ML.

SLEEPSTUDY = np.array(
    [
        249.56, 258.7047, 250.8006, 321.4398, 356.8519, 414.6901, 382.2038, 290.1486, 430.5853,
        466.3535, 222.7339, 205.2658, 202.9778, 204.707, 207.7161, 215.9618, 213.6303, 217.7272,
        224.2957, 237.3142, 199.0539, 194.3322, 234.32, 232.8416, 229.3074, 220.4579, 235.4208,
        255.7511, 261.0125, 247.5153, 321.5426, 300.4002, 283.8565, 285.133, 285.7973, 297.5855,
        280.2396, 318.2613, 305.3495, 354.0487, 287.6079, 285.0, 301.8206, 320.1153, 316.2773,
        293.3187, 290.075, 334.8177, 293.7469, 371.5811, 234.8606, 242.8118, 272.9613, 309.7688,
        317.4629, 309.9976, 454.1619, 346.8311, 330.3003, 253.8644, 283.8424, 289.555, 276.7693,
        299.8097, 297.171, 338.1665, 332.0265, 348.8399, 333.36, 362.0428, 265.4731, 276.2012,
        243.3647, 254.6723, 279.0244, 284.1912, 305.5248, 331.5229, 335.7469, 377.299, 241.6083,
        273.9472, 254.4907, 270.8021, 251.4519, 254.6362, 245.4523, 235.311, 235.7541, 237.2466,
        312.3666, 313.8058, 291.6112, 346.1222, 365.7324, 391.8385, 404.2601, 416.6923, 455.8643,
        458.9167, 236.1032, 230.3167, 238.9256, 254.922, 250.7103, 269.7744, 281.5648, 308.102,
        336.2806, 351.6451, 256.2968, 243.4543, 256.2046, 255.5271, 268.9165, 329.7247, 379.4445,
        362.9184, 394.4872, 389.0527, 250.5265, 300.0576, 269.8939, 280.5891, 271.8274, 304.6336,
        287.7466, 266.5955, 321.5418, 347.5655, 221.6771, 298.1939, 326.8785, 346.8555, 348.7402,
        352.8287, 354.4266, 360.4326, 375.6406, 388.5417, 271.9235, 268.4369, 257.2424, 277.6566,
        314.8222, 317.2135, 298.1353, 348.1229, 340.28, 366.5131, 225.264, 234.5235, 238.9008,
        240.473, 267.5373, 344.1937, 281.1481, 347.5855, 365.163, 372.2288, 269.8804, 272.4428,
        277.8989, 281.7895, 279.1705, 284.512, 259.2658, 304.6306, 350.7807, 369.4692, 269.4117,
        273.474, 297.5968, 310.6316, 287.1726, 329.6076, 334.4818, 343.2199, 369.1417, 364.1236,
    ]
)  # fmt: skip
DYESTUFF2 = np.array(
    [
        7.298, 3.846, 2.434, 9.566, 7.990, 5.220, 6.556, 0.608, 11.788, -0.892,
        0.110, 10.386, 13.434, 5.510, 8.166, 2.212, 4.852, 7.092, 9.288, 4.980,
        0.282, 9.014, 4.458, 9.446, 7.198, 1.722, 4.782, 8.106, 0.758, 3.758,
    ]
)  # fmt: skip


def test_sleepstudy_is_fitted_as_by_lme4():
    data = pd.DataFrame({"Reaction": SLEEPSTUDY, "Subject": np.repeat(range(18), 10)})
    data["Days"] = np.tile(np.arange(10.0), 18)
    fit = exact.fit("Reaction ~ Days + (1 + Days|Subject)", data)
    assert fit.log_likelihood == pytest.approx(-875.969672244, abs=1e-6)
    estimate, se = fit.parameters["estimate"], fit.parameters["std_error"]
    truth = {
        "Intercept": 251.4051, "Days": 10.46729, "sd(Subject)": 23.7797596,
        "sd(Days|Subject)": 5.7167985, "cor(Intercept,Days|Subject)": 0.081321,
        "sd(residual)": 25.5919070,
    }  # fmt: skip
    assert list(estimate.index) == list(truth)
    np.testing.assert_allclose(estimate, list(truth.values()), rtol=2e-4)
    np.testing.assert_allclose(se[:2], [6.632, 1.502], rtol=1e-3)
    assert not fit.parameters["at_boundary"].any()


def test_dyestuff2_has_no_variance_between_batches():
    data = pd.DataFrame({"Yield": DYESTUFF2, "Batch": np.repeat(list("ABCDEF"), 5)})
    fit = exact.fit("Yield ~ 1 + (1|Batch)", data)
    assert fit.log_likelihood == pytest.approx(-81.4365183269, abs=1e-8)
    table = fit.parameters
    assert table["estimate"]["sd(Batch)"] == 0.0
    assert table["at_boundary"].to_dict() == {
        "Intercept": False, "sd(Batch)": True, "sd(residual)": False
    }  # fmt: skip
    np.testing.assert_allclose(table["estimate"], [5.6656, 0.0, 3.65323135], rtol=1e-6)


def test_a_known_residual_may_leave_no_parameter_but_the_fixed_effects():
    """Batches differ by less than the residual alone would make them."""
    data = pd.DataFrame({"Yield": DYESTUFF2, "Batch": np.repeat(list("ABCDEF"), 5)})
    table = exact.fit("Yield ~ 1 + (1|Batch)", data, families.Gaussian(sd=4.0)).parameters
    np.testing.assert_allclose(table["estimate"], [np.mean(DYESTUFF2), 0.0, 4.0])
    np.testing.assert_allclose(table["std_error"], [4 / np.sqrt(30), np.nan, np.nan])
