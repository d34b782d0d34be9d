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

Place = tuple[int, str, str]  # floor; and a room, twice, or the two rooms of an arrow that passes
Arrows = dict[str, set[str]]


def floors(package: str) -> list[list[str]]:
    """The rooms of a package, from the top floor to the bottom."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    [own] = [c for c in settings["contracts"] if c.get("containers") == [package]]
    return [layer.split(" | ") for layer in own["layers"]]


def imports(package: str) -> Arrows:
    """The rooms that each room of a package imports."""
    graph = grimp.build_graph("lmmbook", cache_dir=None, exclude_type_checking_imports=True)
    found: Arrows = {}
    for room in graph.find_children(package):
        modules = {room, *graph.find_descendants(room)}
        names = set().union(*map(graph.find_modules_directly_imported_by, modules)) - modules
        inside = {n.removeprefix(f"{package}.") for n in names if n.startswith(f"{package}.")}
        found[room.rpartition(".")[2]] = {name.split(".")[0] for name in inside}
    return found


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


def arranged(levels: list[list[str]], steps: list[tuple[Place, Place]]) -> list[list[Place]]:
    """What stands on each floor from left to right, so that few arrows cross: the best of many
    beginnings, from each of which places are moved along their floors while that helps."""

    def cost(rows: list[list[Place]], near: set[int]) -> float:
        at = {place: (i + 1) / (len(row) + 1) for row in rows for i, place in enumerate(row)}
        ends = [(a[0], at[a], at[b]) for a, b in steps if near & {a[0], b[0]}]
        pairs = combinations(ends, 2)
        crossed = sum(j == k and (a - c) * (b - d) < 0 for (j, a, b), (k, c, d) in pairs)
        return round(2 * crossed + sum(abs(a - b) for _, a, b in ends), 6)

    every, rng, best = range(len(levels)), np.random.default_rng(0), []
    places = dict.fromkeys(place for step in steps for place in step)
    places |= dict.fromkeys((n, room, room) for n in every for room in levels[n])
    for _ in range(40):
        rank = {place[1:]: rng.random() for place in places}
        rows = [sorted((p for p in places if p[0] == n), key=lambda p: rank[p[1:]]) for n in every]
        for n in [*every, *reversed(every)] * 2:
            for place in list(rows[n]):
                rest = [p for p in rows[n] if p != place]
                tried = [rows[n], *([*rest[:i], place, *rest[i:]] for i in range(len(rows[n])))]
                rows[n] = min(tried, key=lambda r, n=n: cost([*rows[:n], r, *rows[n + 1 :]], {n}))
        best.append((cost(rows, set(every)), rows))
    return min(best)[1]


def wide(place: Place) -> int:
    """A box is as wide as its name, and an arrow that passes needs next to no room."""
    return len(place[1]) * LETTER + 20 if place[1] == place[2] else 0


def across(rows: list[list[Place]], steps: list[tuple[Place, Place]]) -> dict[Place, float]:
    """Where the middle of each place is: arrows as upright as there is room for."""
    places = [place for row in rows for place in row]
    half = np.array([wide(place) / 2 for place in places])
    left = np.array([i for i, (a, b) in enumerate(pairwise(places)) if a[0] == b[0]])
    apart = half[left] + half[left + 1] + APART
    over, under = np.array([[places.index(place) for place in step] for step in steps]).T
    bends = np.array([sum(a != b for _, a, b in step) for step in steps])

    def length(x: np.ndarray) -> float:
        away = x[over] - x[under]
        along = np.where(bends, (1 + 3 * bends) * np.hypot(away, 2), away**2 / 100)
        return float(along.sum() + ((x - WIDTH / 2) ** 2).sum() / 1000)

    found = optimize.minimize(
        length,
        np.concatenate([(np.arange(len(row)) + 0.5) / len(row) * WIDTH for row in rows]),
        method="SLSQP",
        bounds=[(EDGE + h, WIDTH - EDGE - h) for h in half],
        constraints={"type": "ineq", "fun": lambda x: np.diff(x)[left] - apart},
        options={"maxiter": 1000},
    )
    assert (np.diff(found.x)[left] > apart - 1).all(), "boxes overlap: too many on a floor"
    middle = ((found.x - half).min() + (found.x + half).max()) / 2
    return dict(zip(places, (found.x + WIDTH / 2 - middle).tolist(), strict=True))


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
    x = across(arranged(levels, steps), steps)
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
