from __future__ import annotations

import dataclasses
import inspect
import pickle
import re
from typing import Any

import numpy as np
import pytest

from patchnpack.packer import ConstantDrop, FitTokens, Frames, Native, NoDrop, Packing, PatchSizes, Square, Views
from patchnpack.packer.checks import shown
from tests.packer.planning.plans import VIEWS


def _exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def test_defaults_are_those_of_the_documented_contract() -> None:
    assert dataclasses.asdict(Packing()) == {
        "seq_len": 1024,
        "patch_size": 16,
        "resolution": {"max_tokens": None, "edge": "pad"},
        "oversize": "shrink",
        "undersize": "pad",
        "token_drop": {},
        "select": "random",
        "frames": None,
        "views": None,
        "flip": 0.0,
        "vflip": 0.0,
        "algorithm": "auto",
        "lookahead": 256,
        "max_images": 64,
        "fill": "undrop",
        "max_trim": 0.05,
        "max_scale": 0.05,
        "balance": 256,
        "scope": "image",
        "grid_multiple": 1,
        "image_mode": "RGB",
        "channels": 3,
        "dtype": "uint8",
        "convert": None,
        "interpolation": "bicubic",
        "scaled_decode": True,
        "prices": None,
    }
    assert Packing() == Packing(resolution=Native(), token_drop=NoDrop())


def test_every_field_is_keyword_only_and_frozen() -> None:
    kinds = {p.kind for p in inspect.signature(Packing).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}
    packing = Packing()
    for field in dataclasses.fields(Packing):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(packing, field.name, getattr(packing, field.name))


def test_replace_changes_a_copy_and_checks_it() -> None:
    packing = Packing(seq_len=256)
    assert packing.replace(patch_size=32) == Packing(seq_len=256, patch_size=32)
    assert packing == Packing(seq_len=256)
    with pytest.raises(ValueError, match="seq_len is 0"):
        packing.replace(seq_len=0)


def test_a_packing_hashes_and_pickles_to_an_equal_one() -> None:
    packing = Packing(resolution=FitTokens(128, upsample=True), token_drop=ConstantDrop(0.5))
    again = pickle.loads(pickle.dumps(packing))  # noqa: S301 - our own bytes
    assert again == packing
    assert hash(again) == hash(packing)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_channels_and_token_bytes_follow_the_image_mode(mode: Any, channels: int) -> None:
    packing = Packing(patch_size=14, image_mode=mode)
    assert packing.channels == channels
    assert packing.token_bytes(14) == 14 * 14 * channels


def test_numpy_integers_are_accepted() -> None:
    assert Packing(seq_len=np.int64(64), patch_size=np.uint8(8)).patch_sizes == (8,)  # type: ignore[arg-type]


_WHOLE = ("seq_len", "patch_size", "lookahead", "max_images", "grid_multiple")


@pytest.mark.parametrize("name", _WHOLE)
@pytest.mark.parametrize("value", [0, -1, -1024])
def test_a_count_below_one_is_an_error_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is {value}; it must be at least 1$"):
        Packing(**{name: value})


@pytest.mark.parametrize("name", _WHOLE)
@pytest.mark.parametrize("value", [16.0, 16.5, "16", None, True, {"a": 16}])
def test_a_count_that_is_not_a_whole_number_is_an_error_that_names_it(name: str, value: Any) -> None:
    meant = {"16.0": ": 16", "'16'": ": 16"}.get(repr(value), "")
    with pytest.raises(ValueError, match=_exactly(f"{name} is {value!r}; it must be a whole number{meant}")):
        Packing(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("oversize", "crop", "'shrink', 'drop', 'skip', 'error'"),
        (
            "algorithm",
            "best",
            "'auto', 'next_fit', 'first_fit', 'best_fit', 'first_fit_decreasing', 'best_fit_decreasing', "
            "'largest_fit', 'subset_sum', 'priced'",
        ),
        ("image_mode", "CMYK", "'L', 'RGB', 'RGBA'"),
        ("interpolation", "cubic", "'nearest', 'box', 'bilinear', 'hamming', 'bicubic', 'lanczos'"),
        ("oversize", None, "'shrink', 'drop', 'skip', 'error'"),
        (
            "algorithm",
            ["auto"],
            "'auto', 'next_fit', 'first_fit', 'best_fit', 'first_fit_decreasing', 'best_fit_decreasing', "
            "'largest_fit', 'subset_sum', 'priced'",
        ),
    ],
)
def test_an_unknown_choice_is_an_error_that_names_the_value_and_every_choice(
    name: str, value: Any, choices: str
) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(f"{name} is {shown(value)}; it must be one of {choices}")):
        Packing(**{name: value})


_RESOLUTIONS = (
    "Native(...), FitTokens(...), SampleSide(...), RandomResizedCrop(...), Square(...), ScheduledResolution(...)"
)
_DROPS = (
    "NoDrop(...), ConstantDrop(...), BetaDrop(...), ResolutionDrop(...), ComplexityDrop(...), DropToTokens(...), "
    "ScheduledDrop(...)"
)


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("resolution", 224, _RESOLUTIONS),
        ("resolution", Native, _RESOLUTIONS),
        ("token_drop", 0.5, _DROPS),
    ],
)
def test_a_policy_of_another_type_is_an_error_that_names_the_value_and_the_policies(
    name: str, value: Any, choices: str
) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(f"{name} is {shown(value)}; it must be one of {choices}")):
        Packing(**{name: value})


def test_a_grid_multiple_that_no_pack_can_hold_is_an_error() -> None:
    Packing(seq_len=9, grid_multiple=3)
    with pytest.raises(
        ValueError, match="grid_multiple 3 makes every image at least 9 tokens, more than seq_len 8; raise"
    ):
        Packing(seq_len=8, grid_multiple=3)


@pytest.mark.parametrize("resolution", [FitTokens(8), Native(max_tokens=8)])
def test_a_grid_multiple_beyond_max_tokens_is_an_error_before_any_image(resolution: FitTokens | Native) -> None:
    with pytest.raises(ValueError, match="max_tokens is 8, less than one grid_multiple cell of 3x3 patches"):
        Packing(resolution=resolution, grid_multiple=3)


def test_a_square_that_is_not_a_multiple_of_the_patch_size_is_an_error_before_any_image() -> None:
    with pytest.raises(ValueError, match=r"Square\(224\) is not a multiple of .* = 48; use Square\(192\)"):
        Packing(resolution=Square(224), patch_size=16, grid_multiple=3)


@pytest.mark.parametrize("oversize", ["shrink", "skip", "error"])
def test_a_square_that_no_pack_can_hold_is_an_error_before_any_image(oversize: Any) -> None:
    with pytest.raises(
        ValueError,
        match=_exactly(
            "Square(512) makes every image 1024 tokens, more than seq_len 300; use Square(256), raise seq_len, or "
            "choose oversize='drop'"
        ),
    ):
        Packing(seq_len=300, resolution=Square(512), grid_multiple=2, oversize=oversize)
    Packing(seq_len=300, resolution=Square(512), oversize="drop")
    Packing(seq_len=300, resolution=Square(256), oversize=oversize)


def test_a_patch_larger_than_any_photograph_is_a_valid_configuration() -> None:
    assert Packing(patch_size=100_000).patch_size == 100_000


def test_several_plain_patch_sizes_are_an_error_that_names_the_class() -> None:
    for sizes in ((8, 16), [8, 16]):
        says = (
            f"patch_size is {sizes}; patches are square: give one side, such as 16. To draw one of several sizes for "
            "each block of packs, give PatchSizes((8, 16))"
        )
        with pytest.raises(ValueError, match=_exactly(says)):
            Packing(patch_size=sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        (
            "patch_size",
            (16, 4),
            "patches are square: give one side, such as 16. To draw one of several sizes for each block",
        ),
        ("patch_size", (16, 16), "patch_size is (16, 16); patches are square: give the side, 16"),
        ("patch_size", [14], "patch_size is [14]; patches are square: give the side, 14"),
        ("patch_size", np.array([8, 16]), "for each block of packs, give PatchSizes((8, 16))"),
        ("patch_size", PatchSizes, "patch_size is the class PatchSizes; call it, for example PatchSizes((8, 16, 32))"),
        ("patch_size", "16", "patch_size is '16'; it must be a whole number: 16"),
        ("patch_size", True, "patch_size is True; it must be a whole number"),
        ("resolution", 224, ": for squares of 224 pixels give Square(224)"),
        ("resolution", (224, 224), ": for squares of 224 pixels give Square(224)"),
        ("resolution", "fit:256", ": give FitTokens(max_tokens)"),
        ("resolution", None, ": give Native()"),
        ("resolution", FitTokens, "resolution is the class FitTokens; it must be one of "),
        ("resolution", Native, ": call the class, Native(...)"),
        ("token_drop", 0.5, ": to drop this share of each image's tokens give ConstantDrop(0.5)"),
        ("token_drop", 0, ": to keep all tokens give NoDrop()"),
        ("token_drop", None, ": to keep all tokens give NoDrop()"),
        ("token_drop", NoDrop, ": call the class, NoDrop(...)"),
        ("algorithm", "sub_set_sum", ": did you mean 'subset_sum'?"),
        ("image_mode", "rgb", ": did you mean 'RGB'?"),
        ("interpolation", "BICUBIC", ": did you mean 'bicubic'?"),
        ("oversize", "Shrink", ": did you mean 'shrink'?"),
        ("fill", True, "fill is True; it must be one of 'none', 'undrop', 'trim', 'rescale'"),
        ("flip", 1.5, "flip is 1.5; it must be a probability from 0 to 1, such as 0.5"),
        ("flip", True, "flip is True; it must be a probability from 0 to 1, such as 0.5"),
        ("vflip", float("nan"), "vflip is nan; it must be a probability from 0 to 1, such as 0.5"),
        ("max_trim", "0.1", "max_trim is '0.1'; it must be a share above 0 and at most 0.5"),
        ("max_scale", None, "max_scale is None; it must be a share above 0 and at most 0.5"),
        ("max_trim", float("nan"), "max_trim is nan; it must be a share above 0 and at most 0.5"),
        ("scaled_decode", "no", "scaled_decode is 'no'; it must be True or False"),
        ("balance", True, "balance is True; it must be a whole number"),
        ("grid_multiple", (2, 2), "grid_multiple is (2, 2); it must be a whole number"),
    ],
)
def test_a_wrong_value_names_what_was_probably_meant(field: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        Packing(**{field: value})
    assert str(caught.value).startswith(f"{field} is {shown(value)}; ")


def test_numbers_of_numpy_are_stored_as_python_numbers() -> None:
    # A state compares settings by their text, and `can_follow_patterns` asks for an int.
    numbers: dict[str, Any] = {
        "seq_len": np.int32(64),
        "patch_size": np.int64(8),
        "max_trim": np.float64(0.25),
        "scaled_decode": np.bool_(False),
    }
    given = Packing(**numbers)
    plain = Packing(seq_len=64, patch_size=8, max_trim=0.25, scaled_decode=False)
    assert repr(given) == repr(plain)
    assert given.can_follow_patterns


def test_a_summary_names_lengths_patches_and_what_is_not_a_default() -> None:
    assert Packing().summary() == "seq_len=1024, patch_size=16"
    assert Packing(fill="trim", patch_size=14).summary() == "seq_len=1024, patch_size=14, fill='trim'"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frames": 8}, "frames is 8; it must be Frames(...), such as Frames(8), or None"),
        ({"views": (2, Native())}, "it must be Views(...)"),
        ({"views": VIEWS, "resolution": FitTokens(9)}, "each group of views has its own policy: leave resolution out"),
        ({"frames": Frames(100)}, "100 frames are 100 images per sample, more than max_images 64"),
        ({"frames": Frames(20), "views": VIEWS}, "20 frames x 5 views are 100 images per sample"),
        ({"views": VIEWS, "seq_len": 4}, "5 views are 5 images per sample, more than seq_len 4"),
        ({"views": VIEWS, "fill": "rescale"}, "use fill='trim'"),
        ({"frames": Frames(2), "fill": "rescale"}, "use fill='trim'"),
        ({"views": Views((2, Square(100)))}, "Square(100) is not a multiple of patch_size"),
        ({"scope": "document"}, "scope is 'document'; it must be one of 'image', 'sample'"),
    ],
)
def test_a_packing_whose_frames_or_views_contradict_another_field_is_an_error(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Packing(**changes)
