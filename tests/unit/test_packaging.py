"""What is built and installed is what the checkout has: sdist, wheel, and the wheel in a fresh environment."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with sdist and wheel, the wheel built from the sdist; no network, no build isolation."""
    top = tmp_path_factory.mktemp("build")
    source = top / "source"
    for name in ("core", "plugins", "docs"):
        shutil.copytree(TOP / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(TOP / name, source)
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(top / "dist")]
    subprocess.run([*build, "--target", "sdist"], cwd=source, check=True, capture_output=True)
    (sdist,) = (top / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(top / "unpacked", filter="data")
    (unpacked,) = (top / "unpacked").iterdir()
    subprocess.run([*build, "--target", "wheel"], cwd=unpacked, check=True, capture_output=True)
    return top / "dist"


def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def modules(root: Path, package: str) -> set[str]:
    return {
        str(path.relative_to(root)) for path in (root / package).rglob("*") if path.suffix in (".py", ".json", ".typed")
    }


def test_the_wheel_has_both_packages_whole(built: Path) -> None:
    names = set(zipfile.ZipFile(wheel(built)).namelist())
    wanted = modules(TOP / "core", "wherry") | modules(TOP / "plugins", "wherry_plugins")
    assert wanted - names == set()
    assert {"wherry/py.typed", "wherry_plugins/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests/", "core/", "plugins/")) or name.endswith(".pth")]


def test_the_wheel_has_the_client_and_the_licence(built: Path) -> None:
    archive = zipfile.ZipFile(wheel(built))
    (script,) = [name for name in archive.namelist() if name.endswith(".data/scripts/wherry")]
    assert archive.read(script) == (TOP / "core/wherry/client/wherry").read_bytes()
    assert [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]


def test_entry_points_are_family_and_id(built: Path) -> None:
    archive = zipfile.ZipFile(wheel(built))
    (name,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
    text = archive.read(name).decode()
    assert "[wherry.plugins]" in text
    found = dict(line.split(" = ") for line in text.splitlines() if " = " in line)
    assert found == PROJECT["project"]["entry-points"]["wherry.plugins"]
    assert all(re.fullmatch(r"[a-z]+\.[a-z0-9][a-z0-9_.-]*", key) for key in found)


def test_versions_agree() -> None:
    import wherry

    assert wherry.__version__ == PROJECT["project"]["version"]
    if wherry.__version__ != importlib.metadata.version("wherry"):
        pytest.fail("the installed metadata is older than the checkout: contrib/setup test")


def dependencies(names: list[str]) -> set[str]:
    """The distributions that these need, all the way down."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    while names:
        requirement = Requirement(names.pop())
        if requirement.name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(requirement.name)
        names += importlib.metadata.requires(requirement.name) or []
    return found


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a fresh environment with the wheel. Its dependencies are links to the files of those installed here."""
    top = tmp_path_factory.mktemp("fresh")
    python, libraries = top / "venv/bin/python", top / "libraries"
    subprocess.run([sys.executable, "-I", "-m", "venv", "--without-pip", top / "venv"], check=True)
    libraries.mkdir()
    for name in dependencies(list(PROJECT["project"]["dependencies"])):
        for file in importlib.metadata.files(name) or []:
            first = file.parts[0]
            if first not in ("..", "__pycache__") and not (libraries / first).is_symlink():
                (libraries / first).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / first)
    (packages,) = (top / "venv/lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text(f"{libraries}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel(built))], check=True)
    return python


def test_an_installed_wheel_imports_and_lists_its_plugins(installed: Path) -> None:
    code = (
        "import importlib.metadata as m, json, wherry, wherry.api, wherry_plugins;"
        "points = m.entry_points(group='wherry.plugins');"
        "[point.load() for point in points];"
        "print(json.dumps([wherry.__file__, sorted(point.name for point in points)]))"
    )
    done = subprocess.run([installed, "-I", "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    where, names = json.loads(done.stdout)
    assert where.startswith(str(installed.parents[1]))
    assert names == sorted(PROJECT["project"]["entry-points"]["wherry.plugins"])


def test_the_installed_client_is_a_program(installed: Path) -> None:
    client = installed.parent / "wherry"
    assert os.access(client, os.X_OK)
    assert client.read_bytes() == (TOP / "core/wherry/client/wherry").read_bytes()


def test_no_dependency_ships_a_pth() -> None:
    """A .pth file is run at each start of the interpreter: the client's and the shim's too."""
    for name in dependencies(list(PROJECT["project"]["dependencies"])):
        assert [str(file) for file in importlib.metadata.files(name) or [] if file.suffix == ".pth"] == []


@pytest.mark.parametrize("fragment", sorted((TOP / "docs" / "news").glob("*")), ids=lambda path: path.name)
def test_news_fragments_are_well_formed(fragment: Path) -> None:
    if fragment.name == "README.md":
        return
    types = "|".join(kind["directory"] for kind in PROJECT["tool"]["towncrier"]["type"])
    assert re.fullmatch(rf"(\d+|\+[a-z0-9-]+)\.({types})(\.\d+)?\.md", fragment.name)
    text = fragment.read_text()
    assert text.strip().endswith(".")
    assert text.endswith("\n")
    assert not text.startswith(("#", "-", "*"))


def test_towncrier_makes_news_of_them() -> None:
    draft = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9", "--date", "2030-01-01"],
        cwd=TOP, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert draft.returncode == 0, draft.stderr
    assert "## 9.9 (2030-01-01)" in draft.stdout
    assert "### New" in draft.stdout
