"""The types of pixels: 8-bit colours, and the values of images of other depths."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Dtype = Literal["uint8", "uint16", "int16", "float32"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)  # an index stores positions in this tuple, so the order is fixed

_EXACT = 1 << 24  # whole numbers up to this are float32 values


def holding(dtype: np.dtype) -> Dtype | None:
    """The type that values of a numpy type are read as, None if they are not read.

    int8 becomes int16. Whole numbers of 32 and 64 bits and other floats become float32; `as_dtype` refuses numbers that
    float32 does not hold.

    >>> holding(np.dtype(">u2")), holding(np.dtype("int8")), holding(np.dtype("int32")), holding(np.dtype("complex64"))
    ('uint16', 'int16', 'float32', None)
    """
    if dtype.kind == "b" or dtype == np.uint8:
        return "uint8"
    if dtype.kind == "u" and dtype.itemsize == 2:
        return "uint16"
    if dtype.kind == "i" and dtype.itemsize <= 2:
        return "int16"
    return "float32" if dtype.kind in "iu" or (dtype.kind == "f" and dtype.itemsize <= 8) else None


def as_dtype(values: np.ndarray, dtype: Dtype) -> np.ndarray:
    """The same values as `dtype`, one of `DTYPES`; float64 is rounded to float32. The array itself where it has it.

    Raises:
        ValueError: `dtype` does not hold one of the values.
    """
    kind = np.dtype(dtype)
    if values.dtype == kind:
        return values
    if values.dtype.kind == "f":
        if kind.kind == "f":
            return values.astype(kind)
        if not (values == np.rint(values)).all():  # NaN is no whole number either
            raise ValueError(f"its values are fractions, which {dtype} does not hold")
    if values.size:
        least, most = values.min(), values.max()
        low, high = (-_EXACT, _EXACT) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
        if least < low or most > high:
            raise ValueError(f"its values are from {least} to {most}; {dtype} holds whole numbers from {low} to {high}")
    return values.astype(kind)
