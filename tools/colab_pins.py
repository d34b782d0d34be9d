"""Write down what a Colab runtime holds of the packages that matter to the book.

    python tools/colab_pins.py 2026.07 COMMIT CLONE

CLONE is a clone of https://github.com/googlecolab/backend-info, where Colab keeps `pip freeze` of
its runtimes, and COMMIT is the runtime's. pip resolves what lmmbook and a kernel need, all the way
down, under the versions that Colab holds. What of it Colab holds goes to `tools/colab/2026.07.txt`.
Colab also lacks a thing or two that its packages ask for; the file's head names them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from colab import ROOT, RUNTIMES, find_python
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SOURCE = "https://github.com/googlecolab/backend-info"
KERNEL = ["ipykernel", "pip", "setuptools"]


def roots() -> list[str]:
    """What the package asks for, but for formulae, which a chapter's first cell installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["parquet"]]
    return [*(r for r in asked if Requirement(r).name != "formulae"), *KERNEL]


def needed(python: str, pins: list[str]) -> set[str]:
    """The names of all packages that the roots need on that Python, under these pins."""
    with tempfile.TemporaryDirectory() as name:
        constraints, report = Path(name) / "pins.txt", Path(name) / "report.json"
        constraints.write_text("\n".join(pins))
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "--python", python, "install", "-qq"),
                *("--dry-run", "--ignore-installed", "--report", report, "-c", constraints),
                *roots(),
            ],
            check=True,
        )
        found = json.loads(report.read_text())["install"]
    return {canonicalize_name(package["metadata"]["name"]) for package in found}


def main(runtime: str, commit: str, clone: str) -> None:
    def git(*command: str) -> str:
        return subprocess.check_output(["git", "-C", clone, *command], text=True).strip()

    freeze = git("show", f"{commit}:pip-freeze.txt")
    version = re.search(r"^Python (\S+)$", git("show", f"{commit}:os-info.txt"), re.M)[1]
    # Packages that do not come from an index (`name @ url`) are none of ours.
    pins = {canonicalize_name(pin.split("==")[0]): pin for pin in freeze.split() if "==" in pin}
    python = find_python(version)
    if python is None:
        sys.exit(f"colab_pins: there is no Python of the series of {version}")
    names = needed(python, list(pins.values()))
    head = [
        f"# What lmmbook and a kernel need of Colab's CPU runtime {runtime}, Python {version}.",
        f"# Source: {SOURCE}/blob/{git('rev-parse', commit)}/pip-freeze.txt",
        f"# of {git('log', '-1', '--format=%as', commit)}. Made by tools/colab_pins.py.",
        f"# Asked for, but not in Colab: {', '.join(sorted(names - pins.keys())) or 'nothing'}",
    ]
    lines = [*head, *(pins[name] for name in sorted(names & pins.keys()))]
    (RUNTIMES / f"{runtime}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python tools/colab_pins.py RUNTIME COMMIT CLONE")
    main(*sys.argv[1:])
