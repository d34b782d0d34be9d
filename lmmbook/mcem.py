"""Monte Carlo EM: alternate E-steps and M-steps, in chunks that XLA compiles.

Chapter 04. One *iteration* is an E-step (some HMC transitions, at fixed parameters) and an M-step
(new parameters, at fixed draws). A *chunk* is a fixed number of iterations inside one compiled
program, so that a fit is tens of device calls and not thousands.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lmmbook import e_step, families, levels, m_step
from lmmbook.formula import Design, build_design
from lmmbook.model import LinearMixedEffectModel, features_of
from lmmbook.result import Fit, average, gather

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp

CHUNK = 20  # iterations in one device call
TRANSITIONS = 5  # HMC transitions in one E-step, as in the tutorial
LEAPFROG_STEPS = 4
AVERAGING_GAIN = 0.2  # how far an M-step goes once the parameters only fluctuate
EXTRAS = ("acceptance", "log_joint")  # what the trace holds beside the parameters

MStep = Callable[[list[tf.Tensor], tf.Tensor], list[tf.Tensor]]


def fit(
    formula: str,
    data: pd.DataFrame,
    family: str | families.Gaussian = "gaussian",
    *,
    seed: int,
    chains: int = 8,
    max_sweeps: int = 2000,
) -> Fit:
    """Fit a linear mixed model by Monte Carlo EM.

    Parameters
    ----------
    formula
        As in lme4: ``"ratings ~ service + (1|students) + (1|instructors)"``.
    data
        One row an observation.
    family
        ``"gaussian"``, or ``lmmbook.families.Gaussian(sd=1.0)`` to fix the residual sd.
    seed
        An integer from 0 to 2**31 - 1. The same seed gives the same result on the same machine.
    chains
        Independent HMC chains; even, at least 2.
    max_sweeps
        At most this many HMC transitions of each chain, at least 400. About an eighth is warm-up, a
        quarter the approach, three eighths are averaged, and a quarter gives the draws.

    Raises
    ------
    TypeError, ValueError
        Before any computation, if the input is not as described here and in
        `lmmbook.formula.build_design`.
    FloatingPointError
        If a parameter or the log density stops being finite.
    """
    residual_sd = families.resolve(family).sd
    _check_integer("seed", seed, 0, 2**31 - 1)
    _check_integer("chains", chains, 2)
    _check_integer("max_sweeps", max_sweeps, 4 * CHUNK * TRANSITIONS)
    if chains % 2:
        raise ValueError(f"chains: expected an even number, got {chains!r}")
    design = build_design(formula, data)
    model = start_model(design, residual_sd)
    loop = Loop(model, design, chains, seed, levelwise=True)
    em = m_step.closed_form_m_step(model, design, loop.features)

    chunks = max_sweeps // (CHUNK * TRANSITIONS)
    loop.run("warm-up", max(1, chunks // 8))
    loop.run("approach", chunks // 4, em, gain=1.0)
    tail = loop.run("average", chunks * 3 // 8, em, gain=AVERAGING_GAIN)
    names = list(model.parameters())
    parameters = average(tail[names])
    model.assign(dict(zip(names, parameters["estimate"].to_numpy(np.float32), strict=True)))
    loop.run("draws", chunks // 4)
    trace = pd.concat(loop.trace, ignore_index=True)
    return gather(design, parameters, trace, loop.kept, loop.device_calls)


def _check_integer(name: str, value: object, low: int, high: float = math.inf) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if not low <= value <= high:
        at_most = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name}: expected at least {low}{at_most}, got {value!r}")


def start_model(design: Design, residual_sd: float | None) -> LinearMixedEffectModel:
    """A model at its starting point: least squares, and its variance shared out equally."""
    sizes = {f.name: f.levels for f in design.factors}
    model = LinearMixedEffectModel(design.fixed_names, sizes, residual_sd)
    beta, *_ = np.linalg.lstsq(design.fixed, design.response, rcond=None)
    spread = float(np.std(design.response - design.fixed @ beta)) / np.sqrt(len(sizes) + 1)
    start = dict(zip(design.fixed_names, beta, strict=True))
    start |= {f"sd({name})": spread for name in [*sizes, "residual"]}
    model.assign({name: np.float32(value) for name, value in start.items()})
    return model


class Loop:
    """The state of a fit between chunks: effects, step size, trace, and the draws kept last.

    Chapter 04 drives it by hand to compare M-steps. An M-step here is a function ``(effects, gain)
    -> effects`` that updates the parameters of ``model``, as `m_step.closed_form_m_step` makes.
    With ``levelwise`` the E-step is that of `levels`, else HMC over all effects jointly.
    """

    def __init__(
        self,
        model: LinearMixedEffectModel,
        design: Design,
        chains: int,
        seed: int,
        levelwise: bool = False,
    ) -> None:
        self.model, self.design, self.chains, self.seed = model, design, chains, seed
        self.features = features_of(design)
        self.ratings = tf.constant(design.response, tf.float32)
        self.counts = [
            tf.constant(np.bincount(f.codes, minlength=f.levels), tf.float32)
            for f in design.factors
        ]
        self.joint = model(self.features)
        self.effects = [tf.zeros([chains, f.levels]) for f in design.factors]
        self.step_size = tf.constant(1.0 if levelwise else 0.2)
        self.e_step = (
            levels.levelwise_e_step(model, design, self.features, self.target_log_prob, TRANSITIONS)
            if levelwise
            else self._joint_e_step
        )
        self.trace: list[pd.DataFrame] = []
        self.kept: list[np.ndarray] = []
        self.device_calls = 0
        self._programs: dict[MStep | None, Callable] = {}

    def target_log_prob(self, *effects: tf.Tensor) -> tf.Tensor:
        """log p(ratings, effects) at the current parameters, ``[chains]``."""
        return self.joint.log_prob(*effects, self.ratings)

    def _joint_e_step(
        self, effects: list[tf.Tensor], step_size: tf.Tensor, seed: tf.Tensor
    ) -> e_step.EStep:
        scales = e_step.step_scales(self.counts, self.model.sds, self.model.residual_sd)
        return e_step.run(
            self.target_log_prob, effects, scales, step_size, LEAPFROG_STEPS, TRANSITIONS, seed
        )

    def run(
        self,
        phase: str,
        chunks: int,
        m_step: MStep | None = None,
        gain: float = 0.0,
        adapt: float = 0.0,
    ) -> pd.DataFrame:
        """Run ``chunks * CHUNK`` iterations and return their trace, one row an iteration.

        Without ``m_step`` the parameters stay as they are. ``gain`` is handed to the M-step,
        ``adapt`` is the gain of the step size's adaptation. The draws of the last phase, one an
        iteration and chain, are left in ``kept``: a list of ``[iterations, chains, levels]``.

        Raises
        ------
        FloatingPointError
            If a parameter or the log density stops being finite.
        """
        if m_step not in self._programs:
            self._programs[m_step] = self._compile(m_step)
        frames, kept = [], []
        for _ in range(chunks):
            seed = tfp.random.sanitize_seed([self.seed, self.device_calls])
            self.effects, self.step_size, trace, draws = self._programs[m_step](
                self.effects, self.step_size, tf.constant(gain), tf.constant(adapt), seed
            )
            self.device_calls += 1
            frames.append(pd.DataFrame({k: v.numpy() for k, v in trace.items()}))
            kept.append([u.numpy() for u in draws])
            if not np.isfinite(frames[-1].to_numpy()).all():
                raise FloatingPointError(
                    f"{phase}: expected finite values, got {frames[-1].iloc[-1].to_dict()}"
                )
        self.kept = [np.concatenate(u) for u in zip(*kept, strict=True)]
        frame = pd.concat(frames, ignore_index=True)
        self.trace.append(frame.assign(phase=phase))
        return frame

    def _compile(self, m_step: MStep | None) -> Callable:
        """One compiled program: ``CHUNK`` times an E-step and, if there is one, an M-step."""

        @tf.function(jit_compile=True, autograph=False)
        def chunk(effects, step_size, gain, adapt, seed):  # type: ignore[no-untyped-def]
            def iteration(state, seed):  # type: ignore[no-untyped-def]
                effects, step_size, _ = state
                draw = self.e_step(effects, step_size, seed)
                effects = m_step(draw.effects, gain) if m_step else draw.effects
                step_size = e_step.adapt_step_size(step_size, draw.acceptance, adapt)
                return effects, step_size, self._record(draw)

            blank = {name: tf.zeros([]) for name in [*self.model.parameters(), *EXTRAS]}
            seeds = tf.stack(tfp.random.split_seed(seed, n=CHUNK))
            effects, step_size, trace = tf.scan(iteration, seeds, (effects, step_size, blank))
            return [u[-1] for u in effects], step_size[-1], trace, effects

        return chunk

    def _record(self, draw: e_step.EStep) -> dict[str, tf.Tensor]:
        """One row of the trace: the parameters as they are now, and how the E-step went."""
        extras = (draw.acceptance, tf.reduce_mean(draw.target_log_prob))
        return self.model.parameters() | dict(zip(EXTRAS, extras, strict=True))
