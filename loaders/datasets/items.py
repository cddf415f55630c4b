"""`Items`: the images of a data set, in order, with the adapter that reads each; subsets and concatenations "
"resolved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from patchnpack.loaders.datasets.adapter import Adapter, Picture
from patchnpack.loaders.datasets.hugging_face import HuggingFaceAdapter, is_hugging_face
from patchnpack.loaders.datasets.lists import ListAdapter
from patchnpack.loaders.datasets.objects import FolderAdapter, ObjectAdapter, is_folder
from patchnpack.loaders.index.table import Texts

# n images


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """The n images of a data set.

    Attributes:
        name: what errors and reports call the data set.
        adapters: the data sets that it consists of.
        adapter: int32 (n,), the adapter of each image.
        row: int64 (n,), its row there.
        number: int32 (n,), its place among the images of the row.
        keys: the number of its row in the data set as it was given; "ROW/NUMBER" where rows hold lists of images.
        empty: rows without an image, because their lists are empty.
    """

    name: str
    adapters: tuple[Adapter, ...]
    adapter: np.ndarray
    row: np.ndarray
    number: np.ndarray
    keys: Texts[str]
    empty: int = 0

    def __len__(self) -> int:
        return len(self.row)

    def read(self, i: int) -> tuple[Picture, Mapping[str, Any]]:
        """Return image i and the members of its row; raises as `Adapter.read` does."""
        adapter: Adapter = self.adapters[self.adapter[i]]
        try:
            return adapter.read(int(self.row[i]), int(self.number[i]))
        except (OSError, RuntimeError, ValueError) as error:
            error.add_note(f"raised for {self.describe(i)}")
            raise

    @property
    def starts(self) -> np.ndarray:
        """The first image of each row that has one, and n: int64 (m + 1,)."""
        return np.append(np.flatnonzero(self.number == 0), len(self)).astype(np.int64)

    def take(self, which: np.ndarray) -> Items:
        """The images at `which`, int64 (m,)."""
        columns = {"adapter": self.adapter, "row": self.row, "number": self.number}
        taken: dict[str, Any] = {name: column[which] for name, column in columns.items()}
        return replace(self, **taken, keys=self.keys.take(which))

    def describe(self, i: int) -> str:
        """Return what errors call image i."""
        return f"the image with key {self.keys[i]!r} of {self.name}"


def items_of(given: Any, image: str, *, thread_safe: bool | None, named: bool, lists: bool = False) -> Items:
    """Return the images of a data set.

    Args:
        given: the data set.
        image: the column or member that holds images; "" finds the only one.
        thread_safe: whether threads may call `__getitem__` at the same time; None is no, for objects that are not
            known.
        named: whether Hugging Face's classes are given by their names.
        lists: whether items of any object may hold lists of images; reading all items counts them.

    Raises:
        ValueError: `given` is no map-style data set, is empty, or its images cannot be told from its other members.
    """
    _refuse(given)
    if not len(given):
        raise ValueError(f"the data set {type(given).__name__} is empty; give one with at least one image")
    adapters: dict[int, Adapter] = {}

    def number_of(dataset: Any) -> int:
        if id(dataset) not in adapters:
            adapters[id(dataset)] = _adapter(dataset, image, thread_safe=thread_safe, named=named, lists=lists)
        return list(adapters).index(id(dataset))

    adapter, row = _resolve(given, np.arange(len(given)), number_of)
    times, has_lists = np.ones(len(row), np.int64), False
    for i, counts in enumerate(known.counts() for known in adapters.values()):
        if counts is not None:
            times[adapter == i], has_lists = counts[row[adapter == i]], True
    outer = np.repeat(np.arange(len(row)), times)
    if not len(outer):
        raise ValueError(f"all {len(row)} rows of the data set {type(given).__name__} hold empty lists of images")
    number = np.arange(len(outer)) - np.repeat(np.cumsum(times) - times, times)
    return Items(
        name=f"data set {type(given).__name__}",
        adapters=tuple(adapters.values()),
        adapter=adapter[outer].astype(np.int32),
        row=row[outer],
        number=number.astype(np.int32),
        keys=Texts.of(map("{}/{}".format, outer.tolist(), number.tolist()) if has_lists else map(str, outer.tolist())),
        empty=int((times == 0).sum()),
    )


def _resolve(given: Any, rows: np.ndarray, number_of: Callable[[Any], int]) -> tuple[np.ndarray, np.ndarray]:
    """Return which data set inside `given` holds each of `rows`, int64 (m,), and its row there, both int64 (m,)."""
    _refuse(given)
    if isinstance(given, Subset) and type(given).__getitem__ is Subset.__getitem__:
        _refuse(given.dataset)
        inner: Any = given.dataset
        chosen, length = np.asarray(given.indices, np.int64).reshape(-1)[rows], len(inner)
        outside = (chosen < -length) | (chosen >= length)
        if outside.any():
            raise ValueError(
                f"a Subset has the index {chosen[outside][0]}, and its data set has {length} rows; correct its indices"
            )
        return _resolve(given.dataset, np.where(chosen < 0, chosen + length, chosen), number_of)
    if isinstance(given, ConcatDataset) and type(given).__getitem__ is ConcatDataset.__getitem__:
        adapter, row = np.empty_like(rows), np.empty_like(rows)
        ends = np.array([0, *given.cumulative_sizes], np.int64)
        part_of = np.searchsorted(ends, rows, side="right") - 1
        for part in np.unique(part_of).tolist():
            here = part_of == part
            adapter[here], row[here] = _resolve(given.datasets[part], rows[here] - ends[part], number_of)
        return adapter, row
    return np.full(len(rows), number_of(given)), rows


def _adapter(dataset: Any, image: str, *, thread_safe: bool | None, named: bool, lists: bool) -> Adapter:
    transformed = is_hugging_face(dataset, "Dataset") and (dataset.format or {}).get("type") == "custom"
    if is_hugging_face(dataset, "Dataset") and not transformed:
        return HuggingFaceAdapter(dataset, image, named=named)
    if is_folder(dataset):
        return FolderAdapter(dataset)
    return (ListAdapter if lists else ObjectAdapter)(dataset, image, thread_safe=bool(thread_safe))


def is_iterable_only(given: Any) -> bool:
    """Return whether `given` is a data set that can only be iterated."""
    return isinstance(given, IterableDataset) or is_hugging_face(given, "IterableDataset")


def _refuse(given: Any) -> None:
    """Raise ValueError unless `given` is a map-style data set, with what to give instead."""
    kind = type(given).__name__
    if isinstance(given, Mapping):
        names = ", ".join(map(repr, given)) or "(none)"
        first = next(iter(given), "train")
        raise ValueError(
            f"the source is a {kind} with the splits {names}; give one of them: dataset[{first!r}], or mix them: "
            "torch.utils.data.ConcatDataset(list(dataset.values()))"
        )
    if {"webdataset", "wids"} & {base.__module__.partition(".")[0] for base in type(given).__mro__}:
        raise ValueError(
            f"the source is a {kind}; give the names of its shards, or pack its samples as they come: "
            "pack_stream(data, packing, batch_size=...)"
        )
    if is_iterable_only(given) or not hasattr(given, "__getitem__"):
        raise ValueError(
            f"the source is a {kind}, which can only be iterated: pack_stream({kind.lower()}, packing, batch_size=...) "
            "packs it as it arrives; for epochs, shuffling and exact resume give a data set with __len__ and "
            "__getitem__"
        )
    try:
        len(given)
    except TypeError:
        raise ValueError(
            f"the data set {kind} has no length; give it __len__, or pass it to pack_stream(samples, packing, "
            "batch_size=...)"
        ) from None
