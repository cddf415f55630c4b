from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.assembly.builders.decoded_batch_builder import DecodedBatchBuilder
from patchnpack.loaders.assembly.samples import IndexedBatchContext, read_member
from patchnpack.loaders.assembly.stats import BatchCounts
from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.index.scanner import scan
from patchnpack.loaders.labels.labels import Labels
from patchnpack.loaders.packed_loader import PackedImageLoader
from patchnpack.packer import ConstantDrop, Images, Native, PackedBatch, Packing, plan

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)

Check = Callable[..., None]
Contents = Callable[[PackedBatch], tuple[object, ...]]


def context_of(shards: Sequence[str], *, packing: Packing = PACKING, **changes: Any) -> IndexedBatchContext:
    index = scan(shards)
    reader = index.reader()
    options: dict[str, Any] = {
        "labels": Labels(index, "cls", None, lambda row, extension: read_member(index, reader, row, extension)),
        "extras": ["txt"],
        "transform": None,
        "seed": 0,
        "buffers": BufferPool(keep=2),
        "errors": ErrorPolicy(),
    }
    return IndexedBatchContext(index=index, reader=reader, packing=packing, **(options | changes))


def packs_of(context: IndexedBatchContext) -> list[Images]:
    usable = np.array([row for row in range(len(context.index)) if row not in context.index.bad])
    packs = plan(context.index.rows(usable), context.packing)
    return [packs.pack(i) for i in range(len(packs))]


def builder_of(context: IndexedBatchContext, packs: Sequence[Images | None]) -> DecodedBatchBuilder:
    images = Images.concatenate([pack for pack in packs if pack is not None] or [packs_of(context)[0].take(slice(0))])
    counts = [0 if pack is None else len(pack) for pack in packs]
    return DecodedBatchBuilder(context, images, counts, context.packing.patch_sizes[0], epoch=2, step=5, position=48)


def finished(builder: DecodedBatchBuilder, order: Sequence[int] | None = None) -> PackedBatch:
    for part in range(builder.num_parts) if order is None else order:
        builder.run(part)
    return builder.finish()


def corrupt(drawn: Any, keys: Sequence[str]) -> None:
    """Truncate these images after their headers."""
    for shard in drawn.shards:
        index = scan(shard)
        names = {
            f"{key}.{e}": index.reader().read(0, int(index.offset[i]), int(index.nbytes[i]) - 40)
            for i, key in enumerate(index.keys)
            for e in ("jpg", "png")
            if key in keys
        }
        drawn.rewrite(names)


def test_batch_describes_each_image_correctly(drawn: Any, check_batch: Check) -> None:
    context = context_of(drawn.shards)
    packs = packs_of(context)
    batch = finished(builder_of(context, packs))
    check_batch(batch, drawn, context.index, PACKING)
    assert batch.keys == [[context.index.keys[row] for row in pack.row] for pack in packs]
    assert batch.num_images == 60
    assert (batch.epoch, batch.step, batch.position, batch.patch_size) == (2, 5, 48, 8)


def test_batch_does_not_depend_on_the_order_of_parts(drawn: Any, contents: Contents) -> None:
    context = context_of(drawn.shards, packing=PACKING.replace(token_drop=ConstantDrop(0.3)))
    packs = packs_of(context)
    expected = contents(finished(builder_of(context, packs)))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(61).tolist()
        assert contents(finished(builder_of(context, packs), order)) == expected


def test_reused_memory_leaves_no_trace_in_a_batch(drawn: Any, contents: Contents, check_batch: Check) -> None:
    context = context_of(drawn.shards)
    packs: list[Images | None] = [*packs_of(context), None]
    expected = contents(finished(builder_of(context, packs)))
    for _ in range(3):
        memory = context.buffers.acquire((len(packs), 64, 192))
        address = memory.ctypes.data
        memory[:] = 255
        del memory
        batch = finished(builder_of(context, packs))
        assert batch.patches.data_ptr() == address
        assert contents(batch) == expected
        check_batch(batch, drawn, context.index, PACKING)
        del batch


def test_empty_packs_hold_nothing(drawn: Any, check_batch: Check) -> None:
    context = context_of(drawn.shards)
    pack = packs_of(context)[0]
    batch = finished(builder_of(context, [None, pack, None]))
    check_batch(batch, drawn, context.index, PACKING)
    assert batch.keys[0] == batch.keys[2] == batch.extras["txt"][0] == []
    assert batch.image_mask.sum(1).tolist() == [0, len(pack), 0]
    nothing = finished(builder_of(context, [None, None]))
    assert nothing.num_images == nothing.num_tokens == 0
    assert (nothing.labels == -100).all()
    assert (nothing.rows == -1).all()
    assert nothing.patches.shape == (2, 64, 192)
    assert not nothing.patches.any()


@pytest.mark.parametrize("where", ["first", "middle", "last", "every second", "all of a pack", "all"])
def test_images_after_a_bad_one_are_renumbered_and_stay_in_place(
    where: str, make_drawn: Callable[..., Any], check_batch: Check
) -> None:
    drawn = make_drawn([14])
    good = context_of(drawn.shards)
    packs = packs_of(good)
    whole = finished(builder_of(good, packs))
    fullest = max(packs, key=len)
    assert len(fullest) >= 3
    here = [good.index.keys[row] for row in fullest.row]
    bad = {
        "first": here[:1],
        "middle": here[1:2],
        "last": here[-1:],
        "every second": drawn.keys[::2],
        "all of a pack": here,
        "all": drawn.keys,
    }[where]
    corrupt(drawn, bad)

    context = context_of(drawn.shards)
    assert not context.index.bad
    builder = builder_of(context, packs)
    batch = finished(builder, np.random.default_rng(0).permutation(builder.num_parts).tolist())
    check_batch(batch, drawn, context.index, PACKING)
    assert batch.keys == [[key for key in keys if key not in bad] for keys in whole.keys]
    # In place: every remaining token lies where it lies in the undamaged batch.
    kept = batch.segment_ids > 0
    assert (batch.patches[kept] == whole.patches[kept]).all()
    assert (batch.coords[kept] == whole.coords[kept]).all()
    assert batch.num_tokens == sum(
        n for n, image in zip(whole.lengths, whole.images(), strict=True) if image.key not in bad
    )
    assert sorted(row.key for _, row in builder.bad) == sorted(bad)
    for _, row in builder.bad:
        i = context.index.keys.index(row.key)
        assert (row.row, row.shard, row.offset) == (i, drawn.shards[0], context.index.offset[i])
        assert row.stage == "decode"
        assert row.reason


def test_unreadable_extra_makes_its_image_bad(make_drawn: Callable[..., Any], check_batch: Check) -> None:
    drawn = make_drawn([6])
    drawn.rewrite({"s0i002.txt": b"\xff\xfe\0"})
    context = context_of(drawn.shards)
    builder = builder_of(context, packs_of(context))
    batch = finished(builder)
    check_batch(batch, drawn, context.index, PACKING)
    assert batch.num_images == 5
    assert [(row.key, row.stage) for _, row in builder.bad] == [("s0i002", "extras")]
    assert "its .txt member cannot be read: 'utf-8' codec" in builder.bad[0][1].reason


@pytest.mark.parametrize("bad", [[], ["s0i001", "s0i004"]])
def test_what_is_counted_before_decoding_equals_what_the_finished_batch_holds(
    bad: list[str], make_drawn: Callable[..., Any]
) -> None:
    drawn = make_drawn([9])
    packing = PACKING.replace(token_drop=ConstantDrop(0.3))
    packs: list[Images | None] = [None, *packs_of(context_of(drawn.shards, packing=packing)), None]
    corrupt(drawn, bad)
    builder = builder_of(context_of(drawn.shards, packing=packing), packs)
    batch = finished(builder)
    assert len(builder.bad) == len(bad)
    assert builder.counts == BatchCounts.of(batch)
    given = {field.name for field in fields(PackedBatch) if field.init}
    found = PackedBatch(**{name: value for name, value in batch.to_dict().items() if name in given})
    assert batch.lengths == found.lengths
    for name in ("cu_seqlens", "token_index"):
        ours, theirs = getattr(batch, name), getattr(found, name)
        assert ours.dtype == theirs.dtype
        assert ours.tolist() == theirs.tolist()


def test_finish_waits_for_the_last_image(drawn: Any) -> None:
    context = context_of(drawn.shards)
    builder = builder_of(context, packs_of(context)[:2])
    for part in range(1, builder.num_parts):
        builder.run(part)
    result: list[PackedBatch] = []
    waiting = threading.Thread(target=lambda: result.append(builder.finish()))
    waiting.start()
    time.sleep(0.05)
    assert waiting.is_alive()
    builder.run(0)
    waiting.join(10)
    assert result[0].num_images == builder.num_parts - 1


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), KeyboardInterrupt(), MemoryError()])
def test_finish_raises_every_error_except_bad_images(
    error: BaseException, drawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(drawn.shards)
    builder = builder_of(context, packs_of(context)[:2])

    def broken(*args: object) -> bytes:
        raise error

    monkeypatch.setattr(type(context.reader), "read", broken)
    for part in range(builder.num_parts):
        builder.run(part)
    with pytest.raises(type(error)):
        builder.finish()
    assert not builder.bad


def test_error_while_recording_a_bad_image_does_not_hang_finish(
    make_drawn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = make_drawn([3])
    corrupt(drawn, drawn.keys[:1])
    context = context_of(drawn.shards)
    builder = builder_of(context, packs_of(context))

    def broken(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(IndexedBatchContext, "bad_row", broken)
    for part in range(builder.num_parts):
        builder.run(part)
    with pytest.raises(ZeroDivisionError):
        builder.finish()


def test_member_is_read_by_extension_or_none(drawn: Any) -> None:
    context = context_of(drawn.shards)
    for row in (0, 1, 59):
        key = context.index.keys[row]
        assert context.member(row, "txt") == drawn.texts[key].encode()
        assert (context.member(row, "jpg") is None) != (context.member(row, "png") is None)
        assert context.member(row, "nothing") is None


def test_selection_by_detail_keeps_the_patches_with_the_largest_variance(
    drawn: Any, contents: Contents, no_threads_left: None
) -> None:
    # Grids are multiples of the patch size, so that no patch has padding.
    cut = PACKING.replace(resolution=Native(max_tokens=60, edge="crop"), undersize="skip")
    packing = cut.replace(token_drop=ConstantDrop(0.6), select="detail")
    loaders = [PackedImageLoader(drawn.shards, each, batch_size=3, label="cls") for each in (packing, cut)]
    batches = [list(loader) for loader in loaders]
    whole_images = {image.key: image for whole in batches[1] for image in whole.images()}
    dropped = 0
    for batch in batches[0]:
        for image in batch.images():
            gw, gh = image.grid
            every = np.asarray(whole_images[image.key].patches)
            detail = every.reshape(gw * gh, -1, 3).astype(float).var(1).sum(1)
            chosen = np.sort(np.argsort(-detail, kind="stable")[: len(image.patches)])
            np.testing.assert_array_equal(np.asarray(image.coords), np.stack([chosen % gw, chosen // gw], 1))
            np.testing.assert_array_equal(np.asarray(image.patches), every[chosen])
            dropped += gw * gh > len(chosen)
    assert dropped > 20
    one = PackedImageLoader(drawn.shards, packing, batch_size=3, label="cls", num_threads=1, prefetch=1)
    assert [contents(batch) for batch in one] == [contents(batch) for batch in batches[0]]
