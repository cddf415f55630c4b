"""Each Arrow type as labels, extras, images and keys of a parquet shard."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchnpack.loaders import PackedImageLoader, scan
from patchnpack.loaders.shards.arrow_values import encode
from tests.loaders.shards.tables import IMAGE, JPEG, OTHER, PACKING, load, write

D = decimal.Decimal
NAN = float("nan")

LABELS: dict[str, tuple[pa.Array, list[int]]] = {
    "int8": (pa.array([3, None, 0], pa.int8()), [3, -100, 0]),
    "uint64": (pa.array([3, None, 0], pa.uint64()), [3, -100, 0]),
    "float64": (pa.array([3.0, None, NAN]), [3, -100, -100]),
    "float32": (pa.array([3.0, NAN, 0.0], pa.float32()), [3, -100, 0]),
    "float16": (pa.array(np.array([3, NAN, 0], np.float16)), [3, -100, 0]),
    "bool": (pa.array([True, None, False]), [1, -100, 0]),
    "decimal128": (pa.array([D("3.00"), None, D("0")], pa.decimal128(5, 2)), [3, -100, 0]),
    "decimal256": (pa.array([D("3"), None, D("0")], pa.decimal256(50, 0)), [3, -100, 0]),
    "string": (pa.array(["3", None, " 0\n"]), [3, -100, 0]),
    "large_string": (pa.array(["3", None, "0"], pa.large_string()), [3, -100, 0]),
    "string_view": (pa.array(["3", None, "0"], pa.string_view()), [3, -100, 0]),
    "binary": (pa.array([b"3", None, b"0"]), [3, -100, 0]),
    "large_binary": (pa.array([b"3", None, b"0"], pa.large_binary()), [3, -100, 0]),
    "binary_view": (pa.array([b"3", None, b"0"], pa.binary_view()), [3, -100, 0]),
    "fixed_size_binary": (pa.array([b"3", None, b"0"], pa.binary(1)), [3, -100, 0]),
    "dictionary of strings": (pa.array(["3", None, "0"]).dictionary_encode(), [3, -100, 0]),
    "dictionary of numbers": (pa.array([3, None, 0]).dictionary_encode(), [3, -100, 0]),
    "dictionary of bytes": (pa.array([b"3", None, b"0"]).dictionary_encode(), [3, -100, 0]),
    "extension": (pa.array([1, None, 0], pa.bool8()), [1, -100, 0]),
    "null": (pa.nulls(3), []),
}


@pytest.mark.parametrize("kind", LABELS)
def test_label_of_any_arrow_type_that_holds_a_number_is_the_number(kind: str, tmp_path: Path) -> None:
    column, expected = LABELS[kind]
    path = write(tmp_path / "a.parquet", label=column, image=pa.array([{"bytes": JPEG, "path": "p"}] * 3, IMAGE))
    if not expected:
        with pytest.raises(ValueError, match="label 'label' is absent from all 3 samples"):
            load(path, tmp_path, label="label")
        return
    assert [image.label for image in load(path, tmp_path, label="label")] == expected


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["cat", None, "ant"]).dictionary_encode(),
        pa.array(["cat", None, "ant"], pa.string_view()),
        pa.array(["cat", None, "ant"], pa.large_string()),
        pa.array([b"cat", None, b"ant"], pa.binary(3)),
    ],
    ids=lambda column: str(column.type),
)
def test_class_names_of_any_text_type_are_classes(column: pa.Array, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", label=column, image=pa.array([{"bytes": JPEG, "path": "p"}] * 3, IMAGE))
    assert [image.label for image in load(path, tmp_path, label="label", classes=["ant", "cat"])] == [1, -100, 0]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.int64()),
        pa.list_(pa.float64()),
        pa.list_(pa.float16()),
        pa.large_list(pa.float32()),
        pa.list_(pa.float32(), 2),
        pa.list_view(pa.float32()),
        pa.list_(pa.decimal128(5, 2)),
        pa.list_(pa.bool_()),
        pa.fixed_shape_tensor(pa.float32(), (2,)),
    ],
    ids=str,
)
def test_list_of_any_type_is_a_target(kind: pa.DataType, tmp_path: Path) -> None:
    if isinstance(kind, pa.FixedShapeTensorType):
        storage = pa.array([[1, 0], None, [0, 1]], kind.storage_type)
        column: pa.Array = pa.ExtensionArray.from_storage(kind, storage)
    else:
        number = D if pa.types.is_decimal(kind.value_type) else kind.value_type.to_pandas_dtype()
        column = pa.array([[number(1), number(0)], None, [number(0), number(1)]], kind)
    images = load(write(tmp_path / "a.parquet", label=column), tmp_path, label="label")
    targets = np.stack([np.asarray(image.label) for image in images])
    assert targets.dtype == np.float32
    assert np.array_equal(targets, np.array([[1, 0], [NAN, NAN], [0, 1]], np.float32), equal_nan=True)


EXTRAS: dict[str, tuple[pa.Array, Any]] = {
    "text": (pa.array(["a"]), "a"),
    "string_view": (pa.array(["a"], pa.string_view()), "a"),
    "categorical": (pa.array(["a"]).dictionary_encode(), "a"),
    "whole float": (pa.array([3.0]), "3"),
    "float": (pa.array([0.25]), "0.25"),
    "infinity": (pa.array([float("inf")]), "inf"),
    "decimal": (pa.array([D("1.50")]), "1.50"),
    "bool": (pa.array([True]), "1"),
    "date32": (pa.array([datetime.date(2024, 1, 2)]), "2024-01-02"),
    "date64": (pa.array([datetime.date(2024, 1, 2)], pa.date64()), "2024-01-02"),
    "time": (pa.array([datetime.time(3, 4, 5)], pa.time64("us")), "03:04:05.000000"),
    "timestamp": (pa.array([0], pa.timestamp("ms")), "1970-01-01 00:00:00.000"),
    "timestamp, ns": (pa.array([1], pa.timestamp("ns", "UTC")), "1970-01-01 00:00:00.000000001Z"),
    "duration": (pa.array([5], pa.duration("ms")), "5"),
    "fixed_size_binary": (pa.array([b"\0\1"], pa.binary(2)), b"\0\1"),
    "binary_view": (pa.array([b"\0\1"], pa.binary_view()), b"\0\1"),
    "struct": (
        pa.array([{"a": 1, "b": [True], "c": b"\0", "d": D("1.5")}]),
        {"a": 1, "b": [True], "c": "AA==", "d": 1.5},
    ),
    "list of times": (pa.array([[1]], pa.list_(pa.timestamp("ns"))), ["1970-01-01 00:00:00.000000001"]),
    "list of categories": (pa.array([["a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))), ["a"]),
    "map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), [["a", 1]]),
    "uuid": (pa.array([b"\0" * 16], pa.uuid()), "00000000-0000-0000-0000-000000000000"),
    "NaN": (pa.array([NAN]), None),
    "null": (pa.nulls(1), None),
}


@pytest.mark.parametrize("kind", EXTRAS)
def test_extra_of_any_arrow_type_is_its_value(kind: str, tmp_path: Path) -> None:
    column, expected = EXTRAS[kind]
    # A second row, so that a value that is absent leaves the member in the index.
    full = pa.table(
        {"image": [{"bytes": JPEG, "path": "p"}], "x": column}, pa.schema([("image", IMAGE), ("x", column.type)])
    )
    pq.write_table(full, tmp_path / "a.parquet")
    if expected is None:
        assert "x" not in scan(tmp_path / "a.parquet").members
        return
    loader = PackedImageLoader(
        str(tmp_path / "a.parquet"), PACKING, batch_size=1, extras=["x"], cache_dir=tmp_path / "cache"
    )
    assert next(iter(loader)).extras["x"][0] == [expected]


def _images(kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array([JPEG, None, OTHER]).dictionary_encode()
    if pa.types.is_fixed_size_binary(kind):
        return pa.array([JPEG, None, JPEG], kind)
    if pa.types.is_struct(kind):
        fields = [{"bytes": JPEG, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": OTHER, "path": None}]
        return pa.array(fields, kind)
    return pa.array([JPEG, None, OTHER], kind)


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.binary(len(JPEG)),
        pa.dictionary(pa.int32(), pa.binary()),
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        pa.struct([("bytes", pa.large_binary()), ("path", pa.string())]),
        pa.struct([("bytes", pa.binary_view()), ("path", pa.string())]),
        pa.struct([("path", pa.large_string()), ("bytes", pa.binary())]),
    ],
    ids=str,
)
def test_images_of_any_type_of_bytes_are_loaded_and_rows_without_bytes_are_counted(
    kind: pa.DataType, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.parquet", image=_images(kind))
    index = scan(path, image="image")
    assert index.width.tolist() == [40, 40 if pa.types.is_fixed_size_binary(kind) else 24]
    assert index.without_image.tolist() == [1]
    assert len(load(path, tmp_path, image="image")) == 2


@pytest.mark.parametrize(
    ("column", "keys"),
    [
        (pa.array(["a", None]), ["a", "s/00000001"]),
        (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([7, 8]), ["7", "8"]),
        (pa.array([7.0, NAN]), ["7", "s/00000001"]),
        (pa.array([b"a", b"\xff"]), ["a", "\\xff"]),
        (pa.array([b"ab", b"cd"], pa.binary(2)), ["ab", "cd"]),
        (pa.array([D("7"), D("8.5")], pa.decimal128(5, 1)), ["7", "8.5"]),
        (pa.array([[1], [2]]), ["[1]", "[2]"]),
        (pa.array([b"\0" * 16] * 2, pa.uuid()), ["00000000-0000-0000-0000-000000000000"] * 2),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_keys_of_any_arrow_type_are_text(column: pa.Array, keys: list[str], tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({"__key__": column, "image": [JPEG] * 2}), path)
    assert list(scan(path).keys) == keys


def test_text_that_is_not_utf8_is_a_bad_image_and_not_the_end(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(pa.string(), 2, [None, *pa.array([b"\xff", b"a"]).buffers()[1:]])
    path = write(tmp_path / "a.parquet", text=text)
    assert encode(text) == [b"\xff", b"a"]
    loader = PackedImageLoader(path, PACKING, batch_size=1, extras=["text"], cache_dir=tmp_path / "cache")
    assert sum(batch.num_images for batch in loader) == 1
    assert "its .text member cannot be read" in loader.stats()["bad"][0]["reason"]
