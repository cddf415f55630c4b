"""Groups: which samples of a stream are planned together as one, by the names that a rule gives their keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from patchnpack.loaders.errors import BadRow
from patchnpack.loaders.shards.sample_rule import SampleRule
from patchnpack.loaders.streaming.samples import BadSample, Sample
from patchnpack.packer.checks import shown

REMEMBERED = 1 << 16  # names of groups that are known to have been
_LONGEST = 1 << 14  # samples that a group may hold: all wait in memory until it ends


class Group(NamedTuple):
    """Samples of the stream that are one sample for the planner: neighbours whose names agree, or a single one.

    Attributes:
        samples: those with images that can be used, in order of arrival.
        bad: those that arrived among them, but cannot be used.
    """

    samples: Sequence[Sample]
    bad: Sequence[BadSample] = ()

    @property
    def row(self) -> int:
        """The row that stands for the group."""
        return self.samples[0].row if self.samples else self.bad[0].row

    def rows(self) -> list[int]:
        """The rows of all its samples that can be used."""
        return [sample.row for sample in self.samples]

    def bad_rows(self) -> list[BadRow]:
        """The records of the bad images of the samples that can be used."""
        return [bad for sample in self.samples for bad in sample.bad]


class Grouping:
    """Joins neighbouring samples into groups as they arrive.

    Args:
        rule: names the samples; None, or "members", makes each sample a group.

    The names of the last 65,536 groups are remembered, so a group that returns within as many others is noticed.
    """

    def __init__(self, rule: SampleRule | None) -> None:
        self._rule = rule
        self._name_of = None if rule is None else rule.group
        self._name: str | None = None
        self._arrived: list[Sample | BadSample] = []
        self._seen: OrderedDict[int, None] = OrderedDict()

    def add(self, read: Sample | BadSample) -> Group | None:
        """Add the next sample; return the group that it ends.

        Raises:
            ValueError: the rule has no name for the sample's key, its group has been before, is endless, or has several
                labels.
        """
        if self._name_of is None:  # no lists: the fewer objects wait, the less the garbage collector does
            return Group((read,)) if isinstance(read, Sample) else Group((), (read,))
        ended = self._turn_to(read)
        self._arrived.append(read)
        if len(self._arrived) > _LONGEST:
            raise ValueError(
                f"sample is {self._shown_rule()}, and the group {shown(self._name)} has more than {_LONGEST:,} "
                "samples, its limit; a group waits in memory until it ends: name the part of the key that only the "
                "images of one sample share"
            )
        return ended

    def pass_over(self, read: Sample | BadSample) -> Group | None:
        """Note a sample that was used before the stream resumed; return the group that it ends."""
        return None if self._name_of is None else self._turn_to(read)

    def finish(self) -> Group | None:
        """Return the last group."""
        arrived, self._arrived = self._arrived, []
        return _group(arrived) if arrived else None

    def _turn_to(self, read: Sample | BadSample) -> Group | None:
        assert self._name_of is not None
        name = self._name_of(read.key)
        if name is None:
            assert self._rule is not None
            remedy = (
                "return a text for every key, the key itself for an image that is alone"
                if self._rule.is_function
                else "it must match every key: 'key:(.+?)(?:_[0-9]+)?', for example, also matches keys without a number"
            )
            raise ValueError(
                f"sample is {self._shown_rule()}, which has no name for the key {read.key!r} of sample {read.row} of "
                f"the stream; {remedy}"
            )
        if name == self._name:
            return None
        self._name, number = name, xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogateescape"))
        if number in self._seen:
            raise ValueError(
                f"sample is {self._shown_rule()}, and the group {shown(name)} of the key {read.key!r} (sample "
                f"{read.row} of the stream) returns after another group; the samples of a group must follow each "
                "other: sort them by key, shuffle whole groups, or drop sample="
            )
        self._seen[number] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return self.finish()

    def _shown_rule(self) -> str:
        assert self._rule is not None
        return f"the function {self._rule.name!r}" if self._rule.is_function else repr(self._rule.name)


def _group(arrived: Sequence[Sample | BadSample]) -> Group:
    """Return the group of these samples. Raises ValueError if they have several labels."""
    usable = [read for read in arrived if isinstance(read, Sample)]
    labelled = [sample for sample in usable if sample.label is not None]
    for sample in labelled[1:]:
        if not np.array_equal(sample.label, labelled[0].label):  # type: ignore[arg-type]
            raise ValueError(
                f"the sample with key {sample.key!r} has label {sample.label!r}, and {labelled[0].key!r}, of the same "
                f"group, has label {labelled[0].label!r}; a sample has one label: give all its images the same, or "
                "leave label= out"
            )
    return Group(usable, [read for read in arrived if isinstance(read, BadSample)])
