"""The members of a data set that a packed folder keeps: label, extras and targets, and how each is stored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from patchnpack.loaders.datasets.items import Items
from patchnpack.loaders.datasets.labels import ItemLabels
from patchnpack.loaders.datasets.objects import IMAGE
from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.index.table import Index, Texts
from patchnpack.loaders.members import encode_member, member_kind
from patchnpack.loaders.targets.objects import ObjectTarget
from patchnpack.loaders.targets.stored import stored_bytes
from patchnpack.loaders.targets.target import Target, members_of

# n rows

_log = logging.getLogger("patchnpack")
_PROBE = 1000  # rows of each part among which the first value of a member decides how it is stored


def packed_index(
    index: Index, items: Items, labels: ItemLabels, extras: Sequence[str], targets: Mapping[str, Target]
) -> Index:
    """Return the index of a data set with the members that a packed folder keeps, which no row has yet.

    Labels that are known without reading the items become the texts of `cls_member`. A warning names the members that
    the folder leaves out.

    Args:
        index: of the n images.
        items: the images.
        labels: of the images; of a callable label, nothing is kept.
        extras: names of members.
        targets: what is read from further members.

    Raises:
        ValueError: a value cannot be stored.
    """
    of_targets = [name for target in targets.values() for name in members_of(target)]
    names = list(dict.fromkeys([*([labels.member] if labels.member else []), *extras, *of_targets]))
    others = {name: None for adapter in items.adapters for name in adapter.members if name != (adapter.image or IMAGE)}
    if left_out := [name for name in others if name not in names]:
        _log.warning(
            "the packed folder leaves out the members %s of the %s; name them in label=, extras= or targets= to keep "
            "them",
            *(", ".join(left_out), items.name),
        )
    dense = dense_members(targets, extras)
    kinds = {name: "bytes" if name in dense else _kind(items, name) for name in names}
    texts, cls_member = labels.texts(), labels.member
    if texts is None:  # read from the member
        texts, cls_member = [None] * len(index), "cls"
        while cls_member in names:
            cls_member += "_"
    members = {name: np.full((len(index), 2), -1, np.int64) for name in names}
    return replace(index, members=members, kinds=kinds, cls=Texts.of(texts), cls_member=cls_member)


def dense_members(targets: Mapping[str, Target], extras: Collection[str]) -> set[str]:
    """Return the members that masks and maps are read from, and that no batch returns as extras."""
    dense = [target for target in targets.values() if not isinstance(target, ObjectTarget)]
    return {name for target in dense for name in members_of(target)} - set(extras)


def _kind(items: Items, name: str) -> str:
    """Return how a member is stored: as its first value needs it."""
    for number, adapter in enumerate(items.adapters):
        for i in np.flatnonzero(items.adapter == number)[:_PROBE].tolist():
            try:
                value = adapter.members_of(int(items.row[i])).get(name)
            except BadImage:  # reported when the row's turn comes
                continue
            if value is not None:
                kind = member_kind(value)
                stored_member(items, i, name, value, kind)
                return kind
    return "json"


def stored_member(items: Items, i: int, name: str, value: object, kind: str) -> bytes | None:
    """Return the bytes of member `name` of image i, None where it has none.

    Raises:
        ValueError: the value cannot be stored; the message names member and row.
    """
    return _stored(items, i, name, value, lambda value: encode_member(value, kind))


def stored_dense_member(items: Items, i: int, name: str, value: object) -> bytes | None:
    """Return the bytes of member `name` of image i, a mask or a map; None where it has none.

    Raises:
        BadImage: it cannot be decoded.
        ValueError: the value cannot be stored; the message names member and row.
    """
    return _stored(items, i, name, value, stored_bytes)


def _stored(items: Items, i: int, name: str, value: object, encode: Callable[[Any], bytes]) -> bytes | None:
    try:
        return None if value is None else encode(value)
    except ValueError as error:
        raise ValueError(f"the member {name!r} of {items.describe(i)} cannot be packed: {error}") from error
