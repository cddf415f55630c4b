from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from patchnpack.cli.options.flags import (
    ALGORITHMS,
    EVALUATION_FLAGS,
    IMAGES,
    MODEL_FLAGS,
    PACKING_FLAGS,
    TRAINING_FLAGS,
    FieldFlag,
    make_packing,
    takes,
    takes_packing,
)
from patchnpack.cli.options.run_file import RunFile
from patchnpack.cli.prepack import pack
from patchnpack.cli.report import report
from patchnpack.loaders.packs.recipe import StoreKind
from patchnpack.loaders.shards.tar import IMAGE
from patchnpack.models import NaViTConfig
from patchnpack.packer import Packing
from patchnpack.packer.analysis import sweep
from patchnpack.packer.binpacking.algorithms import Algorithm
from patchnpack.trainer import TrainConfig


@pytest.mark.parametrize(
    ("cls", "flags"),
    [
        (Packing, PACKING_FLAGS),
        (Packing, {name: flag for name, flag in EVALUATION_FLAGS.items() if name != "patch_size"}),
        (NaViTConfig, MODEL_FLAGS),
        (TrainConfig, TRAINING_FLAGS),
    ],
)
def test_flags_have_the_defaults_types_and_order_of_the_fields(cls: Any, flags: Mapping[str, FieldFlag]) -> None:
    fields, hints = {field.name: field for field in dataclasses.fields(cls)}, get_type_hints(cls)
    assert list(flags) == [name for name in fields if name in flags]
    for name, flag in flags.items():
        field = fields[name]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        assert (flag.default if flag.parse is None else flag.parse(flag.default)) == default, name
        hint = int | None if name == "channels" else hints[name]  # it is set from image_mode
        plain = hint in (bool, int, float, int | None, float | None)
        if flag.parse is None:
            assert (flag.kind or type(flag.default)) == (hint if plain else str), name


def test_texts_that_repeat_a_constant_of_the_library_equal_it() -> None:
    sweep_flags, store = inspect.signature(report).parameters, inspect.signature(pack).parameters["store"]
    assert get_args(Algorithm) == ALGORITHMS
    assert IMAGES == IMAGE
    assert sweep_flags["sweep_algorithm"].default == ",".join(sweep.ALGORITHMS)
    assert sweep_flags["sweep_lookahead"].default == ",".join(map(str, sweep.LOOKAHEADS))
    assert get_args(get_args(store.annotation)[0]) == get_args(StoreKind)


def test_flag_defaults_are_those_of_the_class() -> None:
    got: list[Packing] = []

    @takes_packing
    def command(name: str, *, packing: Packing) -> None:
        got.append(packing)

    parameters = inspect.signature(command).parameters
    assert "packing" not in parameters
    assert parameters["seq_len"].default == Packing().seq_len
    command(name="x", **{p.name: p.default for p in parameters.values() if p.name != "name"})
    assert got == [Packing()]


def test_make_receives_the_values_of_the_flags() -> None:
    got: list[dict[str, Any]] = []

    @takes("settings", {"lookahead": FieldFlag(256, "R"), "side": FieldFlag("1", "Side.", parse=int)}, dict)
    def command(*, settings: dict[str, Any]) -> None:
        got.append(settings)

    command(lookahead=3, side="8")
    assert got == [{"lookahead": 3, "side": 8}]


def test_decorators_combine_for_one_command() -> None:
    one: Callable[..., Any] = takes("a", {"x": FieldFlag(1, "X.")}, dict)
    two: Callable[..., Any] = takes("b", {"y": FieldFlag(None, "Y.", float | None)}, dict)

    @one
    @two
    def command(*, a: dict[str, Any], b: dict[str, Any]) -> None:
        assert (a, b) == ({"x": 2}, {"y": 3.0})

    assert list(inspect.signature(command).parameters) == ["y", "x"]
    command(x=2, y=3.0)


def test_value_out_of_range_raises_the_error_of_the_class() -> None:
    @takes("packing", {"seq_len": FieldFlag(1024, "L")}, make_packing)
    def command(*, packing: Packing) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match="seq_len is 0; it must be at least 1"):
        command(seq_len=0)


def test_a_flag_of_a_number_refuses_true_from_a_file_of_options(tmp_path: Path) -> None:
    app = typer.Typer()

    @app.command()
    @takes("packing", {"flip": PACKING_FLAGS["flip"]}, make_packing)
    def command(*, packing: Packing, config: RunFile = None) -> None:
        typer.echo(packing.flip)

    (tmp_path / "run.toml").write_text("flip = true\n")
    result = CliRunner().invoke(app, ["--config", str(tmp_path / "run.toml")])
    assert result.exit_code == 2
    assert "true is not a number" in result.output
    assert CliRunner().invoke(app, ["--flip", "0.5"]).output == "0.5\n"
