"""Hugging Face data sets: images are read from Arrow as they are stored, never decoded by `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchnpack.loaders.datasets.adapter import Picture
from patchnpack.loaders.datasets.pictures import stored_bytes
from patchnpack.loaders.errors import BadImage

# n rows

_LISTS = ("List", "LargeList", "Sequence")


def is_hugging_face(given: Any, kind: str) -> bool:
    """Return whether an object is of a class of the package `datasets`, or of a subclass; nothing is imported."""
    return hasattr(given, "with_format") and any(
        base.__name__ == kind and base.__module__.startswith("datasets.") for base in type(given).__mro__
    )


class HuggingFaceAdapter:
    """A map-style Hugging Face data set; see `Adapter`.

    Args:
        dataset: the data set.
        image: the column that holds images; "" finds the only one.
        named: whether classes are given as names instead of as the numbers of a `ClassLabel`.
    """

    default_label = None

    def __init__(self, dataset: Any, image: str, *, named: bool) -> None:
        self._dataset = dataset.with_format("arrow")
        self.members = list(dataset.column_names)
        self.name = f"the data set with the columns {', '.join(self.members) or '(none)'}"
        features = dataset.features or {}
        self.image = _image_column(features, image)
        self._is_list = _is_list(features[self.image])
        self._names = {
            name: list(feature.names) for name, feature in features.items() if type(feature).__name__ == "ClassLabel"
        }
        self._named = named

    def __len__(self) -> int:
        return len(self._dataset)

    def counts(self) -> np.ndarray | None:
        """Return the lengths of the lists of images, read from their offsets; None where a row is one image."""
        if not self._is_list:
            return None
        # `dataset[:]` would copy the images of a shuffled data set into memory.
        lengths = pc.fill_null(pc.list_value_length(self._dataset.data.column(self.image)), 0)
        counts: np.ndarray = lengths.to_numpy().astype(np.int64)
        chosen = getattr(self._dataset, "_indices", None)
        return counts if chosen is None else counts[chosen.column(0).to_numpy()]

    def read(self, row: int, number: int) -> tuple[Picture, Mapping[str, Any]]:
        """Return an image as it is stored, and the other columns of its row."""
        members = self.members_of(row)
        cell = members.cell(self.image)
        if self._is_list:
            cell = cell.values[number]
        if not cell.is_valid:
            raise BadImage("it has no image: the value is null", "read")
        if isinstance(cell, pa.StructScalar):
            return stored_bytes(cell["bytes"].as_py(), cell["path"].as_py(), f"row {row}"), members
        return cell.as_py(), members

    def members_of(self, row: int) -> _Row:
        """Return the columns of a row, each converted when it is asked for."""
        return _Row(self._dataset[row], self._names, self._named)

    def classes_of(self, member: str) -> Mapping[str, int] | None:
        """Return the index of each class name of a `ClassLabel` column; None for other columns."""
        names = self._names.get(member)
        return None if names is None else {name: i for i, name in enumerate(names)}

    def distinct(self, member: str, rows: np.ndarray) -> list[Any] | None:
        """Return the distinct values of a column of texts or whole numbers."""
        column = self._dataset.select_columns([member])[:].column(member)
        if not (pa.types.is_integer(column.type) or pa.types.is_string(column.type)):
            return None
        values = pc.unique(column.take(pa.array(rows))).to_pylist()
        return [_class(value, self._names.get(member), self._named) for value in values]

    def fingerprint(self) -> str | None:
        """Return the data set's own fingerprint, which each of its methods renews."""
        found = getattr(self._dataset, "_fingerprint", None)
        return None if found is None else f"datasets {found}"


class _Row(Mapping[str, Any]):
    """The columns of one row, an Arrow table, as Python values."""

    def __init__(self, table: pa.Table, names: Mapping[str, list[str]], named: bool) -> None:
        self._table, self._names, self._named = table, names, named

    def cell(self, name: str) -> Any:
        """Return the Arrow value of a column."""
        return self._table.column(name)[0]

    def __getitem__(self, name: str) -> Any:
        if name not in self._table.column_names:
            raise KeyError(name)
        return _class(self.cell(name).as_py(), self._names.get(name), self._named)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return len(self._table.column_names)


def _class(value: Any, names: list[str] | None, named: bool) -> Any:
    """Return a value of a column; a class is -1 where it is unknown."""
    if names is None or value is None:
        return value
    if value < 0:
        return None
    return names[value] if named else value


def _is_list(feature: Any) -> bool:
    return isinstance(feature, list) or type(feature).__name__ in _LISTS


def _holds_images(feature: Any) -> bool:
    if _is_list(feature):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    return type(feature).__name__ == "Image"


def _image_column(features: Mapping[str, Any], image: str) -> str:
    found = [name for name, feature in features.items() if _holds_images(feature)]
    listed = ", ".join(f"{name} ({feature})" for name, feature in features.items())
    if image:
        if image not in features:
            raise ValueError(f"image is {image!r}, which is no column of the data set; its columns are {listed}")
        if image not in found and getattr(features[image], "dtype", None) not in ("binary", "large_binary"):
            raise ValueError(
                f"image is {image!r}, a column of {features[image]}; it must hold images: for paths or bytes, "
                f"dataset.cast_column({image!r}, datasets.Image())"
            )
        return image
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"the data set has {len(found)} columns of images, {', '.join(found)}; name one with image=")
    raise ValueError(
        f"the data set has no column of images; its columns are {listed or '(none)'}: for paths or bytes, "
        "dataset.cast_column(NAME, datasets.Image())"
    )
