"""`PackStore`: the contract of a format of packed folders. Nothing outside this room asks which format it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from patchnpack.loaders.assembly.samples import IndexedBatchContext
from patchnpack.loaders.assembly.transform import Transform
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.labels.label_rule import Classes, Label
from patchnpack.loaders.labels.labels import KnownLabels, Labels
from patchnpack.loaders.packs.arrow_file import Codec
from patchnpack.loaders.packs.image_store import ImageStore
from patchnpack.loaders.packs.manifest import Manifest
from patchnpack.loaders.packs.patches.patch_store import PatchStore
from patchnpack.loaders.packs.recipe import Recipe, StoreKind, check_store
from patchnpack.loaders.packs.stored_index import Places
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.loaders.targets.target import Target
from patchnpack.packer import Packing, Plan


class PackStore(Protocol):
    """How the parts of a packed folder are written, and what a loader reads from them.

    Attributes:
        keeps_samples: whether each image's encoded bytes and all members of its sample are kept as they were.
    """

    keeps_samples: bool

    # Writing

    def decoders(self) -> str:
        """Return the decoder builds that the written bytes depend on, "" if none."""
        ...

    def part_epochs(self, recipe: Recipe) -> int:
        """Return how many epochs, from the first, have parts of their own; later ones share these."""
        ...

    def pack_bytes(self, packing: Packing, targets: Mapping[str, Target], index: Index, plans: Iterator[Plan]) -> int:
        """Return about how many bytes a pack takes; `plans` are those of the first stream."""
        ...

    def part_file(
        self, plan: Plan, context: IndexedBatchContext, compression: Codec
    ) -> tuple[pa.Buffer, dict[str, Any]]:
        """Return the file of a part that holds the packs of `plan`, and its marker.

        Raises:
            OSError: a shard has changed since it was indexed.
        """
        ...

    def locate(self, places: Places, number: int, plan: Plan, marker: dict[str, Any]) -> None:
        """Move what the marker of part `number` says about where the rows of its packs lie to `places`."""
        ...

    # Reading

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
        """Check what a loader was given.

        Raises:
            ValueError: an option that cannot be set when packs are read; `where` names the folder.
        """
        ...

    def labels(
        self, manifest: Manifest, index: Index, reader: ShardReader, label: Label, classes: Classes
    ) -> Labels | KnownLabels:
        """Return the labels of the rows."""
        ...

    def batch_context(
        self, context: IndexedBatchContext, recipe: Recipe, part_numbers: Callable[[int, int], list[int]]
    ) -> IndexedBatchContext:
        """Return what batches are made with.

        Args:
            context: what they would be made with if the images were decoded from `context.reader`.
            recipe: of the folder.
            part_numbers: returns the numbers of the parts of an (epoch, stream).
        """
        ...

    def draw_seed(self, recipe: Recipe, seed: int) -> int:
        """Return the seed that decides which tokens are kept, given the loader's seed."""
        ...


_STORES: dict[StoreKind, PackStore] = {"images": ImageStore(), "patches": PatchStore()}


def store_of(kind: StoreKind) -> PackStore:
    """Return the store of a kind that a recipe names.

    Raises:
        ValueError: there is no such kind.
    """
    check_store(kind)
    return _STORES[kind]
