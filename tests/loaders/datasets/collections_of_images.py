"""Data sets that tests give to the loader: look-alikes of torchvision's classes, and plain Python objects."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from tests.images import draw_image, encode_image

CLASSES = ("cat", "dog", "owl")


class Photos:
    """Drawn images of many sizes, encoded, with labels and captions. Every third is a PNG."""

    def __init__(self, count: int = 40, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.data: list[bytes] = []
        self.labels: list[int] = rng.integers(0, len(CLASSES), count).tolist()
        self.captions = [f"caption {i}" for i in range(count)]
        for i in range(count):
            image = draw_image(int(rng.integers(8, 60)), int(rng.integers(8, 60)), seed=i)
            self.data.append(encode_image(image, "PNG" if i % 3 == 2 else "JPEG"))

    def __len__(self) -> int:
        return len(self.data)

    def pixels(self, i: int) -> np.ndarray:
        """The pixels of an image, uint8 (height, width, 3)."""
        return np.asarray(Image.open(io.BytesIO(self.data[i])).convert("RGB"))

    def hugging_face(self, **changes: Any) -> datasets.Dataset:
        """A Hugging Face data set in memory with the columns image, label and caption."""
        columns = {
            "image": [{"bytes": data, "path": None} for data in self.data],
            "label": self.labels,
            "caption": self.captions,
        }
        features = {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(CLASSES)),
            "caption": datasets.Value("string"),
        }
        features |= {name: feature for name, (feature, _) in changes.items()}
        columns |= {name: column for name, (_, column) in changes.items()}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    def folder(self, path: Path) -> ImageFolder:
        """The images as files, one folder per class, as torchvision's `ImageFolder` reads them."""
        samples = []
        for i, (data, label) in enumerate(zip(self.data, self.labels, strict=True)):
            file = path / CLASSES[label] / f"{i:03d}.{'png' if i % 3 == 2 else 'jpg'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            samples.append((str(file), label))
        return ImageFolder(samples)


def default_loader(path: str) -> Image.Image:
    """What torchvision's loader of the same name does."""
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


class ImageFolder:
    """A look-alike of `torchvision.datasets.ImageFolder`."""

    def __init__(self, samples: Sequence[tuple[str, int]], transform: Callable[[Any], Any] | None = None) -> None:
        self.samples = self.imgs = list(samples)
        self.targets = [label for _, label in samples]
        self.classes = list(CLASSES)
        self.class_to_idx = {name: i for i, name in enumerate(CLASSES)}
        self.loader: Callable[[str], Any] = default_loader
        self.transform, self.target_transform = transform, None
        self.items_read = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        self.items_read += 1
        path, label = self.samples[i]
        image = self.loader(path)
        return (image if self.transform is None else self.transform(image)), label


for _function in (default_loader, ImageFolder.__getitem__):
    _function.__module__ = "torchvision.datasets.folder"


class Items:
    """An object with `__len__` and `__getitem__` whose items a function makes; counts the calls of each row.

    Attributes:
        calls: calls of `__getitem__` per row.
        at_once: the most calls that ran at the same time.
    """

    def __init__(self, count: int, item: Callable[[int], Any], pause_s: float = 0.0) -> None:
        self._item, self._pause_s = item, pause_s
        self.calls = [0] * count
        self._running = self.at_once = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.calls)

    def __getitem__(self, i: int) -> Any:
        with self._lock:
            self._running += 1
            self.at_once = max(self.at_once, self._running)
            self.calls[i] += 1
        time.sleep(self._pause_s)
        item = self._item(i)
        with self._lock:
            self._running -= 1
        return item


class Pairs:
    """(PIL image, label) of `Photos`; can be sent to other processes."""

    def __init__(self, photos: Photos) -> None:
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.open(io.BytesIO(self.photos.data[i])), self.photos.labels[i]
