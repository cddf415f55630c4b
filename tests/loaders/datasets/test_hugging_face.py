"""Hugging Face data sets: columns, classes, lists of images, rows that hold paths, files and shuffled data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from patchnpack import PackedImageLoader, Packing
from patchnpack.packer import PackedBatch
from tests.images import encode_image
from tests.loaders.datasets.collections_of_images import CLASSES, Photos
from tests.loaders.loading import PACKING, keys_of

Contents = Callable[[PackedBatch], object]


def values(batches: list[PackedBatch]) -> dict[str, Any]:
    """The label and pixels of each image by its key."""
    return {image.key: (image.label, image.pixels().tobytes()) for batch in batches for image in batch.images()}


def load(dataset: Any, **options: Any) -> PackedImageLoader:
    given: dict[str, Any] = {"batch_size": 2, "label": "label"} | options
    return PackedImageLoader(dataset, PACKING, **given)


def test_data_set_from_disk_and_from_parquet_gives_the_batches_of_the_one_in_memory(
    photos: Photos, contents: Contents, tmp_path: Path
) -> None:
    dataset = photos.hugging_face()
    expected = [contents(batch) for batch in load(dataset, extras=["caption"], shuffle=True)]
    dataset.save_to_disk(str(tmp_path / "saved"))
    dataset.to_parquet(str(tmp_path / "photos.parquet"))
    saved = datasets.load_from_disk(str(tmp_path / "saved"))
    parquet = datasets.Dataset.from_parquet(str(tmp_path / "photos.parquet"), cache_dir=str(tmp_path / "cache"))
    for other in (saved, parquet):
        assert [contents(batch) for batch in load(other, extras=["caption"], shuffle=True)] == expected


def test_photographs_give_the_same_images_and_labels_as_their_shards(clothing: str, tmp_path: Path) -> None:
    shard, packing = f"{clothing}/train-000009.tar", Packing(seq_len=2048)
    names = Path(f"{clothing}/classes.txt").read_text().split("\n")[:10]
    shards = PackedImageLoader(shard, packing, batch_size=2, label="cls")
    rows = range(len(shards.index))
    columns = {
        "image": [{"bytes": shards.context.samples(np.array([row])).read(0), "path": None} for row in rows],
        "label": [int(shards.context.labels.of(row)) for row in rows],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    dataset = datasets.Dataset.from_dict(columns, features=features)
    dataset.save_to_disk(str(tmp_path / "saved"))
    ours = PackedImageLoader(datasets.load_from_disk(str(tmp_path / "saved")), packing, batch_size=2, label="label")
    assert ours.num_classes == 10
    for a, b in zip(ours, shards, strict=True):
        assert torch.equal(a.patches, b.patches)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.rows, b.rows)


def test_range_of_labels_is_known_before_anything_is_read(photos: Photos) -> None:
    loader = load(photos.hugging_face())
    labels = {label for batch in loader for label in batch.labels[batch.image_mask].tolist()} - {-100}
    ends = loader.label_range()
    assert ends is not None
    assert (ends[0].value, ends[1].value) == (min(labels), max(labels))
    assert load(photos.hugging_face(), label=None).label_range() is None


def test_classes_come_from_the_class_label_and_from_classes_by_name(photos: Photos) -> None:
    dataset = photos.hugging_face()
    loader = load(dataset)
    assert loader.num_classes == 3
    turned = load(dataset, classes=list(reversed(CLASSES)))
    assert {k: 2 - label for k, (label, _) in values(list(loader)).items()} == {
        k: label for k, (label, _) in values(list(turned)).items()
    }
    with pytest.raises(ValueError, match=r"label 'owl' .* is neither a whole number nor a known class; classes has 2"):
        load(dataset, classes=["cat", "dog"])


def test_unlabelled_rows_have_no_label(photos: Photos) -> None:
    labels = (datasets.ClassLabel(names=list(CLASSES)), [-1, None, *photos.labels[2:]])
    loader = load(photos.hugging_face(label=labels))
    found = values(list(loader))
    assert (found["0"][0], found["1"][0], found["2"][0]) == (-100, -100, photos.labels[2])
    assert loader.stats()["without_label"] == 2


@pytest.mark.parametrize(
    ("feature", "column", "options", "expected"),
    [
        (datasets.Value("int64"), lambda i: i % 7, {}, lambda i: i % 7),
        (datasets.Value("string"), lambda i: "ab"[i % 2], {"classes": ["a", "b"]}, lambda i: i % 2),
        (datasets.List(datasets.Value("float32")), lambda i: [i, 0.5], {}, lambda i: [i, 0.5]),
        (datasets.Value("int64"), lambda i: i, {"label": lambda row: row["label"] % 4}, lambda i: i % 4),
    ],
)
def test_labels_are_numbers_names_targets_or_what_a_function_returns(
    photos: Photos, feature: Any, column: Any, options: Any, expected: Any
) -> None:
    loader = load(photos.hugging_face(label=(feature, [column(i) for i in range(40)])), **options)
    for batch in loader:
        for image in batch.images():
            assert np.array_equal(image.label, expected(int(image.key)))


def test_extras_are_columns(photos: Photos) -> None:
    for batch in load(photos.hugging_face(), extras=["caption", "label"]):
        for keys, captions, labels in zip(batch.keys, batch.extras["caption"], batch.extras["label"], strict=True):
            assert captions == [f"caption {key}" for key in keys]
            assert labels == [photos.labels[int(key)] for key in keys]


def test_only_image_column_is_found_whatever_its_name(photos: Photos) -> None:
    dataset = photos.hugging_face().rename_column("image", "photo")
    assert sorted(map(int, keys_of(list(load(dataset))))) == list(range(40))
    binary = photos.hugging_face(image=(datasets.Value("binary"), photos.data))
    assert sorted(map(int, keys_of(list(load(binary, image="image"))))) == list(range(40))


def test_undecoded_and_formatted_data_sets_are_read_alike(photos: Photos, contents: Contents) -> None:
    dataset = photos.hugging_face()
    expected = [contents(batch) for batch in load(dataset)]
    undecoded = dataset.cast_column("image", datasets.Image(decode=False))
    for other in (undecoded, dataset.with_format("torch"), dataset.with_format("numpy", columns=["label"])):
        assert [contents(batch) for batch in load(other)] == expected


def test_shuffled_and_selected_data_sets_keep_their_order(photos: Photos) -> None:
    shuffled = photos.hugging_face().shuffle(seed=3).select(range(5, 25))
    rows = [int(caption.split()[1]) for caption in shuffled["caption"]]
    loader = load(shuffled)
    assert loader.index.width.tolist() == [photos.pixels(row).shape[1] for row in rows]
    found = values(list(loader))
    assert [found[str(i)][0] for i in range(20)] == [photos.labels[row] for row in rows]


@pytest.mark.parametrize("shuffled", [False, True])
def test_each_image_of_a_list_is_a_row_with_the_label_of_its_list(photos: Photos, shuffled: bool) -> None:
    lists = [[0, 1], [], [2], [3, 4, 5]]
    columns = {
        "pages": [[{"bytes": photos.data[i], "path": None} for i in one] for one in lists],
        "label": [7, 8, 9, 10],
    }
    features = datasets.Features({"pages": datasets.List(datasets.Image()), "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict(columns, features=features)
    order = [0, 1, 2, 3]
    if shuffled:
        order = [3, 0, 1, 2]
        dataset = dataset.select(order)
    loader = load(dataset)
    expected = {
        f"{row}/{number}": ((7, 8, 9, 10)[source], photos.pixels(i))
        for row, source in enumerate(order)
        for number, i in enumerate(lists[source])
    }
    assert list(loader.index.keys) == list(expected)
    for batch in loader:
        for image in batch.images():
            label, pixels = expected[image.key]
            assert image.label == label
            assert np.array_equal(image.pixels()[: pixels.shape[0], : pixels.shape[1]], pixels)


def test_rows_that_hold_paths_are_read_from_their_files(photos: Photos, tmp_path: Path, contents: Contents) -> None:
    stored = []
    for i, data in enumerate(photos.data):
        (tmp_path / f"{i}.jpg").write_bytes(data)
        stored.append({"bytes": None, "path": str(tmp_path / f"{i}.jpg")})
    dataset = photos.hugging_face(image=(datasets.Image(), stored))
    loader = load(dataset)
    expected = [contents(batch) for batch in load(photos.hugging_face())]
    assert [contents(batch) for batch in loader] == expected
    (tmp_path / "4.jpg").write_bytes(photos.data[5])
    with pytest.raises(OSError, match=r"the bytes of the image with key '4' .* have changed since"):
        list(loader)
    (tmp_path / "4.jpg").unlink()
    with pytest.raises(OSError, match=r"the file '.*4\.jpg' of row 4 cannot be read: No such file"):
        list(loader)


def test_rows_without_an_image_are_bad(photos: Photos) -> None:
    stored = [None, {"bytes": b"", "path": None}, *({"bytes": data, "path": None} for data in photos.data[2:])]
    loader = load(photos.hugging_face(image=(datasets.Image(), stored)))
    assert len(keys_of(list(loader))) == 38
    assert [bad["key"] for bad in loader.stats()["bad"]] == ["0", "1"]


def test_transform_of_the_data_set_is_applied(photos: Photos) -> None:
    def cropped(rows: dict[str, Any]) -> dict[str, Any]:
        return {"image": [image.convert("RGB").crop((0, 0, 8, 8)) for image in rows["image"]], "label": rows["label"]}

    batches = list(load(photos.hugging_face().with_transform(cropped)))
    assert {tuple(size) for batch in batches for size in batch.image_sizes[batch.image_mask].tolist()} == {(8, 8)}


def test_turned_photographs_are_turned_upright(photos: Photos) -> None:
    exif = Image.Exif()
    exif[274] = 6
    image = Image.fromarray(photos.pixels(0))
    data = encode_image(image, "JPEG", exif=exif)
    dataset = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None}]}).cast_column(
        "image", datasets.Image()
    )
    loader = PackedImageLoader(dataset, PACKING, batch_size=1)
    assert (loader.index.width[0], loader.index.height[0]) == (image.height, image.width)
    for sizes in (None, [(image.height, image.width)]):
        (batch,) = PackedImageLoader(dataset, PACKING, batch_size=1, sizes=sizes)
        assert batch.image_sizes[0, 0].tolist() == [image.height, image.width]
