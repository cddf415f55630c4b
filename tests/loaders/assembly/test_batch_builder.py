from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders.assembly.batch_builder import DecodedBatchBuilder
from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.assembly.samples import IndexedBatchContext, read_member
from patchnpack.loaders.errors import ErrorPolicy
from patchnpack.loaders.index.labels import Labels
from patchnpack.loaders.index.scanner import scan
from patchnpack.packer import ConstantDrop, Images, PackedBatch, Packing, plan

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)

Check = Callable[..., None]
Contents = Callable[[PackedBatch], tuple[object, ...]]


def sources_of(shards: Sequence[str], *, packing: Packing = PACKING, **changes: Any) -> IndexedBatchContext:
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


def packs_of(sources: IndexedBatchContext) -> list[Images]:
    usable = np.array([row for row in range(len(sources.index)) if row not in sources.index.bad])
    packs = plan(sources.index.rows(usable), sources.packing)
    return [packs.pack(i) for i in range(len(packs))]


def draft_of(sources: IndexedBatchContext, packs: Sequence[Images | None]) -> DecodedBatchBuilder:
    return DecodedBatchBuilder(sources, packs, sources.packing.patch_sizes[0], epoch=2, step=5, position=48)


def finished(draft: DecodedBatchBuilder, order: Sequence[int] | None = None) -> PackedBatch:
    for part in range(draft.num_parts) if order is None else order:
        draft.run(part)
    return draft.finish()


def corrupt(drawn: Any, keys: Sequence[str]) -> None:
    """Cuts these images off behind their headers."""
    for shard in drawn.shards:
        index = scan(shard)
        names = {
            f"{key}.{e}": index.reader().read(0, int(index.offset[i]), int(index.nbytes[i]) - 40)
            for i, key in enumerate(index.keys)
            for e in ("jpg", "png")
            if key in keys
        }
        drawn.rewrite(names)


def test_batch_says_of_each_image_what_is_true_of_its_key(drawn: Any, check_batch: Check) -> None:
    sources = sources_of(drawn.shards)
    packs = packs_of(sources)
    batch = finished(draft_of(sources, packs))
    check_batch(batch, drawn, sources.index, PACKING)
    assert batch.keys == [[sources.index.keys[row] for row in pack.row] for pack in packs]
    assert batch.num_images == 60
    assert (batch.epoch, batch.step, batch.position, batch.patch_size) == (2, 5, 48, 8)


def test_order_in_which_images_are_made_does_not_matter(drawn: Any, contents: Contents) -> None:
    sources = sources_of(drawn.shards, packing=PACKING.replace(token_drop=ConstantDrop(0.3)))
    packs = packs_of(sources)
    expected = contents(finished(draft_of(sources, packs)))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(61).tolist()
        assert contents(finished(draft_of(sources, packs), order)) == expected


def test_memory_that_held_another_batch_leaves_no_trace(drawn: Any, contents: Contents, check_batch: Check) -> None:
    sources = sources_of(drawn.shards)
    packs: list[Images | None] = [*packs_of(sources), None]
    expected = contents(finished(draft_of(sources, packs)))
    for _ in range(3):
        memory = sources.buffers.acquire((len(packs), 64, 192))
        address = memory.ctypes.data
        memory[:] = 255
        del memory
        batch = finished(draft_of(sources, packs))
        assert batch.patches.data_ptr() == address
        assert contents(batch) == expected
        check_batch(batch, drawn, sources.index, PACKING)
        del batch


def test_empty_packs_hold_nothing(drawn: Any, check_batch: Check) -> None:
    sources = sources_of(drawn.shards)
    pack = packs_of(sources)[0]
    batch = finished(draft_of(sources, [None, pack, None]))
    check_batch(batch, drawn, sources.index, PACKING)
    assert batch.keys[0] == batch.keys[2] == batch.extras["txt"][0] == []
    assert batch.image_mask.sum(1).tolist() == [0, len(pack), 0]
    nothing = finished(draft_of(sources, [None, None]))
    assert nothing.num_images == nothing.num_tokens == 0
    assert (nothing.labels == -100).all()
    assert (nothing.rows == -1).all()
    assert nothing.patches.shape == (2, 64, 192)
    assert not nothing.patches.any()


@pytest.mark.parametrize("where", ["first", "middle", "last", "every second", "all of a pack", "all"])
def test_images_behind_a_bad_one_close_ranks_in_numbering_and_stay_in_place(
    where: str, make_drawn: Callable[..., Any], check_batch: Check
) -> None:
    drawn = make_drawn([14])
    good = sources_of(drawn.shards)
    packs = packs_of(good)
    whole = finished(draft_of(good, packs))
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

    sources = sources_of(drawn.shards)
    assert not sources.index.bad
    draft = draft_of(sources, packs)
    batch = finished(draft, np.random.default_rng(0).permutation(draft.num_parts).tolist())
    check_batch(batch, drawn, sources.index, PACKING)
    assert batch.keys == [[key for key in keys if key not in bad] for keys in whole.keys]
    # In place: every surviving token lies where it lay in the whole batch.
    kept = batch.segment_ids > 0
    assert (batch.patches[kept] == whole.patches[kept]).all()
    assert (batch.coords[kept] == whole.coords[kept]).all()
    assert batch.num_tokens == sum(
        n for n, image in zip(whole.lengths, whole.images(), strict=True) if image.key not in bad
    )
    assert sorted(row.key for _, row in draft.bad) == sorted(bad)
    for _, row in draft.bad:
        i = sources.index.keys.index(row.key)
        assert (row.row, row.shard, row.offset) == (i, drawn.shards[0], sources.index.offset[i])
        assert row.stage == "decode"
        assert row.reason


def test_extra_that_cannot_be_read_makes_its_image_a_bad_one(
    make_drawn: Callable[..., Any], check_batch: Check
) -> None:
    drawn = make_drawn([6])
    drawn.rewrite({"s0i002.txt": b"\xff\xfe\0"})
    sources = sources_of(drawn.shards)
    draft = draft_of(sources, packs_of(sources))
    batch = finished(draft)
    check_batch(batch, drawn, sources.index, PACKING)
    assert batch.num_images == 5
    assert [(row.key, row.stage) for _, row in draft.bad] == [("s0i002", "extras")]
    assert "its .txt member cannot be read: 'utf-8' codec" in draft.bad[0][1].reason


def test_finish_waits_for_the_last_image(drawn: Any) -> None:
    sources = sources_of(drawn.shards)
    draft = draft_of(sources, packs_of(sources)[:2])
    for part in range(1, draft.num_parts):
        draft.run(part)
    result: list[PackedBatch] = []
    waiting = threading.Thread(target=lambda: result.append(draft.finish()))
    waiting.start()
    time.sleep(0.05)
    assert waiting.is_alive()
    draft.run(0)
    waiting.join(10)
    assert result[0].num_images == draft.num_parts - 1


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), KeyboardInterrupt(), MemoryError()])
def test_what_is_not_a_bad_image_is_raised_by_finish(
    error: BaseException, drawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = sources_of(drawn.shards)
    draft = draft_of(sources, packs_of(sources)[:2])

    def broken(*args: object) -> bytes:
        raise error

    monkeypatch.setattr(type(sources.reader), "read", broken)
    for part in range(draft.num_parts):
        draft.run(part)
    with pytest.raises(type(error)):
        draft.finish()
    assert not draft.bad


def test_mistake_in_the_record_of_a_bad_image_does_not_hang_finish(
    make_drawn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = make_drawn([3])
    corrupt(drawn, drawn.keys[:1])
    sources = sources_of(drawn.shards)
    draft = draft_of(sources, packs_of(sources))

    def broken(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(IndexedBatchContext, "bad_row", broken)
    for part in range(draft.num_parts):
        draft.run(part)
    with pytest.raises(ZeroDivisionError):
        draft.finish()


def test_member_is_read_by_extension_and_none_where_there_is_none(drawn: Any) -> None:
    sources = sources_of(drawn.shards)
    for row in (0, 1, 59):
        key = sources.index.keys[row]
        assert sources.member(row, "txt") == drawn.texts[key].encode()
        assert (sources.member(row, "jpg") is None) != (sources.member(row, "png") is None)
        assert sources.member(row, "nothing") is None
