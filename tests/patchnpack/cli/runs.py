"""Commands as tests run them, and the flags of small runs."""

from __future__ import annotations

from typer.testing import CliRunner

from patchnpack.cli.main import app

SMALL = [
    "--width=24",
    "--depth=1",
    "--heads=2",
    "--seq-len=64",
    "--device=cpu",
    "--precision=float32",
    "--patch-size=8",
]
CPU = ["--device=cpu", "--precision=float32"]


def ran(*arguments: object) -> str:
    """Run a command, and return what it prints."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def failed(*arguments: object) -> str:
    """Run a command that fails, and return its message."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code != 0
    return f"{result.output} {result.exception}"
