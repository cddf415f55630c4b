"""Data sets whose rows hold lists of images: a row is one sample."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from patchnpack import PackedImageLoader, Packing
from patchnpack.loaders import Job
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.sources.dataset_source import OpenedDataset
from patchnpack.loaders.sources.options import LoaderOptions
from tests.images import encode_image, join_patches
from tests.loaders.index.samples.rows import jpeg

PACKING = Packing(seq_len=64, patch_size=8, lookahead=4)
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


def photo(number: int) -> np.ndarray:
    """A picture of 24x16 pixels that differs from others."""
    return np.random.default_rng(number).integers(0, 256, (16, 24, 3), np.uint8)


def encoded(number: int) -> bytes:
    return encode_image(Image.fromarray(photo(number)), "PNG")


def tensor(number: int) -> torch.Tensor:
    return torch.from_numpy(photo(number)).permute(2, 0, 1)


PICTURES: dict[str, Callable[[list[int]], Any]] = {
    "encoded": lambda numbers: list(map(encoded, numbers)),
    "memory views": lambda numbers: [memoryview(encoded(number)) for number in numbers],
    "stored": lambda numbers: [{"bytes": encoded(number), "path": None} for number in numbers],
    "PIL images": lambda numbers: [Image.fromarray(photo(number)) for number in numbers],
    "arrays": lambda numbers: list(map(photo, numbers)),
    "tensors": lambda numbers: tuple(map(tensor, numbers)),
    "frames of an array": lambda numbers: np.array(list(map(photo, numbers)), np.uint8).reshape(-1, 16, 24, 3),
    "frames of a tensor": lambda numbers: torch.stack([*map(tensor, numbers), tensor(0)])[: len(numbers)],
}
ROWS = [[], [0, 1], [2], [], [3, 4, 5], [6, 7]]  # the first list is empty: only later ones show what a member holds


class Clips:
    """Dicts of a list of pictures, a label, a text and a list that is always empty."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"boxes": [], "pages": PICTURES[self.kind](ROWS[row]), "label": row, "text": f"of {row}"}


def pixels_of(loader: PackedImageLoader) -> dict[str, tuple[int, str, list[bytes]]]:
    """The label, the text and the pixels of each sample, by its first key."""
    found = {}
    for batch in loader:
        texts = dict(zip(batch.keys[0], batch.extras["text"][0], strict=True))
        for sample in batch.images_by_sample():
            pixels = [join_patches(i.patches.numpy(), i.coords.numpy(), i.grid, 8).tobytes() for i in sample.images]
            found[sample.key] = int(sample.label), texts[sample.key], pixels
    return found


WANTED = {
    f"{row}/0": (row, f"of {row}", [photo(n).tobytes() for n in numbers]) for row, numbers in enumerate(ROWS) if numbers
}
OPTIONS: dict[str, Any] = {"sample": "members", "label": "label", "extras": ("text",)}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_kind_of_picture_comes_in_lists_and_both_stores_keep_them(kind: str, tmp_path: Path) -> None:
    loader = PackedImageLoader(Clips(kind), PACKING, batch_size=1, shuffle=True, **OPTIONS)
    assert pixels_of(loader) == WANTED
    stats = loader.stats()
    assert (stats["samples"], stats["images"], stats["without_image"], stats["bad_images"]) == (4, 8, 2, 0)
    for store in ("images", "patches"):
        out = tmp_path / store
        assert Job(source=Clips(kind), out=str(out), packing=PACKING, store=store, shuffle=True, **OPTIONS).run()
        packed = PackedImageLoader(out, batch_size=1)
        assert pixels_of(packed) == WANTED
        assert (packed.stats()["samples"], packed.stats()["without_image"]) == (4, 2)


@pytest.mark.parametrize("kind", ["arrays", "frames of a tensor", "encoded"])
def test_lists_resume_at_every_step(kind: str) -> None:
    def new() -> PackedImageLoader:
        return PackedImageLoader(Clips(kind), PACKING.replace(seq_len=18), batch_size=1, shuffle=True, **OPTIONS)

    loader = new()
    batches, states = [], [loader.state_dict()]
    for batch in loader:
        batches.append(batch.keys)
        states.append(loader.state_dict())
    assert len(batches) >= 3
    for step, state in enumerate(states):
        resumed = new()
        resumed.load_state_dict(state)
        assert [batch.keys for batch in resumed][: len(batches) - step] == batches[step:]


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("counts", [(1, 2), (2, 1), (0, 1, 2)])
@pytest.mark.parametrize("pairs", [True, False])
def test_plain_lists_of_items_are_no_names_of_shards(kind: str, counts: tuple[int, ...], pairs: bool) -> None:
    items = [PICTURES[kind](list(range(count))) for count in counts]
    if not pairs:  # a tuple of two would be a pair of image and label
        items = [list(item) if isinstance(item, tuple) else item for item in items]
    loader = PackedImageLoader(
        [(item, 0) for item in items] if pairs else items, PACKING, batch_size=1, sample="members"
    )
    found = [len(sample.images) for batch in loader for sample in batch.images_by_sample()]
    assert sorted(found) == [1, 2]


@pytest.mark.parametrize(
    "given", [[(["a.tar"], 0.5)], [(["a.tar", "b.parquet"], 1)], [["a.tar"]], [["a.tar", "b.tar"]]]
)
def test_lists_of_names_of_shards_are_no_items(given: Any) -> None:
    with pytest.raises(ValueError, match="give one flat list of shards"):
        PackedImageLoader(given, PACKING, batch_size=1, sample="members")


def test_paths_of_images_come_in_lists(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    loader = PackedImageLoader([(paths[:1], 0), (paths[1:], 1)], PACKING, batch_size=1, sample="members")
    assert sorted(len(sample.images) for batch in loader for sample in batch.images_by_sample()) == [1, 2]


@pytest.mark.parametrize("kind", ["arrays", "frames of an array", "frames of a tensor"])
def test_several_images_without_a_rule_are_refused_with_the_remedy(kind: str) -> None:
    data = [(PICTURES[kind](numbers), 0) for numbers in ROWS if numbers]
    with pytest.raises(ValueError, match=r"image of row 0 .* of 2 images; give sample='members'"):
        PackedImageLoader(data, PACKING, batch_size=1)


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
