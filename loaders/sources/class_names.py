"""Class names that come with the files: folders, and texts in a column of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchnpack.loaders.files.folder import FOLDER
from patchnpack.loaders.files.texts import Texts
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.labels.label_rule import whole_number
from patchnpack.loaders.shards.folders.image_folder import ImageFolder, folders_that_are_no_classes, note_folders
from patchnpack.loaders.shards.member_names import find_member
from patchnpack.loaders.sources.options import LoaderOptions


def settle_names(index: Index, options: LoaderOptions) -> tuple[Index, LoaderOptions]:
    """Settle labels that are texts of folders or tables: the index gets the text of each row, the options the classes.

    Without `classes`, names that are not all whole numbers get the numbers of their sorted order, in which "10" comes
    before "9". Everything else is returned as it is.

    Raises:
        ValueError: the label is the folder, and the folders look like splits, or like images and masks.
    """
    label = options.label
    if not any(index.files) or not isinstance(label, str) or ":" in label:
        return index, options
    member = find_member(label.removeprefix("."), index.members)
    if member is None or index.kinds.get(member) != "txt":
        return index, options
    texts = _texts(index, member)
    if texts is None:
        return index, options
    index = replace(index, cls=texts, cls_member=member)
    names = sorted(name for name in pc.unique(texts.column).to_pylist() if name is not None)
    if options.classes is not None or all(whole_number(name) is not None for name in names):
        return index, options
    if member == FOLDER:
        _check_folders(index, names)
    return index, replace(options, classes=names)


def joined_classes(
    classes: Sequence[str] | None, tables: Sequence[tuple[str, Mapping[str, int], bool]]
) -> Sequence[str] | None:
    """Return the classes of a mixture to which `classes` was not given, in the sorted order of their names.

    Args:
        classes: what `settle_names` returned: the names of folders and tables; None where none was to be numbered.
        tables: (source, the number of each class name, whether labels are matched by name) of each part of a data set
            that names its classes.

    Returns:
        the names of all sources; None where `classes` is None, so that data sets keep their numbers.

    Raises:
        ValueError: two sources number a class differently.
    """
    taken: dict[str, tuple[int, str]] = {}
    if classes is not None:
        names = sorted({*classes, *(name for _, table, _ in tables for name in table)})
        taken = {name: (number, "the folders and tables") for number, name in enumerate(names)}
        tables = [given for given in tables if not given[2]]
    named = {number: (name, source) for name, (number, source) in taken.items()}
    for source, table, _ in tables:
        for name, number in table.items():
            other, by = taken.setdefault(name, (number, source))
            name_there, by_there = named.setdefault(number, (name, source))
            if other != number or name_there != name:
                differs = (
                    f"class {name!r} is {number} in source {source!r} and {other} in {by!r}"
                    if other != number
                    else f"class {number} is {name!r} in source {source!r} and {name_there!r} in {by_there!r}"
                )
                raise ValueError(
                    f"{differs}; give classes=, the names of all classes, by which folders, tables and Hugging Face's "
                    "data sets are matched; of a torchvision ImageFolder give the path, with label 'folder'"
                )
    return names if classes is not None else None


def _texts(index: Index, member: str) -> Texts[str | None] | None:
    """The text of a member of each row; None where only reading the shards would show it."""
    columns: list[pa.Array] = []
    for shard, table in enumerate(index.files):
        rows = slice(int(index.starts[shard]), int(index.starts[shard + 1]))
        where = index.members[member][rows]
        if table is None:
            if index.cls_member == member:
                columns.append(index.cls.take(np.arange(rows.start, rows.stop)).column)
            elif (where >= 0).any():
                return None
            else:
                columns.append(pa.nulls(len(where), pa.large_string()))
            continue
        if ((where[:, 0] >= 0) & (where[:, 0] < len(table))).any():
            return None  # in files of their own
        unique, which = np.unique(where, axis=0, return_inverse=True)
        values = memoryview(table.values)
        texts = [
            None
            if at < 0
            else bytes(values[at - len(table) : at - len(table) + size]).decode("utf-8", "replace").strip()
            for at, size in unique.tolist()
        ]
        columns.append(pa.array(texts, pa.large_string()).take(pa.array(which.reshape(-1))))
    return Texts(pa.concat_arrays(columns))


def _check_folders(index: Index, names: list[str]) -> None:
    roots = [table.root for table in index.files if table is not None]
    found = ImageFolder(roots[0])
    note_folders("", names, found)
    reason = folders_that_are_no_classes(found, names)
    if reason is not None:
        raise ValueError(f"{reason}; if they are classes, name them: classes={names!r}")
