from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchnpack.loaders import PackedImageLoader, scan
from patchnpack.loaders.prepacking.job import Job
from patchnpack.loaders.prepacking.unpack import unpack
from patchnpack.packer import ConstantDrop, Packing, PatchSizes

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)


def samples(shards: list[Path] | list[str]) -> dict[str, dict[str, bytes]]:
    """Return the members by key and extension."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for info in tar:
                key, _, extension = info.name.partition(".")
                file = tar.extractfile(info)
                assert file is not None
                assert extension not in found.setdefault(key, {})
                found[key][extension] = file.read()
    return found


@pytest.mark.parametrize("num_streams", [1, 2])
def test_image_store_unpacks_every_member_byte_for_byte(num_streams: int, drawn: Any, tmp_path: Path) -> None:
    job = Job(
        index=scan(drawn.shards),
        out=str(tmp_path / "packs"),
        packing=PACKING,
        shuffle=True,
        part_packs=3,
        num_streams=num_streams,
    )
    job.run()
    seen: list[tuple[int, int]] = []
    assert (
        unpack(tmp_path / "packs", tmp_path / "shards", images_per_shard=25, progress=lambda *at: seen.append(at)) == 60
    )
    assert seen == [(25, 60), (50, 60), (60, 60)]
    shards = sorted((tmp_path / "shards").glob("*.tar"))
    assert [shard.name for shard in shards] == [f"images-{i:06d}.tar" for i in range(3)]
    assert samples(shards) == samples(drawn.shards)
    # The unpacked shards load like any others.
    assert sorted(scan(list(map(str, shards))).keys) == sorted(drawn.keys)


@pytest.mark.parametrize("sizes", [False, True])
def test_patch_store_unpacks_pixels_labels_and_extras(sizes: bool, drawn: Any, tmp_path: Path) -> None:
    packing = PACKING.replace(patch_size=PatchSizes((4, 8)) if sizes else 8, token_drop=ConstantDrop(0.25))
    given: dict[str, Any] = {"epochs": 2, "block": 4} if sizes else {"num_streams": 2}
    Job(
        index=scan(drawn.shards),
        out=str(tmp_path / "packs"),
        packing=packing,
        store="patches",
        label="cls",
        extras=["txt"],
        part_packs=3,
        **given,
    ).run()
    assert unpack(tmp_path / "packs", tmp_path / "shards") == 60
    found = samples(sorted((tmp_path / "shards").glob("*.tar")))
    assert sorted(found) == sorted(drawn.keys)
    for batch in PackedImageLoader(tmp_path / "packs", batch_size=2):
        for image in batch.images():
            members = found[image.key]
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(members["png"]))), image.pixels())
            assert members["cls"] == str(drawn.labels[image.key]).encode()
            assert members["txt"] == drawn.texts[image.key].encode()
            assert set(members) == {"png", "cls", "txt"}


def test_rerun_writes_missing_shards_with_the_same_bytes(drawn: Any, tmp_path: Path) -> None:
    Job(index=scan(drawn.shards), out=str(tmp_path / "packs"), packing=PACKING).run()
    out = tmp_path / "shards"
    unpack(tmp_path / "packs", out, images_per_shard=20)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "images-000001.tar").unlink()
    times = (out / "images-000000.tar").stat().st_mtime_ns
    unpack(tmp_path / "packs", out, images_per_shard=20)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert (out / "images-000000.tar").stat().st_mtime_ns == times


def test_repeated_key_starts_a_new_shard(write_tar: Any, encode_image: Any, draw_image: Any, tmp_path: Path) -> None:
    shards = []
    for s in range(2):
        members = [(f"{i}.png", encode_image(draw_image(20, 20, seed=10 * s + i), "PNG")) for i in range(3)]
        shards.append(write_tar(tmp_path / f"{s}.tar", members))
    Job(index=scan(shards), out=str(tmp_path / "packs"), packing=PACKING).run()
    unpack(tmp_path / "packs", tmp_path / "shards")
    unpacked = sorted((tmp_path / "shards").glob("*.tar"))
    assert [samples([shard]) for shard in unpacked] == [samples([shard]) for shard in shards]


def test_folders_that_hold_something_else_are_refused(drawn: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        Job(index=scan(drawn.shards), out=str(tmp_path / name), packing=PACKING, seed=seed).run()
    out = tmp_path / "shards"
    unpack(tmp_path / "a", out)
    with pytest.raises(ValueError, match="holds shards unpacked from other packs; name an empty folder"):
        unpack(tmp_path / "b", out)
    with pytest.raises(ValueError, match="holds shards unpacked from other packs"):
        unpack(tmp_path / "a", out, images_per_shard=7)
    with pytest.raises(ValueError, match=r"holds something else .*; name an empty folder"):
        unpack(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="images_per_shard is 0"):
        unpack(tmp_path / "a", tmp_path / "c", images_per_shard=0)
