"""The pages around the chapters: preface, notation, glossary and references say what is there."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from pybtex.database import parse_file

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = {
    path.name: nbformat.read(path, as_version=4) for path in sorted(ROOT.glob("chapters/*.ipynb"))
}
SOURCES = {
    name: "\n".join(cell.source for cell in chapter.cells) for name, chapter in CHAPTERS.items()
}
LINK = re.compile(r"\[(?:[Cc]hapter )?(\d+)\]\(chapters/((\d\d)_\w+\.ipynb)\)")


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# --- the preface -------------------------------------------------------------------------------


def test_the_preface_has_every_chapter_with_its_title() -> None:
    for name, chapter in CHAPTERS.items():
        title = chapter.cells[0].source.splitlines()[0].removeprefix("# ")
        found = re.search(rf"^\| \[(.*)\]\(chapters/{name}\) \|", page("intro.md"), re.MULTILINE)
        assert found, f"{name} has no row in the table of the preface"
        assert title.startswith(found[1])


def test_the_preface_quotes_headings_that_exist() -> None:
    headings = set(re.findall(r"^#+ (.*)$", "\n".join(SOURCES.values()), re.MULTILINE))
    quoted = re.findall(r'"([A-Z][^"]+)"', page("intro.md"))
    assert len(quoted) >= 4
    assert [heading for heading in quoted if heading not in headings] == []


# --- the glossary ------------------------------------------------------------------------------


def entries() -> list[tuple[list[str], str]]:
    """The glossary's entries: terms, and what is said of them."""
    [body] = re.findall(r"```\{glossary\}\n:sorted:\n(.*?)```", page("glossary.md"), re.DOTALL)
    found = []
    for block in body.strip().split("\n\n"):
        lines = block.splitlines()
        terms = [line for line in lines if not line.startswith("  ")]
        found.append((terms, " ".join(lines[len(terms) :])))
    return found


@pytest.mark.parametrize(("terms", "said"), entries(), ids=lambda x: x[0] if x else None)
def test_a_term_stands_in_the_chapter_that_its_entry_links(terms: list[str], said: str) -> None:
    links = LINK.findall(said)
    assert links, "expected a link: [chapter N](chapters/NN_name.ipynb)"
    assert len(re.findall(r"[.:](?= |$)", said)) <= 4, "expected one to three sentences"
    for number, name, own in links:
        assert int(number) == int(own)
        for term in terms:
            acronym = term.upper() == term
            pattern = rf"(?<!\w){re.escape(term)}" + (r"(?!\w)" if acronym else "")
            assert re.search(pattern, SOURCES[name], 0 if acronym else re.IGNORECASE), term


def test_no_term_is_there_twice() -> None:
    terms = [term.lower() for own, _ in entries() for term in own]
    assert len(terms) >= 40
    assert len(set(terms)) == len(terms)


# --- the notation ------------------------------------------------------------------------------


def rows() -> list[list[str]]:
    lines = [line for line in page("notation.md").splitlines() if line.startswith("| $")]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0].strip())
def test_a_symbol_stands_where_the_notation_says(row: list[str]) -> None:
    symbols, _, _, code, where = row
    [(number, name, own)] = LINK.findall(where)
    assert int(number) == int(own)
    text = SOURCES[name].replace("\\\\", "\\")  # in code, as a string
    formulas = re.findall(r"\$\$.*?\$\$|\$[^$\n]+\$", text, re.DOTALL)
    formulas = [re.sub(r"\s+", " ", formula) for formula in formulas]
    for symbol in re.findall(r"\$([^$]+)\$", symbols):
        pattern = rf"(?<![A-Za-z\\]){re.escape(symbol)}(?![A-Za-z])"
        assert any(re.search(pattern, formula) for formula in formulas), symbol
    everything = "\n".join(SOURCES.values())
    for written in re.findall(r"`([^`]+)`", code.replace("\\|", "|")):
        assert written in everything, written


# --- the references ----------------------------------------------------------------------------

BIBLIOGRAPHY = {
    (str(entry.persons["author"][0].rich_last_names[0]), entry.fields["year"]): key
    for key, entry in parse_file(ROOT / "references.bib").entries.items()
}
NAME = r"[A-Z][a-zà-ž][\w'-]*"
CITATION = re.compile(
    rf"({NAME})(?:(?:, {NAME})*(?: and | & ){NAME}| et al\.)? \(?((?:19|20)\d\d)(?![\w-])"
)
# The end of a name of several words, which `source_of` reads whole.
NOT_ALONE = {"Authors", "Boeck"}


def listed(name: str) -> list[str]:
    """What a chapter's list of references has."""
    _, _, references = SOURCES[name].partition("### References\n")
    return re.findall(r"^- .*$", references, re.MULTILINE)


def source_of(line: str) -> tuple[str, str]:
    """First author and year of an entry such as "- Wei & Tanner (1990). A Monte Carlo ..."."""
    found = re.match(r"- (.+?) \((\d{4})\)\. ", line)
    assert found, f"expected '- Authors (year). Title.', got {line!r}"
    return re.split(r", | & | et al\.", found[1])[0], found[2]


def cited(text: str) -> set[tuple[str, str]]:
    """First authors and years that are named in running text."""
    found = CITATION.findall(re.sub(r"[\s#]+", " ", text))
    return {pair for pair in found if pair[0] not in NOT_ALONE}


def in_code(folder: str) -> set[tuple[str, str]]:
    return {
        pair for path in ROOT.glob(f"{folder}/**/*.py") for pair in cited(path.read_text("utf-8"))
    }


@pytest.mark.parametrize("name", CHAPTERS)
def test_what_a_chapter_lists_and_cites_is_in_the_bibliography(name: str) -> None:
    own = {source_of(line) for line in listed(name)}
    assert own | cited(SOURCES[name]) <= BIBLIOGRAPHY.keys()


def test_what_docstrings_cite_is_in_the_bibliography() -> None:
    named = in_code("lmmbook")
    assert len(named) >= 10
    assert named <= BIBLIOGRAPHY.keys()


def test_what_is_in_the_bibliography_is_named_somewhere() -> None:
    assert len(BIBLIOGRAPHY) >= 40
    named = in_code("lmmbook") | in_code("tests")
    for name in CHAPTERS:
        named |= cited(SOURCES[name]) | {source_of(line) for line in listed(name)}
    assert BIBLIOGRAPHY.keys() - named == set()
