from __future__ import annotations

import inspect
from typing import Any

import pytest

from patchnpack.options import parse_resolution, parse_token_drop, takes, takes_packing
from patchnpack.packer import ConstantDrop, FitTokens, Native, NoDrop, Packing, Square


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("native", Native()),
        ("native:crop", Native(edge="crop")),
        ("fit:144", FitTokens(144)),
        ("naflex:256", FitTokens(256, upsample=True)),
        ("square:224", Square(224)),
    ],
)
def test_resolution_is_named_by_a_word(text: str, policy: Any) -> None:
    assert parse_resolution(text) == policy


@pytest.mark.parametrize("text", ["", "fit", "fit:", "fit:many", "square:-3", "big", "native:up"])
def test_unknown_resolution_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"resolution is|edge is 'up'"):
        parse_resolution(text)


def test_token_drop_of_0_is_none() -> None:
    assert parse_token_drop(0.0) == NoDrop()
    assert parse_token_drop(0.25) == ConstantDrop(0.25)


def test_flags_default_to_the_values_of_the_class() -> None:
    got: list[Packing] = []

    @takes_packing
    def command(name: str, *, packing: Packing) -> None:
        got.append(packing)

    parameters = inspect.signature(command).parameters
    assert "packing" not in parameters
    assert parameters["seq_len"].default == Packing().seq_len
    command(name="x", **{p.name: p.default for p in parameters.values() if p.name != "name"})
    assert got == [Packing()]


def test_flags_are_given_to_make_instead_of_the_class() -> None:
    got: list[dict[str, Any]] = []

    @takes(Packing, "settings", {"lookahead": "R"}, make=dict)
    def command(*, settings: dict[str, Any]) -> None:
        got.append(settings)

    command(lookahead=3)
    assert got == [{"lookahead": 3}]


def test_a_value_out_of_range_is_the_error_of_the_class() -> None:
    @takes(Packing, "packing", {"seq_len": "L"})
    def command(*, packing: Packing) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match="seq_len is 0; it must be at least 1"):
        command(seq_len=0)
