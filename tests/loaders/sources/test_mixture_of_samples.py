"""Mixtures whose sources hold samples of several images, each by a rule of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchnpack import Mixture, PackedImageLoader
from patchnpack.loaders import ErrorPolicy
from patchnpack.packer import ConstantDrop, Frames, PackedBatch, Rows
from tests.images import draw_image
from tests.loaders.prepacking.documents import PACKING, RULES, pages_of, samples_in, write_documents

Contents = Callable[[PackedBatch], tuple[object, ...]]
COUNT = 16
FIRST = {"members": 0, "key": 100, "photos": 200}
SAMPLE = {**RULES, "photos": None}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("mixed")
    made = {name: write_documents(folder / name, name, COUNT, first=FIRST[name]) for name in RULES}
    return made | {"photos": write_documents(folder / "photos", "key", COUNT, first=FIRST["photos"])}


def loader(sources: Any, weights: Mapping[str, float], images: int | None = None, **options: Any) -> PackedImageLoader:
    mixture = Mixture({name: (sources[name], weight) for name, weight in weights.items()}, images_per_epoch=images)
    given: dict[str, Any] = {"packing": PACKING, "batch_size": 2, "label": "cls", "shuffle": True, "seed": 4}
    given["sample"] = {name: SAMPLE.get(name) for name in weights}
    return PackedImageLoader(mixture, **given | options)


def whole(name: str) -> list[list[tuple[int, int]]]:
    """Return the samples of a source, each as (frame, label) of its images."""
    numbers = range(FIRST[name], FIRST[name] + COUNT)
    if name == "photos":
        return [[(0, n)] for n in numbers for _ in range(pages_of(n))]
    return [[(i, n) for i in range(pages_of(n))] for n in numbers]


def counted(batches: Any) -> Counter[tuple[tuple[int, int], ...]]:
    return Counter(tuple((frame, label) for _, frame, label in sample) for sample in samples_in(batches))


def test_each_source_has_its_own_rule_and_each_sample_is_whole(sources: Any) -> None:
    photos = len(whole("photos"))
    made = loader(sources, {"members": COUNT, "key": COUNT, "photos": photos})
    expected = Counter(tuple(sample) for name in FIRST for sample in whole(name))
    for _ in range(2):
        assert counted(made) == expected
    stats = made.stats()
    assert stats["samples"] == 2 * (2 * COUNT + photos)
    assert stats["multi_page"] == 0  # all pages of the files are used
    assert made.index.samples is not None
    assert made.index.samples.rule == f"members, {RULES['key']}"


def test_one_rule_serves_all_sources(sources: Any) -> None:
    given = {"key": sources["key"], "photos": sources["photos"]}
    made = loader(given, {"key": 1, "photos": 1}, sample=RULES["key"])
    numbers = [n for name in given for n in range(FIRST[name], FIRST[name] + COUNT)]
    assert counted(made) == Counter(tuple((i, n) for i in range(pages_of(n))) for n in numbers)


def test_weights_are_shares_of_samples(sources: Any) -> None:
    made = loader(sources, {"members": 3, "photos": 1}, images=40)
    for _ in range(3):
        labels = [sample[0][2] for sample in samples_in(made)]
        assert Counter("photos" if label >= 200 else "members" for label in labels) == {"members": 30, "photos": 10}


def test_a_source_continues_where_the_last_epoch_left_it(sources: Any) -> None:
    made = loader(sources, {"members": 1, "photos": 1}, images=COUNT)
    seen = sum((counted(made) for _ in range(2)), Counter())
    assert Counter({k: n for k, n in seen.items() if k[0][1] < 100}) == Counter(map(tuple, whole("members")))


def test_samples_that_repeat_in_an_epoch_get_new_draws_for_all_their_images(sources: Any) -> None:
    made = loader(sources, {"members": 1}, images=2 * COUNT, packing=PACKING.replace(token_drop=ConstantDrop(0.5)))
    order = made.steps().order
    rows = Rows.concatenate(list(order.stream_rows(0, 0)))
    assert rows.offsets is not None
    by_row: dict[int, set[int]] = {}
    for row, row_id in zip(rows.row.tolist(), rows.row_id.tolist(), strict=True):
        by_row.setdefault(row, set()).add(row_id)
    assert {len(ids) for ids in by_row.values()} == {2}
    for low, high in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        assert len({row_id >> 52 for row_id in rows.row_id[low:high].tolist()}) == 1
    kept: dict[tuple[int, int], list[bytes]] = {}
    for batch in made:
        for image, frame in zip(batch.images(), batch.frames[batch.image_mask].tolist(), strict=True):
            kept.setdefault((int(image.label), frame), []).append(image.coords.numpy().tobytes())
    assert all(len(coords) == 2 for coords in kept.values())
    assert sum(len(set(coords)) == 2 for coords in kept.values()) > len(kept) // 2


@pytest.mark.parametrize("streams", [1, 2])
def test_threads_ranks_and_resumes_share_one_order(sources: Any, contents: Contents, streams: int) -> None:
    weights = {"members": 2, "key": 1, "photos": 2}
    given: dict[str, Any] = {"images": 60, "num_streams": streams, "block": 6}
    one = loader(sources, weights, num_threads=1, **given)
    batches = list(one)
    assert list(map(contents, loader(sources, weights, num_threads=4, **given))) == list(map(contents, batches))
    expected = counted(batches)
    for world in (2, 3):
        ranks = [loader(sources, weights, rank=rank, world_size=world, **given) for rank in range(world)]
        assert sum(map(counted, ranks), Counter()) == expected
    for step in range(1, len(batches)):
        first, other = loader(sources, weights, **given), loader(sources, weights, **given)
        before = list(islice(first, step))
        other.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert list(map(contents, [*before, *other])) == list(map(contents, batches))


@pytest.mark.parametrize("on_bad", ["sample", "image"])
def test_a_corrupt_page_is_counted_in_a_mixture(sources: Any, tmp_path: Path, on_bad: Any) -> None:
    shards = write_documents(tmp_path / "members", "members", COUNT, corrupt=((1, 0), (7, 4)))
    made = loader({**sources, "members": shards}, {"members": 1, "key": 1}, errors=ErrorPolicy(on_bad=on_bad))
    list(made)
    stats = made.stats()
    assert stats["images"] + stats["bad_images"] + stats["left_out"] == sum(
        pages_of(FIRST[name] + n) for name in ("members", "key") for n in range(COUNT)
    )
    assert stats["bad_images"] == 2
    assert stats["samples"] + stats["bad_samples"] == 2 * COUNT
    assert stats["bad_samples"] == (2 if on_bad == "sample" else 0)


def test_frames_are_chosen_in_each_source(sources: Any) -> None:
    made = loader(sources, {"members": COUNT, "photos": 70}, packing=PACKING.replace(frames=Frames(1, "first")))
    assert all(len(sample) == 1 for sample in samples_in(made))


class Clips:
    """Frames as pairs of an array and the number of their clip, three a clip."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return np.asarray(draw_image(16, 16, seed=row)), 300 + row // 3


def test_a_data_set_and_shards_have_rules_of_their_own(sources: Any, contents: Contents) -> None:
    given = {"members": sources["members"], "clips": Clips()}
    sample = {"members": "members", "clips": lambda key: str(int(key) // 3)}
    label = {"members": "cls", "clips": None}
    made = [
        loader(given, {"members": 1, "clips": 1}, images=2 * COUNT, sample=sample, label=label, num_threads=n)
        for n in (1, 4)
    ]
    batches = list(made[0])
    assert list(map(contents, batches)) == list(map(contents, made[1]))
    clips = {key for key in counted(batches) if key[0][1] >= 300}
    assert clips == {tuple((i, 300 + n) for i in range(3)) for n in range(4)}


def test_a_rule_for_a_source_that_is_none_is_an_error(sources: Any) -> None:
    with pytest.raises(
        ValueError, match="sample has no source 'photos'; a dict gives each source of the mixture its sample"
    ):
        loader(sources, {"members": 1, "photos": 1}, sample={"members": "members"})
    with pytest.raises(ValueError, match="sample names 'x', which is no source"):
        loader(sources, {"members": 1}, sample={"members": "members", "x": None})
    with pytest.raises(ValueError, match=r"sample is \{'members': 'members'\}; it must be"):
        PackedImageLoader(sources["members"], PACKING, batch_size=1, sample={"members": "members"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sample is 'member'; did you mean 'members'"):
        loader(sources, {"members": 1}, sample={"members": "member"})


def test_states_of_other_rules_are_refused(sources: Any) -> None:
    one = loader(sources, {"key": 1, "photos": 1}, images=20)
    next(iter(one))
    other = loader(sources, {"key": 1, "photos": 1}, images=20, sample=None)
    with pytest.raises(ValueError, match="sample"):
        other.load_state_dict(one.state_dict())
