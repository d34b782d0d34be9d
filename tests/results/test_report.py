"""Pictures of a fit, the page that they are on, and the command that writes it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import lmmbook as lmm
from lmmbook import plot, report
from lmmbook.__main__ import INPUT, NOT_CONVERGED, WELL, main

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

FORMULA = "y ~ x + (1 + x|g) + (1|h)"


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    g, h = np.arange(900) % 90, rng.integers(0, 12, 900)
    made = pd.DataFrame({"g": g, "h": [f"<{i}>" for i in h], "x": rng.normal(size=900)})
    u, w, v = rng.normal(0, 0.7, 90), rng.normal(0, 0.4, 90), rng.normal(0, 0.5, 12)
    made["y"] = 1 + 0.3 * made["x"] + u[g] + w[g] * made["x"] + v[h] + rng.normal(size=900)
    return made


@pytest.fixture(scope="module")
def fit(data) -> lmm.Fit:
    return lmm.fit(FORMULA, data, seed=0)


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


# Pictures


def test_a_caterpillar_has_the_extremes_and_even_ranks(fit, ax):
    alt = plot.effects(fit, "g", ax, effect="x", most=10)
    table = fit.effects["g"]["x"].sort_values("mean")
    shown = np.sort(np.concatenate([line.get_xdata() for line in ax.lines[:-1]]))
    expected = table["mean"].iloc[[0, 10, 20, 30, 40, 49, 59, 69, 79, 89]]
    assert len(shown) == 10
    np.testing.assert_allclose(shown, expected)
    reach = stats.norm.ppf(0.975) * table["sd"]
    above, below = (table["mean"] > reach).sum(), (table["mean"] < -reach).sum()
    assert f"Of all 90 levels, {above} have" in alt
    assert f"above zero and {below} one below" in alt
    ends = np.concatenate([c.get_segments() for c in ax.collections if len(c.get_segments())])
    np.testing.assert_allclose(
        np.sort(np.ptp(ends[:, :, 0], axis=1)), np.sort(2 * reach[expected.index]), rtol=1e-6
    )


def test_few_levels_have_their_names(fit, ax):
    assert plot.effects(fit, "h", ax).startswith("Caterpillar of all levels of h: effects from")
    order = fit.effects["h"]["mean"].sort_values().index
    assert [label.get_text() for label in ax.get_yticklabels()] == list(order)


def test_a_trace_has_every_sweep_and_where_phases_begin(fit, ax):
    alt = plot.trace(fit, "sd(g)", ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), fit.trace["sd(g)"])
    first = fit.trace["phase"].ne("approach").idxmax()
    assert f"approach from sweep 1, then average from sweep {first + 1}" in alt


def test_a_profile_says_where_the_interval_ends(fit, ax):
    """To two percent of its width: an interval's ends are searched for, these interpolated."""
    alt = plot.profile(fit, "sd(h)", ax)
    found = re.search(r"at ([\d.]+) and at ([\d.]+)\.$", alt)
    assert found
    limits = fit.intervals(method="profile", parameters=["sd(h)"]).loc["sd(h)"]
    width = limits["upper"] - limits["lower"]
    assert float(found[1]) == pytest.approx(limits["lower"], abs=0.02 * width)
    assert float(found[2]) == pytest.approx(limits["upper"], abs=0.02 * width)


def test_a_dollar_is_no_mathematics(data):
    dear = data.assign(h=data["h"].str.replace("<", "$_^"))
    found = lmm.fit("y ~ x + (1|h)", dear, seed=0)
    fig, ax = plt.subplots()
    plot.effects(found, "h", ax)
    fig.draw_without_rendering()
    assert "$_^1>" in [label.get_text() for label in ax.get_yticklabels()]
    plt.close(fig)


def test_calibration_is_flat_for_the_model_itself_and_not_for_others(fit, data, ax):
    """Of rows that the fit draws: no more than 3 of 10 bars outside a band of 95%; of rows half as
    spread, or shifted by a residual sd, nearly all are."""
    own = data.assign(y=fit.draws(data, 1, seed=1)[0])
    assert outside(plot.calibration(fit, own, ax)) <= 3
    narrow = own["y"] - (own["y"] - fit.predict(data)) / 2
    assert outside(plot.calibration(fit, data.assign(y=narrow), ax)) >= 7
    assert outside(plot.calibration(fit, own.assign(y=own["y"] + 1), ax)) >= 7


def outside(alt: str) -> int:
    found = re.search(r"(\d+) of them outside", alt)
    assert found
    return int(found[1])


def test_residuals_show_a_bend(fit, data, ax):
    """Of rows that the fit draws, few groups of 20 leave zero out; with a bend in them, most."""
    own = data.assign(y=fit.draws(data, 1, seed=2)[0])
    alt = plot.residuals(fit, own, ax)
    assert int(re.search(r"in (\d+) of the groups", alt)[1]) <= 5
    z = (fit.predict(data) - own["y"].mean()) / own["y"].std()
    alt = plot.residuals(fit, own.assign(y=own["y"] + 3 * (z**2 - 0.5)), ax)
    assert int(re.search(r"in (\d+) of the groups", alt)[1]) >= 10


@pytest.mark.parametrize(
    ("draw", "match"),
    [
        (lambda f, ax: plot.effects(f, "k", ax), r"expected one of \['g', 'h'\], got 'k'"),
        (lambda f, ax: plot.effects(f, "g", ax, "z"), r"one of \['Intercept', 'x'\], got 'z'"),
        (lambda f, ax: plot.effects(f, "h", ax, "x"), "expected the only one of 'h', got 'x'"),
        (lambda f, ax: plot.effects(f, "h", ax, most=1), "at least 2 levels, got 1"),
        (lambda f, ax: plot.effects(f, "h", ax, level=95), "number between 0 and 1"),
        (lambda f, ax: plot.profile(f, "sd(h)", ax, level=95), "number between 0 and 1"),
        (lambda f, ax: plot.trace(f, "sd(k)", ax), r"expected one of \['Intercept', .*'sd\(k\)'"),
        (lambda f, ax: plot.profile(f, "sd(k)", ax), "expected a parameter with an error"),
    ],
)
def test_what_is_not_there_is_refused_in_words(fit, ax, draw, match):
    with pytest.raises(ValueError, match=match):
        draw(fit, ax)


# The page


class Page(HTMLParser):
    """Its tags with their attributes; nothing may be left open, nothing may come from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_stands_alone_and_says_what_its_pictures_show(fit, data, tmp_path):
    path = tmp_path / "page.html"
    report.write(fit, path, data, title="Ratings & <more>")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    # Effects of g, its slopes, and of h; calibration; and a trace for each of seven parameters.
    assert len(images) == 3 + 1 + len(fit.parameters)
    assert all(i["src"].startswith("data:image/png;base64,") and len(i["alt"]) > 40 for i in images)
    assert "://" not in text
    assert "<h1>Ratings &amp; &lt;more&gt;</h1>" in text
    assert "Converged: the last step" in text
    for name, row in fit.parameters.join(fit.intervals()).iterrows():
        cells = [f"{row[c]:.4f}" for c in ("estimate", "std_error", "lower", "upper")]
        found = re.search(rf"<th>{re.escape(name)}</th>\s*" + r"<td>(.*?)</td>\s*" * 4, text)
        assert found
        assert list(found.groups()) == cells


def test_a_page_that_fails_leaves_the_old_one(fit, data, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(ValueError, match="'x'"):
        report.write(fit, path, data.drop(columns="x"))
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


# The command


def test_the_command_fits_and_predicts_as_the_functions_do(fit, data, tmp_path, capsys):
    table, out, page = (str(tmp_path / name) for name in ("d.csv", "d.lmm", "d.html"))
    data.to_csv(table, index=False)
    assert main(["fit", table, FORMULA, "--out", out, "--report", page]) == WELL
    assert FORMULA in capsys.readouterr().out
    saved = lmm.load(out)
    pd.testing.assert_frame_equal(saved.parameters, fit.parameters)  # the same seed, the same data
    Page((tmp_path / "d.html").read_text(encoding="utf-8"))
    for options, groups in (([], None), (["--typical"], []), (["--population"], "population")):
        to = tmp_path / "predicted.csv"
        assert main(["predict", out, table, "--out", str(to), *options]) == WELL
        found = pd.read_csv(to)
        pd.testing.assert_frame_equal(found[list(data)], data)
        np.testing.assert_allclose(found["prediction"], fit.predict(data, groups=groups))


def test_labels_get_a_chance_each(tmp_path):
    rng = np.random.default_rng(0)
    g = np.arange(400) % 40
    eta = rng.normal(size=40)[g]
    data = pd.DataFrame({"g": g, "y": np.where(rng.logistic(size=400) < eta, "yes", "no")})
    table, out, to = (str(tmp_path / name) for name in ("d.csv", "d.lmm", "p.csv"))
    data.to_csv(table, index=False)
    assert main(["fit", table, "y ~ 1 + (1|g)", "--family", "bernoulli", "--out", out]) == WELL
    assert main(["predict", out, table, "--out", to]) == WELL
    found = pd.read_csv(to)
    expected = lmm.load(out).probabilities(data)
    np.testing.assert_allclose(found[["P(no)", "P(yes)"]], expected)
    assert main(["predict", out, to, "--out", str(tmp_path / "again.csv")]) == INPUT
    assert not (tmp_path / "again.csv").exists()


def test_labels_are_text_where_they_were_text_in_the_fit(fit, data, tmp_path):
    """The rows to predict have numbers alone, of which 7 and 07 are two labels."""
    labels = data["h"].str.strip("<>").replace({"4": "x4", "8": "07"})
    table, out, new, to = (str(tmp_path / name) for name in ("d.csv", "d.lmm", "n.csv", "p.csv"))
    data.assign(h=labels).to_csv(table, index=False)
    assert main(["fit", table, FORMULA, "--out", out]) == WELL
    rows = labels.isin(["1", "7", "07"])
    data.assign(h=labels)[rows].to_csv(new, index=False)
    assert main(["predict", out, new, "--out", to]) == WELL
    np.testing.assert_allclose(
        pd.read_csv(to)["prediction"], lmm.load(out).predict(data.assign(h=labels)[rows])
    )
    assert np.std(lmm.load(out).effects["h"].loc[["1", "7", "07"], "mean"]) > 0.05


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["{table}", "y ~ x + (1|k)"], "k"),
        (["{table}", "y ~ x +"], "formula"),
        (["nowhere.csv", "y ~ x + (1|g)"], "nowhere.csv"),
        (["{table}", "y ~ x + (1|g)", "--out", "{folder}/no/fit.lmm"], "expected a folder"),
        (["{table}", "y ~ x + (1|g)", "--report", "{folder}/no/p.html"], "expected a folder"),
        (["{table}", "y ~ x + (1|g)", "--out", "{folder}"], "expected the name of a file"),
        (["{table}", "y ~ x + (1|g)", "--out", "{table}"], "got the same one twice"),
        (["{table}", "y ~ x + (1|g)", "--max-sweeps", "3"], "max_sweeps"),
        (["{table}", "y ~ x + (1|g)", "--family", "poisson"], "counts"),
    ],
)
def test_bad_input_is_refused_before_any_work(data, tmp_path, capsys, monkeypatch, options, match):
    def no_work(*arguments, **keywords):
        raise AssertionError("the engine was started")

    monkeypatch.setattr("lmmbook.engine.fit.Engine", no_work)
    table = tmp_path / "d.csv"
    data.to_csv(table, index=False)
    options = [option.format(table=table, folder=tmp_path) for option in options]
    assert main(["fit", *options]) == INPUT
    error = capsys.readouterr().err
    assert error.startswith("python -m lmmbook fit: ")
    assert match in error
    assert list(tmp_path.iterdir()) == [table]


@pytest.mark.filterwarnings("ignore:lmmbook.fit has not converged")
def test_a_fit_that_has_not_converged_says_so_to_the_shell(data, tmp_path):
    table, out = tmp_path / "d.csv", tmp_path / "d.lmm"
    data.to_csv(table, index=False)
    formula = "y ~ x + (1 + x|g) + (1 + x|h)"
    found = main(["fit", str(table), formula, "--max-sweeps", "240", "--out", str(out)])
    assert found == NOT_CONVERGED
    assert not lmm.load(out).converged
