"""Every Python block of README.md and docs/ runs; the blocks of a page run in order."""

from __future__ import annotations

import gc
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Blocks that import one of these are skipped if it is not installed.
FRAMEWORKS = ("accelerate", "lightning", "transformers")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with photos/CLASS/NUMBER.jpg and shards/train-{000000..000003}.tar, as the pages assume."""
    spec = importlib.util.spec_from_file_location("shapes", ROOT / "examples" / "shapes.py")
    assert spec is not None
    assert spec.loader is not None
    shapes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shapes)
    shapes.draw_shapes(tmp_path / "shards", 24, 6, images_per_shard=6)
    shapes.draw_files(tmp_path / "photos", 24)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("shards")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its shards open
def test_python_on_the_page_runs(page: Path) -> None:
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        absent = [name for name in FRAMEWORKS if f"from {name} import" in block and not importlib.util.find_spec(name)]
        if not absent:
            exec(compile(block, str(page), "exec"), names)
    names.clear()
    gc.collect()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_resolve(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_shows_at_most_20_lines_of_python() -> None:
    block = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)[0]
    assert len(block.splitlines()) <= 20


def test_citation_version_matches_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
