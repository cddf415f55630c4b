from __future__ import annotations

from typing import Any

import pytest

from patchnpack.cli.options.parsers import (
    parse_frames,
    parse_patch_size,
    parse_resolution,
    parse_storage_options,
    parse_token_drop,
    parse_views,
)
from patchnpack.packer import (
    BetaDrop,
    ComplexityDrop,
    ConstantDrop,
    DropToTokens,
    FitTokens,
    Frames,
    Native,
    NoDrop,
    PatchSizes,
    RandomResizedCrop,
    ResolutionDrop,
    SampleSide,
    ScheduledDrop,
    ScheduledResolution,
    Square,
    Views,
)
from patchnpack.packer.policies.token_drop import TokenDrop


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("native", Native()),
        ("native:crop", Native(edge="crop")),
        ("fit:144", FitTokens(144)),
        ("naflex:256", FitTokens(256, upsample=True)),
        ("square:224", Square(224)),
        ("side:64:256", SampleSide(low=64, high=256)),
        ("side:64:256:uniform", SampleSide(low=64, high=256, dist="uniform")),
        ("crop", RandomResizedCrop()),
        ("crop:196", RandomResizedCrop(max_tokens=196)),
        ("crop:196:0.25:1", RandomResizedCrop(scale=(0.25, 1), max_tokens=196)),
        (
            "0=fit:64,1000=crop:100",
            ScheduledResolution(((0, FitTokens(64)), (1000, RandomResizedCrop(max_tokens=100)))),
        ),
    ],
)
def test_resolution_is_parsed(text: str, policy: Any) -> None:
    assert parse_resolution(text) == policy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fit",
        "fit:",
        "fit:many",
        "square:-3",
        "big",
        "native:up",
        "side:64",
        "side:1:2:3:4",
        "crop:1:2",
        "crop:9:0.5:2",
        "crop:9:x:1",
        "crop:9:0.1:0.5:1",
        "x=fit:4",
        "0=",
        "native:pad:pad",
    ],
)
def test_unknown_resolution_raises_and_is_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=r"--resolution is"):
        parse_resolution(text)


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("", None),
        ("8", Frames(8)),
        ("8:random", Frames(8, "random")),
        ("4:stride:2", Frames(4, "stride:2")),
        ("4:skip", Frames(4, short="skip")),
        ("4:first:repeat", Frames(4, "first", "repeat")),
    ],
)
def test_frames_are_parsed(text: str, frames: Frames | None) -> None:
    assert parse_frames(text) == frames


@pytest.mark.parametrize("text", ["0", "all", "8:middle", "8:stride", "8:stride:0", ":first", "8:first:drop", "-8"])
def test_invalid_frames_raise_and_are_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=f"^--frames is '{text}'"):
        parse_frames(text)


def test_views_are_parsed() -> None:
    assert parse_views("") is None
    assert parse_views("2=crop:196:0.25:1,8=native:resize,1=fit:9") == Views(
        (2, RandomResizedCrop(scale=(0.25, 1.0), max_tokens=196)), (8, Native(edge="resize")), (1, FitTokens(9))
    )


@pytest.mark.parametrize("text", ["2", "crop:196", "0=crop", "2=", "2=big", "2=crop,", "x=crop", "1=crop:9:3:1"])
def test_invalid_views_raise(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--views is "):
        parse_views(text)


def test_patch_size_is_one_number_or_several() -> None:
    assert parse_patch_size("16") == 16
    assert parse_patch_size("8, 16,32") == PatchSizes((8, 16, 32))
    for text in ("", "16px", "8,,16", "-4"):
        with pytest.raises(ValueError, match=r"--patch-size is .*; it must be a number of pixels, or several"):
            parse_patch_size(text)


def test_token_drop_of_0_is_none() -> None:
    assert parse_token_drop("0") == parse_token_drop("0.0") == NoDrop()


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        ("0.25", ConstantDrop(0.25)),
        ("beta:0.5:0.8", BetaDrop(0.5, 0.8)),
        ("resolution:0.1:0.7:0.02", ResolutionDrop(0.1, 0.7, 0.02)),
        ("complexity:0.2:0.8", ComplexityDrop(0.2, 0.8)),
        ("complexity:0.2:0.8:0.1:1.5", ComplexityDrop(0.2, 0.8, 0.1, 1.5)),
        ("to:64", DropToTokens(64)),
        ("0.8@1:0.25:500000:60000", ScheduledDrop(drop=ConstantDrop(0.8), start=1, end=0.25, midpoint=5e5, tau=6e4)),
    ],
)
def test_token_drop_is_parsed(text: str, drop: TokenDrop) -> None:
    assert parse_token_drop(text) == drop


@pytest.mark.parametrize(
    "text",
    [
        "",
        "half",
        "beta",
        "beta:0.5",
        "beta:0.5:0.8:1",
        "to:",
        "to:6.5",
        "to:inf",
        "constant:x",
        "gamma:1:2",
        "complexity:1:2:3",
    ],
)
def test_invalid_token_drop_raises_with_the_choices(text: str) -> None:
    with pytest.raises(ValueError, match=r"--token-drop is .*; it must be a rate, beta:MEAN:MAX, .* or to:TOKENS"):
        parse_token_drop(text)


def test_storage_options_nest_at_dots_and_parse_booleans() -> None:
    texts = ["anon=TRUE", "key=a=b", "client_kwargs.region_name=eu", "client_kwargs.use.it=false", "retry.attempts=3"]
    assert parse_storage_options(texts) == {
        "anon": True,
        "key": "a=b",
        "client_kwargs": {"region_name": "eu", "use": {"it": False}},
        "retry": {"attempts": "3"},
    }
    assert parse_storage_options([]) == {}


@pytest.mark.parametrize(
    "texts", [["anon"], ["=x"], ["a..b=1"], [".a=1"], ["a=1", "a=2"], ["a=1", "a.b=2"], ["a.b=1", "a=2"]]
)
def test_malformed_storage_option_raises_without_showing_its_value(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"--storage-options has '.*'.*each must be KEY=VALUE") as caught:
        parse_storage_options([text.replace("=1", "=SECRET").replace("=2", "=SECRET") for text in texts])
    assert "SECRET" not in str(caught.value)
