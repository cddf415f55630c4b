"""What a command imports before it runs. Counted in modules, since seconds depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from patchnpack.cli.main import app

VERBS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # it is a group
HEAVY = {"torch", "numba", "llvmlite", "numpy", "pyarrow", "PIL", "scipy", "webdataset", "simplejpeg", "matplotlib"}

_RUN = """
import json, os, sys
from patchnpack.cli.main import run
sys.argv = ["patchnpack", *json.loads(sys.argv[1])]
try:
    run()
except SystemExit as end:
    status = end.code or 0
else:
    status = 0
print(json.dumps([status, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def start(*arguments: str) -> tuple[int, str, set[str]]:
    """Run the command in a fresh interpreter; its status, its output, and the top-level modules it imported."""
    command = [sys.executable, "-c", _RUN, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    output, _, last = done.stdout.rstrip("\n").rpartition("\n")
    status, modules = json.loads(last)
    return status, output + done.stderr, set(modules)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_imports_neither_the_library_nor_what_it_computes_with(arguments: list[str]) -> None:
    status, output, modules = start(*arguments)
    assert status == 0
    assert "Usage: patchnpack" in output or output.startswith("patchnpack ")
    assert modules & HEAVY == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-such-flag"], "No such option"),
        (["diagnose"], "No such command"),
        (["report"], "Missing argument"),
        (["train", "x.tar", "--no-such-flag"], "No such option"),
        (["train", "x.tar", "--lr", "fast"], "'fast' is not a number"),
        (["pack", "x.tar", "-o", "out", "--store", "pixels"], "'pixels' is not one of"),
    ],
)
def test_wrong_usage_is_reported_before_the_library_is_imported(arguments: list[str], message: str) -> None:
    status, output, modules = start(*arguments)
    assert status == 2
    assert message in " ".join(output.split())
    assert modules & HEAVY == set()


def test_completion_imports_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "_PATCHNPACK_COMPLETE": "complete_bash",
        "COMP_WORDS": "patchnpack re",
        "COMP_CWORD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    status, output, modules = start()
    assert (status, output) == (0, "report")
    assert modules & HEAVY == set()


@pytest.mark.parametrize("verb", ["index", "report"])
def test_commands_that_read_only_headers_import_no_torch(verb: str, tmp_path: Path) -> None:
    status, output, modules = start(verb, str(tmp_path / "absent.tar"))
    assert status == 2
    assert "does not exist" in output
    assert {"numba", "pyarrow"} <= modules
    assert "torch" not in modules


def test_the_report_of_a_table_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "sizes.csv").write_text("width,height\n640,480\n")
    status, output, modules = start("report", str(tmp_path / "sizes.csv"), "--sweep")
    assert status == 0, output
    assert "torch" not in modules
