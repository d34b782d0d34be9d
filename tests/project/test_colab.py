"""What Colab meets: the chapters' first cell, and the lists of what a runtime holds.

`make test-colab` runs the chapters themselves.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
RUNTIMES = sorted((ROOT / "tools" / "colab").glob("*.txt"))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("colab", ROOT / "tools" / "colab.py")
    module = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        patch.setitem(sys.modules, "colab", module)
        specification.loader.exec_module(module)
    return module


def first_cell(chapter: Path) -> str:
    cells = nbformat.read(chapter, as_version=4).cells
    return next(cell.source for cell in cells if cell.cell_type == "code")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What first cells hand to pip, which does nothing here; in an empty folder, as in Colab."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    return []


def run(cell: str, installed: list[str]) -> None:
    namespace: dict[str, object] = {}

    def magic(name: str, line: str) -> None:
        installed.append(f"{name} {line.format(**namespace)}")

    namespace["get_ipython"] = lambda: SimpleNamespace(run_line_magic=magic)
    exec(TransformerManager().transform_cell(cell), namespace)


def test_first_cells_are_equal() -> None:
    assert len({first_cell(chapter) for chapter in CHAPTERS}) == 1


def test_outside_colab_nothing_is_installed(installed, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "google.colab")
    run(first_cell(CHAPTERS[0]), installed)
    assert installed == []


def test_without_address_and_wheel_it_says_what_to_do(installed, tool) -> None:
    cell = re.sub(r"https://[\w./-]+/lmmbook", tool.PLACEHOLDER, first_cell(CHAPTERS[0]))
    with pytest.raises(FileNotFoundError, match=r"no address yet.*make wheel.*lmmbook-\*\.whl"):
        run(cell, installed)
    assert installed == []


def test_an_uploaded_wheel_is_installed(installed) -> None:
    """The newest, where several were uploaded."""
    for name in ["lmmbook-0.2.0-py3-none-any.whl", "lmmbook-0.1.0-py3-none-any.whl", "other.whl"]:
        Path(name).touch()
    run(first_cell(CHAPTERS[0]), installed)
    [line] = installed
    assert line.startswith("pip install ")
    assert "--no-deps lmmbook-0.2.0-py3-none-any.whl formulae==" in line


def test_else_the_address_is_installed(installed, tool) -> None:
    run(first_cell(CHAPTERS[0]).replace("/OWNER/lmmbook", "/someone/lmmbook"), installed)
    [line] = installed
    address = tool.current_url(ROOT).replace("/OWNER/", "/someone/")
    assert f"--no-deps git+{address} formulae==" in line


def test_what_colab_lacks_is_what_the_book_is_made_with() -> None:
    [formulae] = re.findall(r"formulae==\S+", first_cell(CHAPTERS[0]))
    assert f"\n{formulae} \\\n" in (ROOT / "requirements.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RUNTIMES, ids=lambda path: path.stem)
def test_a_runtime_holds_what_the_package_asks_for(path: Path, tool) -> None:
    """And in versions that it takes; only formulae is missing, and the first cell brings it."""
    runtime = tool.read_runtime(path)
    versions = dict(pin.lower().replace("_", "-").split("==") for pin in runtime.pins)
    assert len(versions) == len(runtime.pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in map(Requirement, project["dependencies"]):
        if requirement.name != "formulae":
            assert Version(versions[requirement.name]) in requirement.specifier, requirement
    assert "formulae" not in versions
    assert {"ipykernel", "pip", "setuptools"} <= versions.keys()


def test_there_are_two_runtimes_of_different_pythons(tool) -> None:
    assert len({tool.read_runtime(path).python for path in RUNTIMES}) >= 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("numpy==2.0.2\n", "expected a comment that says 'Python 3.x.y', found none"),
        ("# Python 3.12.13\nnumpy>=2\n", "expected name==version, got 'numpy>=2'"),
        ("# Python 3.12.13\n\nnumpy==2.0.2\n", "expected name==version, got ''"),
    ],
)
def test_a_list_that_is_none(text: str, message: str, tmp_path: Path, tool) -> None:
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"bad.txt: {message}")):
        tool.read_runtime(tmp_path / "bad.txt")


def test_a_python_that_is_not_here_is_none(tool) -> None:
    assert tool.find_python("3.99.0") is None
    here = f"{sys.version_info.major}.{sys.version_info.minor}.99"
    assert tool.find_python(here) is not None


PINS = ["numpy==2.0.2", "pandas==2.2.2"]
ADDED = ["formulae==0.9.0", "lmmbook @ git+https://github.com/someone/lmmbook@1234"]


def test_a_chapter_that_adds_its_two_packages_moves_nothing(tool) -> None:
    assert tool.moved(PINS, PINS + ADDED, "git+https://github.com/someone/lmmbook@") == []


@pytest.mark.parametrize(
    "there",
    [
        ["numpy==2.1.0", "pandas==2.2.2", *ADDED],
        ["numpy==2.0.2", *ADDED],
        [*PINS, "bambi==0.13.0", *ADDED],
        [*PINS, *ADDED[:1]],
        [*PINS, "formulae==0.9.0", "lmmbook @ file:///lmmbook-0.1.0-py3-none-any.whl"],
        PINS,
    ],
)
def test_a_chapter_that_does_anything_else_is_told(there: list[str], tool) -> None:
    assert tool.moved(PINS, there, "git+https://github.com/someone/lmmbook@")


XLA = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    "I0000 00:00:1.2   3 device_compiler.h:196] Compiled cluster using XLA! This line is logged.\n"
)


@pytest.mark.parametrize(
    ("text", "left"),
    [(XLA, []), (XLA.splitlines(True)[1], []), (XLA + "a warning\n", ["a warning\n"])],
)
def test_only_the_message_of_xla_is_no_problem(text: str, left: list[str], tool) -> None:
    printed, said = new_output("stream", text="42"), new_output("stream", name="stderr", text=text)
    cells = [new_markdown_cell("# Title"), new_code_cell(outputs=[printed, said])]
    first, *others = tool.without_noise(new_notebook(cells=cells)).cells[1].outputs
    assert first.text == "42"
    assert [output.text for output in others] == left
