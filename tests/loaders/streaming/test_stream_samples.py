"""Images and members of a stream: every accepted type, and the errors of the others."""

from __future__ import annotations

import io
import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchnpack.loaders import PackedImageLoader
from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.shards.tar import IMAGE
from patchnpack.loaders.streaming.pack_stream import pack_stream
from patchnpack.packer import (
    ComplexityDrop,
    FitTokens,
    RandomResizedCrop,
)
from tests.loaders.streaming.streams import PACKING, Contents, Draw, Encode, flat, samples_of


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_mode": "L"},
        {"image_mode": "RGBA"},
        {"resolution": FitTokens(6)},
        {"resolution": RandomResizedCrop(max_tokens=9)},
        {"resolution": RandomResizedCrop(max_tokens=9), "image_mode": "L"},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_every_image_type_gives_the_same_patches(
    mode: str, changes: dict[str, Any], draw_image: Draw, encode_image: Encode, contents: Contents
) -> None:
    packing = PACKING.replace(**changes)
    drawn = [draw_image(9 + 7 * i, 50 - 8 * i, i, mode) for i in range(5)]
    encoded = [encode_image(image, "PNG") for image in drawn]
    opened = [Image.open(io.BytesIO(data)) for data in encoded]
    kinds: dict[str, list[Any]] = {
        "bytes": encoded,
        "bytearray": [bytearray(data) for data in encoded],
        "memoryview": [memoryview(data) for data in encoded],
        "PIL, drawn": drawn,
        "PIL, not yet read": opened,
    }
    if mode != "P":
        arrays = [np.asarray(image) for image in drawn]
        kinds["array"] = arrays
        kinds["array with negative strides"] = [array[::-1, ::-1].copy()[::-1, ::-1] for array in arrays]
        if mode == "L":
            kinds["array (H, W, 1)"] = [array[..., None] for array in arrays]
    made = {
        name: [contents(batch) for batch in pack_stream([(i, 0) for i in images], packing, batch_size=2, seed=5)]
        for name, images in kinds.items()
    }
    for name in kinds:
        assert made[name] == made["bytes"], name


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_pil_images_is_applied(
    orientation: int, kind: str, draw_image: Draw, encode_image: Encode
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(draw_image(32, 16), kind, exif=exif.tobytes())
    decoded = Image.open(io.BytesIO(data))
    decoded.load()
    pairs = [(data, 0), (Image.open(io.BytesIO(data)), 0), (decoded.convert("RGB"), 0)]
    (batch,) = pack_stream(pairs, PACKING, batch_size=1)
    sizes = batch.image_sizes[batch.image_mask].tolist()
    assert sizes == [[16, 32] if orientation >= 5 else [32, 16]] * 3
    first, second, third = (image.pixels().astype(int) for image in batch.images())
    assert np.abs(first - second).max() <= (3 if kind == "JPEG" else 0)  # another build of libjpeg
    assert np.array_equal(second, third)


def test_transform_does_not_change_the_input_array() -> None:
    image = flat(16, 16, 7)

    def blacken(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        pixels[:] = 0
        return pixels

    (batch,) = pack_stream([(image, 1)], PACKING, batch_size=1, transform=blacken)
    assert not batch.patches.any()
    assert (image == 7).all()


def test_threads_share_one_pil_image_safely(draw_image: Draw, encode_image: Encode) -> None:
    data = encode_image(draw_image(60, 60), "PNG")
    expected = np.asarray(Image.open(io.BytesIO(data)))
    for _ in range(5):
        image = Image.open(io.BytesIO(data))
        stream = pack_stream([(image, 0)] * 40, PACKING, batch_size=40, num_threads=6)
        (batch,) = stream
        assert stream.stats()["bad_images"] == 0
        for one in batch.images():
            assert np.array_equal(one.pixels()[:60, :60], expected)


class Items:
    """A torch-style data set: no `__iter__`, an IndexError at its end."""

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return [(flat(8, 8), 5), (flat(16, 8), 6)][i]


def test_data_set_with_only_getitem_is_a_stream() -> None:
    samples: Any = Items()
    (batch,) = pack_stream(samples, PACKING, batch_size=1)
    assert batch.labels[batch.image_mask].tolist() == [5, 6]


def test_first_listed_member_is_the_image_and_the_others_are_ignored() -> None:
    samples = [
        {"__key__": "a", "png": flat(8, 8, 1), "jpg": flat(8, 8, 2), "cls": b"3"},
        {"__key__": "b", "png": flat(8, 8, 3), "cls": b"4"},
    ]
    for image, values in (("jpg;png", [2, 3]), (".png; .jpg", [1, 3])):
        (batch,) = pack_stream(samples, PACKING, batch_size=1, image=image)
        assert [int(one.patches[0, 0]) for one in batch.images()] == values
        assert batch.keys == [["a", "b"]]
        assert batch.labels[batch.image_mask].tolist() == [-100, -100]


def test_null_member_is_absent(encode_image: Encode, draw_image: Draw, caplog: pytest.LogCaptureFixture) -> None:
    jpg, png = encode_image(draw_image(8, 8), "JPEG"), encode_image(draw_image(16, 8), "PNG")
    samples = [
        {"__key__": "a", "jpg": jpg, "png": None, "cls": b"1"},
        {"__key__": "b", "jpg": None, "png": png, "cls": None},
        {"__key__": "c", "jpg": None, "png": None, "cls": b"3"},
        {"__key__": "d", "cls": b"4"},
    ]
    stream = pack_stream(samples, PACKING, batch_size=1, label="cls")
    (batch,) = stream
    assert batch.keys == [["a", "b"]]
    assert batch.labels[batch.image_mask].tolist() == [1, -100]
    stats = stream.stats()
    assert (stats["images"], stats["bad_images"], stats["without_image"]) == (2, 0, 2)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"sample 'c' in the stream has no image (its members are cls, and image={IMAGE!r}) and is left out; "
        "stats()['without_image'] counts such samples"
    ]
    pairs = pack_stream([(None, 1), (flat(8, 8), 2), (None, None)], PACKING, batch_size=1)
    assert [batch.labels[batch.image_mask].tolist() for batch in pairs] == [[2]]
    assert pairs.stats()["without_image"] == 2


@pytest.mark.parametrize("sample", [{"jpg": None, "cls": b"1"}, (None, 1)])
def test_stream_without_any_image_is_refused(sample: Any) -> None:
    with pytest.raises(ValueError, match=f"none of the first 3 samples has what image={IMAGE!r} asks for"):
        list(pack_stream([sample] * 3, PACKING, batch_size=1))


def test_case_of_names_does_not_matter_as_in_the_loader(
    tmp_path: Path, encode_image: Encode, draw_image: Draw, write_tar: Any
) -> None:
    data = encode_image(draw_image(8, 8), "PNG")
    members = [("a.PNG", data), ("a.Cls", b"1"), ("a.TXT", b"one"), ("b.png", data), ("b.CLS", b"2"), ("b.txt", b"two")]
    path = write_tar(tmp_path / "a.tar", members)
    samples = [{"PNG": data, "Cls": b"1", "TXT": b"one"}, {"png": data, "CLS": b"2", "txt": b"two"}]
    for image, label, extra in (("png", "cls", "txt"), ("PNG", "CLS", "TXT"), (".Png", ".cLs", ".tXt")):
        options: dict[str, Any] = {"batch_size": 1, "image": image, "label": label, "extras": [extra]}
        for batches in (pack_stream(samples, PACKING, **options), PackedImageLoader(path, PACKING, **options)):
            (batch,) = batches
            assert batch.labels[batch.image_mask].tolist() == [1, 2]
            assert batch.extras == {"txt": [["one", "two"]]}


def test_exact_name_comes_before_another_case() -> None:
    sample = {"__key__": "k", "png": flat(8, 8), "label": 1, "Label": 2, "LABEL": 3}
    for label, value in (("label", 1), ("Label", 2), ("LABEL", 3)):
        (batch,) = pack_stream([sample], PACKING, batch_size=1, label=label)
        assert batch.labels[batch.image_mask].tolist() == [value]
    with pytest.raises(
        ValueError, match="key 'k' has no 'lABEL' but 'label' and 'Label' and 'LABEL'; name one of them"
    ):
        list(pack_stream([sample], PACKING, batch_size=1, label="lABEL"))


def test_extras_are_decoded_by_name_or_passed_unchanged() -> None:
    thing = object()
    samples = [
        {"png": flat(8, 8), "txt": "schön".encode(), "json": b'{"a": [1]}', "bin": b"\0\xff", "other": thing},
        {"png": flat(8, 8), "txt": "text", "json": {"b": 2}, "bin": 5},
    ]
    names = ["txt", ".json", "bin", "other"]
    (batch,) = pack_stream(samples, PACKING, batch_size=1, extras=names)
    assert batch.extras == {
        "txt": [["schön", "text"]],
        "json": [[{"a": [1]}, {"b": 2}]],
        "bin": [[b"\0\xff", 5]],
        "other": [[thing, None]],
    }


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ("a.jpg", "sample 0 of the stream is a str; each must be a dict of members"),
        (b"bytes", "sample 0 of the stream is a bytes;"),
        ((flat(8, 8), 1, "k"), "sample 0 of the stream is a tuple of 3;"),
        ((flat(8, 8).astype(np.float32), 1), r"an image is a float32 array \(8, 8, 3\); it must be uint8"),
        ((flat(8, 8).transpose(2, 0, 1), 1), r"an image is a uint8 array \(3, 8, 8\)"),
        ((flat(8, 8)[None], 1), r"an image is a uint8 array \(1, 8, 8, 3\)"),
        ((torch.zeros(8, 8, 3), 1), "the image of sample '0' is a torch.Tensor; it must be encoded bytes"),
        ({"__key__": "k", "jpg": "path.jpg"}, "the image of sample 'k' is a builtins.str"),
        ((flat(8, 8), "cat"), "label 'cat' .* is neither a whole number nor a known class; give classes="),
        ((flat(8, 8), 0.5), "a label is 0.5"),
    ],
)
def test_sample_of_wrong_type_is_refused(sample: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        list(pack_stream([sample], PACKING, batch_size=1))


def test_member_options_are_refused_for_pairs() -> None:
    for options in ({"label": "cls"}, {"extras": ["txt"]}):
        with pytest.raises(ValueError, match="sample 0 of the stream is a pair, whose second item is its label"):
            list(pack_stream([(flat(8, 8), 1)], PACKING, batch_size=1, **options))


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"image": "jpg;jpeg"}, "image='jpg;jpeg'"),
        ({"label": "cls"}, "label='cls'"),
        ({"label": "json:x"}, "label='json:x'"),
        ({"label": lambda sample: None}, "label=<function"),
        ({"extras": ["txt", "png"]}, "extras='txt'"),
    ],
)
@pytest.mark.parametrize("count", [3, None])
def test_member_that_every_sample_lacks_is_refused(count: int | None, options: dict[str, Any], asked: str) -> None:
    samples = ({"__key__": "k", "__url__": "u", "png": flat(8, 8), "json": b"{}"} for _ in itertools.count())
    errors = ErrorPolicy(max_rate=1, max_consecutive=10**6)
    stream = pack_stream(itertools.islice(samples, count), PACKING, batch_size=1, errors=errors, **options)
    with pytest.raises(ValueError, match="none of the first") as caught:
        list(stream)
    assert str(caught.value).startswith(f"none of the first {count or 1000} samples has what {asked}")
    assert "the members of the first are png, json: name one of them" in str(caught.value)


def test_member_that_first_occurs_late_is_accepted() -> None:
    samples = [{"png": flat(8, 8)} | ({"cls": b"2", "txt": b"t"} if i == 999 else {}) for i in range(1100)]
    stream = pack_stream(samples, PACKING, batch_size=4, label="cls", extras=["txt"])
    assert sum(batch.num_images for batch in stream) == 1100


def test_image_under_oversize_error_is_named() -> None:
    pairs = [(flat(16, 16), 0), (flat(80, 80), 0)]
    with pytest.raises(ValueError, match=r"row 1 of 80x80 pixels has 100 tokens.*the first such sample has key '1'"):
        list(pack_stream(pairs, PACKING.replace(oversize="error"), batch_size=1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"samples": "train-{000..009}.tar"}, "samples is a str; .* To load shards by name, use PackedImageLoader"),
        ({"samples": {"jpg": b""}}, "samples is a dict;"),
        ({"samples": 5}, "samples is a int;"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"prefetch": 0}, "prefetch is 0; it must be at least 1"),
        ({"num_threads": -1}, "num_threads is -1; it must be at least 0"),
        ({"num_threads": 1.5}, "num_threads is 1.5; it must be a whole number"),
        ({"extras": "txt"}, r"extras is 'txt'; give a list of extensions: \['txt'\]"),
        ({"label": "json"}, "label is 'json'; name the field"),
        ({"label": "txt:x"}, "only a .json member has fields"),
    ],
)
def test_invalid_option_is_refused_at_once(change: dict[str, Any], reason: str) -> None:
    options: dict[str, Any] = {"samples": [], "packing": PACKING, "batch_size": 1}
    with pytest.raises(ValueError, match=reason):
        pack_stream(**(options | change))


def test_a_stream_drops_by_content_as_a_loader_does(drawn: Any) -> None:
    packing = PACKING.replace(token_drop=ComplexityDrop(0.2, 0.7, 0.5, 3), select="detail", fill="none")
    streamed = list(pack_stream(samples_of(drawn.shards), packing, batch_size=2, label="cls"))
    loaded = list(PackedImageLoader(drawn.shards, packing, batch_size=2, label="cls"))
    found = [
        {image.key: (image.coords.tolist(), image.patches.tolist()) for batch in batches for image in batch.images()}
        for batches in (streamed, loaded)
    ]
    assert len(found[0]) == 60
    assert found[0] == found[1]


def test_images_without_encoded_bytes_are_refused_where_the_drop_follows_bytes(draw_image: Draw) -> None:
    packing = PACKING.replace(token_drop=ComplexityDrop(0.2, 0.7))
    for image in (draw_image(30, 20, 0, "RGB"), flat(30, 20)):
        stream = pack_stream([(image, 0)], packing, batch_size=1)
        with pytest.raises(ValueError, match=r"follows the encoded bytes .* PIL images and arrays have none\. Use"):
            next(iter(stream))
