"""Packets of video: which give a frame to show, and at which key frames decoding may begin without changing a pixel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

# Codecs whose key frames reset the decoder, so that each frame presented after one has the same pixels wherever
# decoding began. H.264 is not among them: files also mark frames from which a picture is only built up bit by bit.
_CLEAN = {
    *("mpeg1video", "mpeg2video", "mpeg4", "hevc", "vp8", "vp9", "av1"),
    *("mjpeg", "prores", "dnxhd", "ffv1", "rawvideo", "png"),
}
_IDR, _SLICES, _SEI = 5, {1, 2}, 6  # H.264 (ITU-T H.264, table 7-1)
_RECOVERY_POINT = 6  # kind of an H.264 SEI message (annex D)


def gives_a_frame(packet: Packet[VideoStream], codec: str) -> bool:
    """Whether a packet shows a frame: VP8 and VP9 have packets that only later ones refer to."""
    if codec == "vp8":
        return bool(memoryview(packet)[0] & 0x10)  # RFC 6386, section 9.1
    if codec == "vp9":
        return _vp9_shows(memoryview(packet))
    return True


def is_clean_key(packet: Packet[VideoStream], codec: str, extradata: bytes | None) -> bool:
    """Whether frames presented behind this packet are the same pixels if decoding begins at it."""
    if not packet.is_keyframe or packet.pts is None or packet.is_corrupt:
        return False
    if codec != "h264":
        return codec in _CLEAN
    for kind, unit in _units(bytes(packet), extradata):
        if kind == _IDR:
            return True
        if kind in _SLICES:
            return False
        if kind == _SEI and _recovers_at_once(unit):
            return True
    return False


def _vp9_shows(data: memoryview) -> bool:
    """Whether a VP9 packet shows a frame: one of several frames does, a single one says so (section 6.2)."""
    if data[-1] & 0xE0 == 0xC0:  # the index of a superframe
        return True
    bits = data[0] << 8 | (data[1] if len(data) > 1 else 0)
    at = 4 + (bits >> 12 & 3 == 3)  # behind marker and profile, of which the last has a reserved bit
    shows_existing, _, shows = (bits >> (15 - at - i) & 1 for i in range(3))
    return bool(shows_existing or shows)


def _units(data: bytes, extradata: bytes | None) -> Iterator[tuple[int, bytes]]:
    """Kind and payload of the NAL units of an H.264 packet, behind lengths or start codes."""
    if extradata and extradata[0] == 1 and len(extradata) > 4:
        size, at = (extradata[4] & 3) + 1, 0
        while at + size < len(data):
            length = int.from_bytes(data[at : at + size], "big")
            yield data[at + size] & 31, data[at + size + 1 : at + size + length]
            at += size + length
        return
    at = data.find(b"\x00\x00\x01")
    while 0 <= at < len(data) - 3:
        end = data.find(b"\x00\x00\x01", at + 3)
        yield data[at + 3] & 31, data[at + 4 : end if end >= 0 else len(data)]
        at = end


def _recovers_at_once(unit: bytes) -> bool:
    """Whether an SEI unit says that all frames from this one on are exact (sections D.1.8 and D.2.8)."""
    at = 0
    while at + 2 < len(unit):
        kind, at = _number(unit, at)
        size, at = _number(unit, at)
        if kind == _RECOVERY_POINT and at < len(unit):
            return unit[at] & 0xC0 == 0xC0  # no frames until recovery, in one bit, and an exact match
        at += size
    return False


def _number(unit: bytes, at: int) -> tuple[int, int]:
    """A number in bytes of 255 and a last one, and where it ends."""
    value = 0
    while at < len(unit) and unit[at] == 255:
        value, at = value + 255, at + 1
    return value + (unit[at] if at < len(unit) else 0), at + 1
