"""Giving the rows of an index their samples: by the rule that the index was made with, or by their keys."""

from __future__ import annotations

import logging
from array import array
from dataclasses import replace

import numpy as np
import xxhash

from patchnpack.loaders.index.sample_table import SampleTable
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.shards.keys import natural_key
from patchnpack.loaders.shards.sample_rule import MEMBERS, SampleRule, is_by_members
from patchnpack.packer.checks import shown
from patchnpack.packer.text import counted

# n rows, m samples

_BLOCK = 1 << 14  # keys that are texts at a time

# Which files have them, and the key and the shard of the first.
UNREAD_PAGES = (
    "%s more pages or frames than can be read (JPEG XL animations, HEIC sequences, PIL images of several frames), the "
    "first with key %r in %r. Only the first page of such a file is used; stats()['multi_page'] counts it. To use "
    "all pages, convert such files to GIF, animated PNG, animated WebP, TIFF or video"
)

_log = logging.getLogger("patchnpack")


def fits(index: Index, rule: SampleRule | None) -> bool:
    """Whether the rows of an index are those that a rule asks for: with or without all members of each sample."""
    return has_members(index) == is_by_members(rule)


def has_members(index: Index) -> bool:
    """Whether an index was made by "members"."""
    return index.samples is not None and index.samples.rule == MEMBERS


def with_samples(index: Index, rule: SampleRule | None) -> Index:
    """Return the index, which `fits` the rule, with the samples of the rule.

    Raises:
        ValueError: a key has no group, or the rows of a sample are not neighbours in one shard.
    """
    if rule is None:
        return index if index.samples is None else replace(index, samples=None)
    if index.samples is not None and index.samples.rule == rule.name and not rule.is_function:
        return index
    return replace(index, samples=_by_key(index, rule))


def warn_of_unread_pages(index: Index) -> None:
    """Warn if an index of members lacks pages or frames of files, of which the reader gives only the first."""
    if index.samples is None or not has_members(index):
        return
    unread = np.flatnonzero((index.pages != 1) & (index.samples.page == 0))
    if len(unread):
        which = f"{counted(len(unread), 'file')} {'has' if len(unread) == 1 else 'have'}"
        _log.warning(UNREAD_PAGES, which, index.keys[int(unread[0])], redact(index.place(int(unread[0]))[0]))


def check_rule(index: Index, rule: SampleRule | None, name: str, *, is_source: bool) -> None:
    """Raise ValueError if an index that was given was made with another rule.

    An index without samples serves every rule by key.

    Args:
        index: the index.
        rule: the rule, None for none.
        name: what errors call the index.
        is_source: whether the index is the source, whose samples hold where no rule is given.
    """
    made = None if index.samples is None else index.samples.rule
    asked = None if rule is None else rule.name
    joins_rows = rule is not None and not rule.is_members
    if asked == made or (rule is None and is_source) or (joins_rows and made is None):
        return
    flag = "" if rule is None else f" --sample '{rule.name}'"
    how = f"give sample='{made}', or "
    if is_source or made is None:
        how = "leave sample= out, or "
    again = (
        f"make it again: patchnpack index SHARDS{flag} -o INDEX"
        if rule is None or not rule.is_function
        else "give an index that was made without a rule"
    )
    was = "without a rule for samples" if made is None else f"with sample='{made}'"
    given = "None" if rule is None else f"'{rule.name}'"
    raise ValueError(f"{name} was made {was}, and sample is {given}: other images belong together; {how}{again}")


def _by_key(index: Index, rule: SampleRule) -> SampleTable:
    """Return the samples of neighbouring rows of one shard whose keys have one group."""
    n, group = len(index), rule.group
    assert group is not None
    starts, names = array("q"), array("Q")  # of each sample: its first row, and a hash of its name
    begins = set(index.starts.tolist())
    last, before, unmatched = None, "", array("q")
    disordered = array("q")  # rows that follow one with a higher number, such as f2 after f10
    for first in range(0, n, _BLOCK):
        for row, key in enumerate(index.keys[first : first + _BLOCK], first):
            name = group(key)
            if name is None:
                unmatched.append(row)
            elif name != last or row in begins:
                starts.append(row)
                names.append(xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogateescape")))
            elif (len(key) < len(before) or key < before) and natural_key(key) < natural_key(before):
                disordered.append(row)
            last, before = name, key
    if unmatched:
        _refuse_unmatched(index, rule, unmatched)
    found = np.frombuffer(starts, np.int64) if n else np.zeros(0, np.int64)
    _warn_of_order(index, found, disordered)
    _check_once(index, rule, found, np.frombuffer(names, np.uint64) if n else np.zeros(0, np.uint64))
    return SampleTable.of_images(rule.name, np.append(found, n))


def _warn_of_order(index: Index, starts: np.ndarray, rows: array[int]) -> None:
    """Warn if rows of a sample are not in the order of the numbers in their keys."""
    if not rows:
        return
    samples = len(np.unique(np.searchsorted(starts, np.frombuffer(rows, np.int64), side="right")))
    _log.warning(
        "the images of %s are not in the order of the numbers in their keys: the first is %r, after %r, in %r. "
        "A sample's images are in the order of their rows: give the numbers leading zeros, or write them in order",
        counted(samples, "sample"),
        index.keys[rows[0]],
        index.keys[rows[0] - 1],
        redact(index.place(rows[0])[0]),
    )


def _refuse_unmatched(index: Index, rule: SampleRule, rows: array[int]) -> None:
    n, key, shard = len(index), index.keys[rows[0]], redact(index.place(rows[0])[0])
    which = "none" if len(rows) == n else f"only {n - len(rows):,}"
    first = f"key {key!r} of row {rows[0]} in {shard!r}"
    if rule.is_function:
        raise ValueError(
            f"sample, the function {rule.name!r}, has a name for {which} of the {counted(n, 'key')}: the first without "
            f"one is {first}; return a text for every key, the key itself for an image that is alone"
        )
    raise ValueError(
        f"sample is '{rule.name}', which matches {which} of the {counted(n, 'key')}: the first without a match is "
        f"{first}; the expression must match every key from its first to its last character, and "
        "'key:(.+?)(?:_[0-9]+)?', for example, also matches keys without a number"
    )


def _check_once(index: Index, rule: SampleRule, starts: np.ndarray, names: np.ndarray) -> None:
    """Raise ValueError if the rows of a sample are not neighbours in one shard."""
    order = np.argsort(names, kind="stable")
    for i in np.flatnonzero(names[order][1:] == names[order][:-1]).tolist():
        before, again = int(starts[order[i]]), int(starts[order[i + 1]])
        assert rule.group is not None
        name = rule.group(index.keys[again])
        if name is None or rule.group(index.keys[before]) != name:  # two names with one hash
            continue
        there, here = (redact(index.shards[int(index.shard_of(row))]) for row in (before, again))
        where = "after other rows" if there == here else f"in another shard than row {before}, of {there!r}"
        flag = "" if rule.is_function else f" --sample '{rule.name}'"
        folder = index.table_of(int(index.shard_of(again))) is not None
        remedy = (
            f"write shards, `patchnpack shard FOLDER -o SHARDS{flag}`, and load them with sample='members', or rename "
            "the files so that those of a sample follow each other"
            if folder
            else "write the images of a sample as members of one sample, "
            f"{shown(name + '.1.jpg')}, {shown(name + '.2.jpg')}, and give sample='members'; of a folder of images, "
            f"`patchnpack shard FOLDER -o SHARDS{flag}` writes such shards"
        )
        raise ValueError(
            f"sample {name!r} (sample='{rule.name}') returns {where}: with key {index.keys[again]!r} in row {again} of "
            f"{here!r}, after key {index.keys[before]!r} in row {before}; {remedy}"
        )
