"""Columns of Arrow tables as the bytes of members: images as they are, text and numbers as text, the rest as JSON."""

from __future__ import annotations

import base64
import json
import math
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Encoding = Literal["", "txt", "json"]

_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
_TIMES = (pa.types.is_date, pa.types.is_time, pa.types.is_timestamp)
_WHOLE = 2.0**63  # floats below it are written as whole numbers where they are


def _is(kind: pa.DataType, *tests: Any) -> bool:
    return any(test(kind) for test in tests)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values: a dictionary's values, an extension's storage."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def plain_values(column: pa.Array) -> pa.Array:
    """Return a column as one of its `plain_type`."""
    while True:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        elif pa.types.is_dictionary(column.type):
            column = column.dictionary.take(column.indices)
        elif pa.types.is_run_end_encoded(column.type):
            column = pc.run_end_decode(column)
        else:
            return column


def can_hold_images(kind: pa.DataType, *, fixed: bool = False) -> bool:
    """Return whether a column of this type can hold encoded images: bytes, or a struct with bytes in a field `bytes`.

    Args:
        kind: the type of the column.
        fixed: whether bytes of a fixed size count, too; usually, they are digests or numbers.
    """
    kind = plain_type(kind)
    if pa.types.is_struct(kind):
        i = kind.get_field_index("bytes")
        return i >= 0 and can_hold_images(kind.field(i).type, fixed=True)
    return _is(kind, *_BYTES) or (fixed and pa.types.is_fixed_size_binary(kind))


def holds_lists_of_images(kind: pa.DataType) -> bool:
    """Return whether each row of a column of this type can hold several encoded images."""
    kind = plain_type(kind)
    return _is(kind, *_LISTS) and can_hold_images(kind.value_type)


def encoding_of(kind: pa.DataType) -> Encoding:
    """Return how the values of a column of this type are encoded: "" is bytes as they are."""
    if _is_uuid(kind):
        return "txt"
    plain = plain_type(kind)
    if can_hold_images(plain, fixed=True):
        return ""
    return "txt" if _is(plain, *_TEXTS, *_NUMBERS, *_TIMES, pa.types.is_duration, pa.types.is_null) else "json"


def encode(column: pa.Array) -> list[bytes | None]:
    """Return the value of each row as bytes, None where it is null or NaN.

    Whole numbers of any type are decimal digits ("3", also for 3.0), bools are "1" and "0", dates and times are ISO
    8601 text, durations are whole numbers in the unit of their column. Lists and structs are JSON; in these, bools stay
    bools, and bytes are base64 text.
    """
    if _is_uuid(column.type):
        return [None if value is None else str(value).encode() for value in column.to_pylist()]
    if isinstance(column.type, pa.FixedShapeTensorType):
        return [None if value.as_py() is None else _json(value.to_numpy().tolist()) for value in column]
    column = plain_values(column)
    kind = column.type
    if can_hold_images(kind, fixed=True):
        if pa.types.is_struct(kind):
            column = plain_values(pc.struct_field(column, "bytes"))
        return list(column.to_pylist())
    if _is(kind, *_TEXTS):  # as bytes: text that is not valid UTF-8 is the reader's concern
        return list(column.cast(pa.binary() if pa.types.is_string(kind) else pa.large_binary()).to_pylist())
    if _is(kind, *_TIMES):
        return [None if text is None else text.encode() for text in column.cast(pa.string()).to_pylist()]
    if pa.types.is_duration(kind):
        column = column.cast(pa.int64())
    if _is(column.type, *_NUMBERS):
        return [None if value is None else _number(value) for value in column.to_pylist()]
    exact = _without_times(kind)
    values = (column if exact == kind else column.cast(exact)).to_pylist()
    return [None if value is None else _json(value) for value in values]


def list_items(column: pa.Array) -> list[list[bytes | None] | None]:
    """Return the images of each row of a column for which `holds_lists_of_images`, None where the list is null."""
    column = plain_values(column)
    lists: list[list[Any] | None] = column.to_pylist()
    is_struct = pa.types.is_struct(plain_type(plain_type(column.type).value_type))
    if not is_struct:
        return lists
    return [items and [None if item is None else item["bytes"] for item in items] for items in lists]


def _is_uuid(kind: pa.DataType) -> bool:
    return getattr(kind, "extension_name", "") == "arrow.uuid"


def _number(value: Any) -> bytes | None:
    if isinstance(value, int):  # a bool as well
        return b"%d" % value
    if isinstance(value, Decimal):
        return str(int(value) if value == value.to_integral_value() else value).encode()
    value = float(value)
    if math.isnan(value):
        return None
    return str(int(value) if abs(value) < _WHOLE and value.is_integer() else value).encode()


def _json(value: Any) -> bytes:
    return json.dumps(value, default=_jsonable).encode()


def _jsonable(value: Any) -> Any:
    """What stands in JSON for a Python value that JSON lacks."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _without_times(kind: pa.DataType) -> pa.DataType:
    """The type with text for points in time below it: Python's have microseconds only, and Arrow's may have more."""
    if _is(kind, *_TIMES):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_times(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_without_times(kind.value_type)), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_without_times(kind.value_type)))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_without_times(kind.value_type)))
    return kind
