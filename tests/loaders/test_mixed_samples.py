"""Samples whose files have several formats: an animation, pages, a video and a picture in one sample."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchnpack import ErrorPolicy, FitTokens, Frames, Native, PackedImageLoader, Packing, Views
from patchnpack.packer import PackedBatch
from tests.images import draw_image, encode_image, write_tar
from tests.loaders.imaging.readers.video.videos import KINDS, encode

PACKING = Packing(seq_len=2048, patch_size=8, max_images=128)


def saved(images: Sequence[Image.Image], kind: str) -> bytes:
    file = io.BytesIO()
    images[0].save(file, kind, save_all=True, append_images=images[1:])
    return file.getvalue()


def frames_of(data: bytes) -> list[np.ndarray]:
    with Image.open(io.BytesIO(data)) as file:
        found = []
        for number in range(getattr(file, "n_frames", 1)):
            file.seek(number)
            found.append(np.asarray(file.convert("RGB")))
    return found


class Mixed:
    """A sample "a" of four files in one tar, and its 14 pictures in order; beside it, a sample "b" of one picture."""

    def __init__(self, folder: Path, cut: str = "") -> None:
        av: Any = pytest.importorskip("av")
        video = encode(*KINDS["h264"], frames=6)
        files = {
            "1.gif": saved([draw_image(40, 30, seed=i, mode="P") for i in range(4)], "GIF"),
            "2.tif": saved([draw_image(20 + i, 30 - i, seed=50 + i) for i in range(3)], "TIFF"),
            "3.mp4": video,
            "10.png": encode_image(draw_image(9, 9), "PNG"),
        }
        of_file = {name: frames_of(data) for name, data in files.items() if name != "3.mp4"}
        with av.open(io.BytesIO(video)) as container:
            of_file["3.mp4"] = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        self.pictures = [pixels for name in files for pixels in of_file[name]]
        if cut:
            files[cut] = files[cut][: len(files[cut]) * 7 // 10]
        members = [(f"a.{name}", files[name]) for name in ("10.png", "2.tif", "1.gif", "3.mp4")]  # in no order
        members += [("a.cls", b"4"), ("a.txt", b"of a"), ("b.png", encode_image(draw_image(12, 9), "PNG"))]
        self.shard = write_tar(folder / "mixed.tar", members)

    def loader(self, packing: Packing, **options: Any) -> PackedImageLoader:
        given: dict[str, Any] = {"batch_size": 1, "sample": "members", "label": "cls", "extras": ["txt"]} | options
        return PackedImageLoader(self.shard, packing, **given)

    def numbers(self, batches: Sequence[PackedBatch], views: int = 1) -> list[int]:
        """The frames of sample "a", each of which must have its label, its text and the pixels of its picture."""
        found = []
        for batch in batches:
            images = iter(batch.images())
            for b, keys in enumerate(batch.keys):
                for j, key in enumerate(keys):
                    image, frame = next(images), int(batch.frames[b, j])
                    if key == "a":
                        assert (image.label, batch.extras["txt"][b][j]) == (4, "of a")
                        found.append(frame)
                        if frame % views == 0 and len(found) <= len(self.pictures) * views:
                            pixels = self.pictures[frame // views]
                            assert np.array_equal(image.pixels()[: pixels.shape[0], : pixels.shape[1]], pixels), frame
        return found


def test_files_of_several_formats_are_one_sample_in_natural_order(tmp_path: Path) -> None:
    mixed = Mixed(tmp_path)
    loader = mixed.loader(PACKING)
    assert mixed.numbers(list(loader)) == list(range(14))
    assert (loader.stats()["samples"], loader.stats()["images"]) == (2, 15)
    views = mixed.loader(PACKING.replace(views=Views((1, Native()), (2, FitTokens(6)))))
    assert mixed.numbers(list(views), views=3) == list(range(42))


def test_frames_are_chosen_among_all_pictures_of_a_sample(tmp_path: Path) -> None:
    mixed = Mixed(tmp_path)
    every = mixed.pictures
    for frames, chosen in (
        (Frames(4), [1, 5, 8, 12]),
        (Frames(5, "stride:3"), [0, 3, 6, 9, 12]),
        (Frames(16, short="repeat"), [*range(14), 13, 13]),
    ):
        mixed.pictures = [every[number] for number in chosen]
        assert mixed.numbers(list(mixed.loader(PACKING.replace(frames=frames)))) == list(range(len(chosen)))


@pytest.mark.parametrize(
    ("cut", "lost", "header"), [("1.gif", [2], 13), ("2.tif", [6], 14), ("3.mp4", [], 8), ("10.png", [13], 14)]
)
@pytest.mark.parametrize("on_bad", ["sample", "image"])
def test_a_file_cut_short_leaves_out_what_the_policy_says(
    tmp_path: Path, cut: str, lost: list[int], header: int, on_bad: Any
) -> None:
    """`header` pictures have usable headers: a GIF that ends early has fewer frames, a video without a table none."""
    mixed = Mixed(tmp_path, cut)
    loader = mixed.loader(PACKING, errors=ErrorPolicy(on_bad=on_bad, max_rate=1))
    missing = {"1.gif": [3], "3.mp4": list(range(7, 13))}.get(cut, [])
    mixed.pictures = [pixels for number, pixels in enumerate(mixed.pictures) if number not in missing]
    found = mixed.numbers(list(loader))
    stats = loader.stats()
    assert stats["bad_images"] == 1
    assert stats["images"] + stats["left_out"] == header + 1 - len(lost)
    if on_bad == "sample":
        assert (found, stats["samples"], stats["bad_samples"]) == ([], 1, 1)
    else:
        assert found == [number for number in range(len(mixed.pictures)) if number not in lost]
        assert (stats["samples"], stats["bad_samples"], stats["left_out"]) == (2, 0, 0)
