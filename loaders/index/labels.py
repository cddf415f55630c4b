"""Labels: the class or target of a sample, read from its members."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.index.classes import Classes as Classes
from patchnpack.loaders.index.classes import class_table, remedy_of_unknown
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.shards.member_names import find_member
from patchnpack.packer.checks import shown

# D values in a target

NO_LABEL = -100
_WHOLE = re.compile(r"([+-]?)0*([0-9]+)")
_INT64 = np.iinfo(np.int64)
_ABSENT = ("NAType", "NaTType")  # pandas' missing values

Label = str | Callable[[dict[str, bytes]], Any] | None


class LabelKind:
    """The shape and type of labels: classes of shape () or targets of shape (D,).

    Attributes:
        shape: () for classes, (D,) for targets.
        dtype: int64 for classes, float32 for targets.
        absent: the label of a sample without one: -100 for classes, NaN for targets.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(np.float32 if shape else np.int64)
        self.absent: Any = np.float32("nan") if shape else np.int64(NO_LABEL)

    def check(self, label: int | np.ndarray, key: str) -> None:
        """Raise ValueError if the label of sample `key` has another shape."""
        if np.shape(label) != self.shape:
            raise ValueError(
                f"label of {key!r} has shape {np.shape(label)}, the labels before it {self.shape}; all labels must "
                "have the same shape"
            )


class KnownLabels(LabelKind):
    """Labels that are stored with their packs and never read from members.

    Attributes:
        num_classes: outputs that a classifier needs; None if unknown.
        classes: index of each class name; None where labels are numbers.
    """

    def __init__(self, *, shape: tuple[int, ...], num_classes: int | None, classes: Mapping[str, int] | None) -> None:
        super().__init__(shape)
        self.num_classes, self.classes = num_classes, classes

    def known(self, rows: np.ndarray) -> np.ndarray:
        """Never called: each pack brings its own labels."""
        raise AssertionError(f"the labels of {len(rows)} rows were asked for, but they are stored with their packs")

    def of(self, row: int) -> Any:
        """Never called: each pack brings its own labels."""
        raise AssertionError(f"the label of row {row} was asked for, but it is stored with its pack")


class LabelRule:
    """The rule from a sample's members to its label; for `label` and `classes` see `Labels`.

    Attributes:
        member: name of the member that holds the label; "" where no member does or a callable decides.
        classes: index of each class name; None where labels are numbers.
    """

    def __init__(self, label: Label, classes: Classes) -> None:
        _check_label(label)
        self._label = label
        self.classes = class_table(classes)
        self._numbers = set() if self.classes is None else set(self.classes.values())
        self.member, self._field = "", ""
        if isinstance(label, str):
            self.member, _, self._field = label.removeprefix(".").partition(":")
            if self._field and self.member.lower() != "json":
                raise ValueError(f"label is {label!r}; only a .json member has fields: write 'json:{self._field}'")
            if self.member.lower() == "json" and not self._field:
                raise ValueError("label is 'json'; name the field that holds the label: 'json:FIELD'")

    def of_sample(
        self, read: Callable[[str], Any], read_all: Callable[[], dict[str, Any]], describe: Callable[[], str]
    ) -> int | np.ndarray | None:
        """Return the label of a sample: an int (a class), a float32 array (a target), or None where it has none.

        Args:
            read: returns the value of one member, by name; None where the sample lacks it.
            read_all: returns all members by name, for a callable label.
            describe: names the sample in the note of whatever is raised.
        """
        try:
            return as_label(self._label(read_all())) if callable(self._label) else self.value(read(self.member))
        except Exception as error:
            error.add_note(f"raised for the label of {describe()}")
            raise

    def value(self, data: Any) -> int | np.ndarray | None:
        """Return the label that a member holds.

        `data` is the member's bytes or text, or the value it was decoded to; None gives None.

        Raises:
            BadImage: a .json member that is not JSON.
            ValueError: the value is not a label.
        """
        if data is None:
            return None
        if self._field:
            try:
                record = json.loads(data) if isinstance(data, bytes | str) else data
            except (ValueError, RecursionError) as error:  # brackets nested thousands deep
                raise BadImage(f"its .json member cannot be read: {error}", "label") from error
            return self._field_of(record)
        if isinstance(data, bytes | str):
            return self.number(data.decode("utf-8", "replace") if isinstance(data, bytes) else data)
        return self._of_value(data)

    def _field_of(self, record: Any) -> int | np.ndarray | None:
        if not isinstance(record, dict):
            raise ValueError(
                f"the .json member holds {type(record).__name__}; {self._label!r} asks for a field of an object"
            )
        value = _at(record, self._field)
        if isinstance(value, bool | list):
            return self._of_value(value)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, float) and value.is_integer() and str(value) not in (self.classes or ()):
            value = int(value)  # tools that know missing values write whole numbers as 3.0
        return self.number(str(value))

    def _of_value(self, value: Any) -> int | np.ndarray | None:
        label = as_label(value)
        return self.number(str(label)) if isinstance(label, int) else label

    def number(self, text: str) -> int:
        """Return the class that a text names: by its name, or as a whole number of int64 in decimal digits.

        White space around the text and a byte order mark before it do not count.
        """
        text = text.removeprefix("\ufeff").strip()
        if self.classes is not None and text in self.classes:
            return self.classes[text]
        number = whole_number(text)
        if number is None:
            remedy = "give classes=, a list of their names"
            if self.classes is not None:
                remedy = remedy_of_unknown(text, self.classes)
            if "\ufffd" in text:
                remedy = "its text is not UTF-8; write it in UTF-8"
            raise ValueError(
                f"label {_short(text)} (of {self._label!r}) is neither a whole number nor a known class; {remedy}"
            )
        if not _INT64.min <= number <= _INT64.max:
            raise ValueError(
                f"label {_short(text)} (of {self._label!r}) does not fit in int64; labels are {_INT64.min} to "
                f"{_INT64.max}: number the classes from 0, or give classes=, a list of their names"
            )
        if self.classes is not None and number not in self._numbers:
            raise ValueError(f"label {number} is not among the {len(self.classes)} classes; name them all in classes=")
        return number


class Labels(LabelKind):
    """Reads the label of each row of an index.

    Args:
        index: says which members each sample has.
        label: None; "EXT", the text of the member .EXT; "json:FIELD", a field of the .json member, where FIELD may be
            a path such as annotation.class; or a callable from a sample's members (extension to bytes) to an int or an
            array.
        classes: names of the classes, as a list, a file with one name per line, or a mapping from name to index. They
            map texts that are not whole numbers.
        read: returns the bytes of one member (row, extension), None where the sample lacks it.

    Raises:
        ValueError: no sample has the label, or a label is a name that `classes` lacks. For "cls" (or the index's
            `cls_member`) the constructor checks all labels, since the index holds their texts. For other members the
            constructor reads the first label, and `of` checks the others.
    """

    def __init__(self, index: Index, label: Label, classes: Classes, read: Callable[[int, str], bytes | None]) -> None:
        self._index, self._label, self._read = index, label, read
        self._rule = LabelRule(label, classes)
        self._member = find_member(self._rule.member, index.members) or self._rule.member.lower()
        if self._member in index.image.split(";"):
            others = ", ".join("." + extension for extension in sorted(index.members) if extension != self._member)
            raise ValueError(f"label {label!r} names the image; the other members are {others or 'none'}: name one")
        if classes is not None and label is None:
            raise ValueError("classes= names the classes of labels, and label is None; give label=, such as 'cls'")
        self._texts = self._read_cls() if self._member == index.cls_member else None
        super().__init__(() if label is None else self._probe())

    @property
    def classes(self) -> Mapping[str, int] | None:
        """Index of each class name; None where labels are numbers."""
        return self._rule.classes

    @property
    def num_classes(self) -> int | None:
        """Outputs that a classifier needs: the highest label plus one, or the length of a target; None if unknown."""
        if self.shape:
            return self.shape[0]
        if self._rule.classes:
            return max(self._rule.classes.values()) + 1
        return None if self._texts is None else max(self._texts.values()) + 1

    def known(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the labels of rows, int64 (m,), where the index holds them; None where `of` reads each."""
        if self._label is None:
            return np.full(len(rows), self.absent)
        if self._texts is None:
            return None
        texts, absent = self._texts, int(self.absent)
        return np.array([texts.get(text, absent) for text in self._index.cls.listed(rows)], np.int64)

    def of(self, row: int) -> Any:
        """Return the label of a row: a number or an array of `shape`, `absent` where the sample has none."""
        if self._label is None:
            return self.absent
        if self._texts is not None:
            return self._texts.get(self._index.cls[row], self.absent)
        value = self._value(row)
        if value is None:
            return self.absent
        self.check(value, self._index.keys[row])
        return value

    def _read_cls(self) -> dict[str | None, int]:
        """Return the label of each distinct text, so that a bad text is found before any work starts."""
        column, numbers = self._index.cls.column, dict[str | None, int]()
        for text in pc.unique(column).to_pylist():
            if text is not None:
                try:
                    numbers[text] = self._rule.number(text)
                except ValueError as error:
                    error.add_note(f"raised for the label of {self._describe(pc.index(column, text).as_py())}")
                    raise
        return numbers

    def _value(self, row: int) -> int | np.ndarray | None:
        return self._rule.of_sample(
            lambda _: self._read_value(row), lambda: self._members(row), lambda: self._describe(row)
        )

    def _read_value(self, row: int) -> Any:
        """Return what the label's member of a row holds: its bytes, or the value in a column of lists."""
        data = self._read(row, self._member)
        has_field = ":" in str(self._label)  # whose rule reads the JSON itself
        if data is None or has_field or self._index.kinds.get(self._member) != "json":
            return data
        return json.loads(data)

    def _members(self, row: int) -> dict[str, bytes]:
        return {e: data for e in self._index.members if (data := self._read(row, e)) is not None}

    def _describe(self, row: int) -> str:
        shard = redact(self._index.place(row)[0])
        return f"the sample with key {self._index.keys[row]!r} in {shard!r}"

    def _fields(self) -> str:
        """Return what the first JSON record says of the fields that a label may name; "" where it says nothing."""
        for row in range(len(self._index)):
            try:
                record = json.loads(self._read(row, "json") or b"null")
            except ValueError:
                continue
            if isinstance(record, dict):
                names = [name if not isinstance(value, dict) else f"{name}.FIELD" for name, value in record.items()]
                return f", whose .json members have the fields {shown(', '.join(names)).strip(chr(39))}"
        return ""

    def _probe(self) -> tuple[int, ...]:
        """Return the shape of the first label."""
        reason = ""
        if self._texts is not None:
            if self._texts:
                return ()
        else:
            for row in range(len(self._index)):
                try:
                    value = self._value(row)
                except BadImage as error:  # reported when the row's turn comes
                    reason = reason or f" ({self._index.keys[row]!r}: {error})"
                    continue
                if value is not None:
                    return np.shape(value)
        found = ", ".join("." + extension for extension in sorted(self._index.members))
        remedy = "name one of them, or give label=None"
        if self._label == "folder":
            remedy = (
                "label='folder' needs a folder of images with one sub-folder per class; if you named the folder of one "
                "class, name its parent"
            )
        elif "folder" in self._index.members:
            remedy = "give label='folder' for the sub-folders as classes, name another member, or give label=None"
        raise ValueError(
            f"label {self._label!r} is absent from all {len(self._index)} samples{reason}"
            f"{self._fields() if self._member == 'json' and not reason else ''}; their members are {found}: {remedy}"
        )


def _check_label(label: object) -> None:
    """Raise ValueError if a label is neither None nor a text nor callable."""
    if label is None or callable(label) or (isinstance(label, str) and label):
        return
    one = f", for example {label[0]!r}" if isinstance(label, tuple | list) and label else ""
    raise ValueError(
        f"label is {shown(label)}; it must name one member such as 'cls' or 'json:FIELD'{one}, or be a function of a "
        "sample's members, or None"
    )


def _at(record: Mapping[str, Any], path: str) -> Any:
    """Return the value of a field, or of a field below others: "a.b" is the field b of a, unless "a.b" is a field."""
    if path in record or "." not in path:
        return record.get(path)
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def count_absent(labels: np.ndarray) -> int:
    """Return how many labels are absent: -100 among classes (M,), all NaN among targets (M, D)."""
    return int((np.isnan(labels).all(-1) if labels.ndim == 2 else labels == NO_LABEL).sum())


def whole_number(text: str) -> int | None:
    """Return the number that a text of a sign and decimal digits stands for, None for any other text.

    Texts that only Python takes for numbers, such as "1_0" and digits of other scripts, are not numbers. A number of
    more than 19 digits stands for one that no int64 holds.

    >>> whole_number("-07"), whole_number("1_0"), whole_number("3.0")
    (-7, None, None)
    """
    match = _WHOLE.fullmatch(text)
    if match is None:
        return None
    sign, digits = match.groups()
    return int(
        sign + (digits if len(digits) <= 19 else "1" + "0" * 19)
    )  # Python refuses to convert thousands of digits


def as_label(value: Any) -> int | np.ndarray | None:
    """Convert a value to an int (a class) or a float32 array (a target); None, NaN and pandas' NA give None.

    Raises:
        ValueError: the value is neither a whole number of int64 nor a list of at least one number of float32.
    """
    if value is None or type(value).__name__ in _ABSENT:
        return None
    try:
        array = np.asarray(value)
    except (TypeError, RuntimeError):  # a tensor in bfloat16, on a GPU or with a gradient
        if not hasattr(value, "tolist"):
            raise
        array = np.asarray(value.tolist())
    if array.ndim == 0 and array.dtype.kind in "biu" and int(array) <= _INT64.max:
        return int(array)
    if array.ndim == 0 and array.dtype.kind == "f" and np.isnan(array):
        return None
    if array.ndim == 1 and len(array) and array.dtype.kind in "biuf":
        with np.errstate(over="ignore"):
            target = array.astype(np.float32)
        if (np.isinf(target) <= np.isinf(array)).all():
            return target
    raise ValueError(
        f"a label is {_short(value)}; it must be a whole number of int64 (a class) or a list of at least one number of "
        "float32 (a target; of one, write [x])"
    )


def _short(value: Any, limit: int = 60) -> str:
    """A value for a message, cut where it is long."""
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to convert thousands of digits
        return f"a number of {value.bit_length()} bits"
    text = str(value)
    shown = repr(value) if len(text) <= limit else repr(text[:limit])
    return shown if len(text) <= limit else f"{shown}... ({len(text)} characters)"
