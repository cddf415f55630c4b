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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from patchnpack.loaders.errors import BadDataError, ErrorPolicy
from patchnpack.loaders.index.labels import Classes
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.order.state import decoders
from patchnpack.loaders.packed_loader import PackedImageLoader
from patchnpack.loaders.packs.arrow_file import arrays_bytes, digest_of
from patchnpack.loaders.packs.image_store import Places, image_part
from patchnpack.loaders.packs.manifest import Manifest, check_recipe
from patchnpack.loaders.packs.part import Part, cut
from patchnpack.loaders.packs.patch_store import patch_part
from patchnpack.loaders.packs.recipe import (
    MANIFEST,
    MARKERS,
    PARTS,
    PLANS,
    RECIPE,
    ROWS,
    Recipe,
    StoreKind,
    changes_grids,
    difference,
    plan_name,
    unit_name,
)
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.download import name_of
from patchnpack.loaders.remote.storage import Folder, check_writable, open_folder
from patchnpack.packer import Images, Packing, PatchSizes, Plan
from patchnpack.packer.checks import check_whole

_PART_BYTES = 64 << 20  # about what a part is to hold
_LISTED = 1000  # bad images that the manifest lists; it counts all
_JUDGED_FROM = 1000  # images from which on `max_rate` holds

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
        order = loader.steps().order
        classes = loader.sources.labels.classes
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
            extras=tuple(loader.sources.extras),
            max_pixels=self.errors.max_pixels,
            max_bytes=self.errors.max_bytes,
            truncated=self.errors.truncated,
            source={"shards": names, "images": len(self.index), "digest": order.rows_digest},
            decoders=decoders() if self.store == "patches" else "",
        )

    def _usual_packs(self) -> int:
        packing = self._loader.packing
        if self.store == "patches":
            each = packing.seq_len * max(packing.token_bytes(size) for size in packing.patch_sizes)
        else:
            plans = self._loader.steps().order.stream_plans(0, 0)
            first = next((plan for plan in plans if len(plan)), None)
            each = 1 if first is None else int(self.index.nbytes[first.images.row].sum()) // len(first)
        # A power of two: batches of 2, 4, 8 ... packs in a row then lie in one file, and are handed out without a copy.
        return 1 << (max(1, _PART_BYTES // max(1, each)).bit_length() - 1)

    @cached_property
    def num_images(self) -> int:
        """Images that parts are written of, over all epochs: what progress counts to."""
        return self._loader.steps().order.num_images * self.recipe.part_epochs

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
        for number, (name, part) in enumerate(self._parts()):
            expected.append(name + ".json")
            if number % num_tasks != task:
                continue
            if name + ".json" not in there:
                self._write(name, part)
            progress(len(part.images))
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

    def _parts(self) -> Iterator[tuple[str, Part]]:
        """All parts with their names, in the order of their numbers."""
        order, recipe = self._loader.steps().order, self.recipe
        for epoch in range(recipe.part_epochs):
            for stream in range(recipe.num_streams):
                skipped: list[np.ndarray] = []
                plans = _noting(order.stream_plans(epoch, stream), skipped)
                number = 0
                for part in cut(plans, recipe.part_packs):
                    yield unit_name(epoch, stream, number), part
                    number += 1
                if recipe.store == "images" and recipe.epochs > 1:
                    # A later epoch may give them a size that fits.
                    rows = np.concatenate([np.zeros(0, np.int64), *skipped])
                    for low in range(0, len(rows), recipe.part_packs):
                        yield unit_name(epoch, stream, number), _unplanned(rows[low : low + recipe.part_packs])
                        number += 1

    def _write(self, name: str, part: Part) -> None:
        sources = self._loader.sources
        if self.store == "images":
            file, marker = image_part(part, sources)
        else:
            file, marker = patch_part(part, sources, self.compression)
        self._monitor(len(part.images), marker["bad"], "of a part")
        self.folder.write(f"{PARTS}/{name}.arrow", file)
        self.folder.write(f"{MARKERS}/{name}.json", _json(marker))

    def _monitor(self, images: int, bad: Sequence[Mapping[str, Any]], which: str) -> None:
        policy = self.errors
        if bad and policy.on_error == "raise":
            raise BadDataError(f"bad image {dict(bad[0])}; remove it, or skip such images with on_error='skip'")
        if images >= _JUDGED_FROM and len(bad) > policy.max_rate * images:
            raise BadDataError(
                f"{len(bad)} of the {images} images {which} were bad, more than max_rate {policy.max_rate} allows; the "
                f"last is {dict(bad[-1])}. Mend the shards, or raise max_rate"
            )

    def _finish(self) -> None:
        """Writes what is made of all parts together. Whoever does it, and however often, writes the same."""
        folder, recipe, index = self.folder, self.recipe, self.index
        files: dict[str, dict[str, Any]] = {}
        bad: list[dict[str, Any]] = []
        places = Places(index) if self.store == "images" else None
        counts = Counter[str](dict.fromkeys(_COUNTS, 0))
        names = []
        for number, (name, part) in enumerate(self._parts()):
            marker = json.loads(folder.read(f"{MARKERS}/{name}.json") or b"null")
            if marker is None or marker["images"] != len(part.images):
                raise ValueError(
                    f"the marker {MARKERS}/{name}.json in {redact(folder.address)!r} is gone or damaged; delete it, "
                    "and run the same command again"
                )
            bad += marker.pop("bad")
            counts["without_label"] += marker.get("without_label", 0)
            if places is not None:
                places.add(number, part.images.row, marker.pop("begins"))
            names.append(f"{PARTS}/{name}.arrow")
            files[names[-1]] = marker
        self._monitor(sum(files[name]["images"] for name in names), bad, "in all")
        counts["bad"] = len(bad)
        packs: list[list[int]] = []
        for epoch in range(recipe.epochs):
            packs.append([])
            for stream in range(recipe.num_streams):
                arrays = _plan_arrays(self._loader.steps().order.stream_plans(epoch, stream))
                packs[-1].append(len(arrays["patch_size"]))
                for what in ("oversize", "skipped"):
                    counts[what] += len(arrays[what])
                counts["images"] += len(arrays["row"])
                counts["tokens"] += int(arrays["keep"].sum(dtype=np.int64))
                self._write_noted(plan_name(epoch, stream), arrays_bytes(arrays), files)
        counts["packs"] = sum(map(sum, packs))
        counts["slots"] = counts["packs"] * recipe.packing.seq_len
        rows = (places or Places(index)).index_bytes(
            names, [files[name]["nbytes"] for name in names], recipe.source["shards"]
        )
        self._write_noted(ROWS, rows, files)
        labels = self._loader.sources.labels
        manifest = Manifest(
            recipe=recipe,
            counts=dict(counts),
            padding=1 - counts["tokens"] / counts["slots"] if counts["slots"] else 0.0,
            packs=packs,
            files=files,
            bad=bad[:_LISTED],
            num_classes=labels.num_classes,
            label_shape=labels.shape,
            kinds=index.kinds,
        )
        folder.write(MANIFEST, manifest.to_json())

    def _write_noted(self, name: str, data: Any, files: dict[str, dict[str, Any]]) -> None:
        files[name] = {"nbytes": data.size, "digest": digest_of(data)}
        self.folder.write(name, data)


_COUNTS = ("packs", "images", "tokens", "slots", "bad", "oversize", "skipped", "without_label")


def _json(values: Any) -> bytes:
    return (json.dumps(values) + "\n").encode()


def _noting(plans: Iterator[Plan], skipped: list[np.ndarray]) -> Iterator[Plan]:
    for plan in plans:
        skipped.append(plan.skipped)
        yield plan


def _unplanned(rows: np.ndarray) -> Part:
    """Images that no pack of this epoch holds, each by itself."""
    n = len(rows)
    images = Images(
        row=rows,
        key=np.zeros(n, np.uint64),
        box=np.zeros((n, 4), np.int32),
        size=np.zeros((n, 2), np.int32),
        grid=np.zeros((n, 2), np.int32),
        keep=np.zeros(n, np.int32),
    )
    zeros = np.zeros(n, np.int32)
    return Part(images=images, offsets=np.arange(n + 1), patch_size=zeros, cost=zeros.astype(np.int64))


def _plan_arrays(plans: Iterator[Plan]) -> dict[str, np.ndarray]:
    """The plan of a stream as arrays; see `StoredOrder.plan`."""
    made = list(plans)
    part = Part.join([Part.of(plan) for plan in made])
    images = part.images
    return {
        "offsets": part.offsets,
        "patch_size": part.patch_size,
        "cost": part.cost,
        "row": images.row,
        **{name: getattr(images, name).ravel() for name in ("box", "size", "grid")},
        "keep": images.keep,
        "skipped": np.concatenate([plan.skipped for plan in made]),
        "oversize": np.concatenate([plan.oversize for plan in made]),
    }
