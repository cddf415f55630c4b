"""torchvision's folders by duck type, objects with `__len__` and `__getitem__`, and subsets and concatenations."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset, random_split

from patchnpack import PackedImageLoader
from patchnpack.loaders import ErrorPolicy
from patchnpack.loaders.datasets.objects import is_folder
from patchnpack.loaders.imaging.formats import JPEG, PIXELS
from patchnpack.packer import PackedBatch
from tests.loaders.datasets.collections_of_images import ImageFolder, Items, Pairs, Photos
from tests.loaders.loading import PACKING, keys_of


def load(dataset: Any, **options: Any) -> PackedImageLoader:
    given: dict[str, Any] = {"batch_size": 2} | options
    return PackedImageLoader(dataset, PACKING, **given)


def check(batches: list[PackedBatch], photos: Photos, rows: list[int], *, label: bool = True) -> None:
    """Assert that the batches hold the images of `rows`, by their place in it, with their pixels and labels."""
    assert sorted(map(int, keys_of(batches))) == list(range(len(rows)))
    for batch in batches:
        for image in batch.images():
            row = rows[int(image.key)]
            pixels = photos.pixels(row)
            assert np.array_equal(image.pixels()[: pixels.shape[0], : pixels.shape[1]], pixels)
            assert image.label == (photos.labels[row] if label else -100)


def test_files_of_an_image_folder_are_read_without_it(photos: Photos, tmp_path: Path) -> None:
    folder = photos.folder(tmp_path)
    loader = load(folder, shuffle=True)
    assert loader.num_classes == 3
    check(list(loader), photos, list(range(40)))
    assert folder.items_read == 0


def _target_transform(folder: ImageFolder) -> ImageFolder:
    folder.target_transform = lambda label: label  # type: ignore[assignment]
    return folder


def _own_loader(folder: ImageFolder) -> ImageFolder:
    folder.loader = lambda path: Image.open(path).convert("RGB")
    return folder


def _own_class(folder: ImageFolder) -> ImageFolder:
    class Own(ImageFolder):
        def __getitem__(self, i: int) -> tuple[Any, int]:
            return super().__getitem__(i)

    return Own(folder.samples)


@pytest.mark.parametrize("change", [_target_transform, _own_loader, _own_class])
def test_image_folder_with_code_of_its_own_is_asked_for_its_items(photos: Photos, tmp_path: Path, change: Any) -> None:
    folder = photos.folder(tmp_path)
    assert is_folder(folder)
    changed = change(folder)
    assert not is_folder(changed)
    loader = load(changed)
    check(list(loader), photos, list(range(40)))
    assert changed.items_read > 40
    assert loader.num_classes == 3


def test_sizes_of_a_folder_are_cached_until_a_file_changes(photos: Photos, tmp_path: Path, caplog: Any) -> None:
    folder = photos.folder(tmp_path)
    caplog.set_level("INFO", "patchnpack")
    load(folder)
    assert "read the sizes of 40 images; they are cached" in caplog.text
    caplog.clear()
    loader = load(folder)
    assert "using the cached sizes" in caplog.text
    Path(folder.samples[3][0]).write_bytes(photos.data[4])
    with pytest.raises(OSError, match="the image with key '3' of data set ImageFolder have changed since"):
        list(loader)
    caplog.clear()
    assert load(folder).index.width[3] == photos.pixels(4).shape[1]
    assert "read the sizes of 40 images" in caplog.text


FORMS: dict[str, Any] = {
    "bytes": lambda photos, i: photos.data[i],
    "a bytearray": lambda photos, i: bytearray(photos.data[i]),
    "a PIL image": lambda photos, i: Image.open(io.BytesIO(photos.data[i])),
    "an array": lambda photos, i: photos.pixels(i),
    "a tensor": lambda photos, i: torch.from_numpy(photos.pixels(i).copy()).permute(2, 0, 1),
    "a dict of bytes and path": lambda photos, i: {"bytes": photos.data[i], "path": None},
}


@pytest.mark.parametrize("form", FORMS)
def test_images_may_be_bytes_pil_images_arrays_or_tensors(photos: Photos, form: str) -> None:
    def image(i: int) -> Any:
        return FORMS[form](photos, i)

    pairs = [(image(i), photos.labels[i]) for i in range(40)]
    check(list(load(pairs)), photos, list(range(40)))
    dicts = Items(40, lambda i: {"photo": image(i), "y": np.int64(photos.labels[i]), "z": torch.zeros(3)})
    check(list(load(dicts, label="y")), photos, list(range(40)))
    check(list(load(dicts, label="y", image="photo")), photos, list(range(40)))
    if form != "a dict of bytes and path":
        check(list(load([image(i) for i in range(40)])), photos, list(range(40)), label=False)


def test_images_may_be_paths_of_files(photos: Photos, tmp_path: Path) -> None:
    folder = photos.folder(tmp_path)
    check(list(load(folder.samples)), photos, list(range(40)))
    check(list(load([(Path(path), label) for path, label in folder.samples])), photos, list(range(40)))


def test_labels_may_be_tensors_names_and_targets(photos: Photos) -> None:
    def pairs(label: Any) -> Items:
        return Items(40, lambda i: (photos.data[i], label(i)))

    check(list(load(pairs(lambda i: torch.tensor(photos.labels[i])))), photos, list(range(40)))
    names = load(pairs(lambda i: "abc"[photos.labels[i]]), classes=["a", "b", "c"])
    assert names.num_classes == 3
    check(list(names), photos, list(range(40)))
    targets = load(pairs(lambda i: torch.tensor([i, 0.5])))
    assert targets.num_classes == 2
    for batch in targets:
        for image in batch.images():
            assert np.array_equal(image.label, [int(image.key), 0.5])


def test_extras_of_dicts_are_their_members_unchanged(photos: Photos) -> None:
    items = [{"image": data, "caption": f"text {i}"} | ({"n": i} if i else {}) for i, data in enumerate(photos.data)]
    for batch in load(items, extras=["caption", "n"]):
        for keys, captions, numbers in zip(batch.keys, batch.extras["caption"], batch.extras["n"], strict=True):
            assert captions == [f"text {key}" for key in keys]
            assert numbers == [int(key) or None for key in keys]


def test_subsets_and_concatenations_are_resolved_to_the_files_inside(photos: Photos, tmp_path: Path) -> None:
    folder = photos.folder(tmp_path)
    given: Any = folder
    first, second = random_split(given, [25, 15], torch.Generator().manual_seed(0))
    both: Any = ConcatDataset([second, Subset(first, [3, 3, -1]), photos.hugging_face(), Subset(Pairs(photos), [5])])  # type: ignore[arg-type]
    nested = Subset(both, list(range(len(both)))[::-1])
    rows = [*second.indices, *(first.indices[i] for i in (3, 3, -1)), *range(40), 5][::-1]
    loader = load(nested, label="label")
    assert loader.index.keys[0] == "0"
    check(list(loader), photos, rows)
    assert folder.items_read == 0


def test_subset_with_an_own_getitem_is_asked_for_its_items(photos: Photos) -> None:
    class Turned(Subset[Any]):
        def __getitem__(self, i: Any) -> Any:
            image, label = Pairs(photos)[self.indices[i]]
            return image.transpose(Image.Transpose.ROTATE_90), label

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[i] for i in indices]

    loader = load(Turned(Pairs(photos), [7]))  # type: ignore[arg-type]
    height, width, _ = photos.pixels(7).shape
    assert (loader.index.width[0], loader.index.height[0]) == (height, width)


def test_tensor_data_set_is_a_data_set_of_pairs() -> None:
    images = torch.randint(0, 256, (6, 3, 16, 24), dtype=torch.uint8)
    (batch,) = load(TensorDataset(images, torch.arange(6)))
    assert batch.labels[batch.image_mask].tolist() == [int(key) for keys in batch.keys for key in keys]


def test_given_sizes_save_the_pass(photos: Photos) -> None:
    items = Items(40, lambda i: (Image.open(io.BytesIO(photos.data[i])), photos.labels[i]))
    sizes = [photos.pixels(i).shape[1::-1] for i in range(40)]
    loader = load(items, sizes=sizes)
    assert sum(items.calls) == 2  # the first item, and its label
    check(list(loader), photos, list(range(40)))
    as_bytes = load(photos.hugging_face(), sizes=np.array(sizes), label="label")
    check(list(as_bytes), photos, list(range(40)))


def test_sizes_of_objects_are_cached_under_the_fingerprint_that_is_given(photos: Photos, caplog: Any) -> None:
    items = Items(40, lambda i: (photos.data[i], photos.labels[i]))
    load(items)
    assert "Items, which has no fingerprint, so the next start reads them again; give fingerprint=" in caplog.text
    load(items, fingerprint=lambda given: f"a test of {len(given)}")
    once = sum(items.calls)
    load(items, fingerprint="a test of 40")
    assert sum(items.calls) == once + 2
    load(items, fingerprint="other data")
    assert sum(items.calls) == once + 44


def test_16_bit_images_of_a_data_set_are_read_by_a_decode_function(photos: Photos) -> None:
    deep = io.BytesIO()
    Image.fromarray(np.full((16, 24), 300, np.uint16)).save(deep, "PNG")
    items = [(deep.getvalue(), 0), (photos.data[0], 1)]

    def decode(data: bytes) -> np.ndarray | None:
        return np.full((16, 24, 3), 5, np.uint8) if data == deep.getvalue() else None

    (batch,) = load(items)
    assert batch.keys == [["1"], []]
    for options in ({}, {"sizes": [(24, 16), photos.pixels(0).shape[1::-1]]}):
        (batch,) = load(items, decode=decode, **options)
        found = {image.key: image.pixels() for image in batch.images()}
        assert set(found) == {"0", "1"}
        assert (found["0"][:16, :24] == 5).all()


@pytest.mark.parametrize("how", ["opened", "loaded", "closed", "draft"])
def test_jpeg_that_pil_has_only_opened_is_read_as_bytes(photos: Photos, how: str) -> None:
    def item(i: int) -> Image.Image:
        image = Image.open(io.BytesIO(photos.data[3 * i]))  # a JPEG
        if how == "loaded":
            image.load()
        if how == "closed":
            image.load()
            image.close()
        if how == "draft":
            image.draft("L", image.size)
        return image

    loader = load(Items(12, item), errors=ErrorPolicy(max_consecutive=100, max_rate=1.0))
    assert (loader.index.format == (JPEG if how == "opened" else PIXELS)).all()
    if how == "closed":
        return
    for batch in loader:
        for image in batch.images():
            pixels = photos.pixels(3 * int(image.key))
            if how == "draft":
                pixels = np.asarray(item(int(image.key)).convert("RGB"))
            assert np.array_equal(image.pixels()[: pixels.shape[0], : pixels.shape[1]], pixels)


def test_threads_share_images_that_pil_has_opened(photos: Photos) -> None:
    opened = [Image.open(io.BytesIO(photos.data[i % 7])) for i in range(7)] * 8
    loader = load([opened[i] for i in range(56)], num_threads=4, thread_safe=True)
    for _ in range(3):
        for batch in loader:
            for image in batch.images():
                pixels = photos.pixels(int(image.key) % 7)
                assert np.array_equal(image.pixels()[: pixels.shape[0], : pixels.shape[1]], pixels)
