from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from patchnpack.cli.options.run_file import RunFile, read_run_file, run_file_text

app = typer.Typer()


@app.command()
def command(
    shards: list[str], *, config: RunFile = None, lr: float = 1.0, steps: int | None = None, flip: bool = False
) -> None:
    typer.echo(f"{shards} {lr} {steps} {flip}")


def ran(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_config_file_sets_options_and_flags_override_it(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('shards = ["a.tar", "b.tar"]\nlr = 2\nsteps = 7\nflip = true\n')
    assert ran("--config", str(path)) == "['a.tar', 'b.tar'] 2.0 7 True"
    assert ran("c.tar", "--lr", "3", "--no-flip", "--config", str(path)) == "['c.tar'] 3.0 7 False"
    assert ran("c.tar") == "['c.tar'] 1.0 None False"


def test_unknown_option_raises_with_the_closest_match(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("step = 7\n")
    with pytest.raises(ValueError, match=r"option 'step'.*did you mean 'steps'\?"):
        ran("a.tar", "--config", str(path))


def test_run_file_round_trips() -> None:
    values = {"shards": ("a{0..1}.tar", 'b"\\.tar'), "lr": 1e-05, "name": "fit:64", "path": Path("x/y"), "no": None}
    expected = {"shards": ["a{0..1}.tar", 'b"\\.tar'], "lr": 1e-05, "name": "fit:64", "path": "x/y"}
    assert tomllib.loads(run_file_text(values)) == expected


def test_invalid_run_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    with pytest.raises(FileNotFoundError, match=r"run\.toml"):
        read_run_file(path)
    for text, message in (
        ("lr 3", r"is not a TOML file"),
        ("[train]\nlr = 3", r"has a table \[train\]; write options"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_run_file(path)
    path.write_text("batch-size = 3")
    assert read_run_file(path) == {"batch_size": 3}
