"""Labels: the class or target of a sample, read from its members."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow.compute as pc

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.files.path_table import SUFFIXES, suffix_of
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.labels.label_rule import Classes, Label, LabelRule
from patchnpack.loaders.members import decode_member
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.shards.member_names import find_member
from patchnpack.packer.checks import shown

# D values in a target

NO_LABEL = -100


class LabelKind:
    """The shape and type of labels: classes of shape () or targets of shape (D,).

    Attributes:
        shape: () for classes, (D,) for targets.
        dtype: int64 for classes, float32 for targets.
        absent: the label of a sample without one: -100 for classes, NaN for targets.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(np.float32 if shape else np.int64)
        self.absent: Any = np.float32("nan") if shape else np.int64(NO_LABEL)

    def check(self, label: int | np.ndarray, key: str) -> None:
        """Raise ValueError if the label of sample `key` has another shape."""
        if np.shape(label) != self.shape:
            raise ValueError(
                f"label of {key!r} has shape {np.shape(label)}, the labels before it {self.shape}; all labels must "
                "have the same shape"
            )


class KnownLabels(LabelKind):
    """Labels that are stored with their packs and never read from members.

    Attributes:
        num_classes: outputs that a classifier needs; None if unknown.
        classes: index of each class name; None where labels are numbers.
        are_indexed: whether `known` returns the labels of any rows.
    """

    are_indexed = False

    def __init__(self, *, shape: tuple[int, ...], num_classes: int | None, classes: Mapping[str, int] | None) -> None:
        super().__init__(shape)
        self.num_classes, self.classes = num_classes, classes

    def known(self, rows: np.ndarray) -> np.ndarray:
        """Never called: each pack brings its own labels."""
        raise AssertionError(f"the labels of {len(rows)} rows were asked for, but they are stored with their packs")

    def of(self, row: int) -> Any:
        """Never called: each pack brings its own labels."""
        raise AssertionError(f"the label of row {row} was asked for, but it is stored with its pack")


class Labels(LabelKind):
    """Reads the label of each row of an index.

    Args:
        index: says which members each sample has.
        label: None; "EXT", the text of the member .EXT; "json:FIELD", a field of the .json member, where FIELD may be
            a path such as annotation.class; or a callable from a sample's members (extension to bytes) to an int or an
            array.
        classes: names of the classes, as a list, a file with one name per line, or a mapping from name to index. They
            map texts that are not whole numbers.
        read: returns the bytes of one member (row, extension), None where the sample lacks it.
        rows: ranges of the rows that can have a label; None is all.
        num_classes: the number of classes, where it is known; None counts them where the index holds the labels.

    Raises:
        ValueError: no sample has the label, or a label is a name that `classes` lacks. For "cls" (or the index's
            `cls_member`) the constructor checks all labels, since the index holds their texts. For other members the
            constructor reads the first label, and `of` checks the others.
    """

    def __init__(
        self,
        index: Index,
        label: Label,
        classes: Classes,
        read: Callable[[int, str], bytes | None],
        rows: Sequence[range] | None = None,
        num_classes: int | None = None,
    ) -> None:
        self._num_classes = num_classes
        self._index, self._label, self._read = index, label, read
        self._ranges = [range(len(index))] if rows is None else rows
        self._rule = LabelRule(label, classes)
        self._member = find_member(self._rule.member, index.members) or self._rule.member.lower()
        if self._member in index.image.split(";"):
            others = ", ".join("." + extension for extension in sorted(index.members) if extension != self._member)
            raise ValueError(f"label {label!r} names the image; the other members are {others or 'none'}: name one")
        if classes is not None and label is None:
            raise ValueError("classes= names the classes of labels, and label is None; give label=, such as 'cls'")
        self._first = _labelled_rows(index, self._member)
        self._last: tuple[int, Any] = -1, None  # the row of the label that was read last, and the label
        self._texts = self._read_cls() if self._member == index.cls_member else None
        super().__init__(() if label is None else self._probe())

    @property
    def classes(self) -> Mapping[str, int] | None:
        """Index of each class name; None where labels are numbers."""
        return self._rule.classes

    @property
    def num_classes(self) -> int | None:
        """Outputs that a classifier needs: the highest label plus one, or the length of a target; None if unknown."""
        if self.shape:
            return self.shape[0]
        if self._rule.classes:
            return max(self._rule.classes.values()) + 1
        if self._num_classes is not None or self._texts is None:
            return self._num_classes
        return max(self._texts.values()) + 1

    def known(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the labels of rows, int64 (m,), where the index holds them; None where `of` reads each."""
        if self._label is None:
            return np.full(len(rows), self.absent)
        if self._texts is None:
            return None
        texts, absent, rows = self._texts, int(self.absent), self._row_of(rows)
        return np.array([texts.get(text, absent) for text in self._index.cls.listed(rows)], np.int64)

    def of(self, row: int) -> Any:
        """Return the label of a row: a number or an array of `shape`, `absent` where the sample has none."""
        if self._label is None:
            return self.absent
        row = int(self._row_of(row))
        if self._texts is not None:
            return self._texts.get(self._index.cls[row], self.absent)
        last, value = self._last
        if last != row or self._first is None:
            value = self._value(row)
            if value is None:
                value = self.absent
            else:
                self.check(value, self._index.keys[row])
            self._last = row, value  # the images of a sample are read one after another
        return value

    def _row_of(self, rows: Any) -> Any:
        """Return the row with the label of each row's sample; `rows` is int64 (m,) or a number."""
        if self._first is None or self._index.samples is None:
            return rows
        return self._first[self._index.samples.sample_of(rows)]

    def _read_cls(self) -> dict[str | None, int]:
        """Return the label of each distinct text, so that a bad text is found before any work starts."""
        column, numbers = self._index.cls.column, dict[str | None, int]()
        self._check_samples()
        for text in pc.unique(column).to_pylist():
            if text is not None:
                try:
                    numbers[text] = self._rule.number(text)
                except ValueError as error:
                    error.add_note(f"raised for the label of {self._describe(pc.index(column, text).as_py())}")
                    raise
        return numbers

    def _check_samples(self) -> None:
        """Raise ValueError if the rows of a sample have several labels."""
        samples = self._index.samples
        if self._first is None or samples is None:
            return
        codes = pc.fill_null(self._index.cls.column.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
        differs = (codes >= 0) & (codes != np.repeat(codes[self._first], np.diff(samples.starts)))
        if differs.any():
            row = int(differs.argmax())
            first = int(self._row_of(row))
            raise ValueError(
                f"{self._describe(first)} has the label {self._index.cls[first]!r}, and key {self._index.keys[row]!r} "
                f"of the same sample has {self._index.cls[row]!r}; a sample has one label: give all its images the "
                f"same, or leave label= out and read the label of each image with extras=[{self._member!r}]"
            )

    def _value(self, row: int) -> int | np.ndarray | None:
        return self._rule.of_sample(
            lambda _: self._read_value(row), lambda: self._members(row), lambda: self._describe(row)
        )

    def _read_value(self, row: int) -> Any:
        """Return what the label's member of a row holds: its bytes, or the value in a column of lists."""
        data = self._read(row, self._member)
        has_field = ":" in str(self._label)  # whose rule reads the JSON itself
        kind = self._index.kinds.get(self._member, "")
        return data if data is None or has_field or kind not in ("json", "npy") else decode_member(data, kind)

    def _members(self, row: int) -> dict[str, bytes]:
        return {e: data for e in self._index.members if (data := self._read(row, e)) is not None}

    def _describe(self, row: int) -> str:
        shard = redact(self._index.place(row)[0])
        return f"the sample with key {self._index.keys[row]!r} in {shard!r}"

    def _fields(self) -> str:
        """Return what the first JSON record says of the fields that a label may name; "" where it says nothing."""
        for row in chain.from_iterable(self._ranges):
            try:
                record = json.loads(self._read(row, "json") or b"null")
            except ValueError:
                continue
            if isinstance(record, dict):
                names = [name if not isinstance(value, dict) else f"{name}.FIELD" for name, value in record.items()]
                return f", whose .json members have the fields {shown(', '.join(names)).strip(chr(39))}"
        return ""

    def _probe(self) -> tuple[int, ...]:
        """Return the shape of the first label."""
        reason = ""
        if self._texts is not None:
            if self._texts:
                return ()
        else:
            for row in chain.from_iterable(self._ranges):
                try:
                    value = self._value(row)
                except BadImage as error:  # reported when the row's turn comes
                    reason = reason or f" ({self._index.keys[row]!r}: {error})"
                    continue
                if value is not None:
                    return np.shape(value)
        remedy = "name one of them, or give label=None"
        if self._label == "folder":
            remedy = (
                "label='folder' needs a folder of images with one sub-folder per class; if you named the folder of one "
                "class, name its parent"
            )
        elif "folder" in self._index.members:
            remedy = "give label='folder' for the sub-folders as classes, name another member, or give label=None"
        raise ValueError(
            f"label {self._label!r} is absent from all {sum(map(len, self._ranges))} samples{reason}"
            f"{self._fields() if self._member == 'json' and not reason else ''}; {members_shown(self._index)}: {remedy}"
        )


def _labelled_rows(index: Index, member: str) -> np.ndarray | None:
    """Return the row of each sample whose members hold its label, int64 (m,); its first row where none does.

    None where each row is a sample.
    """
    samples = index.samples
    if samples is None:
        return None
    starts = samples.starts[:-1]
    if member not in index.members or not len(starts):
        return starts
    has = index.members[member][:, 0] >= 0
    first: np.ndarray = np.minimum.reduceat(np.where(has, np.arange(len(index)), len(index)), starts)
    return np.where(first < len(index), first, starts)


def members_shown(index: Index) -> str:
    """Return what errors say of the members of an index's samples: of tables of paths, their columns.

    The images are left out of the columns: of a table, only their paths are in one.
    """
    if index.files and all(index.files) and {suffix_of(shard) for shard in index.shards} <= {*SUFFIXES, ".parquet"}:
        columns = [name for name in sorted(index.members) if name not in index.image.split(";")]
        return f"the columns beside the paths are {', '.join(columns) or '(none)'}"
    return f"their members are {', '.join('.' + name for name in sorted(index.members))}"


def count_absent(labels: np.ndarray) -> int:
    """Return how many labels are absent: -100 among classes (M,), all NaN among targets (M, D)."""
    return int((np.isnan(labels).all(-1) if labels.ndim == 2 else labels == NO_LABEL).sum())
