from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import numpy as np
import pytest

from patchnpack.packer import FitTokens, Native, Packing, RandomResizedCrop, Views

LARGE, SMALL = RandomResizedCrop(scale=(0.25, 1), max_tokens=196), RandomResizedCrop(scale=(0.05, 0.25), max_tokens=36)


def test_views_count_over_the_groups() -> None:
    views = Views((2, LARGE), (8, SMALL))
    assert views.count == 10
    assert views.ranges() == [(0, 2, LARGE), (2, 10, SMALL)]
    assert views.policies == (LARGE, SMALL)
    assert views.draws
    assert not Views((1, Native()), (2, FitTokens(9))).draws


def test_equal_views_are_equal_hash_and_look_alike_and_survive_pickle_and_copy() -> None:
    views, other = Views((2, LARGE), (8, SMALL)), Views([np.int64(2), LARGE], (8, SMALL))  # type: ignore[arg-type]
    assert views == other != Views((8, SMALL), (2, LARGE))
    assert hash(views) == hash(other)
    assert repr(views) == repr(other) == f"Views((2, {LARGE!r}), (8, {SMALL!r}))"
    assert pickle.loads(pickle.dumps(views)) == views  # noqa: S301
    assert copy.deepcopy(views) == views
    assert hash(Packing(views=views)) == hash(Packing(views=other))


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ((), "Views() has no group; give at least one pair, such as Views((2, RandomResizedCrop()))"),
        ((Native(),), f"for one such view give (1, {Native()!r})"),
        (((2, Native),), "call the class, Native(...)"),
        (([(2, LARGE), (8, SMALL)],), "give the groups one by one, Views(first, second), not in a list"),
        (((2, 196),), "views has the group (2, 196); each must pair a number of views with a resolution policy"),
        (((0, LARGE),), "the number of views of a group is 0; it must be at least 1"),
        ((("2", LARGE),), "the number of views of a group is '2'; it must be a whole number: 2"),
    ],
)
def test_a_wrong_group_is_an_error_that_names_it(groups: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Views(*groups)
