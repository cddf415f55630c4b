"""`Source`: the contract between `PackedImageLoader` and what it reads.

A source is opened with the loader's options and settles them: a packed folder, for example, brings its own packing.
From then on the loader asks the source and has no branch by kind. The room stands above the rooms that it joins (index,
order, assembly, packs) and below the loader. A new kind is one module with one class, named in `open_source`; if an
`Index` describes its images, the class can extend `ShardSource` and say only how the index is made.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.assembly.encoded import shared as shared_rows
from patchnpack.loaders.assembly.samples import IndexedBatchContext
from patchnpack.loaders.assembly.transform import watched
from patchnpack.loaders.imaging.user_decode import in_order, user_formats
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.labels.labels import KnownLabels, Labels, members_shown
from patchnpack.loaders.order.order import Order
from patchnpack.loaders.order.row_filter import RowFilter
from patchnpack.loaders.shards.member_names import find_member
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.loaders.sources.options import LoaderOptions
from patchnpack.loaders.targets.target import BY_MEMBERS, Target, renamed
from patchnpack.packer import Packing


class Source(Protocol):
    """What a loader reads.

    Attributes:
        options: the loader's options, settled: with what the source has already decided.
        index: one row per image.
        rows: which rows are used, and why the others are not.
        packing: what a sequence looks like, its algorithm decided.
    """

    @property
    def options(self) -> LoaderOptions: ...
    @property
    def index(self) -> Index: ...
    @property
    def rows(self) -> RowFilter: ...
    @property
    def packing(self) -> Packing: ...

    @classmethod
    def accepts(cls, given: Any) -> bool:
        """Return whether `given`, the loader's first argument, is a source of this kind."""
        ...

    @classmethod
    def open(cls, given: Any, options: LoaderOptions) -> Self:
        """Open the source.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: no image can be used, or an option contradicts what the source has decided.
        """
        ...

    @property
    def name(self) -> str:
        """What the source is, for people, without secrets."""
        ...

    @property
    def digest(self) -> str:
        """A digest of everything that the index says of the images, and of which are used."""
        ...

    def reader(self) -> ShardReader:
        """Return a reader of the bytes that the index points to."""
        ...

    def labels(self, reader: ShardReader) -> Labels | KnownLabels:
        """Return the labels of the rows."""
        ...

    def batch_context(self, buffers: BufferPool) -> IndexedBatchContext:
        """Return what the images of every batch are made with.

        Raises:
            ValueError: a label or an extra that no sample has.
        """
        ...

    def order(self, block: int) -> Order:
        """Return the order of packs, in blocks of `block` packs."""
        ...

    def fingerprint(self, order: Order) -> dict[str, str]:
        """Return what must be equal for a saved state to mean the same packs: names, and values as text."""
        ...


def indexed_context(source: Source, buffers: BufferPool, *, decodes: bool = True) -> IndexedBatchContext:
    """Return a context that reads and decodes the images that the source's index points to.

    Raises:
        ValueError: a label, an extra or a target that no sample has; or, if it `decodes`, a user's format without its
            reader.
    """
    options, index, reader = source.options, source.index, source.reader()
    return IndexedBatchContext(
        index=index,
        reader=reader,
        packing=source.packing,
        labels=source.labels(reader),
        extras=extra_members(options.extras, index),
        transform=watched(options.transform),
        seed=options.seed,
        buffers=buffers,
        errors=options.policy,
        user_decode=options.decode,
        targets=indexed_targets(options.targets, index) if decodes else dict(options.targets or {}),
        formats=in_order(user_formats(options.formats), index.formats) if decodes else (),
    )


def indexed_targets(targets: Mapping[str, Target] | None, index: Index) -> dict[str, Target]:
    """Return the targets with their members as the index spells them.

    Raises:
        ValueError: no sample has one of the members, or several images of a sample share it.
    """

    def spelled(target: str, name: str) -> str:
        member = find_member(name, index.members)
        if member is None:
            raise ValueError(
                f"target {target!r} asks for the member {name!r}, which no sample has; {members_shown(index)}: name "
                "one of these"
            )
        check_not_shared(index, member)
        return member

    return {name: renamed(target, functools.partial(spelled, name)) for name, target in (targets or {}).items()}


def check_not_shared(index: Index, member: str) -> None:
    """Raise ValueError if several images have one and the same member: a target would be of any of them."""
    if index.samples is None:
        return
    where = index.members[member][:, 0]
    shared = shared_rows(index, np.arange(len(where)), index.members[member])
    if shared.any() or ((where >= 0) & (index.samples.frames > 1)).any():
        raise ValueError(BY_MEMBERS)


def extra_members(extras: Sequence[str], index: Index) -> list[str]:
    """Return the members that `extras` name, as the index spells them.

    Raises:
        ValueError: an extra that no sample has.
    """
    members: list[str] = []
    for name in extras:
        member = find_member(name.lstrip("."), index.members)
        if member is None:
            raise ValueError(
                f"extras asks for {name!r}, which no sample has; {members_shown(index)}: name one of these"
            )
        members.append(member)
    return members
