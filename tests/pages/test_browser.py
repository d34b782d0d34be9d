"""Every page of the built site in a real browser: what it loads, shows, and is like to use.

tests/pages/test_site.py reads the HTML; here Chromium runs it. No browser is ever downloaded: where
none is installed, these tests are skipped, and say so.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
import yaml
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, sync_playwright

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
AXE = (ROOT / "tests" / "vendor" / "axe.min.js").read_text(encoding="utf-8")
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CHAPTERS = [entry["file"] for entry in TOC["chapters"]]
OTHERS = ["genindex", "search"]  # the theme's; index.html only sends the reader on to the root
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",  # in a container Chromium runs as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
DESK, PHONE, PAPER = (1280, 900), (390, 844), (680, 960)  # CSS pixels; A4 without its margins
LIMIT = 1_500_000  # bytes of a page's own HTML and images; scripts, styles and fonts are shared


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, without a log."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the built site, served by this machine to itself."""
    if not (ROOT / "_build" / "built").exists():
        pytest.fail("The site has not been built, or its build failed. Run `make book`.")
    handler = partial(Quiet, directory=str(HTML))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(CHROMIUM)} is on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """An open page, and what has gone on in it."""

    page: Page
    requests: list[Request] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def note_request(self, request: Request) -> None:
        self.requests.append(request)

    def note_failure(self, request: Request) -> None:
        self.faults.append(f"no answer: {request.url}")

    def note_response(self, response: Response) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status}: {response.url}")

    def note_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text}")

    def note_error(self, error: Exception) -> None:
        self.faults.append(f"script: {error}")

    def show(self, size: tuple[int, int], theme: str = "light", folds: bool = False) -> None:
        """On a screen of this size, for a reader whose system is set to this theme."""
        self.page.emulate_media(media="screen", color_scheme=theme, reduced_motion="reduce")
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        self.page.wait_for_function("t => document.documentElement.dataset.theme == t", arg=theme)
        self.page.evaluate(
            "to => document.querySelectorAll('details').forEach(d => d.open = to)", folds
        )

    def print(self) -> None:
        """On paper, by a reader whose screen is dark."""
        self.show(PAPER, "dark")
        self.page.emulate_media(media="print")
        self.page.wait_for_function("document.documentElement.dataset.theme == 'light'")


@pytest.fixture(scope="module")
def visit(request: pytest.FixtureRequest, browser: Browser, site: str) -> Iterator[Visit]:
    """A page of the site, opened once for all its tests."""
    context = browser.new_context()
    context.set_default_timeout(120_000)  # milliseconds; a machine may be busy
    visit = Visit(context.new_page())
    visit.page.on("request", visit.note_request)
    visit.page.on("requestfailed", visit.note_failure)
    visit.page.on("response", visit.note_response)
    visit.page.on("console", visit.note_console)
    visit.page.on("pageerror", visit.note_error)
    visit.page.goto(f"{site}/{request.param}.html")
    visit.page.wait_for_load_state("networkidle")
    visit.page.evaluate("window.MathJax?.startup?.promise.then(() => null)")
    yield visit
    context.close()


ours = pytest.mark.parametrize("visit", [TOC["root"], *CHAPTERS], indirect=True, scope="module")
each = pytest.mark.parametrize(
    "visit", [TOC["root"], *CHAPTERS, *OTHERS], indirect=True, scope="module"
)


def too_wide(visit: Visit, selector: str) -> list[str]:
    """What of this kind has more in it than it can show at once."""
    return visit.page.eval_on_selector_all(
        f"article :is({selector})",
        "all => all.filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent.trim())",
    )


def test_every_page_is_visited() -> None:
    built = {
        str(path.relative_to(HTML).with_suffix(""))
        for path in HTML.rglob("*.html")
        if "_static" not in path.parts
    }
    assert built == {TOC["root"], *CHAPTERS, *OTHERS, "index"}


@each
def test_a_page_loads_without_error_and_without_a_network(visit: Visit) -> None:
    visit.show(DESK, "light", folds=True)
    visit.show(PHONE, "dark", folds=True)
    visit.page.wait_for_timeout(500)  # for what a script may do upon that
    hosts = {urlparse(r.url).hostname for r in visit.requests if not r.url.startswith("data:")}
    assert hosts == {"127.0.0.1"}
    assert visit.faults == []


@each
def test_no_page_is_heavy(visit: Visit) -> None:
    own = [r.response() for r in visit.requests if r.resource_type in ("document", "image")]
    assert sum(len(answer.body()) for answer in own if answer) <= LIMIT


@each
def test_every_link_within_the_site_arrives(visit: Visit) -> None:
    """As the browser resolves it: the page is there, and so is the place on the page."""
    dead = visit.page.evaluate(
        """async () => {
            const pages = {[location.pathname]: document}, dead = [];
            for (const link of document.querySelectorAll("a[href]")) {
                const url = new URL(link.href);
                if (url.origin !== location.origin) continue;
                if (!(url.pathname in pages)) {
                    const answer = await fetch(url.pathname);
                    pages[url.pathname] = answer.ok
                        && new DOMParser().parseFromString(await answer.text(), "text/html");
                }
                const page = pages[url.pathname], place = decodeURIComponent(url.hash.slice(1));
                if (!page || place && !page.getElementById(place))
                    dead.push(link.getAttribute("href"));
            }
            return dead;
        }"""
    )
    assert dead == []


@ours
def test_formulas_are_set(visit: Visit) -> None:
    found = visit.page.evaluate(
        r"""() => {
            const article = document.querySelector("article").cloneNode(true);
            const texts = all => Array.from(all, e => e.textContent);
            const unset = texts(article.querySelectorAll(".math:not(:has(mjx-container))"));
            const wrong = texts(article.querySelectorAll("mjx-merror, merror"));
            article.querySelectorAll("mjx-container, pre, code").forEach(e => e.remove());
            const raw = article.textContent.match(/\$[^$]+\$|\\[([]/g);
            return {unset, wrong, raw};
        }"""
    )
    assert found == {"unset": [], "wrong": [], "raw": None}


@ours
@pytest.mark.parametrize(
    ("size", "theme", "folds"),
    [(DESK, "light", False), (DESK, "light", True), (PHONE, "dark", True)],
    ids=["folded", "light", "dark"],
)
def test_axe_finds_no_barrier(visit: Visit, size: tuple[int, int], theme: str, folds: bool) -> None:
    """Contrast, names, headings, tables, keyboard: all that axe-core knows, in what is ours.

    Dark on a phone, so that tables and code scroll there, and have to be reached by the keyboard.
    """
    visit.show(size, theme, folds)
    visit.page.wait_for_timeout(500)  # the theme sees a little later to what scrolls
    visit.page.evaluate(AXE + "\n;null")
    result = visit.page.evaluate("axe.run('article', {resultTypes: ['violations']})")
    barriers = [
        f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}"
        for rule in result["violations"]
        for node in rule["nodes"]
    ]
    assert result["passes"]
    assert barriers == []


@each
def test_nothing_widens_the_page_of_a_phone(visit: Visit) -> None:
    """Code and tables may scroll, each in its own box; the page may not."""
    for folds in (False, True):
        visit.show(PHONE, folds=folds)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


@ours
def test_formulas_and_tables_fit_a_desk(visit: Visit) -> None:
    visit.show(DESK, folds=True)
    assert (
        too_wide(visit, "mjx-container[display], .text_html, .pst-scrollable-table-container") == []
    )


@ours
def test_a_page_prints_well(visit: Visit) -> None:
    """Black on white, no navigation, all figures, nothing cut off, a word on what is folded."""
    visit.print()
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER[0]
    assert (
        too_wide(visit, "pre, mjx-container[display], .output, .pst-scrollable-table-container")
        == []
    )
    for selector in (
        ".bd-links",
        ".bd-toc-nav",
        ".bd-header-article",
        ".prev-next-footer",
        "button",
    ):
        assert not any(e.is_visible() for e in page.query_selector_all(selector)), selector
    pictures = page.query_selector_all("article img")
    assert all(picture.is_visible() for picture in pictures)
    closed = page.query_selector_all("details:not([open]) > summary")
    assert len(closed) == len(page.query_selector_all("details"))
    assert all(summary.is_visible() for summary in closed)
    hints = page.eval_on_selector_all(
        "details:not([open]) > summary > .collapsed",
        "all => all.map(e => getComputedStyle(e, '::after').content)",
    )
    assert len(hints) == len(closed)
    assert all("before you print" in hint for hint in hints)
    visit.show(DESK, "dark")  # the screen has its theme back


def test_the_search_finds_a_chapter(browser: Browser, site: str) -> None:
    page = browser.new_page()
    page.goto(f"{site}/search.html?q=Hamiltonian", wait_until="networkidle")
    page.wait_for_selector("#search-results a[href*='03_e_step']")
    page.close()


# --- pictures with a slider (chapters 1 and 4) ---------------------------------------

WITH_SLIDER = "chapters/04_m_step"
BELOW = "log-likelihood below its maximum"


@pytest.fixture
def slider_page(browser: Browser, site: str) -> Iterator[Page]:
    """The page with the slider, for a reader who minds no movement."""
    page = browser.new_page(reduced_motion="no-preference")
    page.goto(f"{site}/{WITH_SLIDER}.html")
    page.wait_for_selector(".slider-status strong")
    yield page
    page.close()


def told(page: Page) -> dict[str, float]:
    """What stands below the picture: `step`, and a number for each fact."""
    _, step = page.inner_text(".slider-status > strong").split(" ")
    facts = page.eval_on_selector_all(
        ".slider-status > span",
        "all => all.map(e => [e.firstChild.textContent.trim(), e.lastChild.textContent])",
    )
    texts = {"step": step} | dict(facts)
    return {name: float(text.replace(",", "")) for name, text in texts.items()}


def point(page: Page) -> tuple[float, float]:
    """Where the point is, in percent of its picture: from the left, from the top."""
    across, down = page.evaluate(  # both in one go: the page may be scrolling
        """() => {
            const [picture, mark] = [".slider-picture img", ".slider-point"].map(
                selector => document.querySelector(selector).getBoundingClientRect());
            return [100 * (mark.x + mark.width / 2 - picture.x) / picture.width,
                    100 * (mark.y + mark.height / 2 - picture.y) / picture.height];
        }"""
    )
    return across, down


def slide_through(page: Page) -> list[dict[str, float]]:
    """All places of the chosen path, from its start, by the keyboard."""
    slider = page.locator(".slider-controls input")
    slider.press("Home")
    places = [told(page)]
    while slider.input_value() != slider.get_attribute("max"):
        slider.press("ArrowRight")
        places.append(told(page))
    return places


def test_a_slider_climbs_and_every_path_ends_on_the_same_top(slider_page: Page) -> None:
    """What EM promises, as the reader is told it, and as the point on the picture shows it."""
    ways, starts = slider_page.locator(".slider-controls select").all()
    tops = []
    for way in ways.locator("option").all_inner_texts():
        for start in starts.locator("option").all_inner_texts():
            ways.select_option(way)
            starts.select_option(start)
            places = slide_through(slider_page)
            steps = [place["step"] for place in places]
            assert steps[:3] == [0, 1, 2]
            assert steps == sorted(set(steps))
            below = [place[BELOW] for place in places]
            assert below[0] > 10
            assert below == sorted(below, reverse=True)
            assert below[-1] == pytest.approx(0.0, abs=1e-3)
            assert slider_page.locator(".slider-layer polyline").get_attribute("points").count(
                " "
            ) == (len(places) - 1)
            tops.append(point(slider_page))
    assert len(tops) == 4
    for top in tops:
        assert top == pytest.approx(tops[0], abs=0.2)


def test_more_ratings_leave_more_of_a_mean_and_the_less_the_more_alike_instructors_are(
    browser: Browser, site: str
) -> None:
    """Chapter 1: what is kept rises with the ratings behind a mean, as n / (n + ratio) does; and
    the estimate lies as far from the mean of all as it says."""
    page = browser.new_page(reduced_motion="no-preference")
    page.goto(f"{site}/chapters/01_data.html")
    page.wait_for_selector(".slider-status strong")
    assert page.locator(".slider-control label").all_inner_texts() == [
        "instructors differ by", "ratings",
    ]  # fmt: skip
    choice, ratios = page.locator(".slider-controls select"), []
    for option in choice.locator("option").all_inner_texts():
        choice.select_option(option)
        places = slide_through(page)
        n = np.array([place["step"] for place in places])
        kept = np.array([place["share that is kept"] for place in places])
        assert list(n[:3]) == [1, 2, 3]
        assert n[-1] == 500
        assert (np.diff(kept) > 0).all()
        ratio = n / kept - n
        np.testing.assert_allclose(ratio, ratio[-1], rtol=0.05)  # of rounded numbers
        ratios.append(np.median(ratio))
        left = np.array([4.5 - place["estimate"] for place in places])
        np.testing.assert_allclose(left, left[0] * (1 - kept) / (1 - kept[0]), atol=2e-3)
        tops = point(page)[1]
    np.testing.assert_allclose(np.divide(ratios[:-1], ratios[1:]), 4, rtol=0.05)  # half of an sd
    assert 0 < tops < 50  # with many ratings the point is high up in the picture
    page.close()


def test_expansion_arrives_where_plain_em_has_hardly_begun(slider_page: Page) -> None:
    ways = slider_page.locator(".slider-controls select").first
    left = {}
    for way in ways.locator("option").all_inner_texts():
        ways.select_option(way)
        slider_page.locator(".slider-controls input").fill("9")
        assert told(slider_page)["step"] == 9
        left[way] = told(slider_page)["standard errors from the maximum"]
    assert left["with location expansion"] < 0.2
    assert left["plain EM"] > 10


def test_the_point_stands_on_the_path_that_the_picture_shows(slider_page: Page) -> None:
    """The picture's own pixels under the point have the path's colour, not the paper's; a little
    beside it they do not. (Ink and contour lines are grey, and may lie over the path.)"""
    slider = slider_page.locator(".slider-controls input")
    on, beside = [], []
    for place in range(3, int(slider.get_attribute("max") or 0), 4):
        slider.fill(str(place))
        across, down = point(slider_page)
        on.append(is_coloured(slider_page, across, down))
        beside.append(is_coloured(slider_page, across - 6, down + 6))
    assert sum(on) > 0.7 * len(on)
    assert sum(beside) < 0.3 * len(beside)


def is_coloured(page: Page, across: float, down: float) -> bool:
    """Of the chapter's picture, within 4 of its pixels from this place in percent of it."""
    numbers = page.evaluate(
        """([across, down]) => {
            const picture = document.querySelector(".slider-picture img");
            const canvas = document.createElement("canvas");
            canvas.width = picture.naturalWidth;
            canvas.height = picture.naturalHeight;
            const pen = canvas.getContext("2d");
            pen.drawImage(picture, 0, 0);
            const x = Math.round(across / 100 * canvas.width);
            const y = Math.round(down / 100 * canvas.height);
            return Array.from(pen.getImageData(x - 4, y - 4, 9, 9).data);
        }""",
        [across, down],
    )
    pixels = [numbers[i : i + 4] for i in range(0, len(numbers), 4)]
    return any(alpha > 200 and max(colour) - min(colour) > 50 for *colour, alpha in pixels)


def test_playing_moves_the_point_and_the_reader_can_stop_it(slider_page: Page) -> None:
    slider, button = (
        slider_page.locator(".slider-controls input"),
        slider_page.locator(".slider-controls button"),
    )
    places = len(slide_through(slider_page))
    button.click()  # at the end it begins anew
    assert button.inner_text() == "Pause"
    assert slider_page.get_attribute(".slider-status", "aria-live") == "off"
    slider_page.wait_for_function("document.querySelector('.slider-controls input').value >= 2")
    assert int(slider.input_value()) < places - 1
    slider.press("ArrowLeft")
    assert button.inner_text() == "Play"
    assert slider_page.get_attribute(".slider-status", "aria-live") == "polite"
    stopped = slider.input_value()
    slider_page.wait_for_timeout(500)  # milliseconds: three places, were it still playing
    assert slider.input_value() == stopped

    slider.fill(str(places - 3))
    button.click()
    slider_page.wait_for_function(
        "document.querySelector('.slider-controls button').textContent == 'Play'"
    )
    assert slider.input_value() == slider.get_attribute("max")


def test_nothing_moves_for_a_reader_who_asked_for_less_movement(
    browser: Browser, site: str
) -> None:
    page = browser.new_page(reduced_motion="reduce")
    page.goto(f"{site}/{WITH_SLIDER}.html")
    page.wait_for_selector(".slider-controls input")
    assert page.locator(".slider-controls button").count() == 0
    page.close()


def test_without_scripts_and_on_paper_there_is_the_picture_alone(
    browser: Browser, site: str, slider_page: Page
) -> None:
    slider_page.emulate_media(media="print")
    assert slider_page.locator(".slider-picture img").is_visible()
    for part in (".slider-controls", ".slider-status", ".slider-layer"):
        assert not slider_page.locator(part).first.is_visible(), part

    page = browser.new_page(java_script_enabled=False)
    page.goto(f"{site}/{WITH_SLIDER}.html")
    script = page.locator("script.lmmbook-sliders")
    picture = page.locator(".cell_output", has=script).locator("img")
    assert picture.is_visible()
    assert page.locator(".slider-controls").count() == 0
    assert not script.is_visible()
    page.close()
