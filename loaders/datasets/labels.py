"""Labels of a data set's rows: which member is the label, its shape, and how many classes there are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import xxhash

from patchnpack.loaders.datasets.items import Items
from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.index.sample_table import SampleTable
from patchnpack.loaders.labels.label_rule import Classes, Label, LabelRule
from patchnpack.loaders.labels.labels import KnownLabels
from patchnpack.loaders.targets.target import BY_MEMBERS, Target, members_of

# m rows

_PROBE = 1000  # rows of each part among which a label must occur
_SEARCHED = 100  # rows of each part among which a member that was asked for must occur


class ItemLabels(KnownLabels):
    """The labels of a data set: each is known once its item is read.

    Attributes:
        has_labels: whether a label was asked for, or comes with pairs.
        is_read: whether only reading an item shows its label.
        member: the member that is the label, with the field of a .json member left out; "" for none and a callable.
        label: what a loader of the same items, packed, has to be given: a name, a callable, or None.

    Args:
        items: the images.
        label: a member of the items; a callable from members to an int or an array; or None for the second item of
            pairs, and no label for other items.
        classes: names of the classes: as a list, a file or a mapping.

    Raises:
        ValueError: no item has the label, or a label is a name that `classes` lacks.
    """

    def __init__(self, items: Items, label: Label, classes: Classes) -> None:
        names = label_members(items, label)
        self.label: Label = next((name for name in names if name is not None), None)
        self.member = self.label.removeprefix(".").partition(":")[0] if isinstance(self.label, str) else ""
        self._rules = [None if name is None else LabelRule(name, classes) for name in names]
        self._items, self._has_field = items, isinstance(label, str) and ":" in label
        self.has_labels = self.is_read = any(rule is not None for rule in self._rules)
        if classes is not None and not self.has_labels:
            raise ValueError("classes= names the classes of labels, and label is None; give label=, such as 'label'")
        given = next((rule.classes for rule in self._rules if rule is not None and rule.classes), None)
        super().__init__(shape=self._probe(label) if self.is_read else (), num_classes=None, classes=given)
        self._numbers = None if self.shape else self._all_known()
        self.is_read &= self._numbers is None
        self.are_indexed = self._numbers is not None
        self.num_classes = self.shape[0] if self.shape else self._count()

    def known(self, rows: np.ndarray) -> np.ndarray:
        """Return the labels of rows, int64 (m,); where `is_read`, none: items bring theirs."""
        return np.full(len(rows), self.absent) if self._numbers is None else self._numbers[rows]

    def join(self, samples: SampleTable) -> None:
        """Give all images of a sample of several rows its label: that of its first row with one.

        Labels that only reading the items shows stay those of the items.

        Raises:
            ValueError: the rows of a sample have several labels.
        """
        if self._numbers is None:
            return
        labels, sample = self._numbers, samples.sample_of(np.arange(len(self._numbers)))
        given = np.flatnonzero(labels != self.absent)
        joined = np.full(len(samples), self.absent)
        joined[sample[given[::-1]]] = labels[given[::-1]]
        wrong = given[labels[given] != joined[sample[given]]]
        if len(wrong):
            raise ValueError(
                f"{self._items.describe(int(wrong[0]))} has label {labels[wrong[0]]}, and its sample has label "
                f"{joined[sample[wrong[0]]]}; a sample has one label: give all its images the same, or leave label= out"
            )
        self._numbers = joined[sample]

    def digest(self) -> int:
        """Return a digest of the labels that are known without reading the items, uint64."""
        return 0 if self._numbers is None else xxhash.xxh3_64_intdigest(self._numbers.tobytes())

    def texts(self) -> list[str | None] | None:
        """Return the label of each image as a text that the rule of labels reads; None where `is_read` or no label."""
        if self._numbers is None or not self.has_labels:
            return None
        classes = self.classes or {}
        text = {number: str(number) for number in np.unique(self._numbers).tolist() if number != self.absent}
        for name, number in classes.items():  # which may be named by digits
            if number in text and classes.get(text[number], number) != number:
                text[number] = name
        return [text.get(number) for number in self._numbers.tolist()]

    def of_members(self, i: int, members: Mapping[str, Any]) -> Any:
        """Return the label of image i: a number or an array of `shape`, `absent` where it has none. Raises BadImage."""
        value = self._value(i, members)
        if value is None:
            return self.absent
        self.check(value, self._items.keys[i])
        return value

    def _value(self, i: int, members: Mapping[str, Any]) -> int | np.ndarray | None:
        rule = self._rules[self._items.adapter[i]]
        if rule is None:
            return None
        value: int | np.ndarray | None = rule.of_sample(
            members.get, lambda: dict(members), lambda: self._items.describe(i)
        )
        return value

    def _probe(self, label: Label) -> tuple[int, ...]:
        """Return the shape of the first label."""
        for number, rule in enumerate(self._rules):
            if rule is None:
                continue
            for i in np.flatnonzero(self._items.adapter == number)[:_PROBE].tolist():
                try:
                    adapter = self._items.adapters[number]
                    value = self._value(i, adapter.members_of(int(self._items.row[i])))
                except BadImage:  # reported when the row's turn comes
                    continue
                if value is not None:
                    return np.shape(value)
        if isinstance(label, str):
            _check_member(self._items, "label", label.removeprefix(".").partition(":")[0])
            raise ValueError(
                f"label {label!r} has no value in the first {_PROBE} rows; name another member, or give label=None"
            )
        return ()

    def _all_known(self) -> np.ndarray | None:
        """Return the labels of all images, int64 (n,), None where only reading the items shows them.

        Each distinct label is converted once, so a bad one is found before any work starts.
        """
        numbers = np.full(len(self._items), self.absent)
        for number, (adapter, rule) in enumerate(zip(self._items.adapters, self._rules, strict=True)):
            if rule is None:
                continue
            here = np.flatnonzero(self._items.adapter == number)
            if not rule.member or self._has_field:
                return None
            if rule.member not in adapter.members:
                continue
            coded = adapter.coded(rule.member, self._items.row[here])
            if coded is None:
                return None
            labels = [rule.value(value) for value in coded[1]]
            table = np.array([*(self.absent if label is None else label for label in labels), self.absent], np.int64)
            numbers[here] = table[coded[0]]  # code -1, no value, is the last one
        return numbers

    def _count(self) -> int | None:
        """Return the number of classes; None where only reading the items would show it."""
        if self.classes:
            return max(self.classes.values()) + 1
        named = [
            adapter.classes_of(rule.member)
            for adapter, rule in zip(self._items.adapters, self._rules, strict=True)
            if rule is not None
        ]
        if named and all(named):
            return max(max(classes.values()) for classes in named if classes) + 1
        return None if self._numbers is None or not named else max(int(self._numbers.max()), -1) + 1 or None


def label_members(items: Items, label: Label) -> list[Label]:
    """Return what the label of each part of a data set is: `label`, or the second item of pairs where it is None."""
    return [adapter.default_label if label is None else label for adapter in items.adapters]


def check_extras(items: Items, extras: tuple[str, ...]) -> None:
    """Raise ValueError if an extra is no member of the items."""
    for name in extras:
        _check_member(items, "extras", name)


def dataset_targets(items: Items, targets: Mapping[str, Target] | None) -> dict[str, Target]:
    """Return the targets of a data set, whose members must be those of its items.

    Raises:
        ValueError: no item has one of the members, or items hold lists of images.
    """
    for name, target in (targets or {}).items():
        for member in members_of(target):
            _check_member(items, f"target {name!r}", member)
        if items.number.any():
            raise ValueError(BY_MEMBERS)
    return dict(targets or {})


def _check_member(items: Items, option: str, name: str) -> None:
    found: set[str] = set()
    for number, adapter in enumerate(items.adapters):
        found |= set(adapter.members)
        for row in items.row[items.adapter == number][:_SEARCHED].tolist():
            if name in found:
                return
            with suppress(BadImage):
                found |= set(adapter.members_of(row))
    if name not in found:
        raise ValueError(
            f"{option} asks for {name!r}, which no row of {items.name} has; its members are "
            f"{', '.join(sorted(found))}: name one"
        )
