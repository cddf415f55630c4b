"""The same images as a folder, as tables of paths and as shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchnpack import ErrorPolicy, PackedImageLoader, Packing
from patchnpack.loaders import write_shards
from patchnpack.packer import PackedBatch
from tests.images import draw_image, encode_image

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)
CLASSES = ("10", "9", "cat", "dog")
KINDS = ("folder", "csv", "jsonl", "parquet", "shards")


def make_folder(folder: Path, images: int = 40) -> Path:
    """A folder of images in sub-folders that are classes, two levels deep, with other files."""
    for i in range(images):
        name = CLASSES[i % len(CLASSES)]
        path = folder / name / (f"deep/im{i:02d}.jpg" if i % 5 == 0 else f"im{i:02d}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(draw_image(20 + i % 17, 16 + i % 11, seed=i)))
    return folder


def make_sources(home: Path, images: int = 40) -> dict[str, dict[str, Any]]:
    """For each of `KINDS`, the arguments of a loader of the same images and labels."""
    folder = make_folder(home / "images", images)
    files = sorted(folder.rglob("*.jpg"), key=lambda path: path.relative_to(folder).parts)
    rows = [
        {
            "file": path.relative_to(home).as_posix(),
            "species": path.relative_to(folder).parts[0],
            "caption": f'a "{path.stem}", seen',
        }
        for path in files
    ]
    lines = [
        "file,species,caption",
        *(f'{r["file"]},{r["species"]},"{r["caption"].replace(chr(34), chr(34) * 2)}"' for r in rows),
    ]
    (home / "train.csv").write_text("\n".join(lines) + "\n")
    (home / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), home / "train.parquet")
    write_shards(folder, home / "shards", images_per_shard=15, seed=None)
    table = {"path": "file", "label": "species"}
    return {
        "folder": {"source": str(folder), "label": "folder"},
        "csv": {"source": str(home / "train.csv"), **table},
        "jsonl": {"source": str(home / "train.jsonl"), **table},
        "parquet": {"source": str(home / "train.parquet"), **table},
        "shards": {"source": str(home / "shards" / "train-*.tar"), "label": "cls"},
    }


def loader_of(home: Path, source: Any, **options: Any) -> PackedImageLoader:
    """A loader that caches in `home`."""
    given: dict[str, Any] = {"batch_size": 2, "shuffle": True, "cache_dir": home / "cache", "num_threads": 1}
    return PackedImageLoader(
        source, options.pop("packing", PACKING), **given | {"errors": ErrorPolicy(max_rate=1.0)} | options
    )


def stem_of(key: str) -> str:
    """What keys of files, tables and shards have in common."""
    return key.rpartition("/")[2].partition(".")[0]


def images_of(batches: Sequence[PackedBatch]) -> dict[str, tuple[Any, bytes]]:
    """The label and the patches of each image, by the name of its file."""
    found: dict[str, tuple[Any, bytes]] = {}
    for batch in batches:
        for image in batch.images():
            assert stem_of(image.key) not in found
            label = image.label if isinstance(image.label, int) else np.asarray(image.label).tolist()
            found[stem_of(image.key)] = label, image.pixels().tobytes()
    return found


def extras_of(batch: PackedBatch, name: str) -> dict[str, Any]:
    """The value of an extra of each image, by key."""
    packs = zip(batch.keys, batch.extras[name], strict=True)
    return {key: value for keys, values in packs for key, value in zip(keys, values, strict=True)}


def sequence_of(batches: Sequence[PackedBatch]) -> list[tuple[list[list[str]], bytes, bytes]]:
    """Keys, patches and labels of each batch, in order."""
    return [(batch.keys, batch.patches.numpy().tobytes(), batch.labels.numpy().tobytes()) for batch in batches]
