"""`LoaderOptions`: the keyword arguments of `PackedImageLoader`, checked without looking at any file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from patchnpack.loaders.assembly.context import Transform, check_transform
from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.imaging.pages import Pages, check_pages
from patchnpack.loaders.imaging.user_decode import Decode, check_decode
from patchnpack.loaders.index.labels import Classes, Label
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.order.rank_steps import Even
from patchnpack.loaders.order.row_filter import Where
from patchnpack.loaders.process import checked_rank, process_rank
from patchnpack.packer import Packing
from patchnpack.packer.checks import check_whole


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """What a loader was given, and what its source has settled of it; the fields are those of `PackedImageLoader`.

    Raises:
        ValueError: an option of the wrong type or out of range, or two that contradict each other.
    """

    packing: Packing | None
    batch_size: int
    shuffle: bool
    seed: int
    repeat: bool
    image: str
    label: Label = field(repr=False)
    classes: Classes = field(repr=False)
    extras: Sequence[str]
    transform: Transform | None
    decode: Decode | None
    pages: Pages
    where: Where | None
    index: Index | str | os.PathLike[str] | None = field(repr=False)
    storage_options: Mapping[str, Any] | None = field(repr=False)  # may hold secrets
    cache_dir: str | os.PathLike[str] | None
    cache_limit: int | None
    even: Even
    shuffle_window: int
    num_streams: int
    block: int | None
    num_threads: int | None
    prefetch: int
    errors: ErrorPolicy | None
    rank: int | None
    world_size: int | None

    def __post_init__(self) -> None:
        for name in ("batch_size", "shuffle_window", "num_streams", "block", "num_threads", "prefetch", "world_size"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))
        if self.even not in ("pad", "drop"):
            raise ValueError(f"even is {self.even!r}; it must be 'pad' or 'drop'")
        if (self.rank is None) != (self.world_size is None):
            raise ValueError(f"rank is {self.rank} and world_size is {self.world_size}; give both or neither")
        typed: tuple[tuple[str, type, str], ...] = (
            ("packing", Packing, "Packing(seq_len=...)"),
            ("errors", ErrorPolicy, "ErrorPolicy(on_error=...)"),
            ("image", str, "extensions as one text: 'jpg;png'"),
        )
        for name, kind, remedy in typed:
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ValueError(f"{name} is {value!r}; give {remedy}")
        check_decode(self.decode)
        check_pages(self.pages)
        check_transform(self.transform)
        check_whole("seed", self.seed, least=-(1 << 63))
        if self.cache_limit is not None:
            check_whole("cache_limit", self.cache_limit)
        if isinstance(self.extras, str):
            raise ValueError(f"extras is {self.extras!r}; give a list of extensions: [{self.extras!r}]")
        if self.block is not None and self.block % self.num_streams:
            raise ValueError(f"block is {self.block}; it must be a multiple of num_streams, {self.num_streams}")
        if self.rank is not None and self.world_size is not None:
            checked_rank(self.rank, self.world_size)
        # Plain copies: worker processes get the options, and generators and views of dicts cannot be pickled.
        object.__setattr__(self, "extras", tuple(self.extras))
        if not (self.classes is None or isinstance(self.classes, str | os.PathLike | Mapping)):
            object.__setattr__(self, "classes", list(self.classes))

    @property
    def policy(self) -> ErrorPolicy:
        """`errors`, or the default."""
        return self.errors if self.errors is not None else ErrorPolicy()

    @property
    def given_rank(self) -> tuple[int, int] | None:
        """`rank` and `world_size`; None where they are the process's."""
        return None if self.rank is None or self.world_size is None else (self.rank, self.world_size)

    @property
    def is_alone(self) -> bool:
        """Whether the world is a single rank, as far as is known before iteration starts."""
        return (self.given_rank or process_rank())[1] == 1

    def settled(self, **changes: Any) -> LoaderOptions:
        """Return the options with these changes, without those that serve only to open the source.

        What is left goes to worker processes, where `where` may not be picklable and `index` would be a second copy.
        """
        return replace(self, **{"where": None, "index": None} | changes)
