from __future__ import annotations

import inspect
from typing import Any

import pytest

from patchnpack.cli.options import takes, takes_packing
from patchnpack.packer import (
    Packing,
)


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


def test_make_receives_the_flags_in_place_of_the_class() -> None:
    got: list[dict[str, Any]] = []

    @takes(Packing, "settings", {"lookahead": "R"}, make=dict)
    def command(*, settings: dict[str, Any]) -> None:
        got.append(settings)

    command(lookahead=3)
    assert got == [{"lookahead": 3}]


def test_value_out_of_range_raises_the_error_of_the_class() -> None:
    @takes(Packing, "packing", {"seq_len": "L"})
    def command(*, packing: Packing) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match="seq_len is 0; it must be at least 1"):
        command(seq_len=0)
