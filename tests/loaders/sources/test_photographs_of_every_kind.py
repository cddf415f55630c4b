"""The clothing photographs as every kind of source, and packed from each: the same images, labels and promises."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from patchnpack.loaders import ErrorPolicy, Job, PackedImageLoader
from patchnpack.loaders.prepacking.verify import verify
from patchnpack.packer import FitTokens, PackedBatch, Packing
from tests.images import read_tar, write_tar
from tests.loaders.loading import keys_of

datasets.disable_progress_bars()

Contents = Callable[[PackedBatch], tuple[object, ...]]
PACKING = Packing(seq_len=128, resolution=FitTokens(36), max_images=8)
COUNT = 120
KINDS = (
    *("shards", "folder", "table", "compressed table", "parquet", "saved to disk", "hugging face from parquet"),
    *("pairs of paths", "bytes", "opened by PIL", "image store", "patch store"),
)


class Opened:
    """(PIL image, label) of encoded photographs, which PIL opens and does not decode."""

    def __init__(self, photos: list[bytes], labels: list[int]) -> None:
        self.photos, self.labels = photos, labels

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.open(io.BytesIO(self.photos[i])), self.labels[i]


def write(home: Path, photos: list[bytes], labels: list[int]) -> dict[str, dict[str, Any]]:
    """Write the photographs as each of `KINDS`; return the arguments of a loader of each."""
    members, pairs = [], []
    for i, (data, label) in enumerate(zip(photos, labels, strict=True)):
        members += [(f"{i:04d}.jpg", data), (f"{i:04d}.cls", str(label).encode())]
        path = home / "files" / str(label) / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        pairs.append((str(path), label))
    shard = write_tar(home / "a.tar", members)
    table = "".join(f"{path},{label}\n" for path, label in [("file", "label"), *pairs])
    (home / "table.csv").write_text(table)
    (home / "table.csv.gz").write_bytes(gzip.compress(table.encode()))
    columns = {"image": [{"bytes": data, "path": None} for data in photos], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict(columns, features=features)
    dataset.save_to_disk(str(home / "saved"))
    dataset.to_parquet(str(home / "a.parquet"))
    again = datasets.Dataset.from_parquet(str(home / "a.parquet"), cache_dir=str(home / "hub"))
    of_table = {"path": "file", "label": "label"}
    found: dict[str, dict[str, Any]] = {
        "shards": {"source": shard, "label": "cls"},
        "folder": {"source": str(home / "files"), "label": "folder"},
        "table": {"source": str(home / "table.csv"), **of_table},
        "compressed table": {"source": str(home / "table.csv.gz"), **of_table},
        "parquet": {"source": str(home / "a.parquet"), "label": "label"},
        "saved to disk": {"source": datasets.load_from_disk(str(home / "saved")), "label": "label"},
        "hugging face from parquet": {"source": again, "label": "label"},
        "pairs of paths": {"source": pairs},
        "bytes": {"source": list(zip(photos, labels, strict=True))},
        "opened by PIL": {"source": Opened(photos, labels)},
    }
    for store in ("image", "patch"):
        kind: Any = f"{store}s" if store == "image" else "patches"
        Job(source=shard, out=str(home / kind), packing=PACKING, store=kind, label="cls", part_packs=4).run()
        found[f"{store} store"] = {"source": str(home / kind)}
    assert set(found) == set(KINDS)
    return found


@pytest.fixture(scope="module")
def photographs(clothing: str) -> tuple[list[bytes], list[int]]:
    members = read_tar(Path(clothing) / "validation-000000.tar")
    photos = [data for name, data in members if name.endswith(".jpg")][:COUNT]
    labels = [int(data) for name, data in members if name.endswith(".cls")][:COUNT]
    return photos, labels


@pytest.fixture(scope="module")
def sources(
    photographs: tuple[list[bytes], list[int]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    return write(tmp_path_factory.mktemp("photographs"), *photographs)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def load(cache: Path, given: dict[str, Any], **options: Any) -> PackedImageLoader:
    is_packed = isinstance(given["source"], str) and (Path(given["source"]) / "manifest.json").exists()
    return PackedImageLoader(
        **{"packing": None if is_packed else PACKING, "batch_size": 2, "cache_dir": cache} | given | options
    )


def seen(loader: PackedImageLoader) -> list[tuple[Any, bytes]]:
    """Label and pixels of each image, in an order that does not depend on keys."""
    images = [(image.label, image.pixels().tobytes()) for batch in loader for image in batch.images()]
    return sorted(images, key=lambda image: image[1])


@pytest.fixture(scope="module")
def want(sources: dict[str, dict[str, Any]], photographs: tuple[list[bytes], list[int]], cache: Path) -> Any:
    found = seen(load(cache, sources["shards"]))
    assert sorted(label for label, _ in found) == sorted(photographs[1])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_labels_are_those_of_the_shards(sources: Any, cache: Path, want: Any, kind: str) -> None:
    loader = load(cache, sources[kind], shuffle=True)
    assert seen(loader) == want
    assert loader.stats()["images"] == COUNT


@pytest.mark.parametrize("store", ["images", "patches"])
@pytest.mark.parametrize("kind", KINDS[:-2])
def test_packs_of_every_kind_hold_the_images_and_labels_of_the_shards(
    sources: Any, cache: Path, want: Any, tmp_path: Path, kind: str, store: Any
) -> None:
    given = {name: value for name, value in sources[kind].items() if name != "source"}
    source, out = sources[kind]["source"], str(tmp_path / "packed")
    job = Job(
        source=source, out=out, packing=PACKING, store=store, shuffle=True, cache_dir=cache, part_packs=4, **given
    )
    assert not job.run(1, 2)
    assert job.run(0, 2)
    loader = PackedImageLoader(out, batch_size=2)
    assert seen(loader) == want
    assert loader.stats()["images"] == COUNT
    assert not verify(out).problems


@pytest.mark.parametrize("kind", KINDS)
def test_threads_ranks_resume_and_other_numbers_of_ranks_keep_the_sequence(
    sources: Any, cache: Path, contents: Contents, kind: str
) -> None:
    def make(**options: Any) -> PackedImageLoader:
        return load(cache, sources[kind], **{"shuffle": True, "batch_size": 1} | options)

    loader, batches, states = make(num_threads=1), [], []
    for batch in loader:
        batches.append(contents(batch))
        states.append(json.loads(json.dumps(loader.state_dict())))
    assert [contents(batch) for batch in make(num_threads=4, prefetch=5)] == batches
    assert len(batches) > 11
    for step in range(10):
        resumed = make()
        resumed.load_state_dict(states[step])
        assert [contents(batch) for batch in resumed] == batches[step + 1 :]
    all_keys = sorted(loader.index.keys)
    used = keys_of([batch for batch, _ in zip(make(), range(5), strict=False)])
    for ranks in (1, 2, 3):
        epochs = [list(make(rank=rank, world_size=ranks)) for rank in range(ranks)]
        assert len(set(map(len, epochs))) == 1
        assert sorted(key for epoch in epochs for key in keys_of(epoch)) == all_keys
        left: list[str] = []
        for rank in range(ranks):
            one = make(rank=rank, world_size=ranks, batch_size=2)
            one.load_state_dict(states[4])
            left += keys_of(list(one))
        assert sorted(used + left) == all_keys


@pytest.mark.parametrize("kind", KINDS)
def test_where_and_quarantine_conserve_the_photographs(
    photographs: tuple[list[bytes], list[int]], tmp_path: Path, kind: str
) -> None:
    photos, labels = photographs[0][:30], photographs[1][:30]
    photos[4], photos[9] = b"no image at all", photos[9][:2000]
    given, quarantine = write(tmp_path / "damaged", photos, labels)[kind], tmp_path / "bad.jsonl"
    policy = ErrorPolicy(max_rate=1.0, quarantine=quarantine)
    where = None if "store" in kind else lambda index: np.arange(len(index)) % 7 > 0
    loader = load(tmp_path / "cache", given, errors=policy, where=where)
    keys, stats = keys_of(list(loader)), loader.stats()
    assert len(keys) == len(set(keys)) == stats["images"]
    assert stats["images"] + stats["bad_images"] + stats["skipped"]["where"] == 30
    assert stats["bad_images"] == 2
    assert len(quarantine.read_text().splitlines()) == 2
