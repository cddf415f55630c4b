"""Pre-packing: packs are planned and written once, by tasks that do not communicate.

1. Each task makes the whole plan from the index. Planning uses integers only, so all tasks get the same packs.
2. Each stream of packs is cut into parts of equally many packs. Task i of n writes the missing ones of the parts i,
   i + n, i + 2n ... Each part is written whole or not at all, and followed by its marker.
3. A task that finds all markers present writes the plans, the rows and, last, the manifest.

The written bytes depend on the recipe alone, not on the number of tasks or on tasks that are killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from patchnpack.loaders.assembly.samples import IndexedBatchContext
from patchnpack.loaders.error_policy import ErrorMonitor, ErrorPolicy
from patchnpack.loaders.errors import BadRow
from patchnpack.loaders.imaging.pages import Pages
from patchnpack.loaders.imaging.user_decode import Decode, ImageReader, user_formats
from patchnpack.loaders.index.table import IMAGE, Index
from patchnpack.loaders.labels.label_rule import Classes
from patchnpack.loaders.packed_loader import PackedImageLoader
from patchnpack.loaders.packs.arrow_file import digest_of
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
from patchnpack.loaders.prepacking.sources import check_source
from patchnpack.loaders.remote.addresses import is_remote, name_of, redact
from patchnpack.loaders.remote.storage import Folder, check_writable, open_folder
from patchnpack.loaders.shards.patterns import ShardNames
from patchnpack.loaders.shards.sample_rule import Sample
from patchnpack.loaders.sources.dataset_source import DatasetSource
from patchnpack.loaders.targets.objects import ObjectTarget
from patchnpack.loaders.targets.target import Target, members_of
from patchnpack.packer import Packing, PatchSizes, Plan
from patchnpack.packer.checks import check_whole
from patchnpack.packer.convert import name_of_function

_PART_BYTES = 64 << 20  # approximate size of a part

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A pre-packing job: what to pack, how, and into which folder. It can be sent to other processes and machines.

    Attributes:
        source: the images: whatever `PackedImageLoader` takes (shards, a folder, a table, an `Index`, a data set),
            except a mixture and a packed folder.
        out: the packed folder, a local path or an address.
        packing: what a sequence looks like.
        store: "images" keeps encoded images in the order of their packs, "patches" packs as they are trained on.
        epochs: number of plans to write; required if the packing changes image sizes from epoch to epoch, else 1.
        seed, shuffle, shuffle_window, num_streams: of the order, as for `PackedImageLoader`.
        block: consecutive packs of one patch size; required with `PatchSizes`: the packs of a step over all ranks, or a
            multiple.
        part_packs: packs per part; None makes files of 32 to 64 MiB.
        compression: of a patch store: None, "lz4" or "zstd". Compressed packs are copied when they are read.
        label, classes, extras: as for `PackedImageLoader`, except functions. A patch store keeps only these; so does an
            image store of a data set. Other image stores keep all members, and these are the defaults of its loaders.
        targets: as for `PackedImageLoader`. A patch store keeps them as they are trained on; an image store keeps the
            members that they are read from, and these are the targets of its loaders if they are given no others.
        decode, formats: as for `PackedImageLoader`. The recipe holds the names of functions and classes, not their
            code. A loader of an image store needs them again, one of a patch store does not.
        pages: "first" or "error": what becomes of files with several pages, as for `PackedImageLoader`.
        errors: what to do about bad images. A patch store decodes all images when it is written, and `max_rate` applies
            to all of them together.
        image, sample, path, root, sizes, thread_safe, fingerprint: of the source, as for `PackedImageLoader`;
            `image=None` is its default, or that of the `Index`, and so is `sample=None`. Samples of several images are
            kept whole: an image store keeps all their files, each once, whichever images `Packing` chooses.
        storage_options: options for the folder and for remote shards.
        cache_dir, cache_limit: of remote shards, as for `PackedImageLoader`.

    Raises:
        ValueError: options contradict each other; nothing has been written.

    >>> job = Job(source="train-{000..009}.tar", out="packed", packing=Packing())   # doctest: +SKIP
    >>> job.run()                                                                   # doctest: +SKIP
    True
    """

    source: ShardNames | Index | Any
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
    targets: Mapping[str, Target] | None = None
    decode: Decode | None = None
    formats: Mapping[str, ImageReader] | None = None
    pages: Pages = "first"
    errors: ErrorPolicy = field(default_factory=ErrorPolicy)
    image: str | None = None
    sample: Sample = None
    path: str | None = None
    root: str | os.PathLike[str] | None = None
    sizes: Any = None
    thread_safe: bool | None = None
    fingerprint: str | Callable[[Any], str] | None = None
    storage_options: Mapping[str, Any] | None = None
    cache_dir: str | os.PathLike[str] | None = None
    cache_limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "part_packs"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))
        if self.label is not None and not isinstance(self.label, str):
            raise ValueError(
                f"label is {self.label!r}; it must be the name of a member, such as 'cls' or 'json:FIELD'. In a data "
                "set, return the label as a member; for an image store of shards or files, leave label out and give "
                "any label to the loader"
            )
        check_source(self.source, self.storage_options)
        if self.epochs is None and (what := changes_grids(self.packing)) is not None:
            raise ValueError(
                f"{what} changes image sizes or token counts from epoch to epoch, and a stored plan fixes them; give "
                "the number of epochs to plan: --epochs E (epochs=E). Later epochs repeat the plans from the first"
            )
        if isinstance(self.packing.patch_size, PatchSizes) and self.block is None:
            raise ValueError(
                f"{self.packing.patch_size} draws a patch size for each block of packs; give the packs per block: "
                "--block (block=), the packs of a step over all ranks, or a multiple"
            )
        check_writable(self.folder)
        if self.store == "images":
            self._check_kept_members()
        self._check_folder()
        _ = self.recipe, self._context

    def __getstate__(self) -> dict[str, Any]:
        # Other cached values are made again: decoders may differ there.
        kept = ("_loader", "_context") if DatasetSource.accepts(self.source) else ()  # which have read the items
        return {name: self.__dict__[name] for name in (*self.__dataclass_fields__, *kept)}

    def absolute(self) -> Job:
        """Return the job with absolute paths, for a process that may have another working folder."""
        out = self.out if is_remote(self.out) else os.path.abspath(os.path.expanduser(self.out))
        if DatasetSource.accepts(self.source):
            job = copy(self)
            object.__setattr__(job, "out", out)
            return job
        shards = tuple(shard if is_remote(shard) else os.path.abspath(shard) for shard in self.index.shards)
        index = replace(self.index, shards=shards)
        return replace(self, source=index, out=out, sample=None, path=None, root=None)

    @cached_property
    def folder(self) -> Folder:
        """The packed folder."""
        return open_folder(self.out, self.storage_options)

    @property
    def _store(self) -> PackStore:
        return store_of(self.store)

    @cached_property
    def _loader(self) -> PackedImageLoader:
        """A loader of the source: it plans the order, reads the images, and checks the options."""
        image = self.source.image if isinstance(self.source, Index) else IMAGE
        return PackedImageLoader(
            self.source,
            self.packing,
            batch_size=1,
            shuffle=self.shuffle,
            seed=self.seed,
            image=self.image or image,
            sample=self.sample,
            label=self.label,
            classes=self.classes,
            extras=self.extras,
            targets=self.targets,
            path=self.path,
            root=self.root,
            sizes=self.sizes,
            thread_safe=self.thread_safe,
            fingerprint=self.fingerprint,
            storage_options=self.storage_options,
            cache_dir=self.cache_dir,
            cache_limit=self.cache_limit,
            shuffle_window=self.shuffle_window,
            num_streams=self.num_streams,
            block=self.block or self.num_streams,
            decode=self.decode,
            formats=self.formats,
            pages=self.pages,
            errors=self.errors,
            rank=0,
            world_size=1,
        )

    @property
    def index(self) -> Index:
        """The index of the images."""
        return self._loader.index

    @cached_property
    def _context(self) -> IndexedBatchContext:
        """What the parts are made with."""
        return self._loader.context.for_packing()

    @cached_property
    def recipe(self) -> Recipe:
        """What decides every byte that is written."""
        loader, names = self._loader, [name_of(redact(shard)) for shard in self.index.shards]
        classes, order = loader.context.labels.classes, loader.steps().order
        data = loader.source.fingerprint(order).get("data")  # of pixels, which have no digest
        label = loader.source.options.label
        assert label is None or isinstance(label, str)
        return Recipe(
            store=self.store,
            packing=loader.packing,
            epochs=self.epochs or 1,
            seed=self.seed,
            shuffle=self.shuffle,
            shuffle_window=self.shuffle_window,
            num_streams=self.num_streams,
            block=self.block if isinstance(self.packing.patch_size, PatchSizes) else None,
            part_packs=self.part_packs or self._default_part_packs(),
            compression=self.compression,
            image=self.index.image,
            sample=None if self.index.samples is None else self.index.samples.rule,
            label=label,
            classes=None if classes is None else dict(classes),
            extras=tuple(loader.context.extras),
            targets=dict(loader.context.targets),
            max_pixels=self.errors.max_pixels,
            max_bytes=self.errors.max_bytes,
            truncated=self.errors.truncated,
            on_bad=self.errors.on_bad,
            decode=None if self.decode is None else name_of_function(self.decode),
            formats=tuple(format.version for format in user_formats(self.formats)),
            pages=self.pages,
            source={
                "shards": names,
                "images": len(self.index),
                "digest": loader.source.digest,
                "outside": digest_of(self.index.outside),
                **({"data": data} if data else {}),
            },
            decoders=self._store.decoders(),
        )

    def _default_part_packs(self) -> int:
        plans = self._loader.steps().order.stream_plans(0, 0)
        each = self._store.pack_bytes(self._loader.packing, self._loader.context.targets, self.index, plans)
        # A power of two: batches of 2, 4, 8 ... consecutive packs then lie in one file and need no copy.
        return 1 << (max(1, _PART_BYTES // max(1, each)).bit_length() - 1)

    @cached_property
    def num_images(self) -> int:
        """Samples to write over all epochs, the total that progress counts to."""
        return self._loader.steps().order.num_samples * self._store.part_epochs(self.recipe)

    def run(self, task: int = 0, num_tasks: int = 1, progress: Progress = lambda images: None) -> bool:
        """Run task `task` of `num_tasks`: write its missing parts, and finish the folder if all parts are present.

        Args:
            task, num_tasks: number of the task, and of tasks. Tasks may run anywhere, repeatedly, and concurrently.
            progress: called with the number of samples of each part, once it is present.

        Returns:
            Whether the folder is finished.

        Raises:
            ValueError: the folder holds something else, or the task is out of range.
            OSError: the disk is full, or a shard has changed. Written parts stay, and the next run resumes after them.
            BadDataError: more images are bad than `errors` allows.
        """
        check_whole("num_tasks", num_tasks)
        if not 0 <= task < num_tasks:
            raise ValueError(f"task is {task} of {num_tasks}; it must be from 0 to {num_tasks - 1}")
        self._begin()
        try:
            finished = self._run(task, num_tasks, progress)
        except FileNotFoundError:
            # A concurrent run of the same task finished the folder and swept away the temporary files of this one.
            if self.folder.read(MANIFEST) is None:
                raise
            return True
        if finished:
            for subfolder in ("", PARTS, MARKERS, PLANS):
                self.folder.sweep(subfolder)
        return finished

    def _run(self, task: int, num_tasks: int, progress: Progress) -> bool:
        if self.folder.read(MANIFEST) is not None:
            progress(self.num_images)
            return True
        present = set(self.folder.names(MARKERS, ".json"))
        expected = []
        for number, (name, plan) in enumerate(self._parts()):
            expected.append(name + ".json")
            if number % num_tasks != task:
                continue
            if name + ".json" not in present:
                self._write(name, plan)
            progress(plan.num_samples)
        if not set(expected) <= set(self.folder.names(MARKERS, ".json")):
            return False
        self._finish()
        return True

    def _check_kept_members(self) -> None:
        """Raise ValueError if a target reads files that a table of paths names, which an image store would not keep."""
        index = self.index
        for name, target in self._loader.context.targets.items():
            for member in members_of(target):
                if not isinstance(target, ObjectTarget) and any(index.files) and index.kinds.get(member) == "txt":
                    raise ValueError(
                        f"target {name!r} reads the files that the column {member!r} names, and store='images' keeps "
                        "the texts of a table alone; choose store='patches', or write shards that hold these files"
                    )

    def _check_folder(self) -> None:
        """Raise ValueError if the folder holds something else."""
        where, recipe = redact(self.folder.address), self.recipe.to_json()
        present = self.folder.read(RECIPE)
        if present is None:
            if others := [name for name in self.folder.names("", "") if name != "lost+found"]:
                raise ValueError(
                    f"{where!r} holds something else ({others[0]!r}); name an empty folder, or one that does not exist"
                )
        elif present != recipe:
            check_recipe(present, self.folder)
            raise ValueError(
                f"{where!r} holds other packs: {difference(recipe, present)}; run the command that began them, or pack "
                "into another folder"
            )

    def _begin(self) -> None:
        self._check_folder()
        if self.folder.read(RECIPE) is None:
            self.folder.write(RECIPE, self.recipe.to_json())

    def _parts(self) -> Iterator[tuple[str, Plan]]:
        """Yield the name and the packs of each part, in the order of the parts' numbers."""
        return parts(self._loader.steps().order, self.recipe)

    def _write(self, name: str, plan: Plan) -> None:
        file, marker = self._store.part_file(plan, self._context, self.compression)
        bad = [BadRow(**bad) for bad in marker["bad"]]
        ErrorMonitor(self.errors).judge_all(len(plan.images), bad, "of a part")
        self.folder.write(f"{PARTS}/{name}.arrow", file)
        self.folder.write(f"{MARKERS}/{name}.json", (json.dumps(marker) + "\n").encode())

    def _finish(self) -> None:
        order, context = self._loader.steps().order, self._context
        Finisher(self.folder, self.recipe, context.index, order, context.labels, ErrorMonitor(self.errors)).finish()
