"""Parquet shards: heavy rows, names of columns that differ in case, and columns that hold no image in each row."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchnpack.loaders import PackedImageLoader, open_index, scan
from patchnpack.loaders.prepacking.job import Job
from patchnpack.loaders.shards import parquet
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.tar import IMAGE as ANY
from tests.loaders.shards.tables import IMAGE, JPEG, OTHER, PACKING, load, write

# Heavy rows


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Arrow refuses structs of more than 100,000 bytes at a time, as it does beyond 2 GiB; the rows of each read."""
    read: list[int] = []

    class Limited(pq.ParquetFile):  # type: ignore[misc]
        def iter_batches(self, rows: int, **options: Any) -> Iterator[pa.RecordBatch]:
            for batch in super().iter_batches(rows, **options):
                if pc.sum(pc.binary_length(pc.struct_field(batch.column("image"), "bytes"))).as_py() > 100_000:
                    raise pa.ArrowNotImplementedError(
                        "Nested data conversions not implemented for chunked array outputs"
                    )
                read.append(len(batch))
                yield batch

    monkeypatch.setattr(pq, "ParquetFile", Limited)
    return read


def write_sizes(path: Path, sizes: list[int]) -> str:
    """One row group of rows of these sizes."""
    images = [{"bytes": JPEG + bytes([i % 256]) * (size - len(JPEG)), "path": ""} for i, size in enumerate(sizes)]
    pq.write_table(pa.table({"image": pa.array(images, IMAGE)}), path, row_group_size=len(sizes), use_dictionary=False)
    return str(path)


def test_number_of_rows_per_read_follows_their_bytes(
    limited: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_BYTES", 100_000)
    sizes = [20_000 + i for i in range(100)]
    index = scan(write_sizes(tmp_path / "a.parquet", sizes))
    assert index.nbytes.tolist() == sizes
    assert set(limited) == {4}


def test_rows_that_are_heavier_than_the_mean_are_read_fewer_at_a_time(limited: list[int], tmp_path: Path) -> None:
    sizes = [1_000] * 150 + [60_000] * 40 + [1_000] * 33
    path = write_sizes(tmp_path / "a.parquet", sizes)
    index = scan(path)
    assert index.nbytes.tolist() == sizes
    assert list(index.keys) == [f"a/{row:08d}" for row in range(223)]
    reader = index.reader(ShardOpener(tmp_path / "cache"))
    for row in range(223):
        assert reader.read(0, int(index.offset[row]), sizes[row]).startswith(JPEG + bytes([row % 256]))


def test_row_beyond_the_limit_is_an_error_that_says_so(limited: list[int], tmp_path: Path) -> None:
    path = write_sizes(tmp_path / "a.parquet", [1_000] * 70 + [200_000])
    with pytest.raises(
        ValueError, match=r"a.parquet' has more than 2 GiB in one column of row 70 of row group 0, .*rows"
    ):
        scan(path)


def test_other_errors_of_arrow_are_not_taken_for_heavy_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Iterator[pa.RecordBatch]:
        raise pa.ArrowNotImplementedError("Unsupported encoding: 99")

    path = write(tmp_path / "a.parquet", x=[1])
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with pytest.raises(ValueError, match=r"a.parquet' cannot be read to its end: Unsupported encoding: 99"):
        scan(path)


def scan_in_a_process(path: Path, tmp_path: Path) -> tuple[int, int]:
    """The images of a shard, and by how many bytes scanning and reading one grow a process."""
    code = f"""
import json
from patchnpack.loaders import scan
def peak(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.tar import IMAGE as ANY
import pyarrow.parquet, pyarrow.dataset
before = peak()
index = scan({str(path)!r})
index.reader(ShardOpener({str(tmp_path / "cache")!r})).read(0, 0, 100)
print(json.dumps([len(index), peak() - before]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images, grown = json.loads(done.stdout)
    return images, grown


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.parquet"
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (600, 600, 3), np.uint8)).save(file, "PNG")
    image = pa.chunked_array([pa.array([{"bytes": file.getvalue(), "path": ""}], IMAGE)] * 320)
    pq.write_table(pa.table({"image": image}), path, row_group_size=320, compression="none", use_dictionary=False)
    assert pq.read_metadata(path).num_row_groups == 1
    assert path.stat().st_size > 300 << 20
    images, grown = scan_in_a_process(path, tmp_path)
    assert images == 320
    assert grown < 150 << 20


@pytest.mark.soak
def test_row_group_of_256_rows_of_9_mib_is_read_in_flat_memory(tmp_path: Path) -> None:
    blob = JPEG + np.random.default_rng(0).integers(0, 256, 9 << 20, np.uint8).tobytes()
    image = pa.chunked_array([pa.array([{"bytes": blob, "path": ""}], IMAGE)] * 256)
    pq.write_table(pa.table({"image": image}), tmp_path / "a.parquet", row_group_size=256)
    images, grown = scan_in_a_process(tmp_path / "a.parquet", tmp_path)
    assert images == 256
    assert grown < 400 << 20


@pytest.mark.soak
def test_row_of_more_than_2_gib_is_an_error_that_says_so(tmp_path: Path) -> None:
    blob = b"\xff" * (40 << 20)  # a dictionary holds it once
    several = pa.ListArray.from_arrays(pa.array([0, 60], pa.int32()), pa.array([0] * 60).cast(pa.int32()))
    values = pa.DictionaryArray.from_arrays(several.values, pa.array([blob]))
    table = pa.table({"image": [JPEG], "pages": pa.ListArray.from_arrays(several.offsets, values)})
    pq.write_table(table, tmp_path / "a.parquet", dictionary_pagesize_limit=1 << 30, store_schema=False)
    with pytest.raises(ValueError, match="has more than 2 GiB in one column of row 0 of row group 0"):
        scan(tmp_path / "a.parquet")


# Names of columns


def test_columns_that_differ_in_case_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", label=[1, 2], Label=["x", "y"], Other=[5, 6])
    assert [image.label for image in load(path, tmp_path, label="label")] == [1, 2]
    classes = {"label": "Label", "classes": ["y", "x"]}
    assert [image.label for image in load(path, tmp_path, **classes)] == [1, 0]
    assert [image.label for image in load(path, tmp_path, label="other")] == [5, 6]
    loader = PackedImageLoader(
        path, PACKING, batch_size=1, extras=["Label", "label", "OTHER"], cache_dir=tmp_path / "cache"
    )
    extras = next(iter(loader)).extras
    assert extras == {"Label": [["x", "y"]], "label": [["1", "2"]], "other": [["5", "6"]]}
    message = r"'LABEL' could be 'Label' and 'label', which differ only in case; spell the one that you mean exactly"
    for options in ({"label": "LABEL"}, {"extras": ["LABEL"]}):
        with pytest.raises(ValueError, match=message):
            load(path, tmp_path, **options)


def test_image_columns_that_differ_in_case_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [JPEG], "Image": [OTHER]}), path)
    for _ in range(2):  # the second time from the cached index
        for name, width in (("image", 40), ("Image", 24)):
            opener = ShardOpener(tmp_path / "cache")
            assert open_index(str(path), image=name, opener=opener).width.tolist() == [width]
            assert len(load(str(path), tmp_path, image=name)) == 1
    with pytest.raises(ValueError, match=r"image='IMAGE': 'IMAGE' could be 'Image' and 'image'"):
        scan(path, image="IMAGE")
    index = scan(path, image="Image")
    with pytest.raises(ValueError, match="the index was made with image='Image', but this loader has image='image'"):
        open_index(str(path), index=index, image="image")


def test_extras_that_differ_in_case_survive_packing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", label=[1, 2], Label=["x", "y"])
    for store in ("images", "patches"):
        out = str(tmp_path / store)
        index = scan(path)
        Job(source=index, out=out, packing=PACKING, store=store, extras=["Label"]).run()
        loader = PackedImageLoader(out, batch_size=1, extras=["Label"])
        assert next(iter(loader)).extras == {"Label": [["x", "y"]]}


def test_two_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([[JPEG], [1], [2]], names=["image", "x", "x"]), path)
    with pytest.raises(ValueError, match=r"a.parquet' has 2 columns named 'x'; rename or leave out all but one"):
        scan(path)


# Columns that hold no image in each row


@pytest.mark.parametrize("image", [ANY, "Images"])
@pytest.mark.parametrize("kind", [pa.list_(IMAGE), pa.large_list(pa.binary()), pa.list_(IMAGE, 2)], ids=str)
def test_list_of_images_is_an_error_with_a_remedy_that_works(kind: pa.DataType, image: str, tmp_path: Path) -> None:
    pages = [{"bytes": JPEG, "path": None}, {"bytes": OTHER, "path": None}]
    pages = pages if pa.types.is_struct(kind.value_type) else [page["bytes"] for page in pages]  # type: ignore[misc]
    table = pa.table({"Images": pa.array([pages], kind), "label": [3]})
    pq.write_table(table, tmp_path / "a.parquet")
    message = r"column 'Images' of shard '.*a.parquet' holds several images per row .*one row per image, .*'Images'"
    with pytest.raises(ValueError, match=message):
        scan(tmp_path / "a.parquet", image=image)
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(tmp_path / "a.parquet").explode("Images")
    frame.to_parquet(tmp_path / "b.parquet")
    assert [image.label for image in load(str(tmp_path / "b.parquet"), tmp_path, label="label")] == [3, 3]


def test_text_column_named_as_the_images_is_an_error_with_the_columns_that_could_be(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": ["a.jpg"], "label": [1]}), path)
    with pytest.raises(ValueError, match=r"'image' of shard '.*' holds string, which cannot be .*patchnpack shard"):
        scan(path, image="image")
    pq.write_table(pa.table({"image": ["a.jpg"], "data": [JPEG]}), path)
    with pytest.raises(ValueError, match=r"'image' of shard .* holds string, .*; image= can name 'data'"):
        scan(path, image="image")
    assert len(scan(path)) == 1
