"""Data sets whose rows hold lists of images: a row is one sample."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from patchnpack import PackedImageLoader
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.sources.dataset_source import OpenedDataset
from patchnpack.loaders.sources.options import LoaderOptions
from tests.loaders.index.samples.rows import jpeg

WIDTHS = [[10, 11], [], [12], [13, 14, 15]]


def documents() -> datasets.Dataset:
    """Four rows of lists of images, with labels."""
    lists = [[{"bytes": jpeg(width, 20), "path": None} for width in widths] for widths in WIDTHS]
    features = {"pages": datasets.List(datasets.Image()), "label": datasets.Value("int64")}
    return datasets.Dataset.from_dict({"pages": lists, "label": [5, 6, 7, 8]}, features=datasets.Features(features))


def opened(given: Any, folder: Path, **options: Any) -> OpenedDataset:
    """The data set, as a loader with these options opens it."""
    defaults = dict.fromkeys(LoaderOptions.__dataclass_fields__)
    loader = PackedImageLoader.__init__.__kwdefaults__ or {}
    made = LoaderOptions(**{**defaults, **loader, "batch_size": 1, "packing": None, "cache_dir": folder, **options})
    return OpenedDataset.open(given, made, ShardOpener(folder))


def test_images_of_a_row_are_one_sample(tmp_path: Path) -> None:
    for _ in range(2):  # read, and from the cache
        found = opened(documents(), tmp_path, sample="members", label="label")
        assert found.index.samples is not None
        assert found.index.samples.starts.tolist() == [0, 2, 3, 6]
        assert found.index.width.tolist() == [10, 11, 12, 13, 14, 15]
        assert found.index.without_image.tolist() == [1]
        assert found.labels.known(np.arange(6)).tolist() == [5, 5, 7, 8, 8, 8]
        assert list(found.index.keys) == ["0/0", "0/1", "2/0", "3/0", "3/1", "3/2"]


def test_each_image_is_alone_without_a_rule(tmp_path: Path) -> None:
    found = opened(documents(), tmp_path)
    assert found.index.samples is None
    assert found.index.without_image.tolist() == [0]


def test_keys_of_rows_group_their_images(tmp_path: Path) -> None:
    found = opened(documents(), tmp_path, sample="key:(.+)/.*", label="label")
    assert found.index.samples is not None
    assert found.index.samples.starts.tolist() == [0, 2, 3, 6]


def test_subsets_and_concatenations_keep_rows_whole(tmp_path: Path) -> None:
    data = documents()
    found = opened(ConcatDataset([Subset(data, [3, 0]), data]), tmp_path, sample="members")
    assert found.index.samples is not None
    assert found.index.samples.starts.tolist() == [0, 3, 5, 7, 8, 11]
    assert found.index.width.tolist() == [13, 14, 15, 10, 11, 10, 11, 12, 13, 14, 15]


def test_given_sizes_have_samples(tmp_path: Path) -> None:
    sizes = np.array([[width, 20] for row in WIDTHS for width in row])
    found = opened(documents(), tmp_path, sample="members", sizes=sizes)
    assert found.index.samples is not None
    assert found.index.samples.starts.tolist() == [0, 2, 3, 6]


def test_two_labels_in_a_sample_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has label 7, and its sample has label 5; a sample has one label"):
        opened(documents(), tmp_path, sample=lambda key: "one", label="label")


class Objects:
    """Items of one form: the images of each row, with its number."""

    def __init__(self, make: Callable[[list[Any], int], Any], *, pictures: bool = False) -> None:
        self.make, self.pictures, self.reads = make, pictures, [0] * len(WIDTHS)

    def __len__(self) -> int:
        return len(WIDTHS)

    def __getitem__(self, row: int) -> Any:
        self.reads[row] += 1
        images = [Image.open(io.BytesIO(jpeg(w, 20))) if self.pictures else jpeg(w, 20) for w in WIDTHS[row]]
        return self.make(images, row)


FORMS: dict[str, Callable[[list[Any], int], Any]] = {
    "pairs": lambda images, row: (images, row),
    "pairs of tuples": lambda images, row: (tuple(images), row),
    "dicts": lambda images, row: {"pages": images, "label": row},
    "lists": lambda images, row: images,
    "single images and lists": lambda images, row: {"image": images[0] if len(images) == 1 else images, "label": row},
}


@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_objects_may_hold_lists_of_images(form: str, pictures: bool, tmp_path: Path) -> None:
    data = Objects(FORMS[form], pictures=pictures)
    found = opened(data, tmp_path, sample="members", label=None if "pairs" in form or form == "lists" else "label")
    assert found.index.samples is not None
    assert found.index.samples.starts.tolist() == [0, 2, 3, 6]
    assert found.index.width.tolist() == [10, 11, 12, 13, 14, 15]
    assert found.index.without_image.tolist() == [1]
    assert list(found.index.keys) == ["0/0", "0/1", "2/0", "3/0", "3/1", "3/2"]
    assert data.reads[3] <= 4  # a probe, the count, and its three images at once


def test_pairs_of_an_image_and_a_mask_are_single_images(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (10 + i, 20)) for i in range(3)]
    data = [(picture, picture) for picture in pictures]
    found = opened(data, tmp_path, sample="members", label=lambda members: 0)
    assert found.index.samples is not None
    assert found.index.samples.starts.tolist() == [0, 1, 2, 3]
    assert list(found.index.keys) == ["0", "1", "2"]


def test_lists_of_objects_without_a_rule_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image of row 0 .* is a list of 2 images; give sample='members'"):
        opened(Objects(FORMS["pairs"]), tmp_path)
