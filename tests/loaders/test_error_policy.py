"""Bad images are skipped, recorded and limited; other errors are raised."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchnpack.loaders import BadDataError, ErrorPolicy, PackedImageLoader, scan
from patchnpack.loaders.error_policy import ErrorMonitor
from patchnpack.loaders.errors import BadRow
from patchnpack.packer import Packing

PACKING = Packing(seq_len=64, patch_size=8)


def bad(row: int = 0) -> BadRow:
    return BadRow(row=row, key=f"k{row}", shard="a.tar", offset=512, stage="decode", reason="it is broken")


def cut(drawn: Any, keys: list[str], by: int = 60) -> None:
    """Cut off the last bytes of these JPEGs."""
    index = scan(drawn.shards)
    change = {}
    for i, key in enumerate(index.keys):
        if key in keys:
            place = int(index.shard_of(i)), int(index.offset[i]), int(index.nbytes[i])
            change[f"{key}.jpg"] = index.reader().read(*place)[:-by]
    drawn.rewrite(change)


def keys_of(loader: PackedImageLoader) -> list[str]:
    return [key for batch in loader for keys in batch.keys for key in keys]


# The policy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "warn"}, "on_error is 'warn'; it must be one of 'skip', 'raise'"),
        ({"on_bad": "page"}, "on_bad is 'page'; it must be one of 'sample', 'image'"),
        ({"truncated": "use"}, "truncated is 'use'; it must be one of 'skip', 'keep'"),
        ({"max_rate": -0.1}, "max_rate is -0.1; it must be from 0 to 1"),
        ({"max_consecutive": 0}, "max_consecutive is 0; it must be at least 1"),
        ({"max_pixels": 0}, "max_pixels is 0; it must be at least 1"),
        (
            {"max_pixels": 10**12},
            "max_pixels is 1000000000000; it must be at most 178956970, the most that PIL decodes",
        ),
        ({"max_bytes": 0}, "max_bytes is 0; it must be at least 1"),
        ({"stall_s": 0}, "stall_s is 0; it must be above 0 seconds"),
        ({"quarantine": "/no/such/folder/bad.jsonl"}, "whose folder does not exist; create it first"),
    ],
)
def test_policy_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ErrorPolicy(**options)


# The monitor


def judged(policy: ErrorPolicy, flags: list[bool], batch: int = 7) -> int:
    """Return how many images are judged before the policy stops the run; all of them if it does not stop."""
    monitor = ErrorMonitor(policy)
    for begin in range(0, len(flags), batch):
        part = flags[begin : begin + batch]
        try:
            monitor.record(len(part), [(i, bad(begin + i)) for i, flag in enumerate(part) if flag])
        except BadDataError:
            return begin
    return len(flags)


def test_max_rate_is_checked_from_1000_images_on() -> None:
    one_in_fifty = [i % 50 == 3 for i in range(3000)]
    assert judged(ErrorPolicy(), one_in_fifty, batch=1) == 999
    assert judged(ErrorPolicy(max_rate=0.021), one_in_fifty) == 3000
    assert judged(ErrorPolicy(), one_in_fifty[:999], batch=1) == 999


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_max_rate_covers_the_last_10000_images(batch: int) -> None:
    flags = [False] * 30_000
    for i in range(100):  # exactly 1 % of any 10,000
        flags[99 + 100 * i] = flags[20_000 + 38 * i] = True
    assert judged(ErrorPolicy(max_consecutive=10**6), flags, batch) == 30_000
    flags[25_000] = True
    assert 23_000 < judged(ErrorPolicy(max_consecutive=10**6), flags, batch) <= 25_000


@pytest.mark.parametrize("batch", [1, 4, 7, 100])
def test_consecutive_bad_images_stop_the_run_exactly_at_the_limit(batch: int) -> None:
    policy = ErrorPolicy(max_rate=1, max_consecutive=10)
    nine, ten = [False] * 5 + [True] * 9, [False] * 5 + [True] * 10
    assert judged(policy, [*nine, False] * 20, batch) == 20 * 15
    assert judged(policy, [*nine, False, *ten], batch) == 29 // batch * batch


def test_images_left_out_between_bad_ones_neither_count_nor_break_a_row() -> None:
    """Clips of 8 frames, each with a bad first frame that takes the others along."""
    policy = ErrorPolicy(max_rate=1, max_consecutive=5)

    def record(monitor: ErrorMonitor, clips: int) -> None:
        for clip in range(clips):
            monitor.record(8, [(0, bad(8 * clip))], list(range(8)))

    monitor = ErrorMonitor(policy)
    record(monitor, 4)
    monitor.record(8, [], [])
    record(monitor, 4)
    with pytest.raises(BadDataError, match="5 images in a row were bad"):
        record(monitor, 1)
    broken = ErrorMonitor(policy)
    for _ in range(20):  # a usable frame between
        broken.record(8, [(3, bad())], [3, 4, 5, 6])


def test_rows_left_out_with_bad_headers_count_before_the_start() -> None:
    monitor = ErrorMonitor(ErrorPolicy(max_rate=0.01))
    monitor.before_start(10, 1000, bad())
    with pytest.raises(BadDataError, match="11 of 1000 images have bad headers, or share their sample with"):
        monitor.before_start(11, 1000, bad(), "have bad headers, or share their sample with such an image")


def test_messages_name_the_count_the_limit_and_an_image() -> None:
    with pytest.raises(BadDataError, match=r"3 images in a row .* max_consecutive sets; the last is 'k2' in a.tar"):
        ErrorMonitor(ErrorPolicy(max_consecutive=3)).record(3, [(i, bad(i)) for i in range(3)])
    with pytest.raises(BadDataError, match=r"30 of the last 1000 images were bad, more than max_rate 0.01 allows"):
        ErrorMonitor(ErrorPolicy()).record(1000, [(i * 30, bad(i)) for i in range(30)])
    with pytest.raises(BadDataError, match=r"bad image 'k7' in a.tar at byte 512 \(decode\): it is broken; remove it"):
        ErrorMonitor(ErrorPolicy(on_error="raise")).record(10, [(4, bad(7))])


def test_quarantine_file_has_one_line_per_bad_image_and_epoch(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    for epoch in range(2):
        ErrorMonitor(ErrorPolicy(quarantine=path)).quarantine(bad(3), epoch)
    said = {"row": 3, "key": "k3", "shard": "a.tar", "offset": 512, "page": 0, "stage": "decode"}
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"epoch": e, **said, "reason": "it is broken"} for e in range(2)
    ]


def test_threads_and_ranks_append_whole_lines_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"

    def write(first: int) -> None:
        monitor = ErrorMonitor(ErrorPolicy(quarantine=path))
        for row in range(first, first + 200):
            monitor.quarantine(bad(row), 0)

    threads = [threading.Thread(target=write, args=(200 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(json.loads(line)["row"] for line in path.read_text().splitlines()) == list(range(1600))


# The loader


def test_every_row_is_yielded_quarantined_or_skipped(make_drawn: Callable[..., Any], tmp_path: Path) -> None:
    drawn = make_drawn((30, 30), kinds=("jpg",))
    broken, headless = drawn.keys[4::7], drawn.keys[7::20]
    assert not set(broken) & set(headless)
    cut(drawn, broken)
    drawn.rewrite({f"{key}.jpg": b"no image" for key in headless})
    path = tmp_path / "bad.jsonl"
    index = scan(drawn.shards)
    keys: list[str] = []
    skipped = 0
    for rank in range(3):
        loader = PackedImageLoader(
            index,
            PACKING,
            batch_size=2,
            shuffle=True,
            errors=ErrorPolicy(quarantine=path),
            where=lambda index: (index.width == 0) | (index.width > 10),  # a bad header gives no width
            rank=rank,
            world_size=3,
        )
        for _ in range(2):
            keys += keys_of(loader)
        skipped += loader.stats()["skipped"]["where"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({(line["epoch"], line["key"]) for line in lines}) == len(lines)
    assert len(keys) + len(lines) + skipped == 2 * len(index)
    assert skipped > 0
    wide = {key for key, width in zip(index.keys, index.width.tolist(), strict=True) if width > 10}
    for stage, bad_keys in (("header", set(headless)), ("decode", set(broken) & wide)):
        found = {(line["epoch"], line["key"]) for line in lines if line["stage"] == stage}
        assert found == {(epoch, key) for epoch in range(2) for key in bad_keys} != set()
    for line in lines:
        row = line["row"]
        assert (line["key"], line["offset"]) == (index.keys[row], index.offset[row])
        assert line["shard"] == index.shards[int(index.shard_of(row))]


def test_clean_shards_give_no_quarantine_file(drawn: Any, tmp_path: Path) -> None:
    loader = PackedImageLoader(
        drawn.shards, PACKING, batch_size=2, errors=ErrorPolicy(quarantine=tmp_path / "bad.jsonl")
    )
    assert len(keys_of(loader)) == 60
    assert not (tmp_path / "bad.jsonl").exists()


def test_raise_stops_at_the_first_bad_image(make_drawn: Callable[..., Any]) -> None:
    drawn = make_drawn((20,), kinds=("jpg",))
    cut(drawn, drawn.keys[7:8])
    policy = ErrorPolicy(on_error="raise")
    loader = PackedImageLoader(drawn.shards, PACKING, batch_size=1, errors=policy)
    with pytest.raises(BadDataError, match=r"bad image 's0i007' in .*: ValueError: Premature end of JPEG file"):
        keys_of(loader)
    drawn.rewrite({f"{drawn.keys[3]}.jpg": b"no image"})
    with pytest.raises(BadDataError, match=r"bad image 's0i003' in .* \(header\): it begins with b'no image'"):
        PackedImageLoader(drawn.shards, PACKING, batch_size=1, errors=policy)


def test_too_many_bad_headers_are_an_error_before_training(tmp_path: Path, encode_image: Any, write_tar: Any) -> None:
    image = encode_image(Image.new("RGB", (16, 16)))
    members = [(f"{i:04}.jpg", b"no image" if i % 80 == 5 else image) for i in range(1200)]
    shard = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(BadDataError, match=r"15 of 1200 images have bad headers, more than max_rate 0.01"):
        PackedImageLoader(shard, PACKING, batch_size=1)
    loader = PackedImageLoader(shard, PACKING, batch_size=1, errors=ErrorPolicy(max_rate=0.02))
    assert len(keys_of(loader)) == 1185


def test_images_beyond_the_limits_are_bad_and_never_read(
    make_drawn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = make_drawn((30,), kinds=("jpg",))
    index = scan(drawn.shards)
    pixels = index.width.astype(int) * index.height
    for policy, over in (
        (ErrorPolicy(max_pixels=1000), pixels > 1000),
        (ErrorPolicy(max_bytes=1200), index.nbytes > 1200),
    ):
        assert 0 < over.sum() < 30
        read: list[int] = []
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, n, at, read=read, pread=pread: read.append(at) or pread(fd, n, at))
        loader = PackedImageLoader(index, PACKING, batch_size=1, errors=policy)
        assert sorted(keys_of(loader)) == [index.keys[i] for i in np.flatnonzero(~over).tolist()]
        monkeypatch.undo()
        assert not set(read) & set(index.offset[over].tolist())
        assert [row["stage"] for row in loader.stats()["bad"]] == ["limit"] * int(over.sum())
        assert "the limits are max_pixels" in loader.stats()["bad"][0]["reason"]


def test_truncated_jpegs_are_kept_on_request(make_drawn: Callable[..., Any]) -> None:
    drawn = make_drawn((20,), kinds=("jpg",))
    cut(drawn, drawn.keys[7:9], by=30)
    keep = PackedImageLoader(drawn.shards, PACKING, batch_size=1, errors=ErrorPolicy(truncated="keep"))
    images = {image.key: image for batch in keep for image in batch.images()}
    assert len(images) == 20
    assert (keep.stats()["truncated"], keep.stats()["bad_images"]) == (2, 0)
    for key in drawn.keys[7:9]:
        height, width, _ = drawn.pixels[key].shape
        rows = images[key].pixels()[: height // 4, :width]
        assert np.array_equal(rows, drawn.pixels[key][: height // 4])
    skip = PackedImageLoader(drawn.shards, PACKING, batch_size=1)
    assert len(keys_of(skip)) == 18
    # Other damage does not count as an early end.
    index = scan(drawn.shards)
    data = index.reader().read(0, int(index.offset[0]), int(index.nbytes[0]))
    middle = len(data) * 2 // 3
    drawn.rewrite({"s0i000.jpg": data[:middle] + b"\xff\xd3" + data[middle:]})  # a restart that nothing announced
    keep = PackedImageLoader(drawn.shards, PACKING, batch_size=1, errors=ErrorPolicy(truncated="keep"))
    assert "s0i000" not in keys_of(keep)


def test_digest_reveals_a_changed_byte(make_drawn: Callable[..., Any]) -> None:
    drawn = make_drawn((20,), kinds=("png",))
    index = scan(drawn.shards)
    shard, times = drawn.shards[0], os.stat(drawn.shards[0])
    with open(shard, "r+b") as file:
        file.seek(int(index.offset[5]) + int(index.nbytes[5]) - 1)
        file.write(b"\xff")  # the last byte of a PNG's checksum, which PIL does not check
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    loader = PackedImageLoader(index, PACKING, batch_size=1)
    assert "s0i005" not in keys_of(loader)
    assert loader.stats()["bad"][0]["reason"] == "its bytes differ from the indexed ones: the digest differs"
    os.utime(shard)
    with pytest.raises(OSError, match=r"drawn-000.tar' was modified after it was indexed: .* patchnpack index SHARDS"):
        keys_of(PackedImageLoader(index, PACKING, batch_size=1))


@pytest.mark.parametrize("where", ["transform", "label"])
def test_error_in_a_user_function_is_raised_with_the_key_and_not_counted(where: str, drawn: Any) -> None:
    def fail(*_: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            return 1
        raise TypeError("unsupported operand")

    options: dict[str, Any] = {where: fail}
    loader = PackedImageLoader(drawn.shards, PACKING, batch_size=1, **options)
    with pytest.raises(TypeError, match="unsupported operand") as raised:
        keys_of(loader)
    assert re.search(r"key 's\di\d+'", "".join(raised.value.__notes__))
    assert loader.stats()["bad_images"] == 0


def test_bad_images_are_logged_as_warnings(make_drawn: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    drawn = make_drawn((10,), kinds=("jpg",))
    cut(drawn, drawn.keys[2:3])
    with caplog.at_level(logging.WARNING, "patchnpack"):
        keys_of(PackedImageLoader(drawn.shards, PACKING, batch_size=1))
    assert re.fullmatch(r"bad image 's0i002' in .*: ValueError: Premature end of JPEG file", caplog.messages[0])


def test_pixels_that_contradict_the_header_make_a_bad_image(tmp_path: Path, write_tar: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (24, 16)).save(file, "PNG")
    data = file.getvalue()
    shard = write_tar(tmp_path / "a.tar", [("a.png", data), ("b.png", data[:40] + bytes(8) + data[48:])])
    loader = PackedImageLoader(shard, PACKING, batch_size=1)
    assert keys_of(loader) == ["a"]
    assert loader.stats()["bad"][0]["key"] == "b"


def test_invalid_json_label_makes_its_image_bad(tmp_path: Path, encode_image: Any, write_tar: Any) -> None:
    image = encode_image(Image.new("RGB", (16, 16)))
    members = [
        member
        for i in range(8)
        for member in ((f"{i}.jpg", image), (f"{i}.json", b"{" if i in (0, 5) else b'{"c": 1}'))
    ]
    loader = PackedImageLoader(write_tar(tmp_path / "a.tar", members), PACKING, batch_size=1, label="json:c")
    assert sorted(keys_of(loader)) == ["1", "2", "3", "4", "6", "7"]
    assert {(row["key"], row["stage"]) for row in loader.stats()["bad"]} == {("0", "label"), ("5", "label")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"errors": "skip"}, "errors is 'skip'; give ErrorPolicy(on_error=...)"),
        ({"packing": {"seq_len": 64}}, "packing is {'seq_len': 64}; give Packing(seq_len=...)"),
        ({"image": ["jpg"]}, "image is ['jpg']; give extensions as one text"),
        ({"cache_limit": "10GB"}, "cache_limit is '10GB'; it must be a whole number"),
        ({"seed": "a"}, "seed is 'a'; it must be a whole number"),
        ({"label": "jpg"}, "label 'jpg' names the image; the other members are .cls, .png, .txt"),
        ({"classes": ["a"]}, "classes= names the classes of labels, and label is None"),
    ],
)
def test_option_of_wrong_type_is_refused_with_the_fix(options: dict[str, Any], message: str, drawn: Any) -> None:
    settled: dict[str, Any] = {"packing": PACKING, "batch_size": 1, "image": "jpg;png"}
    with pytest.raises(ValueError, match=re.escape(message)):
        PackedImageLoader(drawn.shards, **(settled | options))
