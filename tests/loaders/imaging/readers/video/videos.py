"""Videos to test with, encoded by PyAV, and its own sequential decoding of them."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WIDTH, HEIGHT = 64, 48
# Container, codec and its options, with groups of 12 frames and frames that refer to later ones where the codec can.
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("mp4", "libx264", {"bf": "3", "x264-params": "keyint=12:scenecut=0:log-level=none"}),
    "h264 open groups": (
        "mp4",
        "libx264",
        {"bf": "3", "x264-params": "keyint=12:scenecut=0:open-gop=1:bframes=3:b-adapt=0"},
    ),
    "h264 refreshed bit by bit": ("mp4", "libx264", {"x264-params": "keyint=12:scenecut=0:intra-refresh=1"}),
    "h264 matroska": ("matroska", "libx264", {"bf": "3", "x264-params": "keyint=12:scenecut=0"}),
    "h264 avi": ("avi", "libx264", {"bf": "3", "x264-params": "keyint=12:scenecut=0"}),
    "h265 open groups": ("mp4", "libx265", {"x265-params": "keyint=12:scenecut=0:open-gop=1:log-level=none"}),
    "mpeg4": ("mp4", "mpeg4", {"bf": "2", "g": "12"}),
    "mpeg4 avi": ("avi", "mpeg4", {"bf": "2", "g": "12"}),
    "mpeg2 matroska": ("matroska", "mpeg2video", {"bf": "2", "g": "12"}),
    "vp8": ("webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "12"}),
    "vp9": ("webm", "libvpx-vp9", {"lag-in-frames": "16", "g": "12", "cpu-used": "8"}),
    "mjpeg mov": ("mov", "mjpeg", {}),
}


@functools.cache
def pictures(frames: int) -> np.ndarray:
    """Frames of a texture that moves, uint8 (frames, HEIGHT, WIDTH, 3), each unlike the others."""
    texture = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    texture = (texture // 4 + np.roll(texture, 1, 0) // 4 + np.roll(texture, 1, 1) // 2).astype(np.uint8)
    return np.stack([np.roll(texture, (3 * i, 2 * i), (1, 0)) // (1 + i % 3) for i in range(frames)])


def encode(
    container: str,
    codec: str,
    options: dict[str, str],
    *,
    frames: int = 40,
    times: Sequence[int] | None = None,
    rotation: int = 0,
    pix_fmt: str = "",
    images: Sequence[np.ndarray] | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """Encode a video of moving pictures, or of `images`. Skips the test where PyAV lacks the codec.

    `times` are milliseconds of presentation, by default 40 apart; `rotation` is in degrees, counterclockwise.
    """
    av: Any = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video"
        with av.open(str(file), "w", format=container, options=container_options or {}) as out:
            stream = out.add_stream(codec, rate=25, options=options)
            shown: Sequence[np.ndarray] = list(pictures(frames)) if images is None else images
            stream.height, stream.width = shown[0].shape[:2]
            stream.pix_fmt = pix_fmt or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
            stream.codec_context.thread_count = 1
            if rotation:
                stream.set_display_rotation(rotation)
            unit = Fraction(1, 25) if times is None else Fraction(1, 1000)
            stream.codec_context.time_base = stream.time_base = unit
            for number, picture in enumerate(shown):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                frame.pts, frame.time_base = number if times is None else times[number], unit
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return file.read_bytes()


def trimmed(data: bytes, frames: int) -> bytes:
    """An MP4 of the same packets whose edit list leaves out the first frames."""
    av: Any = pytest.importorskip("av")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video"
        options = {"avoid_negative_ts": "disabled"}
        with av.open(io.BytesIO(data)) as source, av.open(str(file), "w", format="mp4", options=options) as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    shift = round(frames / 25 / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                    out.mux(packet)
        return file.read_bytes()


@functools.cache
def video(kind: str) -> bytes:
    """A video of 40 frames of one of the kinds."""
    return encode(*KINDS[kind])


def sequential(data: bytes) -> list[np.ndarray]:
    """The frames that PyAV's sequential decoding yields, uint8 (height, width, 3), up to the first error."""
    av: Any = pytest.importorskip("av")
    found: list[np.ndarray] = []
    with av.open(io.BytesIO(data)) as container, suppress(av.FFmpegError):
        found.extend(frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
    return found
