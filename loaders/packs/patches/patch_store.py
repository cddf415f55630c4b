"""The patch store: packs as they are trained on, written once and read through memory maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa

from patchnpack.loaders.assembly.samples import IndexedBatchContext
from patchnpack.loaders.assembly.transform import Transform
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.labels.label_rule import Classes, Label
from patchnpack.loaders.labels.labels import KnownLabels
from patchnpack.loaders.order.state import decoders
from patchnpack.loaders.packs.arrow_file import Codec
from patchnpack.loaders.packs.manifest import Manifest
from patchnpack.loaders.packs.patches.patch_part import patch_part
from patchnpack.loaders.packs.patches.stored_batch import StoredBatchContext
from patchnpack.loaders.packs.patches.stored_targets import target_bytes
from patchnpack.loaders.packs.recipe import Recipe
from patchnpack.loaders.packs.stored_index import Places
from patchnpack.loaders.shards.member_names import find_member
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.loaders.targets.target import Target, members_of, renamed, settings_of
from patchnpack.packer import Packing, Plan


class PatchStore:
    """The `PackStore` that keeps packs as they are trained on: patches, labels, and what else was asked for."""

    keeps_samples = False

    def decoders(self) -> str:
        """Return the builds that the pixels depend on."""
        return decoders()

    def part_epochs(self, recipe: Recipe) -> int:
        """Return the number of plans: each has parts of its own."""
        return recipe.epochs

    def pack_bytes(self, packing: Packing, targets: Mapping[str, Target], index: Index, plans: Iterator[Plan]) -> int:
        """Return the bytes of a pack's patches and targets, at the largest patch size."""
        L, P = packing.seq_len, max(packing.patch_sizes)
        return L * packing.token_bytes(P) + target_bytes(targets.values(), L, P)

    def part_file(
        self, plan: Plan, context: IndexedBatchContext, compression: Codec
    ) -> tuple[pa.Buffer, dict[str, Any]]:
        """Decode the images of a part; return its file and its marker. See `patch_part`."""
        return patch_part(plan, context, compression)

    def locate(self, places: Places, number: int, plan: Plan, marker: dict[str, Any]) -> None:
        """Note nothing: packs are found by their numbers, not by the rows in them."""

    def check_options(
        self,
        recipe: Recipe,
        where: str,
        *,
        label: Label,
        classes: Classes,
        extras: Sequence[str],
        targets: Mapping[str, Target],
        transform: Transform | None,
    ) -> None:
        """Raise ValueError for a transform, another label, or extras or targets that the packs do not hold."""
        if transform is not None:
            raise ValueError(
                f"transform= cannot be given for the packs in {where!r}, which are made: leave it out, or pack with "
                "store='images', where it is applied as images are read"
            )
        for name, value, stored in (("label", label, recipe.label), ("classes", classes, None)):
            if value is not None and value != stored:
                raise ValueError(
                    f"{name} is {value!r}, and the packs in {where!r} hold the labels of {recipe.label!r}; leave it "
                    "out, or pack again with it"
                )
        if missing := [name for name in extras if find_member(name.lstrip("."), recipe.extras) is None]:
            raise ValueError(
                f"extras asks for {missing[0]!r}, and the packs in {where!r} hold {list(recipe.extras)}; pack again "
                "with it"
            )
        for name, target in targets.items():
            if not _is_stored(target, recipe.targets.get(name)):
                held = ", ".join(f"{of}={settings_of(each)}" for of, each in recipe.targets.items()) or "none"
                raise ValueError(
                    f"targets asks for {name}={settings_of(target)}, and the packs in {where!r} hold the targets "
                    f"{held}; leave it out, or pack again with it"
                )

    def labels(
        self, manifest: Manifest, index: Index, reader: ShardReader, label: Label, classes: Classes
    ) -> KnownLabels:
        """Return the labels that were stored with the packs."""
        return KnownLabels(
            shape=manifest.label_shape, num_classes=manifest.num_classes, classes=manifest.recipe.classes
        )

    def batch_context(
        self, context: IndexedBatchContext, recipe: Recipe, part_numbers: Callable[[int, int], list[int]]
    ) -> IndexedBatchContext:
        """Return a context that reads packs from the parts of each epoch and stream."""
        numbers = {
            (epoch, stream): part_numbers(epoch, stream)
            for epoch in range(recipe.epochs)
            for stream in range(recipe.num_streams)
        }
        return StoredBatchContext(
            **{field.name: getattr(context, field.name) for field in fields(IndexedBatchContext)},
            numbers=numbers,
            part_packs=recipe.part_packs,
            compressed=recipe.compression is not None,
        )

    def draw_seed(self, recipe: Recipe, seed: int) -> int:
        """Return the recipe's seed: the kept tokens were drawn when the packs were written."""
        return recipe.seed


def _is_stored(target: Target, stored: Target | None) -> bool:
    """Return whether two targets are the same, however the members are spelled."""
    if stored is None:
        return False
    members = members_of(stored)
    spelled = renamed(target, lambda name: find_member(name, members) or name)
    return bool(spelled == stored or settings_of(spelled) == settings_of(stored))  # NaN is not equal to itself
