"""Many rows: `python bench/scale.py [--quick] [--full] [--gpu] [--only ITEM ...] [--out FILE]`.

Measures, on simulated ratings whose truth is known, what a sweep costs (`sweeps`), whole fits
(`fits`, with --full only: they take an hour), what more chains cost (`chains`), and several devices
(`devices`). Chapter 08 draws the file. Each point runs in a process of its own, which is this file
again; one that fails is recorded as failed. With --only, other items stay as the file has them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

Record = dict[str, Any]

ITEMS = ("sweeps", "fits", "chains", "devices")
ON_GPU = ("sweeps", "fits")
CHAINS = 4  # what `lmmbook.fit` takes for millions of rows
TIME_LIMIT = 4 * 3600.0  # seconds for one point
INSTEVAL = 73_421
MOVIELENS = 25_000_095
NO_GPU = (
    "bench/scale.py --gpu: expected a GPU, got none that TensorFlow sees; nothing was measured "
    "(without --gpu it measures the CPU)"
)
HALF_STARS = [-4.2, -3.4, -2.9, -2.1, -1.6, -0.5, 0.2, 1.6, 2.4]
FIVE = [-2.2, -1.0, 0.2, 1.4]


# --- what a sweep has to do ---------------------------------------------------------------------

# Operations of one row and chain for a log density and its slope: two tanh of about 20 each, one
# logarithm of about 15, and what is between them.
EVALUATION = 70
LEAPFROG_STEPS = 2


def work_a_row(family: str, factors: int, chains: int) -> tuple[float, float]:
    """Bytes that a row has to bring from memory in a sweep with frozen parameters, and operations.

    Counted from the layout (`linear_predictor`), each array that is as long as the rows once for
    each pass. Effects are left out: there are fewer of them, and they should stay in the cache.

    Gaussian, a factor: to scatter what is left, a response, a code, and the predictors; to gather
    what moved, a code, and the predictors there and back. Cumulative: the predictor, two
    thresholds, a log density and a slope for the start and for each leapfrog step, and the same
    gather.
    """
    number = 4  # bytes of a float32 or an int32
    if family == "gaussian":
        scatter = number * (2 + chains), 2 * chains  # subtract, add
        gather = number * (1 + 2 * chains), chains
        passes = [scatter, gather]
    else:
        start = number * (1 + 5 * chains), (EVALUATION + 1) * chains
        step = number * (1 + 5 * chains), (EVALUATION + 10) * chains  # move, differ, scatter both
        gather = number * (1 + 2 * chains), chains
        passes = [start, *LEAPFROG_STEPS * [step], gather]
    return factors * float(sum(p[0] for p in passes)), factors * float(sum(p[1] for p in passes))


def attainable(peak: float, bandwidth: float, intensity: float) -> float:
    """Operations a second under a roofline: ``min(peak, bandwidth x intensity)``.

    ``peak`` in operations a second, ``bandwidth`` in bytes a second, ``intensity`` in operations a
    byte (Williams, Waterman & Patterson 2009).
    """
    return min(peak, bandwidth * intensity)


def least_ns(work: tuple[float, float], peak: float, bandwidth: float) -> float:
    """Nanoseconds that a row takes at least, for ``work`` as from `work_a_row`."""
    moved, operations = work
    return 1e9 * operations / attainable(peak, bandwidth, operations / moved)


# --- the data -----------------------------------------------------------------------------------


def shape_of(shape: str, family: str, rows: int) -> tuple[str, Record]:
    """A formula, and what `lmmbook.data.simulate.crossed` is to be called with."""
    if shape == "three":
        levels = (2972, 1128, 14) if rows == INSTEVAL else (rows // 25, rows // 500, 100)
        names, sds, tails = ("g", "h", "d"), (0.35, 0.5, 0.15), {}
        thresholds, residual = FIVE, 1.2
    else:
        levels = tuple(max(4, rows * n // MOVIELENS) for n in (162_541, 59_047))
        names, sds = ("user", "movie"), (0.45, 0.55)
        tails = {"user": 1.25, "movie": 2.0}
        thresholds, residual = HALF_STARS, 0.85
    options: Record = {
        "rows": rows,
        "factors": {n: (max(4, m), sd) for n, m, sd in zip(names, levels, sds, strict=True)},
        "tails": tails,
        "residual_sd": residual,
        "thresholds": thresholds if family == "cumulative" else None,
    }
    return "y ~ x + " + " + ".join(f"(1|{n})" for n in names), options


# --- one point, in a process of its own ---------------------------------------------------------


def roof(spec: Record) -> Record:
    """Bytes a second of a copy, and operations a second of a matrix product, all cores at work."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    cores = measure.hardware()["cores"]
    parts = [np.ones(2**24 if spec["quick"] else 2**26, np.float32) for _ in range(cores)]
    targets = [np.zeros_like(part) for part in parts]
    size = 1024 if spec["quick"] else 4096
    matrix = np.ones((size, size), np.float32)
    with ThreadPoolExecutor(cores) as pool:
        copying = _fastest(lambda: list(pool.map(np.copyto, targets, parts)))
    product = _fastest(lambda: matrix @ matrix)
    moved = 2 * sum(part.nbytes for part in parts)
    return {"bytes_a_second": moved / copying, "operations_a_second": 2 * size**3 / product}


def device(spec: Record) -> Record:
    """What TensorFlow computes on."""
    import lmmbook as lmm

    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return {
        "device": lmm.describe_device(),
        "gpus": [str(d.get("device_name", "unnamed")) for d in details],
        "tf32": bool(tf.config.experimental.tensor_float_32_execution_enabled()),
    }


def sweeps(spec: Record) -> Record:
    """Nanoseconds a row and sweep, with and without an M-step."""
    from lmmbook import families
    from lmmbook.engine.parallel.collectives import Devices
    from lmmbook.engine.parallel.data_parallel import DataParallel
    from lmmbook.engine.runner import Engine
    from lmmbook.formula import build_design

    import numpy as np

    strategy = _strategy(spec.get("devices", 0))
    formula, data, _ = _data(spec)
    before = _memory("VmRSS")
    _reset_peak()
    started = time.perf_counter()
    design = build_design(formula, data, families.resolve(spec["family"]))
    designed = time.perf_counter()
    engine = Engine(design, spec["chains"], 10**9, 1, strategy=strategy)
    engine.em("first", np.ones(engine.chunk))
    compiled = time.perf_counter()
    found: Record = {}
    for phase, gain in (("em", 1.0), ("frozen", 0.0)):
        gains = np.full(engine.chunk, gain)
        engine.em(phase, gains)  # the second call of a kind is the first that only computes
        times: list[float] = []
        while len(times) < 3 or (sum(times) < spec["seconds"] and len(times) < 50):
            began = time.perf_counter()
            engine.em(phase, gains)
            times.append(1e9 * (time.perf_counter() - began) / engine.chunk / spec["rows"])
        found[f"{phase}_ns"] = statistics.median(times)
        found[f"{phase}_ns_range"] = [min(times), max(times)]
    moved, operations = work_a_row(spec["family"], len(design.factors), spec["chains"])
    sizes = {"levels": {f.name: f.levels for f in design.factors}}
    ways = {DataParallel: "ratings", Devices: "chains"}
    return found | sizes | {
        "sweeps_a_chunk": engine.chunk,
        "shared_out": ways.get(type(engine.placement), "nothing"),
        "design_seconds": designed - started,
        "first_call_seconds": compiled - designed,
        "bytes_a_row": moved,
        "operations_a_row": operations,
    } | _peaks(data, before)  # fmt: skip


def fits(spec: Record) -> Record:
    """One fit: how long, how large, and how far from the truth in standard errors."""
    import lmmbook as lmm

    formula, data, truth = _data(spec)
    before = _memory("VmRSS")
    _reset_peak()
    started = time.perf_counter()
    fit = lmm.fit(formula, data, spec["family"], seed=1, chains=spec["chains"], progress=False)
    seconds = time.perf_counter() - started
    peaks = _peaks(data, before)
    table = fit.parameters
    target = {
        name: {"estimate": truth[name], "std_error": float(table.loc[name, "std_error"])}
        for name in table.index
    }
    z = measure.errors(dict(table["estimate"]), target)
    return {
        "levels": {f.name: f.levels for f in fit.design.factors},
        "seconds": seconds,
        "sweeps": len(fit.trace),
        "converged": bool(fit.converged),
        "distance": float(fit.distance),
        "estimates": {name: float(value) for name, value in table["estimate"].items()},
        "std_errors": {name: float(value) for name, value in table["std_error"].items()},
        "truth": truth,
        "z": z,
        "worst_z": measure.summary(z)["worst"],
    } | peaks


POINTS: dict[str, Callable[[Record], Record]] = {
    "roof": roof, "device": device, "sweeps": sweeps, "fits": fits, "chains": sweeps,
    "devices": sweeps,
}  # fmt: skip


def _fastest(function: Callable[[], Any]) -> float:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def _strategy(devices: int) -> Any:
    """A strategy over this many logical devices of the one CPU; None for 0."""
    import tensorflow as tf

    if not devices:
        return None
    [cpu] = tf.config.list_physical_devices("CPU")
    logical = devices * [tf.config.LogicalDeviceConfiguration()]
    tf.config.set_logical_device_configuration(cpu, logical)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])


def _data(spec: Record) -> tuple[str, Any, dict[str, float]]:
    from lmmbook.data import simulate

    formula, options = shape_of(spec["shape"], spec["family"], spec["rows"])
    data, truth = simulate.crossed(**options, seed=1)
    return formula, data, truth


def _memory(name: str) -> float | None:
    """``VmRSS``, resident memory now, or ``VmHWM``, its peak, in MB; None where Linux is not."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(name)), None)


def _reset_peak() -> None:
    """So that the peak is the fit's, and not that of making the data up."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return


def _peaks(data: Any, before: float | None) -> Record:
    """Memory in MB: the data, all of the process when they were there, and its peak since then."""
    import tensorflow as tf

    peak = _memory("VmHWM")
    found: Record = {
        "data_mb": float(data.memory_usage().sum()) / 1e6,
        "before_mb": before,
        "memory_mb": measure.peak_memory() if peak is None else peak,
    }
    if tf.config.list_physical_devices("GPU"):
        found["gpu_mb"] = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6
    return found


# --- all points ---------------------------------------------------------------------------------


def points(item: str, quick: bool) -> list[Record]:
    """What is measured for an item, from small to large."""
    million = 5_000 if quick else 1_000_000
    plain = {"shape": "three", "family": "gaussian", "rows": million, "chains": CHAINS}
    if item == "sweeps":
        sizes = (5_000, 20_000) if quick else (INSTEVAL, 1_000_000, 10_000_000, MOVIELENS)
        families, shapes = ("gaussian", "cumulative"), ("three", "movielens")
        return [
            plain | {"rows": rows, "family": family, "shape": shape}
            for rows in sizes for family in families for shape in shapes
        ]  # fmt: skip
    if item == "fits":
        ten, most = (5_000, 10_000) if quick else (10_000_000, MOVIELENS)
        movies = plain | {"rows": most, "shape": "movielens"}
        return [plain | {"rows": ten}, movies, movies | {"family": "cumulative"}]
    if item == "chains":
        return [plain | {"chains": chains} for chains in ((2,) if quick else (2, 4, 8))]
    few = 3_000 if quick else INSTEVAL  # there a fit is chain parallel, not data parallel
    return [plain | {"rows": rows, "devices": n} for rows in (few, million) for n in (0, 1, 2)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little data, to try the code")
    parser.add_argument("--full", action="store_true", help="whole fits too")
    parser.add_argument("--gpu", action="store_true", help="on a GPU, and refuse without one")
    parser.add_argument("--only", nargs="+", choices=ITEMS, help="these items only")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("scale.json"))
    arguments = parser.parse_args()
    only = arguments.only or (ON_GPU if arguments.gpu else ITEMS)
    if "fits" in only and not (arguments.full or arguments.quick):
        print("fits are left out: they take --full", file=sys.stderr)
        only = [item for item in only if item != "fits"]
    with tempfile.TemporaryDirectory() as folder:
        run = _runner(Path(folder), arguments.gpu)
        result = begun(arguments.quick, arguments.gpu, run)
        result = kept(arguments.out, result, arguments.only)
        for item in only:
            result[item] = []
            for point in points(item, arguments.quick):
                seconds = 0.2 if arguments.quick else 5.0
                found = run(item=item, seconds=seconds, quick=arguments.quick, **point)
                result[item].append(point | found)
                result["measured"][item] = {
                    "date": datetime.date.today().isoformat(),
                    "revision": measure.revision(),
                }
                write(arguments.out, result)  # after each point: some take an hour
    print(report(result))
    failed = sum("failed" in point for item in only for point in result[item])
    print(f"{failed} points failed" if failed else "nothing failed", file=sys.stderr)
    return 1 if failed else 0


def begun(quick: bool, gpu: bool, run: Callable[..., Record]) -> Record:
    """All that is known before anything is timed."""
    hardware = measure.hardware()
    found = run(item="device", quick=quick)
    if found.get("failed"):
        raise SystemExit(f"bench/scale.py: expected TensorFlow to start, got {found['failed']}")
    if gpu and not found["gpus"]:
        raise SystemExit(NO_GPU)
    if found["tf32"]:
        raise SystemExit("bench/scale.py: expected TF32 to be off, as lmmbook has it, got on")
    return {
        "schema": 1,
        "quick": quick,
        "date": datetime.date.today().isoformat(),
        "hardware": hardware | found,
        "versions": measure.versions(),
        "roof": run(item="roof", quick=quick),
        "measured": {},
    } | {item: [] for item in ITEMS}


def kept(path: Path, result: Record, only: list[str] | None) -> Record:
    """The result, with an older file's items in it if ``only`` some are to be measured.

    The roof stays with the sweeps: on another day the same machine may be another one.

    Raises
    ------
    SystemExit
        If the older file is worth more than a quick run, or is of another machine: its numbers
        cannot stand beside ours.
    """
    if not path.exists():
        return result
    old = json.loads(path.read_text(encoding="utf-8"))
    if result["quick"] and not old["quick"]:
        raise SystemExit(f"{path}: expected to replace a quick run, got a real one; give --out")
    if not only or old["quick"] != result["quick"]:
        return result
    for key in ("processor", "cores", "gpus"):
        if old["hardware"][key] != result["hardware"][key]:
            raise SystemExit(
                f"{path}: expected a file of this machine, with {key} {result['hardware'][key]!r}, "
                f"got {old['hardware'][key]!r}; give another --out, or leave --only away"
            )
    roof = [] if "sweeps" in only else ["roof"]
    return result | {key: old[key] for key in (*ITEMS, "measured", *roof)}


def write(path: Path, result: Record) -> None:
    """As JSON, which has no NaN."""
    text = json.dumps(measure.plain(result), indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def report(result: Record) -> str:
    """The result as a table for the terminal."""
    lines = []
    for item in ITEMS:
        for p in result[item]:
            extra = f" {p['devices']} devices" if "devices" in p else ""
            line = f"{item:8}{p['rows']:>12,} {p['shape']:10}{p['family']:11}{p['chains']} chains"
            if p.get("failed"):
                line += f"{extra}  failed: {p['failed']}"
            elif item == "fits":
                line += f"  {p['seconds']:7.0f} s {p['memory_mb']:7.0f} MB  z {p['worst_z']:.1f}"
            else:
                line += f"{extra}  EM {p['em_ns']:6.1f} ns a row, frozen {p['frozen_ns']:6.1f}"
            lines.append(line)
    return "\n".join(lines)


def _runner(folder: Path, gpu: bool) -> Callable[..., Record]:
    """A function that measures one point in a process of its own and returns its record."""

    def run(**spec: Any) -> Record:
        ask, answer = folder / "spec.json", folder / "answer.json"
        answer.unlink(missing_ok=True)
        ask.write_text(json.dumps(spec), encoding="utf-8")
        print("measuring " + " ".join(f"{v}" for v in spec.values()), file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--worker", str(ask), str(answer)]
        environment = os.environ | {"LMMBOOK_CACHE": "off"}  # a first fit is one with compiling
        environment |= {} if gpu else {"CUDA_VISIBLE_DEVICES": "-1"}
        try:
            process = subprocess.run(
                command, capture_output=True, text=True, timeout=TIME_LIMIT, env=environment
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {TIME_LIMIT:.0f} seconds"}
        if process.returncode < 0:
            return {"failed": f"ended by signal {-process.returncode}, as when memory runs out"}
        if process.returncode or not answer.exists():
            print(process.stderr, file=sys.stderr)
            last = (process.stderr.strip().splitlines() or ["no message"])[-1]
            return {"failed": last.split(":")[0]}  # the exception's name
        return dict(json.loads(answer.read_text(encoding="utf-8")))

    return run


def worker(ask: str, answer: str) -> None:
    """What the process of one point does."""
    spec = json.loads(Path(ask).read_text(encoding="utf-8"))
    found = measure.plain(POINTS[spec["item"]](spec))
    Path(answer).write_text(json.dumps(found, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        sys.exit(main())
