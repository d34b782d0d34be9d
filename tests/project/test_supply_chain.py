"""What is installed and what runs on GitHub is what was looked at: named to the bytes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def requirements(name: str) -> dict[str, tuple[list[Requirement], list[str]]]:
    """Package to its requirements (one for each Python that needs its own) and its hashes."""
    text = (ROOT / name).read_text("utf-8").replace("\\\n", " ")
    found: dict[str, tuple[list[Requirement], list[str]]] = {}
    for line in text.splitlines():
        line, _, comment = line.partition("#")
        assert "//" not in comment
        if line.strip():
            spec, *hashes = line.split(" --hash=")
            package = Requirement(spec)
            own, known = found.setdefault(canonicalize_name(package.name), ([], []))
            own.append(package)
            known.append(" ".join(f"--hash={h.strip()}" for h in hashes))
    return found


LOCKED = requirements("requirements.txt")


def test_every_package_is_one_version_with_hashes():
    assert len(LOCKED) > 100
    for packages, hashes in LOCKED.values():
        for package, known in zip(packages, hashes, strict=True):
            assert re.fullmatch(r"==[^*,]+", str(package.specifier)), package
            assert package.url is None
            assert known, package
            assert all(HASH.fullmatch(h) for h in known.split()), package


def test_all_that_is_used_is_locked():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    project = pyproject["project"]
    wanted = [package for own, _ in requirements("requirements.in").values() for package in own]
    wanted += [Requirement(x) for x in project["dependencies"]]
    wanted += [Requirement(x) for own in project["optional-dependencies"].values() for x in own]
    wanted += [Requirement(x) for x in pyproject["build-system"]["requires"]]
    for package in wanted:
        locked, _ = LOCKED[canonicalize_name(package.name)]
        for own in locked:
            [version] = [specifier.version for specifier in own.specifier]
            assert package.specifier.contains(version, prereleases=True), (package, own)


def test_nothing_else_is_installed():
    """Not a package without a hash, nor one that would have to be built with others."""
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("\\\n", " ")
    installs = re.findall(r"pip (?:install|wheel) .*", makefile)
    assert len(installs) == 3
    for line in installs:
        locked = "--require-hashes" in line and "--only-binary :all:" in line
        assert locked or ("--no-deps" in line and "--no-build-isolation" in line), line
    for script in [ROOT / ".ci" / "run", *(ROOT / ".github").rglob("*.yml")]:
        assert "pip install" not in script.read_text("utf-8")


def test_actions_are_named_by_commit():
    used = [
        line.split("uses:")[1].strip()
        for path in (ROOT / ".github").rglob("*.yml")
        for line in path.read_text("utf-8").splitlines()
        if "uses:" in line
    ]
    assert len(used) >= 6
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
