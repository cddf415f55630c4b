from __future__ import annotations

import gc
import io
import itertools
import json
import logging
import tarfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from patchnpack.loaders import PackedImageLoader
from patchnpack.loaders.errors import BadDataError, BadRow, ErrorPolicy
from patchnpack.loaders.streaming.pack_stream import _InOrder, pack_stream
from patchnpack.packer import (
    BetaDrop,
    ConstantDrop,
    FitTokens,
    Native,
    PackedBatch,
    Packing,
    PatchSizes,
    Planner,
    RandomResizedCrop,
    Rows,
    ScheduledDrop,
    ScheduledResolution,
    plan,
)
from patchnpack.packer.binpacking.pack_lengths import resolve_algorithm

PACKING = Packing(seq_len=64, patch_size=8, max_images=7, algorithm="subset_sum")

Contents = Callable[[PackedBatch], tuple[object, ...]]
Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]


def samples_of(shards: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The samples of shards as webdataset gives them."""
    for shard in shards:
        sample: dict[str, Any] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if sample and sample["__key__"] != key:
                    yield sample
                    sample = {}
                file = tar.extractfile(member)
                assert file is not None
                sample |= {"__key__": key, "__url__": shard, extension: file.read()}
        if sample:
            yield sample


def flat(width: int, height: int, value: int = 0) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def rows_in(batches: Iterable[PackedBatch]) -> list[int]:
    return [row for batch in batches for row in batch.rows[batch.image_mask].tolist()]


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("patchnpack-decode")]


def break_data(drawn: Any, headers: Sequence[str], bodies: Sequence[str]) -> None:
    """Gives some images a header that cannot be read, and cuts others off behind theirs."""
    change = {}
    for sample in samples_of(drawn.shards):
        kind = "jpg" if "jpg" in sample else "png"
        if sample["__key__"] in headers:
            change[f"{sample['__key__']}.{kind}"] = b"no image"
        if sample["__key__"] in bodies:
            change[f"{sample['__key__']}.{kind}"] = sample[kind][:-40]
    drawn.rewrite(change)


# The same batches as the loader's


def mirror_or_brighten(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[:, ::-1] if rng.random() < 0.5 else image // 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm": "auto"},
        {"algorithm": "largest_fit"},
        {"algorithm": "next_fit"},
        {"algorithm": "first_fit"},
        {"algorithm": "best_fit_decreasing", "lookahead": 4},
        {"lookahead": 1},
        {"lookahead": 7},
        {"token_drop": BetaDrop(0.4, 0.8)},
        {"token_drop": ScheduledDrop(drop=ConstantDrop(0.6), start=0, end=1, midpoint=20, tau=5)},
        {"token_drop": ConstantDrop(0.5), "fill": "none"},
        {"resolution": RandomResizedCrop(max_tokens=20), "image_mode": "L"},
        {"resolution": FitTokens(12), "image_mode": "RGBA"},
        {"fill": "trim", "max_trim": 0.2, "lookahead": 9},
        {"fill": "rescale", "max_scale": 0.2, "lookahead": 9},
        {"seq_len": 24, "oversize": "shrink"},
        {"seq_len": 24, "oversize": "drop"},
        {"seq_len": 24, "oversize": "skip", "algorithm": "auto"},
        {"patch_size": PatchSizes((4, 6, 8)), "seq_len": 200},
        {"patch_size": PatchSizes((4, 8), (1, 0), (0, 1), 20), "seq_len": 200, "algorithm": "auto"},
    ],
    ids=str,
)
def test_batches_are_the_loaders_over_the_same_shard(
    changes: dict[str, Any], make_drawn: Callable[..., Any], contents: Contents
) -> None:
    drawn = make_drawn([45])
    break_data(drawn, drawn.keys[5:8], [drawn.keys[0], drawn.keys[20], drawn.keys[44]])
    packing = PACKING.replace(**changes)
    options: dict[str, Any] = {
        "batch_size": 3,
        "label": "cls",
        "extras": ["txt"],
        "transform": mirror_or_brighten,
        "seed": 3,
    }
    loader = PackedImageLoader(drawn.shards, packing, **options)
    expected = [contents(batch) for batch in loader]
    stream = pack_stream(samples_of(drawn.shards), packing, **options)
    assert [contents(batch) for batch in stream] == expected
    assert len(expected) > 1
    ours, theirs = stream.stats(), loader.stats()
    for name in ("batches", "packs", "images", "tokens", "slots", "oversize", "skipped", "bad_images"):
        assert ours[name] == theirs[name], name
    kept = ("row", "key", "shard", "stage", "reason")
    assert [[bad[name] for name in kept] for bad in ours["bad"]] == [
        [bad[name] for name in kept] for bad in sorted(theirs["bad"], key=lambda bad: bad["row"])
    ]


def test_batches_are_the_loaders_over_several_shards(
    drawn: Any, contents: Contents, check_batch: Callable[..., None]
) -> None:
    loader = PackedImageLoader(drawn.shards, PACKING, batch_size=2, label="cls", extras=["txt"])
    stream = pack_stream(samples_of(drawn.shards), PACKING, batch_size=2, label="cls", extras=["txt"])
    for batch, expected in zip(stream, loader, strict=True):
        assert contents(batch) == contents(expected)
        check_batch(batch, drawn, loader.index, PACKING)


@pytest.mark.parametrize(("num_threads", "prefetch"), [(0, 1), (1, 1), (2, 2), (5, 4)])
def test_batches_do_not_depend_on_threads(num_threads: int, prefetch: int, drawn: Any, contents: Contents) -> None:
    packing = PACKING.replace(token_drop=BetaDrop(0.4, 0.8), lookahead=8)
    options: dict[str, Any] = {"batch_size": 2, "transform": mirror_or_brighten, "seed": 1, "label": "cls"}
    expected = [contents(batch) for batch in pack_stream(samples_of(drawn.shards), packing, num_threads=2, **options)]
    stream = pack_stream(samples_of(drawn.shards), packing, num_threads=num_threads, prefetch=prefetch, **options)
    assert [contents(batch) for batch in stream] == expected


def test_seed_changes_draws_and_nothing_else(drawn: Any) -> None:
    packing = PACKING.replace(token_drop=ConstantDrop(0.5))
    first, again, other = (
        list(pack_stream(samples_of(drawn.shards), packing, batch_size=50, seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first[0].coords, again[0].coords)
    assert first[0].keys == other[0].keys
    assert not torch.equal(first[0].coords, other[0].coords)


# Each sample once


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(8, 60), st.integers(1, 40)), max_size=60),
    seq_len=st.integers(1, 40),
    max_images=st.integers(1, 9),
    lookahead=st.integers(1, 40),
    batch_size=st.integers(1, 4),
    algorithm=st.sampled_from(["subset_sum", "largest_fit", "next_fit", "best_fit", "first_fit_decreasing"]),
    oversize=st.sampled_from(["shrink", "drop", "skip"]),
    drop_last=st.booleans(),
    num_threads=st.integers(0, 2),
)
def test_packs_are_those_of_the_plan_and_each_sample_comes_once(
    sizes: list[tuple[int, int]],
    seq_len: int,
    max_images: int,
    lookahead: int,
    batch_size: int,
    algorithm: Any,
    oversize: Any,
    drop_last: bool,
    num_threads: int,
) -> None:
    packing = Packing(
        seq_len=seq_len,
        patch_size=8,
        max_images=max_images,
        lookahead=lookahead,
        algorithm=algorithm,
        oversize=oversize,
        resolution=Native(edge="resize"),
    )
    width, height = (np.array([size[side] for size in sizes], np.int32) for side in (0, 1))
    planned = plan(Rows.of_sizes(width, height), packing)
    expected = [planned.pack(i).row.tolist() for i in range(len(planned))]
    pairs = [(flat(w, h, i % 250 + 1), i) for i, (w, h) in enumerate(sizes)]
    stream = pack_stream(pairs, packing, batch_size=batch_size, drop_last=drop_last, num_threads=num_threads)
    batches = list(stream)

    packs = [[row for row in pack if row >= 0] for batch in batches for pack in batch.rows.tolist()]
    tail = len(expected) % batch_size if drop_last else 0
    filled = expected[: len(expected) - tail]
    assert packs[: len(filled)] == filled
    assert not any(packs[len(filled) :])
    assert (
        len(packs)
        == len(batches) * batch_size
        == (len(filled) // batch_size if drop_last else -(-len(filled) // batch_size)) * batch_size
    )
    for step, batch in enumerate(batches):
        assert (batch.step, batch.epoch, batch.position) == (step, 0, (step + 1) * batch_size)
        assert torch.equal(batch.labels[batch.image_mask], batch.rows[batch.image_mask])
        rows = batch.rows[batch.image_mask].tolist()
        assert batch.image_sizes[batch.image_mask].tolist() == [list(sizes[row]) for row in rows]
        for row, image in zip(rows, batch.images(), strict=True):
            assert set(np.unique(image.patches.numpy()).tolist()) - {0} == {row % 250 + 1}
    stats = stream.stats()
    assert stats["skipped"]["oversize"] == len(planned.skipped)
    assert stats["images"] + stats["skipped"]["oversize"] + stats["skipped"]["tail"] == len(sizes)
    left_out = set(planned.skipped.tolist()) | {row for pack in expected[len(filled) :] for row in pack}
    assert sorted(rows_in(batches)) == [row for row in range(len(sizes)) if row not in left_out]


@pytest.mark.parametrize("algorithm", ["subset_sum", "largest_fit", "next_fit", "best_fit"])
@pytest.mark.parametrize("num_threads", [0, 2])
def test_samples_that_wait_are_bounded_by_lookahead(algorithm: Any, num_threads: int) -> None:
    lookahead, batch_size, prefetch, count = 32, 2, 1, 1500
    packing = Packing(seq_len=16, patch_size=8, lookahead=lookahead, algorithm=algorithm, oversize="skip")
    refs: list[weakref.ref[np.ndarray]] = []
    arrived = most = 0

    def alive() -> int:
        refs[:] = [one for one in refs if one() is not None]
        return len(refs)

    def pairs() -> Iterator[tuple[np.ndarray, int]]:
        nonlocal arrived, most
        rng = np.random.default_rng(0)
        for i in range(count):
            image = flat(*rng.integers(8, 37, 2).tolist())  # one in five is oversize
            refs.append(weakref.ref(image))
            arrived += 1
            most = max(most, alive())
            yield image, i

    stream = pack_stream(pairs(), packing, batch_size=batch_size, num_threads=num_threads, prefetch=prefetch)
    images = given = 0
    for batch in stream:
        images, given = max(images, batch.num_images), given + batch.num_images
        # What is handed out is let go of at once; only the sample that came last is held besides.
        assert alive() <= arrived - given - stream.stats()["skipped"]["oversize"] + 1
    skipped = stream.stats()["skipped"]["oversize"]
    assert given + skipped == count
    assert skipped > 100
    # Waiting, just arrived, and those of the batch that is being put together; then those under way.
    under_way = (prefetch + 1) * images if num_threads else 0
    assert lookahead <= most <= lookahead + 16 + images + under_way
    assert alive() == 0


def test_auto_is_decided_by_the_first_samples() -> None:
    packing = Packing(seq_len=64, patch_size=8, lookahead=40, algorithm="auto")
    rng = np.random.default_rng(0)
    decided = set()
    for most in (6, 12, 24, 40, 64) * 3:
        tokens = rng.integers(1, most + 1, 200)
        algorithm = resolve_algorithm("auto", tokens[:40], 64, max_items=packing.max_images, lookahead=40)
        decided.add(algorithm)
        pairs = [(flat(8 * n, 8), 0) for n in tokens.tolist()]
        packs, expected = (
            [batch.rows.tolist() for batch in pack_stream(pairs, packing.replace(algorithm=name), batch_size=1)]
            for name in ("auto", algorithm)
        )
        assert packs == expected
    assert decided == {"subset_sum", "largest_fit"}


def test_batch_is_given_before_the_stream_has_ended() -> None:
    packing = Packing(seq_len=16, patch_size=8, lookahead=10)
    endless = ((flat(16, 16), i) for i in itertools.count())
    stream = pack_stream(endless, packing, batch_size=1, num_threads=0)
    assert sorted(rows_in(itertools.islice(stream, 5))) == list(range(20))
    stream.close()


def test_oldest_sample_leaves_within_lookahead_packs() -> None:
    packing = Packing(seq_len=16, patch_size=8, lookahead=10, max_images=3)
    sides = itertools.cycle([32, 8, 8, 24, 16])
    pairs = ((flat(side, side), i) for i, side in zip(range(300), sides, strict=False))
    for step, batch in enumerate(pack_stream(pairs, packing, batch_size=1)):
        assert min(rows_in([batch])) >= step - 3 * 10


# Kinds of images and samples


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_mode": "L"},
        {"image_mode": "RGBA"},
        {"resolution": FitTokens(6)},
        {"resolution": RandomResizedCrop(max_tokens=9)},
        {"resolution": RandomResizedCrop(max_tokens=9), "image_mode": "L"},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_every_kind_of_image_gives_the_same_patches(
    mode: str, changes: dict[str, Any], draw_image: Draw, encode_image: Encode, contents: Contents
) -> None:
    packing = PACKING.replace(**changes)
    drawn = [draw_image(9 + 7 * i, 50 - 8 * i, i, mode) for i in range(5)]
    encoded = [encode_image(image, "PNG") for image in drawn]
    opened = [Image.open(io.BytesIO(data)) for data in encoded]
    kinds: dict[str, list[Any]] = {
        "bytes": encoded,
        "bytearray": [bytearray(data) for data in encoded],
        "memoryview": [memoryview(data) for data in encoded],
        "PIL, made": drawn,
        "PIL, not yet read": opened,
    }
    if mode != "P":
        arrays = [np.asarray(image) for image in drawn]
        kinds["array"] = arrays
        kinds["array seen from behind"] = [array[::-1, ::-1].copy()[::-1, ::-1] for array in arrays]
        if mode == "L":
            kinds["array (H, W, 1)"] = [array[..., None] for array in arrays]
    made = {
        name: [contents(batch) for batch in pack_stream([(i, 0) for i in images], packing, batch_size=2, seed=5)]
        for name, images in kinds.items()
    }
    for name in kinds:
        assert made[name] == made["bytes"], name


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_pils_images_is_applied(
    orientation: int, kind: str, draw_image: Draw, encode_image: Encode
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(draw_image(32, 16), kind, exif=exif.tobytes())
    decoded = Image.open(io.BytesIO(data))
    decoded.load()
    pairs = [(data, 0), (Image.open(io.BytesIO(data)), 0), (decoded.convert("RGB"), 0)]
    (batch,) = pack_stream(pairs, PACKING, batch_size=1)
    sizes = batch.image_sizes[batch.image_mask].tolist()
    assert sizes == [[16, 32] if orientation >= 5 else [32, 16]] * 3
    first, second, third = (image.pixels().astype(int) for image in batch.images())
    assert np.abs(first - second).max() <= (3 if kind == "JPEG" else 0)  # another build of libjpeg
    assert np.array_equal(second, third)


def test_array_that_was_handed_in_is_not_changed_by_a_transform() -> None:
    image = flat(16, 16, 7)

    def blacken(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        pixels[:] = 0
        return pixels

    (batch,) = pack_stream([(image, 1)], PACKING, batch_size=1, transform=blacken)
    assert not batch.patches.any()
    assert (image == 7).all()


def test_one_image_many_times_over_is_read_once_by_many_threads(draw_image: Draw, encode_image: Encode) -> None:
    data = encode_image(draw_image(60, 60), "PNG")
    expected = np.asarray(Image.open(io.BytesIO(data)))
    for _ in range(5):
        image = Image.open(io.BytesIO(data))
        stream = pack_stream([(image, 0)] * 40, PACKING, batch_size=40, num_threads=6)
        (batch,) = stream
        assert stream.stats()["bad_images"] == 0
        for one in batch.images():
            assert np.array_equal(one.pixels()[:60, :60], expected)


class Items:
    """A data set as torch has them: no `__iter__`, an IndexError at its end."""

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return [(flat(8, 8), 5), (flat(16, 8), 6)][i]


def test_data_set_that_has_items_alone_is_a_stream() -> None:
    samples: Any = Items()
    (batch,) = pack_stream(samples, PACKING, batch_size=1)
    assert batch.labels[batch.image_mask].tolist() == [5, 6]


def test_first_member_listed_is_the_image_and_others_are_left_alone() -> None:
    samples = [
        {"__key__": "a", "png": flat(8, 8, 1), "jpg": flat(8, 8, 2), "cls": b"3"},
        {"__key__": "b", "png": flat(8, 8, 3), "cls": b"4"},
    ]
    for image, values in (("jpg;png", [2, 3]), (".png; .jpg", [1, 3])):
        (batch,) = pack_stream(samples, PACKING, batch_size=1, image=image)
        assert [int(one.patches[0, 0]) for one in batch.images()] == values
        assert batch.keys == [["a", "b"]]
        assert batch.labels[batch.image_mask].tolist() == [-100, -100]


def test_labels_of_decoded_and_undecoded_members_agree() -> None:
    members: list[tuple[Any, str | None, Any]] = [
        (b"3", "cls", 3),
        ("3\n", "cls", 3),
        (3, "cls", 3),
        (np.int64(3), "cls", 3),
        (torch.tensor(3), "cls", 3),
        (b'{"kind": 3}', "json:kind", 3),
        ({"kind": 3}, "json:kind", 3),
        ({"kind": [0.5, 2.0]}, "json:kind", [0.5, 2.0]),
        (np.array([0.5, 2.0]), "cls", [0.5, 2.0]),
        (torch.tensor([0.5, 2.0]), "cls", [0.5, 2.0]),
    ]
    for value, label, expected in members:
        name = str(label).partition(":")[0]
        (batch,) = pack_stream([{"png": flat(8, 8), name: value}], PACKING, batch_size=1, label=label)
        assert batch.labels[0, 0].tolist() == expected
        assert batch.labels.dtype == (torch.float32 if isinstance(expected, list) else torch.int64)
        if ":" not in str(label):
            (batch,) = pack_stream([(flat(8, 8), value)], PACKING, batch_size=1)
            assert batch.labels[0, 0].tolist() == expected


def test_class_names_are_looked_up_and_others_refused() -> None:
    samples = [{"png": flat(8, 8), "cls": name} for name in (b"cat", "dog", 0)]
    (batch,) = pack_stream(samples, PACKING, batch_size=1, label="cls", classes=["dog", "cat"])
    assert batch.labels[0, :3].tolist() == [1, 0, 0]
    for value, reason in ((b"cow", "label 'cow'"), (2, "label 2 is not among the 2 classes")):
        samples = [{"__key__": "k7", "png": flat(8, 8), "cls": value}]
        with pytest.raises(ValueError, match=reason) as caught:
            list(pack_stream(samples, PACKING, batch_size=1, label="cls", classes=["dog", "cat"]))
        assert caught.value.__notes__ == ["raised for the label of the sample with key 'k7'"]


def test_callable_label_is_given_the_sample_and_what_it_raises_is_raised() -> None:
    samples = [{"__key__": f"{i:02d}", "png": flat(8, 8), "width": 5} for i in range(4)]
    (batch,) = pack_stream(
        samples, PACKING, batch_size=1, label=lambda sample: int(sample["__key__"]) * sample["width"]
    )
    assert batch.labels[batch.image_mask].tolist() == [0, 5, 10, 15]
    with pytest.raises(ZeroDivisionError) as caught:
        list(pack_stream(samples, PACKING, batch_size=1, label=lambda sample: 1 // 0))
    assert caught.value.__notes__ == ["raised for the label of the sample with key '00'"]


def test_samples_without_a_label_are_counted() -> None:
    samples = [{"png": flat(8, 8)} | ({"cls": b"1"} if i % 3 else {}) for i in range(9)]
    stream = pack_stream(samples, PACKING, batch_size=1, label="cls")
    labels = torch.cat([batch.labels[batch.image_mask] for batch in stream]).tolist()
    assert labels == [-100, 1, 1] * 3
    assert stream.stats()["without_label"] == 3
    targets = [{"png": flat(8, 8)}, {"png": flat(8, 8), "npy": np.array([1.0, 2.0])}]
    (batch,) = pack_stream(targets, PACKING, batch_size=1, label="npy")
    assert torch.isnan(batch.labels[0, 0]).all()
    assert batch.labels[0, 1].tolist() == [1, 2]


def test_labels_of_two_shapes_are_refused() -> None:
    pairs = [(flat(8, 8), [0.5]), (flat(8, 8), 3)]
    with pytest.raises(ValueError, match=r"label of '1' has shape \(\), those before it \(1,\)"):
        list(pack_stream(pairs, PACKING, batch_size=1))
    # Once a batch was handed out, its kind of label stands.
    late = [*[{"png": flat(64, 64)}] * 40, {"png": flat(8, 8), "npy": np.array([0.5])}]
    stream = pack_stream(late, PACKING.replace(lookahead=1), batch_size=1, label="npy", num_threads=0)
    assert next(stream).labels.dtype == torch.int64
    with pytest.raises(ValueError, match=r"label of '40' has shape \(1,\), those before it \(\)"):
        list(stream)


def test_extras_are_decoded_by_name_or_pass_as_they_are() -> None:
    thing = object()
    samples = [
        {"png": flat(8, 8), "txt": "schön".encode(), "json": b'{"a": [1]}', "bin": b"\0\xff", "other": thing},
        {"png": flat(8, 8), "txt": "text", "json": {"b": 2}, "bin": 5},
    ]
    names = ["txt", ".json", "bin", "other"]
    (batch,) = pack_stream(samples, PACKING, batch_size=1, extras=names)
    assert batch.extras == {
        "txt": [["schön", "text"]],
        "json": [[{"a": [1]}, {"b": 2}]],
        "bin": [[b"\0\xff", 5]],
        "other": [[thing, None]],
    }


# Bad data


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
    assert (stats["images"], stats["bad_images"]) == (23, 7)
    stages = [(row["row"], row["stage"]) for row in stats["bad"]]
    expected = {0: "decode", 3: "header", 4: "header", 5: "header", 12: "extras", 17: "sample", 25: "decode"}
    assert stages == list(expected.items())
    assert [row["shard"] for row in stats["bad"]] == [drawn.shards[row >= 20] for row, _ in stages]
    assert json.loads(json.dumps(stats)) == stats
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 7
    assert lines[1] == (
        f"bad image 's0i003' in {drawn.shards[0]} (header): it begins with b'no image'; only JPEG, PNG, WebP, GIF, BMP "
        "and TIFF are read"
    )
    assert lines[5].endswith("(sample): none of its members (cls, txt) is an image (jpg, jpeg, png, webp)")
    packs = stats["packs"]
    assert caplog.messages[-1] == (
        f"the stream has ended: 23 images in {packs} packs, 7 bad, 0 oversize and 0 at the end left out"
    )


def test_pils_image_that_cannot_be_read_is_a_bad_one(draw_image: Draw, encode_image: Encode) -> None:
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


def test_image_smaller_than_a_patch_is_a_bad_one() -> None:
    sizes = [(4, 7), (16, 16), (4, 16), (8, 8), (7, 7)]
    scheduled = ScheduledResolution(((0, FitTokens(9)), (100, Native(edge="crop"))))
    for resolution, left in ((Native(), [1, 2, 3]), (Native(edge="crop"), [1, 3]), (scheduled, [1, 3])):
        for lookahead in (1, 2, 256):
            packing = PACKING.replace(resolution=resolution, lookahead=lookahead)
            stream = pack_stream([(flat(*size), 0) for size in sizes], packing, batch_size=1)
            assert sorted(rows_in(stream)) == left
            bad = stream.stats()["bad"]
            assert [(row["row"], row["stage"]) for row in bad] == [(r, "size") for r in range(5) if r not in left]
            assert "an image of 4x7 pixels is smaller than a patch of 8x8" in bad[0]["reason"]
    assert list(pack_stream([(flat(4, 4), 0)] * 20, PACKING.replace(lookahead=5), batch_size=1)) == []


def test_stream_of_bad_images_alone_ends_without_a_batch() -> None:
    stream = pack_stream([(b"nothing", 0)] * 50, PACKING, batch_size=2)
    assert list(stream) == []
    assert stream.stats()["bad_images"] == 50
    assert list(pack_stream([], PACKING, batch_size=2, label="cls", extras=["txt"])) == []


@given(order=st.permutations(range(12)), bad=st.sets(st.integers(0, 11)), left_out=st.sets(st.integers(0, 11)))
def test_outcomes_are_told_in_order_of_arrival(order: list[int], bad: set[int], left_out: set[int]) -> None:
    told: list[int | str] = []
    outcomes = _InOrder(lambda row: told.append(row.row), lambda: told.append("good"))
    for i, row in enumerate(order):
        record = BadRow(row=row, key="", shard="", offset=-1, stage="", reason="")
        outcomes.record(row, record if row in bad else row not in left_out)
        known = set(order[: i + 1])
        reached = next(row for row in range(13) if row not in known)
        assert told == [r if r in bad else "good" for r in range(reached) if r in bad or r not in left_out]


# Mistakes


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ("a.jpg", "sample 0 of the stream is a str; each must be a dict of members"),
        (b"bytes", "sample 0 of the stream is a bytes;"),
        ((flat(8, 8), 1, "k"), "sample 0 of the stream is a tuple of 3;"),
        ((flat(8, 8).astype(np.float32), 1), r"an image is a float32 array \(8, 8, 3\); it must be uint8"),
        ((flat(8, 8).transpose(2, 0, 1), 1), r"an image is a uint8 array \(3, 8, 8\)"),
        ((flat(8, 8)[None], 1), r"an image is a uint8 array \(1, 8, 8, 3\)"),
        ((torch.zeros(8, 8, 3), 1), "the image of sample '0' is a torch.Tensor; it must be encoded bytes"),
        ({"__key__": "k", "jpg": "path.jpg"}, "the image of sample 'k' is a builtins.str"),
        ({"__key__": "k", "jpg": None}, "the image of sample 'k' is a builtins.NoneType"),
        ((flat(8, 8), "cat"), "label 'cat' .* is neither a whole number nor a known class; give classes="),
        ((flat(8, 8), 0.5), "a label is 0.5"),
    ],
)
def test_sample_of_another_kind_is_refused(sample: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        list(pack_stream([sample], PACKING, batch_size=1))


def test_pair_has_no_members_to_name() -> None:
    for options in ({"label": "cls"}, {"extras": ["txt"]}):
        with pytest.raises(ValueError, match="sample 0 of the stream is a pair, whose second part is its label"):
            list(pack_stream([(flat(8, 8), 1)], PACKING, batch_size=1, **options))


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"image": "jpg;jpeg"}, "image='jpg;jpeg'"),
        ({"label": "cls"}, "label='cls'"),
        ({"label": "json:x"}, "label='json:x'"),
        ({"label": lambda sample: None}, "label=<function"),
        ({"extras": ["txt", "png"]}, "extras='txt'"),
    ],
)
@pytest.mark.parametrize("count", [3, None])
def test_member_that_no_sample_has_is_refused(count: int | None, options: dict[str, Any], asked: str) -> None:
    samples = ({"__key__": "k", "__url__": "u", "png": flat(8, 8), "json": b"{}"} for _ in itertools.count())
    errors = ErrorPolicy(max_rate=1, max_consecutive=10**6)
    stream = pack_stream(itertools.islice(samples, count), PACKING, batch_size=1, errors=errors, **options)
    with pytest.raises(ValueError, match="none of the first") as caught:
        list(stream)
    assert str(caught.value).startswith(f"none of the first {count or 1000} samples has what {asked}")
    assert "the members of the first are png, json: name one of them" in str(caught.value)


def test_member_that_comes_up_late_is_not_missed() -> None:
    samples = [{"png": flat(8, 8)} | ({"cls": b"2", "txt": b"t"} if i == 999 else {}) for i in range(1100)]
    stream = pack_stream(samples, PACKING, batch_size=4, label="cls", extras=["txt"])
    assert sum(batch.num_images for batch in stream) == 1100


def test_image_under_oversize_error_is_named() -> None:
    pairs = [(flat(16, 16), 0), (flat(80, 80), 0)]
    with pytest.raises(ValueError, match="row 1 of 80x80 pixels has 100 tokens") as caught:
        list(pack_stream(pairs, PACKING.replace(oversize="error"), batch_size=1))
    assert "one of 0 (key '0') to 1 (key '1')" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"samples": "train-{000..009}.tar"}, "samples is a str; .* For shards by name there is PackedImageLoader"),
        ({"samples": {"jpg": b""}}, "samples is a dict;"),
        ({"samples": 5}, "samples is a int;"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"prefetch": 0}, "prefetch is 0; it must be at least 1"),
        ({"num_threads": -1}, "num_threads is -1; it must be at least 0"),
        ({"num_threads": 1.5}, "num_threads is 1.5; it must be a whole number"),
        ({"extras": "txt"}, r"extras is 'txt'; give a list of members: \['txt'\]"),
        ({"label": "json"}, "label is 'json'; name the field"),
        ({"label": "txt:x"}, "only a .json member has fields"),
    ],
)
def test_mistaken_option_is_refused_at_once(change: dict[str, Any], reason: str) -> None:
    options: dict[str, Any] = {"samples": [], "packing": PACKING, "batch_size": 1}
    with pytest.raises(ValueError, match=reason):
        pack_stream(**(options | change))


# Threads


def wait_for_no_threads() -> None:
    end = time.monotonic() + 5
    while decoding_threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert decoding_threads() == []


def endless() -> Iterator[tuple[np.ndarray, int]]:
    return ((flat(32, 32), i) for i in itertools.count())


def test_no_thread_outlives_the_stream() -> None:
    options: dict[str, Any] = {"batch_size": 2, "num_threads": 3}
    list(pack_stream(itertools.islice(endless(), 50), PACKING, **options))
    wait_for_no_threads()

    stream = pack_stream(endless(), PACKING, **options)
    next(stream)
    assert len(decoding_threads()) == 3
    stream.close()
    assert decoding_threads() == []
    assert list(stream) == []

    gc.disable()
    try:
        stream = pack_stream(endless(), PACKING, **options)
        next(stream)
        assert len(decoding_threads()) == 3
        del stream  # by reference count alone: nothing in a stream refers back to it
        assert decoding_threads() == []
    finally:
        gc.enable()

    def broken(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(pack_stream(endless(), PACKING, transform=broken, **options))
    wait_for_no_threads()

    def failing() -> Iterator[tuple[np.ndarray, int]]:
        yield from itertools.islice(endless(), 400)
        raise ConnectionError("the source broke")

    with pytest.raises(ConnectionError, match="the source broke"):
        list(pack_stream(failing(), PACKING, **options))
    wait_for_no_threads()


def test_stream_that_is_not_begun_has_no_threads_and_has_read_nothing() -> None:
    source = itertools.count()
    stream = pack_stream(((flat(8, 8), i) for i in source), PACKING, batch_size=1, num_threads=2)
    assert decoding_threads() == []
    stream.close()
    assert next(source) == 0


def test_as_many_threads_as_cpus_are_started_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchnpack.loaders.streaming.pack_stream.cpu_share", lambda: 3)
    for num_threads, expected in ((None, 3), (1, 1), (0, 0)):
        stream = pack_stream(endless(), PACKING, batch_size=1, num_threads=num_threads)
        next(stream)
        assert len(decoding_threads()) == expected
        stream.close()


def test_no_threads_decode_in_the_callers() -> None:
    seen = set()

    def note(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seen.add(threading.current_thread())
        return image

    list(pack_stream([(flat(8, 8), 0)] * 20, PACKING, batch_size=1, num_threads=0, transform=note))
    assert seen == {threading.current_thread()}


# Pipelines, workers and ranks


def pipeline(shards: Sequence[str], **options: Any) -> webdataset.WebDataset:
    stage = partial(pack_stream, packing=PACKING, batch_size=2, label="cls", **options)
    return webdataset.WebDataset(list(shards), shardshuffle=False, empty_check=False).compose(stage)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its shards open
def test_stage_of_a_webdataset_pipeline(drawn: Any, contents: Contents) -> None:
    expected = [contents(batch) for batch in PackedImageLoader(drawn.shards, PACKING, batch_size=2, label="cls")]
    dataset = pipeline(drawn.shards)
    for _ in range(2):  # each `iter` is a stream of its own
        assert [contents(batch) for batch in dataset] == expected


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its shards open
def test_decoded_samples_of_a_pipeline_give_the_same_patches(make_drawn: Callable[..., Any]) -> None:
    drawn = make_drawn([12], kinds=("png",))
    plain = webdataset.WebDataset(drawn.shards, shardshuffle=False)
    stage = partial(pack_stream, packing=PACKING, batch_size=20, label="cls", extras=["txt"])
    (expected,) = plain.compose(stage)
    for how in ("pil", "rgb8"):
        (batch,) = plain.decode(how).compose(stage)
        assert torch.equal(batch.patches, expected.patches), how
        assert torch.equal(batch.labels, expected.labels)
        assert (batch.extras, batch.keys) == (expected.extras, expected.keys)
    (batch,) = plain.decode("pil").to_tuple("png", "cls").compose(partial(pack_stream, packing=PACKING, batch_size=20))
    assert torch.equal(batch.patches, expected.patches)
    assert torch.equal(batch.labels, expected.labels)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its shards open
def test_workers_of_a_dataloader_share_the_samples(drawn: Any) -> None:
    batches = list(DataLoader(pipeline(drawn.shards, extras=["txt"]), batch_size=None, num_workers=2))
    assert sorted(key for batch in batches for keys in batch.keys for key in keys) == sorted(drawn.keys)
    for batch in batches:
        for image, text in zip(batch.images(), itertools.chain(*batch.extras["txt"]), strict=True):
            height, width, _ = drawn.pixels[image.key].shape
            assert np.array_equal(image.pixels()[:height, :width], drawn.pixels[image.key])
            assert (image.label, text) == (drawn.labels[image.key], drawn.texts[image.key])


class Alike(torch.utils.data.IterableDataset[Any]):
    """The same images in every worker, and how many threads decode there."""

    def __iter__(self) -> Iterator[Any]:
        packing = PACKING.replace(token_drop=ConstantDrop(0.5))
        for batch in pack_stream([(flat(32, 32), 0)] * 8, packing, batch_size=2):
            yield batch.coords, len(decoding_threads())


def test_draws_differ_between_workers_and_workers_start_no_threads() -> None:
    made = list(DataLoader(Alike(), batch_size=None, num_workers=2))
    assert [threads for _, threads in made] == [0] * len(made)
    first, second = made[0][0], made[1][0]
    assert first.shape == second.shape
    assert not torch.equal(first, second)
    alone = list(Alike())
    assert torch.equal(alone[0][0], first)  # a worker 0 of one


def test_ranks_draw_differently_and_count_towards_schedules_together(monkeypatch: pytest.MonkeyPatch) -> None:
    packing = PACKING.replace(
        token_drop=ScheduledDrop(drop=ConstantDrop(0.9), start=0, end=1, midpoint=40, tau=5), fill="none", lookahead=3
    )
    sizes = [(32, 24)] * 60
    for rank, world_size in ((0, 1), (1, 3)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        rows = Rows.of_sizes(*zip(*sizes, strict=True))
        rows = Rows(row=rows.row, row_id=rows.row_id | np.uint64(rank << 32), width=rows.width, height=rows.height)
        planner = Planner(packing, stream=rank, num_streams=world_size)
        expected = [
            part.pack(i).keep.tolist() for part in (planner.add(rows), planner.finish()) for i in range(len(part))
        ]
        batches = list(pack_stream([(flat(*size), 0) for size in sizes], packing, batch_size=1))
        assert [batch.lengths for batch in batches] == expected
        monkeypatch.undo()


def test_rank_of_a_damaged_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE in the environment must be whole numbers"):
        next(pack_stream(endless(), PACKING, batch_size=1))


def test_policy_stops_a_stream_at_its_limits_and_keeps_lines(tmp_path: Any, encode_image: Encode) -> None:
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
