"""The built site as a reader meets it, without a network; and the extension that builds it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import unquote, urldefrag, urlparse

import chapter_times
import house
import lmmbook_book as extension
import nbformat
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup, Tag
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from sphinx.errors import ExtensionError
from test_doctests import CALLABLE, PUBLIC

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
EXECUTED = ROOT / "_build" / "executed"
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
NAMES = [path.stem for path in CHAPTERS]
ADDRESS = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]


@pytest.fixture(scope="session")
def pages() -> dict[Path, BeautifulSoup]:
    """Every page of the site, by its path."""
    built = ROOT / "_build" / "built"
    if not built.exists() or not (HTML / "index.html").exists():
        pytest.fail("The site has not been built, or its build failed. Run `make book`.")
    for path in [*CHAPTERS, *EXECUTED.glob("*.ipynb"), ROOT / "_config.yml", ROOT / "_toc.yml"]:
        if path.stat().st_mtime > built.stat().st_mtime:
            pytest.fail(f"The site is older than {path.relative_to(ROOT)}. Run `make book`.")
    # index.html and the theme's macros only send the reader on, or are no pages at all.
    return {
        path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in sorted(HTML.rglob("*.html"))
        if "_static" not in path.parts
    }


def page_of(pages: dict[Path, BeautifulSoup], name: str) -> BeautifulSoup:
    return pages[HTML / "chapters" / f"{name}.html"]


def article(page: BeautifulSoup) -> Tag:
    found = page.find("article")
    assert isinstance(found, Tag)
    return found


def attribute(tag: Tag, name: str) -> str:
    return str(tag.get(name, ""))


def outputs(notebook: NotebookNode) -> Iterator[tuple[NotebookNode, NotebookNode]]:
    """The cells that the book shows, each with each of its outputs."""
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "code" and not tags & {"remove-cell", "remove-output"}:
            for output in cell.outputs:
                yield cell, output


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def uncoloured(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def words(markdown: str) -> list[str]:
    """The words and numbers of a text, without formulas, addresses and marks."""
    markdown = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", " ", markdown, flags=re.DOTALL)
    markdown = re.sub(r"\]\([^)]*\)|https?://\S+|<[^>]*>|^\s*\d+\. ", " ", markdown, flags=re.M)
    return [word.strip("._") for word in re.sub(r"[^\w\s.]", " ", markdown).split()]


# --- the pages ---------------------------------------------------------------------------------


def test_the_table_of_contents_has_every_chapter() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [entry["file"] for entry in toc["chapters"]]
    assert CHAPTERS
    assert [f"chapters/{name}" for name in NAMES] == [x for x in listed if "chapters/" in x]
    assert all((ROOT / f"{x}.md").exists() for x in listed if "chapters/" not in x)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_what_its_chapter_computed(
    pages: dict[Path, BeautifulSoup], name: str
) -> None:
    content = article(page_of(pages, name))
    text = squeezed(content.get_text())
    images = {attribute(tag, "alt"): tag for tag in content.find_all("img")}
    shown = list(outputs(nbformat.read(EXECUTED / f"{name}.ipynb", as_version=4)))
    assert shown, "the executed chapter has no outputs"
    for _, output in shown:
        data = output.get("data", {})
        for mime in extension.IMAGES:
            if mime in data:
                figure = output.metadata[mime]
                image = images[figure["alt"].strip()]
                assert (HTML / "chapters" / attribute(image, "src")).is_file()
                if "width" in figure:
                    assert f"width: {figure['width']}px" in attribute(image, "style")
        if output.output_type == "stream":
            assert squeezed(uncoloured(output.text)) in text
        elif "text/html" in data:
            table = BeautifulSoup(data["text/html"], "html.parser")
            for tag in table.find_all(["style", "script"]):
                tag.decompose()
            assert squeezed(table.get_text()) in text
        elif "text/markdown" in data:
            for word in words(data["text/markdown"]):
                assert word in text, f"{word!r} of an output is not on the page"
        elif set(data) == {"text/plain"}:
            assert squeezed(uncoloured(data["text/plain"])) in text


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_with_sliders_has_them_below_it(
    pages: dict[Path, BeautifulSoup], name: str
) -> None:
    """The picture stays for those without scripts; what the script needs is on the page."""
    chapter = nbformat.read(EXECUTED / f"{name}.ipynb", as_version=4)
    records = [output.get("metadata", {}) for _, output in outputs(chapter)]
    with_slider = [record for record in records if "sliders" in record.get("lmmbook", {})]
    scripts = page_of(pages, name).select("script.lmmbook-sliders")
    assert len(scripts) == len(with_slider)
    assert with_slider or name != "04_m_step"
    for script, record in zip(scripts, with_slider, strict=True):
        assert attribute(script, "type") == "application/json"
        assert len(script.get_text()) < 100_000  # bytes: the numbers are plain ASCII
        assert json.loads(script.get_text()) == record["lmmbook"]["sliders"]
        output = script.find_parent(class_="cell_output")
        assert isinstance(output, Tag)
        images = output.find_all("img")
        assert [attribute(image, "alt") for image in images] == [record["image/png"]["alt"]]
    loaded = [attribute(tag, "src") for tag in page_of(pages, name).find_all("script")]
    assert any("_static/sliders.js" in source for source in loaded)


def test_every_image_has_alt_text(pages: dict[Path, BeautifulSoup]) -> None:
    bare = [
        f"{path.name}: {attribute(tag, 'src')}"
        for path, page in pages.items()
        for tag in (page.find("article") or page).find_all("img")
        if not attribute(tag, "alt").strip()
    ]
    assert bare == []


def test_every_drawing_in_a_page_has_a_name_and_a_description(
    pages: dict[Path, BeautifulSoup],
) -> None:
    """A drawing is part of the HTML; those of the house are as the tool has just drawn them."""
    told = []
    for path, page in pages.items():
        for drawing in (page.find("article") or page).find_all("svg"):
            assert attribute(drawing, "role") == "img", path
            words = [
                page.find(id=attribute(drawing, f"aria-{how}"))
                for how in ("labelledby", "describedby")
            ]
            assert all(tag and tag.get_text().strip() for tag in words), path
            told.append(words[1].get_text())
    packages = ["lmmbook", "lmmbook.engine"]
    assert told == [house.told(house.floors(p), house.drawn(house.imports(p))) for p in packages]


def test_figures_are_left_alone_in_dark_mode(pages: dict[Path, BeautifulSoup]) -> None:
    for name in NAMES:
        for tag in article(page_of(pages, name)).select(".cell_output img"):
            assert "dark-light" in attribute(tag, "class")


def test_nothing_comes_from_another_host(pages: dict[Path, BeautifulSoup]) -> None:
    """Ordinary links may lead away; what a page loads may not."""
    foreign = []
    for path, page in pages.items():
        for tag in page.find_all(True):
            if tag.name == "a":
                continue
            for name in ("src", "href", "srcset", "data", "poster"):
                if re.match(r"(https?:)?//", attribute(tag, name)):
                    foreign.append(f"{path.name}: <{tag.name} {name}={tag[name]!r}>")
            if tag.name == "script" and re.search(
                r"cdn|unpkg|jsdelivr|require\.min", tag.get_text()
            ):
                foreign.append(f"{path.name}: a script that loads from elsewhere")
        for tag in page.find_all("style"):
            foreign += re.findall(r"url\([\"']?(?:https?:)?//[^)]*", tag.get_text())
    for sheet in (HTML / "_static").rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        foreign += re.findall(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//[^)\"';]*", text)
    assert foreign == []


def test_formulas_are_shown_by_the_vendored_mathjax(pages: dict[Path, BeautifulSoup]) -> None:
    with_math = [path for path, page in pages.items() if page.select(".math")]
    assert with_math
    for path in with_math:
        scripts = [attribute(tag, "src") for tag in pages[path].find_all("script")]
        (mathjax,) = [source for source in scripts if "mathjax" in source]
        assert (path.parent / mathjax.split("?")[0]).is_file()
    assert (HTML / "_static/mathjax/output/chtml/fonts/woff-v2/MathJax_Main-Regular.woff").is_file()


def test_no_link_within_the_site_is_dead(pages: dict[Path, BeautifulSoup]) -> None:
    places = {
        path: {attribute(tag, name) for tag in page.find_all(True) for name in ("id", "name")}
        for path, page in pages.items()
    }
    dead = []
    for path, page in pages.items():
        for tag in page.find_all(["a", "link", "script", "img"]):
            address = attribute(tag, "href") or attribute(tag, "src")
            if not address or urlparse(address).scheme or address.startswith("//"):
                continue
            target, anchor = urldefrag(address)
            target = unquote(target.split("?")[0])
            file = (path.parent / target).resolve() if target else path
            if file.is_dir():
                file /= "index.html"
            known = file not in places or not anchor or unquote(anchor) in places[file]
            if not file.is_file() or not known:
                dead.append(f"{path.relative_to(HTML)}: {address}")
    assert dead == []


@pytest.mark.parametrize("name", NAMES)
def test_the_download_button_serves_a_notebook_without_outputs(
    pages: dict[Path, BeautifulSoup], name: str
) -> None:
    (button,) = page_of(pages, name).select("a.btn-download-source-button")
    served = (HTML / "chapters" / attribute(button, "href")).resolve()
    assert served.read_bytes() == (ROOT / "chapters" / f"{name}.ipynb").read_bytes()
    cells = [cell for cell in json.loads(served.read_text())["cells"] if "outputs" in cell]
    assert cells
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)


@pytest.mark.parametrize("name", NAMES)
def test_solutions_are_folded(pages: dict[Path, BeautifulSoup], name: str) -> None:
    cells = nbformat.read(ROOT / "chapters" / f"{name}.ipynb", as_version=4).cells
    hidden = [cell for cell in cells if "hide-cell" in cell.metadata.get("tags", [])]
    assert hidden, "no folded solution"
    folded = page_of(pages, name).select("div.cell.tag_hide-cell")
    assert len(folded) == len(hidden)
    for cell, tag in zip(hidden, folded, strict=True):
        details = tag.find("details")
        assert isinstance(details, Tag)
        assert not details.has_attr("open")
        assert squeezed(cell.source) in squeezed(details.get_text())
        summary = details.find("summary")
        assert isinstance(summary, Tag)
        assert not summary.has_attr("aria-label")


def test_the_colab_cell_is_not_in_the_book(pages: dict[Path, BeautifulSoup]) -> None:
    for name in NAMES:
        assert "google.colab" not in article(page_of(pages, name)).get_text()


def test_no_markup_is_left_over(pages: dict[Path, BeautifulSoup]) -> None:
    leftovers = re.compile(r"\{cite|:::|```|\{(?:ref|eq|numref|doc|math|admonition|solution)[:}]")
    found = []
    for path, page in pages.items():
        content = page.find("article")
        if not isinstance(content, Tag):
            continue
        prose = BeautifulSoup(str(content), "html.parser")
        for tag in prose.select("pre, code, script, style"):
            tag.decompose()  # a listing may hold any of these
        for tag in prose.select(".math"):
            tag.decompose()
        text = prose.get_text()
        found += [f"{path.name}: {match}" for match in leftovers.findall(text)]
        found += [f"{path.name}: {match}" for match in re.findall(r"\$[^$\n]*\\\w+[^$\n]*\$", text)]
    assert found == []


def test_a_page_says_how_long_its_chapter_takes(pages: dict[Path, BeautifulSoup]) -> None:
    """Under the title, and in the table of the preface; as long as it took."""
    table = article(pages[HTML / "intro.html"]).find_all("table")[-1]
    times = {
        str(row.a["href"]).split("#")[0]: [cell.get_text() for cell in row.find_all("td")[1:]]
        for row in table.find_all("tr")
        if row.a
    }
    for name in NAMES:
        line = article(page_of(pages, name)).find("em")
        assert isinstance(line, Tag)
        words = re.match(
            r"About (\d+ minutes) to read; (\d+) (seconds|minutes) to run, on the m", line.text
        )
        assert words, line.text
        assert times[f"chapters/{name}.html"] == [words[1], f"{words[2]} {words[3]}"]
        seconds = int(words[2]) * (60 if words[3] == "minutes" else 1)
        executed = nbformat.read(EXECUTED / f"{name}.ipynb", as_version=4)
        took = executed.metadata["papermill"]["duration"]
        assert abs(seconds - took) <= max(10, 0.3 * took)


def test_the_package_has_an_entry_for_everything_public(pages: dict[Path, BeautifulSoup]) -> None:
    """With a link to the chapter that explains it, and an example."""
    content = article(pages[HTML / "api.html"])
    for name in (name for name in PUBLIC if not isinstance(PUBLIC[name], ModuleType)):
        heading = content.find("dt", id=name)
        assert isinstance(heading, Tag), f"{name} has no entry in api.md"
        entry = heading.find_next_sibling("dd")
        assert isinstance(entry, Tag)
        assert entry.select('a[href*="chapters/"]'), f"{name} links no chapter"
        if name in CALLABLE:
            assert ">>> " in entry.get_text()


def test_the_references_are_all_there(pages: dict[Path, BeautifulSoup]) -> None:
    keys = re.findall(r"^@\w+\{(\w+),", (ROOT / "references.bib").read_text(), re.MULTILINE)
    content = article(pages[HTML / "references.html"])
    assert len(keys) >= 16
    assert len(content.select(".citation")) == len(keys)


def test_no_page_speaks_of_a_placeholder_address(pages: dict[Path, BeautifulSoup]) -> None:
    texts = [path.read_text(encoding="utf-8") for path in pages]
    assert not any(f"/{extension.PLACEHOLDER}/" in text for text in texts)
    buttons = "btn-source-repository-button", "btn-source-issues-button", "colab.research"
    for name in NAMES:
        text = (HTML / "chapters" / f"{name}.html").read_text(encoding="utf-8")
        shown = [button in text for button in buttons]
        assert shown == [extension.PLACEHOLDER not in ADDRESS] * 3
        if all(shown):
            assert f"{ADDRESS.split('github.com/')[1]}/blob/main/chapters/{name}.ipynb" in text


# --- the extension -----------------------------------------------------------------------------


def notebook(*sources: str) -> NotebookNode:
    return new_notebook(
        cells=[new_markdown_cell("# Title"), *(new_code_cell(source) for source in sources)]
    )


def figure(alt: str | None) -> NotebookNode:
    metadata = {} if alt is None else {"image/png": {"alt": alt}}
    return new_output("display_data", {"image/png": "AAAA"}, metadata=metadata)


def test_a_chapter_that_was_not_executed_stops_the_build(tmp_path: Path) -> None:
    source = nbformat.writes(notebook("1 + 1"))
    with pytest.raises(ExtensionError, match="has not been executed"):
        extension.read_executed(source, tmp_path / "absent.ipynb", "chapters/absent")


@pytest.mark.parametrize(
    ("sources", "where"), [(("1 + 2", "2"), 2), (("1 + 1",), 3), (("1 + 1", "2", "3"), 4)]
)
def test_a_chapter_that_changed_since_stops_the_build(
    tmp_path: Path, sources: tuple[str, ...], where: int
) -> None:
    executed = tmp_path / "old.ipynb"
    nbformat.write(notebook("1 + 1", "2"), executed)
    with pytest.raises(ExtensionError, match=f"changed since it was executed: cell {where} "):
        extension.read_executed(nbformat.writes(notebook(*sources)), executed, "chapters/old")


def test_parameters_that_papermill_puts_in_are_no_change(tmp_path: Path) -> None:
    executed = notebook("1 + 1")
    injected = new_code_cell("seed = 1", metadata={"tags": ["injected-parameters"]})
    executed.cells.insert(0, injected)
    nbformat.write(executed, tmp_path / "same.ipynb")
    source = nbformat.writes(notebook("1 + 1"))
    read = extension.read_executed(source, tmp_path / "same.ipynb", "chapters/same")
    assert len(read.cells) == 3


def test_the_computed_alt_text_reaches_the_cell() -> None:
    chapter = notebook("show(fig)", "1")
    chapter.cells[1].outputs = [figure("Four bars.")]
    extension.prepare(chapter)
    settings = [cell.metadata.get("mystnb") for cell in chapter.cells]
    assert settings == [None, {"image": {"alt": "Four bars.", "classes": "dark-light"}}, {}]


def test_sliders_go_below_their_figure_and_cannot_end_the_script() -> None:
    chapter = notebook("show(fig)")
    sliders = [{"choices": [["way", "</script><b>"]], "steps": [0]}]
    shown = figure("A path.")
    shown.metadata["lmmbook"] = {"sliders": sliders}
    said = new_output("display_data", {"text/markdown": "A sentence."})
    chapter.cells[1].outputs = [shown, said]
    extension.prepare(chapter)
    first, script, last = chapter.cells[1].outputs
    assert (first, last) == (shown, said)
    html = script.data["text/html"]
    assert html.count("<") == 2  # those of the script's own tags
    assert json.loads(re.sub(r"<[^>]*>", "", html)) == sliders


def test_a_corner_that_heads_nothing_is_no_header() -> None:
    chapter = notebook("table")
    table = pd.DataFrame({"sd": [1.0]}, index=pd.Index(["students"], name="factor"))
    chapter.cells[1].outputs = [new_output("display_data", {"text/html": table.to_html()})]
    extension.prepare(chapter)
    shown = BeautifulSoup(chapter.cells[1].outputs[0].data["text/html"], "html.parser")
    assert [tag.get_text() for tag in shown.find_all("th")] == ["sd", "factor", "students"]


@pytest.mark.parametrize(
    ("alts", "message"),
    [([None], "no alt text"), ([" "], "no alt text"), (["One.", "Two."], "Two figures")],
)
def test_a_figure_without_its_own_alt_text_stops_the_build(
    alts: list[str | None], message: str
) -> None:
    chapter = notebook("show(fig)")
    chapter.cells[1].outputs = [figure(alt) for alt in alts]
    with pytest.raises(ExtensionError, match=message):
        extension.prepare(chapter)


def test_buttons_that_lead_nowhere_are_dropped() -> None:
    kept = {"search_bar_text": "Search"}
    buttons = {"launch_buttons": {"colab_url": "https://colab"}, "use_issues_button": True}
    options = {"repository_url": "https://github.com/OWNER/lmmbook", **buttons, **kept}
    extension.drop_repository(options)
    assert options == kept
    options = {"repository_url": "https://github.com/someone/lmmbook", **buttons, **kept}
    extension.drop_repository(options)
    assert options.keys() == {"repository_url", *buttons, *kept}


def test_the_time_to_read_counts_what_is_seen() -> None:
    chapter = notebook("x = 1\n\nx\n" * 10, "say(...)", "folded = 1\n" * 100)
    chapter.cells[0].source = "word " * 400
    chapter.cells[2].outputs = [new_output("display_data", {"text/markdown": "word " * 200})]
    chapter.cells[2].metadata["tags"] = ["hide-input"]
    chapter.cells[3].metadata["tags"] = ["hide-cell"]
    assert (
        chapter_times.minutes_to_read(chapter)
        == 600 / chapter_times.WORDS + 20 / chapter_times.LINES
    )


@pytest.mark.parametrize(
    ("seconds", "words"), [(1, "10"), (44, "40"), (94, "90"), (95, "2"), (149, "2"), (200, "3")]
)
def test_the_time_to_run_is_rounded(seconds: float, words: str) -> None:
    unit = "seconds" if int(words) >= 10 else "minutes"
    assert chapter_times.in_words(seconds) == f"{words} {unit}"


def test_times_that_were_measured_beside_other_chapters_say_so() -> None:
    alone, beside = notebook("1"), notebook("1")
    beside.metadata["chapters_at_once"] = 2
    assert "at a time" not in chapter_times.here(alone)
    assert chapter_times.here(alone, beside).endswith(", up to 2 chapters at a time)")


def test_a_chapter_without_its_duration_stops_the_build() -> None:
    with pytest.raises(ExtensionError, match="chapters/old: expected the duration"):
        chapter_times.say_times(notebook("1"), "chapters/old")


def test_a_docstring_links_its_chapters_and_no_others() -> None:
    app = SimpleNamespace(srcdir=ROOT)
    lines = ["Chapters 04 and 05, not 06. See chapter 01."]
    extension.link_chapters(app, "function", "f", None, None, lines)
    assert lines == [
        ":doc:`Chapters 4 </chapters/04_m_step>` and :doc:`5 </chapters/05_criticism>`, not 06. "
        "See :doc:`chapter 1 </chapters/01_data>`."
    ]
    with pytest.raises(ExtensionError, match="f: expected a chapter of this book, got '99'"):
        extension.link_chapters(app, "function", "f", None, None, ["Chapter 99."])
