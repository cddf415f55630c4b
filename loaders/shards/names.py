"""`names_of`: the shard names that a loader was given, or what to do with anything else that it was given."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from patchnpack.loaders.remote.addresses import check_not_file, is_remote, redact
from patchnpack.packer.checks import kind_of, shown

_GIVE = "give shards, such as 'train-{000000..000009}.tar', or a list of them"
_SCHEMES = "s3|gs|gcs|az|abfs|hf|https?"


def names_of(source: Any) -> list[str]:
    """Return the names in a source: one path, address or pattern, or several of them.

    Raises:
        ValueError: the source is neither, for example an unordered set of names.

    >>> names_of("a.tar"), names_of(("a.tar", "b.tar"))
    (['a.tar'], ['a.tar', 'b.tar'])
    """
    if isinstance(source, str | os.PathLike):
        return [os.fspath(source)]
    if isinstance(source, Mapping):
        raise ValueError(
            f"the source is a dict, {shown(source)}; for several sources with weights give Mixture({{...}})"
        )
    if isinstance(source, set | frozenset):
        raise ValueError(
            f"the source is a {type(source).__name__}, whose order changes from run to run; give a list: sorted(shards)"
        )
    if hasattr(source, "__getitem__") and not isinstance(source, Sequence | np.ndarray):
        raise ValueError(
            f"the source is a {kind_of(source)}, not the name of shards; only shards and files have an index: give "
            "a data set to PackedImageLoader or to a Mixture"
        )
    if isinstance(source, bytes) or not hasattr(source, "__iter__"):
        raise ValueError(f"the source is {_described(source)}; {_GIVE}")
    names = []
    for number, name in enumerate(source):
        if not isinstance(name, str | os.PathLike):
            raise ValueError(f"item {number} of the source is {_described(name)}; {_instead_of(name)}")
        names.append(os.fspath(name))
    return names


def check_name(name: str) -> None:
    """Raise ValueError for a name that means something elsewhere and no file here, with the name to give instead.

    These are addresses of local files, several shards in one text, and addresses that lost a slash.

    >>> check_name("file:shards/a.tar")
    Traceback (most recent call last):
        ...
    ValueError: 'file:shards/a.tar' is the address of a local file; give its path: 'shards/a.tar'
    """
    check_not_file(name)
    if re.match(rf"({_SCHEMES}):(/(?!/)|[^/])", name) and not os.path.exists(name):
        whole = re.sub(r"^(\w+):/?", r"\1://", name)
        raise ValueError(
            f"{redact(whole)!r} lost a slash and became {redact(name)!r}, as pathlib.Path makes of it; give the "
            "address as a text"
        )
    for separator, means in _SEPARATORS.items():
        parts = [part.strip() for part in name.split(separator) if part.strip()]
        if len(parts) < 2 or not means(parts) or os.path.exists(name):
            continue
        if separator == "::" and "." not in parts[0] and is_remote(parts[-1]):  # fsspec's chain, such as simplecache::
            raise ValueError(
                f"{redact(name)!r} chains file systems; give {redact(parts[-1])!r} alone, which is cached anyway"
            )
        raise ValueError(
            f"{redact(name)!r} names {len(parts)} shards in one text; give a list, {shown(list(map(redact, parts)))}, "
            f"or on the command line {shown(' '.join(map(redact, parts))).strip(chr(39))}"
        )


def _exist(parts: list[str]) -> bool:
    return all(is_remote(part) or glob.glob(os.path.expanduser(part)) for part in parts)


# What splits a text into several shards, and when: names may hold a comma or a space themselves.
_SEPARATORS: dict[str, Callable[[list[str]], bool]] = {
    "::": lambda parts: True,
    ",": _exist,
    ";": _exist,
    "\n": _exist,
    " ": _exist,
}


def _described(value: Any) -> str:
    return shown(value, 60) if isinstance(value, str | bytes | int | float | None) else f"a {kind_of(value)}"


def _instead_of(item: Any) -> str:
    kind = type(item).__name__
    if kind in ("Index", "Mixture"):
        return f"give the {kind} alone, or several sources with weights in one Mixture"
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str | os.PathLike):
        return "for sources with weights give Mixture({name: (shards, weight)})"
    if isinstance(item, tuple | list):
        return "give one flat list of shards"
    if isinstance(item, Mapping | tuple) or hasattr(item, "shape") or hasattr(item, "mode"):
        return "samples instead of shards go to pack_stream(samples, packing, batch_size=...)"
    return _GIVE
