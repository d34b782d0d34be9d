"""One program on one task, in a process of its own: `python rival_worker.py SPEC.json ANSWER.json`.

`rivals.py` starts it, with the Python of the environment where the program is. The answer is
written anew after each step, so what was done stays if the next one takes too long.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import measure
import programs

Record = dict[str, Any]


def fit(spec: Record, write: Any) -> Record:
    """A fit for each seed, the first one cold: what the program says, or how it failed."""
    record: Record = {"runs": []}
    try:
        started = time.perf_counter()
        run = programs.TOOLS[spec["tool"]].start(spec["family"], spec["factors"])
        record["import_seconds"] = time.perf_counter() - started
        data = _read(spec["data"])
        for seed in spec["seeds"]:
            write(record)
            started = time.perf_counter()
            fitted = run(data, seed)
            seconds = time.perf_counter() - started
            record["memory_mb"] = fitted.pop("memory_mb", None) or measure.peak_memory()
            record["runs"].append({"seed": seed, "seconds": seconds} | fitted)
    except Exception as error:  # whatever a program raises is its result
        record["failed"] = measure.message(error)
    return record


def make(spec: Record, write: Any) -> Record:
    """Write the table of a task, as an archive of arrays that every version of NumPy can read."""
    import numpy as np
    import reference
    from tasks import Task

    data = reference.table(Task(**spec["task"]))
    np.savez(spec["data"], **{name: data[name].to_numpy() for name in data})
    return {"rows": len(data)}


def judge(spec: Record, write: Any) -> Record:
    """What the task's answers are judged by."""
    import reference
    from tasks import Task

    return reference.reference(Task(**spec["task"]), _read(spec["data"]), spec["quick"])


def _read(path: str) -> Any:
    import numpy as np
    import pandas as pd

    with np.load(path) as file:
        return pd.DataFrame({name: file[name] for name in file.files})


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = Path(sys.argv[2])

    def write(record: Record) -> None:
        part = answer.with_suffix(".part")
        part.write_text(json.dumps(measure.plain(record), allow_nan=False), encoding="utf-8")
        os.replace(part, answer)

    warnings.simplefilter("ignore")
    write({"fit": fit, "make": make, "judge": judge}[spec["item"]](spec, write))


if __name__ == "__main__":
    main()
