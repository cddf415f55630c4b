"""Mixtures: shares hold to the image, sources go on where they stood, and what holds for one source holds for many."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchnpack import Mixture, PackedImageLoader
from patchnpack.loaders import Index, save_index
from patchnpack.packer import BetaDrop, ComplexityDrop, PackedBatch, Packing, RandomResizedCrop

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)

Contents = Callable[[PackedBatch], tuple[object, ...]]


@pytest.fixture(scope="module")
def parts(index: Index) -> dict[str, Index]:
    """17, 23 and 20 images."""
    return {"a": index.select([0]), "b": index.select([1, 2, 3]), "c": index.select([4, 5])}


def mixed(parts: dict[str, Index], weights: dict[str, float], images: int | None = None, **options: Any) -> Any:
    mixture = Mixture({name: (parts[name], weight) for name, weight in weights.items()}, images)
    settled: dict[str, Any] = {"batch_size": 2, "shuffle": True, "packing": PACKING, "num_threads": 2}
    return PackedImageLoader(mixture, **(settled | options))


def source_of(key: str) -> str:
    return {"s0": "a", "s1": "b", "s3": "b", "s4": "c", "s5": "c"}[key[:2]]


def keys_of(loader: PackedImageLoader) -> list[str]:
    return [key for batch in loader for keys in batch.keys for key in keys]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("num_streams", [1, 2])
def test_shares_are_exact_and_sources_continue_in_the_next_epoch(
    num_streams: int, shuffle: bool, parts: dict[str, Index]
) -> None:
    loader = mixed(parts, {"a": 3, "b": 1, "c": 0.5}, 45, shuffle=shuffle, num_streams=num_streams)
    seen: Counter[str] = Counter()
    for epoch in range(1, 12):
        keys = keys_of(loader)
        assert Counter(map(source_of, keys)) == {"a": 30, "b": 10, "c": 5}
        seen.update(keys)
        # Each image of a source has come equally often, except for the pass in progress.
        for name, part in parts.items():
            times = [seen[key] for key in part.keys]
            given = {"a": 30, "b": 10, "c": 5}[name] * epoch
            assert set(times) <= {given // len(part), given // len(part) + 1}
            assert sum(times) == given
    assert loader.stats()["sources"] == {"a": 330, "b": 110, "c": 55}


def test_default_epoch_is_as_long_as_all_sources_together(parts: dict[str, Index]) -> None:
    assert len(keys_of(mixed(parts, {"a": 1, "b": 1, "c": 1}))) == 60
    assert sorted(keys_of(mixed(parts, {"a": 17, "b": 23, "c": 20}))) == sorted(
        key for part in parts.values() for key in part.keys
    )


def test_sources_are_mixed_evenly_in_a_new_order_each_epoch(index: Index) -> None:
    # Sources of many rows, none of which is decoded.
    many = Index.concatenate([index.select([0])] * 300)
    loader = mixed({"a": many, "b": many}, {"a": 3, "b": 1}, 8000, packing=PACKING.replace(balance=0))
    orders = []
    for epoch in range(2):
        rows = np.concatenate([part.row for part in loader.steps().order.stream_rows(epoch, 0)])
        from_b = rows >= len(many)
        assert from_b.sum() == 2000
        ahead = np.cumsum(from_b) - np.arange(1, 8001) / 4
        assert abs(ahead).max() < 4  # always close to its share
        assert len(set(np.diff(np.flatnonzero(from_b)).tolist())) > 3  # and without a fixed rhythm
        orders.append(rows.tolist())
    assert orders[0] != orders[1]


def test_image_that_repeats_within_an_epoch_gets_new_draws(parts: dict[str, Index]) -> None:
    packing = PACKING.replace(resolution=RandomResizedCrop(max_tokens=20), token_drop=BetaDrop(0.3, 0.6), fill="none")
    drawn: list[float] = []

    def note(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        drawn.append(float(rng.random()))
        return image

    loader = mixed(parts, {"a": 1}, 17 * 4, packing=packing, transform=note)
    tokens: dict[str, list[tuple[object, ...]]] = {}
    for batch in loader:
        for image in batch.images():
            drawn_image = (*image.grid, *image.coords.ravel().tolist(), image.patches.numpy().tobytes())
            tokens.setdefault(image.key, []).append(drawn_image)
    assert all(len(draws) == 4 for draws in tokens.values())
    assert sum(len(set(draws)) == 4 for draws in tokens.values()) > 12
    assert len(set(drawn)) == len(drawn) == 68


@pytest.mark.parametrize("num_streams", [1, 2])
def test_mixture_resumes_at_any_step_of_any_epoch(
    num_streams: int, parts: dict[str, Index], contents: Contents
) -> None:
    def make() -> PackedImageLoader:
        found: PackedImageLoader = mixed(
            parts, {"a": 3, "b": 1, "c": 1}, 50, packing=PACKING.replace(balance=8), num_streams=num_streams
        )
        return found

    loader, states, whole = make(), [], []
    for _ in range(3):
        for batch in loader:
            states.append(json.loads(json.dumps(loader.state_dict())))
            whole.append(contents(batch))
    for done in range(1, len(whole), 3):
        resumed = make()
        resumed.load_state_dict(states[done - 1])
        tail = list(itertools.islice(itertools.chain.from_iterable(resumed for _ in range(3)), len(whole) - done))
        assert [contents(batch) for batch in tail] == whole[done:]


def test_ranks_share_a_mixture(parts: dict[str, Index]) -> None:
    one = mixed(parts, {"a": 1, "b": 2}, 40, batch_size=6)
    ranks = [mixed(parts, {"a": 1, "b": 2}, 40, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(key for loader in ranks for key in keys_of(loader)) == sorted(keys_of(one))
    assert len({len(loader) for loader in ranks}) == 1


def test_state_of_another_mixture_is_refused(parts: dict[str, Index]) -> None:
    state = mixed(parts, {"a": 1, "b": 2}, 40).state_dict()
    with pytest.raises(ValueError, match=r"the state was saved with mixture = "):
        mixed(parts, {"a": 2, "b": 2}, 40).load_state_dict(state)


def test_sources_may_be_shards_or_index_files(drawn: Any, parts: dict[str, Index], tmp_path: Path) -> None:
    save_index(parts["b"], tmp_path / "b.parquet")
    loader = PackedImageLoader(
        Mixture({"a": (drawn.shards[0], 1), "b": (str(tmp_path / "b.parquet"), 1)}, 34), PACKING, batch_size=2
    )
    assert Counter(map(source_of, keys_of(loader))) == {"a": 17, "b": 17}


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (lambda parts: Mixture({}), "the mixture has no source"),
        (lambda parts: Mixture({"a": (parts["a"], 0)}), "the weight of 'a' is 0; it must be above 0"),
        (lambda parts: Mixture({"a": (parts["a"], float("nan"))}), "the weight of 'a' is nan"),
        (lambda parts: Mixture({"a": (parts["a"],)}), "give \\(shards, weight\\)"),  # type: ignore[dict-item]
        (lambda parts: Mixture({"a": (parts["a"], 1)}, 0), "images_per_epoch is 0; it must be at least 1"),
        (
            lambda parts: Mixture({"a": (parts["a"], 1), "b": (parts["b"], 1e-6)}),
            "source 'b' gets 0 of 40 images",
        ),
    ],
)
def test_invalid_mixture_is_refused(mixture: Any, message: str, parts: dict[str, Index]) -> None:
    with pytest.raises(ValueError, match=message):
        PackedImageLoader(mixture(parts), PACKING, batch_size=1)


def test_mixture_with_an_unusable_source_or_an_index_is_refused(parts: dict[str, Index], index: Index) -> None:
    mixture = Mixture({"a": (parts["a"], 1), "b": (parts["b"], 1)})
    with pytest.raises(ValueError, match=r"none of the images of source 'a' can be used; leave it out"):
        PackedImageLoader(mixture, PACKING, batch_size=1, where=lambda index: np.arange(40) >= 17)
    with pytest.raises(ValueError, match=r"index= is for one source; in a Mixture, name index files as sources"):
        PackedImageLoader(mixture, PACKING, batch_size=1, index=index)


def test_a_mixture_drops_by_the_bytes_of_its_images(parts: dict[str, Index]) -> None:
    packing = PACKING.replace(token_drop=ComplexityDrop(0.2, 0.7, 0.5, 3), fill="none")
    tokens = [
        {image.key: len(image.patches) for batch in loader for image in batch.images()}
        for loader in (
            mixed(parts, {"a": 1, "b": 1, "c": 1}, packing=packing),
            *(PackedImageLoader(part, packing, batch_size=2) for part in parts.values()),
        )
    ]
    assert len(tokens[0]) == 57  # 20 of each source's 17, 23 and 20 images
    assert tokens[0].items() <= (tokens[1] | tokens[2] | tokens[3]).items()
