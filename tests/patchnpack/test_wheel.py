from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def source(tree: Path) -> set[str]:
    """Each file that should be installed, under its installed name."""
    names = {"patchnpack/py.typed", "patchnpack/report/page.html"}
    for folder in ("patchnpack", "packer", "loaders", "models", "trainer"):
        prefix = "" if folder == "patchnpack" else "patchnpack/"
        names |= {f"{prefix}{path.relative_to(tree).as_posix()}" for path in (tree / folder).rglob("*.py")}
    return names


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from that sdist."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for folder in ("patchnpack", "packer", "loaders", "models", "trainer"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


def test_wheel_holds_every_module_of_the_tree_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == source(ROOT)


def test_wheel_installs_only_patchnpack_into_site_packages(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        tops = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}
    assert tops == {"patchnpack"}


def test_sdist_holds_the_source_the_readme_and_the_licence(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "patchnpack/py.typed", "patchnpack/report/page.html"}
    for folder in ("patchnpack", "packer", "loaders", "models", "trainer"):
        wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}
    assert wanted <= names
