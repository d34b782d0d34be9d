"""Is there a maximum? Asked of the data before a fit.

Chapters 06 and 09. A likelihood may rise without end: with a residual sd that goes to zero, with
coefficients that separate the responses (`separation`), or with an sd of effects that goes to
infinity. A fit of such data would run until its budget ends, or stop somewhere on the way. So we
ask first, and say which columns are the reason.
"""

from __future__ import annotations

from dataclasses import replace

from lmmbook.families.custom import Custom
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula import separation
from lmmbook.formula.design import Design
from lmmbook.formula.factors import Factor
from lmmbook.formula.invariances.coordinates import Inner

import numpy as np

ROUNDING = 1e-14  # of what a residual is a difference of
NONE = 1e-12  # a residual sd, in units of all that is to be explained: there is none
LOST = 1e-5  # a residual sd, the same: single precision loses it
FARTHEST = 1e4  # offset beside which single precision knows the predictor to three digits
FIRST_ROWS = 200_000  # are looked at first


def refuse(design: Inner) -> None:
    """Refuse a design whose likelihood has no maximum, or none that single precision can find.

    Raises
    ------
    ValueError
        If a Gaussian response leaves no residual: it is a linear function of the fixed effects, or
        of these and a factor's. If an offset, or the response of a likelihood of one's own, lies so
        far from zero that single precision cannot tell its values apart.
    """
    data, family = design.outer, design.family
    name = data._response
    if isinstance(family, Gaussian):
        if data.family.estimated:
            refuse_no_residual(design, LOST)
        return
    far = float(np.abs(design.offset).max())
    if far > FARTHEST:
        raise ValueError(
            f"offset: expected values that the fixed effects can bring near zero, got "
            f"{np.abs(data.offset).max():.3g}, of which {far:.3g} is left; subtract a constant "
            "from it, or add an intercept"
        )
    size, spread = np.abs(data.response).max(), np.std(data.response)
    if isinstance(family, Custom) and np.finfo(np.float32).eps * size > 1e-3 * spread > 0:
        raise ValueError(
            f"response {name!r}: expected values that single precision can tell apart, got a mean "
            f"of {data.response.mean():.6g} and an sd of {spread:.3g}; subtract a constant from it"
        )


def no_maximum(design: Inner) -> str | None:
    """Why the likelihood of responses that are not Gaussian has no maximum, if that can be seen."""
    data = design.outer
    if isinstance(data.family, Gaussian):
        return None
    found = separation.separating(data)
    if found:
        these, one = " and ".join(map(repr, found)), len(found) == 1
        return (
            f"the likelihood has no maximum (separation): it rises for ever with the coefficient"
            f"{'' if one else 's'} of {these}, which tell{'s' if one else ''} some responses "
            f"{data._response!r} from the others without an error; leave {'it' if one else 'them'} "
            "out, or merge categories"
        )
    same = [f.name for f in data.factors if "Intercept" in f.effects and _alike(data, f)]
    if same:
        return (
            f"the likelihood has no maximum that the data could show: in every level of "
            f"{same[0]!r} all responses {data._response!r} are alike, so it rises as "
            f"'sd({same[0]})' grows without end; leave '(1|{same[0]})' out, or group more coarsely"
        )
    return None


def _alike(design: Design, factor: Factor) -> bool:
    """Whether in every level all responses are the same, at one end of what they can be."""
    response = design.response
    if design.family.categories is None:
        recession = design.family.recession(response)
        if recession is None or (recession == 0).any():
            return False
        response = recession
    of_level = np.empty(factor.levels)
    of_level[factor.codes] = response  # that of any one of its rows
    return np.array_equal(of_level[factor.codes], response)


def refuse_no_residual(design: Inner, least: float) -> None:
    """Refuse a Gaussian response that the fixed effects explain, or these with a factor's effects,
    but for residuals of ``least`` in units of what the fixed effects leave."""
    data = design.outer
    name, fixed = data._response, ", ".join(map(repr, data.fixed_names))
    terms = np.abs(design.origin) * np.abs(data.fixed).max(0)
    size = np.abs(data.response).max() + np.abs(data.offset).max() + terms.sum()
    residual_sd = design.response_scale * np.sqrt(np.mean(design.response**2))
    if residual_sd <= ROUNDING * size:
        raise ValueError(
            f"response {name!r}: expected residuals, got a linear function of {fixed} in every "
            "row: nothing is left to fit, and there is no maximum, for the residual sd goes to zero"
        )
    for factor in design.factors:
        share = _residual_sd(design, factor, FIRST_ROWS)
        if share <= least:
            share = _residual_sd(design, factor, design.rows)
        if share > least:
            continue
        end = "There is no maximum: the residual sd goes to zero"
        if share > NONE:
            end = (
                f"What is left is {share:.1g} of what they explain, too little to compute with: "
                "add an intercept, or covariates that explain as much"
            )
        raise ValueError(
            f"response {name!r}: expected residuals, got one that the effects of {factor.name!r} "
            f"explain in every row, with {fixed}. {end}"
        )


def refuse_spanned(design: Design) -> None:
    """Raise where the fixed effects tell the levels of a factor apart: then REML has nothing left
    to learn their variance from. So it is for each of their effects."""
    for factor in design.factors:
        if factor.levels > design.fixed.shape[1]:
            continue
        for j, effect in enumerate(factor.effects):
            z = replace(factor, z=factor.z[:, [j]]).matrix().toarray()
            left = z - design.fixed @ np.linalg.lstsq(design.fixed, z)[0]
            if np.linalg.norm(left) < 1e-8 * np.linalg.norm(z):
                of = "" if effect == "Intercept" else f", effect {effect!r}"
                raise ValueError(
                    f"group {factor.name!r}{of}: expected levels that the fixed effects do not "
                    "tell apart, for REML learns a variance from what they leave; leave one of "
                    "them out"
                )


def _residual_sd(design: Design, factor: Factor, rows: int) -> float:
    """What a factor's effects and the fixed effects leave of the inner response in the first rows,
    root mean square."""
    factor = replace(factor, codes=factor.codes[:rows], z=factor.z[:rows])
    columns, z = np.column_stack([design.fixed[:rows], design.response[:rows]]), factor.matrix()
    inverse = np.linalg.pinv(factor.gram(), hermitian=True)  # [levels, effects, effects]
    pull = (z.T @ columns).reshape(*inverse.shape[:2], -1)
    columns -= z @ (inverse @ pull).reshape(z.shape[1], -1)
    x, y = columns[:, :-1], columns[:, -1]
    return float(np.sqrt(np.mean((y - x @ np.linalg.lstsq(x, y, rcond=1e-9)[0]) ** 2)))
