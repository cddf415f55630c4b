"""A packed folder as a source: packs that were planned before, in the order of their plan or shuffled."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.assembly.samples import IndexedBatchContext
from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.labels.labels import KnownLabels, Labels
from patchnpack.loaders.order.order import Order
from patchnpack.loaders.order.row_filter import RowFilter
from patchnpack.loaders.order.state import fingerprint
from patchnpack.loaders.packs.folder import PackedFolder
from patchnpack.loaders.packs.patches.stored_order import StoredOrder
from patchnpack.loaders.packs.recipe import Recipe
from patchnpack.loaders.shards.patterns import is_packed_folder
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.loaders.sources.options import LoaderOptions
from patchnpack.loaders.sources.source import indexed_context
from patchnpack.packer import Packing


@dataclass(frozen=True, kw_only=True)
class PackedSource:
    """The packs of a packed folder; see `Source`.

    Attributes:
        options, rows: as of `Source`.
        folder: where the packs lie.
    """

    options: LoaderOptions
    rows: RowFilter
    folder: PackedFolder

    @classmethod
    def accepts(cls, given: Any) -> bool:
        """Return whether `given` names a packed folder."""
        return is_packed_folder(given)

    @classmethod
    def open(cls, given: Any, options: LoaderOptions) -> Self:
        """Read the manifest and the index, and settle the options.

        Raises:
            ValueError: the folder is unfinished or damaged, or an option would have had to be given when the packs were
                written.
            OSError: a file is not what the manifest says.
        """
        folder = PackedFolder.open(
            given,
            cache_dir=options.cache_dir,
            cache_limit=options.cache_limit,
            storage_options=options.storage_options,
        )
        settled = _settle(folder, options)
        recipe = folder.recipe
        # The rows that the plan left out, whatever limits the loader has.
        limits = ErrorPolicy(max_pixels=recipe.max_pixels, max_bytes=recipe.max_bytes, on_bad=recipe.on_bad)
        decode = None if recipe.decode is None else options.decode or _any_kind
        rows = RowFilter.of(folder.index, None, limits, decode, recipe.pages, packing=recipe.packing)
        return cls(options=settled, rows=rows, folder=folder)

    @property
    def index(self) -> Index:
        """The rows of the source that was packed, and where they lie now."""
        return self.folder.index

    @property
    def packing(self) -> Packing:
        """The packing that the folder was written with."""
        return self.folder.recipe.packing

    @property
    def name(self) -> str:
        """The packed folder."""
        return f"the packed folder {self.folder.name!r}"

    @property
    def digest(self) -> str:
        """A digest of everything that was packed."""
        return self.folder.digest

    def reader(self) -> ShardReader:
        """Return a reader of the parts."""
        return self.folder.reader()

    def labels(self, reader: ShardReader) -> Labels | KnownLabels:
        """Return the labels that the store holds, or reads from the members of the samples."""
        folder, options = self.folder, self.options
        return folder.store.labels(folder.manifest, folder.index, reader, options.label, options.classes)

    def batch_context(self, buffers: BufferPool) -> IndexedBatchContext:
        """Return what batches are made with, as the store reads its packs."""
        folder = self.folder
        return folder.store.batch_context(
            indexed_context(self, buffers, decodes=folder.store.keeps_samples), folder.recipe, folder.part_numbers
        )

    def order(self, block: int) -> StoredOrder:
        """Return the order in which the packs are read."""
        folder, options = self.folder, self.options
        recipe, shuffle = folder.recipe, options.shuffle
        return StoredOrder(
            index=folder.index,
            usable=self.rows.heads(self.folder.index),
            packing=recipe.packing,
            seed=options.seed if shuffle else recipe.seed,
            shuffle=shuffle or recipe.shuffle,
            shuffle_window=options.shuffle_window,
            num_streams=recipe.num_streams,
            block=block,
            planned=self._planned_order(recipe, block),
            plan=folder.plan,
            counts=folder.manifest.packs,
            mixed_packs=shuffle,
            draw_seed=self._draw_seed,
            part_packs=recipe.part_packs,
            part_numbers=folder.part_numbers,
            num_parts=len(folder.parts),
        )

    def fingerprint(self, order: Order) -> dict[str, str]:
        """Return what the order depends on: all that was packed, and how the loader reads it."""
        return {
            **fingerprint(order, self.digest),
            "packs shuffled": str(self.options.shuffle),
            "seed of draws": str(self._draw_seed),
        }

    @property
    def _draw_seed(self) -> int:
        return self.folder.store.draw_seed(self.folder.recipe, self.options.seed)

    def _planned_order(self, recipe: Recipe, block: int) -> Order:
        """The order of the source's rows in which the packs were planned."""
        return Order(
            index=self.rows.usable(self.folder.index.source_index()),
            usable=self.rows.heads(self.folder.index),
            packing=recipe.packing,
            seed=recipe.seed,
            shuffle=recipe.shuffle,
            shuffle_window=recipe.shuffle_window,
            num_streams=recipe.num_streams,
            block=block,
        )


def _any_kind(data: bytes) -> None:
    """Stand for the `decode` function that made the pixels of a patch store."""


def _settle(folder: PackedFolder, given: LoaderOptions) -> LoaderOptions:
    """Return the options with what the recipe says where nothing is given.

    Raises:
        ValueError: an option that would have had to be given when the packs were written.
    """
    recipe, where = folder.recipe, folder.name
    if given.packing is not None and given.packing != recipe.packing:
        for name in (field.name for field in fields(Packing)):
            value, written = getattr(given.packing, name), getattr(recipe.packing, name)
            is_left_open = (name == "algorithm" and value == "auto") or (name == "prices" and value is None)
            if value != written and not is_left_open:
                raise ValueError(
                    f"packing.{name} is {value!r}, and the packs in {where!r} were written with {written!r}; give no "
                    "packing, or pack again"
                )
    for name in ("where", "index", "sample"):
        if getattr(given, name) is not None:
            raise ValueError(f"{name}= cannot be given for the packs in {where!r}, which are made: leave it out")
    if given.num_streams not in (1, recipe.num_streams):
        raise ValueError(
            f"num_streams is {given.num_streams}, and the packs in {where!r} are in {recipe.num_streams}; leave it out"
        )
    if recipe.block is not None and given.block not in (None, recipe.block):
        raise ValueError(
            f"block is {given.block}, and the packs in {where!r} have one patch size for {recipe.block}; leave it out"
        )
    if recipe.decode is not None and given.decode is None and folder.store.keeps_samples:
        raise ValueError(
            f"the packs in {where!r} hold images for a decode function, {recipe.decode}, which the folder does not "
            "hold; give it: decode="
        )
    folder.store.check_options(
        recipe,
        where,
        label=given.label,
        classes=given.classes,
        extras=given.extras,
        targets=given.targets or {},
        transform=given.transform,
    )
    for name in ("max_pixels", "max_bytes"):
        if getattr(given.policy, name) < getattr(recipe, name):
            raise ValueError(
                f"{name} is {getattr(given.policy, name)}, and the packs in {where!r} were planned with "
                f"{getattr(recipe, name)}; pack again with this limit"
            )
    targets = given.targets or recipe.targets
    if not folder.store.keeps_samples:
        targets = {name: recipe.targets[name] for name in targets}  # as their members are spelled there
    own_label = given.label is None and given.classes is None
    return given.settled(
        packing=recipe.packing,
        label=recipe.label if given.label is None else given.label,
        classes=recipe.classes if own_label else given.classes,
        extras=given.extras or recipe.extras,
        targets=targets,
        block=given.block if recipe.block is None else recipe.block,
        num_streams=recipe.num_streams,
    )
