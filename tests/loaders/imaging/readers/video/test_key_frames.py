"""Packets that show a frame, and key frames at which decoding may begin."""

from __future__ import annotations

from typing import Any

import pytest

from patchnpack.loaders.imaging.readers.video.key_frames import gives_a_frame, is_clean_key

av: Any = pytest.importorskip("av")


@pytest.mark.parametrize(("codec", "shown", "hidden"), [("vp8", b"\x10", b"\x00"), ("vp9", b"\x82", b"\x80")])
def test_packets_that_show_nothing_are_no_frames(codec: str, shown: bytes, hidden: bytes) -> None:
    assert gives_a_frame(av.Packet(shown + b"\0\0"), codec)
    assert not gives_a_frame(av.Packet(hidden + b"\0\0"), codec)
    if codec == "vp9":
        assert gives_a_frame(av.Packet(b"\x88\0\0"), codec)  # shows a frame that was decoded before
        assert gives_a_frame(av.Packet(hidden + b"\0\xc1"), codec)  # several frames
        assert gives_a_frame(av.Packet(b"\xb1\0"), codec)  # profile 3 has a bit more


IDR, SLICE, SEI = 0x65, 0x41, 0x06  # first bytes of H.264 units
RECOVERY = bytes([6, 1])  # a message of 1 byte; one with 0 frames until an exact recovery begins with the bits 11
TWO_MESSAGES = bytes([255, 0, 1, 0, *RECOVERY, 0xC0])  # of kind 255 and of kind 6


def packet(*units: bytes, lengths: int = 0, key: bool = True, pts: int | None = 0) -> Any:
    """A packet of H.264 units behind start codes, or behind their lengths in so many bytes."""
    data = b"".join((len(unit).to_bytes(lengths, "big") if lengths else b"\0\0\1") + unit for unit in units)
    made = av.Packet(data)
    made.is_keyframe, made.pts = key, pts
    return made


@pytest.mark.parametrize("lengths", [0, 1, 2, 4])
@pytest.mark.parametrize(
    ("units", "clean"),
    [
        ([bytes([IDR, 1])], True),
        ([bytes([9, 1]), bytes([SEI, *RECOVERY, 0xC0]), bytes([SLICE, 1])], True),
        ([bytes([SEI, *TWO_MESSAGES]), bytes([SLICE, 1])], True),
        ([bytes([SEI, *RECOVERY, 0x40]), bytes([SLICE, 1])], False),  # recovers after further frames
        ([bytes([SEI, *RECOVERY, 0x80]), bytes([SLICE, 1])], False),  # approximately
        ([bytes([SLICE, 1]), bytes([IDR, 1])], False),
        ([bytes([SEI, 5, 1, 0xC0])], False),
        ([], False),
    ],
)
def test_an_h264_key_frame_is_clean_with_an_idr_slice_or_an_exact_recovery_point(
    units: list[bytes], clean: bool, lengths: int
) -> None:
    extradata = bytes([1, 0, 0, 0, lengths - 1]) if lengths else None
    assert is_clean_key(packet(*units, lengths=lengths), "h264", extradata) is clean


def test_other_codecs_are_clean_at_marked_packets_that_have_a_time() -> None:
    assert is_clean_key(packet(b"x"), "vp9", None)
    assert not is_clean_key(packet(b"x", key=False), "vp9", None)
    assert not is_clean_key(packet(b"x", pts=None), "vp9", None)
    assert not is_clean_key(packet(b"x"), "a codec that is not known", None)
