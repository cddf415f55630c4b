"""The promises of samples of several images, each a row of its own, from shards to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from patchnpack import ErrorPolicy, Frames, Native, PackedImageLoader, RandomResizedCrop, Views
from patchnpack.loaders import BadDataError, Index
from patchnpack.loaders.assembly.builders.decoded_batch_builder import DecodedBatchBuilder
from patchnpack.loaders.plan_report import report_of
from patchnpack.packer import PackedBatch
from tests.loaders.conftest import contents
from tests.loaders.documents import PACKING, Documents, check_documents, conserved, grouped, samples_of

WORLD_SIZES = (1, 2, 3, 5)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Documents:
    """40 documents of 1 to 9 pages in 4 shards. Tests must not change it."""
    return Documents(tmp_path_factory.mktemp("documents"), (13, 9, 1, 17))


@pytest.fixture(scope="module")
def index(documents: Documents) -> Index:
    return documents.index()


@pytest.fixture
def damaged(tmp_path: Path) -> Documents:
    """12 documents, of which one has a bad page, one a page with a bad header, and one only bad pages."""
    documents = Documents(tmp_path, (7, 5))
    documents.damage([("d001", 2), *(("d003", page) for page in range(len(documents.pages["d003"])))])
    documents.damage([("d009", 0)], header=True)
    return documents


def loader_of(index: Index, **options: Any) -> PackedImageLoader:
    defaults: dict[str, Any] = {"batch_size": 1, "label": "cls", "extras": ["txt"], "num_threads": 2}
    return PackedImageLoader(index, options.pop("packing", PACKING), **(defaults | options))


def ranks_of(index: Index, world_size: int, **options: Any) -> list[PackedImageLoader]:
    return [loader_of(index, rank=rank, world_size=world_size, **options) for rank in range(world_size)]


def whole(documents: Documents) -> list[tuple[str, list[int]]]:
    return [(name, list(range(len(pages)))) for name, pages in documents.pages.items()]


@pytest.mark.parametrize(
    "algorithm", ["next_fit", "first_fit", "best_fit_decreasing", "largest_fit", "subset_sum", "priced", "auto"]
)
def test_each_sample_is_in_one_pack_in_order_and_once_an_epoch(
    documents: Documents, index: Index, algorithm: Any
) -> None:
    packing = PACKING.replace(algorithm=algorithm)
    for options in ({}, {"shuffle": True, "seed": 3, "shuffle_window": 2}, {"num_streams": 2, "batch_size": 2}):
        loader = loader_of(index, packing=packing, **options)
        batches = list(loader)
        assert sorted(samples_of(batches)) == whole(documents)
        check_documents(batches, documents)
        stats = loader.stats()
        assert (stats["samples"], stats["images"], stats["bad_samples"]) == (40, documents.num_images, 0)
        assert stats["images_per_sample"] == documents.num_images / 40


def test_threads_change_nothing_and_epochs_do(index: Index) -> None:
    one, four = (loader_of(index, shuffle=True, num_threads=n, prefetch=n) for n in (1, 4))
    first, second = [[contents(batch) for batch in one] for _ in range(2)]
    assert [contents(batch) for batch in four] == first
    assert [contents(batch) for batch in four] == second
    assert first != second


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("even", ["pad", "drop"])
def test_ranks_share_out_whole_samples_and_conserve_them(
    documents: Documents, index: Index, world_size: int, even: Any
) -> None:
    ranks = ranks_of(index, world_size, shuffle=True, even=even)
    batches = [list(loader) for loader in ranks]
    assert len({len(of_rank) for of_rank in batches}) == 1
    found = samples_of(batch for of_rank in batches for batch in of_rank)
    assert len(found) == len({name for name, _ in found})
    assert all(sample in whole(documents) for sample in found)
    total = conserved([loader.stats() for loader in ranks])
    assert total["samples"] == len(found)
    assert total["samples"] + total["skipped"] == 40
    assert (even == "pad") <= (total["skipped"] == 0)


def test_loader_resumes_at_every_step_in_a_new_loader(index: Index) -> None:
    options: dict[str, Any] = {"shuffle": True, "seed": 5, "packing": PACKING.replace(seq_len=128)}
    loader = loader_of(index, **options)
    states, expected = [], []
    for batch in loader:
        expected.append(contents(batch))
        states.append(loader.state_dict())
    assert len(expected) > 15
    for step, state in enumerate(states[:-1]):
        resumed = loader_of(index, **options, num_threads=1)
        resumed.load_state_dict(state)
        assert [contents(batch) for batch in resumed] == expected[step + 1 :]


@pytest.mark.parametrize("before", WORLD_SIZES)
def test_state_is_elastic(documents: Documents, index: Index, before: int) -> None:
    options: dict[str, Any] = {"shuffle": True, "packing": PACKING.replace(seq_len=128)}
    saved = ranks_of(index, before, **options)
    iterators = [iter(loader) for loader in saved]
    used = [next(iterator) for _ in range(3) for iterator in iterators]
    states = [loader.state_dict() for loader in saved]
    assert all(state == states[0] for state in states)
    for after, batch_size in ((1, 1), (2, 2), (3, 1), (5, 3)):
        ranks = ranks_of(index, after, **options, batch_size=batch_size)
        for loader in ranks:
            loader.load_state_dict(states[0])
        rest = [batch for loader in ranks for batch in loader]
        assert sorted(samples_of([*used, *rest])) == whole(documents)


def test_state_of_other_samples_is_refused(documents: Documents, index: Index) -> None:
    state = loader_of(index).state_dict()
    alone = loader_of(replace(index, samples=None))
    with pytest.raises(ValueError, match="the state was saved with"):
        alone.load_state_dict(state)
    for packing in (PACKING.replace(frames=Frames(2)), PACKING.replace(scope="sample")):
        with pytest.raises(ValueError, match=r"saved with packing\.(frames|scope)"):
            loader_of(index, packing=packing).load_state_dict(state)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_make_the_same_batches_and_totals(index: Index, num_workers: int) -> None:
    loader = loader_of(index, shuffle=True, packing=PACKING.replace(frames=Frames(3, short="skip")))
    expected = [contents(batch) for batch in loader]
    fresh = loader_of(index, shuffle=True, packing=PACKING.replace(frames=Frames(3, short="skip")))
    found = DataLoader(fresh.as_dataset(), batch_size=None, num_workers=num_workers)
    assert [contents(batch) for batch in found] == expected
    alone, shared = loader.stats(), fresh.stats()
    for name in ("samples", "images", "bad_samples", "left_out", "skipped"):
        assert shared[name] == alone[name]
    assert alone["skipped"]["frames"] > 0


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("on_bad", ["sample", "image"])
def test_bad_pages_are_counted_and_everything_is_conserved(
    damaged: Documents, tmp_path: Path, on_bad: Any, world_size: int
) -> None:
    index, file = damaged.index(), tmp_path / "bad.jsonl"
    errors = ErrorPolicy(on_bad=on_bad, quarantine=file, max_rate=1)
    ranks = ranks_of(index, world_size, errors=errors, shuffle=True)
    of_ranks = [list(loader) for loader in ranks]
    assert len(set(map(len, of_ranks))) == 1
    batches = [batch for of_rank in of_ranks for batch in of_rank]
    check_documents(batches, damaged)
    pages = {name: len(pages) for name, pages in damaged.pages.items()}
    expected = dict(whole(damaged))
    bad = 2 + pages["d003"]
    del expected["d003"]
    if on_bad == "sample":
        del expected["d001"], expected["d009"]
        left_out = pages["d001"] - 1 + pages["d009"] - 1
    else:
        expected["d001"].remove(2)
        expected["d009"] = list(range(pages["d009"] - 1))  # left out before frames were counted
        left_out = 0
    assert sorted(samples_of(batches)) == sorted(expected.items())
    total = conserved([loader.stats() for loader in ranks])
    assert total == {
        "samples": len(expected),
        "bad_samples": 12 - len(expected),
        "images": sum(map(len, expected.values())),
        "bad_images": bad,
        "left_out": left_out,
        "skipped": 0,
    }
    assert total["images"] + total["bad_images"] + total["left_out"] == damaged.num_images
    assert len(file.read_text().splitlines()) == bad


def test_where_keeps_whole_samples(documents: Documents, index: Index) -> None:
    first = {f"{name}_0" for name, pages in documents.pages.items() if len(pages) > 1}
    loader = loader_of(index, where=lambda index: np.array([key not in first for key in index.keys]))
    found = samples_of(loader)
    assert sorted(found) == [(name, frames) for name, frames in whole(documents) if len(frames) == 1]
    assert loader.stats()["skipped"]["where"] == 40 - len(found)


def test_bad_page_stops_a_run_that_raises(damaged: Documents) -> None:
    with pytest.raises(BadDataError, match="bad image 'd009_0' in "):
        loader_of(damaged.index(), errors=ErrorPolicy(on_error="raise"))
    index = damaged.index()
    where = np.array([not key.startswith(("d003", "d009")) for key in index.keys])
    loader = loader_of(index, where=lambda _: where, errors=ErrorPolicy(on_error="raise"))
    with pytest.raises(BadDataError, match=r"bad image 'd001_2' in .*decode"):
        list(loader)


def test_images_left_out_with_a_bad_one_count_towards_the_limits(tmp_path: Path) -> None:
    documents = Documents(tmp_path, (230,), low=8, high=10)
    bad = [name for name, pages in documents.pages.items() if len(pages) == 9][:4]
    documents.damage([(name, 1) for name in bad])
    index = documents.index()
    assert len(index) > 1000
    with pytest.raises(BadDataError, match="were bad or left out with a bad one of their sample, more than max_rate"):
        list(loader_of(index, errors=ErrorPolicy(max_rate=20 / len(index))))
    list(loader_of(index, errors=ErrorPolicy(max_rate=20 / len(index), on_bad="image")))
    with pytest.raises(BadDataError, match="images were bad, more than"):
        list(loader_of(index, errors=ErrorPolicy(max_rate=3 / len(index), on_bad="image")))


def test_frames_are_chosen_before_anything_is_read(documents: Documents, index: Index) -> None:
    loader = loader_of(index, packing=PACKING.replace(frames=Frames(2, how="first", short="skip")))
    batches = list(loader)
    check_documents(batches, documents)
    names = [name for name, pages in documents.pages.items() if len(pages) > 1]
    assert sorted(samples_of(batches)) == [(name, [0, 1]) for name in names]
    assert {key.rpartition("_")[2] for batch in batches for keys in batch.keys for key in keys} == {"0", "1"}
    assert loader.stats()["skipped"]["frames"] == 40 - len(names)
    assert loader.stats()["images"] == 2 * len(names)


VIEWS = Views(
    (2, RandomResizedCrop(scale=(0.25, 1.0), max_tokens=16)), (3, RandomResizedCrop(scale=(0.05, 0.25), max_tokens=4))
)


def patches_of(batches: Sequence[PackedBatch]) -> dict[tuple[str, int], bytes]:
    """The patches of each image, by its key and frame."""
    found = {}
    for batch in batches:
        images = iter(batch.images())
        for b, keys in enumerate(batch.keys):
            for j, key in enumerate(keys):
                found[key, int(batch.frames[b, j])] = next(images).patches.numpy().tobytes()
    return found


def test_views_of_single_pictures_share_a_pack_and_equal_views_made_one_by_one(
    documents: Documents, index: Index
) -> None:
    alone = replace(index, samples=None)
    packing = PACKING.replace(views=VIEWS, scaled_decode=False)
    loader = loader_of(alone, packing=packing, seed=4)
    batches = list(loader)
    for batch in batches:
        for b, keys in enumerate(batch.keys):
            assert batch.frames[b, : len(keys)].tolist() == list(range(5)) * (len(keys) // 5)
            assert batch.samples[b, : len(keys)].tolist() == [1 + j // 5 for j in range(len(keys))]
            assert all(len(set(keys[low : low + 5])) == 1 for low in range(0, len(keys), 5))
    assert loader.stats()["samples"] == documents.num_images
    assert loader.stats()["images_per_sample"] == 5
    found = patches_of(batches)
    order, steps = loader.steps().order, loader.steps()
    assert steps.order is order
    plans = list(order.stream_plans(0, 0))
    made = {}
    context = loader.context
    for plan in plans:
        for i in range(len(plan.images)):
            one = plan.images.take(slice(i, i + 1))
            assert one.frame is not None
            builder = context_builder(context, replace(one, frame=None))
            made[context.index.keys[int(one.row[0])], int(one.frame[0])] = builder
    assert made == found


def context_builder(context: Any, image: Any) -> bytes:
    """The patches of one image, decoded by itself."""
    builder = DecodedBatchBuilder(context, image, [1], 8, epoch=0, step=0, position=0)
    for part in range(builder.num_parts):
        builder.run(part)
    (found,) = builder.finish().images()
    return bytes(found.patches.numpy().tobytes())


def test_views_of_documents_come_page_by_page(documents: Documents, index: Index) -> None:
    packing = PACKING.replace(views=VIEWS, frames=Frames(2), max_images=64)
    batches = list(loader_of(index, packing=packing))
    for batch in batches:
        for b, keys in enumerate(batch.keys):
            frames = batch.frames[b, : len(keys)].tolist()
            pages = [(key, frame // 5) for key, frame in zip(keys, frames, strict=True)]
            assert pages == [page for page in pages[::5] for _ in range(5)]
    found = {name: len(frames) for name, frames in samples_of(batches)}
    assert found == {name: 5 * min(2, len(pages)) for name, pages in documents.pages.items()}


def test_report_of_the_plan_equals_the_totals(index: Index) -> None:
    loader = loader_of(index, packing=PACKING.replace(scope="sample"))
    planned = report_of(loader)
    list(loader)
    stats = loader.stats()
    assert (planned.images, planned.packs) == (stats["images"], stats["packs"])
    assert planned.attention_cost == stats["attention_cost"]


def test_largest_grids_and_label_range_are_those_of_samples(documents: Documents, index: Index) -> None:
    loader = loader_of(index)
    sides = {key: max(-(-w // 8), -(-h // 8)) for key, w, h in zip(index.keys, index.width, index.height, strict=True)}
    largest = loader.largest_grids()[8]
    assert largest.value == max(sides.values())
    assert sides[largest.image.split("'")[1]] == largest.value
    ends = loader.label_range()
    assert ends is not None
    assert [end.value for end in ends] == [min(documents.labels.values()), max(documents.labels.values())]


def test_loader_describes_its_samples(index: Index, documents: Documents) -> None:
    assert f"PackedImageLoader of 40 samples with {documents.num_images} images in" in repr(loader_of(index))


def test_native_images_of_one_sample_each_are_packed_as_without_samples(index: Index) -> None:
    alone = replace(index, samples=None)
    assert alone.samples is None
    every = replace(alone, keys=alone.keys)
    ones = grouped(replace(every, shards=alone.shards))
    assert ones.samples is not None
    ones = replace(ones, samples=replace(ones.samples, starts=np.arange(len(ones) + 1)))
    packing = PACKING.replace(resolution=Native())
    for options in ({}, {"shuffle": True}):
        first, second = (list(loader_of(of, packing=packing, **options)) for of in (alone, ones))
        assert [contents(batch) for batch in first] == [contents(batch) for batch in second]
