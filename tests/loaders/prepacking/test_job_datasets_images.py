"""Packing data sets: what becomes of decoded images, of bad ones, and of mistakes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from patchnpack.loaders import BadDataError, BadImage, ErrorPolicy, Job, PackedImageLoader, read_manifest
from patchnpack.loaders.prepacking.unpack import unpack
from patchnpack.loaders.prepacking.verify import verify
from patchnpack.loaders.remote.storage import open_folder
from patchnpack.packer import Packing, RandomResizedCrop
from tests.loaders.datasets.collections_of_images import Items, Pairs, Photos
from tests.loaders.loading import keys_of
from tests.loaders.prepacking.dataset_kinds import (
    COUNT,
    PHOTOS,
    STORES,
    Contents,
    all_of,
    opened,
    pack,
)
from tests.loaders.prepacking.folders import PACKING


class Damaged:
    """Pairs of which one raises `BadImage`, one is a PNG that ends early, and one a JPEG that does."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> tuple[Any, int]:
        if i == 5:
            raise BadImage("it was never scanned")
        if i == 8:
            return Image.open(io.BytesIO(PHOTOS.data[8][:-40])), 1
        if i == 9:
            return PHOTOS.data[9][:200], 1
        return PHOTOS.pixels(i), PHOTOS.labels[i]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("sizes", [False, True])
def test_bad_images_are_counted_and_quarantined_from_the_packs(tmp_path: Path, store: str, sizes: bool) -> None:
    given = np.array([PHOTOS.pixels(i).shape[1::-1] for i in range(COUNT)]) if sizes else None
    loader = PackedImageLoader(Damaged(), PACKING, batch_size=2, sizes=given)
    keys = keys_of(list(loader))
    assert loader.stats()["bad_images"] == 3
    pack(Damaged(), tmp_path / "out", {"sizes": given}, store=store)
    quarantine = tmp_path / "bad.jsonl"
    packed = PackedImageLoader(tmp_path / "out", batch_size=2, errors=ErrorPolicy(quarantine=quarantine))
    assert keys_of(list(packed)) == keys
    assert {json.loads(line)["key"] for line in quarantine.read_text().splitlines()} == {"5", "8", "9"}
    assert packed.stats()["images"] + packed.stats()["bad_images"] == COUNT
    manifest = read_manifest(open_folder(tmp_path / "out", None))
    reasons = [bad["reason"] for bad in manifest.bad]
    if sizes:
        assert "it was never scanned" in reasons
    assert not verify(tmp_path / "out").problems
    assert unpack(tmp_path / "out", tmp_path / "shards")


def test_too_many_bad_images_stop_the_job(tmp_path: Path) -> None:
    def item(i: int) -> Any:
        if i % 2:
            raise BadImage("lost")
        return PHOTOS.pixels(0), 1

    sizes = np.tile([PHOTOS.pixels(0).shape[1::-1]], (3000, 1))
    job = Job(source=Items(3000, item), sizes=sizes, out=str(tmp_path / "out"), packing=PACKING)
    with pytest.raises(BadDataError, match="1500 of the 3000 images of a part were bad"):
        job.run()


MODES = ("RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "YCbCr", "P+", "RGB+")


def drawn(mode: str, i: int) -> Image.Image:
    image = opened(i).convert("RGB").resize((40, 31))
    if mode == "P+":
        image = image.convert("P")
        image.info["transparency"] = 3
        return image
    if mode == "RGB+":
        image.info["transparency"] = image.getpixel((3, 3))
        return image
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray((np.arange(31 * 40).reshape(31, 40) % 256).astype(np.uint8)))
    return image.convert(mode)


@pytest.mark.parametrize("image_mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("native", [True, False])
def test_decoded_images_of_every_mode_lose_nothing(
    tmp_path: Path, image_mode: str, native: bool, contents: Contents
) -> None:
    items: list[tuple[Any, int]] = [(drawn(mode, i), i) for i, mode in enumerate(MODES)]
    for orientation in range(2, 9):
        image = drawn("RGB", orientation)
        exif = image.getexif()
        exif[0x0112] = orientation
        image.info["exif"] = exif.tobytes()
        items.append((image, 0))
    rgba = np.asarray(drawn("RGBA", 0))
    items += [(rgba, 0), (rgba[..., :3], 1), (rgba[..., :1], 2), (rgba[..., 0], 3)]
    packing: Any = PACKING.replace(image_mode=image_mode)
    epochs = None
    if not native:
        packing, epochs = packing.replace(resolution=RandomResizedCrop(max_tokens=12)), 2
    loader = PackedImageLoader(items, packing, batch_size=2)
    want = [all_of(contents, loader) for _ in range(2)]
    pack(items, tmp_path / "out", {}, packing, epochs=epochs)
    packed = PackedImageLoader(tmp_path / "out", batch_size=2)
    assert [all_of(contents, packed) for _ in range(2)] == want
    assert unpack(tmp_path / "out", tmp_path / "shards") == len(items)
    shards = PackedImageLoader(
        str(tmp_path / "shards" / "*.tar"), packing, batch_size=2, image="jpg;png;tif", label="label"
    )
    assert {image.key: image.pixels().tobytes() for batch in shards for image in batch.images()} == {
        image.key: image.pixels().tobytes() for batch in loader for image in batch.images()
    } or not native


def test_encoded_items_are_kept_byte_for_byte(tmp_path: Path) -> None:
    pack(PHOTOS.hugging_face(), tmp_path / "out", {})
    unpack(tmp_path / "out", tmp_path / "shards")
    found: dict[str, bytes] = {}
    for path in (tmp_path / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            found |= {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    want = {f"{i}.{'png' if i % 3 == 2 else 'jpg'}": data for i, data in enumerate(PHOTOS.data)}
    assert found == want


def raising(i: int) -> Any:
    if i == 7:
        raise KeyError("weather")
    return PHOTOS.pixels(i), 1


class Growing:
    """Items that change their size once they have been read."""

    def __init__(self) -> None:
        self.calls = 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> np.ndarray:
        self.calls += 1
        return np.zeros((20 + self.calls, 20, 3), np.uint8)


MISTAKES: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    (lambda: Items(8, raising), {}, r"row 7 of Items raised KeyError"),
    (Growing, {}, r"the plan was made for .* the items must not change"),
    (lambda: Pairs(PHOTOS), {"label": "weight"}, r"asks for 'weight', which no row .* has"),
    (lambda: Pairs(PHOTOS), {"label": len}, r"must be the name of a member"),
    (lambda: Pairs(PHOTOS), {"path": "file"}, r"path= is for tables of paths"),
    (
        lambda: Pairs(PHOTOS),
        {"errors": ErrorPolicy(max_bytes=100)},
        r"bytes as it is packed; the limit is max_bytes 100",
    ),
    (list, {}, r"is empty|no shards|source"),
]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_mistakes_are_named_with_a_remedy(tmp_path: Path, number: int) -> None:
    make, options, message = MISTAKES[number]
    with pytest.raises((ValueError, RuntimeError), match=message):
        Job(source=make(), out=str(tmp_path / "out"), packing=PACKING, **options).run()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_other_data_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    pack(Pairs(PHOTOS), tmp_path / "out", {"fingerprint": "first"})
    others: list[tuple[Any, dict[str, Any], str]] = [
        (Pairs(PHOTOS), {"fingerprint": "second"}, "source.data is 'second' here and 'first' there"),
        (Pairs(Photos(seed=1)), {"fingerprint": "third"}, "source.digest"),
        (PHOTOS.hugging_face(), {}, "source.shards"),
    ]
    for source, options, message in others:
        with pytest.raises(ValueError, match=f"holds other packs: {message}"):
            Job(source=source, out=str(tmp_path / "out"), packing=PACKING, part_packs=3, **options)
    labels = Photos()
    pack(labels.hugging_face(), tmp_path / "labels", {"label": "label"})
    labels.labels[3] += 1 if labels.labels[3] < 2 else -1
    with pytest.raises(ValueError, match=r"holds other packs: source.outside"):
        Job(source=labels.hugging_face(), out=str(tmp_path / "labels"), packing=PACKING, part_packs=3, label="label")


def test_paths_are_sources(tmp_path: Path, contents: Contents) -> None:
    PHOTOS.folder(tmp_path / "photos")
    want = all_of(contents, PackedImageLoader(tmp_path / "photos", PACKING, batch_size=2, label="folder"))
    pack(str(tmp_path / "photos"), tmp_path / "a", {"label": "folder"})
    assert all_of(contents, PackedImageLoader(tmp_path / "a", batch_size=2)) == want
    lines = ["file,kind", *(f"{path},{path.parent.name}" for path in sorted((tmp_path / "photos").rglob("*.*g")))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    pack(tmp_path / "t.csv", tmp_path / "b", {"path": "file", "label": "kind"})
    assert PackedImageLoader(tmp_path / "b", batch_size=2).classes == {"cat": 0, "dog": 1, "owl": 2}


@pytest.mark.parametrize("store", STORES)
def test_a_file_that_is_deleted_or_changed_while_a_data_set_is_packed_is_an_error_that_names_it(
    tmp_path: Path, store: Any
) -> None:
    folder = PHOTOS.folder(tmp_path / "photos")
    path = Path(folder.samples[3][0])
    for change, message in (
        (lambda: path.write_bytes(path.read_bytes() + b"0"), "the image with key '3' .* have changed since its size"),
        (path.unlink, f"the file '{path}' of row 3 cannot be read: .*; restore the file"),
    ):
        job = Job(source=folder, out=str(tmp_path / "out"), packing=PACKING, store=store)
        change()
        with pytest.raises(OSError, match=message):
            job.run()
        assert not (tmp_path / "out" / "manifest.json").exists()
        path.write_bytes(PHOTOS.data[3])
    assert Job(source=folder, out=str(tmp_path / "out"), packing=PACKING, store=store).run()


@pytest.mark.parametrize("store", STORES)
def test_classes_that_are_named_by_other_numbers_keep_their_numbers(tmp_path: Path, store: str) -> None:
    classes = ["2", "0", "1"]
    dataset = PHOTOS.hugging_face(label=(datasets.ClassLabel(names=classes), PHOTOS.labels))
    options: dict[str, Any] = {"label": "label", "classes": classes}
    pack(dataset, tmp_path / "out", options, store=store)
    loaders = (
        PackedImageLoader(dataset, PACKING, batch_size=2, **options),
        PackedImageLoader(tmp_path / "out", batch_size=2),
    )
    ours, theirs = ({i.key: i.label for batch in loader for i in batch.images()} for loader in loaders)
    assert ours == theirs == {str(i): label for i, label in enumerate(PHOTOS.labels)}


def test_parts_of_decoded_images_hold_at_most_64_mib_of_pixels(tmp_path: Path) -> None:
    pixels = np.zeros((400, 400, 3), np.uint8)
    job = Job(
        source=Items(2000, lambda i: pixels),
        sizes=np.full((2000, 2), 400),
        out=str(tmp_path / "out"),
        packing=Packing(seq_len=700, patch_size=16),
    )
    assert 64 <= job.recipe.part_packs <= (64 << 20) // pixels.nbytes
