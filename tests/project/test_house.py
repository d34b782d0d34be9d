"""The house: its picture is that of the imports, and the page that shows it names what is there.

The import paths that `api.md` names lead into its rooms. Which room may import which, import-linter
checks in `make lint`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import tomllib
from pathlib import Path

import lmmbook
from lmmbook.formula import Design

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "how_it_is_built.md").read_text(encoding="utf-8")
QUOTED = re.compile(r"`([^`\n]+)`")
FORMULAS = {"a/b"}
PACKAGES = ["lmmbook", "lmmbook.engine"]

specification = importlib.util.spec_from_file_location("house", ROOT / "tools" / "house.py")
house = importlib.util.module_from_spec(specification)
specification.loader.exec_module(house)

# --- the import paths ---------------------------------------------------------------------------

SHORT = {
    "lmmbook.checks": "escape",
    "lmmbook.criticism": "clustered_se",
    "lmmbook.design": "Design",
    "lmmbook.exact": "log_likelihood",
    "lmmbook.factors": "Factor",
    "lmmbook.families": "OrderedLogistic",
    "lmmbook.formula": "build_design",
    "lmmbook.functions": "Functions",
    "lmmbook.simulate": "crossed",
    "lmmbook.workers": "meet",
}


@pytest.mark.parametrize("module", SHORT)
def test_import_paths_that_were_named_lead_to_the_same_as_the_house_does(module):
    found = importlib.import_module(module)
    assert hasattr(found, SHORT[module])
    assert importlib.import_module(found.__name__) is found
    assert getattr(lmmbook, module.split(".")[1]) is found
    assert lmmbook.design.Design is Design  # one class, by whichever path


# --- the pictures ------------------------------------------------------------------------------


def rooms(package: str) -> set[str]:
    """What lies in the package's folder."""
    folder = ROOT.joinpath(*package.split("."))
    found = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    return found - {"__init__"}


def imported(package: str) -> dict[str, set[str]]:
    """Which room imports which, as the files say it: read here without the tool's help."""
    found: dict[str, set[str]] = {room: set() for room in rooms(package)}
    for path in ROOT.joinpath("lmmbook").rglob("*.py"):
        tree, names = ast.parse(path.read_text(encoding="utf-8")), []
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []  # for the eyes of mypy
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{name.name}" for name in node.names]
            elif isinstance(node, ast.Import):
                names += [name.name for name in node.names]
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not own.startswith(f"{package}.") or own == f"{package}.__init__":
            continue
        room = own.removeprefix(f"{package}.").split(".")[0]
        inside = [n.removeprefix(f"{package}.") for n in names if n.startswith(f"{package}.")]
        found[room] |= {name.split(".")[0] for name in inside} & (found.keys() - {room})
    if package == "lmmbook":
        found["results"].remove("inference")  # the one that goes up
    return found


def seen(picture: BeautifulSoup) -> tuple[dict[str, float], set[tuple[str, str]]]:
    """How far down each box stands, and which boxes the lines join, by where these end."""
    above, below, down = {}, {}, {}
    for box, text in zip(picture.find_all("rect"), picture.find_all("text"), strict=True):
        top, height = float(box["y"]), float(box["height"])
        middle = float(box["x"]) + float(box["width"]) / 2
        down[text.text] = top
        above[text.text], below[text.text] = (middle, top), (middle, top + height)
    lines = set()
    for line in picture.find_all("polyline"):
        begin, *_, end = [tuple(map(float, p.split(","))) for p in line["points"].split()]
        ends = []
        for places, point in [(below, begin), (above, end)]:
            [room] = [r for r, (x, y) in places.items() if abs(x - point[0]) <= 2 and y == point[1]]
            ends.append(room)
        lines.add((ends[0], ends[1]))
    return down, lines


def led_to(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The pairs that one or several arrows join."""
    more = arrows | {(a, d) for a, b in arrows for c, d in arrows if b == c}
    return arrows if more == arrows else led_to(more)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_picture_shows_the_rooms_and_their_imports_and_all_arrows_go_down(package):
    picture = BeautifulSoup(house.svg(package), "html.parser")
    down, arrows = seen(picture)
    assert set(down) == rooms(package)
    assert all(down[a] < down[b] for a, b in arrows)
    pairs = {(a, b) for a, others in imported(package).items() for b in others}
    assert len(pairs) > 20
    assert arrows <= pairs
    assert led_to(arrows) == led_to(pairs)
    for arrow in arrows:  # one that others stand for is left out
        assert arrow not in led_to(arrows - {arrow})


def test_an_import_that_goes_up_is_named():
    levels = [["roof"], ["left", "right"], ["cellar"]]
    fine = {"roof": {"left"}, "left": {"cellar"}, "right": set(), "cellar": set()}
    house.refuse_upward(levels, fine)
    for other, at in [("roof", "cellar"), ("right", "left")]:
        with pytest.raises(ValueError, match=f"got: {at} imports {other}"):
            house.refuse_upward(levels, fine | {at: {other}})


@pytest.mark.parametrize("package", PACKAGES)
def test_the_picture_is_told_in_words_and_fits_a_phone(package):
    picture = BeautifulSoup(house.svg(package), "html.parser")
    drawing, words = picture.svg, picture.find("desc").text
    assert drawing["role"] == "img"
    assert picture.find(id=drawing["aria-labelledby"]).text.startswith("The rooms of lmmbook")
    assert picture.find(id=drawing["aria-describedby"]).text == words
    stand, lead = words.split(". Arrows go down from ")
    assert set(re.findall(r"\w+", stand)) >= rooms(package)
    told = set()
    for clause in lead.rstrip(".").split("; "):
        room, others = clause.split(" to ")
        told |= {(room, other) for other in re.split(r", | and ", others)}
    assert told == seen(picture)[1]
    width = float(drawing["viewbox"].split()[2])  # the parser writes attributes small
    assert float(drawing["font-size"]) * 350 / width >= 8 * 4 / 3  # 8 points, of 4 / 3 pixels
    for box, text in zip(picture.find_all("rect"), picture.find_all("text"), strict=True):
        assert 0 <= float(box["x"]) <= float(box["x"]) + float(box["width"]) <= width
        assert float(box["width"]) >= 9 * len(text.text)


# --- the page ----------------------------------------------------------------------------------


def is_path(quoted: str) -> bool:
    known = quoted == "Makefile" or re.search(r"\.(py|md|toml|yml|css|txt|in|ipynb)$", quoted)
    return quoted not in FORMULAS and bool("/" in quoted or known)


def test_every_path_on_the_page_is_there():
    paths = {quoted for quoted in QUOTED.findall(PAGE) if is_path(quoted)}
    assert len(paths) > 50
    assert [path for path in paths if not (ROOT / path).exists()] == []


ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "`" in line]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_a_row_names_a_file_and_what_is_in_it(row):
    quoted = QUOTED.findall(row.split(" | ", 1)[1])
    paths = [ROOT / path for path in quoted if is_path(path)]
    assert paths, "expected a path in the column of files"
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())
    for name in quoted:
        if name.isidentifier() and name != "Makefile":
            assert re.search(rf"\b{name}\b", text), f"{name} is in none of {paths}"


def test_every_room_is_on_the_page():
    quoted = set(QUOTED.findall(PAGE))
    for room in rooms("lmmbook"):
        assert any(f"lmmbook/{room}" in path for path in quoted), room
        assert room in quoted, f"{room} heads no table, and no row"


def test_the_page_shows_each_package_that_has_floors():
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = layers["tool"]["importlinter"]["contracts"]
    assert [c["containers"] for c in contracts if c["type"] == "layers"] == [[p] for p in PACKAGES]
    shown = re.findall(r":file: _build/house/([\w.]+)\.svg", PAGE)
    assert shown == PACKAGES


def test_the_vision_is_three_lines():
    lines = (ROOT / "VISION.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("- **") for line in lines)
    assert "{include} VISION.md" in PAGE
    assert "](VISION.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
