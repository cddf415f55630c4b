"""Pre-packing: packs are planned and written once, in tasks that need not know of each other.

1. Each task plans for itself, from the index: integers only, so all of them know the same packs.
2. A stream of packs is cut into parts of equally many. Task i of n writes the parts i, i + n, i + 2n ... that are not
   there yet, each whole or not at all, and after each its marker.
3. Whoever finds all markers there writes the plans, the rows and, last, the manifest.

What is written depends on the recipe alone: neither on how many tasks there are, nor on who is killed on the way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from patchnpack.loaders.errors import BadRow, ErrorMonitor, ErrorPolicy
from patchnpack.loaders.index.labels import Classes
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.packed_loader import PackedImageLoader
from patchnpack.loaders.packs.manifest import check_recipe
from patchnpack.loaders.packs.pack_store import PackStore, store_of
from patchnpack.loaders.packs.recipe import (
    MANIFEST,
    MARKERS,
    PARTS,
    PLANS,
    RECIPE,
    Recipe,
    StoreKind,
    changes_grids,
    difference,
)
from patchnpack.loaders.prepacking.finish import Finisher
from patchnpack.loaders.prepacking.parts import parts
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.download import name_of
from patchnpack.loaders.remote.storage import Folder, check_writable, open_folder
from patchnpack.packer import Packing, PatchSizes, Plan
from patchnpack.packer.checks import check_whole

_PART_BYTES = 64 << 20  # about what a part is to hold

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A pre-packing: what to pack, how, and where to. It may be sent to other processes and machines.

    Attributes:
        index: the images, of `open_index`.
        out: the folder, local or an address.
        packing: what a sequence looks like.
        store: "images" keeps encoded images in the order of their packs, "patches" packs as they are trained on.
        epochs: plans to write; needed where the packing gives images other sizes each epoch, else 1.
        seed, shuffle, shuffle_window, num_streams: of the order, as for `PackedImageLoader`.
        block: packs of one patch size in a row; needed with `PatchSizes`: the packs of a step over all ranks, or a
            multiple.
        part_packs: packs of a file; None makes files of 32 to 64 MiB.
        compression: of a patch store: None, "lz4" or "zstd". Compressed packs are copied when they are read.
        label, classes, extras: as for `PackedImageLoader`, but no function. A patch store keeps these alone; an image
            store keeps all members, and these are what a loader takes if it is told nothing else.
        errors: what is done about bad images. A patch store decodes them now, and `max_rate` holds for all of them
            together.
        storage_options: of the folder, and of remote shards.
        cache_dir, cache_limit: of remote shards.

    Raises:
        ValueError: options that do not fit together, before anything is written.

    >>> from patchnpack.loaders import open_index
    >>> job = Job(index=open_index("train-{000..009}.tar"), out="packed", packing=Packing())   # doctest: +SKIP
    >>> job.run()                                                                              # doctest: +SKIP
    True
    """

    index: Index
    out: str
    packing: Packing
    store: StoreKind = "images"
    epochs: int | None = None
    seed: int = 0
    shuffle: bool = False
    shuffle_window: int = 16
    num_streams: int = 1
    block: int | None = None
    part_packs: int | None = None
    compression: str | None = None
    label: str | None = None
    classes: Classes = None
    extras: Sequence[str] = ()
    errors: ErrorPolicy = field(default_factory=ErrorPolicy)
    storage_options: Mapping[str, Any] | None = None
    cache_dir: str | os.PathLike[str] | None = None
    cache_limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "part_packs"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))
        if self.label is not None and not isinstance(self.label, str):
            raise ValueError(
                f"label is {self.label!r}; packs are written with a label that has a name, such as 'cls' or "
                "'json:FIELD'. An image store takes any label when it is read: leave it out"
            )
        if self.epochs is None and (what := changes_grids(self.packing)) is not None:
            raise ValueError(
                f"{what} gives images other sizes or token counts each epoch, and a stored plan fixes them; say for "
                "how many epochs plans are to be written: --epochs E (epochs=E). Later epochs begin with the first "
                "plan again"
            )
        if isinstance(self.packing.patch_size, PatchSizes) and self.block is None:
            raise ValueError(
                f"{self.packing.patch_size} draws a patch size for each block of packs; say how many packs a block "
                "has: --block (block=), the packs of a step over all ranks, or a multiple"
            )
        check_writable(self.folder)
        self._check_folder()
        _ = self.recipe

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}  # the rest is made anew

    @cached_property
    def folder(self) -> Folder:
        """Where to."""
        return open_folder(self.out, self.storage_options)

    @property
    def _store(self) -> PackStore:
        return store_of(self.store)

    @cached_property
    def _loader(self) -> PackedImageLoader:
        """It knows the order, reads images, and has checked the options."""
        return PackedImageLoader(
            self.index,
            self.packing,
            batch_size=1,
            shuffle=self.shuffle,
            seed=self.seed,
            image=self.index.image,
            label=self.label,
            classes=self.classes,
            extras=self.extras,
            storage_options=self.storage_options,
            cache_dir=self.cache_dir,
            cache_limit=self.cache_limit,
            shuffle_window=self.shuffle_window,
            num_streams=self.num_streams,
            block=self.block or self.num_streams,
            num_threads=1,
            errors=self.errors,
            rank=0,
            world_size=1,
        )

    @cached_property
    def recipe(self) -> Recipe:
        """What decides every byte."""
        loader, names = self._loader, [name_of(redact(shard)) for shard in self.index.shards]
        classes = loader.context.labels.classes
        return Recipe(
            store=self.store,
            packing=loader.packing,
            epochs=self.epochs or 1,
            seed=self.seed,
            shuffle=self.shuffle,
            shuffle_window=self.shuffle_window,
            num_streams=self.num_streams,
            block=self.block if isinstance(self.packing.patch_size, PatchSizes) else None,
            part_packs=self.part_packs or self._usual_packs(),
            compression=self.compression,
            image=self.index.image,
            label=self.label,
            classes=None if classes is None else dict(classes),
            extras=tuple(loader.context.extras),
            max_pixels=self.errors.max_pixels,
            max_bytes=self.errors.max_bytes,
            truncated=self.errors.truncated,
            source={"shards": names, "images": len(self.index), "digest": loader.source.digest},
            decoders=self._store.decoders(),
        )

    def _usual_packs(self) -> int:
        plans = self._loader.steps().order.stream_plans(0, 0)
        each = self._store.pack_bytes(self._loader.packing, self.index, plans)
        # A power of two: batches of 2, 4, 8 ... packs in a row then lie in one file, and are handed out without a copy.
        return 1 << (max(1, _PART_BYTES // max(1, each)).bit_length() - 1)

    @cached_property
    def num_images(self) -> int:
        """Images that parts are written of, over all epochs: what progress counts to."""
        return self._loader.steps().order.num_images * self._store.part_epochs(self.recipe)

    def run(self, task: int = 0, num_tasks: int = 1, progress: Progress = lambda images: None) -> bool:
        """Does task `task` of `num_tasks`: writes its parts that are not there; and finishes the folder if all are.

        Args:
            task, num_tasks: which of how many tasks. Any of them may run anywhere, again, or at the same time.
            progress: called with the number of images of each part that is there.

        Returns:
            Whether the folder is finished.

        Raises:
            ValueError: the folder holds something else, or the task is none of them.
            OSError: no room, or a shard that has changed. What is written stays, and the next run goes on from there.
            BadDataError: more bad images than `errors` allows.
        """
        check_whole("num_tasks", num_tasks)
        if not 0 <= task < num_tasks:
            raise ValueError(f"task is {task} of {num_tasks}; it must be from 0 to {num_tasks - 1}")
        self._begin()
        try:
            finished = self._run(task, num_tasks, progress)
        except FileNotFoundError:
            # Another task did the same at the same time, was the last one, and has swept what seemed left over.
            if self.folder.read(MANIFEST) is None:
                raise
            return True
        if finished:
            for under in ("", PARTS, MARKERS, PLANS):
                self.folder.sweep(under)
        return finished

    def _run(self, task: int, num_tasks: int, progress: Progress) -> bool:
        if self.folder.read(MANIFEST) is not None:
            progress(self.num_images)
            return True
        there = set(self.folder.names(MARKERS, ".json"))
        expected = []
        for number, (name, plan) in enumerate(self._parts()):
            expected.append(name + ".json")
            if number % num_tasks != task:
                continue
            if name + ".json" not in there:
                self._write(name, plan)
            progress(len(plan.images))
        if not set(expected) <= set(self.folder.names(MARKERS, ".json")):
            return False
        self._finish()
        return True

    def _check_folder(self) -> None:
        """Raises ValueError if the folder holds something else."""
        where, mine = redact(self.folder.address), self.recipe.to_json()
        theirs = self.folder.read(RECIPE)
        if theirs is None:
            if others := [name for name in self.folder.names("", "") if name != "lost+found"]:
                raise ValueError(
                    f"{where!r} holds something else ({others[0]!r}); name an empty folder, or one that is not "
                    "there yet"
                )
        elif theirs != mine:
            check_recipe(theirs, self.folder)
            raise ValueError(
                f"{where!r} holds other packs: {difference(mine, theirs)}; run the command with which they were begun, "
                "or pack into another folder"
            )

    def _begin(self) -> None:
        self._check_folder()
        if self.folder.read(RECIPE) is None:
            self.folder.write(RECIPE, self.recipe.to_json())

    def _parts(self) -> Iterator[tuple[str, Plan]]:
        """All parts with their names, in the order of their numbers."""
        return parts(self._loader.steps().order, self.recipe)

    def _write(self, name: str, plan: Plan) -> None:
        file, marker = self._store.part_file(plan, self._loader.context, self.compression)
        bad = [BadRow(**bad) for bad in marker["bad"]]
        ErrorMonitor(self.errors).judge_all(len(plan.images), bad, "of a part")
        self.folder.write(f"{PARTS}/{name}.arrow", file)
        self.folder.write(f"{MARKERS}/{name}.json", (json.dumps(marker) + "\n").encode())

    def _finish(self) -> None:
        order, labels = self._loader.steps().order, self._loader.context.labels
        Finisher(self.folder, self.recipe, self.index, order, labels, ErrorMonitor(self.errors)).finish()
