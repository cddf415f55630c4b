"""The members of a data set that a packed folder keeps: the label and the extras, and how each is stored."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from patchnpack.loaders.datasets.items import Items
from patchnpack.loaders.datasets.labels import ItemLabels
from patchnpack.loaders.datasets.objects import IMAGE
from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.index.table import Index, Texts
from patchnpack.loaders.members import encode_member, member_kind

# n rows

_log = logging.getLogger("patchnpack")
_PROBE = 1000  # rows of each part among which the first value of a member decides how it is stored


def packed_index(index: Index, items: Items, labels: ItemLabels, extras: Sequence[str]) -> Index:
    """Return the index of a data set with the members that a packed folder keeps, which no row has yet.

    Labels that are known without reading the items become the texts of `cls_member`. A warning names the members that
    the folder leaves out.

    Args:
        index: of the n images.
        items: the images.
        labels: of the images; of a callable label, nothing is kept.
        extras: names of members.

    Raises:
        ValueError: a value cannot be stored.
    """
    names = list(dict.fromkeys([*([labels.member] if labels.member else []), *extras]))
    others = {name: None for adapter in items.adapters for name in adapter.members if name != (adapter.image or IMAGE)}
    if left_out := [name for name in others if name not in names]:
        _log.warning(
            "the packed folder leaves out the members %s of the %s; name them in label= or extras= to keep them",
            *(", ".join(left_out), items.name),
        )
    kinds = {name: _kind(items, name) for name in names}
    texts, cls_member = labels.texts(), labels.member
    if texts is None:  # read from the member
        texts, cls_member = [None] * len(index), "cls"
        while cls_member in names:
            cls_member += "_"
    members = {name: np.full((len(index), 2), -1, np.int64) for name in names}
    return replace(index, members=members, kinds=kinds, cls=Texts.of(texts), cls_member=cls_member)


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
    try:
        return None if value is None else encode_member(value, kind)
    except ValueError as error:
        raise ValueError(f"the member {name!r} of {items.describe(i)} cannot be packed: {error}") from error
