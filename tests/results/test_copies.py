"""A copied fit is the same fit, to the last bit, by `copy` and by `pickle`; in another process too.

The numbers that a fit would give are made up, as in `test_saving`.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from functools import partial
from typing import Any

import lmmbook as lmm
from lmmbook import families
from lmmbook.formula import build_design
from lmmbook.formula.design import Design

import numpy as np
import pytest
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd
from test_saving import DATA, TESTS, assert_same, assert_same_fit, made_up, new_rows, outcomes


def pickled(value: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> Any:
    return pickle.loads(pickle.dumps(value, protocol))


FITS = {
    "y ~ np.exp(x / 4) * color + I(z**2) + (0 + x|g)": "gaussian",
    "y ~ bs(x, df=5) + cr(z, df=4) + color:size + (poly(x, 2)|g) + (1|day)": "gaussian",
    "grade ~ scale(x) + C(k) + (x||g)": "cumulative",
    "count ~ flag + offset(np.log(z)) + (1|g/h)": "poisson",
}


def assert_same_rows(before: Design, after: Design) -> None:
    for name in ("response", "offset", "fixed"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    for was, now in zip(before.factors, after.factors, strict=True):
        np.testing.assert_array_equal(was.codes, now.codes)
        np.testing.assert_array_equal(was.z, now.z)


@pytest.mark.parametrize("text", FITS)
def test_every_copy_is_the_same_fit(text, tmp_path):
    fit = made_up(text, FITS[text])
    fit.save(tmp_path / "fit")
    data = new_rows(fit)
    before = outcomes(fit, data)
    for whole, way in [(fit, pickled), (fit, copy.deepcopy), (lmm.load(tmp_path / "fit"), pickled)]:
        again = way(whole)
        assert_same_fit(whole, again)
        assert_same(before, outcomes(again, data))
        assert_same_rows(whole.design, again.design)


def test_a_design_alone_and_a_factor_alone_are_copied():
    design = build_design("y ~ center(x) + np.log(z) + (1 + x|g) + (1|h)", DATA)
    for way in (copy.copy, copy.deepcopy, pickled, partial(pickled, protocol=2)):
        again = way(design)
        assert_same_rows(design, again)
        assert_same_rows(design.on(DATA), again.on(DATA))
        for factor in design.factors:
            of_new, own = way(factor).on(DATA), factor.on(DATA)
            np.testing.assert_array_equal(of_new.z, own.z)
            np.testing.assert_array_equal(of_new.codes, own.codes)


def student(loc: Any, scale: Any) -> tfd.Distribution:
    """A lambda cannot be pickled, a function can."""
    return tfd.StudentT(4.0, loc, scale)


def test_a_likelihood_of_ones_own_is_copied_if_its_functions_are():
    fit = made_up("y ~ x + (1|g)", families.Custom(student, {"scale": tfb.Exp()}))
    assert_same(outcomes(fit, new_rows(fit)), outcomes(pickled(fit), new_rows(fit)))
    local = made_up("y ~ x + (1|g)", families.Custom(lambda loc: tfd.Normal(loc, 1.0), {}))
    assert (copy.deepcopy(local).log_score(DATA) == local.log_score(DATA)).all()
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(local)


def test_a_deep_copy_shares_no_array():
    fit = made_up("y ~ x + (1 + x|g)")
    again = copy.deepcopy(fit)
    for was, now in [
        (fit.design.response, again.design.response),
        (fit.design.fixed, again.design.fixed),
        (fit.design.factors[0].z, again.design.factors[0].z),
        (fit.posterior["g"], again.posterior["g"]),
    ]:
        assert not np.shares_memory(was, now)


def test_one_row_that_stands_for_all_is_pickled_as_one_row(tmp_path):
    """Of a loaded fit's data nothing is left, however many they were; a lone intercept is one 1."""
    fit = made_up("y ~ 1 + (1|g)")
    fit.save(tmp_path / "fit")
    loaded = lmm.load(tmp_path / "fit")
    arrays = [loaded.design.response, loaded.design.fixed, loaded.design.factors[0].codes]
    for again in (pickled(loaded), copy.deepcopy(loaded)):
        own = [again.design.response, again.design.fixed, again.design.factors[0].codes]
        assert [a.strides[0] for a in own] == [a.strides[0] for a in arrays] == [0, 0, 0]
    lone = pickled(build_design("y ~ 1 + (1|g)", DATA))
    assert [a.strides[0] for a in (lone.fixed, lone.offset, lone.factors[0].z)] == [0, 0, 0]


OTHER_PROCESS = """
import pickle
import sys
sys.path.insert(0, sys.argv[1])
with open(sys.argv[2], "rb") as file:  # before anything of lmmbook is imported
    fit, before = pickle.load(file)
import test_saving as t
t.assert_same(before, t.outcomes(fit, t.new_rows(fit)))
"""


def test_another_process_says_the_same(tmp_path):
    fit = made_up("y ~ bs(x, df=5) + np.exp(z) + (poly(x, 2)|g) + (1|day)")
    path = tmp_path / "fit.pickle"
    path.write_bytes(pickle.dumps((fit, outcomes(fit, new_rows(fit)))))
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, str(TESTS), str(path)], check=True)


def test_what_the_oracle_found_is_pickled():
    found = lmm.exact.fit("y ~ x + (1|g)", DATA)
    assert pickled(found).parameters.equals(found.parameters)
