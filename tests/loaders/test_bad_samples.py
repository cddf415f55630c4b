"""Bad input of samples of several images, loaded and streamed: each is counted, or an error with a remedy."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from patchnpack import ErrorPolicy, Frames, PackedImageLoader, Packing, RandomResizedCrop, Views, pack_stream
from patchnpack.loaders.imaging.readers.video.reader import has_av
from tests.images import encode_image, write_tar

Members = Sequence[tuple[str, bytes]]
Load = Callable[..., tuple[list[int], dict[str, Any]]]

BY_KEY = "key:(.+)_[0-9]+"
PACKING = Packing(seq_len=256)
needs_av = pytest.mark.skipif(not has_av(), reason="PyAV is not installed: pip install 'patchnpack[video]'")


def png(side: int = 32, shade: int = 90) -> bytes:
    return encode_image(Image.new("RGB", (side, side), (shade, shade, shade)), "PNG")


def clip(frames: int, kind: str = "mp4") -> bytes:
    """A video of 64x64 pixels with a key frame in four; with 0 frames, a file of sound alone."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", kind) as container:
        if not frames:
            sound = container.add_stream("aac", rate=16000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", layout="mono")
            silence.sample_rate = 16000
            for packet in (*sound.encode(silence), *sound.encode(None)):
                container.mux(packet)
            return _closed(container, file)
        stream = container.add_stream("libx264", rate=10, options={"g": "4"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            pixels = np.full((64, 64, 3), 9 * number % 255, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return file.getvalue()


def _closed(container: Any, file: io.BytesIO) -> bytes:
    container.close()
    return file.getvalue()


@pytest.fixture(params=["loader", "stream"])
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Load:
    """Loads members of a tar from a shard or as a stream: images of each sample in order, and the counts."""

    def run(members: Members, packing: Packing = PACKING, **options: Any) -> tuple[list[int], dict[str, Any]]:
        if request.param == "loader":
            shard = write_tar(tmp_path / "a.tar", members)
            source: Any = PackedImageLoader(shard, packing, batch_size=1, **options)
        else:
            samples: dict[str, dict[str, Any]] = {}
            for name, data in members:
                key, _, member = name.partition(".")
                samples.setdefault(key, {"__key__": key})[member] = data
            source = pack_stream(list(samples.values()), packing, batch_size=1, **options)
        counts = [len(sample.images) for batch in source for sample in batch.images_by_sample()]
        return counts, source.stats()

    return run


def test_an_empty_sample_is_counted(load: Load) -> None:
    members = [("a.1.png", png()), ("a.2.png", png()), ("b.txt", b"no image"), ("c.1.png", png())]
    counts, stats = load(members, sample="members")
    assert (counts, stats["without_image"], stats["samples"], stats["images"]) == ([2, 1], 1, 2, 3)


def test_a_group_that_returns_is_an_error_that_says_how_to_write_it(load: Load) -> None:
    members = [("a_1.png", png()), ("b_1.png", png()), ("a_2.png", png())]
    with pytest.raises(ValueError, match=r"'a'.* returns after .*(patchnpack shard FOLDER|sort them by key)"):
        load(members, sample=BY_KEY)


def test_a_sample_over_two_shards_names_the_command_that_mends_it(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"{i}.tar", [(f"a_{i}.png", png())]) for i in (1, 2)]
    with pytest.raises(ValueError, match=r"sample 'a' .*another shard.*patchnpack shard FOLDER -o SHARDS --sample"):
        PackedImageLoader(shards, PACKING, batch_size=1, sample=BY_KEY)


def test_a_regex_that_matches_nothing_is_an_error_with_an_example(load: Load) -> None:
    with pytest.raises(ValueError, match=r"'a_1'.*must match every key.*'key:\(\.\+\?\)"):
        load([("a_1.png", png()), ("a_2.png", png())], sample="key:(.+)-[0-9]+")


@pytest.mark.parametrize("oversize", ["shrink", "error"])
def test_a_thousand_frames_name_the_remedies(load: Load, oversize: Literal["shrink", "error"]) -> None:
    members = [(f"a.{i}.png", png(16)) for i in range(1000)]
    with pytest.raises(ValueError, match=r"1000 images, more than max_images 64.*frames=Frames\(64\).*max_images"):
        load(members, PACKING.replace(oversize=oversize), sample="members")


@pytest.mark.parametrize(
    ("change", "images", "skipped"),
    [({"oversize": "drop"}, [64, 1], 0), ({"oversize": "skip"}, [1], 1), ({"frames": Frames(64)}, [64, 1], 0)],
)
def test_each_remedy_for_a_thousand_frames_works(
    load: Load, change: dict[str, Any], images: list[int], skipped: int
) -> None:
    members = [*((f"a.{i}.png", png(16)) for i in range(1000)), ("b.1.png", png())]
    counts, stats = load(members, PACKING.replace(**change), sample="members")
    assert sorted(counts) == sorted(images)
    assert stats["skipped"]["oversize"] == skipped


def test_more_frames_or_views_than_images_in_a_pack_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="100 frames are 100 images per sample, more than max_images 64"):
        Packing(frames=Frames(100, short="repeat"))
    with pytest.raises(ValueError, match="70 views are 70 images per sample, more than max_images 64"):
        Packing(views=Views((70, RandomResizedCrop(max_tokens=4))))


def test_a_sample_of_one_image_is_a_single_image(load: Load) -> None:
    counts, stats = load([("a.png", png()), ("b.png", png())], sample="members")
    assert (counts, stats["images_per_sample"]) == ([1, 1], 1)


def test_a_gif_of_one_frame_is_kept_or_skipped_as_asked(load: Load) -> None:
    gif = encode_image(Image.new("P", (32, 32)), "GIF")
    members = [("a.gif", gif), ("b.1.png", png()), ("b.2.png", png())]
    assert load(members, PACKING.replace(frames=Frames(2)), sample="members")[0] == [1, 2]
    counts, stats = load(members, PACKING.replace(frames=Frames(2, short="skip")), sample="members")
    assert (counts, stats["skipped"]["frames"]) == ([2], 1)
    counts, _ = load(members, PACKING.replace(frames=Frames(2, short="repeat")), sample="members")
    assert counts == [2, 2]


def test_numbered_members_without_a_rule_name_it(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("a.10.png", png()), ("a.2.png", png())])
    with pytest.raises(ValueError, match=re.escape("give sample='members' to use members such as .2.png as images")):
        PackedImageLoader(shard, PACKING, batch_size=1)


@needs_av
def test_a_video_without_a_stream_is_a_bad_image(load: Load) -> None:
    counts, stats = load([("a.mp4", clip(0)), ("b.mp4", clip(5))], sample="members")
    assert (counts, stats["bad_samples"], stats["without_image"]) == ([5], 1, 0)
    assert "no video stream" in stats["bad"][0]["reason"]


@needs_av
@pytest.mark.parametrize("share", [0.03, 0.5])
def test_a_truncated_mp4_is_a_bad_image_that_says_so(load: Load, share: float) -> None:
    whole = clip(20)
    counts, stats = load([("a.mp4", whole[: int(share * len(whole))]), ("b.mp4", whole)], sample="members")
    assert (counts, stats["bad_samples"], stats["bad_images"]) == ([20], 1, 1)
    assert stats["bad"][0]["reason"].startswith("ValueError: the file is no video that libav can read, or is damaged")


@needs_av
@pytest.mark.parametrize("on_bad", ["sample", "image"])
def test_the_missing_frames_of_a_truncated_video_are_one_bad_image(
    load: Load, on_bad: Literal["sample", "image"]
) -> None:
    whole = clip(40, "matroska")
    members = [("a.mkv", whole[: int(0.6 * len(whole))]), ("b.mkv", whole)]
    packing = Packing(seq_len=1024)
    counts, stats = load(members, packing, sample="members", errors=ErrorPolicy(on_bad=on_bad))
    assert counts[-1] == 40
    assert (len(counts) == 2) == (on_bad == "image")
    assert stats["images"] + stats["bad_images"] + stats["left_out"] == 80
    assert len(stats["bad"]) == 1, "neighbouring frames with one reason are recorded once"
    assert "the frame is missing: the file holds" in stats["bad"][0]["reason"]
