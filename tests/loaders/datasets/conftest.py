"""Data sets that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import pytest

from tests.loaders.datasets.collections_of_images import Pairs, Photos

datasets.disable_progress_bars()

Make = Callable[[str], Any]


@pytest.fixture(scope="session")
def photos() -> Photos:
    """40 drawn images. Tests must not change them."""
    return Photos()


@pytest.fixture(scope="session")
def make(photos: Photos, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Returns the images as a data set of a kind: "hugging face", "folder" or "pairs"."""
    folder = photos.folder(tmp_path_factory.mktemp("photos"))
    kinds = {"hugging face": photos.hugging_face(), "folder": folder, "pairs": Pairs(photos)}
    return kinds.__getitem__
