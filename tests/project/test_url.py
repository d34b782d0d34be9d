"""The repository's address is the one in _config.yml, everywhere."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "set_url.py"
NEEDED = ["_config.yml", "README.md", "pyproject.toml", "CITATION.cff"]
ADDRESS = re.compile(
    r"(?:github\.com[/:]|githubusercontent\.com/|/github/)([\w-]+/lmmbook)(?![\w-])"
)

specification = importlib.util.spec_from_file_location("set_url", TOOL)
tool = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tool)


def files(root: Path) -> dict[str, bytes]:
    """All files that carry the address, by their place below `root`."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for pattern in tool.FILES
        for path in root.glob(pattern)
    }


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "tools" / "set_url.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, content in files(ROOT).items():
        copy = tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(content)
    (tmp_path / "tools").mkdir()
    shutil.copy(TOOL, tmp_path / "tools")
    return tmp_path


@pytest.mark.parametrize("name", NEEDED)
def test_who_needs_the_address_has_it(name):
    assert tool.current_url(ROOT) in (ROOT / name).read_text(encoding="utf-8")


def test_every_address_is_the_one_in_the_config():
    """In every file of the repository, and the tool knows of each."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0") if listed.returncode == 0 else list(files(ROOT))
    examples = ("tests/", "tools/", "_vendor/", "Makefile")  # they speak of `someone`
    wrong = {}
    for name in names:
        if name.startswith(examples) or not (ROOT / name).is_file():
            continue
        text = (ROOT / name).read_bytes().decode("utf-8", errors="ignore")
        found = {f"https://github.com/{owner_name}" for owner_name in ADDRESS.findall(text)}
        if found and (found != {tool.current_url(ROOT)} or name not in files(ROOT)):
            wrong[name] = found
    assert not wrong


@pytest.mark.parametrize("url", ["https://github.com/me/lmmbook", "https://github.com/a-b/c.d_e"])
def test_there_and_back(tree, url):
    """Every address changes; changing back gives the same bytes, so nothing else has changed."""
    before, old = files(tree), tool.current_url(tree)
    assert run(tree, url).returncode == 0
    after = files(tree)
    assert tool.current_url(tree) == url
    for name, content in after.items():
        assert old.encode() not in content, name
        assert content.count(url.encode()) == before[name].count(old.encode()), name
    assert run(tree, old).returncode == 0
    assert files(tree) == before
    assert not [*tree.rglob("*.new")]


def test_other_addresses_stay(tree):
    slug = tool.current_url(tree).removeprefix("https://github.com/")
    others = (
        f"https://github.com/{slug}-extra https://github.com/tensorflow/probability\r\n"
        f"https://example.org/{slug} me/lmmbook {slug}"
    ).encode()
    ours = (
        "git+https://github.com/{0}.git https://github.com/{0}. git@github.com:{0}\r\n"
        "https://colab.research.google.com/github/{0}/blob/main/a.ipynb "
        "https://raw.githubusercontent.com/{0}/main/a.png"
    )
    (tree / "chapters").mkdir(exist_ok=True)
    page = tree / "chapters" / "00_page.ipynb"
    page.write_bytes(others + ours.format(slug).encode())
    assert run(tree, "https://github.com/me/lmmbook").returncode == 0
    assert page.read_bytes() == others + ours.format("me/lmmbook").encode()


def test_files_that_differ_from_the_config_are_mended(tree):
    page = tree / "README.md"
    page.write_bytes(b"https://github.com/somebody-else/lmmbook/issues")
    assert run(tree, tool.current_url(tree)).returncode == 0
    assert page.read_text() == tool.current_url(tree) + "/issues"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "lmmbook",
        "http://github.com/me/lmmbook",
        "https://gitlab.com/me/lmmbook",
        "https://github.com/me",
        "https://github.com/me/lmmbook/",
        "https://github.com/me/lmmbook.git",
        "https://github.com/me/lmmbook\n",
        "https://github.com/me/lmm book",
        "https://github.com/me/..",
        "https://github.com/me/lmmbook?x",
    ],
)
def test_a_bad_address_changes_nothing(tree, url):
    before = files(tree)
    result = run(tree, url)
    assert result.returncode == 2
    assert "expected an address like https://github.com/owner/name" in result.stderr
    assert repr(url) in result.stderr
    assert files(tree) == before


def test_a_file_that_cannot_be_written_changes_nothing(tree, monkeypatch):
    before = files(tree)
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == "pyproject.toml.new":
            raise OSError(28, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        tool.set_url(tree, "https://github.com/me/lmmbook")
    assert files(tree) == before
    assert not [*tree.rglob("*.new")]
