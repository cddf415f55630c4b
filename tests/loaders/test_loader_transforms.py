from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchnpack.loaders import Index, PackedImageLoader, pack_stream
from patchnpack.packer import PackedBatch, Square
from tests.loaders.loading import PACKING, noisy

Check = Callable[..., None]
Contents = Callable[[PackedBatch], tuple[object, ...]]
MakeDrawn = Callable[..., Any]


pytestmark = pytest.mark.usefixtures("no_threads_left")


# Transforms and extras


def test_transform_is_applied_to_the_upright_image_of_its_planned_size(index: Index) -> None:
    shapes: list[tuple[int, ...]] = []

    def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shapes.append(image.shape)
        return 255 - image

    plain = PackedImageLoader(index, PACKING.replace(resolution=Square(16)), batch_size=4)
    inverted = PackedImageLoader(index, PACKING.replace(resolution=Square(16)), batch_size=4, transform=transform)
    for a, b in zip(plain, inverted, strict=True):
        kept = a.segment_ids > 0
        assert torch.equal(255 - a.patches[kept], b.patches[kept])
    assert set(shapes) == {(16, 16, 3)}
    assert len(shapes) == 60


def test_transform_may_return_a_non_contiguous_view(index: Index, drawn: Any) -> None:
    loader = PackedImageLoader(index, PACKING, batch_size=4, transform=lambda image, rng: image[::-1, ::-1])
    for batch in loader:
        for image in batch.images():
            height, width, _ = drawn.pixels[image.key].shape
            assert np.array_equal(image.pixels()[:height, :width], drawn.pixels[image.key][::-1, ::-1])


class Layer(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class OfTorchvision:
    """Like a transform of torchvision.transforms.v2, which takes any number of inputs."""

    __module__ = "torchvision.transforms.v2"

    def __call__(self, *inputs: Any) -> Any:
        return inputs

    def forward(self, *inputs: Any) -> Any:
        return inputs


OfTorchvision.forward.__module__ = "torchvision.transforms.v2"


class OneArgument:
    def __call__(self, image: np.ndarray) -> np.ndarray:
        return image


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (
            lambda image: image,
            r"<lambda>\(image\) does not accept these .* \(too many .*\): .* give .*from_pil\(f\), for one of an array",
        ),
        (OneArgument(), r"OneArgument\(image: .*\) -> .* does not accept these arguments \(too many"),
        (lambda image, rng, more: image, r"\(missing a required argument: 'more'\)"),
        (lambda image, *, rng: image, r"<lambda>\(image, \*, rng\) does not accept these arguments"),
        ("flip", r"'flip' is not a function"),
        ([noisy, noisy], r"\[.*\] is a list: give patchnpack.augment.Compose of it"),
        (OneArgument, r"OneArgument is a class: call it, for example OneArgument\(\)"),
        (Layer(), r"Layer\(x: .*\) -> .* does not accept these arguments"),
        (
            OfTorchvision(),
            r"torchvision.transforms.v2.OfTorchvision takes a PIL image .*: give .*from_pil\(transform\), witho",
        ),
        (OfTorchvision().forward, r"torchvision.transforms.v2.OfTorchvision.forward takes a PIL image"),
    ],
)
def test_transform_without_two_arguments_is_refused_before_reading(transform: Any, says: str) -> None:
    for make in (lambda **given: PackedImageLoader("absent.tar", **given), lambda **given: pack_stream([], **given)):
        with pytest.raises(ValueError, match=r"^transform takes \(image, rng\), .*; .*" + says):
            make(batch_size=2, transform=transform)


@pytest.mark.parametrize(
    "transform", [np.add, max, functools.partial(lambda a, image, rng: image, 1), lambda *given: given[0]]
)
def test_transform_with_two_arguments_or_no_signature_is_accepted(transform: Any, index: Index) -> None:
    PackedImageLoader(index, PACKING, batch_size=2, transform=transform)


def test_error_in_the_transform_is_raised_with_the_key(index: Index) -> None:
    def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise LookupError("a bug of the user's")

    with pytest.raises(LookupError, match="a bug of the user's") as caught:
        list(PackedImageLoader(index, PACKING, batch_size=2, transform=transform))
    (note,) = caught.value.__notes__
    assert note.startswith("raised by transform for the image with key 's")


def test_bad_data_error_in_the_transform_is_not_a_bad_image(index: Index) -> None:
    def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise OSError("its own file is missing")

    loader = PackedImageLoader(index, PACKING, batch_size=2, transform=transform)
    with pytest.raises(OSError, match="its own file is missing"):
        list(loader)
    assert loader.stats()["bad_images"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image[1:], r"transform returned uint8 \("),
        (lambda image: image[..., 0], r"transform returned uint8 \("),
        (lambda image: image.astype(np.float32), r"transform returned float32 \("),
        (lambda image: None, r"transform returned object \("),
    ],
)
def test_transform_that_changes_shape_or_type_is_refused(change: Any, message: str, index: Index) -> None:
    with pytest.raises(ValueError, match=message + r".* for image 's.*, which is uint8 \(.*must keep type and shape"):
        list(PackedImageLoader(index, PACKING, batch_size=2, transform=lambda image, rng: change(image)))


def test_extras_are_text_object_or_bytes(
    tmp_path: Path,
    write_tar: Callable[..., str],
    draw_image: Callable[..., Image.Image],
    encode_image: Callable[..., bytes],
) -> None:
    members = []
    for key in "abc":
        members += [(f"{key}.jpg", encode_image(draw_image(9, 9))), (f"{key}.txt", f"é {key}".encode())]
        members += [(f"{key}.json", f'{{"key": "{key}"}}'.encode()), (f"{key}.mask.bin", key.encode())]
    members = [(name, b"{" if name == "b.json" else data) for name, data in members]
    loader = PackedImageLoader(
        write_tar(tmp_path / "a.tar", members), PACKING, batch_size=1, extras=[".txt", "JSON", "mask.bin"]
    )
    (batch,) = loader
    assert batch.keys == [["a", "c"]]
    assert batch.extras == {
        "txt": [["é a", "é c"]],
        "json": [[{"key": "a"}, {"key": "c"}]],
        "mask.bin": [[b"a", b"c"]],
    }
    (bad,) = loader.stats()["bad"]
    assert (bad["key"], bad["stage"]) == ("b", "extras")
    assert bad["reason"].startswith("its .json member cannot be read: Expecting property name")
