"""Data sets by duck type: torchvision's folders of files, and any object with `__len__` and `__getitem__`."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import xxhash

from patchnpack.loaders.datasets.adapter import Picture
from patchnpack.loaders.datasets.pictures import as_picture, damage, is_picture, read_file
from patchnpack.loaders.errors import BadImage

# n rows

IMAGE, LABEL = "image", "label"  # the members of an item that is a pair
PROBE = 100  # rows among which one must be readable
_DEFAULT_LOADERS = ("default_loader", "pil_loader", "accimage_loader")


def is_folder(given: Any) -> bool:
    """Return whether `given` is a torchvision `ImageFolder` or `DatasetFolder` whose items are its files, undecoded.

    That is so if the class's own `__getitem__` opens the file with torchvision's loader and changes nothing.
    """
    loader = getattr(given, "loader", None)
    return (
        _is_torchvision(type(given).__getitem__)
        and isinstance(getattr(given, "samples", getattr(given, "imgs", None)), list)
        and _is_torchvision(loader)
        and getattr(loader, "__name__", "") in _DEFAULT_LOADERS
        and all(getattr(given, name, None) is None for name in ("transform", "target_transform", "transforms"))
    )


def _is_torchvision(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("torchvision.")


class FolderAdapter:
    """The files of a torchvision `ImageFolder`, read without it; see `Adapter`.

    Args:
        dataset: for which `is_folder` holds.
    """

    image, members, default_label = "", (IMAGE, LABEL), LABEL

    def __init__(self, dataset: Any) -> None:
        self.name = _name_of(dataset)
        samples = dataset.samples if hasattr(dataset, "samples") else dataset.imgs
        self._paths, self._labels = [path for path, _ in samples], [label for _, label in samples]
        self._classes = _classes_of(dataset)

    def __len__(self) -> int:
        return len(self._paths)

    def counts(self) -> np.ndarray | None:
        """Each row is one image."""
        return None

    def read(self, row: int, number: int) -> tuple[Picture, Mapping[str, Any]]:
        """Return the bytes of a file, and its label."""
        return read_file(self._paths[row], f"row {row}"), {LABEL: self._labels[row]}

    def members_of(self, row: int) -> Mapping[str, Any]:
        """Return the label of a file."""
        return {LABEL: self._labels[row]}

    def classes_of(self, member: str) -> Mapping[str, int] | None:
        """Return `class_to_idx`."""
        return self._classes if member == LABEL else None

    def coded(self, member: str, rows: np.ndarray) -> tuple[np.ndarray, list[Any]] | None:
        """Return the classes of the files."""
        labels = np.array([self._labels[row] for row in rows.tolist()])
        if labels.dtype.kind not in "iu":
            return None
        distinct, codes = np.unique(labels, return_inverse=True)
        return codes, distinct.tolist()

    def fingerprint(self) -> str | None:
        """Return a digest of the path, size and modification time of each file."""
        digest = xxhash.xxh3_128()
        for path in self._paths:
            try:
                status = os.stat(path)
            except OSError:
                return None  # reading the headers names the file
            digest.update(f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="replace"))
        return f"files {digest.hexdigest()}"


class ObjectAdapter:
    """Any object with `__len__` and `__getitem__`; see `Adapter`.

    An item is a pair (image, label), a dict of members, or an image.

    Args:
        dataset: the object.
        image: the member of a dict that is its image; "" finds the only one in the first item.
        thread_safe: whether threads may call `__getitem__` at the same time.
    """

    def __init__(self, dataset: Any, image: str, *, thread_safe: bool) -> None:
        self.name = _name_of(dataset)
        self._dataset, self._thread_safe = dataset, thread_safe
        self._renew_lock()
        self.image = ""
        self.default_label: str | None = None
        self.members: Sequence[str] = (IMAGE,)
        item = self._first()
        if isinstance(item, Mapping):
            self.members, self.image = [str(name) for name in item], self._image_member(item, image)
        elif self._is_pair(item):
            self.members, self.default_label = (IMAGE, LABEL), LABEL
        _adapters.add(self)

    def _renew_lock(self) -> None:
        self._lock = nullcontext() if self._thread_safe else threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._renew_lock()
        _adapters.add(self)

    def __len__(self) -> int:
        return len(self._dataset)

    def counts(self) -> np.ndarray | None:
        """Each row is one image."""
        return None

    def read(self, row: int, number: int) -> tuple[Picture, Mapping[str, Any]]:
        """Return the image of an item, and its members."""
        members = self.members_of(row)
        return self.picture(row, members), members

    def picture(self, row: int, members: Mapping[str, Any]) -> Picture:
        """Return the image among the members of an item."""
        name = self.image or IMAGE
        if name not in members:
            raise ValueError(
                f"row {row} of {self.name} has no member {name!r}, as the first row has; its members are "
                f"{', '.join(map(str, members))}: give each item the same members"
            )
        return as_picture(members[name], f"row {row} of {self.name}")

    def members_of(self, row: int) -> Mapping[str, Any]:
        """Return an item as a dict: of a pair, "image" and "label"."""
        item = self._item(row)
        if isinstance(item, Mapping):
            return item
        if self._is_pair(item):
            return {IMAGE: item[0], LABEL: item[1]}
        if isinstance(item, tuple | list) and not self._is_images(item):
            raise ValueError(
                f"row {row} of {self.name} is a {type(item).__name__} of {len(item)}; an item must be a pair (image, "
                "label), a dict of members, or an image: return a dict for more than a label"
            )
        return {IMAGE: item}

    def classes_of(self, member: str) -> Mapping[str, int] | None:
        """Return the classes that the object names, as torchvision's data sets do."""
        return _classes_of(self._dataset) if member == LABEL else None

    def coded(self, member: str, rows: np.ndarray) -> tuple[np.ndarray, list[Any]] | None:
        """Only reading the items shows their labels."""
        return None

    def fingerprint(self) -> str | None:
        """An object has none."""
        return None

    @staticmethod
    def holds_image(value: Any) -> bool:
        """Return whether a member of an item is what `read` can return."""
        return is_picture(value)

    @staticmethod
    def _is_pair(item: Any) -> bool:
        return isinstance(item, tuple | list) and len(item) == 2

    @staticmethod
    def _is_images(item: Any) -> bool:
        """Return whether an item itself is a list of images."""
        return False

    def _image_member(self, item: Mapping[str, Any], image: str) -> str:
        listed = ", ".join(f"{member} ({type(value).__name__})" for member, value in item.items())
        if image:
            if image not in item:
                raise ValueError(
                    f"image is {image!r}, which is no member of the items of {self.name}; their members are {listed}"
                )
            return image
        found = [member for member, value in item.items() if self.holds_image(value)]
        if len(found) == 1:
            return found[0]
        if IMAGE in (found or item):
            return IMAGE
        raise ValueError(
            f"the items of {self.name} hold {len(found) or 'no'} images ({', '.join(found) or 'by their type'}); their "
            f"members are {listed}: name the one to use with image="
        )

    def _first(self) -> Any:
        """Return the first item that is not damaged, None if there is none among the first ones."""
        for row in range(min(len(self), PROBE)):
            with suppress(BadImage):
                return self._item(row)
        return None

    def _item(self, row: int) -> Any:
        try:
            with self._lock:
                return self._dataset[row]
        except BadImage:
            raise
        except Exception as error:
            if (reason := damage(error)) is not None:
                raise BadImage(reason, "read") from error
            raise RuntimeError(
                f"row {row} of {self.name} raised {type(error).__name__}: {error}; correct the data set, or, for a "
                "damaged image, raise patchnpack.loaders.BadImage(reason) in it: the image is then counted and skipped"
            ) from error


_adapters: weakref.WeakSet[ObjectAdapter] = weakref.WeakSet()


def _renew_locks() -> None:
    # A thread that held a lock in the parent does not exist in a forked child.
    for adapter in list(_adapters):
        adapter._renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def _name_of(dataset: Any) -> str:
    return f"the {type(dataset).__name__}" if isinstance(dataset, list | tuple | np.ndarray) else type(dataset).__name__


def _classes_of(dataset: Any) -> Mapping[str, int] | None:
    numbers = getattr(dataset, "class_to_idx", None)
    if isinstance(numbers, Mapping) and numbers:
        return dict(numbers)
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, Sequence) and not isinstance(classes, str) and classes:
        return {str(name): i for i, name in enumerate(classes)}
    return None
