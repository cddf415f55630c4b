"""Packing every kind of source with samples of several images: the folder gives the batches that the source gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchnpack.loaders import Job, PackedImageLoader
from patchnpack.loaders.prepacking.unpack import unpack
from patchnpack.loaders.prepacking.verify import verify
from patchnpack.packer import Frames, PackedBatch
from tests.images import draw_image, encode_image
from tests.loaders.prepacking.documents import PACKING, image, pages_of, samples_in

Contents = Callable[[PackedBatch], tuple[object, ...]]
COUNT = 15


PAGES = [(number, page) for number in range(COUNT) for page in range(pages_of(number))]


class Documents:
    """Pages as pairs of an array and the number of their document."""

    def __len__(self) -> int:
        return len(PAGES)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        number, page = PAGES[row]
        return np.asarray(draw_image(16, 8 + 8 * page, seed=10 * number + page)), number


def document_of(key: str) -> str:
    return str(PAGES[int(key)][0])


def tiff(number: int, kind: str = "TIFF") -> bytes:
    """Return a document as one file; pages of a TIFF differ in size, frames do not."""
    pages = [
        draw_image(16, 16 if kind != "TIFF" else 8 + 8 * page, seed=number + page) for page in range(pages_of(number))
    ]
    return encode_image(pages[0], kind, save_all=True, append_images=pages[1:])


def lists() -> list[list[bytes]]:
    return [[image(number, page) for page in range(pages_of(number))] for number in range(COUNT)]


def parquet_of_lists(folder: Path) -> tuple[Any, dict[str, Any]]:
    table = pa.table({"pages": pa.array(lists(), pa.list_(pa.binary())), "label": list(range(COUNT))})
    pq.write_table(table, folder / "a.parquet")
    return str(folder / "a.parquet"), {"sample": "members", "image": "pages", "label": "label"}


def hugging_face(folder: Path) -> tuple[Any, dict[str, Any]]:
    features = datasets.Features({"pages": datasets.List(datasets.Image()), "label": datasets.Value("int64")})
    rows = [[{"bytes": data, "path": None} for data in row] for row in lists()]
    rows[3] = [{"bytes": tiff(3), "path": None}]  # as many pages, in one file
    given = datasets.Dataset.from_dict({"pages": rows, "label": list(range(COUNT))}, features=features)
    return given, {"sample": "members", "label": "label", "fingerprint": "a"}


def arrays(folder: Path) -> tuple[Any, dict[str, Any]]:
    return Documents(), {"sample": document_of, "fingerprint": "b"}


def files(folder: Path, kind: str = "TIFF") -> tuple[Any, dict[str, Any]]:
    for number in range(COUNT):
        path = folder / "images" / str(number) / f"a.{'tif' if kind == 'TIFF' else kind.lower()}"
        path.parent.mkdir(parents=True)
        path.write_bytes(tiff(number, kind))
    return str(folder / "images"), {"sample": "members", "label": "folder", "classes": list(map(str, range(COUNT)))}


def pages_of_a_folder(folder: Path) -> tuple[Any, dict[str, Any]]:
    for number in range(COUNT):
        (folder / "images" / str(number)).mkdir(parents=True)
        for page in range(pages_of(number)):
            (folder / "images" / str(number) / f"{page}.png").write_bytes(image(number, page))
    given = {"sample": r"key:(.+)/\d+", "label": "folder", "classes": list(map(str, range(COUNT)))}
    return str(folder / "images"), given


KINDS: dict[str, Callable[[Path], tuple[Any, dict[str, Any]]]] = {
    "parquet of lists": parquet_of_lists,
    "hugging face": hugging_face,
    "arrays": arrays,
    "pages of files": files,
    "frames of files": lambda folder: files(folder, "PNG"),
    "pages of a folder": pages_of_a_folder,
}


@pytest.mark.parametrize("store", ["images", "patches"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_samples_are_the_batches_of_their_source(
    tmp_path: Path, kind: str, store: Any, contents: Contents
) -> None:
    source, options = KINDS[kind](tmp_path)
    given: dict[str, Any] = {"seed": 5, "shuffle": True}
    loader = PackedImageLoader(source, PACKING, batch_size=2, **given, **options, cache_dir=tmp_path / "cache")
    expected = list(loader)
    whole = sorted([(frame, number) for frame in range(pages_of(number))] for number in range(COUNT))
    assert sorted([sample[1:] for sample in found] for found in samples_in(expected)) == whole
    job = Job(
        source=source,
        out=str(tmp_path / "out"),
        packing=PACKING,
        store=store,
        **given,
        **options,
        cache_dir=str(tmp_path / "cache"),
    )
    assert job.run()
    assert verify(tmp_path / "out").problems == []
    folder = PackedImageLoader(tmp_path / "out", batch_size=2, seed=5)
    assert list(map(contents, folder)) == list(map(contents, expected))
    assert folder.stats()["samples"] == loader.stats()["samples"] == COUNT
    # Unpacked, the samples are whole and in order, and their labels with them.
    unpack(tmp_path / "out", tmp_path / "tars")
    image = "png;tif;pages" if kind == "parquet of lists" else "png;tif;tiff"
    rule = options["sample"]
    label = "cls" if store == "patches" else {"hugging face": "label", "parquet of lists": "label"}.get(kind)
    again = PackedImageLoader(
        str(tmp_path / "tars" / "*.tar"), PACKING, batch_size=2, sample=rule, image=image, label=label
    )
    found = [[frame for _, frame, _ in sample] for sample in samples_in(again)]
    assert sorted(found) == sorted([frame for frame, _ in sample] for sample in whole)
    if label is not None:
        assert sorted([sample[1:] for sample in found] for found in samples_in(again)) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_store_gives_other_frames_each_epoch(tmp_path: Path, kind: str, contents: Contents) -> None:
    source, options = KINDS[kind](tmp_path)
    packing = PACKING.replace(frames=Frames(2, "random"))
    given: dict[str, Any] = {"seed": 5, **options, "cache_dir": str(tmp_path / "cache")}
    loader = PackedImageLoader(source, packing, batch_size=2, **given)
    Job(source=source, out=str(tmp_path / "out"), packing=packing, epochs=3, **given).run()
    folder = PackedImageLoader(tmp_path / "out", batch_size=2, seed=5)
    epochs = [list(map(contents, folder)) for _ in range(3)]
    assert epochs == [list(map(contents, loader)) for _ in range(3)]
    assert epochs[0] != epochs[1]
