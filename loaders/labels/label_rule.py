"""`LabelRule`: from the value of a member, as text, JSON or a number, to a class or a target."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.labels.classes import Classes as Classes
from patchnpack.loaders.labels.classes import class_table, remedy_of_unknown
from patchnpack.packer.checks import shown

_WHOLE = re.compile(r"([+-]?)0*([0-9]+)")
_INT64 = np.iinfo(np.int64)
_ABSENT = ("NAType", "NaTType")  # pandas' missing values

Label = str | Callable[[dict[str, bytes]], Any] | None


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
