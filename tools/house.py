"""Draw which room of a package imports which: `python tools/house.py lmmbook > house.svg`.

The floors are the layers that import-linter checks (`pyproject.toml`), the arrows are the imports
as grimp, which import-linter brings, reads them. An arrow is left out where others lead there too.
The drawing has no colours of its own: it stands in the page's HTML, and has those of the page.
"""

from __future__ import annotations

import sys
import tomllib
from itertools import combinations, pairwise
from pathlib import Path

import grimp
import numpy as np
from scipy import optimize

ROOT = Path(__file__).resolve().parents[1]
# Pixels. A phone has 350 of these 550, and text of 8 points then.
WIDTH, TEXT, LETTER = 550, 17, 9
HIGH, BETWEEN, APART, EDGE = 34, 28, 16, 4
BEGINNINGS, SWEEPS = 100, 6

Place = tuple[int, str, str]  # floor; and a room, twice, or the two rooms of an arrow that passes
Arrows = dict[str, set[str]]


def floors(package: str) -> list[list[str]]:
    """The rooms of a package, from the top floor to the bottom."""
    return [layer.split(" | ") for layer in contract(package)["layers"]]


def contract(package: str) -> dict[str, list[str]]:
    """What import-linter checks of the floors of a package."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    [own] = [c for c in settings["contracts"] if c.get("containers") == [package]]
    return own


def imports(package: str) -> Arrows:
    """The rooms that each room of a package imports, exceptions to the rule left out."""
    graph = grimp.build_graph("lmmbook", cache_dir=None, exclude_type_checking_imports=True)
    for exception in contract(package).get("ignore_imports", ()):
        importer, imported = exception.split(" -> ")
        graph.remove_import(importer=importer, imported=imported)
    rooms = graph.find_children(package)
    for room in rooms:
        graph.squash_module(room)
    imported, name = graph.find_modules_directly_imported_by, len(package) + 1
    return {
        room[name:]: {other[name:] for other in imported(room) & (rooms - {room})} for room in rooms
    }


def floor_of(levels: list[list[str]]) -> dict[str, int]:
    """Each room's floor, counted from the top."""
    return {room: n for n, rooms in enumerate(levels) for room in rooms}


def refuse_upward(levels: list[list[str]], arrows: Arrows) -> None:
    """Raise ValueError if a room imports from its own floor or from above."""
    at = floor_of(levels)
    up = [f"{a} imports {b}" for a in at for b in sorted(arrows[a]) if at[a] >= at[b]]
    if up:
        raise ValueError(f"expected imports from floors below, got: {', '.join(up)}")


def below(arrows: Arrows, room: str) -> set[str]:
    """The rooms that a room imports, and those that these do."""
    return arrows[room].union(*(below(arrows, other) for other in arrows[room]))


def drawn(arrows: Arrows) -> Arrows:
    """Without an arrow where others lead to the same room."""
    return {a: bs - set().union(*(below(arrows, b) for b in bs)) for a, bs in arrows.items()}


def ways(levels: list[list[str]], arrows: Arrows) -> list[list[Place]]:
    """Each arrow, floor by floor."""
    at = floor_of(levels)
    return [
        [(at[a], a, a), *((n, a, b) for n in range(at[a] + 1, at[b])), (at[b], b, b)]
        for a in at
        for b in sorted(arrows[a])
    ]


def wide(place: Place) -> int:
    """A box is as wide as its name, and an arrow that passes needs next to no room."""
    return len(place[1]) * LETTER + 20 if place[1] == place[2] else 0


def laid_out(levels: list[list[str]], steps: list[tuple[Place, Place]]) -> dict[Place, float]:
    """Where the middle of each place is: as near to those that it is joined with as there is room.

    Of many random beginnings, the one that ends with the fewest crossings and the shortest lines.
    """
    joined: dict[Place, list[Place]] = {(n, r, r): [] for n, rs in enumerate(levels) for r in rs}
    for a, b in steps:
        joined.setdefault(a, []).append(b)
        joined.setdefault(b, []).append(a)
    rows = [[place for place in joined if place[0] == n] for n in range(len(levels))]
    rng = np.random.default_rng(0)

    def settled() -> dict[Place, float]:
        begin = {place[1:]: rng.uniform(0, WIDTH) for place in joined}  # an arrow is upright
        x = {place: begin[place[1:]] for place in joined}
        for row in [*rows, *reversed(rows)] * SWEEPS:
            wish = {p: float(np.mean([x[q] for q in joined[p]] or [WIDTH / 2])) for p in row}
            row.sort(key=wish.__getitem__)
            half = np.array([wide(p) / 2 for p in row])
            least = np.cumsum([EDGE + half[0], *(half[:-1] + half[1:] + APART)])
            more = optimize.isotonic_regression([wish[p] for p in row] - least).x
            most = WIDTH - EDGE - half[-1] - least[-1]
            assert most >= 0, "boxes overlap: too many on a floor"
            x |= zip(row, least + np.clip(more, 0, most), strict=True)
        return x

    def cost(x: dict[Place, float]) -> float:
        ends = [(a[0], x[a], x[b]) for a, b in steps]
        pairs = combinations(ends, 2)
        crossed = sum(j == k and (a - c) * (b - d) < 0 for (j, a, b), (k, c, d) in pairs)
        return crossed * WIDTH + sum(abs(a - b) for _, a, b in ends)

    x = min((settled() for _ in range(BEGINNINGS)), key=cost)
    middle = (min(x[p] - wide(p) / 2 for p in x) + max(x[p] + wide(p) / 2 for p in x)) / 2
    return {place: at + WIDTH / 2 - middle for place, at in x.items()}


def listed(names: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def told(levels: list[list[str]], arrows: Arrows) -> str:
    """The picture in words, for readers who cannot see it."""
    said = [f"{a} to {listed(sorted(arrows[a]))}" for row in levels for a in row if arrows[a]]
    stands = "; ".join(map(listed, levels))
    return f"{len(levels)} floors, from the top: {stands}. Arrows go down from {'; '.join(said)}."


def svg(package: str) -> str:
    """The picture, to stand in a page's HTML."""
    levels, found = floors(package), imports(package)
    refuse_upward(levels, found)
    arrows = drawn(found)
    lines = ways(levels, arrows)
    steps = [step for line in lines for step in pairwise(line)]
    x = laid_out(levels, steps)
    top = [EDGE + n * (HIGH + BETWEEN) for n in range(len(levels))]
    mark, parts = package.replace(".", "-"), []
    for line in lines:
        ends = [f"{x[p]:.0f},{y}" for p in line for y in (top[p[0]], top[p[0]] + HIGH)]
        points = " ".join(ends[1:-1])
        parts.append(f'<polyline points="{points}" marker-end="url(#{mark}-tip)"/>')
    for place in x:
        if w := wide(place):
            left, y = x[place] - w / 2, top[place[0]]
            parts.append(f'<rect x="{left:.0f}" y="{y}" width="{w}" height="{HIGH}" rx="5"/>')
            parts.append(f'<text x="{x[place]:.0f}" y="{y + HIGH / 2}">{place[1]}</text>')
    return f"""\
<svg class="house" role="img" viewBox="0 0 {WIDTH} {top[-1] + HIGH + EDGE}" font-size="{TEXT}"
  aria-labelledby="{mark}-title" aria-describedby="{mark}-desc">
<title id="{mark}-title">The rooms of {package}, and which imports which</title>
<desc id="{mark}-desc">{told(levels, arrows)}</desc>
<marker id="{mark}-tip" viewBox="0 0 9 10" refX="9" refY="5" markerWidth="9" markerHeight="9"
  orient="auto"><path d="M0 1 9 5 0 9z"/></marker>
{chr(10).join(parts)}
</svg>
"""


if __name__ == "__main__":
    print(svg(sys.argv[1]), end="")
