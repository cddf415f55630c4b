"""Index files: parquet with one row group per shard, or Arrow, which is memory-mapped."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchnpack.loaders.imaging.formats import FORMATS
from patchnpack.loaders.index.file_columns import file_columns, tables_of
from patchnpack.loaders.index.sample_table import SampleTable
from patchnpack.loaders.index.table import Index, Texts
from patchnpack.loaders.remote.addresses import check_not_file, redact
from patchnpack.loaders.shards.parquet import INDEX_KEY
from patchnpack.packer.files import absent, atomic_write

# n rows, s shards

VERSION = 7
_KEY = INDEX_KEY
_MEMBER = "member."
_BY_SHARD = {
    "starts": np.int64,
    "shard_bytes": np.int64,
    "without_image": np.int64,
    "unused_members": np.int64,
    "outside": np.uint64,
}
_COLUMNS: dict[str, pa.DataType] = {
    "keys": pa.large_string(),
    "offset": pa.int64(),
    "nbytes": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "orientation": pa.uint8(),
    "format": pa.uint8(),
    "pages": pa.int32(),
    "bands": pa.int32(),
    "dtype": pa.uint8(),
    "digest": pa.uint64(),
    "reasons": pa.large_string(),
    "cls": pa.large_string(),
}


def save_index(index: Index, path: str | os.PathLike[str], *, home: str | None = None) -> None:
    """Write an index to a file, whole or not at all.

    Shards in the index's folder or below are stored as relative paths, so the folder can be moved. If an address of a
    shard holds a password or a signature, only the file's owner can read the file.

    Args:
        index: the index.
        path: a .parquet file, or an .arrow file, which is several times as large and which `load_index` maps into
            memory: use .arrow where many processes share an index that is large for the machine's memory.
        home: address of the folder that the file will be moved to, if not the folder of `path`.

    Raises:
        ValueError: the path has another suffix.
    """
    path = Path(path)
    check_suffix(path)
    base = path.parent if home is None else home
    roots = [None if table is None else _relative(table.root, base) for table in index.files]
    table = index_table(index, [_relative(shard, base) for shard in index.shards], roots)
    addresses = [
        path for table in index.files if table is not None for path in (table.root, *table.paths) if "://" in path
    ]
    private = any(redact(address) != address for address in (*index.shards, *addresses))
    if path.suffix == ".arrow":

        def write_arrow(file: Any) -> None:
            with pa.ipc.new_file(file, table.schema) as writer:
                batches = table.to_batches()
                for batch in batches if len(batches) < 2 else table.combine_chunks().to_batches():
                    writer.write_batch(batch)

        atomic_write(path, write_arrow, private=private)
        return

    def write_parquet(file: Any) -> None:
        with pq.ParquetWriter(file, table.schema, compression="zstd", write_statistics=False) as writer:
            for low, high in zip(index.starts[:-1].tolist(), index.starts[1:].tolist(), strict=True):
                writer.write_table(table.slice(low, high - low), row_group_size=max(1, high - low))

    atomic_write(path, write_parquet, private=private)


def load_index(path: str | os.PathLike[str]) -> Index:
    """Read an index that `save_index` wrote.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not an index, has another version, or is damaged.
    """
    path = Path(path)
    check_suffix(path)
    if not path.exists():
        check_not_file(os.fspath(path))
        raise FileNotFoundError(
            f"index {str(path)!r} {absent(str(path))}; make it with: patchnpack index SHARDS -o {path}"
        )
    return read_index(str(path), str(path), path.suffix, path.parent)


def read_index(file: str, name: str, suffix: str, home: str | Path) -> Index:
    """Read the index in a local file.

    Args:
        file: path of the file.
        name: path or address of the index, for error messages.
        suffix: suffix of the name, ".parquet" or ".arrow".
        home: folder of the index, from which relative paths of shards count; a string is an address.

    Raises:
        ValueError: the file is not an index, has another version, or is damaged.
    """
    try:
        if suffix == ".arrow":
            table = pa.ipc.open_file(pa.memory_map(file)).read_all()
        else:
            with pq.ParquetFile(file) as opened:
                table = opened.read()
        about = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"index {name!r} cannot be read ({error}); {_remedy(name)}") from error
    if about is None:
        raise ValueError(f"{name!r} is not an index of shards; {_remedy(name)}")
    if about.get("version") != VERSION:
        found = about.get("version")
        raise ValueError(f"index {name!r} has version {found}, but this release reads {VERSION}; {_remedy(name)}")
    try:
        shards = [_absolute(shard, home) for shard in about["shards"]]
        if isinstance(home, str):
            # The index may have been made beside local shards and uploaded: their mtimes do not apply to the copies.
            about["versions"] = ["" if version.isdecimal() else version for version in about["versions"]]
        if about.get("roots"):
            about["roots"] = [root if root is None else _absolute(root, home) for root in about["roots"]]
        return index_of_table(table, about, shards)
    except (KeyError, TypeError) as error:
        raise ValueError(f"index {name!r} lacks {error}; {_remedy(name)}") from error


def is_index(path: str, suffix: str | None = None) -> bool:
    """Whether a file is an index and not a parquet shard. `suffix` overrides the suffix of `path`."""
    suffix = suffix or Path(path).suffix
    if suffix == ".arrow":
        return True
    try:
        return suffix == ".parquet" and _KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def _remedy(name: str) -> str:
    return f"make it again: patchnpack index SHARDS -o {name}"


def check_suffix(path: Path) -> None:
    """Raise ValueError unless the suffix is one of an index file."""
    if path.suffix not in (".parquet", ".arrow"):
        raise ValueError(f"index {str(path)!r} ends in {path.suffix!r}; name it .parquet or .arrow")


def index_table(index: Index, shards: Sequence[str], roots: Sequence[str | None] = ()) -> pa.Table:
    """The index as a table, described by its schema's metadata; `shards` and `roots` are the names to store."""
    columns: dict[str, pa.Array] = {}
    for name, kind in _COLUMNS.items():
        column = getattr(index, name)
        columns[name] = column.column if isinstance(column, Texts) else pa.array(column, kind)
    for extension, ranges in index.members.items():
        columns[_MEMBER + extension] = pa.FixedSizeListArray.from_arrays(pa.array(ranges.reshape(-1)), 2)
    columns |= file_columns(index)
    columns |= {} if index.samples is None else index.samples.columns()
    about = {
        "version": VERSION,
        "image": index.image,
        "formats": FORMATS,
        "own_formats": index.formats,
        "shards": list(shards),
        "versions": index.versions,
        "examples": index.examples,
        "cls_member": index.cls_member,
        "kinds": index.kinds,
        "roots": list(roots),
        "sample": None if index.samples is None else index.samples.rule,
        **{name: getattr(index, name).tolist() for name in _BY_SHARD},
    }
    return pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about).encode()})


def index_of_table(table: pa.Table, about: dict[str, Any], shards: Sequence[str]) -> Index:
    """Build the index from a table of `index_table`.

    Args:
        table: the columns.
        about: the metadata of the table.
        shards: paths or addresses of the shards.

    Raises:
        KeyError, TypeError: a column or an entry of the metadata is missing.
    """

    def column(name: str) -> pa.Array:
        chunks = table.column(name).chunks
        # A single chunk is not copied: in an Arrow file, it is the mapped memory itself.
        return (
            chunks[0] if len(chunks) == 1 else pa.chunked_array(chunks, table.schema.field(name).type).combine_chunks()
        )

    def numbers(name: str) -> np.ndarray:
        values: np.ndarray = column(name).to_numpy(zero_copy_only=False)
        return values

    members = {
        name.removeprefix(_MEMBER): np.asarray(column(name).flatten().to_numpy()).reshape(-1, 2)
        for name in table.column_names
        if name.startswith(_MEMBER)
    }
    columns: dict[str, Any] = {
        name: Texts(column(name)) if pa.types.is_large_string(kind) else numbers(name)
        for name, kind in _COLUMNS.items()
    }
    rule = about["sample"]
    samples = None if rule is None else SampleTable.of_columns(rule, column, table.column_names)
    by_shard: dict[str, Any] = {name: np.array(about[name], kind) for name, kind in _BY_SHARD.items()}
    own = tuple(about.get("own_formats", ()))
    about = {name: about[name] for name in ("image", "cls_member", "kinds")} | {
        "files": tables_of(column, table.column_names, by_shard["starts"], about.get("roots", [])),
        "versions": tuple(about["versions"]),
        "examples": tuple(map(tuple, about["examples"])),
        "formats": own,
    }
    return Index(shards=tuple(shards), members=members, samples=samples, **about, **columns, **by_shard)


def _absolute(shard: str, home: str | Path) -> str:
    """The path or address of a shard in an index of the folder `home`; a string `home` is an address."""
    if "://" in shard or os.path.isabs(shard):
        return shard
    if shard == os.curdir:  # a folder of images that holds its index
        return home if isinstance(home, str) else os.path.join(*home.parts)
    return f"{home}/{shard}" if isinstance(home, str) else os.path.join(*home.parts, shard)


def _relative(shard: str, home: str | Path) -> str:
    """The shard relative to `home` if it is below, else its absolute path or address."""
    if "://" in shard:
        return os.curdir if shard == str(home) else shard.removeprefix(f"{home}/")
    absolute, folder = os.path.abspath(shard), os.path.abspath(home)
    return os.path.relpath(absolute, folder) if f"{absolute}/".startswith(folder + os.sep) else absolute
