"""`RowFilter`: which rows of an index a loader uses, and why it leaves out the others.

Where samples hold several images, `where` and the images keep or lose whole samples: see `RowFilter.of`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.imaging.formats import DICOM, HEIC, VIDEOS
from patchnpack.loaders.imaging.pages import Pages, refusal_of_pages
from patchnpack.loaders.imaging.readers.boxed.heif import MISSING as MISSING_HEIF
from patchnpack.loaders.imaging.readers.dicom import MISSING as MISSING_PYDICOM
from patchnpack.loaders.imaging.readers.dicom import has_pydicom
from patchnpack.loaders.imaging.readers.video.reader import MISSING as MISSING_AV
from patchnpack.loaders.imaging.readers.video.reader import has_av
from patchnpack.loaders.imaging.user_decode import Decode
from patchnpack.loaders.imaging.values.bands import band_request
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.order.first_invalid_row import naming_first_invalid_row
from patchnpack.loaders.order.order import chunks
from patchnpack.loaders.remote.addresses import redact
from patchnpack.packer import Packing
from patchnpack.packer.binpacking.pack_lengths import sample_size
from patchnpack.packer.dtypes import DTYPES
from patchnpack.packer.planning.decision import decide
from patchnpack.packer.planning.measure import measure
from patchnpack.packer.policies.random import Purpose, counter_hash
from patchnpack.packer.text import counted

Where = Callable[[Index], np.ndarray]
Frequency = Callable[[np.ndarray], np.ndarray]


class LeftOutRows(NamedTuple):
    """What a filter leaves out of an index.

    Attributes:
        filtered: samples that `where` leaves out.
        lost: other samples of which no image is used, since images of theirs are bad.
        images: images that are left out with a bad image of their sample.
    """

    filtered: int
    lost: int
    images: int


@dataclass(frozen=True, slots=True)
class RowFilter:
    """The rows of an index of n rows that are used.

    Attributes:
        mask: bool (n,), the rows that are used.
        filtered: bool (n,), the rows that `where` leaves out.
        bad: (stage, reason) of each other row that cannot be used, by row. Rows that are in none of the three are left
            out with a bad row of their sample.
    """

    mask: np.ndarray
    filtered: np.ndarray
    bad: dict[int, tuple[str, str]]

    @classmethod
    def of(
        cls,
        index: Index,
        where: Where | None,
        limits: ErrorPolicy,
        decode: Decode | None,
        pages: Pages = "first",
        heic: bool = True,
        packing: Packing | None = None,
    ) -> RowFilter:
        """Return the filter of the rows that `where` keeps, without those that have bad headers or exceed the limits.

        Also without files of several pages, if `pages` is "error", and HEIC images, unless `heic` is set or a `decode`
        function may read them. And without those whose bands or type `packing`, if it is given, does not ask for.

        Of samples of several rows, `where` keeps those all of whose rows it keeps. A bad row leaves out its sample, or
        itself alone under `on_bad="image"`.

        Raises:
            ValueError: `where` does not return one bool per row; or `pages` is "error" where all pages are used.
        """
        samples = index.samples
        if pages == "error" and samples is not None and samples.rule == "members":
            raise ValueError(
                "pages is 'error', which refuses files of several pages, and sample is 'members', which uses all their "
                "pages; leave out one of the two"
            )
        mask = _kept(where, index)
        if samples is not None:
            mask = np.repeat(samples.all_of(mask), np.diff(samples.starts))
        bad = {row: why for row, why in _bad_rows(index, limits, decode, pages, heic, packing).items() if mask[row]}
        filtered = ~mask
        mask[list(bad)] = False
        if samples is not None and limits.on_bad == "sample":
            mask = np.repeat(samples.all_of(mask), np.diff(samples.starts))
        return cls(mask, filtered, bad)

    def heads(self, index: Index) -> np.ndarray:
        """Return the first row of each sample with a row that is used, as a mask of the index's rows, bool (n,)."""
        return _heads(index, self.mask)

    def counts(self, index: Index, rank: int = 0, world_size: int = 1) -> LeftOutRows:
        """Count what is left out of the index; with ranks, only the share that a rank counts."""
        lost = ~self.mask & ~self.filtered
        images = lost.astype(np.int64) if index.samples is None else np.where(lost, index.samples.frames, 0)
        images[list(self.bad)] -= 1  # a bad row is counted as one bad image
        columns = _heads(index, self.filtered), _heads(index, lost) & ~_heads(index, self.mask), images
        return LeftOutRows(*(int(column[rank::world_size].sum()) for column in columns))

    def describe(self, index: Index) -> tuple[str, str]:
        """Return how many images or samples are used, and how many are not: "" where all are."""
        used = int(self.heads(index).sum())
        text = counted(used, "image")
        if index.samples is not None:
            text = f"{counted(used, 'sample')} with {counted(int(index.samples.frames[self.mask].sum()), 'image')}"
        bad, filtered = len(self.bad), self.counts(index).filtered
        return text, f"; {bad:,} bad, {filtered:,} left out by where" if bad or filtered else ""

    def usable(self, index: Index) -> Index:
        """Return the index, without the rows that are left out of samples that are used."""
        samples = index.samples
        if samples is None or not (samples.any_of(self.mask) & ~samples.all_of(self.mask)).any():
            return index
        return replace(index, samples=replace(samples, unused=~self.mask))

    def decide(self, index: Index, packing: Packing, seed: int, frequency: Frequency | None = None) -> Packing:
        """Return `packing` with what the token counts of all samples that are used decide, in epoch 0.

        These are what "auto" stands for, and the prices of "priced"; see `packer.planning.decision.decide`. The
        selection that compares the algorithms is spread evenly over the samples, in random order.

        Args:
            index: of the rows.
            packing: the configuration.
            seed: key of the random draws.
            frequency: relative frequency of samples, by their first rows (int64), in an epoch, as whole numbers of at
                least 1; None is 1 each.

        Raises:
            ValueError: no row is left, or `packing` can neither place nor skip an image.
        """
        sizes, seq_len = packing.patch_sizes, packing.seq_len
        counts = np.zeros((len(sizes), seq_len + 1), np.int64)
        sample: list[list[np.ndarray]] = [[] for _ in sizes]
        sampled: list[np.ndarray] = []
        images: list[np.ndarray] = []
        found = passed = undersize = few = 0
        heads = self.heads(index)
        total = sum(int(_times(rows, frequency).sum()) for rows in chunks(heads))
        step = max(1, total // sample_size(packing.lookahead))
        for rows in chunks(heads):
            tokens, times, chunk = [], _times(rows, frequency), index.rows(rows)
            for size in sizes:
                with naming_first_invalid_row(index, chunk, packing, seed=seed, epoch=0):
                    measured = measure(chunk, packing, seed=seed, epoch=0, patch_size=size)
                tokens.append(measured.images.sample_sums(measured.images.keep))
                times[measured.skipped(packing)] = 0
            undersize += int(np.count_nonzero(measured.undersize)) if packing.undersize == "skip" else 0
            few += 0 if measured.few is None else int(np.count_nonzero(measured.few))
            fits = times > 0  # skipped samples may have more than L tokens
            found += int(np.count_nonzero(fits))
            ends = passed + np.cumsum(times)
            chosen = np.repeat(np.arange(len(rows)), np.diff(ends // step, prepend=passed // step))
            passed = int(ends[-1])
            sampled.append(rows[chosen])
            if (held := measured.images.sample_counts()) is not None:
                images.append(held[chosen])
            for number, keep in enumerate(tokens):
                np.add.at(counts[number], keep[fits], times[fits])
                sample[number].append(keep[chosen])
        if not found:
            raise self.none_usable(index, packing, undersize, few)
        keys = counter_hash(Purpose.ROW_ORDER, seed, 0, index.row_id(np.concatenate(sampled)))
        mixed = np.argsort(keys, kind="stable")
        lengths = [np.concatenate(parts)[mixed] for parts in sample]
        return decide(packing, lengths, list(counts), images=np.concatenate(images)[mixed] if images else None)

    def none_usable(self, index: Index, packing: Packing | None = None, undersize: int = 0, few: int = 0) -> ValueError:
        """Return the error for an index without a usable image: how many are lost to what, and the first of them.

        Args:
            index: of the rows.
            packing: leaves out all samples that are not bad; None if there is no such sample.
            undersize: samples that it leaves out as smaller than a patch.
            few: samples that it leaves out since they have too few images; the others are oversize.
        """
        filtered, bad, _ = self.counts(index)
        left_out = int(self.heads(index).sum())
        lost = [f"{bad} are bad, {filtered} filtered out by where", *self._reasons(index)] if bad or filtered else []
        remedies = [_remedy(self.bad[row][0], intact=int(index.width[row]) > 0) for row in list(self.bad)[:1]]
        if filtered:
            remedies.append("let where keep some rows")
        if undersize:
            lost.insert(0, f"{undersize} are smaller than a patch and undersize is 'skip'")
            remedies.append("choose undersize='pad'")
        if few and packing is not None:
            lost.insert(0, f"{few} have too few images for frames={packing.frames}")
            remedies.append("choose short='keep' or 'repeat'")
        if left_out > undersize + few and packing is not None:
            limits, remedy = f"seq_len {packing.seq_len} tokens", "raise seq_len, or choose oversize='shrink'"
            if index.samples is not None:
                limits += f" or max_images {packing.max_images} images"
                remedy = "raise seq_len or max_images, choose images with frames=Frames(...), or choose oversize='drop'"
            lost.insert(0, f"{left_out - undersize - few} have more than {limits} and oversize is 'skip'")
            remedies.append(remedy)
        return ValueError(
            f"none of the {_counted(index)} can be used: {'; '.join(lost)}. To use some, {', or '.join(remedies)}"
        )

    def _reasons(self, index: Index, most: int = 3) -> list[str]:
        """Return the most frequent reasons for which images are bad, each with the first such image."""
        # Numbers and quoted bytes differ from image to image.
        kinds = {row: re.sub(r"b'[^']*'|\d+", "", reason) for row, (_, reason) in self.bad.items()}
        first = {kind: row for row, kind in reversed(kinds.items())}
        described = []
        for kind, count in Counter(kinds.values()).most_common(most):
            row = first[kind]
            shard = redact(index.place(row)[0])
            such = "the first is" if len(first) == 1 else f"{count} such as"
            described.append(f"{such} {index.keys[row]!r} in {shard!r}: {self.bad[row][1]}")
        return described


def _remedy(stage: str, *, intact: bool) -> str:
    """Return what a user can do about an image that is bad at a stage; an intact one only needs another decoder."""
    if stage == "header" and intact:
        return (
            "give the channels and dtype of the files, or convert= (--channels, --dtype, --convert), convert to 8 bits "
            "and one page, or give decode=, a function from encoded bytes to pixels (--decode)"
        )
    if stage == "limit":
        return "raise max_pixels or max_bytes of ErrorPolicy, or make the images smaller"
    return "fix or replace the images, or name with image= the extension or column of the images"


def _heads(index: Index, mask: np.ndarray) -> np.ndarray:
    """Return the first row of each sample with a row in the mask, as a mask of all rows."""
    return mask if index.samples is None else index.samples.heads(index.samples.any_of(mask))


def _counted(index: Index) -> str:
    return f"{len(index)} images" if index.samples is None else f"{len(index.samples)} samples of {len(index)} rows"


def _times(rows: np.ndarray, frequency: Frequency | None) -> np.ndarray:
    return np.ones(len(rows), np.int64) if frequency is None else frequency(rows)


def _bad_rows(
    index: Index, policy: ErrorPolicy, decode: Decode | None, pages: Pages, heic: bool, packing: Packing | None
) -> dict[int, tuple[str, str]]:
    """Return (stage, reason) of each row that has a bad header, exceeds the policy's limits or has several pages."""
    bad = {row: ("header", reason) for row, reason in _bad_headers(index, decode, packing).items()}
    if pages == "error":
        for row in np.flatnonzero(index.pages != 1).tolist():
            bad.setdefault(row, ("header", refusal_of_pages(int(index.pages[row]))))
    if decode is None and not heic:
        for row in np.flatnonzero(index.format == HEIC).tolist():
            bad.setdefault(row, ("decode", MISSING_HEIF))
    if not has_av():
        for row in np.flatnonzero(np.isin(index.format, VIDEOS)).tolist():
            bad.setdefault(row, ("decode", MISSING_AV))
    if decode is None and not has_pydicom():
        for row in np.flatnonzero(index.format == DICOM).tolist():
            bad.setdefault(row, ("decode", MISSING_PYDICOM))
    for rows in chunks(np.ones(len(index), np.bool_)):
        pixels, nbytes = index.width[rows].astype(np.int64) * index.height[rows], index.nbytes[rows]
        for i in np.flatnonzero((pixels > policy.max_pixels) | (nbytes > policy.max_bytes)).tolist():
            reason = policy.beyond(int(pixels[i]), int(nbytes[i])) or ""
            bad.setdefault(int(rows[i]), ("limit", reason))
    return dict(sorted(bad.items()))


def _bad_headers(index: Index, decode: Decode | None, packing: Packing | None) -> dict[int, str]:
    """Return why the headers of rows say that these cannot be used."""
    request = None if packing is None else band_request(packing)
    if decode is not None or request is None:
        return index.bad_rows(decode=decode is not None)
    bad = index.bad_rows(decode=True)
    if request.as_colors:  # images that 8-bit colours hold stay so
        for row, reason in index.bad_rows(decode=False).items():
            if not index.bands[row]:
                bad[row] = reason
        return bad
    for dtype, bands in np.unique(np.stack([index.dtype.astype(np.int32), index.bands], 1), axis=0).tolist():
        if (refusal := request.refusal(bands, DTYPES[dtype])) is not None:
            for row in np.flatnonzero((index.dtype == dtype) & (index.bands == bands)).tolist():
                bad.setdefault(row, refusal)
    return bad


def _kept(where: Where | None, index: Index) -> np.ndarray:
    if where is None:
        return np.ones(len(index), np.bool_)
    mask = np.array(where(index))  # a copy: the caller may keep the array
    if mask.shape != (len(index),) or mask.dtype != np.bool_:
        raise ValueError(
            f"where returned {mask.dtype} {mask.shape}; it must return bool ({len(index)},), one value per row"
        )
    return mask
