"""Video in MP4, Matroska or AVI: size, frames and rotation from the container; pixels from libav in PyAV.

Frame n is the n-th that PyAV's own sequential decoding of the file yields, in the order of presentation. Decoding
begins at the last key frame that gives the same pixels as decoding from the start, and otherwise at the start.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from patchnpack.loaders.errors import MAX_PIXELS
from patchnpack.loaders.imaging.readers.boxed.boxes import boxes, sample_count
from patchnpack.loaders.imaging.readers.facts import Facts
from patchnpack.loaders.imaging.readers.video.key_frames import gives_a_frame, is_clean_key
from patchnpack.loaders.imaging.signatures import is_avi, is_matroska

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

MISSING = "videos are read with PyAV: pip install 'patchnpack[video]'"
_ATTACHED_PICTURE = 0x400  # a stream's disposition: the cover of a song
_BUFFER = 1 << 20  # bytes that libav asks for at a time
_MANY = 1 << 20  # samples that a table may list even of a file that holds fewer bytes, since it was cut
_PROJECTION = b"\x76\x70"  # the element of Matroska that may rotate the picture
_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
# EXIF orientation by the signs of a display matrix: where the stored x and y axes point to in the upright picture.
_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}


class Damaged(ValueError):
    """A frame that is missing or damaged."""


class _Packets(NamedTuple):
    """The packets of a video, in the order of decoding.

    Attributes:
        packets: of PyAV.
        shown: positions of the packets that give a frame, by time of presentation: frame n comes from the n-th.
        is_exact: whether their times tell the frames apart. Otherwise frames are counted from the start.
        missing: frames that the container lists or implies behind the end of the file.
    """

    packets: list[Packet[VideoStream]]
    shown: list[int]
    is_exact: bool
    missing: int


@functools.cache
def has_av() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def header(data: bytes) -> Facts:
    """What the container says. The size is the stored one; its rotation becomes the orientation.

    Frames are packets with a frame to show, which are counted without decoding. Of a file that ends early, they are
    those that the container lists, or else as many as its duration implies.

    Raises:
        ValueError: PyAV is not installed, the file has no video stream, or it is damaged.
    """
    with _opened(data) as (container, stream):
        found, size = _packets(data, container, stream), (stream.codec_context.width, stream.codec_context.height)
        if not found.shown:
            raise ValueError("the video has no frame")
        turn = _orientation(data, found, stream)
    return Facts(*size, len(found.shown) + found.missing, turn)


def decode(data: bytes) -> np.ndarray:
    """The stored pixels of the first frame; see `frames`."""
    return next(_checked(frames(data, (0,))))


def frames(data: bytes, wanted: Sequence[int]) -> Iterator[np.ndarray | Exception]:
    """Yield the stored pixels of the `wanted` frames, ascending: uint8 (height, width, 3), or 4 with alpha.

    libswscale converts them, by the colour space and range that the frame names, as PyAV's `to_ndarray` asks it to;
    more than 8 bits per channel become 8. A frame that is missing or damaged is an exception in its place.

    Raises:
        ValueError: as `header`.
    """
    with _opened(data) as (container, stream):
        found = _packets(data, container, stream)
        yield from _Frames(found, stream).pixels(wanted)


class _Frames:
    """Decodes the frames of a video in one forward pass, without those before the key frames that suffice."""

    def __init__(self, found: _Packets, stream: VideoStream) -> None:
        self._found, self._context = found, stream.codec_context
        self._is_exact = found.is_exact
        self._numbers: dict[int | None, int] = {}  # frame of each time of presentation
        self._keys = [0]  # positions of packets that decoding may begin at
        if found.is_exact:
            self._numbers = {found.packets[at].pts: number for number, at in enumerate(found.shown)}
            extra, codec = self._context.extradata, self._context.codec.canonical_name
            keys = (at for at, packet in enumerate(found.packets) if at and is_clean_key(packet, codec, extra))
            self._keys += keys
        self._restart(0)

    def _restart(self, at: int) -> None:
        """Go on at another packet."""
        self._context.flush_buffers()
        self._position, self._count = at, 0
        self._ready: deque[tuple[int, Any]] = deque()  # frames that libav has given and nobody has asked for
        self._damage: Exception | None = None
        self._damaged_at = len(self._found.packets)  # frames behind this packet are damaged, up to a key frame

    def pixels(self, wanted: Sequence[int]) -> Iterator[np.ndarray | Exception]:
        """Yield the pixels of the frames `wanted`, ascending."""
        for number in wanted:
            frame = self.frame(number)
            yield frame if isinstance(frame, Exception) else _pixels(frame)

    def frame(self, number: int) -> Any:
        """A frame of PyAV, not before the last one asked for; `Damaged` for one that is missing or damaged."""
        if number >= len(self._found.shown):
            return Damaged(f"the frame is missing: the file holds {len(self._found.shown)} frames")
        start = self._start(number)
        if start > min(self._position, self._damaged_at):
            self._restart(start)
        while True:
            while self._ready and self._ready[0][0] <= number:
                shown, frame = self._ready.popleft()
                if shown == number:
                    return frame
            if self._damage is not None:
                return Damaged(f"the frame is damaged, or needs a frame that is: {self._damage}")
            if self._ready or self._position > len(self._found.packets):
                break
            self._feed()
        if not self._is_exact:
            return Damaged(f"the frame is missing: decoding gives {self._count} frames")
        self._is_exact, self._keys = False, [0]  # libav has left out a frame: times do not number the others, either
        self._restart(0)
        return self.frame(number)

    def _start(self, number: int) -> int:
        """Position of the packet that decoding up to a frame may begin at: the last key frame that suffices."""
        if not self._is_exact:
            return 0
        packets, at = self._found.packets, self._found.shown[number]
        # A frame that precedes the key frame in presentation may need the frames before it: the group is open.
        keys = (key for key in reversed(self._keys) if key <= at and _time(packets[key]) <= _time(packets[at]))
        return next(keys, 0)

    def _feed(self) -> None:
        """Give libav the next packet, behind the last one the end; keep the frames that it gives."""
        import av

        packets, at = self._found.packets, self._position
        self._position += 1
        try:
            if at < len(packets) and packets[at].is_corrupt:
                raise Damaged("the file ends within it")
            self._keep(self._context.decode(packets[at] if at < len(packets) else None))
        except (av.FFmpegError, Damaged) as error:
            if self._is_exact:  # otherwise this packet's frame may belong before those that libav holds
                with suppress(av.FFmpegError):
                    self._keep(self._context.decode(None))
            if self._damage is None:
                self._damage, self._damaged_at = error, at

    def _keep(self, given: Sequence[Any]) -> None:
        for frame in given:
            number = self._numbers.get(frame.pts, -1) if self._is_exact else self._count
            self._count += 1
            if frame.is_corrupt and self._damage is None:
                at = self._found.shown[number] if self._is_exact and number >= 0 else self._position - 1
                self._damage, self._damaged_at = Damaged("its data are damaged"), at
            if number >= 0 and self._damage is None:
                self._ready.append((number, frame))


def _time(packet: Packet[VideoStream]) -> int:
    """When a packet is presented; only a first one that is not shown may lack a time."""
    return -(1 << 63) if packet.pts is None else packet.pts


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream. What libav raises inside becomes a ValueError."""
    if not has_av():
        raise ValueError(MISSING)
    import av

    kind = "matroska" if is_matroska(data) else "avi" if is_avi(data) else "mp4"
    if kind == "mp4" and (listed := sample_count(data)) > max(len(data), _MANY):
        raise ValueError(f"its tables list {listed} frames in {len(data)} bytes")  # libav would allocate them all
    limits = {"max_pixels": str(MAX_PIXELS), "threads": "1"}  # the loader has its own threads
    try:
        with av.open(
            io.BytesIO(data), "r", kind, options=limits, buffer_size=_BUFFER, metadata_errors="replace"
        ) as container:
            streams = container.streams.video
            stream = next((each for each in streams if not int(each.disposition) & _ATTACHED_PICTURE), None)
            if stream is None:
                raise ValueError("the file has no video stream")
            if stream.codec_context is None:
                raise ValueError("PyAV cannot decode its video stream")
            stream.codec_context.options, stream.codec_context.thread_count = limits, 1
            yield container, stream
    except av.FFmpegError as error:
        raise ValueError(f"the file is no video that libav can read, or is damaged: {error.strerror}") from error


def _packets(data: bytes, container: InputContainer, stream: VideoStream) -> _Packets:
    import av

    packets: list[Packet[VideoStream]] = []
    shown: list[int] = []
    codec, ends = stream.codec_context.codec.canonical_name, False
    try:
        for packet in container.demux(stream):
            if packet.size:
                if not packet.is_discard and gives_a_frame(packet, codec):
                    shown.append(len(packets))
                packets.append(packet)
    except av.FFmpegError:
        ends = True
    times = {packets[at].pts for at in shown}
    is_exact = (
        container.format.name != "avi"  # whose times are those of decoding
        and len(times) == len(shown) > 0
        and None not in times
        and packets[0].is_keyframe
        and (packets[0].is_discard or _time(packets[0]) == min(_time(packets[at]) for at in shown))
    )
    if is_exact:
        shown.sort(key=lambda at: _time(packets[at]))
    return _Packets(packets, shown, is_exact, _missing(data, container, stream, len(shown), ends))


def _missing(data: bytes, container: InputContainer, stream: VideoStream, found: int, ends: bool) -> int:
    """Frames behind the end of the file: of MP4 those that the table of samples lists, else estimated."""
    is_mp4 = not is_matroska(data) and not is_avi(data)
    if is_mp4 and any(entry.pos + entry.size > len(data) for entry in stream.index_entries):
        return max(sum(not entry.is_discard for entry in stream.index_entries) - found, 0)
    if not ends and (_end(data) <= len(data) or (is_mp4 and not _is_fragmented(data))):
        return 0
    rate, seconds = stream.average_rate or 0, (container.duration or 0) / 1_000_000
    return max(1, max(stream.frames, round(float(rate) * seconds)) - found)


def _end(data: bytes) -> int:
    """Where a file says that it ends; 0 if it does not say."""
    if is_avi(data):
        return 8 + int(struct.unpack_from("<I", data, 4)[0])
    if not is_matroska(data):
        last = list(boxes(data))[-1]
        size = int(struct.unpack_from(">I", data, last.begin - 8)[0])  # a longer one is written in 64 bits
        return last.begin - 8 + size
    at = data.find(_SEGMENT, 0, 4096) + len(_SEGMENT)
    if at < len(_SEGMENT) or at >= len(data) or not data[at]:
        return 0
    length = 9 - data[at].bit_length()
    size = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return 0 if size == (1 << 7 * length) - 1 else at + length + size  # all ones: unknown, of a live stream


def _is_fragmented(data: bytes) -> bool:
    return any(box.kind == b"moof" for box in boxes(data))


def _orientation(data: bytes, found: _Packets, stream: VideoStream) -> int:
    if is_avi(data):
        return 1
    if not is_matroska(data):
        return _mp4_orientation(data, stream.id)
    end = data.find(_CLUSTER)
    if _PROJECTION not in data[: end if end >= 0 else 4096]:
        return 1
    frame = _Frames(found, stream).frame(0)  # PyAV reports the rotation of frames, not of streams
    matrix = None if isinstance(frame, Exception) else frame.side_data.get("DISPLAYMATRIX")
    return 1 if matrix is None else orientation_of_matrix(np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2])


def _mp4_orientation(data: bytes, track: int) -> int:
    """The orientation by the matrices of the movie and of a track (ISO/IEC 14496-12, sections 8.2.2 and 8.3.2)."""
    for movie in boxes(data):
        if movie.kind != b"moov":
            continue
        inside = list(boxes(data, movie.begin, movie.end))
        whole = [_matrix(data, box.begin, 32, 44) for box in inside if box.kind == b"mvhd"]
        for trak in inside:
            for box in boxes(data, trak.begin, trak.end) if trak.kind == b"trak" else ():
                at = box.begin + (20 if data[box.begin] == 1 else 12)
                if box.kind == b"tkhd" and struct.unpack_from(">I", data, at)[0] == track:
                    own = _matrix(data, box.begin, 36, 48)
                    return orientation_of_matrix(own @ whole[0] if whole else own)
    return 1


def _matrix(data: bytes, begin: int, *places: int) -> np.ndarray:
    """The upper left of a matrix in a box, float64 (2, 2); its place depends on the version of the box."""
    a, b, _, c, d = struct.unpack_from(">5i", data, begin + 4 + places[data[begin] == 1])
    return np.array([[a, b], [c, d]], float)


def orientation_of_matrix(matrix: np.ndarray) -> int:
    """The EXIF orientation of a display matrix (2, 2), whose rows say where the stored axes point to.

    A matrix that turns by no right angle counts as none.

    >>> orientation_of_matrix(np.array([[0, 1], [-1, 0]]))
    6
    """
    signs = np.sign(np.where(abs(matrix) * 100 < abs(matrix).max(), 0, matrix)).astype(int)
    return _ORIENTATIONS.get(tuple(signs.ravel().tolist()), 1)


def _pixels(frame: Any) -> np.ndarray:
    has_alpha = any(component.is_alpha for component in frame.format.components)
    pixels: np.ndarray = frame.to_ndarray(format="rgba" if has_alpha else "rgb24", threads=1)
    return pixels


def _checked(found: Iterator[np.ndarray | Exception]) -> Iterator[np.ndarray]:
    for pixels in found:
        if isinstance(pixels, Exception):
            raise pixels
        yield pixels
