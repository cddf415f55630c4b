"""Listing a table of paths: CSV, TSV, JSONL or parquet with a column that names image files."""

from __future__ import annotations

import os
import posixpath
import re
from array import array
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from patchnpack.loaders.files.listing import Listing, Values, positions, stat_files
from patchnpack.loaders.files.texts import Texts
from patchnpack.loaders.imaging.formats import EXTENSIONS, VIDEO_EXTENSIONS
from patchnpack.loaders.remote.addresses import is_http, is_remote, name_of, redact, without_query
from patchnpack.loaders.shards.arrow_values import encode, encoding_of, plain_type, plain_values
from patchnpack.loaders.shards.folders.image_folder import extension_of
from patchnpack.loaders.shards.member_names import find_member, member_names
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.tar import IMAGE

# n rows, f files

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")  # of files that are tables of paths by their name alone
_GZIP = ".gz"
_USUAL = ("path", "file", "file_name", "filename", "file_path", "filepath", "image_path", "image", "url", "image_url")
_SIZES = {"width", "height"}
_HEAD = 1 << 16  # bytes that hold the first line of a CSV


def suffix_of(name: str) -> str:
    """Return the suffix of a path or an address, in lower case; of a file that gzip has compressed, the one before.

    >>> suffix_of("https://host/Train.CSV?key=1"), suffix_of("train.jsonl.gz")
    ('.csv', '.jsonl')
    """
    return posixpath.splitext(name_of(name).lower().removesuffix(_GZIP))[1]


def list_table(name: str, path: str | None, root: str | None, opener: ShardOpener, *, lists: bool = False) -> Listing:
    """List the files that a table names; none is opened.

    The key of an image is its path as the table gives it, without secrets of an address; if several rows give one path,
    those after the first get "#2", "#3" and so on. The other columns are members. A cell that is null or "" is no
    member. With `lists`, the column may hold lists of paths, and the images of a row are one sample.

    Args:
        name: the table, an absolute path or an address.
        path: its column of paths; None is the only one with a usual name, such as "path" or "file_name".
        root: the folder from which paths count, absolute or an address; None is the folder of the table.
        opener: reads remote tables, and asks for the sizes of remote files.

    Raises:
        FileNotFoundError: files do not exist.
        ValueError: the table cannot be read, has no such column or no path, or a path leads out of the root.
    """
    table = _read(name, opener)
    members = _member_names(table, name)
    column = members.pop(chosen := _path_column(list(members), path, name))
    texts, rows = _paths(table.column(chosen), f"column {chosen!r} of {redact(name)!r}", lists=lists)
    if not len(rows):
        raise ValueError(f"no row of {redact(name)!r} has a path in its column {column!r}; name another with path=")
    used = np.unique(rows)
    coded = texts.dictionary_encode()
    number = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    home = folder_of(name) if root is None else root
    paths = Texts.of([_checked(text, home, root is not None, name) for text in coded.dictionary.to_pylist()])
    nbytes, versions = stat_files(home, paths, opener, name)
    columns = _image_members(paths, nbytes, number)
    values, kinds = Values(), dict[str, str]()
    for original, member in members.items():
        if member in columns:
            raise ValueError(
                f"table {redact(name)!r} has a column {original!r}, which is what the images that end in .{member} are "
                "called as members; rename the column"
            )
        columns[member] = _positions(table.column(original), rows, values, len(paths))
        if encoding := encoding_of(table.schema.field(original).type):
            kinds[member] = encoding
    return Listing(
        name=name,
        root=home,
        paths=paths,
        nbytes=nbytes,
        versions=versions,
        keys=_keys(coded.dictionary, number),
        number=number,
        members=columns,
        kinds=kinds,
        values=values.build(),
        image=IMAGE,
        without_image=len(table) - len(used),
        unused=0,
        examples=(f"row {_first_missing(used)} of {name_of(name)}",) if len(used) < len(table) else (),
        samples=np.append(np.searchsorted(rows, used), len(rows)) if lists else None,
    )


def _paths(column: pa.ChunkedArray, title: str, *, lists: bool) -> tuple[pa.LargeStringArray, np.ndarray]:
    """Return the paths in a column of paths, or of lists of paths if `lists`, and the row of each, int64.

    Raises:
        ValueError: the column holds something else.
    """
    kind = plain_type(column.type)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    inner = plain_type(kind.value_type) if is_list else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner)):
        raise ValueError(f"{title} holds {kind}, not paths; name another with path=")
    if is_list and not lists:
        raise ValueError(
            f"{title} holds lists of paths ({kind}); give sample='members' to make each row a sample of several "
            "images, or name another column with path="
        )
    values = pa.concat_arrays([plain_values(chunk) for chunk in column.chunks] or [pa.array([], kind)])
    rows = np.arange(len(values))
    if is_list:
        rows = pc.list_parent_indices(values).to_numpy(zero_copy_only=False).astype(np.int64)
        values = plain_values(pc.list_flatten(values))
    texts = values.cast(pa.large_string())
    present = np.flatnonzero(pc.fill_null(pc.not_equal(texts, ""), False).to_numpy(zero_copy_only=False))
    return texts.take(pa.array(present)), rows[present]


def _first_missing(used: np.ndarray) -> int:
    """Return the first row that is not among these, which are sorted."""
    gaps = np.flatnonzero(used != np.arange(len(used)))
    return int(gaps[0]) if len(gaps) else len(used)


def _read(name: str, opener: ShardOpener) -> pa.Table:
    """Read the table; every column of a CSV is text."""
    suffix = suffix_of(name)
    if not is_remote(name) and not os.path.isfile(name):
        what = "is a folder" if os.path.isdir(name) else "does not exist"
        raise FileNotFoundError(f"table {name!r} {what}; name a CSV, TSV, JSONL or parquet file")
    fd = opener.fetch(name) if is_remote(name) else os.open(name, os.O_RDONLY)
    try:
        with pa.OSFile(f"/dev/fd/{fd}") as stored:
            is_compressed = name_of(name).lower().endswith(_GZIP)
            file = pa.BufferReader(pa.CompressedInputStream(stored, "gzip").read()) if is_compressed else stored
            if suffix == ".parquet":
                return pq.read_table(file)
            if suffix in (".jsonl", ".ndjson"):
                return pyarrow.json.read_json(file, parse_options=pyarrow.json.ParseOptions(newlines_in_values=False))
            return _read_csv(file, "\t" if suffix == ".tsv" else ",")
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"table {redact(name)!r} cannot be read: {error}; write it again") from error
    finally:
        os.close(fd)


def _read_csv(file: pa.NativeFile, delimiter: str) -> pa.Table:
    """Read a CSV as text; a spreadsheet may separate columns by semicolons or tabs, and write UTF-16."""
    head = file.read(_HEAD)
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf8"
    first = re.split("[\r\n]", head.decode(encoding, "replace"))[0]
    if delimiter not in first:
        delimiter = next((mark for mark in (",", ";", "\t") if mark in first), delimiter)
    file.seek(0)
    read = pyarrow.csv.ReadOptions(encoding=encoding)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with pyarrow.csv.open_csv(file, read, parse) as reader:
        names = reader.schema.names
    file.seek(0)
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.large_string()), strings_can_be_null=False
    )
    return pyarrow.csv.read_csv(file, read, parse, convert)


def _member_names(table: pa.Table, name: str) -> dict[str, str]:
    """The member name of each column; ValueError if two columns have one name."""
    repeated = sorted(column for column, times in Counter(table.column_names).items() if times > 1)
    if repeated:
        raise ValueError(f"table {redact(name)!r} has several columns named {repeated[0]!r}; rename all but one")
    return member_names(table.column_names)


def _path_column(columns: list[str], path: str | None, name: str) -> str:
    """The column of paths."""
    listed = ", ".join(columns)
    if path is not None:
        found = find_member(path, columns)
        if found is None:
            raise ValueError(
                f"table {redact(name)!r} has no column {path!r}; its columns are {listed}: name one, path="
            )
        return found
    usual = [column for column in columns if column.lower() in _USUAL]
    if len(usual) == 1:
        return usual[0]
    if not usual and {column.lower() for column in columns} >= _SIZES:
        raise ValueError(
            f"table {redact(name)!r} has the columns {listed}, none of them a path: a table of sizes serves "
            "`patchnpack report` only; add a column of paths, and name it with path="
        )
    which = f"has several columns that may be paths ({', '.join(usual)})" if usual else "has no column 'path'"
    raise ValueError(f"table {redact(name)!r} {which}; its columns are {listed}: name the one of the paths with path=")


def folder_of(name: str) -> str:
    """Return the folder of a table, a path or an address."""
    return without_query(name).rpartition("/")[0] if is_remote(name) else os.path.dirname(name)


def _checked(text: str, home: str, has_root: bool, name: str) -> str:
    """Return a path below `home`, or an absolute one or an address where the table may give them.

    Raises:
        ValueError: it leads out of the root.
    """
    remedy = "write paths below it, or give another root="
    if is_remote(text):
        if has_root and not text.startswith(home.rstrip("/") + "/"):
            raise ValueError(
                f"table {redact(name)!r} names {redact(text)!r}, which is not below root={home!r}; {remedy}"
            )
        return text
    path = posixpath.normpath(text)
    if posixpath.isabs(path):
        if not has_root and not is_remote(home):
            return path
        if not path.startswith(home.rstrip("/") + "/"):
            raise ValueError(
                f"table {redact(name)!r} names {text!r}, which is not below root={redact(home)!r}; {remedy}"
            )
        return posixpath.relpath(path, home)
    if path == ".." or path.startswith("../"):
        what = "root=" if has_root else "the folder of the table, "
        raise ValueError(f"table {redact(name)!r} names {text!r}, which leads out of {what}{redact(home)!r}; {remedy}")
    return text if is_http(home) else path


def _keys(unique: pa.Array, number: np.ndarray) -> Texts[str]:
    """The key of each row: its path, followed by "#2", "#3" ... from the second row of a path on."""
    shown = pa.array([redact(path) if is_remote(path) else path for path in unique.to_pylist()], pa.large_string())
    keys = shown.take(pa.array(number))
    times = np.bincount(number)
    repeated = np.flatnonzero(times[number] > 1)
    if not len(repeated):
        return Texts(keys)
    texts, seen = keys.to_pylist(), Counter[int]()
    for row in repeated.tolist():
        seen[int(number[row])] += 1
        if seen[int(number[row])] > 1:
            texts[row] = f"{texts[row]}#{seen[int(number[row])]}"
    return Texts.of(texts)


def _image_members(paths: Texts[str], nbytes: np.ndarray, number: np.ndarray) -> dict[str, np.ndarray]:
    """The image of each row as a member: by its extension, or as jpg if that is none of an image."""
    found = [extension_of(without_query(path)) for path in paths]
    known = (*EXTENSIONS, *VIDEO_EXTENSIONS)
    extensions = np.array([extension if extension in known else EXTENSIONS[0] for extension in found])[number]
    where = np.stack([number, nbytes[number]], 1)
    return {str(name): np.where((extensions == name)[:, None], where, -1) for name in np.unique(extensions)}


def _positions(column: pa.ChunkedArray, rows: np.ndarray, values: Values, files: int) -> np.ndarray:
    """Add the cells of these rows, int64 (n,), to the values; return where they are, int64 (n, 2)."""
    which, where, sizes = array("q"), array("q"), array("q")
    row = 0
    for chunk in column.take(pa.array(rows)).chunks:
        for first in range(0, len(chunk), 4096):
            for data in encode(chunk.slice(first, 4096)):
                if data:
                    which.append(row)
                    where.append(files + values.add(data))
                    sizes.append(len(data))
                row += 1
    return positions(which, where, sizes, len(rows))
