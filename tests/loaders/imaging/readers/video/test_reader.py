"""Frames of videos have the numbers and the pixels of PyAV's own sequential decoding."""

from __future__ import annotations

import io
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.decode_pages import Wanted, decode_pages
from patchnpack.loaders.imaging.formats import VIDEO_EXTENSIONS, VIDEOS, find_reader, is_image, is_video
from patchnpack.loaders.imaging.header import Header, read_header
from patchnpack.loaders.imaging.pages import page_headers
from patchnpack.loaders.imaging.readers.video import reader
from tests.loaders.imaging.readers.video.videos import (
    HEIGHT,
    KINDS,
    WIDTH,
    encode,
    pictures,
    sequential,
    trimmed,
    video,
)

av: Any = pytest.importorskip("av")


def frames(data: bytes, wanted: Sequence[int], **options: Any) -> list[np.ndarray | BadImage]:
    """Whole frames at native size."""
    run = page_headers(data)[0]
    assert run.reason is None
    size = (run.header.width, run.header.height)
    return list(decode_pages(data, [Wanted(number, run.header, size) for number in wanted], **options))


def same(found: np.ndarray | BadImage, expected: np.ndarray) -> bool:
    return isinstance(found, np.ndarray) and np.array_equal(found, expected)


def choices(total: int) -> list[list[int]]:
    """Single frames, and sets of frames near to each other and far apart."""
    rng = np.random.default_rng(total)
    some = [sorted(rng.choice(total, size, replace=False).tolist()) for size in (2, 3, 5, 8) for _ in range(4)]
    return [[number] for number in range(total)] + some + [list(range(total))]


@pytest.mark.parametrize("kind", KINDS)
def test_frames_equal_sequential_decoding(kind: str) -> None:
    data = video(kind)
    expected = sequential(data)
    assert len(expected) == 40
    (run,) = page_headers(data)
    assert (run.page, run.frames, run.reason) == (0, 40, None)
    assert run.header == read_header(data) == Header(WIDTH, HEIGHT, 1, run.header.format, 40)
    assert run.header.format in VIDEOS
    for wanted in choices(40):
        for number, found in zip(wanted, frames(data, wanted), strict=True):
            assert same(found, expected[number]), (kind, wanted, number)


def test_the_videos_have_what_their_names_say() -> None:
    for kind, (container, _, _) in KINDS.items():
        with av.open(io.BytesIO(video(kind))) as opened:
            packets = [packet for packet in opened.demux(video=0) if packet.size]
        keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
        assert len(keys) >= 3, kind
        if container != "avi":
            assert len(packets) == 40, kind
            leading = [p for i in keys[1:] for p in packets[i + 1 : i + 4] if p.pts < packets[i].pts]
            assert bool(leading) == ("open" in kind or kind.startswith(("mpeg4", "mpeg2"))), kind


@pytest.mark.parametrize("kind", ["h264", "h264 open groups", "h265 open groups", "mpeg4", "vp9"])
def test_decoding_begins_at_a_key_frame(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    feed = reader._Frames._feed

    def counting(self: Any) -> None:
        fed.append(self._position)
        feed(self)

    data, expected = video(kind), sequential(video(kind))
    monkeypatch.setattr(reader._Frames, "_feed", counting)
    assert same(frames(data, [39])[0], expected[39])
    assert fed[0] >= 12
    fed.clear()
    assert all(same(found, expected[i]) for i, found in zip((0, 38), frames(data, [0, 38]), strict=True))
    assert len(fed) < 30
    for number in range(24, 40):  # also those before the third key frame that are stored behind it
        fed.clear()
        assert same(frames(data, [number])[0], expected[number])
        assert fed[0] > 0
        assert len(fed) < 30


def test_frames_of_a_variable_rate_are_numbered_not_timed() -> None:
    times = np.cumsum(np.random.default_rng(1).integers(5, 200, 40)).tolist()
    for kind in ("h264", "h264 matroska", "vp9"):
        container, codec, options = KINDS[kind]
        data = encode(container, codec, options, times=times)
        expected = sequential(data)
        assert len(expected) == page_headers(data)[0].frames == 40
        for wanted in choices(40)[::3]:
            found = frames(data, wanted)
            assert all(same(a, expected[number]) for number, a in zip(wanted, found, strict=True)), (kind, wanted)


def test_frames_that_an_edit_list_leaves_out_have_no_number() -> None:
    data = trimmed(video("h264"), 7)
    with av.open(io.BytesIO(data)) as opened:
        assert sum(packet.is_discard for packet in opened.demux(video=0)) == 7
    expected = sequential(data)
    assert len(expected) == page_headers(data)[0].frames == 33
    for wanted in choices(33):
        found = frames(data, wanted)
        assert all(same(each, expected[number]) for number, each in zip(wanted, found, strict=True)), wanted


def test_a_fragmented_mp4_is_read_and_misses_frames_when_it_is_cut() -> None:
    container, codec, options = KINDS["h264"]
    data = encode(container, codec, options, container_options={"movflags": "frag_keyframe+empty_moov"})
    expected = sequential(data)
    assert page_headers(data)[0].frames == len(expected) == 40
    assert all(same(each, expected[number]) for number, each in enumerate(frames(data, range(40))))
    cut = data[: 3 * len(data) // 4]
    total = page_headers(cut)[0].frames
    good = assert_as_far_as_the_file_goes(frames(cut, range(total)), cut, data)
    assert 5 < len(good) < total


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("kind", ["h264", "h264 matroska"])
def test_rotated_videos_are_upright(kind: str, rotation: int) -> None:
    container, codec, options = KINDS[kind]
    data = encode(container, codec, options, rotation=rotation)
    with av.open(io.BytesIO(data)) as opened:
        counterclockwise = next(opened.decode(video=0)).rotation
    assert counterclockwise % 360 == rotation
    expected = [np.rot90(frame, rotation // 90) for frame in sequential(data)]
    header = read_header(data)
    assert (header.width, header.height) == expected[0].shape[1::-1]
    for number, found in zip((0, 20, 39), frames(data, [0, 20, 39]), strict=True):
        assert same(found, expected[number])
    box = (3, 5, 20, 16)
    (cut,) = decode_pages(data, [Wanted(20, header, (20, 16), box)])
    assert same(cut, expected[20][5:21, 3:23])


def test_every_display_matrix_of_right_angles_is_an_orientation() -> None:
    data = bytearray(video("h264"))
    at = data.find(b"tkhd") + 4 + 40
    kinds = {1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1)}
    kinds |= {5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0)}
    for orientation, (a, b, c, d) in kinds.items():
        struct.pack_into(">9i", data, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        header = read_header(bytes(data))
        assert header.orientation == orientation
        assert (header.width, header.height) == ((HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT))
    struct.pack_into(">9i", data, at, 46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30)
    assert read_header(bytes(data)).orientation == 1


def test_frames_are_cut_and_resized_as_images_are() -> None:
    data, expected = video("h264"), sequential(video("h264"))
    header = read_header(data)
    wanted = [
        *(Wanted(7, header, (20, 12), box) for box in (None, (4, 2, 30, 20), (0, 0, 48, 32))),
        Wanted(7, header, (30, 20), (4, 2, 30, 20)),
        Wanted(7, header, (WIDTH, HEIGHT)),
        Wanted(3, header, (20, 12)),  # behind a later frame
        Wanted(7, header, (20, 12)),
    ]
    for mode in ("RGB", "L", "RGBA"):
        for item, found in zip(wanted, decode_pages(data, wanted, mode=mode), strict=True):
            alone = decode(expected[item.page], header._replace(format=7), item.size, item.box, mode=mode)
            assert same(found, alone), (mode, item)


def test_one_decode_makes_all_parts_of_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Mock(wraps=reader._pixels)
    monkeypatch.setattr(reader, "_pixels", made)
    frames(video("h264"), [5, 5, 9, 5, 9])
    assert made.call_count == 2


def test_the_first_frame_is_the_image_of_a_video() -> None:
    for kind in ("h264", "vp9", "mpeg4 avi"):
        data = video(kind)
        assert same(decode(data, read_header(data), (WIDTH, HEIGHT)), sequential(data)[0])
        assert is_video(data)
        assert not is_image(data)
        assert find_reader(data) is not None
    assert {"mp4", "webm", "mkv", "mov", "avi"} <= set(VIDEO_EXTENSIONS)


def test_deeper_video_has_the_8_bits_that_pyav_gives() -> None:
    data = encode("matroska", "ffv1", {}, frames=4, pix_fmt="yuv420p10le")
    assert same(frames(data, [2])[0], sequential(data)[2])


def test_alpha_is_kept_for_rgba() -> None:
    data = encode("matroska", "ffv1", {}, frames=2, pix_fmt="bgra")
    found = frames(data, [1], mode="RGBA")[0]
    assert same(found, np.dstack([pictures(2)[1], np.full((HEIGHT, WIDTH), 255, np.uint8)]))


def assert_as_far_as_the_file_goes(found: list[np.ndarray | BadImage], data: bytes, whole: bytes) -> list[int]:
    """Frames are as PyAV gives them up to its error, and those of the whole file behind. Returns the good ones."""
    part, all_of_it = sequential(data), sequential(whole)
    good = [number for number, each in enumerate(found) if isinstance(each, np.ndarray)]
    # PyAV also yields what there is of the frame that is cut, and the frame behind it.
    assert len(set(range(len(part))) - set(good)) <= 2
    for number in good:
        # The frames that the cut one refers to, or that refer to it, may be missing between those that are there.
        expected = part[number : number + 1] or all_of_it[number:]
        assert any(same(found[number], frame) for frame in expected), number
    return good


@pytest.mark.parametrize("kind", ["h264", "h264 open groups", "mpeg4"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.999])
def test_missing_frames_of_a_truncated_mp4_are_bad_and_counted(kind: str, part: float) -> None:
    container, codec, options = KINDS[kind]
    whole = encode(container, codec, options, container_options={"movflags": "faststart"})
    data = (
        whole[: int(part * len(whole))]
        if part * len(whole) > whole.find(b"mdat")
        else whole[: whole.find(b"mdat") + 1500]
    )
    assert page_headers(data)[0].frames == 40
    found = frames(data, range(40))
    good = assert_as_far_as_the_file_goes(found, data, whole)
    assert 0 < len(good) < 40
    bad = [str(each) for each in found if isinstance(each, BadImage)]
    assert all("missing" in text or "damaged" in text for text in bad)


@pytest.mark.parametrize("kind", ["h264 matroska", "vp9", "mpeg4 avi"])
def test_a_truncated_stream_is_known_to_lack_frames(kind: str) -> None:
    whole = video(kind)
    data = whole[: 2 * len(whole) // 3]
    assert page_headers(data)[0].frames == 40
    good = assert_as_far_as_the_file_goes(frames(data, range(40)), data, whole)
    assert 5 < len(good) < 40


def test_frames_behind_a_damaged_packet_are_bad_up_to_the_next_key_frame() -> None:
    data = bytearray(video("h264"))
    with av.open(io.BytesIO(bytes(data))) as opened:
        packets = [packet for packet in opened.demux(video=0) if packet.size]
    expected = sequential(bytes(data))
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    hurt = packets[keys[1] + 1]
    data[hurt.pos : hurt.pos + 4] = b"\xff\xff\xff\xff"  # the length of its unit
    found = frames(bytes(data), range(40))
    bad = {number for number, each in enumerate(found) if isinstance(each, BadImage)}
    assert bad
    assert bad <= set(range(keys[1], keys[2]))
    assert all(same(found[number], expected[number]) for number in set(range(40)) - bad)
    assert all("damaged" in str(found[number]) for number in bad)


def test_files_without_a_video_stream_are_bad() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    (run,) = page_headers(file.getvalue())
    assert run.frames == 1
    assert run.header.width == 0
    assert run.reason is not None
    assert "no video stream" in run.reason


def test_a_video_whose_codec_is_unknown_is_bad() -> None:
    for kind, tag in (("h264", b"avc1"), ("mpeg4 avi", b"FMP4")):
        data = video(kind)
        (run,) = page_headers(data.replace(tag, b"zzzz"))
        assert run.header.width == 0
        assert run.reason is not None


def test_a_hostile_number_of_frames_is_refused_before_libav_sees_it() -> None:
    data = bytearray(video("h264"))
    at = data.find(b"stsz") + 4
    struct.pack_into(">II", data, at + 4, 1, 2**31 - 1)
    (run,) = page_headers(bytes(data))
    assert run.reason is not None
    assert "2147483647 frames" in run.reason
    with pytest.raises(BadImage, match="2147483647 frames"):
        read_header(bytes(data))


def test_frames_beyond_the_limit_of_pixels_are_bad() -> None:
    data = bytearray(encode("avi", "rawvideo", {}, frames=1, pix_fmt="bgr24"))
    at = data.find(b"strf") + 8
    struct.pack_into("<ii", data, at + 4, 30_000, 30_000)
    struct.pack_into("<II", data, data.find(b"avih") + 8 + 32, 30_000, 30_000)
    (run,) = page_headers(bytes(data))
    assert run.header.width == 0
    assert run.reason is not None


def test_damaged_videos_give_bad_images_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for kind in ("h264", "vp9", "mpeg4 avi", "h264 matroska"):
        whole = video(kind)
        for _ in range(25):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 8):
                data[at] = rng.integers(256)
            data = data[: rng.integers(20, len(data))] if rng.random() < 0.3 else data
            (run,) = page_headers(bytes(data))
            assert run.frames <= max(1, len(data))
            if run.reason is None:
                wanted = [Wanted(n, run.header, (8, 8)) for n in range(0, min(run.frames, 40), 7)]
                assert all(isinstance(each, np.ndarray | BadImage) for each in decode_pages(bytes(data), wanted))


def test_without_pyav_a_video_is_bad_with_the_command_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video("h264")
    header = read_header(data)
    monkeypatch.setattr(reader, "has_av", lambda: False)
    (run,) = page_headers(data)
    assert "pip install 'patchnpack[video]'" in str(run.reason)
    (found,) = decode_pages(data, [Wanted(3, header, (8, 8))])
    assert "pip install 'patchnpack[video]'" in str(found)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not list a process's threads")
def test_decoding_starts_no_threads() -> None:
    data = video("h264")
    run = page_headers(data)[0]
    before = len(list(Path("/proc/self/task").iterdir()))
    for found in decode_pages(data, [Wanted(number, run.header, (8, 8)) for number in range(40)]):
        assert isinstance(found, np.ndarray)
        assert len(list(Path("/proc/self/task").iterdir())) <= before


def test_decoding_and_conversion_release_the_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    count, stop, progress = 0, threading.Event(), {"_feed": 0, "_pixels": 0}

    def spin() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            time.sleep(0)

    def watched(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def watching(*arguments: Any) -> Any:
            before = count
            result = call(*arguments)
            progress[name] += count - before
            return result

        monkeypatch.setattr(owner, name, watching)

    noise = [np.random.default_rng(i).integers(0, 255, (1080, 1920, 3)).astype(np.uint8) for i in range(3)]
    data = encode("matroska", "mjpeg", {}, frames=3, images=noise)
    watched(reader._Frames, "_feed")
    watched(reader, "_pixels")
    spinner = threading.Thread(target=spin)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)  # a thread that runs Python keeps the GIL
    try:
        spinner.start()
        found = frames(data, range(3))
    finally:
        stop.set()
        spinner.join()
        sys.setswitchinterval(interval)
    assert all(isinstance(each, np.ndarray) for each in found)
    assert min(progress.values()) > 20, progress
