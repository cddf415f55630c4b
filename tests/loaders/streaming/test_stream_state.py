"""A stream over samples with a state resumes: each sample is used once, wherever the run stopped."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import datasets
import numpy as np
import pytest

from patchnpack.loaders import ErrorPolicy, pack_stream
from patchnpack.packer import BetaDrop, Packing, PatchSizes
from tests.images import draw_image, encode_image
from tests.loaders.loading import keys_of
from tests.loaders.streaming.streams import PACKING, rows_in

COUNT = 400


@lru_cache(COUNT)
def drawn(i: int) -> dict[str, Any]:
    """An image by its number, as bytes, a PIL image and an array."""
    rng = np.random.default_rng(i)
    image = draw_image(int(rng.integers(8, 60)), int(rng.integers(8, 60)), seed=i)
    return {"PIL": image, "array": np.asarray(image), "bytes": encode_image(image, "PNG")}


class Samples:
    """Drawn samples, in order, with the state of an iterable; counts how many were read."""

    def __init__(
        self, count: int = COUNT, *, bad: tuple[int, ...] = (), without: tuple[int, ...] = (), kind: str = "bytes"
    ) -> None:
        self._count, self._bad, self._without, self._kind = count, bad, without, kind
        self._at = self._begin = self.read = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._at, begin = self._begin, self._begin
        for i in range(begin, self._count):
            self._at = i + 1
            self.read += 1
            if i in self._without:
                yield {"cls": i, "__key__": str(i)}
                continue
            yield {"png": b"no image" if i in self._bad else drawn(i % COUNT)[self._kind], "cls": i, "__key__": str(i)}

    def state_dict(self) -> dict[str, int]:
        return {"at": self._at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._begin = state["at"]


def stream(samples: Any = None, packing: Packing = PACKING, **options: Any) -> Any:
    given: dict[str, Any] = {"batch_size": 2, "label": "cls", "num_threads": 1} | options
    return pack_stream(Samples() if samples is None else samples, packing, **given)


def saved(one: Any, steps: int) -> tuple[list[str], dict[str, Any]]:
    """The keys of the first steps, and the state after them as JSON gives it back."""
    batches = [next(one) for _ in range(steps)]
    return keys_of(batches), json.loads(json.dumps(one.state_dict()))


@pytest.mark.parametrize(
    "packing",
    [
        PACKING,
        PACKING.replace(algorithm="auto", lookahead=32, token_drop=BetaDrop(0.3, 0.6)),
        PACKING.replace(algorithm="best_fit_decreasing", lookahead=8),
        PACKING.replace(patch_size=PatchSizes((8, 6))),
        PACKING.replace(algorithm="first_fit", lookahead=5, seq_len=30, oversize="skip"),
    ],
    ids=lambda packing: str(packing.algorithm),
)
def test_resumed_at_any_step_each_sample_is_used_once(packing: Packing) -> None:
    whole = list(stream(packing=packing))
    expected = sorted(map(int, keys_of(whole)))
    labels = {key: label for batch in whole for key, label in _labels(batch)}
    for steps in range(0, len(whole), max(1, len(whole) // 10)):
        used, state = saved(stream(packing=packing, num_threads=2, prefetch=4), steps)
        samples = Samples()
        again = stream(samples, packing)
        again.load_state_dict(state)
        rest = list(again)
        assert sorted(map(int, used + keys_of(rest))) == expected
        assert all(labels[key] == label for batch in rest for key, label in _labels(batch))
        assert all(str(row) == key for batch, row, key in _rows(rest))
        assert samples.read <= COUNT - len(used) + 300  # what waited, and up to 64 samples before it
        if rest:
            assert (rest[0].step, rest[0].position) == (steps, 2 * steps + 2)


def _labels(batch: Any) -> list[tuple[str, int]]:
    return [(image.key, image.label) for image in batch.images()]


def _rows(batches: list[Any]) -> Iterator[tuple[Any, int, str]]:
    return ((batch, row, key) for batch in batches for row, key in zip(rows_in([batch]), keys_of([batch]), strict=True))


def test_state_of_an_earlier_batch_and_of_a_resumed_stream() -> None:
    one = stream(num_threads=2, prefetch=5)
    batches = [next(one) for _ in range(12)]
    states = [json.loads(json.dumps(one.state_dict(after=batch))) for batch in batches]
    expected = list(range(COUNT))
    for number in (0, 5, 11):
        again = stream()
        again.load_state_dict(states[number])
        assert json.loads(json.dumps(again.state_dict())) == states[number]  # nothing has been used since
        first = [next(again) for _ in range(3)]
        third = stream()
        third.load_state_dict(json.loads(json.dumps(again.state_dict())))
        assert sorted(map(int, keys_of([*batches[: number + 1], *first, *third]))) == expected


@pytest.mark.parametrize("kind", ["PIL", "array"])
def test_decoded_samples_are_recognized(kind: str) -> None:
    used, state = saved(stream(Samples(kind=kind)), 7)
    again = stream(Samples(kind=kind))
    again.load_state_dict(state)
    assert sorted(map(int, used + keys_of(list(again)))) == list(range(COUNT))


def test_bad_samples_are_counted_by_the_run_that_meets_them_first() -> None:
    bad = (3, 20, 130, 131, 399)
    without = (5, 21, 22, 129, 395)
    one = stream(Samples(bad=bad, without=without), errors=ErrorPolicy())
    used, state = saved(one, 9)
    again = stream(Samples(bad=bad, without=without), errors=ErrorPolicy())
    again.load_state_dict(state)
    rest = keys_of(list(again))
    assert sorted(map(int, used + rest)) == [i for i in range(COUNT) if i not in bad + without]
    assert sum(made.stats()["without_image"] for made in (one, again)) == 5
    counts = [made.stats()["bad_images"] for made in (one, again)]
    assert sum(counts) == 5
    assert {b["row"] for made in (one, again) for b in made.stats()["bad"]} == set(bad)


def test_long_stream_keeps_few_rows_and_refuses_states_of_old_batches() -> None:
    one = stream(Samples(3000))
    first = next(one)
    for _ in range(150):
        last = next(one)
    with pytest.raises(ValueError, match=r"the batch of step 0 is too old; .* save the state sooner"):
        one.state_dict(after=first)
    assert len(one._progress._used) < 64 * last.num_images * 3
    assert len(json.dumps(one.state_dict())) < 20_000


def _photos(*, shuffled: bool = False, decode: bool = False) -> datasets.IterableDataset:
    rows = list(Samples(200))
    columns = {"image": [{"bytes": row["png"], "path": None} for row in rows], "label": [row["cls"] for row in rows]}
    features = datasets.Features({"image": datasets.Image(decode=decode), "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict(columns, features=features).to_iterable_dataset(num_shards=4)
    return dataset.shuffle(seed=0, buffer_size=20) if shuffled else dataset


@pytest.mark.parametrize("decode", [False, True])
def test_iterable_data_set_of_hugging_face_resumes(decode: bool) -> None:
    options: dict[str, Any] = {"image": "image", "label": "label"}
    whole = list(stream(_photos(decode=decode), **options))
    labels = sorted(label for batch in whole for _, label in _labels(batch))
    assert labels == list(range(200))
    for steps in (1, 4, len(whole) - 1):
        one = stream(_photos(decode=decode), **options)
        used = [label for _ in range(steps) for _, label in _labels(next(one))]
        again = stream(_photos(decode=decode), **options)
        again.load_state_dict(json.loads(json.dumps(one.state_dict())))
        rest = [label for batch in again for _, label in _labels(batch)]
        assert sorted(used + rest) == labels


def test_shuffle_buffer_loses_and_repeats_only_what_its_own_state_does_and_warns() -> None:
    options: dict[str, Any] = {"image": "image", "label": "label", "packing": PACKING.replace(lookahead=16)}
    order = [row["label"] for row in _photos(shuffled=True)]
    one = stream(_photos(shuffled=True), **options)
    used = [label for _ in range(20) for _, label in _labels(next(one))]
    state = one.state_dict()
    assert "shuffle buffer" in state["limits"]
    before, after = order[: state["row"]], order[state["row"] :]
    alone = _photos(shuffled=True)
    alone.load_state_dict(state["iterable"])
    comes_again = [row["label"] for row in alone]
    again = stream(_photos(shuffled=True), **options)
    again.load_state_dict(state)
    with pytest.warns(
        UserWarning, match="does not repeat the samples that followed its state, as with a shuffle buffer"
    ):
        rest = [label for batch in again for _, label in _labels(batch)]
    assert {label for label in rest if label in used} <= set(before) & set(comes_again)
    assert set(range(200)) - {*used, *rest} <= set(after) - set(comes_again)
    assert len(set(rest)) == len(rest)


def test_samples_without_a_state_give_a_stream_without_one() -> None:
    one = stream(iter(Samples()))
    assert not hasattr(one, "state_dict")
    with pytest.raises(AttributeError, match=r"no state_dict, since its samples have none: .* IterableDataset"):
        one.state_dict()
    with pytest.raises(AttributeError, match="no load_state_dict, since its samples have none"):
        one.load_state_dict({})
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        one.other  # noqa: B018


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": None}, "this is not the state of a stream"),
        ({"version": 9}, "the state has version 9, but this release reads 2"),
        ({"used": [1]}, "the state names used rows without their identities"),
    ],
)
def test_state_that_is_none_is_refused(change: dict[str, Any], message: str) -> None:
    _, state = saved(stream(), 0)
    with pytest.raises(ValueError, match=message):
        stream().load_state_dict(state | change)


def test_state_of_another_stream_or_a_late_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one = stream()
    _, state = saved(one, 2)
    with pytest.raises(ValueError, match="load a state before its first batch"):
        one.load_state_dict(state)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    other = stream()
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="the state is of stream 0 of 1, and this is 1 of 2"):
        next(other)


def test_resuming_warns_of_nothing_where_samples_repeat() -> None:
    _, state = saved(stream(), 5)
    again = stream()
    again.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(again)
