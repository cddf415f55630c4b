"""Unpacked shards hold the targets: of an image store byte for byte, of a patch store as they were packed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchnpack import Boxes, Keypoints, Map, Mask, PackedImageLoader, Polygons
from patchnpack.loaders import ErrorPolicy, Job
from patchnpack.loaders.prepacking.unpack import unpack
from patchnpack.packer import ConstantDrop, Packing, RandomResizedCrop, Views
from tests.images import read_tar
from tests.loaders.prepacking.annotated import MISSING, TARGETS, WRONG_SIZE, write_annotated

PACKING = Packing(seq_len=48, patch_size=8, max_images=7, balance=4)
LENIENT = ErrorPolicy(max_rate=0.5)
AGAIN: dict[str, Any] = {
    "mask": Mask("seg.png", fill=254),
    "depth": Map("depth.npy", channels=2, interpolation="nearest"),
    "boxes": Boxes("boxes.json:boxes", labels="boxes.json:labels"),
    "outlines": Polygons("outlines.json:points", labels="outlines.json:labels"),
    "joints": Keypoints("joints.json:points", format="xyv"),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_annotated(tmp_path_factory.mktemp("annotated"))


def unpacked(shards: list[str], folder: Path, packing: Packing = PACKING, **options: Any) -> str:
    given: dict[str, Any] = {"store": "patches", "targets": TARGETS, "errors": LENIENT, "label": "cls"} | options
    assert Job(source=shards, out=str(folder / "packs"), packing=packing, **given).run()
    assert unpack(str(folder / "packs"), folder / "out") > 0
    return str(folder / "out" / "images-000000.tar")


def test_members_of_an_image_store_come_back_byte_for_byte(shards: list[str], tmp_path: Path) -> None:
    found = dict(read_tar(unpacked(shards, tmp_path, store="images")))
    assert found == dict(member for shard in shards for member in read_tar(shard))


def test_targets_of_a_patch_store_are_read_again(shards: list[str], tmp_path: Path) -> None:
    packing = PACKING.replace(resolution=RandomResizedCrop(max_tokens=20), flip=0.5)
    tar = unpacked(shards, tmp_path, packing, epochs=1)
    packs = {image.key: found for image, found in by_image(PackedImageLoader(str(tmp_path / "packs"), batch_size=1))}
    loader = PackedImageLoader(tar, PACKING, batch_size=1, targets=AGAIN)
    again = {image.key: found for image, found in by_image(loader)}
    assert again.keys() == packs.keys()
    assert len(packs) > 20
    for key, found in again.items():
        for name in ("mask", "depth"):
            assert np.array_equal(found[name], packs[key][name], equal_nan=True), (key, name)
        for name in ("boxes", "outlines", "joints"):
            one, other = found[name], packs[key][name]
            assert one.labels.tolist() == other.labels.tolist()
            for field in ("boxes", "points"):
                if getattr(one, field) is not None:
                    np.testing.assert_allclose(getattr(one, field), getattr(other, field), atol=1e-5)
        assert found["joints"].visible.tolist() == packs[key]["joints"].visible.tolist()


def by_image(
    loader: PackedImageLoader,
    dense: Sequence[str] = ("mask", "depth"),
    objects: Sequence[str] = ("boxes", "outlines", "joints"),
) -> Any:
    """Each image with its targets: values of its tokens, and objects."""
    for batch in loader:
        end = 0
        for i, (image, length) in enumerate(zip(batch.images(), batch.lengths, strict=True)):
            slots, end = batch.token_index[end : end + length], end + length
            targets: dict[str, Any] = batch.targets
            values = {name: targets[name].flatten(0, 1).numpy()[slots] for name in dense}
            yield image, values | {name: targets[name].of(i) for name in objects}


def test_dropped_patches_of_masks_are_filled(shards: list[str], tmp_path: Path) -> None:
    tar = unpacked(shards, tmp_path, PACKING.replace(token_drop=ConstantDrop(0.5), fill="none"))
    loader = PackedImageLoader(tar, PACKING, batch_size=1, targets=AGAIN, errors=LENIENT)
    values = np.concatenate([batch.targets["mask"][batch.segment_ids > 0].numpy() for batch in loader])  # type: ignore[index]
    assert 0.3 < (values == 254).all(1).mean() < 0.7
    assert loader.stats()["bad_images"] == 0


def test_members_are_named_as_those_they_came_from(shards: list[str], tmp_path: Path) -> None:
    bad = {f"s{i // 3}/{i:03d}" for i in (WRONG_SIZE, MISSING)}
    names: dict[str, set[str]] = {}
    for name, _ in read_tar(unpacked(shards, tmp_path)):
        key, _, member = name.partition(".")
        names.setdefault(key, set()).add(member)
    of_objects = {"boxes.json", "outlines.json", "joints.json"}
    wanted = {"png", "cls", "seg.png", "token.tokens.npy", "depth.npy", "mean.tokens.npy"} | of_objects
    assert set(map(frozenset, names.values())) == {frozenset(wanted)}
    assert names.keys().isdisjoint(bad)
    extras = {name.partition(".")[2] for name, _ in read_tar(unpacked(shards, tmp_path / "b", extras=["seg.png"]))}
    assert extras == wanted | {"mask.png"}


def test_views_have_targets_of_their_own(shards: list[str], tmp_path: Path) -> None:
    packing = PACKING.replace(views=Views((2, RandomResizedCrop(max_tokens=9))))
    members = dict(read_tar(unpacked(shards, tmp_path, packing, epochs=1)))
    assert {"s0/001.0.png", "s0/001.1.png", "s0/001.0.seg.png", "s0/001.1.seg.png", "s0/001.0.boxes.json"} <= set(
        members
    )


def test_masks_that_png_does_not_hold_become_arrays(shards: list[str], tmp_path: Path) -> None:
    targets = {"mask": Mask("seg.png", dtype="int32", fill=-7), "wide": Mask("seg.png", dtype="uint16", fill=60000)}
    tar = unpacked(shards, tmp_path, targets=targets)
    again = {"mask": Mask("seg.npy", dtype="int32", fill=-7), "wide": Mask("seg.png", dtype="uint16", fill=60000)}
    loader = PackedImageLoader(tar, PACKING, batch_size=1, targets=again)
    packs = PackedImageLoader(str(tmp_path / "packs"), batch_size=1)
    found = {image.key: values for image, values in by_image(loader, ["mask", "wide"], [])}
    for image, values in by_image(packs, ["mask", "wide"], []):
        for name, value in found.pop(image.key).items():
            assert value.dtype == values[name].dtype
            assert np.array_equal(value, values[name])
    assert found == {}
