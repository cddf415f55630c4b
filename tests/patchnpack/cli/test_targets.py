"""Targets from a folder of masks to training data: shard, show, pack, verify, unpack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchnpack import Mask, PackedImageLoader
from patchnpack.packer.batch.pictures.overlays import class_colour
from tests.images import read_tar
from tests.loaders.prepacking.annotated import MISSING, WRONG_SIZE, annotated_image, write_annotated
from tests.patchnpack.cli.runs import ran

COUNT = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of images with JSON beside them, and one of masks."""
    home = tmp_path_factory.mktemp("folders")
    for name in ("images", "masks"):
        (home / name).mkdir()
    for i in range(COUNT):
        data, members = annotated_image(i)
        (home / "images" / f"{i:03d}.{'jpg' if i % 2 else 'png'}").write_bytes(data)
        (home / "images" / f"{i:03d}.json").write_bytes(members["json"])
        if i not in (MISSING, WRONG_SIZE):
            (home / "masks" / f"{i:03d}.png").write_bytes(members["seg.png"])
    return home / "images", home / "masks"


@pytest.mark.parametrize("store", ["images", "patches"])
def test_masks_of_a_folder_reach_a_packed_folder_and_come_back(
    folders: tuple[Path, Path], tmp_path: Path, store: str
) -> None:
    images, masks = folders
    ran("shard", images, "-o", tmp_path / "shards", "--member", f"seg.png={masks}")
    flags = ["--mask=mask=seg.png,fill=254", "--boxes=boxes=json:objects.bbox,format=xywh"]
    packing = ["--seq-len=64", "--patch-size=8", "--flip=0.5"]
    shards = [str(path) for path in sorted((tmp_path / "shards").glob("*.tar"))]
    printed = ran("pack", *shards, "-o", tmp_path / "packs", *packing, *flags, f"--store={store}", "--workers=1")
    assert "targets mask, boxes" in printed
    assert "are unchanged" in ran("verify", tmp_path / "packs")
    batch = next(iter(PackedImageLoader(str(tmp_path / "packs"), batch_size=1)))
    assert list(batch.targets) == ["mask", "boxes"]
    assert batch.target_fill == {"mask": 254}
    ran("unpack", tmp_path / "packs", "-o", tmp_path / "unpacked")
    names = [name.partition(".")[2] for name, _ in read_tar(tmp_path / "unpacked" / "images-000000.tar")]
    # The images without a usable mask are in the image store, where it is found when they are read.
    assert names.count("seg.png") == COUNT - 2
    assert names.count("json" if store == "images" else "boxes.json") == (COUNT if store == "images" else COUNT - 2)


@pytest.mark.parametrize("source", ["shards", "packs"])
def test_show_draws_masks_and_boxes(tmp_path: Path, source: str) -> None:
    shards: list[str] = write_annotated(tmp_path / "shards")
    flags = ["--mask=mask=seg.png,fill=254", "--boxes=boxes=json:objects.bbox,format=xywh"]
    packing = ["--seq-len=64", "--patch-size=8"]
    if source == "packs":
        ran("pack", *shards, "-o", tmp_path / "packs", *packing, *flags, "--store=patches", "--workers=1")
        shards, packing, flags = [str(tmp_path / "packs")], [], []
    ran("show", *shards, "-o", tmp_path / "plain.png", *packing, "--no-shuffle") if source == "shards" else None
    ran("show", *shards, "-o", tmp_path / "targets.png", *packing, *flags, "--no-shuffle")
    with Image.open(tmp_path / "targets.png") as picture:
        drawn = np.asarray(picture)
    assert (drawn == class_colour(1)).all(-1).sum() > 20
    if source == "shards":
        with Image.open(tmp_path / "plain.png") as plain:
            assert plain.height < drawn.shape[0]  # the captions of the targets


def test_mistakes_end_the_command_with_the_flag(tmp_path: Path) -> None:
    shards = write_annotated(tmp_path / "shards")
    with pytest.raises(ValueError, match=r"--mask is 'm=seg\.png,fil=1'"):
        ran("show", *shards, "-o", tmp_path / "a.png", "--mask=m=seg.png,fil=1")
    with pytest.raises(ValueError, match=r"target 'm' asks for the member 'sge\.png', which no sample has"):
        ran("pack", *shards, "-o", tmp_path / "packs", "--mask=m=sge.png", "--workers=1")
    assert not (tmp_path / "packs").exists()


def test_folder_packed_with_targets_is_not_packed_again_with_others(tmp_path: Path) -> None:
    shards = write_annotated(tmp_path / "shards")
    ran("pack", *shards, "-o", tmp_path / "packs", "--seq-len=64", "--mask=m=seg.png", "--workers=2", "--num-streams=2")
    assert list(next(iter(PackedImageLoader(str(tmp_path / "packs"), batch_size=2))).targets) == ["m"]
    with pytest.raises(ValueError, match=r"holds other packs: targets"):
        ran("pack", *shards, "-o", tmp_path / "packs", "--seq-len=64", "--mask=m=seg.png,fill=0", "--num-streams=2")
    other = PackedImageLoader(str(tmp_path / "packs"), batch_size=2, targets={"z": Mask("seg.png", fill=0)})
    assert list(next(iter(other)).targets) == ["z"]
