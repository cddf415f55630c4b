"""`SampleBatchBuilder`: builds batches whose samples hold several images: pages, frames, members, views."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from threading import get_ident
from typing import Any

import numpy as np

from patchnpack.loaders.assembly.builders.batch_targets import Decoded
from patchnpack.loaders.assembly.builders.decoded_batch_builder import DecodedBatchBuilder
from patchnpack.loaders.assembly.context import BatchContext
from patchnpack.loaders.errors import BadImage
from patchnpack.packer import Images

# B packs in the batch, K images in a pack at most, M images in the batch

_LABEL = ""  # beside the names of extras, which are not empty


class SampleBatchBuilder(DecodedBatchBuilder):
    """Builds a batch whose samples may hold several images; see `BatchBuilder`.

    ```
    image      0  1  2  3  4  5  6  7        samples A and B: three members of a tar, and two views of two pages
    sample     A  A  A  B  B  B  B  B ...
    file       a  b  c  d  d  d  d  ...
    part       0  1  2  3 ---------          one read, one digest, one decode
    ```

    A part is a run of neighbouring images of one sample that come from the same bytes. What a sample's images share,
    its label and the members that `extras` names, is read once, with the first of them.

    A bad image leaves out what the error policy's `on_bad` says. Images of one file that follow each other and are bad
    for the same reason are recorded once, with the first of them.
    """

    def _divide(self) -> int:
        """Divide the images into parts, and note what they share."""
        images, samples = self._images, self._samples
        assert images.frame is not None
        self._frame = images.frame
        begins = images.frame == 0
        self._sample, self._sample_starts = np.cumsum(begins) - 1, images.sample_offsets()
        self._parts: list[int] = [*np.flatnonzero(begins | ~samples.continued()).tolist(), self.num_images]
        self._failed: set[int] = set()  # images that cannot be used
        self._shared_targets: dict[int, tuple[Decoded, int]] = {}  # of the parts that run, by their first image
        # For what images share, the image that it is read with.
        self._read_with = {name: _firsts(begins | ~samples.shares(name)) for name in self._context.extras}
        if samples.labels is None:
            self._read_with[_LABEL] = _firsts(begins)
        return len(self._parts) - 1

    def _draw_keys(self) -> np.ndarray:
        """Return the key of each image's draws in the transform, uint64 (M,): one for each view of a sample.

        So the frames of a clip are changed alike, and its views are not.
        """
        views = 1 if self._context.packing.views is None else self._context.packing.views.count
        view = self._sample * views + self._frame % views
        _, first, which = np.unique(view, return_index=True, return_inverse=True)
        return self._images.key[first][which]

    def _sample_columns(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `PackedBatch.samples` and `PackedBatch.frames`, int32 (B, K) each."""
        pack = self._column // mask.shape[1]
        first = np.searchsorted(pack, pack)  # the first image of each image's pack
        numbers, frames = np.zeros((2, mask.size), np.int32)
        numbers[self._column], frames[self._column] = self._sample - self._sample[first] + 1, self._frame
        self._numbers = numbers.reshape(mask.shape)
        return self._numbers, frames.reshape(mask.shape)

    def _first_of_parts(self) -> Sequence[int]:
        return self._parts[:-1]

    def _write(self, i: int) -> None:
        """Read, decode and write the images of part i. Notes what fails."""
        at, end = self._parts[i], self._parts[i + 1]
        self._threads[i] = get_ident()
        self._stages[i] = "read"
        try:
            data = self._samples.read(at)
        except BadImage as error:
            self._fail(at, error, range(at, end))
            return
        strict, reason = True, ""
        while at < end:
            self._stages[i] = "decode"
            for pixels in self._decoded(range(at, end), data, strict):
                if not isinstance(pixels, BadImage):
                    if at not in self._failed:  # with an earlier image, whose targets it shares
                        self._use(i, at, pixels)
                    self._stages[i], reason = "decode", ""
                elif strict and pixels.truncated and self._context.errors.truncated == "keep":
                    strict = False
                    self._truncated.add(at)
                    break
                elif str(pixels) == reason:
                    self._failed.add(at)
                else:
                    self._fail(at, pixels)
                    reason = str(pixels)
                at += 1
        self._shared_targets.pop(self._parts[i], None)

    def _decoded(self, which: range, data: Any, strict: bool) -> Iterator[np.ndarray | BadImage]:
        sizes = [self._places[i][4] for i in which]
        boxes = [None if self._boxes is None else self._boxes[i] for i in which]
        return self._samples.decode_run(which, data, sizes, boxes, strict, self.warnings.append)

    def _use(self, part: int, i: int, pixels: np.ndarray) -> None:
        """Write one image's patches, and read what it brings for its sample."""
        if self._changes_pixels:
            self._stages[part] = "transform"
            try:
                pixels = self._changed(i, pixels)
            except BadImage as error:  # of a target, which the images of the part share
                self._fail(i, error, range(i, self._parts[part + 1]))
                return
        self._stages[part] = "assemble"
        self._place(i, pixels)
        for name, read_with in self._read_with.items():
            if read_with[i] == i:
                try:
                    self._read(name, i)
                except BadImage as error:
                    self._fail(i, error, np.flatnonzero(read_with == i).tolist())
                    return

    def _read_targets(self, i: int) -> tuple[Decoded, int]:
        """Return the targets of image i's file; they are decoded once for the images of a part."""
        first = self._parts[bisect_right(self._parts, i) - 1]
        if first not in self._shared_targets:
            assert self._targets is not None
            orientation = self._samples.orientation(first)
            self._shared_targets[first] = self._targets.decoded(first, self._samples, orientation), orientation
        return self._shared_targets[first]

    def _read(self, name: str, i: int) -> None:
        """Read the label or an extra with image i, whose part was read with its first image."""
        first = self._parts[bisect_right(self._parts, i) - 1]
        if name == _LABEL:
            self._labels[self._column[i]] = self._samples.label(first)
        else:
            self._extras[name][i] = self._samples.extra(first, name)

    def _fail(self, i: int, error: BadImage, which: Sequence[int] = ()) -> None:
        """Record image i as bad, and the images that cannot be used without it as left out with it."""
        self.bad.append((i, self._samples.bad_row(i, error.stage, str(error))))
        self._failed.update((i, *which))

    def _settle(self) -> None:
        if self._failed and self._context.errors.on_bad == "sample":
            self._fail_samples()
        for name, read_with in self._read_with.items():
            self._share(name, read_with)
        if self._failed and self._context.errors.on_bad == "sample":
            self._fail_samples()  # an extra of a sample
        self.lost = sorted(self._failed)
        lost = np.bincount(self._sample[self.lost], minlength=len(self._sample_starts) - 1)
        self.bad_samples = int(np.count_nonzero(lost == np.diff(self._sample_starts)))

    def _fail_samples(self) -> None:
        for sample in np.unique(self._sample[list(self._failed)]).tolist():
            self._failed.update(range(self._sample_starts[sample], self._sample_starts[sample + 1]))

    def _share(self, name: str, read_with: np.ndarray) -> None:
        """Give the images what they share; where the image it is read with is bad, read it with the next one."""
        now = {i: i for i in np.flatnonzero(read_with == np.arange(self.num_images)).tolist()}
        for i, source in enumerate(read_with.tolist()):
            if i in self._failed:
                continue
            if now[source] in self._failed:
                now[source] = i
                try:
                    self._read(name, i)
                except BadImage as error:
                    self._fail(i, error, np.flatnonzero(read_with == source).tolist())
                    continue
            if name == _LABEL:
                self._labels[self._column[i]] = self._labels[self._column[now[source]]]
            else:
                self._extras[name][i] = self._extras[name][now[source]]


def _firsts(begins: np.ndarray) -> np.ndarray:
    """Return for each item the last one up to it at which a run begins, int64."""
    return np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))


def builder_of(
    context: BatchContext, images: Images, counts: Sequence[int], patch_size: int, **of_batch: int
) -> DecodedBatchBuilder:
    """Return the builder of a batch that is decoded; for the arguments see `DecodedBatchBuilder`."""
    kind = DecodedBatchBuilder if images.frame is None else SampleBatchBuilder
    return kind(context, images, counts, patch_size, **of_batch)
