from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders import Index
from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.assembly.builders.decoded_batch_builder import DecodedBatchBuilder
from patchnpack.loaders.assembly.builders.sample_batch_builder import SampleBatchBuilder, builder_of
from patchnpack.loaders.assembly.samples import IndexedBatchContext, read_member
from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.imaging.header import Header
from patchnpack.loaders.labels.labels import Labels
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.packer import Images, PackedBatch, plan
from tests.images import draw_image, encode_image, write_tar
from tests.loaders.documents import PACKING as NARROW
from tests.loaders.documents import Documents, check_documents, samples_of

PACKING = NARROW.replace(seq_len=2048, max_images=200)  # holds what the tests put into one pack

Contents = Callable[[PackedBatch], tuple[object, ...]]


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    return Documents(tmp_path, (6,))


def context_of(index: Index, *, label: Any = "cls", extras: Sequence[str] = ("txt",), **changes: Any) -> Any:
    reader = index.reader()
    options: dict[str, Any] = {
        "packing": PACKING,
        "labels": Labels(index, label, None, lambda row, extension: read_member(index, reader, row, extension)),
        "extras": extras,
        "transform": None,
        "seed": 0,
        "buffers": BufferPool(keep=2),
        "errors": ErrorPolicy(),
    }
    return IndexedBatchContext(index=index, reader=reader, **(options | changes))


def images_in_order(index: Index) -> Images:
    """All images of the index, each with its place in its sample."""
    assert index.samples is not None
    rows = np.arange(len(index))
    wide = PACKING.replace(seq_len=1 << 16, max_images=1000, algorithm="next_fit")
    images = plan(replace(index, samples=None).rows(rows), wide).images
    assert images.row.tolist() == rows.tolist()
    return replace(images, frame=(rows - index.samples.starts[index.samples.sample_of(rows)]).astype(np.int32))


def build(
    context: IndexedBatchContext, images: Images, samples: Sequence[int] = (2, 1), *, backwards: bool = False
) -> tuple[DecodedBatchBuilder, PackedBatch]:
    """Build a batch of packs that hold the next `samples` samples each, and the rest in the last pack."""
    starts = images.sample_offsets()
    cuts = np.cumsum([0, *samples])
    ends = [*starts[cuts].tolist(), len(images)]
    builder = builder_of(context, images, np.diff(ends).tolist(), 8, epoch=2, step=5, position=48)
    order = range(builder.num_parts)
    for part in reversed(order) if backwards else order:
        builder.run(part)
    return builder, builder.finish()


def test_images_of_a_sample_are_neighbours_with_numbers_label_and_members(documents: Documents) -> None:
    index = documents.index()
    builder, batch = build(context_of(index), images_in_order(index))
    assert isinstance(builder, SampleBatchBuilder)
    assert samples_of([batch]) == [(name, list(range(len(pages)))) for name, pages in documents.pages.items()]
    assert batch.samples.max(1).values.tolist() == [2, 1, 3]
    check_documents([batch], documents)
    assert (builder.counts.samples, builder.counts.images) == (6, documents.num_images)
    assert (builder.lost, builder.bad_samples, builder.without_label, builder.multi_page) == ([], 0, 0, 0)


@pytest.mark.parametrize("label", ["cls", "json"])
def test_threads_and_the_order_of_parts_change_nothing(documents: Documents, contents: Contents, label: str) -> None:
    documents.damage([("d002", 1), ("d004", 0)])
    index = documents.index()
    of = "cls" if label == "cls" else lambda sample: int(sample["cls"])
    for on_bad in ("sample", "image"):
        context = context_of(index, label=of, errors=ErrorPolicy(on_bad=on_bad))
        images = images_in_order(index)
        builder, batch = build(context, images)
        other, backwards = build(context, images, backwards=True)
        assert contents(batch) == contents(backwards)
        assert (builder.bad, builder.lost) == (other.bad, other.lost)


@pytest.mark.parametrize("page", [0, 1])
def test_bad_page_takes_its_sample_along_or_leaves_a_gap(documents: Documents, page: int) -> None:
    name = next(name for name, pages in documents.pages.items() if len(pages) > 3)
    documents.damage([(name, page)])
    index = documents.index()
    images, pages = images_in_order(index), len(documents.pages[name])
    every = [(other, list(range(len(pages)))) for other, pages in documents.pages.items()]

    builder, batch = build(context_of(index), images)
    assert samples_of([batch]) == [sample for sample in every if sample[0] != name]
    check_documents([batch], documents)
    assert [(row.key, row.stage) for _, row in builder.bad] == [(f"{name}_{page}", "decode")]
    assert (len(builder.lost), builder.bad_samples) == (pages, 1)
    assert (builder.counts.samples, builder.counts.images) == (5, documents.num_images - pages)

    builder, batch = build(context_of(index, errors=ErrorPolicy(on_bad="image")), images)
    left = [frame for frame in range(pages) if frame != page]
    assert samples_of([batch]) == [(other, left if other == name else frames) for other, frames in every]
    check_documents([batch], documents)
    assert (len(builder.bad), len(builder.lost), builder.bad_samples) == (1, 1, 0)
    assert (builder.counts.samples, builder.counts.images) == (6, documents.num_images - 1)


@pytest.mark.parametrize("page", [0, 1])
def test_label_and_shared_members_are_read_once_even_if_the_first_page_is_bad(tmp_path: Path, page: int) -> None:
    pages = [encode_image(draw_image(16, 16, seed=i), "PNG") for i in range(3)]
    pages[page] = pages[page][:-40]
    members = [(f"a.{i}.png", data) for i, data in enumerate(pages)]
    shard = write_tar(tmp_path / "a.tar", [*members, ("a.json", b'{"label": 7}'), ("a.txt", b"all pages")])
    index = _of_members(shard, 3)
    reads = Counter[str]()
    context = context_of(index, label=lambda _: _counted(reads), errors=ErrorPolicy(on_bad="image"))
    reads.clear()
    builder, batch = build(context, images_in_order(index), ())
    assert batch.labels[0, :3].tolist() == [7, 7, -100]
    assert batch.extras["txt"] == [["all pages"] * 2]
    assert batch.frames[0, :2].tolist() == [frame for frame in range(3) if frame != page]
    assert reads["label"] == 1
    assert (len(builder.bad), builder.without_label) == (1, 0)


def _counted(reads: Counter[str]) -> int:
    reads["label"] += 1
    return 7


def _of_members(shard: str, pages: int) -> Index:
    """The index of a tar with one sample, whose images are members with one key."""
    from patchnpack.loaders import scan
    from patchnpack.loaders.index.sample_table import SampleTable

    parts = [scan([shard], image=f"{i}.png") for i in range(pages)]
    first = parts[0]
    columns = ("offset", "nbytes", *Header._fields, "digest")
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    zeros = np.zeros(pages, np.int32)
    return replace(
        first,
        **joined,
        keys=first.keys.take(zeros),
        reasons=first.reasons.take(zeros),
        cls=first.cls.take(zeros),
        members={name: np.repeat(where, pages, 0) for name, where in first.members.items()},
        starts=np.array([0, pages]),
        samples=SampleTable(rule="members", starts=np.array([0, pages]), page=zeros, frames=zeros + 1),
    )


@pytest.mark.parametrize("on_bad", ["sample", "image"])
def test_unreadable_shared_member_takes_its_sample_along(tmp_path: Path, on_bad: Any) -> None:
    pages = [(f"a.{i}.png", encode_image(draw_image(16, 16, seed=i), "PNG")) for i in range(3)]
    shard = write_tar(tmp_path / "a.tar", [*pages, ("a.json", b"{broken")])
    index = _of_members(shard, 3)
    context = context_of(index, label=None, extras=["json"], errors=ErrorPolicy(on_bad=on_bad))
    builder, batch = build(context, images_in_order(index), ())
    assert batch.num_images == 0
    assert [row.stage for _, row in builder.bad] == ["extras"]
    assert (builder.lost, builder.bad_samples, builder.counts.samples) == ([0, 1, 2], 1, 0)


def test_unreadable_member_of_one_page_is_that_of_one_page(documents: Documents) -> None:
    index = documents.index()
    images, name = images_in_order(index), next(n for n, pages in documents.pages.items() if len(pages) > 2)
    row = index.keys.listed(np.arange(len(index))).index(f"{name}_1")
    index.members["txt"][row, 0] = index.offset[row]  # pixels are no text
    builder, batch = build(context_of(index, errors=ErrorPolicy(on_bad="image")), images)
    assert [(bad.key, bad.stage) for _, bad in builder.bad] == [(f"{name}_1", "extras")]
    assert len(builder.lost) == 1
    check_documents([batch], documents)


class CountingReader(ShardReader):
    """Counts the reads of each image."""

    def __init__(self, reader: ShardReader) -> None:
        self._reader, self.reads = reader, Counter[tuple[int, int]]()
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, nbytes: int) -> bytes:
        with self._lock:
            self.reads[shard, offset] += 1
        return self._reader.read(shard, offset, nbytes)

    def modified(self, shard: int, offset: int) -> str | None:
        return self._reader.modified(shard, offset)


def views_of(images: Images, count: int) -> Images:
    """The images as `count` views each, every other one the left half."""
    which = np.repeat(np.arange(len(images)), count)
    views = images.take(which)
    view = np.tile(np.arange(count), len(images))
    box, size, grid, keep = views.box.copy(), views.size.copy(), views.grid.copy(), views.keep.copy()
    half = view % 2 == 1
    box[half, 2] = np.maximum(1, box[half, 2] // 2)
    size[half] = 8
    grid[half], keep[half] = 1, 1
    assert images.frame is not None
    frame = (images.frame[which] * count + view).astype(np.int32)
    key = views.key + view.astype(np.uint64)
    page = None if images.page is None else views.page
    return replace(views, key=key, box=box, size=size, grid=grid, keep=keep, frame=frame, page=page)


def test_views_come_from_one_read(documents: Documents) -> None:
    index = documents.index()
    context = context_of(index, extras=(), packing=PACKING.replace(scaled_decode=False))
    counting = CountingReader(context.reader)
    images = views_of(images_in_order(index), 3)
    builder, batch = build(replace(context, reader=counting), images)
    assert set(counting.reads.values()) == {1}
    assert len(counting.reads) == documents.num_images == builder.num_parts - 1
    alone, apart = build(context, replace(images, frame=None), ())
    assert isinstance(alone, DecodedBatchBuilder)
    assert [image.patches.tolist() for image in batch.images()] == [image.patches.tolist() for image in apart.images()]


def test_transform_draws_alike_for_the_frames_of_a_view_and_apart_for_views(documents: Documents) -> None:
    index = documents.index()
    drawn: dict[int, list[float]] = {}

    def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        drawn.setdefault(threading.get_ident(), []).append(rng.random())
        return image

    images = images_in_order(index)
    build(context_of(index, transform=transform), images)
    (of_pages,) = drawn.values()
    starts = images.sample_offsets()
    by_sample = [set(of_pages[low:high]) for low, high in pairwise(starts.tolist())]
    assert [len(draws) for draws in by_sample] == [1] * 6
    assert len(set.union(*by_sample)) == 6


def test_files_that_cannot_be_read_are_recorded_once(documents: Documents) -> None:
    index = documents.index()
    name = next(name for name, pages in documents.pages.items() if len(pages) > 2)
    row = index.keys.listed(np.arange(len(index))).index(f"{name}_1")
    index.digest[row] ^= np.uint64(1)
    images = views_of(images_in_order(index), 4)
    errors = ErrorPolicy(on_bad="image")
    builder, batch = build(context_of(index, errors=errors), images)
    assert [(bad.key, bad.stage) for _, bad in builder.bad] == [(f"{name}_1", "read")]
    assert (len(builder.lost), builder.bad_samples) == (4, 0)
    assert batch.num_images == 4 * documents.num_images - 4
    documents.damage([(name, 1)])
    index = documents.index()
    builder, batch = build(context_of(index, errors=errors), images)
    assert [(bad.key, bad.stage) for _, bad in builder.bad] == [(f"{name}_1", "decode")]
    assert (len(builder.lost), batch.num_images) == (4, 4 * documents.num_images - 4)


def test_truncated_pages_are_kept_where_asked_for(documents: Documents) -> None:
    name = next(name for name, pages in documents.pages.items() if len(pages) > 2)
    documents.damage([(name, 1)])  # a JPEG
    index = documents.index()
    images = images_in_order(index)
    builder, batch = build(context_of(index, errors=ErrorPolicy(truncated="keep")), images)
    assert (builder.bad, builder.truncated, batch.num_images) == ([], 1, documents.num_images)
    builder, _ = build(context_of(index), images)
    assert (len(builder.bad), builder.truncated) == (1, 0)


def test_attention_cost_is_that_of_samples_in_their_scope(documents: Documents) -> None:
    from patchnpack.loaders.assembly.stats import BatchCounts

    index = documents.index()
    images = images_in_order(index)
    _, batch = build(context_of(index), images)
    lengths = images.keep.astype(np.int64)
    sums = np.add.reduceat(lengths, images.sample_offsets()[:-1])
    assert BatchCounts.of(batch).attention_cost == (lengths**2).sum()
    assert BatchCounts.of(batch, "sample").attention_cost == (sums**2).sum()
    packs = [sums[:2], sums[2:3], sums[3:]]
    assert BatchCounts.of(batch, "sample").attention_squares == sum(int((pack**2).sum()) ** 2 for pack in packs)


def test_selection_by_detail_keeps_the_same_patches_of_a_page_in_a_sample_as_alone(documents: Documents) -> None:
    index = documents.index()
    images = images_in_order(index)
    images = replace(images, keep=np.maximum(1, images.grid.prod(1) // 2).astype(np.int32))
    context = context_of(index, packing=PACKING.replace(select="detail"), label=None, extras=())
    _, batch = build(context, images)
    alone = replace(images, frame=None)
    single = DecodedBatchBuilder(context, alone, [len(images)], 8, epoch=2, step=5, position=48)
    for part in range(single.num_parts):
        single.run(part)
    chosen = [image.coords.tolist() for image in batch.images()]
    assert chosen == [image.coords.tolist() for image in single.finish().images()]
    _, random = build(replace(context, packing=PACKING), images)
    assert chosen != [image.coords.tolist() for image in random.images()]
