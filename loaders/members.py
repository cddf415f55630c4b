"""Members of samples: checks of the options that name them, and their values as bytes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from patchnpack.packer.checks import shown


def check_extensions(image: object) -> None:
    """Raise ValueError unless `image` is extensions separated by semicolons.

    >>> check_extensions("jpg,png")
    Traceback (most recent call last):
        ...
    ValueError: image is 'jpg,png'; give extensions as one text, separated by semicolons: 'jpg;png'
    """
    if isinstance(image, str) and image.strip(" ;.") and not re.search(r"[,*]", image):
        return
    listed = image if isinstance(image, tuple | list | set | frozenset) else re.split(r"[,;]", str(image))
    meant = ";".join(str(name).strip().lstrip("*.") for name in listed if str(name).strip())
    usable = isinstance(image, str | tuple | list | set | frozenset) and meant
    raise ValueError(
        f"image is {shown(image)}; give extensions as one text, separated by semicolons: "
        f"{meant if usable else 'jpg;png'!r}"
    )


def checked_extras(extras: object) -> tuple[str, ...]:
    """Return `extras` as a tuple. Raises ValueError unless it is names of members, each a text.

    >>> checked_extras("txt")
    Traceback (most recent call last):
        ...
    ValueError: extras is 'txt'; give a list of extensions: ['txt']
    """
    if isinstance(extras, str):
        raise ValueError(f"extras is {extras!r}; give a list of extensions: [{extras!r}]")
    if not isinstance(extras, Iterable):
        raise ValueError(f"extras is {shown(extras)}; give a list of extensions such as ['txt'], or leave it out")
    names = tuple(extras)
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"extras holds {shown(name)}; each must be the extension of a member, such as 'txt'")
        member, colon, field = name.partition(":")
        if colon:
            raise ValueError(
                f"extras holds {name!r}; an extra is a whole member: give {member!r}, and take {field!r} from the "
                f"value in batch.extras[{member!r}]"
            )
    return names


def member_kind(value: Any) -> str:
    """Return how `encode_member` stores a value that is not None: as "txt", "bytes", "npy" or "json".

    >>> member_kind("a cat"), member_kind(b"a"), member_kind(np.zeros(3)), member_kind([1, 2])
    ('txt', 'bytes', 'npy', 'json')
    """
    if isinstance(value, str):
        return "txt"
    if isinstance(value, bytes | bytearray):
        return "bytes"
    return "npy" if _is_array(value) else "json"


def encode_member(value: Any, kind: str) -> bytes:
    """Return the bytes that `decode_member` turns into a value of this kind, which is not None.

    Tensors come back as arrays, tuples as lists; arrays inside lists and dicts come back as lists.

    Raises:
        ValueError: the value is of another kind, or of a type that no kind holds.

    >>> decode_member(encode_member({"boxes": [(1, 2)]}, "json"), "json")
    {'boxes': [[1, 2]]}
    """
    if isinstance(value, bytes | bytearray) and kind not in ("txt", "json", "npy"):
        return bytes(value)
    if kind == "txt" and isinstance(value, str):
        return value.encode()
    if kind == "npy" and _is_array(value):
        file = io.BytesIO()
        np.save(file, np.asarray(value), allow_pickle=False)
        return file.getvalue()
    if kind == "json":
        return json.dumps(_plain(value)).encode()
    kinds = {"txt": "text", "npy": "an array", "json": "a number, list or dict"}
    raise ValueError(
        f"its type is {type(value).__name__}, and the first value is {kinds.get(kind, 'bytes')}; give all rows the "
        "same type"
    )


def decode_member(data: bytes, kind: str) -> Any:
    """Return the value of a member: text for "txt", an object for "json", an array for "npy", bytes for all others.

    Raises:
        ValueError, RecursionError: the bytes are not of this kind.
    """
    if kind == "json":
        return json.loads(data)
    if kind == "npy":
        return np.load(io.BytesIO(data), allow_pickle=False)
    return data.decode("utf-8-sig") if kind == "txt" else data


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "ndim") and value.ndim > 0  # also a tensor


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _plain(item) for name, item in value.items()}
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return _plain(value.tolist())
    raise ValueError(
        f"it is or holds a value of type {type(value).__module__}.{type(value).__qualname__}, which a packed folder "
        "does not hold there; give text, bytes or an array, or numbers, or lists and dicts of text and numbers"
    )
