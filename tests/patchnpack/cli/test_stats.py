"""`patchnpack stats` prints statistics of each band, and flags to paste."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.images import write_tar
from tests.loaders.imaging.arrays import npy, values
from tests.patchnpack.cli.runs import failed, ran


def test_stats_counts_some_images_and_prints_flags_to_paste(tmp_path: Path) -> None:
    images = [values("int16", 2, 20, 30, seed=i) for i in range(5)]
    shard = write_tar(tmp_path / "a.tar", [(f"{i}.npy", npy(array)) for i, array in enumerate(images)])
    flags = ["--image=npy", "--channels=2", "--dtype=int16"]
    text = ran("stats", shard, *flags)
    every = np.concatenate([array.reshape(-1, 2) for array in images]).astype(float)
    assert "3,000 pixels of 5 images, int16; 0 bad images" in text
    mean, std = (",".join(f"{value:.6g}" for value in found) for found in (every.mean(0), every.std(0)))
    assert f"--model mean={mean} --model std={std}" in text
    assert "1,200 pixels of 2 images" in ran("stats", shard, *flags, "--count=2")


def test_stats_refuses_no_images_and_a_kind_that_the_files_do_not_have(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("a.npy", npy(values("int16", 2)))])
    assert "images is 0" in failed("stats", shard, "--image=npy", "--channels=2", "--dtype=int16", "--count=0")
    message = failed("stats", shard, "--image=npy", "--channels=1", "--dtype=uint16")
    assert "it has 2 bands of int16, and Packing asks for 1 band of uint16" in message
