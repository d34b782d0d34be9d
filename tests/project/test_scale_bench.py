"""The benchmark of many rows: its file, what it refuses, and its count of what a row costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lmmbook.engine.e_step.adaptation import LEAPFROG_STEPS

import nbformat
import numpy as np
import pytest
import scale
import tensorflow as tf

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
DRAWN = ROOT / "lmmbook" / "datasets" / "scale.json"

HEAD = {"schema", "quick", "date", "hardware", "versions", "roof", "measured", *scale.ITEMS}
SIZES = {"shape", "family", "rows", "chains", "levels", "data_mb", "before_mb", "memory_mb"}
SWEEPS = SIZES | {
    "em_ns", "em_ns_range", "frozen_ns", "frozen_ns_range", "sweeps_a_chunk", "design_seconds",
    "first_call_seconds", "bytes_a_row", "operations_a_row",
}  # fmt: skip
FITS = SIZES | {
    "seconds", "sweeps", "converged", "distance", "estimates", "std_errors", "truth", "z",
    "worst_z",
}  # fmt: skip


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH / "scale.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def problems(result: dict[str, Any]) -> list[str]:
    """What a reader of the file would miss."""
    found = [f"no {key}" for key in HEAD - set(result)]
    found += [f"no {key}" for key in ("processor", "cores", "memory_gb", "tf32", "gpus")
              if key not in result["hardware"]]  # fmt: skip
    for item in scale.ITEMS:
        for point in result[item]:
            if "failed" not in point:
                wanted = FITS if item == "fits" else SWEEPS
                wanted = wanted | {"shared_out"} if item == "devices" else wanted
                found += [f"{item}: no {key}" for key in wanted - set(point)]
        if result[item] and set(result["measured"][item]) != {"date", "revision"}:
            found.append(f"{item}: does not say when it was measured")
    text = json.dumps(result)
    private = [str(ROOT), str(Path.home()), sys.prefix]
    return found + [f"names this machine: {word}" for word in private if word in text]


# --- what a row costs ---------------------------------------------------------------------------


def test_a_gaussian_row_by_hand():
    """One factor, two chains: response, code, two predictors; code, two there, two back."""
    assert scale.work_a_row("gaussian", 1, 2) == ((4 + 4 + 8) + (4 + 8 + 8), 2 * 3)
    assert scale.work_a_row("gaussian", 3, 4) == (180, 36)


def test_a_cumulative_row_by_hand():
    """One factor, one chain: code and five numbers, three times; then the move."""
    assert scale.work_a_row("cumulative", 1, 1) == (3 * 24 + 12, 71 + 2 * 80 + 1)
    assert scale.LEAPFROG_STEPS == LEAPFROG_STEPS


def test_the_roofline_by_hand():
    peak, bandwidth = 100e9, 20e9  # so the roof has its corner at 5 operations a byte
    assert scale.attainable(peak, bandwidth, 0.2) == pytest.approx(4e9)
    assert scale.attainable(peak, bandwidth, 5.0) == scale.attainable(peak, bandwidth, 50.0) == peak
    # Bound by memory: 180 bytes at 20 GB/s are 9 ns. By arithmetic: 1,000 operations, 10 ns.
    assert scale.least_ns((180, 36), peak, bandwidth) == pytest.approx(9.0)
    assert scale.least_ns((100, 1000), peak, bandwidth) == pytest.approx(10.0)


def test_the_chapter_counts_as_the_benchmark_does():
    """It shows its own few lines; here they are run."""
    notebook = nbformat.read(ROOT / "chapters" / "08_scale.ipynb", as_version=4)
    [cell] = [c for c in notebook.cells if "def work_a_row" in c.source]
    theirs: dict[str, Any] = {"np": np}
    exec(cell.source.split("\npath = ")[0], theirs)
    for family in ("gaussian", "cumulative"):
        for factors, chains in ((1, 2), (2, 4), (3, 8)):
            work = scale.work_a_row(family, factors, chains)
            assert theirs["work_a_row"](family, factors, chains) == work
            for bandwidth in (1e9, 1e12):
                assert theirs["least_ns"](work, 1e10, bandwidth) == pytest.approx(
                    scale.least_ns(work, 1e10, bandwidth)
                )


# --- what is measured ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["three", "movielens"])
def test_shapes_grow_with_the_rows_and_are_what_they_say(shape):
    levels = {
        rows: [n for n, _ in scale.shape_of(shape, "gaussian", rows)[1]["factors"].values()]
        for rows in (scale.INSTEVAL, 10_000_000, scale.MOVIELENS)
    }
    if shape == "three":
        assert levels[scale.INSTEVAL] == [2972, 1128, 14]
        assert levels[10_000_000] == [400_000, 20_000, 100]
    else:
        assert levels[scale.MOVIELENS] == [162_541, 59_047]
    formula, options = scale.shape_of(shape, "cumulative", 10_000)
    assert len(options["thresholds"]) == {"three": 4, "movielens": 9}[shape]
    assert formula == "y ~ x + " + " + ".join(f"(1|{name})" for name in options["factors"])


def test_a_quick_run_writes_what_it_promises_and_keeps_what_was_there(tmp_path):
    out = tmp_path / "scale.json"
    process = run("--quick", "--only", "chains", "--out", str(out))
    assert process.returncode == 0, process.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert problems(result) == []
    [point] = result["chains"]
    assert (point["rows"], point["chains"]) == (5_000, 2)
    assert 0 < point["frozen_ns_range"][0] <= point["frozen_ns"] <= point["frozen_ns_range"][1]
    assert not result["hardware"]["tf32"]
    assert result["sweeps"] == result["fits"] == []

    fresh = result | {"chains": [], "measured": {}, "roof": "another day's"}
    later = scale.kept(out, fresh, ["fits"])
    assert (later["chains"], later["roof"]) == ([point], result["roof"])
    assert scale.kept(out, fresh, ["sweeps"])["roof"] == "another day's"
    assert scale.kept(out, fresh, None)["chains"] == []
    other = fresh | {"hardware": result["hardware"] | {"processor": "another"}}
    with pytest.raises(SystemExit, match="expected a file of this machine, with processor"):
        scale.kept(out, other, ["fits"])
    scale.write(out, result | {"quick": False})
    with pytest.raises(SystemExit, match="expected to replace a quick run, got a real one"):
        scale.kept(out, fresh, None)


def test_without_a_gpu_it_refuses_in_one_line(tmp_path):
    out = tmp_path / "gpu.json"
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU here")
    process = run("--gpu", "--quick", "--out", str(out))
    assert process.returncode != 0
    assert process.stderr.strip().splitlines()[-1] == scale.NO_GPU
    assert "Traceback" not in process.stderr
    assert not out.exists()


def test_a_point_that_fails_is_recorded(tmp_path, capsys):
    record = scale._runner(tmp_path, gpu=False)(item="sweeps", shape="three", family="none")
    assert record == {"failed": "KeyError"}
    assert "Traceback" in capsys.readouterr().err


def test_the_file_that_the_book_draws_is_whole():
    result = json.loads(DRAWN.read_text(encoding="utf-8"))
    assert problems(result) == []
    for item in result[
        "measured"
    ]:  # what nobody has measured yet is empty, and the chapter says so
        assert any("failed" not in point for point in result[item]), item
    assert "sweeps" in result["measured"]
    for fit in result["fits"]:
        if "failed" not in fit:
            assert set(fit["z"]) == set(fit["truth"])
            assert fit["worst_z"] < 4.5
