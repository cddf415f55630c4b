"""The site builds without a warning, and a browser opens it without an error."""

from __future__ import annotations

import ast
import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    links = subprocess.run(["make", "-s", "links"], cwd=ROOT, capture_output=True, text=True)
    assert links.returncode == 0, links.stderr
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(out)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    return out


def test_reference_holds_every_public_name(site: Path) -> None:
    for folder in ("patchnpack", "packer", "loaders", "models", "trainer"):
        package = "" if folder == "patchnpack" else f".{folder}"
        page = (site / "reference" / f"{folder}.html").read_text("utf-8")
        source = (ROOT / folder / "__init__.py").read_text("utf-8")
        names = ast.literal_eval(re.search(r"^__all__ = (\[.*?^\])", source, re.MULTILINE | re.DOTALL)[1])  # type: ignore[index]
        public = [f"patchnpack{package}.{name}" for name in names if not name.startswith("__")]
        assert [name for name in public if f'id="{name}"' not in page] == []


def test_links_inside_the_site_resolve(site: Path) -> None:
    pages = {path: path.read_text("utf-8") for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 8
    for path, text in pages.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.exists(), f"{path.name}: {link}"
            if anchor and target in pages and not anchor.startswith("__"):
                assert f'id="{anchor}"' in pages[target], f"{path.name}: {link}"


def test_site_loads_no_external_resources(site: Path) -> None:
    for path in site.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)"', path.read_text("utf-8"))
        fetched += re.findall(
            r'<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="(https?:[^"]+)"', path.read_text("utf-8")
        )
        assert fetched == []


def test_browser_opens_each_page_without_an_error(site: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000"]
    for page in ("index.html", "packing.html", "reference/packer.html"):
        shown = subprocess.run(
            [chromium, *options, "--dump-dom", f"file://{site / page}"], capture_output=True, text=True, timeout=120
        )
        assert shown.returncode == 0, shown.stderr
        assert "md-search" in shown.stdout
        assert [line for line in shown.stderr.splitlines() if ":CONSOLE" in line] == []


@pytest.mark.extra
def test_copy_button_of_a_console_block_copies_only_commands(site: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    # The script of the button selects the text in a temporary field and asks the browser to copy it.
    click = """<script>
    document.execCommand = () => document.body.append(Object.assign(document.createElement("pre"),
      {className: "copied", textContent: document.activeElement.value}));
    setTimeout(() => document.querySelectorAll("[data-clipboard-target]").forEach(button => button.click()), 2000);
    </script>"""
    page = site / "copying.html"
    page.write_text((site / "start.html").read_text("utf-8").replace("</body>", f"{click}</body>"), "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,9000", "--virtual-time-budget=6000"]
    shown = subprocess.run(
        [chromium, *options, "--dump-dom", f"file://{page}"], capture_output=True, text=True, timeout=120
    )
    page.unlink()
    copied = [html.unescape(text) for text in re.findall(r'<pre class="copied">(.*?)</pre>', shown.stdout, re.DOTALL)]
    source = (ROOT / "docs" / "start.md").read_text("utf-8")
    written = re.findall(r"^\$ ((?:.*\\\n)*.*)\n", source, re.MULTILINE)
    assert len(written) > 6
    lines = "\n".join(text for text in copied if "PackedImageLoader" not in text).splitlines()
    assert [line for line in lines if line] == "\n".join(written).splitlines()
