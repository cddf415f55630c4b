"""`LoaderOptions`: the keyword arguments of `PackedImageLoader`, checked without looking at any file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from patchnpack.loaders.assembly.transform import Transform, check_transform
from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.imaging.pages import Pages, check_pages
from patchnpack.loaders.imaging.user_decode import Decode, ImageReader, check_decode, user_formats
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.labels.classes import Classes, listed_classes
from patchnpack.loaders.labels.label_rule import Label
from patchnpack.loaders.members import check_extensions, checked_extras
from patchnpack.loaders.order.rank_steps import Even
from patchnpack.loaders.order.row_filter import Where
from patchnpack.loaders.process import checked_rank, process_rank
from patchnpack.loaders.shards.sample_rule import Sample, is_by_members, sample_rule
from patchnpack.loaders.targets.target import BY_MEMBERS, Target, checked_targets
from patchnpack.packer import Packing
from patchnpack.packer.checks import check_choice, check_flag, check_whole, shown
from patchnpack.packer.text import counted

_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "packing": (Packing, "Packing(seq_len=...)"),
    "errors": (ErrorPolicy, "ErrorPolicy(on_error=...)"),
    "index": ((Index, str, os.PathLike), "the path or address of an index file, or an Index"),
    "storage_options": (Mapping, "a dict, for example {'anon': True}"),
    "cache_dir": ((str, os.PathLike), "the path of a folder"),
    "path": (str, "the name of a column of paths: 'file_name'"),
    "root": ((str, os.PathLike), "the folder from which the paths count"),
}


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
    sample: Sample | Any = field(repr=False)  # of a mixture, also a dict with the rule of each source
    label: Label | Any = field(repr=False)  # of a mixture, also a dict with the label of each source
    classes: Classes = field(repr=False)
    extras: Sequence[str]
    targets: Mapping[str, Target] | None = field(repr=False)
    transform: Transform | None
    decode: Decode | None
    formats: Mapping[str, ImageReader] | None = field(repr=False)
    pages: Pages
    where: Where | None
    index: Index | str | os.PathLike[str] | None = field(repr=False)
    path: str | None
    root: str | os.PathLike[str] | None
    sizes: Any = field(repr=False)
    thread_safe: bool | None
    fingerprint: str | Callable[[Any], str] | None
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
        for name in ("batch_size", "shuffle_window", "num_streams", "prefetch"):
            check_whole(name, getattr(self, name))
        for name in ("block", "num_threads", "world_size"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))
        if self.thread_safe is not None:
            check_flag("thread_safe", self.thread_safe, "with True, threads call __getitem__ at the same time")
        check_flag("shuffle", self.shuffle, "shuffle_window is how many shards are shuffled together")
        check_flag("repeat", self.repeat, "with True, epochs follow each other without end")
        check_choice("even", self.even, get_args(Even))
        if (self.rank is None) != (self.world_size is None):
            raise ValueError(f"rank is {self.rank} and world_size is {self.world_size}; give both or neither")
        for name, (kinds, remedy) in _TYPES.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                raise ValueError(f"{name} is {shown(value)}; give {remedy}")
        check_extensions(self.image)
        check_decode(self.decode)
        user_formats(self.formats)
        check_pages(self.pages)
        given = self.sample.values() if isinstance(self.sample, Mapping) else [self.sample]
        if self.pages == "error" and any(map(is_by_members, map(sample_rule, given))):
            raise ValueError(
                "pages is 'error', which refuses files of several pages, and sample is 'members', which uses all; give "
                "only one of them"
            )
        object.__setattr__(self, "targets", checked_targets(self.targets))
        if self.targets and any(map(is_by_members, map(sample_rule, given))):
            raise ValueError(BY_MEMBERS)
        check_transform(self.transform, bool(self.targets))
        if self.where is not None and not callable(self.where):
            raise ValueError(
                f"where is {shown(self.where)}; it must be a function from an Index to one bool per row, for example "
                "lambda index: index.width >= 224"
            )
        check_whole("seed", self.seed, least=-(1 << 63))
        if self.cache_limit is not None:
            check_whole("cache_limit", self.cache_limit)
        if self.block is not None and self.block % self.num_streams:
            raise ValueError(f"block is {self.block}; it must be a multiple of num_streams, {self.num_streams}")
        if self.rank is not None and self.world_size is not None:
            check_whole("rank", self.rank, least=0)
            checked_rank(self.rank, self.world_size)
        # Plain copies: worker processes get the options, and generators and views of dicts cannot be pickled.
        object.__setattr__(self, "extras", checked_extras(self.extras))
        if not (self.classes is None or isinstance(self.classes, str | os.PathLike | Mapping)):
            object.__setattr__(self, "classes", listed_classes(self.classes))

    def summary(self) -> str:
        """The batches in words: their packs, order, label, extras and targets."""
        order = f"{'shuffled with' if self.shuffle else 'in order,'} seed {self.seed}"
        label, extras = getattr(self.label, "__name__", self.label), ", ".join(self.extras) or "none"
        targets = f"; targets: {', '.join(self.targets)}" if self.targets else ""
        return f"{counted(self.batch_size, 'pack')} each, {order}; label: {label}; extras: {extras}{targets}"

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

        What is left goes to worker processes, where functions may not be picklable and `index` would be a second copy.
        """
        given: dict[str, Any] = dict.fromkeys(("where", "sample", "index", "sizes", "fingerprint"))
        return replace(self, **given | changes)
