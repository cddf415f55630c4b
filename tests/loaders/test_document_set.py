"""A set of 200 documents: the promises of samples, from every kind of source and for every algorithm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from patchnpack import ErrorPolicy, PackedImageLoader, pack_stream
from patchnpack.loaders import Job
from patchnpack.loaders.plan_report import report_of
from patchnpack.packer import PackedBatch, Packing
from patchnpack.packer.binpacking.algorithms import Algorithm
from tests.loaders.conftest import contents
from tests.loaders.documents import Documents, check_documents, conserved, samples_of
from tests.loaders.streaming.streams import samples_of as items_of

WORLD_SIZES = (1, 2, 3, 5)
NUM_DOCUMENTS = 200
ALGORITHMS = get_args(Algorithm)
SOURCES = ("shards", "images", "patches")  # shards, and packed folders of both stores
RULE = r"key:(.+)_\d+"
PACKING = Packing(seq_len=128, patch_size=8, max_images=64, lookahead=24)


def write_documents(folder: Path) -> Documents:
    """200 documents of 1 to 9 pages of mixed sizes in 4 shards of unequal size."""
    return Documents(folder, (83, 1, 47, 69), low=4, high=24)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Documents:
    return write_documents(tmp_path_factory.mktemp("documents"))


class Source:
    """Documents in shards, or packed into a folder of one store; it opens one loader per rank."""

    def __init__(self, documents: Documents, kind: Any, algorithm: Algorithm, folder: Path, **options: Any):
        packing = PACKING.replace(algorithm=algorithm)
        self.options: dict[str, Any] = {"batch_size": 1, "shuffle": True, "num_threads": 1} | options
        self.source: Any = documents.shards
        if kind == "shards":
            self.options |= {"packing": packing, "label": "cls", "sample": RULE}
        else:
            out = str(folder / kind)
            job: dict[str, Any] = {"shuffle": True, "part_packs": 8, "label": "cls", "sample": RULE}
            Job(source=documents.shards, out=out, packing=packing, store=kind, **job, **options).run()
            self.source = out

    def ranks(self, world_size: int, **options: Any) -> list[PackedImageLoader]:
        given = self.options | options
        return [PackedImageLoader(self.source, **given, rank=rank, world_size=world_size) for rank in range(world_size)]


def _cases() -> Iterator[Any]:
    """Every source with every algorithm; of the packed folders, few run outside the soak tests."""
    for kind in SOURCES:
        for algorithm in ALGORITHMS:
            often = kind == "shards" or algorithm in ("auto", "best_fit_decreasing")
            yield pytest.param((kind, algorithm), id=f"{kind}-{algorithm}", marks=() if often else pytest.mark.soak)


@pytest.fixture(params=_cases())
def source(request: pytest.FixtureRequest, documents: Documents, tmp_path: Path) -> Source:
    kind, algorithm = request.param
    return Source(documents, kind, algorithm, tmp_path)


def whole(documents: Documents) -> dict[str, list[int]]:
    return {name: list(range(len(pages))) for name, pages in documents.pages.items()}


def pages_of(batches: list[PackedBatch]) -> dict[str, list[int]]:
    """The pages of each document of the batches, each of which must be there once."""
    found = samples_of(batches)
    assert len(dict(found)) == len(found)
    return dict(found)


def test_set_holds_200_documents_of_1_to_9_pages(documents: Documents) -> None:
    assert len(documents.pages) == NUM_DOCUMENTS
    assert {len(pages) for pages in documents.pages.values()} == set(range(1, 10))
    assert len({page.shape for pages in documents.pages.values() for page in pages}) > 100


def test_each_document_is_whole_and_once_an_epoch(documents: Documents, source: Source) -> None:
    for world_size in WORLD_SIZES:
        one, four = (source.ranks(world_size, num_threads=threads) for threads in (1, 4))
        for epochs in (1, 2):
            batches = [batch for loader in one for batch in loader]
            assert pages_of(batches) == whole(documents)
            check_documents(batches, documents)
            assert [contents(batch) for loader in four for batch in loader] == [contents(batch) for batch in batches]
            assert conserved([loader.stats() for loader in one]) == {
                "samples": epochs * NUM_DOCUMENTS,
                "bad_samples": 0,
                "images": epochs * documents.num_images,
                "bad_images": 0,
                "left_out": 0,
                "skipped": 0,
            }


def test_epoch_resumes_at_every_step(source: Source) -> None:
    (loader,) = source.ranks(1)
    expected: list[Any] = []
    states = [loader.state_dict()]
    for batch in loader:
        expected.append(contents(batch))
        states.append(loader.state_dict())
    assert len(states) > 25
    for step, state in enumerate(states[:-1]):
        (resumed,) = source.ranks(1)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert [contents(batch) for batch in resumed] == expected[step:]
    (resumed,) = source.ranks(1)
    resumed.load_state_dict(states[-1])
    assert [contents(batch) for batch in resumed] == [contents(batch) for batch in loader]  # the next epoch


def test_epoch_resumes_on_any_number_of_ranks(documents: Documents, source: Source) -> None:
    for before in WORLD_SIZES:
        saved = source.ranks(before)
        iterators = [iter(loader) for loader in saved]
        used = [next(iterator) for iterator in iterators for _ in range(2)]
        states = [loader.state_dict() for loader in saved]
        assert all(state == states[0] for state in states)
        for after in WORLD_SIZES:
            ranks = source.ranks(after)
            for loader in ranks:
                loader.load_state_dict(states[0])
            rest = [batch for loader in ranks for batch in loader]
            assert pages_of([*used, *rest]) == whole(documents), (before, after)


class Stateful:
    """Items with the state of an iterable."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self._items, self._at = items, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self._at < len(self._items):
            self._at += 1
            yield self._items[self._at - 1]

    def state_dict(self) -> dict[str, int]:
        return {"at": self._at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._at = state["at"]


def stream_of(items: list[dict[str, Any]], algorithm: Algorithm, **options: Any) -> Any:
    packing = PACKING.replace(algorithm=algorithm)
    return pack_stream(Stateful(items), packing, batch_size=1, label="cls", sample=RULE, **options)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_stream_has_each_document_whole_and_once(documents: Documents, algorithm: Algorithm) -> None:
    items = list(items_of(documents.shards))
    streams = [stream_of(items, algorithm, num_threads=threads) for threads in (0, 1, 4)]
    batches, *others = map(list, streams)
    assert pages_of(batches) == whole(documents)
    check_documents(batches, documents)
    for of_threads in others:
        assert list(map(contents, of_threads)) == list(map(contents, batches))
    stats = streams[0].stats()
    assert (stats["samples"], stats["images"]) == (NUM_DOCUMENTS, documents.num_images)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_stream_resumes_at_every_step_with_each_document_once(documents: Documents, algorithm: Algorithm) -> None:
    items = list(items_of(documents.shards))
    first = stream_of(items, algorithm, num_threads=0)
    used: list[PackedBatch] = []
    for batch in first:
        used.append(batch)
        second = stream_of(items, algorithm, num_threads=0)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert pages_of([*used, *second]) == whole(documents)
    assert len(used) > 25


@pytest.mark.parametrize("on_bad", ["sample", "image"])
@pytest.mark.parametrize("kind", [*SOURCES, "stream"])
def test_one_corrupt_page_leaves_out_what_the_policy_says(tmp_path: Path, kind: str, on_bad: Any) -> None:
    damaged = write_documents(tmp_path)
    name, page = next((name, 3) for name, pages in damaged.pages.items() if len(pages) == 7)
    damaged.damage([(name, page)])
    expected = whole(damaged)
    if on_bad == "sample":
        del expected[name]
    else:
        expected[name].remove(page)
    errors = ErrorPolicy(on_bad=on_bad)
    items = list(items_of(damaged.shards))
    for algorithm in ALGORITHMS if kind in ("shards", "stream") else ALGORITHMS[:1]:
        ways: list[list[Any]] = [[stream_of(items, algorithm, errors=errors)]]
        if kind != "stream":
            source = Source(damaged, kind, algorithm, tmp_path, errors=errors)
            ways = [source.ranks(world_size) for world_size in WORLD_SIZES]
            assert report_of(ways[0][0]).images == damaged.num_images
        for loaders in ways:
            batches = [batch for loader in loaders for batch in loader]
            assert pages_of(batches) == expected
            check_documents(batches, damaged)
            bad_samples, left_out = (1, 6) if on_bad == "sample" else (0, 0)
            assert conserved([loader.stats() for loader in loaders]) == {
                "samples": NUM_DOCUMENTS - bad_samples,
                "bad_samples": bad_samples,
                "images": damaged.num_images - 1 - left_out,
                "bad_images": 1,
                "left_out": left_out,
                "skipped": 0,
            }
