"""Options of a command in a TOML file: `--config` reads them, and `train` writes them beside its checkpoint."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

RUN_FILE = "run.toml"
TABLES = ("model",)  # options of KEY=VALUE, which a file holds as a table


def read_run_file(path: str | Path) -> dict[str, Any]:
    """Read options from a file of lines `name = value`; a dash in a name is an underscore.

    The table [model] becomes a list of KEY=VALUE texts.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not TOML, or it has another table.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; give a TOML file of options, NAME = VALUE") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    for name, value in content.items():
        if name in TABLES and isinstance(value, dict):
            content[name] = [f"{key}={_text(each)}" for key, each in value.items()]
        elif isinstance(value, dict):
            raise ValueError(f"{path} has a table [{name}]; write options without tables, such as {name}_... = value")
    return {name.replace("-", "_"): value for name, value in content.items()}


def _text(value: Any) -> str:
    """A value of TOML as --model takes it."""
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def run_file_text(values: Mapping[str, Any]) -> str:
    """Format options as TOML that `read_run_file` reads back; a dict becomes a table, and None is left out.

    >>> print(run_file_text({"shards": ["a.tar"], "lr": 0.001, "classes": None, "model": {"qk_norm": False}}), end="")
    shards = ["a.tar"]
    lr = 0.001
    <BLANKLINE>
    [model]
    qk_norm = false
    """
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    lines = [_line(name, value) for name, value in plain.items() if value is not None and not isinstance(value, dict)]
    for name, table in plain.items():
        if isinstance(table, dict) and table:
            lines += [f"\n[{name}]\n", *(_line(key, "none" if each is None else each) for key, each in table.items())]
    return "".join(lines)


def _line(name: str, value: Any) -> str:
    return f"{name} = {json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)}\n"


def write_run_file(path: Path, values: Mapping[str, Any]) -> None:
    """Write the options to a file atomically."""
    from patchnpack.packer.files import atomic_write

    atomic_write(path, lambda file: file.write(run_file_text(values).encode()))


def _from_file(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        names = {parameter.name for parameter in context.command.params} - {"config"}
        options = read_run_file(path)
        for name in options.keys() - names:
            close = difflib.get_close_matches(name, map(str, names), 1)
            hint = f"did you mean {close[0]!r}?" if close else "see --help"
            raise ValueError(f"{path} has the option {name!r}, which this command does not have; {hint}")
        context.default_map = {**(context.default_map or {}), **options}
    return path


RunFile = Annotated[
    Path | None,
    typer.Option(
        "--config", is_eager=True, callback=_from_file, help="TOML file of options, NAME = VALUE; flags override it."
    ),
]
