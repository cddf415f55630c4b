"""`convert`: how values of another depth or number of bands become those that a packing asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from patchnpack.packer.checks import shown
from patchnpack.packer.dtypes import Dtype, as_dtype

Convert = str | Callable[[np.ndarray], np.ndarray]

_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as PIL computes grey
_WANTED = (
    "it must be 'scale', 'exact', 'window:LOW:HIGH' with LOW below HIGH, or a function from the values of a file, "
    "(height, width, bands), to those that channels and dtype ask for"
)


def check_convert(convert: object) -> None:
    """Raise ValueError unless `convert` is None or one of the ways to convert.

    >>> check_convert("window:400:-1000")
    Traceback (most recent call last):
    ValueError: convert is 'window:400:-1000'; it must be 'scale', 'exact', 'window:LOW:HIGH' with LOW below HIGH, or \
a function from the values of a file, (height, width, bands), to those that channels and dtype ask for
    """
    if convert is None or convert in ("scale", "exact") or (callable(convert) and not isinstance(convert, type)):
        return
    if not isinstance(convert, str) or _window(convert) is None:
        raise ValueError(f"convert is {shown(convert)}; {_WANTED}")


def name_of_convert(convert: Convert | None) -> str:
    """A text that is equal for equal ways to convert; a function is told by its module and name.

    >>> name_of_convert("scale"), name_of_convert(np.nan_to_num)
    ("'scale'", 'numpy.nan_to_num')
    """
    return name_of_function(convert) if callable(convert) else repr(convert)


def name_of_function(function: Callable[..., Any]) -> str:
    """The module and the name of a function, or of the class of another callable object."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def converted(values: np.ndarray, convert: Convert, channels: int, dtype: Dtype, bits: int) -> np.ndarray:
    """Convert the values of a file to `channels` and `dtype`.

    "scale" maps the range of the file's type and bits to that of `dtype`: 0 to 1 of float32, where signed values become
    -1 to 1; of int16, unsigned values take the part above 0. "window:LOW:HIGH" maps LOW to HIGH to the range above 0,
    and clips. "exact" keeps the values. A single band becomes several equal ones, RGB one grey band, and alpha is
    dropped.

    Args:
        values: (height, width, bands) of one of `DTYPES`.
        convert: the way, as `check_convert` accepts it.
        channels, dtype: of the result.
        bits: significant bits of whole values.

    Raises:
        ValueError: bands or values that cannot be converted; or a function returned another shape or type, which is
            a TypeError.

    >>> converted(np.array([[[0], [1023]]], np.uint16), "scale", 1, "uint8", 10).ravel().tolist()
    [0, 255]
    >>> converted(np.array([[[-2000], [40], [1000]]], np.int16), "window:-160:240", 1, "uint8", 16).ravel().tolist()
    [0, 128, 255]
    """
    if callable(convert):
        made: Any = convert(values)
        shape = (*values.shape[:2], channels)
        if not isinstance(made, np.ndarray) or made.shape != shape or made.dtype != np.dtype(dtype):
            found = f"{made.dtype} {made.shape}" if isinstance(made, np.ndarray) else type(made).__name__
            raise TypeError(
                f"convert returned {found} for {values.dtype} {values.shape}; it must return {dtype} {shape}"
            )
        checked: np.ndarray = made
        return checked
    mixed = _with_channels(values, channels)
    if convert == "exact":
        return as_dtype(mixed, dtype)
    if convert == "scale":
        low, high = _range(values.dtype.name, bits)
        least, most = (-1.0 if low < 0 else 0.0, 1.0) if dtype == "float32" else _range(dtype, 16)
        if dtype == "int16" and low >= 0:
            least = 0.0
    else:
        window = _window(convert)
        assert window is not None
        low, high = window
        least, most = 0.0, 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    share = (mixed.astype(np.float64) - low) / (high - low)
    scaled = least + share.clip(0, 1) * (most - least)
    rounded: np.ndarray = (scaled if dtype == "float32" else np.rint(scaled)).astype(dtype)
    return rounded


def _window(convert: str) -> tuple[float, float] | None:
    kind, *ends = convert.split(":")
    try:
        low, high = map(float, ends)
    except ValueError:
        return None
    return (low, high) if kind == "window" and low < high and math.isfinite(high - low) else None


def _range(dtype: str, bits: int) -> tuple[float, float]:
    """The least and the most that a type holds; of uint16, that its bits hold; of float32, 0 and 1."""
    if dtype == "float32":
        return 0.0, 1.0
    if dtype == "uint16":
        return 0.0, float((1 << min(bits, 16)) - 1)
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def _with_channels(values: np.ndarray, channels: int) -> np.ndarray:
    bands = values.shape[2]
    if bands in (2, 4) and channels in (1, 3):  # alpha
        values, bands = values[..., :-1], bands - 1
    if bands == channels:
        return values
    if bands == 1:
        return np.repeat(values, channels, 2)
    if bands == 3 and channels == 1:
        grey = values.astype(np.float64) @ _GREY
        result: np.ndarray = (grey if values.dtype.kind == "f" else np.rint(grey))[..., None].astype(values.dtype)
        return result
    raise ValueError(
        f"it has {values.shape[2]} bands and channels is {channels}; give convert=, a function that chooses among them"
    )
