"""Hugging Face data sets: images are read from Arrow as they are stored, never decoded by `datasets`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchnpack.loaders.datasets.adapter import Picture
from patchnpack.loaders.datasets.pictures import stored_bytes

# n rows

_LISTS = ("List", "LargeList", "Sequence")


def is_hugging_face(given: Any, kind: str) -> bool:
    """Return whether an object is of a class of the package `datasets`, or of a subclass; nothing is imported."""
    return hasattr(given, "with_format") and any(
        base.__name__ == kind and base.__module__.startswith("datasets.") for base in type(given).__mro__
    )


class HuggingFaceAdapter:
    """A map-style Hugging Face data set; see `Adapter`.

    Its Arrow columns are read directly: an item of the data set itself costs a multiple, in Python alone.

    Args:
        dataset: the data set.
        image: the column that holds images; "" finds the only one.
        named: whether classes are given as names instead of as the numbers of a `ClassLabel`.
    """

    default_label = None

    def __init__(self, dataset: Any, image: str, *, named: bool) -> None:
        self.members = list(dataset.column_names)
        self.name = f"the data set with the columns {', '.join(self.members) or '(none)'}"
        features = dataset.features or {}
        self.image = _image_column(features, image)
        self._names = {
            name: list(feature.names) for name, feature in features.items() if type(feature).__name__ == "ClassLabel"
        }
        self._named, self._dataset = named, dataset.with_format("arrow")
        self._open()

    def _open(self) -> None:
        table, chosen = self._dataset.data, self._dataset._indices  # rows of the table, where some were selected
        self._rows = None if chosen is None else chosen.column(0).to_numpy().astype(np.int64)
        self._columns = {name: _Column(table.column(name)) for name in self.members}
        self._images = _Images(table.column(self.image))

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in self.__dict__.items() if name not in ("_rows", "_columns", "_images")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open()

    def __len__(self) -> int:
        return len(self._dataset)

    def counts(self) -> np.ndarray | None:
        """Return the lengths of the lists of images; None where a row is one image."""
        counts = self._images.counts
        return counts if counts is None or self._rows is None else counts[self._rows]

    def read(self, row: int, number: int) -> tuple[Picture, Mapping[str, Any]]:
        """Return an image as it is stored, and the other columns of its row."""
        at = row if self._rows is None else int(self._rows[row])
        data, path = self._images.read(at, number)
        return stored_bytes(data, path, f"row {row}"), _Row(self, at)

    def members_of(self, row: int) -> Mapping[str, Any]:
        """Return the columns of a row, each converted when it is asked for."""
        return _Row(self, row if self._rows is None else int(self._rows[row]))

    def value(self, name: str, at: int) -> Any:
        """Return the value of a column in a row of the table."""
        return _class(self._columns[name].read(at), self._names.get(name), self._named)

    def classes_of(self, member: str) -> Mapping[str, int] | None:
        """Return the index of each class name of a `ClassLabel` column; None for other columns."""
        names = self._names.get(member)
        return None if names is None else {name: i for i, name in enumerate(names)}

    def coded(self, member: str, rows: np.ndarray) -> tuple[np.ndarray, list[Any]] | None:
        """Return a column of texts or whole numbers."""
        column = self._dataset.data.column(member)
        if not (pa.types.is_integer(column.type) or pa.types.is_string(column.type)):
            return None
        chosen = column.take(pa.array(rows if self._rows is None else self._rows[rows])).combine_chunks()
        encoded = chosen.dictionary_encode()
        codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return codes, [_class(v, self._names.get(member), self._named) for v in encoded.dictionary.to_pylist()]

    def fingerprint(self) -> str | None:
        """Return the data set's own fingerprint, which each of its methods renews."""
        found = getattr(self._dataset, "_fingerprint", None)
        return None if found is None else f"datasets {found}"


class _Column:
    """A column of a table, in chunks."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks = [chunk for chunk in column.chunks if len(chunk)]
        self._firsts = list(accumulate(map(len, self._chunks), initial=0))

    def place(self, at: int) -> tuple[int, int]:
        """Return the chunk of a row of the table, and the row in it."""
        chunk = bisect_right(self._firsts, at) - 1
        return chunk, at - self._firsts[chunk]

    def read(self, at: int) -> Any:
        """Return the value of a row of the table."""
        chunk, row = self.place(at)
        return self._chunks[chunk][row].as_py()


class _Images(_Column):
    """A column of images, as bytes or as structs of bytes and path, or of lists of them.

    Attributes:
        counts: int64 (n,), the lengths of the lists; None where a row is one image.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        super().__init__(column)
        self.counts: np.ndarray | None = None
        kind, cells = column.type, self._chunks
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            lengths = [pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False) for chunk in cells]
            self.counts = np.concatenate([*lengths, []]).astype(np.int64)
            self._begins = [np.cumsum(length) - length for length in lengths]
            kind, cells = kind.value_type, [chunk.flatten() for chunk in cells]
        self._bytes, self._paths = cells, None
        if pa.types.is_struct(kind):
            parts = {name: i for i, name in enumerate(field.name for field in kind)}
            flat = [cell.flatten() for cell in cells]  # a null struct has null parts
            self._bytes = [part[parts["bytes"]] for part in flat]
            self._paths = [part[parts["path"]] for part in flat]

    def read(self, at: int, number: int = 0) -> tuple[bytes | None, str | None]:
        """Return the bytes and the path of an image, each None where there is none."""
        chunk, row = self.place(at)
        if self.counts is not None:
            row = int(self._begins[chunk][row]) + number
        data = self._bytes[chunk][row].as_py()
        return data, None if data is not None or self._paths is None else self._paths[chunk][row].as_py()


class _Row(Mapping[str, Any]):
    """The columns of one row of the table, as Python values."""

    def __init__(self, adapter: HuggingFaceAdapter, at: int) -> None:
        self._adapter, self._at = adapter, at

    def __getitem__(self, name: str) -> Any:
        return self._adapter.value(name, self._at)

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapter.members)

    def __len__(self) -> int:
        return len(self._adapter.members)


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
