"""A folder of pre-packed data as the source of a loader: its order, and where its images or packs lie."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from patchnpack.loaders.assembly.samples import IndexedBatchContext
from patchnpack.loaders.errors import ErrorPolicy
from patchnpack.loaders.index.labels import Classes, KnownLabels, Label
from patchnpack.loaders.packs.arrow_file import digest_of, map_arrays
from patchnpack.loaders.packs.image_store import StoredIndex, read_rows
from patchnpack.loaders.packs.manifest import Manifest, read_manifest
from patchnpack.loaders.packs.recipe import MANIFEST, PARTS, RECIPE, ROWS, Recipe, plan_name, unit_name
from patchnpack.loaders.packs.stored_batch import StoredBatchContext
from patchnpack.loaders.packs.stored_order import StoredOrder
from patchnpack.loaders.remote import download as remote
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.download import is_remote
from patchnpack.loaders.remote.prefetch import Shard
from patchnpack.loaders.remote.storage import Folder, LocalFolder, open_folder
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.packer import Packing


def is_prepacked(source: Any) -> bool:
    """Whether a source names a folder of packs, finished or not.

    An address that ends in a slash is taken for one, as is an address in which nothing looks like a file's name.
    """
    if not isinstance(source, str | os.PathLike):
        return False
    text = os.fspath(source)
    if is_remote(text):
        return text.endswith("/") or (not set("*?[{") & set(text) and "." not in remote.name_of(text))
    folder = os.path.expanduser(text)
    return any(os.path.isfile(os.path.join(folder, name)) for name in (MANIFEST, RECIPE))


class PackOpener(ShardOpener):
    """Opens the files of a folder of packs; the version of one is its digest.

    A remote file needs no question which version is there: what was fetched must have that digest.
    """

    def __reduce__(self) -> tuple[type[PackOpener], tuple[Any, ...]]:
        return PackOpener, (self.folder, self.limit, self._given)

    def prefetching(self, shards: Any, behind: int, at_start: bool) -> ShardOpener:
        """As of any store; fetched by the rules of this one."""
        return self._prefetching(PackOpener(self.folder, self.limit, self._given), shards, behind, at_start)

    def has_changed(self, shard: str, version: str) -> bool:
        """Not asked of parts: the digest of each image says more than a time."""
        return False

    def _raw(self, shard: str, nbytes: int, version: str) -> Shard:
        def make(to: Path, stop: threading.Event) -> None:
            file = remote.stat(shard, self._options, policy=self._retry)
            if file.nbytes == nbytes:
                remote.download(file, to, self._options, policy=self._retry, stop=stop)
            if file.nbytes != nbytes or digest_of(to.read_bytes()) != version:
                raise OSError(f"{redact(shard)} {_NOT_AS_WRITTEN}")

        return Shard(f"{version}-{remote.name_of(shard)}", self._counted(make), nbytes)


_NOT_AS_WRITTEN = (
    "is not what the manifest says: it is damaged, or of other packs; see patchnpack verify, and copy or pack the "
    "folder anew"
)


@dataclass(frozen=True)
class PackedFolder:
    """A finished folder of packs.

    Attributes:
        folder: where.
        manifest: what it holds.
        store: opens its files.
    """

    folder: Folder
    manifest: Manifest
    store: PackOpener

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> PackedFolder:
        """Reads the manifest, and compares the sizes of local files with it.

        Raises:
            ValueError: it is unfinished, of another schema, or damaged.
            OSError: a file that is not what the manifest says.
        """
        folder = open_folder(source, storage_options)
        found = cls(folder, read_manifest(folder), PackOpener(cache_dir, cache_limit, storage_options))
        if isinstance(folder, LocalFolder):
            for name, about in found.manifest.files.items():
                path = found.path(name)
                size = os.stat(path).st_size if os.path.exists(path) else None
                if size != about["nbytes"]:
                    have = "is not there" if size is None else f"has {size} bytes"
                    raise OSError(f"{path} {have}, and should have {about['nbytes']}: it {_NOT_AS_WRITTEN}")
        return found

    @property
    def recipe(self) -> Recipe:
        """What it was made by."""
        return self.manifest.recipe

    def path(self, name: str) -> str:
        """The path or address of one of its files."""
        return f"{self.folder.address}/{name}"

    def open_file(self, name: str) -> int:
        """A descriptor of one of its files, for the caller to close."""
        about = self.manifest.files[name]
        return self.store.open(self.path(name), about["nbytes"], about["digest"])

    @cached_property
    def parts(self) -> list[str]:
        """The names of its parts, by number."""
        return [name for name in self.manifest.files if name.startswith(PARTS + "/")]

    @cached_property
    def index(self) -> StoredIndex:
        """The rows of the source, and where they lie now."""
        fd = self.open_file(ROWS)
        try:
            return read_rows(fd, self.folder.address + "/", lambda name: str(self.manifest.files[name]["digest"]))
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path(ROWS)} {_NOT_AS_WRITTEN} ({error})") from error
        finally:
            os.close(fd)

    def plan(self, epoch: int, stream: int) -> Mapping[str, np.ndarray]:
        """The plan of one stream of one epoch; see `StoredOrder.plan`."""
        fd = self.open_file(plan_name(epoch, stream))
        try:
            return map_arrays(fd)
        except (pa.ArrowException, KeyError) as error:
            raise ValueError(f"{self.path(plan_name(epoch, stream))} {_NOT_AS_WRITTEN} ({error})") from error
        finally:
            os.close(fd)

    def part_numbers(self, epoch: int, stream: int) -> list[int]:
        """The numbers of the parts of one stream of one epoch, in order; none of an image store's later epochs."""
        if epoch >= self.recipe.part_epochs:
            return []
        count = -(-self.manifest.packs[epoch][stream] // self.recipe.part_packs)
        return [self._numbers[unit_name(epoch, stream, number)] for number in range(count)]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name.removeprefix(PARTS + "/").removesuffix(".arrow"): i for i, name in enumerate(self.parts)}

    def settle(self, given: Options) -> Options:
        """The options of a loader, with what the recipe says where nothing is given.

        Raises:
            ValueError: an option that would have had to be given when the packs were written.
        """
        recipe, where = self.recipe, redact(self.folder.address)
        patches = recipe.store == "patches"
        if given.packing is not None and given.packing != recipe.packing:
            for field in fields(Packing):
                mine, theirs = getattr(given.packing, field.name), getattr(recipe.packing, field.name)
                if mine != theirs and not (field.name == "algorithm" and mine == "auto"):
                    raise ValueError(
                        f"packing.{field.name} is {mine!r}, and the packs in {where!r} were written with {theirs!r}; "
                        "give no packing, or pack anew"
                    )
        fixed = [
            ("where", given.where is not None),
            ("index", given.index is not None),
            ("transform", patches and given.transform),
        ]
        for name, is_given in fixed:
            if is_given:
                also = ", or pack with store='images', where it is applied as images are read" * (name == "transform")
                raise ValueError(
                    f"{name}= cannot be given for the packs in {where!r}, which are made: leave it out{also}"
                )
        if given.num_streams not in (1, recipe.num_streams):
            raise ValueError(
                f"num_streams is {given.num_streams}, and the packs in {where!r} are in {recipe.num_streams}; leave it "
                "out"
            )
        if recipe.block is not None and given.block not in (None, recipe.block):
            raise ValueError(
                f"block is {given.block}, and the packs in {where!r} have one patch size for {recipe.block}; leave it "
                "out"
            )
        if patches:
            for name, mine, theirs in (
                ("label", given.label, recipe.label),
                ("classes", given.classes, None),
            ):
                if mine is not None and mine != theirs:
                    raise ValueError(
                        f"{name} is {mine!r}, and the packs in {where!r} hold the labels of {recipe.label!r}; leave it "
                        "out, or pack anew with it"
                    )
            if missing := [name for name in given.extras if name.lstrip(".").lower() not in recipe.extras]:
                raise ValueError(
                    f"extras asks for {missing[0]!r}, and the packs in {where!r} hold {list(recipe.extras)}; pack anew "
                    "with it"
                )
        policy = given.errors if given.errors is not None else ErrorPolicy()
        for name in ("max_pixels", "max_bytes"):
            if getattr(policy, name) < getattr(recipe, name):
                raise ValueError(
                    f"{name} is {getattr(policy, name)}, and the packs in {where!r} were planned with "
                    f"{getattr(recipe, name)}; pack anew with this limit"
                )
        own_label = given.label is None and given.classes is None
        return Options(
            packing=recipe.packing,
            label=recipe.label if given.label is None else given.label,
            classes=recipe.classes if own_label else given.classes,
            extras=given.extras or recipe.extras,
            block=given.block if recipe.block is None else recipe.block,
            num_streams=recipe.num_streams,
            where=None,
            index=None,
            transform=given.transform,
            errors=given.errors,
        )

    @property
    def limits(self) -> ErrorPolicy:
        """The limits by which rows were left out of the plan."""
        return ErrorPolicy(max_pixels=self.recipe.max_pixels, max_bytes=self.recipe.max_bytes)

    def labels(self) -> KnownLabels | None:
        """The labels that lie with the packs; None where they are told by members of the samples, as in shards."""
        if self.recipe.store == "images":
            return None
        manifest = self.manifest
        return KnownLabels(
            shape=manifest.label_shape, num_classes=manifest.num_classes, classes=manifest.recipe.classes
        )

    def sources(self, made: IndexedBatchContext) -> IndexedBatchContext:
        """What the images of batches are made with, given what they would be made with out of shards."""
        if self.recipe.store == "images":
            return made
        numbers = {
            (epoch, stream): self.part_numbers(epoch, stream)
            for epoch in range(self.recipe.epochs)
            for stream in range(self.recipe.num_streams)
        }
        return StoredBatchContext(
            **{field.name: getattr(made, field.name) for field in fields(IndexedBatchContext)},
            numbers=numbers,
            part_packs=self.recipe.part_packs,
            compressed=self.recipe.compression is not None,
        )

    def reader(self) -> ShardReader:
        """Reads its parts, by number."""
        about = [self.manifest.files[name] for name in self.parts]
        names, sizes = [self.path(name) for name in self.parts], [part["nbytes"] for part in about]
        return ShardReader(names, sizes, [part["digest"] for part in about], self.store)

    def order(self, *, usable: np.ndarray, seed: int, shuffle: bool, shuffle_window: int, block: int) -> StoredOrder:
        """The order in which a loader reads the packs."""
        recipe, manifest = self.recipe, self.manifest
        return StoredOrder(
            index=self.index,
            usable=usable,
            packing=recipe.packing,
            seed=seed if shuffle else recipe.seed,
            shuffle=shuffle or recipe.shuffle,
            shuffle_window=shuffle_window,
            num_streams=recipe.num_streams,
            block=block,
            plan=self.plan,
            row_id=self.index.row_id,
            counts=manifest.packs,
            mixed_packs=shuffle,
            draw_seed=seed if recipe.store == "images" else recipe.seed,
            part_packs=recipe.part_packs,
            digest=digest_of(manifest.to_json()),
            part_numbers=self.part_numbers,
            num_parts=len(self.parts),
        )


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a loader that pre-packed data may have decided already."""

    packing: Packing | None
    label: Label
    classes: Classes
    extras: Sequence[str]
    block: int | None
    num_streams: int
    where: Any
    index: Any
    transform: Any
    errors: ErrorPolicy | None
