"""Write the repository's address wherever it is needed.

    python tools/set_url.py https://github.com/someone/lmmbook

The address stands in `_config.yml`, under `repository: url:`; the other files repeat it, since
a README, a Colab cell and a package's metadata cannot look it up. tests/project/test_url.py
compares.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import yaml

FILES = ("_config.yml", "CITATION.cff", "pyproject.toml", "*.md", "chapters/*.ipynb")
URL = re.compile(r"https://github\.com/([A-Za-z0-9][A-Za-z0-9-]*/(?!\.+$)[A-Za-z0-9._-]+)")


def repository(url: object) -> str:
    """The `owner/name` of an address, or an error that says what was expected and what came."""
    match = URL.fullmatch(str(url))
    if not match or match[1].endswith(".git"):
        raise ValueError(f"expected an address like https://github.com/owner/name, got {url!r}")
    return match[1]


def current_url(root: Path) -> str:
    """The address in `_config.yml`, which the others follow."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return str((config.get("repository") or {}).get("url"))


def set_url(root: Path, url: str) -> list[Path]:
    """Replace the address in all files below `root`, and return those that have changed.

    Besides the address in `_config.yml` this takes `<anyone>/lmmbook`, so that it also mends
    files that had come to differ. Everything else in the files stays, byte for byte.
    """
    new = repository(url)
    old = repository(current_url(root))
    address = re.compile(
        r"(github\.com[/:]|raw\.githubusercontent\.com/|colab\.research\.google\.com/github/)"
        rf"(?:{re.escape(old)}|[A-Za-z0-9-]+/lmmbook)(?![A-Za-z0-9_-])".encode()
    )
    changed: dict[Path, bytes] = {}
    for path in sorted({path for pattern in FILES for path in root.glob(pattern)}):
        before = path.read_bytes()
        after = address.sub(rb"\g<1>" + new.encode(), before)
        if after != before:
            changed[path] = after
    # First all the writing that could fail, then the renaming: either every file or none.
    drafts = {path: path.with_name(path.name + ".new") for path in changed}
    try:
        for path, draft in drafts.items():
            draft.write_bytes(changed[path])
            draft.chmod(path.stat().st_mode)
        for path, draft in drafts.items():
            os.replace(draft, path)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
    return list(changed)


def main(arguments: list[str]) -> int:
    """Run the tool: 0 when all is well, 2 for an address that is none."""
    root = Path(__file__).resolve().parents[1]
    if len(arguments) != 1:
        print("usage: python tools/set_url.py https://github.com/owner/name", file=sys.stderr)
        return 2
    try:
        changed = set_url(root, arguments[0])
    except ValueError as error:
        print(f"set_url: {error}; nothing was changed", file=sys.stderr)
        return 2
    for path in changed:
        print(f"changed {path.relative_to(root)}")
    print(f"the repository's address is {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
