from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchnpack.packer import BetaDrop, Packing, PatchSizes, Rows
from patchnpack.packer.analysis.advice import advise
from patchnpack.packer.analysis.report import report
from patchnpack.packer.analysis.sweep import sweep
from patchnpack.report.page import Picture, check_page, render_page, write_page
from tests.packer.planning.plans import random_samples

CHARTS = ["baselines", "padding", "tokens", "aspects", "drops", "images", "fill", "attention", "packs"]
HOSTILE = "<script>alert('key')</script>\"'><img src=x onerror=alert(1)>"
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")


def page(packing: Packing | None = None, images: int = 300, **settings: Any) -> str:
    packing = Packing(seq_len=1024, token_drop=BetaDrop(0.3, 0.6)) if packing is None else packing
    rows = Rows.of_sizes(*np.random.default_rng(3).integers(48, 385, (2, images)))
    swept = sweep(rows, packing, **settings)
    picture = Picture(image=Image.new("RGB", (640, 200), (200, 30, 30)), keys=[[HOSTILE, "b"], ["c"]])
    return render_page(
        report(rows, packing), swept, advise(swept), title=HOSTILE, picture=picture, bad_images=3, without_image=5
    )


def test_a_page_of_samples_counts_them_and_has_charts_of_them() -> None:
    rows, packing = random_samples(200, 5), Packing(seq_len=1024)
    swept = sweep(rows, packing, seq_lens=[1024], lookaheads=[64])
    text = render_page(report(rows, packing), swept, advise(swept), title="documents")
    assert f"{len(rows.row):,} images in 200 samples, packed" in text
    assert "share of samples with more tokens than slots or more than 64 images" in text
    found = [figure["id"] for figure in _Elements(text).all("figure")]
    assert [name for name in found if name in ("samples", "images_per_sample")] == ["samples", "images_per_sample"]
    assert "samples" not in CHARTS, "pages of single images have no such chart"


class _Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def written() -> str:
    return page(patch_sizes=[16, 24])


def test_page_counts_what_is_left_out(written: str) -> None:
    text = " ".join(re.sub("<[^>]*>", " ", written).split())
    assert "bad images 3, left out" in text
    assert "without image 5 samples, left out" in text


def test_every_chart_has_a_title_and_a_description(written: str) -> None:
    elements = _Elements(written)
    svgs = elements.all("svg")
    assert [svg["aria-labelledby"] for svg in svgs] == [f"{name}-title {name}-desc" for name in CHARTS]
    assert all(svg["role"] == "img" for svg in svgs)
    for name in CHARTS:
        for part in ("title", "desc"):
            assert re.search(rf'<{part} id="{name}-{part}">[^<]{{8,}}</{part}>', written), (name, part)
    (image,) = elements.all("img")
    assert len(image["alt"] or "") > 40


def test_ids_are_unique_and_every_reference_resolves(written: str) -> None:
    ids = [attributes["id"] for _, attributes in _Elements(written).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', written))
    assert referred
    assert referred <= set(ids)


def test_keys_and_shard_names_are_escaped(written: str) -> None:
    elements = _Elements(written)
    assert elements.all("script") == []
    assert len(elements.all("img")) == 1
    assert not any(name.startswith("on") for _, attributes in elements.elements for name in attributes)
    assert "&lt;script&gt;" in written


def test_page_has_no_external_references(written: str) -> None:
    for tag, attributes in _Elements(written).elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert "@import" not in written
    assert set(re.findall(r"url\(([^)#]?)", written)) <= {""}


def test_charts_use_only_colours_of_the_page(written: str) -> None:
    charts = "".join(re.findall(r"<svg.*?</svg>", written, re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", charts)) == set()
    assert not re.search(r"(fill|stroke): (black|white|rgb)", charts)


def test_sweep_table_has_one_row_per_setting_and_marks_the_best_and_the_current(written: str) -> None:
    rows = Rows.of_sizes(*np.random.default_rng(3).integers(48, 385, (2, 300)))
    swept = sweep(rows, Packing(seq_len=1024, token_drop=BetaDrop(0.3, 0.6)), patch_sizes=[16, 24])
    table = written[written.index('id="sweep"') :]
    assert len(re.findall(r"<tr", table)) == len(swept.settings) + 1
    assert len(re.findall(r'<tr class="best"', table)) == 1
    assert len(re.findall(r">(?:best, )?now</td>", table)) == 1
    for sentence in advise(swept).sentences:
        assert sentence in written.replace("&#39;", "'")


def test_charts_are_deterministic() -> None:
    def charts(text: str) -> list[str]:
        return re.findall(r"<svg.*?</svg>", text, re.DOTALL)

    assert charts(page(images=50)) == charts(page(images=50))


@pytest.mark.parametrize(
    "packing",
    [
        Packing(seq_len=64, oversize="skip"),
        Packing(seq_len=8192, max_images=4),
        Packing(seq_len=1024, patch_size=PatchSizes((16, 32))),
        Packing(seq_len=1024, fill="rescale"),
    ],
)
@pytest.mark.parametrize("images", [1, 40])
def test_page_renders_for_any_packing_and_a_single_image(packing: Packing, images: int) -> None:
    if packing.oversize == "skip":
        images += 40  # so that some fit
    assert len(_Elements(page(packing, images)).all("svg")) >= len(CHARTS) - 1


def test_write_page_leaves_only_the_complete_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, packing = Rows.of_sizes([64] * 20, [64] * 20), Packing(seq_len=64)
    swept = sweep(rows, packing)
    write_page(tmp_path / "a.html", report(rows, packing), swept, advise(swept), title="a")
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.html"]


def test_check_page_creates_the_folder_or_raises(tmp_path: Path) -> None:
    check_page(tmp_path / "absent" / "too" / "a.html")
    assert (tmp_path / "absent" / "too").is_dir()
    (tmp_path / "file").touch()
    for name in ("file/a.html", "file/absent/a.html"):
        with pytest.raises(ValueError, match=rf"{name}' cannot be written: '.*' is not a folder; give another path"):
            check_page(tmp_path / name)


def test_check_page_raises_if_the_extra_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_page(tmp_path / "a.html")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(
        ValueError, match=r"needs matplotlib, which is not installed; run: pip install 'patchnpack\[report\]'"
    ):
        check_page(tmp_path / "a.html")


def test_importing_the_page_imports_neither_matplotlib_nor_jinja2() -> None:
    code = "import sys, patchnpack.report.page; print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    search = [path for path in sys.path if path]
    command = [sys.executable, "-P", "-c", f"import sys; sys.path[:0] = {search!r}; {code}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def _browse(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in headless Chromium; messages of its console go to standard error, marked CONSOLE."""
    assert CHROMIUM is not None
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    profile = path.parent / "profile"
    log = ["--enable-logging=stderr", f"--user-data-dir={profile}"]
    command = [CHROMIUM, *common, *log, *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@needs_chromium
def test_chromium_shows_every_picture_and_logs_no_error(written: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(written)
    shown = _browse(path, "--dump-dom")
    assert shown.returncode == 0, shown.stderr
    assert "CONSOLE" not in shown.stderr
    figures = re.findall(r"<figure.*?</figure>", shown.stdout, re.DOTALL)
    assert len(figures) == len(CHARTS) + 1
    assert all("<img" in figure or len(re.findall(r"<(?:path|use)\b", figure)) > 5 for figure in figures)


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [420, 1200])
def test_chromium_draws_the_page_in_light_and_dark_wide_and_narrow(
    written: str, tmp_path: Path, dark: bool, width: int
) -> None:
    path, out = tmp_path / "report.html", tmp_path / "page.png"
    path.write_text(written)
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    shown = _browse(path, f"--screenshot={out}", f"--window-size={width},6000", *scheme)
    assert "CONSOLE" not in shown.stderr
    with Image.open(out) as opened:
        picture = np.asarray(opened.convert("RGB")).astype(int)
    assert picture.shape[1] == width
    background = picture[2, 2]
    assert (background.max() < 60) == dark
    # The page shows bars in the first series' colour, the red picture, and text that contrasts with the background.
    bars = np.abs(picture - ([0x7A, 0xB3, 0xEF] if dark else [0x25, 0x63, 0xA8])).max(-1) < 4
    assert bars.sum() > 5000
    assert (np.abs(picture - [200, 30, 30]).max(-1) < 12).sum() > 5000
    assert (np.abs(picture - background).max(-1) > 150).mean() > 0.005


@needs_chromium
def test_chromium_prints_the_page(written: str, tmp_path: Path) -> None:
    path, out = tmp_path / "report.html", tmp_path / "page.pdf"
    path.write_text(written)
    _browse(path, "--no-pdf-header-footer", f"--print-to-pdf={out}")
    data = out.read_bytes()
    assert data.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 12


@needs_chromium
def test_chromium_logs_errors_of_a_broken_page(written: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(written.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png" alt=""><script>1</script>'))
    assert "CONSOLE" in _browse(path, "--dump-dom").stderr
