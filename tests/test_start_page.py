"""The commands of docs/start.md, run in order in an empty folder, print what the page shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def commands(page: str) -> list[tuple[str, str]]:
    """Yield (command on one line, output) of each console block; "..." matches anything."""
    blocks = "\n".join(re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    parts = re.split(r"^\$ ((?:.*\\\n)*.*)\n", blocks, flags=re.MULTILINE)[1:]
    return [(command.replace("\\\n", ""), text) for command, text in zip(parts[::2], parts[1::2], strict=True)]


def test_commands_of_the_start_page_print_the_shown_output(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    found = commands((ROOT / "docs" / "start.md").read_text("utf-8"))
    assert len(found) > 6
    environment = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    for command, expected in found:
        name, *arguments = shlex.split(command)
        start = {
            "patchnpack": [sys.executable, "-c", "from patchnpack.cli.main import run; run()"],
            "python": [sys.executable],
        }
        done = subprocess.run([*start[name], *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        printed = "\n".join(line.rstrip() for line in done.stdout.splitlines())
        pattern = re.escape(expected.strip()).replace(r"\.\.\.", ".*")
        assert re.fullmatch(pattern, printed.strip(), re.DOTALL), f"{command} printed\n{printed}"


@pytest.mark.parametrize(("page", "found"), [("```console\n$ a\nb\n$ c \\\n  d\n```\n", [("a", "b\n"), ("c   d", "")])])
def test_commands_are_parsed_with_their_output(page: str, found: list[tuple[str, str]]) -> None:
    assert commands(page) == [(command, text) for command, text in found]
