"""Data sets of every kind that tests of packing share, and how they are compared."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from patchnpack.loaders import Job
from patchnpack.packer import PackedBatch, Packing
from tests.loaders.datasets.collections_of_images import CLASSES, Pairs, Photos
from tests.loaders.prepacking.folders import PACKING

datasets.disable_progress_bars()

Contents = Callable[[PackedBatch], tuple[object, ...]]
STORES = ("images", "patches")
PHOTOS = Photos()
COUNT = len(PHOTOS)


def opened(i: int) -> Image.Image:
    return Image.open(io.BytesIO(PHOTOS.data[i]))


class Records:
    """Dicts with members of every type that a folder keeps, in a class that can be sent to other processes."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {
            "photo": PHOTOS.pixels(i),
            "species": CLASSES[PHOTOS.labels[i]],
            "target": np.array([i, 0.1 * i, -1], np.float32),
            "caption": PHOTOS.captions[i] if i % 4 else None,
            "raw": bytes([i]),
            "about": {"id": i, "tags": ["a", 1.5, None], "nested": {"b": True}},
            "count": np.int64(i),
            "boxes": np.arange(4 * i, dtype=np.float64).reshape(i, 4),
        }


class Tensors:
    """(uint8 tensor (C, height, width), label) of the photos."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(PHOTOS.pixels(i).copy()).permute(2, 0, 1), torch.tensor(PHOTOS.labels[i])


def lists_of_images() -> datasets.Dataset:
    """A Hugging Face data set whose rows hold 0 to 3 images."""
    columns = {"pages": [[{"bytes": PHOTOS.data[i], "path": None}] * (i % 4) for i in range(20)], "label": [*range(20)]}
    features = datasets.Features({"pages": datasets.List(datasets.Image()), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict(columns, features=features)


def sources(folder: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Each kind of data set with the options that it is loaded and packed with."""
    hub = PHOTOS.hugging_face()
    pairs: Any = Pairs(PHOTOS)
    tensors: Any = Tensors()
    sizes = np.array([PHOTOS.pixels(i).shape[1::-1] for i in range(COUNT)])
    all_members = ["caption", "raw", "about", "count", "boxes", "target", "species"]
    return {
        "hugging face": (hub, {"label": "label", "extras": ["caption", "label"]}),
        "hugging face, named classes": (hub, {"label": "label", "classes": ["owl", "cat", "dog"], "extras": ["label"]}),
        "hugging face, unseen classes": (
            PHOTOS.hugging_face(label=(datasets.ClassLabel(names=["a", "b", "c", "d", "e"]), PHOTOS.labels)),
            {"label": "label"},
        ),
        "hugging face, shuffled": (hub.shuffle(seed=1).select(range(30)), {"label": "label"}),
        "hugging face, sizes given": (hub, {"label": "label", "sizes": sizes}),
        "hugging face, lists": (lists_of_images(), {"label": "label", "extras": ["label"]}),
        "folder": (PHOTOS.folder(folder / "photos"), {}),
        "pairs": (pairs, {"extras": ["label"], "fingerprint": "photos"}),
        "records": (Records(), {"label": "species", "classes": CLASSES, "extras": all_members}),
        "records with targets": (Records(), {"label": "target", "extras": ["caption"]}),
        "records without label": (Records(), {}),
        "tensors": (tensors, {}),
        "a list": ([(data, i) for i, data in enumerate(PHOTOS.data)], {}),
        "subsets": (ConcatDataset([Subset(pairs, [3, 1, 7]), Subset(tensors, range(9))]), {}),
    }


def plain(value: Any) -> Any:
    """A value in which arrays are comparable."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return {name: plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def all_of(contents: Contents, loader: Any) -> list[Any]:
    return [plain(contents(batch)) for batch in loader]


def pack(source: Any, out: Path, options: dict[str, Any], packing: Packing = PACKING, **changes: Any) -> Job:
    job = Job(**{"source": source, "out": str(out), "packing": packing, "part_packs": 3, **options, **changes})
    assert job.run()
    return job


KINDS = (
    *(
        "hugging face",
        "hugging face, named classes",
        "hugging face, unseen classes",
        "hugging face, shuffled",
        "hugging face, sizes given",
    ),
    *("hugging face, lists", "folder", "pairs", "records", "records with targets", "records without label"),
    *("tensors", "a list", "subsets"),
)
