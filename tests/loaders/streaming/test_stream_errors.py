"""Bad images of a stream are counted and left out, up to the limits."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from patchnpack.loaders.assembly.stats import Stats
from patchnpack.loaders.error_policy import ErrorMonitor, ErrorPolicy
from patchnpack.loaders.errors import BadDataError, BadRow
from patchnpack.loaders.shards.tar import IMAGE
from patchnpack.loaders.streaming.outcomes import Outcome, StreamOutcomes, of_bad
from patchnpack.loaders.streaming.pack_stream import pack_stream
from patchnpack.packer import (
    FitTokens,
    Native,
    ScheduledResolution,
)
from tests.loaders.streaming.streams import PACKING, Draw, Encode, break_data, flat, rows_in, samples_of


def test_bad_images_are_logged_counted_and_left_out(
    make_drawn: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    drawn = make_drawn([20, 10])
    headers, bodies, text = drawn.keys[3:6], [drawn.keys[0], drawn.keys[25]], drawn.keys[12]
    break_data(drawn, headers, bodies)
    drawn.rewrite({f"{text}.txt": b"\xff"})
    samples = list(samples_of(drawn.shards))
    del samples[17][next(name for name in ("jpg", "png") if name in samples[17])]
    with caplog.at_level(logging.INFO, "patchnpack"):
        stream = pack_stream(samples, PACKING, batch_size=2, extras=["txt"])
        found = sorted(key for batch in stream for keys in batch.keys for key in keys)
    bad = {*headers, *bodies, text, drawn.keys[17]}
    assert found == [key for key in drawn.keys if key not in bad]
    stats = stream.stats()
    assert (stats["images"], stats["bad_images"], stats["without_image"]) == (23, 6, 1)
    stages = [(row["row"], row["stage"]) for row in stats["bad"]]
    expected = {0: "decode", 3: "header", 4: "header", 5: "header", 12: "extras", 25: "decode"}
    assert stages == list(expected.items())
    assert [row["shard"] for row in stats["bad"]] == [drawn.shards[row >= 20] for row, _ in stages]
    assert json.loads(json.dumps(stats)) == stats
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 7
    (without,) = (line for line in lines if not line.startswith("bad image"))
    lines.remove(without)
    assert without == (
        f"sample {drawn.keys[17]!r} in {drawn.shards[0]} has no image (its members are cls, txt, and image="
        f"{IMAGE!r}) and is left out; stats()['without_image'] counts such samples"
    )
    assert lines[1] == (
        f"bad image 's0i003' in {drawn.shards[0]} (header): it begins with b'no image'; only JPEG, PNG, WebP, GIF, "
        "BMP, TIFF, AVIF, JPEG XL, JPEG 2000, HEIC, .npy, .npz, DICOM, MP4, WebM and AVI are read"
    )
    packs = stats["packs"]
    assert caplog.messages[-1] == (
        f"the stream ended: 23 images in {packs} packs, 6 bad; left out: 0 oversize, 0 undersize, 0 at the end, 1 "
        "without image"
    )


def test_unreadable_pil_image_is_bad(draw_image: Draw, encode_image: Encode) -> None:
    data = encode_image(draw_image(40, 40), "PNG")
    pairs = [
        (Image.open(io.BytesIO(data[:-400])), 0),
        (draw_image(8, 8).convert("F"), 1),
        (flat(0, 5), 2),
        (draw_image(8, 8), 3),
    ]
    stream = pack_stream(pairs, PACKING, batch_size=1)
    assert rows_in(stream) == [3]
    bad = stream.stats()["bad"]
    assert [(row["row"], row["stage"]) for row in bad] == [(0, "decode"), (1, "header"), (2, "header")]
    assert "PIL mode 'F'" in bad[1]["reason"]
    assert "0x5 pixels" in bad[2]["reason"]


def test_image_smaller_than_a_patch_is_padded_left_out_or_refused() -> None:
    sizes = [(4, 7), (16, 16), (4, 16), (8, 8), (7, 7)]
    scheduled = ScheduledResolution(((0, FitTokens(9)), (100, Native(edge="crop"))))
    for resolution, left in ((Native(), [1, 2, 3]), (Native(edge="crop"), [1, 3]), (scheduled, [1, 3])):
        for lookahead in (1, 2, 256):
            packing = PACKING.replace(resolution=resolution, lookahead=lookahead)
            pairs = [(flat(*size), 0) for size in sizes]
            stream = pack_stream(pairs, packing, batch_size=1)
            assert sorted(rows_in(stream)) == [0, 1, 2, 3, 4]
            assert (stream.stats()["undersize"], stream.stats()["bad_images"]) == (5 - len(left), 0)
            stream = pack_stream(pairs, packing.replace(undersize="skip"), batch_size=1)
            assert sorted(rows_in(stream)) == left
            assert stream.stats()["skipped"]["undersize"] == stream.stats()["undersize"] == 5 - len(left)
            with pytest.raises(ValueError, match="row 0 of 4x7 pixels is smaller than a patch of 8x8") as caught:
                list(pack_stream(pairs, packing.replace(undersize="error"), batch_size=1))
            assert "Rows number the samples in order of arrival" in str(caught.value)
    few = PACKING.replace(lookahead=5, undersize="skip")
    assert list(pack_stream([(flat(4, 4), 0)] * 20, few, batch_size=1)) == []


def test_errors_about_samples_name_the_key_and_the_shard() -> None:
    samples = [
        {"__key__": f"clip{n}", "__url__": "s3://user:secret@b/s.tar", "jpg": [flat(16, 16)] * (1 + n)}
        for n in range(6)
    ]
    for lookahead in (1, 256):
        packing = PACKING.replace(max_images=3, lookahead=lookahead)
        with pytest.raises(
            ValueError, match=r"sample of row 3 has 4 images.*key 'clip3' in shard .*b/s.tar'"
        ) as caught:
            list(pack_stream(samples, packing, batch_size=1, sample="members"))
        assert "secret" not in str(caught.value)


def test_stream_of_only_bad_images_ends_without_a_batch() -> None:
    stream = pack_stream([(b"nothing", 0)] * 50, PACKING, batch_size=2)
    assert list(stream) == []
    assert stream.stats()["bad_images"] == 50
    assert list(pack_stream([], PACKING, batch_size=2, label="cls", extras=["txt"])) == []


class RecordingMonitor(ErrorMonitor):
    """A monitor that records its calls in order: the rows of bad images, and good images."""

    def __init__(self) -> None:
        super().__init__(ErrorPolicy())
        self.quarantined: list[int] = []
        self.judged: list[int | str] = []

    def quarantine(self, bad: BadRow, epoch: int) -> None:
        self.quarantined.append(bad.row)

    def record(self, images: int, bad: list[tuple[int, BadRow]], lost: Sequence[int] | None = None) -> None:
        assert images == 1
        self.judged.append(bad[0][1].row if bad else "good")


@given(order=st.permutations(range(12)), bad=st.sets(st.integers(0, 11)), left_out=st.sets(st.integers(0, 11)))
def test_outcomes_are_judged_in_order_of_arrival(order: list[int], bad: set[int], left_out: set[int]) -> None:
    stats, monitor = Stats(), RecordingMonitor()
    outcomes = StreamOutcomes(stats, monitor)
    for i, row in enumerate(order):
        record = BadRow(row=row, key="", shard="", offset=-1, stage="", reason="")
        outcomes.record(row, of_bad([record]) if row in bad else Outcome(int(row not in left_out)))
        known = set(order[: i + 1])
        reached = next(row for row in range(13) if row not in known)
        bad_rows = [r for r in range(reached) if r in bad]
        assert monitor.quarantined == [row.row for row in stats.bad] == bad_rows
        judged = [r if r in bad else "good" for r in range(reached) if r in bad or r not in left_out]
        assert monitor.judged == judged


def test_policy_stops_a_stream_at_its_limits_and_quarantines(tmp_path: Any, encode_image: Encode) -> None:
    good = encode_image(Image.new("RGB", (8, 8)), "PNG")
    samples = [{"__key__": f"k{i}", "png": b"no image" if i % 3 == 0 else good} for i in range(60)]
    path = tmp_path / "bad.jsonl"
    stream = pack_stream(samples, PACKING, batch_size=1, errors=ErrorPolicy(quarantine=path))
    assert sum(batch.num_images for batch in stream) == 40
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == [f"k{i}" for i in range(0, 60, 3)]
    for errors, message in (
        (ErrorPolicy(on_error="raise"), r"bad image 'k0' in the stream \(header\): it begins with b'no image'"),
        (ErrorPolicy(max_consecutive=1), "1 images in a row were bad"),
    ):
        with pytest.raises(BadDataError, match=message):
            list(pack_stream(samples, PACKING, batch_size=1, errors=errors))
    for errors in (ErrorPolicy(max_pixels=63, max_consecutive=40), ErrorPolicy(max_bytes=10, max_consecutive=40)):
        stream = pack_stream(samples, PACKING, batch_size=1, errors=errors)
        with pytest.raises(BadDataError, match="40 images in a row were bad"):
            list(stream)
        assert "64 pixels in" in stream.stats()["bad"][1]["reason"]
