from __future__ import annotations

import json
from typing import Any

import pytest

from patchnpack.loaders.packs.recipe import _from_plain, _plain, changes_grids
from patchnpack.packer import FitTokens, Frames, Native, Packing, RandomResizedCrop, Views

CROPS = Views((2, RandomResizedCrop(scale=(0.25, 1), max_tokens=196)), (8, RandomResizedCrop(max_tokens=36)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"frames": Frames(8, "stride:2", "repeat")}, {"views": CROPS, "frames": Frames(2)}, {"scope": "sample"}],
)
def test_packings_with_frames_and_views_round_trip_through_their_texts(changes: dict[str, Any]) -> None:
    packing = Packing(**changes)
    assert _from_plain(json.loads(json.dumps(_plain(packing)))) == packing


def test_random_frames_and_drawn_views_change_grids_between_epochs() -> None:
    assert changes_grids(Packing(frames=Frames(8), views=Views((2, FitTokens(9)), (1, Native())))) is None
    assert changes_grids(Packing(frames=Frames(8, "random"))) == "Frames(count=8, how='random', short='keep')"
    assert changes_grids(Packing(views=CROPS)) == repr(CROPS.policies[0])
