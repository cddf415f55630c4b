from __future__ import annotations

import importlib.util
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("use_pillow_simd", ROOT / "scripts" / "use_pillow_simd.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def compiler(folder: Path, missing: str) -> str:
    """Write a stub compiler that finds every header except one."""
    path = folder / "cc"
    path.write_text(f"#!{sys.executable}\nimport sys\nsys.exit({missing!r} in sys.stdin.read())\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.usefixtures("x86")
@pytest.mark.parametrize("header", ["Python.h", "zlib.h", "jpeglib.h"])
def test_a_missing_header_is_named_with_its_package(
    header: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path, header))
    assert script.obstacle() == f"the C compiler does not find {header} (Debian: {script.HEADERS[header]})"


@pytest.mark.usefixtures("x86")
def test_a_missing_compiler_is_named(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-cc -O2")
    obstacle = script.obstacle()
    assert "`no-such-cc`" in obstacle
    assert "apt install gcc" in obstacle


@pytest.mark.usefixtures("x86")
def test_no_obstacle_if_every_header_is_found(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path, "nothing.h"))
    assert script.obstacle() is None


def test_other_processors_keep_pillow(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert "this is arm64" in script.obstacle()


def test_stand_in_is_an_empty_pillow_of_the_given_version(script: ModuleType, tmp_path: Path) -> None:
    wheel = script.stand_in("12.1.1.post0", tmp_path)
    target = tmp_path / "site"
    command = ["install", "--quiet", "--no-index", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    assert [path.name for path in target.iterdir()] == ["pillow-12.1.1.post0.dist-info"]
    listed = [sys.executable, "-m", "pip", "list", "--path", str(target), "--format", "freeze"]
    assert "pillow" in subprocess.run(listed, check=True, capture_output=True, text=True).stdout


def test_stand_in_meets_every_requirement_on_pillow() -> None:
    pinned = re.search(r"^pillow-simd==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert pinned is not None
    unmet = [
        f"{distribution.name} requires {requirement}"
        for distribution in metadata.distributions()
        for requirement in map(Requirement, distribution.requires or [])
        if requirement.name.lower() == "pillow"
        and (not requirement.marker or requirement.marker.evaluate({"extra": ""}))
        and not requirement.specifier.contains(pinned[1], prereleases=True)
    ]
    assert unmet == []


@pytest.mark.parametrize(
    ("listed", "runs", "restored"), [(None, "13.0.0", False), ("12.1.1.post0", "13.0.0", True), (None, "", True)]
)
def test_pillow_is_reinstalled_if_it_was_written_over_pillow_simd(
    listed: str | None, runs: str, restored: bool, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str | Path, ...]] = []
    monkeypatch.setattr(script, "pip", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(script, "listed", lambda: listed)
    monkeypatch.setattr(script, "running", lambda: ("Pillow", runs))
    monkeypatch.setattr(sys, "argv", ["use_pillow_simd.py", "--restore"])
    script.main()
    assert [call[0] for call in calls] == (["uninstall", "install"] if restored else [])


def test_failed_build_of_pillow_simd_keeps_pillow(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def pip(*arguments: str | Path) -> None:
        commands.append(arguments[0])
        raise subprocess.CalledProcessError(1, "pip", output="no compiler today")

    monkeypatch.setattr(script, "obstacle", lambda: None)
    monkeypatch.setattr(script, "pip", pip)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    reason = script.swap(fresh=False)
    assert reason == f"pillow-simd did not build; see {tmp_path / 'pillow-simd-build.log'}"
    assert (tmp_path / "pillow-simd-build.log").read_text() == "no compiler today"
    assert commands == ["wheel"]
