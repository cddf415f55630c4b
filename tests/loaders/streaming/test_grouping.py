"""Streams whose samples are groups of neighbouring items, named by their keys."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders import ErrorPolicy, pack_stream
from patchnpack.loaders.streaming import grouping
from patchnpack.packer import Packing
from tests.loaders.streaming.documents import (
    PACKING,
    by_keys,
    by_members,
    padded,
    page,
    pages_of,
    pixels_in,
    samples_in,
)

COUNT = 60
RULE = r"key:(.+)_\d+"


def stream(samples: Any, packing: Packing = PACKING, **options: Any) -> Any:
    given: dict[str, Any] = {"batch_size": 2, "label": "cls", "sample": RULE, "num_threads": 1} | options
    return pack_stream(samples, packing, **given)


def document(key: str) -> str:
    return key.partition("_")[0]


@pytest.mark.parametrize("rule", [RULE, document], ids=["key", "function"])
def test_neighbours_whose_names_agree_are_one_sample(rule: Any) -> None:
    one = stream(by_keys(COUNT), sample=rule)
    batches = list(one)
    found = sorted(samples_in(batches), key=lambda sample: sample[0][2])
    assert found == [[(f"doc{n}_{i}", i, n) for i in range(pages_of(n))] for n in range(COUNT)]
    assert all(np.array_equal(pixels, padded(page(*at)[1])) for at, pixels in pixels_in(batches).items())
    assert (one.stats()["samples"], one.stats()["images"]) == (COUNT, sum(map(pages_of, range(COUNT))))


def test_the_label_of_a_sample_is_that_of_its_first_item_with_one() -> None:
    items = [{"__key__": f"a_{i}", "png": page(0, i)[0], "cls": 5 if i else None} for i in range(3)]
    assert [label for _, _, label in samples_in(stream(items))[0]] == [5, 5, 5]


def test_a_sample_of_several_labels_is_an_error() -> None:
    items = [{"__key__": f"a_{i}", "png": page(0, i)[0], "cls": 5 + i} for i in range(3)]
    with pytest.raises(ValueError, match=r"'a_1' has label 6, and 'a_0', of the same group, has label 5"):
        list(stream(items))


def test_rows_number_the_items() -> None:
    rows = [row for batch in stream(by_keys(COUNT)) for row in batch.rows[batch.image_mask].tolist()]
    assert sorted(rows) == list(range(sum(map(pages_of, range(COUNT)))))


def test_a_group_that_returns_is_an_error() -> None:
    samples = [*by_keys(20), *by_keys(3)]
    with pytest.raises(ValueError, match=r"the group 'doc0' of the key 'doc0_0' \(sample 50 of .* returns"):
        list(stream(samples))


def test_a_group_that_returns_is_noticed_while_its_name_is_remembered(monkeypatch: Any) -> None:
    monkeypatch.setattr(grouping, "REMEMBERED", 10)
    assert len(samples_in(stream([*by_keys(20), *by_keys(3)]))) == 23
    monkeypatch.setattr(grouping, "REMEMBERED", 20)
    with pytest.raises(ValueError, match="returns after another group"):
        list(stream([*by_keys(20), *by_keys(3)]))


def test_a_key_without_a_name_is_an_error() -> None:
    samples = [*by_keys(3), {"__key__": "cover", "png": page(0, 0)[0], "cls": 0}]
    with pytest.raises(ValueError, match=r"has no name for the key 'cover' of sample 8"):
        list(stream(samples))
    with pytest.raises(ValueError, match=r"sample is the function '.*', which has no name .* return a text"):
        list(stream(samples, sample=lambda key: None if key == "cover" else document(key)))


def test_a_group_that_does_not_end_is_an_error(monkeypatch: Any) -> None:
    monkeypatch.setattr(grouping, "_LONGEST", 20)
    with pytest.raises(ValueError, match="the group 'd' has more than 20 samples, its limit"):
        list(stream(by_keys(COUNT), sample="key:(.).*"))


@pytest.mark.parametrize("on_bad", ["sample", "image"])
def test_a_bad_item_leaves_out_its_sample_or_itself(on_bad: Any) -> None:
    bad = {(1, 0), (5, 2), (6, 1), (6, 2), (20, 0)}  # document 20 has one page
    one = stream(by_keys(COUNT, bad), errors=ErrorPolicy(on_bad=on_bad))
    found, stats = {sample[0][2]: [key for key, _, _ in sample] for sample in samples_in(one)}, one.stats()
    expected = {n: [f"doc{n}_{i}" for i in range(pages_of(n)) if (n, i) not in bad] for n in range(COUNT)}
    lost = (1, 5, 6, 20) if on_bad == "sample" else (20,)
    assert found == {n: keys for n, keys in expected.items() if n not in lost}
    assert stats["images"] + stats["bad_images"] + stats["left_out"] == sum(map(pages_of, range(COUNT)))
    assert (stats["samples"], stats["bad_samples"]) == (COUNT - len(lost), len(lost))
    assert [bad["key"] for bad in stats["bad"]] == [f"doc{n}_{i}" for n, i in sorted(bad)]


class Iterable:
    """Items with the state of an iterable."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self._items, self._at = items, 0

    def __iter__(self) -> Any:
        while self._at < len(self._items):
            self._at += 1
            yield self._items[self._at - 1]

    def state_dict(self) -> dict[str, int]:
        return {"at": self._at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._at = state["at"]


@pytest.mark.parametrize("rule", [RULE, "members"])
@pytest.mark.parametrize("on_bad", ["sample", "image"])
def test_resumed_at_any_step_each_sample_is_used_once_and_whole(rule: str, on_bad: Any) -> None:
    bad = {(1, 0), (5, 2), (13, 1)}
    items = list((by_members if rule == "members" else by_keys)(COUNT, bad))
    errors = ErrorPolicy(on_bad=on_bad)

    def fresh() -> Any:
        return stream(Iterable(items), PACKING.replace(lookahead=5), sample=rule, errors=errors)

    whole = sorted(samples_in(fresh()))
    steps = len(list(fresh()))
    assert steps > 10
    for step in range(steps + 1):
        first, second = fresh(), fresh()
        before = [next(first) for _ in range(step)]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert sorted(samples_in([*before, *second])) == whole, step
        totals = [one.stats() for one in (first, second)]
        assert sum(stats["bad_images"] for stats in totals) == len(bad)


def test_a_state_belongs_to_one_rule() -> None:
    one = stream(Iterable(list(by_keys(COUNT))))
    next(one)
    other = stream(Iterable(list(by_keys(COUNT))), sample=None)
    with pytest.raises(
        ValueError, match=r"the state is of a stream with sample='key:.*', and this one has sample=None"
    ):
        other.load_state_dict(one.state_dict())
