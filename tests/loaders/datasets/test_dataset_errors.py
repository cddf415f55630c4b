"""Mistakes with data sets are errors that name the row and the remedy."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset

from patchnpack import Mixture, PackedImageLoader
from patchnpack.loaders import BadImage
from tests.images import draw_image
from tests.loaders.datasets.collections_of_images import ImageFolder, Items, Pairs, Photos
from tests.loaders.loading import PACKING, keys_of

PHOTOS = Photos(6)


def load(dataset: Any, **options: Any) -> PackedImageLoader:
    given: dict[str, Any] = {"batch_size": 2} | options
    return PackedImageLoader(dataset, PACKING, **given)


def two_images() -> datasets.Dataset:
    dataset = PHOTOS.hugging_face()
    return dataset.add_column("mask", dataset["label"]).map(
        lambda row: {"mask": {"bytes": PHOTOS.data[0], "path": None}},
        features=datasets.Features(dataset.features | {"mask": datasets.Image()}),
    )


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


class Unsized:
    def __getitem__(self, i: int) -> Any:
        return PHOTOS.data[i], 0


def floats(_: Any) -> torch.Tensor:
    return torch.zeros(3, 8, 8)


def items(item: Any) -> Items:
    return Items(6, lambda i: item)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (lambda: datasets.DatasetDict({"train": PHOTOS.hugging_face(), "test": PHOTOS.hugging_face()}), {},
         r"a DatasetDict with the splits 'train', 'test'; give one of them: dataset\['train'\]"),
        (lambda: {"a": PHOTOS.hugging_face()}, {}, r"a dict with the splits 'a'"),
        (lambda: PHOTOS.hugging_face().to_iterable_dataset(), {}, r"only be iterated: pack_stream\("),
        (Endless, {}, r"a Endless, which can only be iterated: pack_stream\("),
        (lambda: DataLoader(Pairs(PHOTOS)), {}, r"a DataLoader, which can only be iterated: pack_stream\("),  # type: ignore[arg-type]
        (Unsized, {}, r"the data set Unsized has no length; give it __len__"),
        (lambda: Subset(Endless(), [0]), {}, r"a Endless, which can only be iterated"),
        (lambda: Subset(Pairs(PHOTOS), [0, 99]), {}, r"the index 99, and its data set has 6 rows"),  # type: ignore[arg-type]
        (lambda: PHOTOS.hugging_face().select([]), {}, r"the data set Dataset is empty"),
        (lambda: Items(0, lambda i: i), {}, r"the data set Items is empty"),
        (two_images, {}, r"2 columns of images, image, mask; name one with image="),
        (lambda: PHOTOS.hugging_face().remove_columns("image"), {}, r"no column of images; its columns are label"),
        (PHOTOS.hugging_face, {"image": "photo"}, r"image is 'photo', which is no column .* its columns are image"),
        (PHOTOS.hugging_face, {"image": "caption"}, r"image is 'caption', a column of Value.*cast_column\('caption'"),
        (PHOTOS.hugging_face, {"label": "species"}, r"label asks for 'species', .* members are caption, image, label"),
        (PHOTOS.hugging_face, {"extras": ["text"]}, r"extras asks for 'text', .* members are caption, image, label"),
        (PHOTOS.hugging_face, {"label": "caption"}, r"label 'caption 0' .* is neither a whole number nor a known"),
        (PHOTOS.hugging_face, {"classes": ["a"]}, r"classes= names the classes of labels, and label is None"),
        (lambda: Pairs(PHOTOS), {"label": "cls"}, r"label asks for 'cls', .* its members are image, label"),
        (lambda: Pairs(PHOTOS), {"extras": ["txt"]}, r"extras asks for 'txt', .* its members are image, label"),
        (lambda: items({"a": PHOTOS.data[0], "b": PHOTOS.data[1]}), {}, r"hold 2 images \(a, b\).*image="),
        (lambda: items({"a": 3, "b": "text"}), {}, r"hold no images .*a \(int\), b \(str\): name the one"),
        (lambda: items({"a": PHOTOS.data[0]}), {"image": "b"}, r"image is 'b', which is no member .* are a \(bytes\)"),
        (lambda: items((floats(0), 1)), {}, r"row 0 of Items is a torch.float32 tensor \(3, 8, 8\).*Remove ToTensor"),
        (lambda: items((np.zeros((8, 8, 3)), 1)), {}, r"row 0 of Items is a float64 array.*Remove ToTensor"),
        (lambda: items((1, 2, 3)), {}, r"row 0 of Items is a tuple of 3; an item must be a pair"),
        (lambda: items(17), {}, r"the image of row 0 of Items is a builtins.int; it must be encoded bytes"),
        (lambda: items(object()), {}, r"the image of row 0 of Items is a builtins.object"),
        (lambda: items((PHOTOS.data[0], "cat")), {}, r"label 'cat' .* is neither a whole number nor a known class"),
        (lambda: Pairs(PHOTOS), {"sizes": [(8, 8)]}, r"sizes is int64 \(1, 2\); it must hold whole numbers \(6, 2\)"),
        (lambda: Pairs(PHOTOS), {"sizes": np.zeros((6, 2))}, r"sizes is float64 \(6, 2\); it must hold whole numbers"),
        (lambda: Pairs(PHOTOS), {"sizes": [(8, 0)] * 6}, r"sizes\[0\] is \[8, 0\]; width and height must be from 1"),
        (lambda: Pairs(PHOTOS), {"fingerprint": lambda given: 3}, r"fingerprint is 3; it must be a text"),
        (lambda: Pairs(PHOTOS), {"thread_safe": "yes"}, r"thread_safe is 'yes'; it must be True or False"),
        (lambda: Pairs(PHOTOS), {"index": "index.parquet"}, r"index= is the index of shards; .* give sizes="),
        (list, {}, r"the source is an empty list"),
    ],
)  # fmt: skip
def test_mistake_is_refused_before_work_starts(source: Callable[[], Any], options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load(source(), **options)


@pytest.mark.parametrize("option", [{"sizes": [(1, 1)]}, {"thread_safe": True}, {"fingerprint": "a"}])
def test_options_of_data_sets_are_refused_for_shards(drawn: Any, option: Any) -> None:
    name = next(iter(option))
    for source in (drawn.shards, Mixture({"a": (drawn.shards, 1)})):
        with pytest.raises(ValueError, match=f"{name}= is for data sets with __len__ and __getitem__"):
            load(source, **option)


def test_transform_that_makes_floats_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = ImageFolder(PHOTOS.folder(tmp_path).samples, transform=floats)
    with pytest.raises(ValueError, match="Remove ToTensor, Normalize and resizing from the data set's transform"):
        load(folder)
    transformed = PHOTOS.hugging_face().with_transform(
        lambda rows: {"image": [floats(image) for image in rows["image"]]}
    )
    with pytest.raises(ValueError, match="Remove ToTensor"):
        load(transformed)


def test_row_that_raises_is_named_with_the_error_as_its_cause() -> None:
    def item(i: int) -> Any:
        if i == 4:
            raise KeyError("a column")
        return PHOTOS.data[i], 0

    with pytest.raises(
        RuntimeError, match=r"row 4 of Items raised KeyError: 'a column'; correct the data set"
    ) as error:
        load(Items(6, item))
    assert isinstance(error.value.__cause__, KeyError)
    assert "raised for the image with key '4' of data set Items" in "".join(traceback.format_exception(error.value))


def test_row_that_begins_to_raise_ends_the_epoch_with_its_name() -> None:
    broken: list[int] = []

    def item(i: int) -> Any:
        if i in broken:
            raise FileNotFoundError(2, "No such file", "gone.jpg")
        return PHOTOS.data[i], 0

    loader = load(Items(6, item))
    list(loader)
    broken.append(3)
    with pytest.raises(RuntimeError, match=r"row 3 of Items raised FileNotFoundError: .*gone.jpg"):
        list(loader)


def test_mistake_inside_pil_is_raised_and_damage_is_counted() -> None:
    def item(i: int) -> Any:
        if i == 1:
            raise BadImage("its page is torn")
        return draw_image(20, 20, seed=i).crop((5, 5, 0, 0) if i == 2 and mistaken else (0, 0, 9, 9)), 0

    mistaken = False
    loader = load(Items(6, item))
    assert len(keys_of(list(loader))) == 5
    assert [bad["reason"] for bad in loader.stats()["bad"]] == ["its page is torn"]
    mistaken = True
    with pytest.raises(RuntimeError, match="row 2 of Items raised ValueError: Coordinate"):
        list(loader)


def test_items_that_change_their_size_are_an_error_that_names_the_row() -> None:
    sizes = dict.fromkeys(range(6), (20, 24))
    loader = load(Items(6, lambda i: (draw_image(*sizes[i]), 0)))
    list(loader)
    sizes[3] = (20, 25)
    with pytest.raises(ValueError, match=r"key '3' of data set Items has 20x25 pixels, .* made for 20x24: .*random"):
        list(loader)


def test_sizes_that_are_wrong_are_an_error_that_names_the_row() -> None:
    sizes = [PHOTOS.pixels(i).shape[1::-1] for i in range(6)]
    sizes[2] = (sizes[2][0] + 1, sizes[2][1])
    for dataset in (PHOTOS.hugging_face(), Pairs(PHOTOS)):
        with pytest.raises(ValueError, match=r"key '2' of data set .* correct sizes="):
            list(load(dataset, sizes=sizes))


def test_items_that_change_their_type_are_an_error_that_names_the_row() -> None:
    images: list[Any] = [Image.fromarray(PHOTOS.pixels(i)) for i in range(6)]
    loader = load([(image, 0) for image in images])
    list(loader)
    changing = Items(6, lambda i: (images[i], 0))
    loader = load(changing)
    images[1] = "text"
    with pytest.raises(OSError, match=r"the file 'text' of row 1 of Items cannot be read"):
        list(loader)
    images[1] = 3.5
    with pytest.raises(ValueError, match=r"the image of row 1 of Items is a builtins.float"):
        list(loader)


def test_label_that_turns_out_wrong_is_raised_with_its_row() -> None:
    loader = load([(data, "cat" if i == 4 else 0) for i, data in enumerate(PHOTOS.data)])
    with pytest.raises(ValueError, match="label 'cat'") as error:
        list(loader)
    assert "with key '4' of data set list" in "".join(traceback.format_exception(error.value))


def test_data_set_whose_images_are_all_damaged_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the 6 images can be used: 6 are bad"):
        load(items((b"no image", 0)))
