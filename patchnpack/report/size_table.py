"""Tables of image sizes, CSV or parquet: what `report` reads where there are no shards yet."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from patchnpack.loaders.errors import MAX_PIXELS
from patchnpack.loaders.index.index_file import is_index
from patchnpack.loaders.shards.arrow_values import can_hold_images, holds_lists_of_images, plain_type, plain_values
from patchnpack.packer import Rows

# n rows of a table

# Names of the two columns in any case, the first pair that a table has: the usual one, then those of the published
# metadata of large data sets.
PAIRS = (("width", "height"), ("w", "h"), ("image_width", "image_height"), ("original_width", "original_height"))
COUNT = "count"
_CSV = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
_HEAD = 1 << 16  # bytes that hold the first line of a table
_MAX_IMAGES = 200_000_000  # a report of so many takes about 20 GB


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeTable:
    """The images of one or several tables.

    Attributes:
        width, height: int64 (n,), in pixels.
        too_large: images left out because a loader refuses so many pixels.
        counted: whether some table gives the number of images of each size.
    """

    width: np.ndarray
    height: np.ndarray
    too_large: int
    counted: bool

    def rows(self, seed: int | None) -> Rows:
        """The images in the order of the table, or shuffled with a seed."""
        rows = Rows.of_sizes(self.width, self.height)
        return rows if seed is None else rows.take(np.random.default_rng(seed).permutation(len(rows)))


def are_size_tables(names: Sequence[str]) -> bool:
    """Whether the sources are tables of sizes: CSV files, or parquet files with such columns and no images.

    Raises:
        ValueError: some are, and some are not.
    """
    tables = [name for name in names if _is_table(name)]
    if tables and len(tables) < len(names):
        other = next(name for name in names if name not in tables)
        raise ValueError(f"{tables[0]!r} is a table of sizes and {other!r} is not; give tables or shards, not both")
    return bool(tables)


def read_size_tables(paths: Sequence[str]) -> SizeTable:
    """Read tables with one row per image, one after another.

    A table needs the columns width and height, in pixels (or another pair of `PAIRS`, in any case). With a column
    `count`, a row stands for so many images of its size.

    Raises:
        FileNotFoundError: a table does not exist.
        ValueError: a table cannot be read, is empty or lacks a column, or a size or count is not a whole number of at
            least 1.
    """
    parts, counted = [], False
    for path in paths:
        names, count_name = _columns(_names(path), path)
        table = _read(path, [*names, *count_name])
        if not table.num_rows:
            raise ValueError(f"table {path!r} has no rows; give at least one image")
        width, height = (_whole(table, name, path) for name in names)
        for name in count_name:
            counted, count = True, _whole(table, name, path)
            if (images := sum(count.tolist())) > _MAX_IMAGES:
                raise ValueError(
                    f"column {name!r} of {path!r} counts {images:,} images; a report takes at most {_MAX_IMAGES:,}: "
                    "divide the counts"
                )
            width, height = np.repeat(width, count), np.repeat(height, count)
        parts.append(np.stack([width, height]))
    width, height = np.concatenate(parts, axis=1)
    fits = width <= MAX_PIXELS // height
    if not fits.any():
        raise ValueError(
            f"all {len(width):,} images of {paths[0]!r} have more than {MAX_PIXELS:,} pixels, the loader's limit, the "
            f"first {width[0]}x{height[0]}; give widths and heights in pixels"
        )
    return SizeTable(width=width[fits], height=height[fits], too_large=int((~fits).sum()), counted=counted)


def _is_table(name: str) -> bool:
    if name.lower().endswith(_CSV):
        return True
    if not name.lower().endswith(".parquet") or not os.path.isfile(name) or is_index(name):
        return False
    try:
        schema = pq.read_schema(name)
    except (pa.ArrowException, OSError):
        return False  # a damaged shard: reading the shards says so
    return _has_pair(schema.names) and not any(
        can_hold_images(field.type) or holds_lists_of_images(field.type) or pa.types.is_struct(field.type)
        for field in schema
    )


def _names(path: str) -> list[str]:
    """The names of a table's columns."""
    if "://" in path:
        raise ValueError(f"table {path!r} is remote; copy it to this machine, and give its path")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"table {path!r} does not exist in {Path.cwd()}; correct the path")
    with _readable(path):
        if path.lower().endswith(".parquet"):
            return list(pq.read_schema(path).names)
        with _opened(path) as stream, pa.csv.open_csv(stream, *_options(path)) as opened:
            return list(opened.schema.names)


def _read(path: str, names: Sequence[str]) -> pa.Table:
    """The named columns; those of a CSV file as text, so that an error can show what the file says."""
    with _readable(path):
        if path.lower().endswith(".parquet"):
            return pq.read_table(path, columns=names)
        convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), include_columns=names, strings_can_be_null=False
        )
        with _opened(path) as stream:
            return pa.csv.read_csv(stream, *_options(path), convert_options=convert)


def _opened(path: str) -> pa.NativeFile:
    """The text of a table; whether it is compressed is seen from its first bytes, not from its name."""
    with open(path, "rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
    return pa.input_stream(path, compression="gzip" if is_compressed else None)


def _options(path: str) -> tuple[pa.csv.ReadOptions, pa.csv.ParseOptions]:
    """How a table is written: its encoding, the lines before its columns, and what separates these.

    A spreadsheet may write semicolons or tabs into a .csv file, UTF-16, and a first line such as `sep=;`.
    """
    with _opened(path) as stream:
        head = stream.read(_HEAD)
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    first, _, others = head.decode(encoding, "replace").partition("\n")
    told = re.fullmatch(r"sep=(.)\s*", first)
    line = re.split("[\r\n]", others if told else first)[0]
    usual = "\t" if ".tsv" in Path(path.lower()).suffixes else ","
    delimiter = next(
        (mark for mark in (usual, ",", ";", "\t") if _has_pair([name.strip(' "') for name in line.split(mark)])), usual
    )
    read = pa.csv.ReadOptions(encoding=encoding if encoding == "utf-16" else "utf8", skip_rows=1 if told else 0)
    return read, pa.csv.ParseOptions(delimiter=told[1] if told else delimiter, newlines_in_values=True)


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise ValueError(
            f"table {path!r} cannot be read: {error}; its first line must name the columns, such as width,height, and "
            "each further line describe one image"
        ) from error


def _plain(name: str) -> str:
    return name.strip().lower()


def _has_pair(names: Sequence[str]) -> bool:
    plain = set(map(_plain, names))
    return any(plain.issuperset(pair) for pair in PAIRS)


def _columns(names: Sequence[str], path: str) -> tuple[list[str], list[str]]:
    """The columns of widths and heights, and the column of counts if there is one, as the table spells them."""
    plain = list(map(_plain, names))
    for pair in PAIRS:
        if all(name in plain for name in pair):
            for name in (*pair, COUNT):
                if plain.count(name) > 1:
                    raise ValueError(
                        f"table {path!r} has {plain.count(name)} columns named {name!r}; leave one of them"
                    )
            counts = [names[plain.index(COUNT)]] if COUNT in plain else []
            return [names[plain.index(name)] for name in pair], counts
    others = ", or ".join(" and ".join(pair) for pair in PAIRS[1:])
    raise ValueError(
        f"table {path!r} has the columns {', '.join(map(repr, names))}, but not width and height (or {others}); name "
        "these columns in its first line, separated by commas, semicolons or tabs"
    )


def _whole(table: pa.Table, name: str, path: str) -> np.ndarray:
    """A column as int64 (n,), each a whole number of at least 1."""
    column = pa.chunked_array([plain_values(chunk) for chunk in table[name].chunks], plain_type(table[name].type))
    column = column.combine_chunks()
    kind = column.type
    if not any(test(kind) for test in (*_NUMBERS, *_TEXTS)):
        raise ValueError(f"column {name!r} of table {path!r} holds {kind}; it must hold whole numbers")
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    # Tools that know missing values write whole numbers as 640.0.
    whole = pc.fill_null(pc.match_substring_regex(text, r"^0*[1-9][0-9]{0,17}(\.0*)?$"), False)
    if not pc.all(whole).as_py():
        row = whole.index(False).as_py()
        raise ValueError(
            f"row {row + 1:,} of table {path!r} has {column[row].as_py()!r} in column {name!r}; it must be a whole "
            "number of at least 1: correct the row or leave it out"
        )
    return np.asarray(pc.replace_substring_regex(text, r"\..*", "").cast(pa.int64()))
