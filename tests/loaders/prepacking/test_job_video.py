"""Packed folders of videos, whose frames are the images of a sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from patchnpack.loaders import Job, PackedImageLoader
from patchnpack.loaders.prepacking.verify import verify
from patchnpack.packer import Frames, Packing
from tests.images import write_tar
from tests.loaders.conftest import contents
from tests.loaders.imaging.readers.video.videos import KINDS, encode
from tests.loaders.prepacking.documents import image

PACKING = Packing(seq_len=1024, patch_size=8, max_images=32)


@pytest.mark.parametrize("frames", [None, Frames(3, "random")], ids=["all", "random"])
@pytest.mark.parametrize("store", ["images", "patches"])
def test_the_packed_folder_gives_the_frames_of_the_source(tmp_path: Path, store: Any, frames: Any) -> None:
    files = {
        "a.mp4": encode(*KINDS["h264"], frames=12),
        "b.png": image(0, 0),
        "c.mkv": encode(*KINDS["mpeg2 matroska"], frames=9),
    }
    members = [(name, data) for file, data in files.items() for name, data in ((file, data), (f"{file[0]}.cls", b"1"))]
    read: dict[str, Any] = {"image": "mp4;mkv;png", "sample": "members", "label": "cls"}
    shard, packing = write_tar(tmp_path / "clips.tar", members), PACKING.replace(frames=frames)
    epochs = 1 if frames is None else 2
    out = str(tmp_path / "out")
    given = None if frames is None else epochs
    assert Job(source=[shard], out=out, packing=packing, store=store, seed=3, epochs=given, **read).run()
    assert verify(out).problems == []
    source = PackedImageLoader(shard, packing, batch_size=1, seed=3, **read)
    folder = PackedImageLoader(out, batch_size=1, seed=3)
    for _ in range(epochs):
        expected = list(map(contents, source))
        assert list(map(contents, folder)) == expected
    images = 12 + 1 + 9 if frames is None else epochs * (3 + 1 + 3)
    assert source.stats()["images"] == folder.stats()["images"] == images
