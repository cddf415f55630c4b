"""Videos in a stream: their frames are the images of a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from patchnpack import Frames
from patchnpack.loaders import pack_stream
from tests.loaders.imaging.readers.video.videos import KINDS, encode, sequential
from tests.loaders.streaming.documents import PACKING, padded, page, pixels_in

WIDE = PACKING.replace(seq_len=1024, max_images=32)


@pytest.mark.parametrize(
    ("frames", "chosen"),
    [(None, range(12)), (Frames(3), [2, 6, 10]), (Frames(2, how="stride:5"), [0, 5])],
    ids=["all", "uniform", "stride"],
)
@pytest.mark.parametrize("kind", ["h264", "vp9"])
def test_frames_of_a_video_are_the_images_of_its_sample(kind: str, frames: Any, chosen: Any) -> None:
    data = encode(*KINDS[kind], frames=12)
    name = "webm" if kind == "vp9" else "mp4"
    samples = [{"__key__": "clip", name: data, "cls": 0}, {"__key__": "page", "png": page(1, 0)[0], "cls": 1}]
    one = pack_stream(
        samples,
        WIDE.replace(frames=frames),
        batch_size=1,
        image="mp4;webm;png",
        label="cls",
        sample="members",
        num_threads=2,
    )
    found, shown = pixels_in(one), sequential(data)
    assert sorted(found) == [*((0, i) for i in range(len(chosen))), (1, 0)]
    for i, number in enumerate(chosen):
        assert np.array_equal(found[0, i], shown[number]), number
    assert np.array_equal(found[1, 0], padded(page(1, 0)[1]))
    assert (one.stats()["samples"], one.stats()["bad_images"]) == (2, 0)
