"""Verifying packed folders: each file has the written bytes, and each image is in one pack per epoch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from patchnpack.loaders.packs.arrow_file import digest_of
from patchnpack.loaders.packs.manifest import Manifest, read_manifest
from patchnpack.loaders.packs.pack_store import store_of
from patchnpack.loaders.packs.recipe import MARKERS, PARTS, RECIPE, ROWS, plan_name
from patchnpack.loaders.packs.stored_index import sample_starts
from patchnpack.loaders.remote.storage import open_folder


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The result of `verify`.

    Attributes:
        files, nbytes: number and size of the files that were read.
        problems: one line per problem; empty if there is none.
    """

    files: int
    nbytes: int
    problems: list[str] = field(default_factory=list)


def verify(
    out: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> VerifyResult:
    """Read every file of a finished packed folder, and compare digests and counts with the manifest.

    Args:
        out: the packed folder, a local path or an address.
        storage_options: options for an address.
        progress: called with (bytes read, total bytes).

    Raises:
        FileNotFoundError: there are no packs.
        ValueError: the packs are unfinished, have another schema, or the manifest is damaged.
    """
    folder = open_folder(out, storage_options)
    manifest = read_manifest(folder)
    problems: list[str] = []
    if folder.read(RECIPE) != manifest.recipe.to_json():
        problems.append(f"{RECIPE} is not the manifest's")
    total, done = sum(about["nbytes"] for about in manifest.files.values()), 0
    plans: dict[str, bytes] = {}
    starts: np.ndarray | None = None
    for name, about in manifest.files.items():
        data = folder.read(name)
        if data is None:
            problems.append(f"{name} is not there")
            continue
        if len(data) != about["nbytes"]:
            problems.append(f"{name} has {len(data)} bytes, and should have {about['nbytes']}")
        elif digest_of(data) != about["digest"]:
            problems.append(f"{name} does not have the bytes that were written: its digest differs")
        elif name.startswith("plans/"):
            plans[name] = data
        elif name == ROWS and manifest.recipe.sample is not None:
            starts = sample_starts(data)
        if name.startswith(PARTS + "/"):
            _check_marker(folder.read(_marker_of(name)), name, about, problems)
        done += len(data)
        progress(done, total)
    stray = set(folder.names(PARTS, "")) - {name.removeprefix(PARTS + "/") for name in manifest.files}
    problems += [f"{PARTS}/{name} is in no manifest" for name in sorted(stray)]
    _check_counts(manifest, plans, starts, problems)
    return VerifyResult(len(manifest.files), done, problems)


def _marker_of(part: str) -> str:
    return part.replace(PARTS, MARKERS, 1).removesuffix(".arrow") + ".json"


def _check_marker(text: bytes | None, name: str, about: Mapping[str, Any], problems: list[str]) -> None:
    if text is None:
        problems.append(f"{name} has no marker")
        return
    try:
        marker = json.loads(text)
        agrees = all(marker[what] == about[what] for what in ("nbytes", "digest", "packs", "images"))
    except (ValueError, KeyError, TypeError):
        agrees = False
    if not agrees:
        problems.append(f"the marker of {name} does not say what the manifest says")


def _check_counts(
    manifest: Manifest, plans: Mapping[str, bytes], starts: np.ndarray | None, problems: list[str]
) -> None:
    """Check that each pack is in a part, and that each sample is whole, and in one pack of each epoch or skipped."""
    recipe = manifest.recipe
    for epoch, of_streams in enumerate(manifest.packs):
        rows = []
        for stream, packs in enumerate(of_streams):
            name = plan_name(epoch, stream)
            if name not in plans:
                continue
            # A buffer, not a Python file: Arrow reads those in threads of its own, which can abort the process at exit.
            with pa.ipc.open_file(pa.BufferReader(plans[name])) as file:
                table = file.get_batch(0)
            arrays = {column: table.column(column).values.to_numpy() for column in table.schema.names}
            if len(arrays["patch_size"]) != packs:
                problems.append(f"{name} has {len(arrays['patch_size'])} packs, and should have {packs}")
            rows += [_samples(arrays, starts, name, problems), _sample_of(arrays["skipped"], starts)]
            if epoch < store_of(recipe.store).part_epochs(recipe):
                begin = f"{PARTS}/e{epoch:04d}-s{stream:03d}-"
                held = sum(about["packs"] for part, about in manifest.files.items() if part.startswith(begin))
                if held < packs:
                    problems.append(f"the parts of stream {stream} of epoch {epoch} hold {held} packs of {packs}")
        all_rows = np.concatenate([np.zeros(0, np.int64), *rows])
        if (repeated := len(all_rows) - len(np.unique(all_rows))) > 0:
            what = "rows" if starts is None else "samples"
            problems.append(f"{repeated} {what} are planned more than once in epoch {epoch}")
        held = recipe.source["images"] if starts is None else len(starts) - 1
        if len(all_rows) and not 0 <= all_rows.min() <= all_rows.max() < held:
            problems.append(f"epoch {epoch} has rows that the source does not have")


def _sample_of(rows: np.ndarray, starts: np.ndarray | None) -> np.ndarray:
    """Return the sample of each row; the row itself where each row is one."""
    return rows if starts is None else np.searchsorted(starts, rows, side="right") - 1


def _samples(arrays: Mapping[str, np.ndarray], starts: np.ndarray | None, name: str, problems: list[str]) -> np.ndarray:
    """Return the samples of a plan, and check that the images of each are of one sample, in order, and in one pack."""
    sample, frame = _sample_of(arrays["row"], starts), arrays.get("frame")
    if frame is None:
        return sample
    begins = frame == 0
    ends = arrays["offsets"][1:-1]
    split = np.count_nonzero(~begins[ends[ends < len(begins)]])
    follows = ~begins[1:]
    wrong = split + np.count_nonzero(follows & ((sample[1:] != sample[:-1]) | (frame[1:] != frame[:-1] + 1)))
    if wrong or not begins[:1].all():
        problems.append(f"{name} splits samples or mixes up their images")
    firsts: np.ndarray = sample[begins]
    return firsts
