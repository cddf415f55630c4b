"""Labels: what a sample's members say of its class."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.remote.addresses import redact

NO_LABEL = -100

Label = str | Callable[[dict[str, bytes]], Any] | None
Classes = Sequence[str] | Mapping[str, int] | str | os.PathLike[str] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownLabels:
    """Labels that lie with their packs; `shape`, `dtype`, `absent` and `num_classes` are those of `Labels`."""

    shape: tuple[int, ...]
    num_classes: int | None
    classes: Mapping[str, int] | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the arrays."""
        return np.dtype(np.float32 if self.shape else np.int64)

    @property
    def absent(self) -> Any:
        """What stands where there is none."""
        return np.float32("nan") if self.shape else np.int64(NO_LABEL)

    def of(self, row: int) -> Any:
        """Never asked: a pack brings its labels."""
        raise AssertionError(f"row {row} was asked for a label that lies with its pack")


class LabelRule:
    """How one sample tells its label; `label` and `classes` are those of `Labels`.

    `member` is the name of the member that holds it; "" where there is none, or a callable is asked.
    """

    def __init__(self, label: Label, classes: Classes) -> None:
        self._label = label
        self.classes = _class_table(classes)
        self._numbers = set() if self.classes is None else set(self.classes.values())
        self.member, self._field = "", ""
        if isinstance(label, str):
            self.member, _, self._field = label.removeprefix(".").partition(":")
            if self._field and self.member.lower() != "json":
                raise ValueError(f"label is {label!r}; only a .json member has fields: write 'json:{self._field}'")
            if self.member.lower() == "json" and not self._field:
                raise ValueError("label is 'json'; name the field that holds the label: 'json:FIELD'")

    def value(self, data: Any) -> int | np.ndarray | None:
        """The label in a member: its bytes or text, or what it was decoded to; None for None."""
        if data is None:
            return None
        if self._field:
            try:
                record = json.loads(data) if isinstance(data, bytes | str) else data
            except ValueError as error:
                raise BadImage(f"its .json member cannot be read: {error}", "label") from error
            return self._field_of(record)
        if isinstance(data, bytes | str):
            return self.number((data.decode("utf-8", "replace") if isinstance(data, bytes) else data).strip())
        label = as_label(data)
        return self.number(str(label)) if isinstance(label, int) else label

    def _field_of(self, record: Any) -> int | np.ndarray | None:
        if not isinstance(record, dict):
            raise ValueError(
                f"the .json member holds {type(record).__name__}; {self._label!r} asks for a field of an object"
            )
        value = record.get(self._field)
        return as_label(value) if value is None or isinstance(value, bool | list) else self.number(str(value))

    def number(self, text: str) -> int:
        """The class that a text names."""
        if self.classes is not None and text in self.classes:
            return self.classes[text]
        try:
            number = int(text)
        except ValueError:
            remedy = "give classes=, a list of their names"
            if self.classes is not None:
                remedy = f"classes has {len(self.classes)} others"
            raise ValueError(
                f"label {_short(text)} (of {self._label!r}) is neither a whole number nor a known class; {remedy}"
            ) from None
        if self.classes is not None and number not in self._numbers:
            raise ValueError(f"label {number} is not among the {len(self.classes)} classes; name them all in classes=")
        return number


class Labels:
    """Reads the label of a row.

    `label` is None, "EXT" (the text of the member .EXT), "json:FIELD" (a field of the .json member), or a callable from
    a sample's members (extension to bytes) to an int or an array. Texts that are no whole number are looked up in
    `classes`: a list of names, a file with a name a line, or a mapping from name to index.

    `shape` is () for class indices (int64, -100 where there is none) and (D,) for targets (float32, NaN where there is
    none).

    Raises ValueError where the label is absent from every sample, or is a name that `classes` does not hold: for "cls"
    (or the index's `cls_member`) at once, since the index holds those texts, for others when the first label, or later
    that row, is read.
    """

    def __init__(self, index: Index, label: Label, classes: Classes, read: Callable[[int, str], bytes | None]) -> None:
        self._index, self._label, self._read = index, label, read
        self._rule = LabelRule(label, classes)
        self._member = self._rule.member.lower()
        if self._member in index.image.split(";"):
            others = ", ".join("." + extension for extension in sorted(index.members) if extension != self._member)
            raise ValueError(f"label {label!r} names the image; the other members are {others or 'none'}: name one")
        if classes is not None and label is None:
            raise ValueError("classes= names the classes of labels, and label is None; give label=, such as 'cls'")
        self._texts = self._read_cls() if self._member == index.cls_member else None
        self.shape: tuple[int, ...] = () if label is None else self._probe()
        self.dtype = np.dtype(np.float32 if self.shape else np.int64)
        self.absent = np.float32("nan") if self.shape else np.int64(NO_LABEL)

    @property
    def classes(self) -> Mapping[str, int] | None:
        """From name to index, None where labels are numbers."""
        return self._rule.classes

    @property
    def num_classes(self) -> int | None:
        """Outputs that a classifier needs: one more than the highest label, or a target's length; None if unknown."""
        if self.shape:
            return self.shape[0]
        if self._rule.classes:
            return max(self._rule.classes.values()) + 1
        return None if self._texts is None else max(self._texts.values()) + 1

    def of(self, row: int) -> Any:
        """The label of a row: a number, or an array of `shape`; `absent` where there is none."""
        if self._label is None:
            return self.absent
        if self._texts is not None:
            return self._texts.get(self._index.cls[row], self.absent)
        value = self._value(row)
        if value is None:
            return self.absent
        if np.shape(value) != self.shape:
            raise ValueError(
                f"label of {self._index.keys[row]!r} has shape {np.shape(value)}, the first one {self.shape}; all must "
                "agree"
            )
        return value

    def _read_cls(self) -> dict[str | None, int]:
        """The label of each text that there is, so that a bad one is found before any work starts."""
        column, numbers = self._index.cls.column, dict[str | None, int]()
        for text in pc.unique(column).to_pylist():
            if text is not None:
                with self._naming(pc.index(column, text).as_py()):
                    numbers[text] = self._rule.number(text)
        return numbers

    @contextmanager
    def _naming(self, row: int) -> Iterator[None]:
        """Whatever is raised says for which sample."""
        try:
            yield
        except Exception as error:
            shard = redact(self._index.shards[int(self._index.shard_of(row))])
            error.add_note(f"raised for the label of the sample with key {self._index.keys[row]!r} in {shard!r}")
            raise

    def _value(self, row: int) -> int | np.ndarray | None:
        with self._naming(row):
            return self._read_value(row)

    def _read_value(self, row: int) -> int | np.ndarray | None:
        if callable(self._label):
            return as_label(
                self._label({e: data for e in self._index.members if (data := self._read(row, e)) is not None})
            )
        return self._rule.value(self._read(row, self._member))

    def _probe(self) -> tuple[int, ...]:
        """The shape of the first label there is."""
        reason = ""
        if self._texts is not None:
            if self._texts:
                return ()
        else:
            for row in range(len(self._index)):
                try:
                    value = self._value(row)
                except BadImage as error:  # told when its turn comes
                    reason = reason or f" ({self._index.keys[row]!r}: {error})"
                    continue
                if value is not None:
                    return np.shape(value)
        found = ", ".join("." + extension for extension in sorted(self._index.members))
        raise ValueError(
            f"label {self._label!r} is absent from all {len(self._index)} samples{reason}; their members are {found}: "
            "name one of them, or give label=None"
        )


def as_label(value: Any) -> int | np.ndarray | None:
    """An int (a class), a float32 array (a target), or None for None."""
    if value is None:
        return None
    array = np.asarray(value)
    if array.ndim == 0 and array.dtype.kind in "biu":
        return int(array)
    if array.ndim == 1 and array.dtype.kind in "biuf":
        return array.astype(np.float32)
    raise ValueError(
        f"a label is {value!r}; it must be a whole number (a class) or a list of numbers (a target; of one, write [x])"
    )


def _class_table(classes: Classes) -> Mapping[str, int] | None:
    if classes is None or isinstance(classes, Mapping):
        return classes
    if isinstance(classes, str | os.PathLike):
        path = Path(classes)
        if not path.exists():
            raise FileNotFoundError(f"classes file {str(path)!r} does not exist; it holds one class name a line")
        classes = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    table = {name: i for i, name in enumerate(classes)}
    if len(table) < len(classes):
        raise ValueError(f"classes names {len(classes) - len(table)} classes twice; each needs a name of its own")
    return table


def _short(text: str, most: int = 60) -> str:
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text)} characters)"
