"""Finishing a packed folder: the plans, the rows and, last, the manifest, from the markers of all parts."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np

from patchnpack.loaders.error_policy import ErrorMonitor
from patchnpack.loaders.errors import BadRow
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.labels.labels import KnownLabels, Labels
from patchnpack.loaders.order.order import Order
from patchnpack.loaders.packs.arrow_file import arrays_bytes, digest_of
from patchnpack.loaders.packs.manifest import Manifest
from patchnpack.loaders.packs.pack_store import store_of
from patchnpack.loaders.packs.recipe import MANIFEST, MARKERS, PARTS, ROWS, Recipe, plan_name
from patchnpack.loaders.packs.stored_index import Places
from patchnpack.loaders.prepacking.parts import parts, plan_arrays
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.storage import Folder

_LISTED = 1000  # bad images that the manifest lists; it counts all
_COUNTS = (
    *("packs", "samples", "images", "tokens", "slots", "bad", "left_out", "oversize", "undersize", "skipped"),
    "without_label",
)


class Finisher:
    """Write what all parts have in common. Any task may do so, any number of times: the bytes are the same.

    Args:
        folder: the packed folder, in which all parts and markers are present.
        recipe: what the folder is made by.
        index: of the source.
        order: of the packs.
        labels: of the rows.
        monitor: judges the bad images of all parts.
    """

    def __init__(
        self,
        folder: Folder,
        recipe: Recipe,
        index: Index,
        order: Order,
        labels: Labels | KnownLabels,
        monitor: ErrorMonitor,
    ) -> None:
        self._folder, self._recipe, self._index, self._order = folder, recipe, index, order
        self._labels, self._monitor = labels, monitor
        self._files: dict[str, dict[str, Any]] = {}
        self._bad: list[dict[str, Any]] = []
        self._counts = Counter[str](dict.fromkeys(_COUNTS, 0))

    def finish(self) -> None:
        """Write the plans, the rows and the manifest.

        Raises:
            ValueError: a marker is missing or damaged.
            BadDataError: more images are bad than the policy allows.
        """
        recipe, counts, labels = self._recipe, self._counts, self._labels
        rows = self._read_markers()
        packs = self._write_plans()
        self._write(ROWS, rows)
        counts["packs"] = sum(map(sum, packs))
        counts["slots"] = counts["packs"] * recipe.packing.seq_len
        manifest = Manifest(
            recipe=recipe,
            counts=dict(counts),
            padding=1 - counts["tokens"] / counts["slots"] if counts["slots"] else 0.0,
            packs=packs,
            files=self._files,
            bad=self._bad[:_LISTED],
            num_classes=labels.num_classes,
            label_shape=labels.shape,
            kinds=self._index.kinds,
        )
        self._folder.write(MANIFEST, manifest.to_json())

    def _read_markers(self) -> Any:
        """Collect what the markers say; return the file of the rows."""
        folder, recipe = self._folder, self._recipe
        store, places = store_of(recipe.store), Places(self._index)
        for number, (name, plan) in enumerate(parts(self._order, recipe)):
            marker = json.loads(folder.read(f"{MARKERS}/{name}.json") or b"null")
            if marker is None or marker["images"] != len(plan.images):
                raise ValueError(
                    f"the marker {MARKERS}/{name}.json in {redact(folder.address)!r} is gone or damaged; delete it, "
                    "and run the same command again"
                )
            self._bad += marker.pop("bad")
            self._counts["without_label"] += marker.get("without_label", 0)
            self._counts["left_out"] += marker.get("left_out", 0)
            store.locate(places, number, plan, marker)
            self._files[f"{PARTS}/{name}.arrow"] = marker
        images = sum(marker["images"] for marker in self._files.values())
        self._monitor.judge_all(images, [BadRow(**bad) for bad in self._bad], "in all")
        self._counts["bad"] = len(self._bad)
        nbytes = [marker["nbytes"] for marker in self._files.values()]
        return places.index_bytes(list(self._files), nbytes, recipe.source["shards"])

    def _write_plans(self) -> list[list[int]]:
        """Write the plan of each stream of each epoch; return their numbers of packs."""
        packs: list[list[int]] = []
        for epoch in range(self._recipe.epochs):
            packs.append([])
            for stream in range(self._recipe.num_streams):
                arrays = plan_arrays(self._order.stream_plans(epoch, stream))
                packs[-1].append(len(arrays["patch_size"]))
                for what in ("oversize", "undersize", "skipped"):
                    self._counts[what] += len(arrays[what])
                self._counts["images"] += len(arrays["row"])
                self._counts["samples"] += (
                    int((arrays["frame"] == 0).sum()) if "frame" in arrays else len(arrays["row"])
                )
                self._counts["tokens"] += int(arrays["keep"].sum(dtype=np.int64))
                self._write(plan_name(epoch, stream), arrays_bytes(arrays))
        return packs

    def _write(self, name: str, data: Any) -> None:
        self._files[name] = {"nbytes": data.size, "digest": digest_of(data)}
        self._folder.write(name, data)
