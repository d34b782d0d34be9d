"""Simulated data with known parameters, and the dense algebra that the package avoids.

The dense formulas are the oracle of the oracle: they write the rows x rows covariance down, which
is slow, short, and hard to get wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from lmmbook.book import checks, figures
from lmmbook.data.insteval import load_insteval
from lmmbook.engine.arrays import Arrays, Layout, Parameters, State
from lmmbook.engine.certificate import louis
from lmmbook.engine.certificate.parametrisation import Parametrisation
from lmmbook.engine.linear_predictor import at
from lmmbook.formula import build_design
from lmmbook.formula.covariance import to_matrix
from lmmbook.formula.design import Design
from lmmbook.results.criticism import Criticism

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

# Files that take longest begin first: one that began last would keep a single core busy to the end.
LONGEST = ("test_parallel", "test_certify", "test_scale", "test_oracle", "test_fit", "test_laws",
           "test_fit_families", "test_browser", "test_binomial")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def of_a_fit(name: str) -> Callable[..., np.ndarray]:
    """A method of `Fit` as a function of all that it needs, which no fit has to have found."""

    def function(design: Design, estimates: Any, posterior: Any, *more: Any, **named: Any) -> Any:
        found = SimpleNamespace(design=design, _estimates=estimates, posterior=posterior)
        return getattr(Criticism, name)(found, *more, **named)

    return function


criticism = SimpleNamespace(
    **{name: of_a_fit(name) for name in ("predict", "probabilities", "draws", "log_score", "pit")}
)


class Simulated(NamedTuple):
    formula: str
    data: pd.DataFrame
    truth: dict[str, float]


@pytest.fixture(scope="session")
def crossed() -> Simulated:
    """Two crossed factors, unbalanced, with one covariate."""
    rng = np.random.default_rng(1)
    rows, groups, hosts = 1200, 40, 15
    data = pd.DataFrame(
        {
            "g": rng.integers(0, groups, rows),
            "h": rng.choice(hosts, rows, p=rng.dirichlet(np.full(hosts, 5.0))),
            "x": rng.normal(size=rows),
        }
    )
    truth = {"Intercept": 2.0, "x": 0.5, "sd(g)": 0.8, "sd(h)": 0.5, "sd(residual)": 1.1}
    data["y"] = (
        2.0
        + 0.5 * data["x"]
        + rng.normal(0, 0.8, groups)[data["g"]]
        + rng.normal(0, 0.5, hosts)[data["h"]]
        + rng.normal(0, 1.1, rows)
    )
    return Simulated("y ~ x + (1|g) + (1|h)", data, truth)


@pytest.fixture(scope="session")
def nested() -> Simulated:
    """Pots in blocks; pot labels start again in every block, so only block:pot names a pot."""
    rng = np.random.default_rng(2)
    blocks, pots, each = 15, 6, 8
    block = np.repeat(np.arange(blocks), pots * each)
    pot = np.tile(np.repeat(np.arange(pots), each), blocks)
    truth = {"Intercept": -1.0, "sd(block)": 0.9, "sd(block:pot)": 0.6, "sd(residual)": 0.8}
    y = (
        -1.0
        + rng.normal(0, 0.9, blocks)[block]
        + rng.normal(0, 0.6, blocks * pots)[block * pots + pot]
        + rng.normal(0, 0.8, len(block))
    )
    data = pd.DataFrame({"block": block, "pot": pot, "y": y})
    keep = rng.random(len(data)) < 0.8  # unbalanced
    return Simulated("y ~ 1 + (1|block/pot)", data[keep].reset_index(drop=True), truth)


@pytest.fixture(scope="session")
def tiny() -> Simulated:
    """Crossed, with few rows and levels: dense algebra and thousands of chains are cheap."""
    rng = np.random.default_rng(3)
    rows = 48
    data = pd.DataFrame(
        {
            "g": rng.permutation(np.resize(list("abcde"), rows)),
            "h": rng.permutation(np.resize(list("wxyz"), rows)),
            "x": rng.normal(1.0, 1.0, rows),
        }
    )
    truth = {"Intercept": 3.0, "x": -0.5, "sd(g)": 0.9, "sd(h)": 0.6, "sd(residual)": 0.8}
    data["y"] = (
        3.0
        - 0.5 * data["x"]
        + data["g"].map(dict(zip("abcde", rng.normal(0, 0.9, 5), strict=True)))
        + data["h"].map(dict(zip("wxyz", rng.normal(0, 0.6, 4), strict=True)))
        + rng.normal(0, 0.8, rows)
    )
    return Simulated("y ~ x + (1|g) + (1|h)", data, truth)


@pytest.fixture(scope="session")
def tiny_design(tiny: Simulated) -> Design:
    return build_design(tiny.formula, tiny.data)


@pytest.fixture(scope="session")
def insteval() -> pd.DataFrame:
    return load_insteval()


class Dense(NamedTuple):
    """The Gaussian model written out: effects factor by factor, level by level, columns fastest."""

    mean: np.ndarray  # [rows], X beta
    covariance: np.ndarray  # [rows, rows], V
    z: np.ndarray  # [rows, effects]
    prior: np.ndarray  # [effects, effects], prior covariance


def as_lme4_had_it() -> pd.DataFrame:
    """Sixty rows that R makes in the same way. What lme4 says of them stands in the tests:

    n<-0:59; d<-data.frame(g=n%%7,h=n%/%15,x=(n*n)%%11,z=(n%%7)%%2)
    d$y<-d$x/2+c(3,-2,1,0,-4,2,1)[d$g+1]+c(1,-3,2,1)[d$h+1]*d$x/4+c(-1,2,0,1)[d$h+1]*2+((n*37)%%17)/4
    """
    n = np.arange(60)
    g, h, x = n % 7, n // 15, (n * n) % 11
    of_g = np.array([3.0, -2.0, 1.0, 0.0, -4.0, 2.0, 1.0])[g]
    slope, of_h = np.array([1.0, -3.0, 2.0, 1.0])[h] / 4, np.array([-1.0, 2.0, 0.0, 1.0])[h] * 2
    y = x / 2 + of_g + slope * x + of_h + ((n * 37) % 17) / 4
    return pd.DataFrame({"g": g, "h": h, "x": x, "z": g % 2, "y": y})


def dense(design: Design, parameters: Mapping[str, float]) -> Dense:
    beta = np.array([parameters[name] for name in design.fixed_names])
    z, prior = [], np.zeros((0, 0))
    for f in design.factors:
        indicators = np.eye(f.levels)[f.codes]
        z.append((indicators[:, :, None] * f.z[:, None, :]).reshape(design.rows, -1))
        own = np.kron(np.eye(f.levels), to_matrix(f, parameters))
        prior = np.block(
            [[prior, np.zeros((len(prior), len(own)))], [np.zeros((len(own), len(prior))), own]]
        )
    z = np.hstack(z)
    noise = parameters["sd(residual)"] ** 2 * np.eye(design.rows)
    return Dense(design.fixed @ beta, z @ prior @ z.T + noise, z, prior)


def dense_conditional(
    design: Design, parameters: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``[effects]`` and covariance ``[effects, effects]`` of the effects given the ratings."""
    mean, covariance, z, prior = dense(design, parameters)
    gain = np.linalg.solve(covariance, z @ prior).T  # G Z' V^-1
    return gain @ (design.response - mean), prior - gain @ z @ prior


def conditional_draws(
    design: Design, parameters: Mapping[str, float], chains: int, seed: int
) -> list[np.ndarray]:
    """Independent exact draws of the effects, float32 ``[levels, chains, columns]`` a factor."""
    mean, covariance = dense_conditional(design, parameters)
    rng = np.random.default_rng(seed)
    draws = rng.multivariate_normal(mean, covariance, chains, method="eigh").astype(np.float32)
    shapes = [(f.levels, len(f.effects)) for f in design.factors]
    parts = np.split(draws, np.cumsum([np.prod(shape) for shape in shapes])[:-1], axis=1)
    return [
        np.ascontiguousarray(part.reshape(chains, *shape).swapaxes(0, 1))
        for part, shape in zip(parts, shapes, strict=True)
    ]


def scores_and_information(
    layout: Layout,
    array: Arrays,
    parameters: Parameters,
    effects: list[tf.Tensor],
    parametrisation: Parametrisation,
    together: int = 100,
) -> tuple[np.ndarray, np.ndarray]:
    """Of very many chains, ``together`` at a time: what the information takes goes with the square
    of their number, 12 GB for 3,000."""
    few, scores, found = layout._replace(chains=together), [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmmbook.engine.certificate.information.FEW", together)
        for first in range(0, layout.chains, together):
            part = [u[:, first : first + together] for u in effects]
            state = at(few, array, State(parameters, part))
            score, information = louis.score_and_information(few, array, state, parametrisation)
            scores.append(score.numpy().astype(float))
            found.append(information.numpy())
    return np.concatenate(scores), np.mean(found, axis=0)


def assert_conditional(
    design: Design, parameters: Mapping[str, float], effects: list[np.ndarray]
) -> None:
    """Draws of independent chains, ``[levels, chains, columns]`` each, are exactly conditional.

    Means and covariances within 5 standard errors, and so is their sum over all directions: the
    mean of the squared distance, which is chi-squared, sees a small excess that all levels share.
    """
    mean, covariance = dense_conditional(design, parameters)
    by_chain = [np.asarray(u, float).swapaxes(0, 1) for u in effects]
    draws = np.concatenate([u.reshape(len(u), -1) for u in by_chain], axis=1)
    n, variance = len(draws), np.diag(covariance)
    z_mean = (draws.mean(0) - mean) / np.sqrt(variance / n)
    spread = np.sqrt((np.outer(variance, variance) + covariance**2) / n)  # Isserlis
    z_covariance = (np.cov(draws.T) - covariance) / spread
    away = draws - mean
    distance = (away * np.linalg.solve(covariance, away.T).T).sum(1).mean() - len(mean)
    assert np.abs(z_mean).max() < 5
    assert np.abs(z_covariance).max() < 5
    assert abs(distance) < 5 * np.sqrt(2 * len(mean) / n)


class Output(NamedTuple):
    data: dict[str, str]
    metadata: dict[str, Any]

    @property
    def markdown(self) -> str:
        return self.data["text/markdown"]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Output]:
    """What is displayed, in order."""
    outputs: list[Output] = []

    def display(data, *, raw, metadata):
        assert raw
        outputs.append(Output(data, metadata))

    for module in (checks, figures):
        monkeypatch.setattr(module, "display", display)
    return outputs
