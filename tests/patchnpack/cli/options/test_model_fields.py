from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from patchnpack.cli.options.flags import takes_model
from patchnpack.cli.options.model_fields import given_fields, parse_model_fields
from patchnpack.cli.options.run_file import RunFile, read_run_file, run_file_text
from patchnpack.models import NaViTConfig
from patchnpack.trainer import load_checkpoint
from tests.patchnpack.cli.runs import SMALL, ran

Shards = Callable[..., str]
OF_FLAGS = ("num_classes", "patch_size", "channels", "scope")
app = typer.Typer()


@app.command()
@takes_model
def command(context: typer.Context, *, model: dict[str, Any], config: RunFile = None) -> None:
    typer.echo(sorted(given_fields(context, model).items()))


def got(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.strip()


def as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def another(name: str, hint: Any, default: Any) -> Any:
    """A value of the field's type that is not its default."""
    if get_origin(hint) is tuple:
        return (0.25, 0.5, 0.75)
    kinds = get_args(hint) or (hint,)
    if bool in kinds:
        return not default
    return default + 1 if isinstance(default, int) else 0.25 if float in kinds else "other"


def test_every_field_of_the_model_is_parsed_by_its_type() -> None:
    hints, seen = get_type_hints(NaViTConfig), 0
    for field in dataclasses.fields(NaViTConfig):
        if field.name in OF_FLAGS:
            continue
        for value in (field.default, another(field.name, hints[field.name], field.default)):
            parsed = parse_model_fields([f"{field.name}={as_text(value)}"])
            assert parsed == {field.name: value}
            assert type(parsed[field.name]) is type(value)
            # and back from the table of a run file
            table = tomllib.loads(run_file_text({"model": parsed}))["model"]
            assert list(table) == [field.name]
        seen += 1
    assert seen >= 27


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("position_grid=4,16", (4, 16)),
        ("position-grid=8", 8),
        ("mean=0.4, 0.5 ,0.6", (0.4, 0.5, 0.6)),
        ("mean=1", (1.0,)),
        ("qk_norm=False", False),
        ("layer_scale=NONE", None),
        ("layer_scale=1e-5", 1e-5),
        ("mlp_ratio=4", 4.0),
        ("pooling=mean", "mean"),
        ("position=mlp", "mlp"),
        ("position=learned_grid, mlp", ("learned_grid", "mlp")),
    ],
)
def test_a_value_becomes_what_its_field_holds(text: str, value: Any) -> None:
    assert list(parse_model_fields([text]).values()) == [value]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["pool=mean"], r"a model has no field 'pool'; did you mean 'pooling'\?"),
        (["q=1"], r"a model has no field 'q'; the fields are .*registers"),
        (["registers"], r"--model is 'registers'; give KEY=VALUE, such as registers=4"),
        (["registers=many"], r"--model has registers=many; registers must be a whole number"),
        (["registers=1.5"], r"registers must be a whole number"),
        (["qk_norm=1"], r"qk_norm must be true or false"),
        (["mean=grey"], r"mean must be a number"),
        (["position_grid=4,x"], r"position_grid must be a whole number"),
        (["layer_scale=small"], r"layer_scale must be a number or none"),
        (["registers=1", "registers=2"], r"--model has 'registers' twice; give it once"),
        (["num_classes=3"], r"--model has num_classes, which follows from another flag; give --num-classes"),
        (["patch-size=8"], r"give --patch-size, or with several --underlying"),
        (["channels=1"], r"give --channels or --image-mode"),
    ],
)
def test_a_wrong_key_or_value_is_answered_with_the_remedy(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_model_fields(texts)


def test_only_fields_that_were_given_are_returned_and_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    assert got() == "[]"
    assert got("--width=24", "--model=registers=2") == "[('registers', 2), ('width', 24)]"
    assert got("--width=24", "--model=width=24") == "[('width', 24)]"
    path = tmp_path / "run.toml"
    path.write_text('depth = 3\n[model]\nregisters = 1\nmean = [0.1, 0.2]\nqk_norm = false\nlayer_scale = "none"\n')
    fields = "('depth', 3), ('layer_scale', None), ('mean', (0.1, 0.2)), ('qk_norm', False), ('registers', {})"
    assert got("--config", str(path)) == f"[{fields.format(1)}]"
    assert got("--config", str(path), "--model", "registers=5") == f"[{fields.format(5)}]"
    with pytest.raises(ValueError, match=r"--width is 24, and --model has width=48; leave one of them out"):
        got("--width=24", "--model=width=48")


def test_several_positions_are_a_flag_a_field_or_in_a_file(tmp_path: Path) -> None:
    expected = "[('position', ('grid', 'rope'))]"
    assert got("--position=grid,rope") == got("--model=position=grid,rope") == expected
    assert got("--position=grid,rope", "--model=position=grid,rope") == expected
    for number, text in enumerate(('position = "grid,rope"\n', '[model]\nposition = ["grid", "rope"]\n')):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        assert got("--config", str(path)) == expected


def test_run_toml_keeps_the_fields_as_a_table_and_repeats_the_run(shards: Shards, tmp_path: Path) -> None:
    fields = [
        "--model=registers=2",
        "--model",
        "position_grid=4,6",
        "--model=position=grid,mlp",
        "--model=qk_norm=false",
    ]
    ran("train", shards(), *SMALL, *fields, "--epochs=1", "-o", tmp_path / "run")
    content = tomllib.loads((tmp_path / "run" / "run.toml").read_text())
    assert content["model"] == {"registers": 2, "position_grid": [4, 6], "qk_norm": False}
    assert (content["width"], content["position"]) == (24, "grid,mlp")
    config = load_checkpoint(tmp_path / "run" / "checkpoint.pt").model.config
    assert (config.registers, config.position_grid, config.qk_norm) == (2, (4, 6), False)
    assert config.position == ("grid", "mlp")
    ran("train", "--config", tmp_path / "run" / "run.toml", "-o", tmp_path / "again")
    assert load_checkpoint(tmp_path / "again" / "checkpoint.pt").model.config == config
    texts = [(tmp_path / name / "run.toml").read_text() for name in ("run", "again")]
    assert texts[0] == texts[1].replace("/again", "/run")
    assert read_run_file(tmp_path / "run" / "run.toml")["model"][0] == "registers=2"


def test_a_value_that_the_model_refuses_raises_its_own_error(shards: Shards, tmp_path: Path) -> None:
    for field, message in (
        ("pooling=avg", "pooling is 'avg'; choose one of"),
        ("registers=-1", "registers is -1; it must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ran("train", shards(), *SMALL, f"--model={field}", "--epochs=1", "-o", tmp_path / "run")
    assert not (tmp_path / "run" / "run.toml").exists()
