"""`pack_stream`: batches of packs from any iterable of samples, without an index and without random access."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from patchnpack.loaders.assembly.stats import Stats
from patchnpack.loaders.assembly.transform import Transform, check_transform, watched
from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.imaging.pages import Pages, check_pages
from patchnpack.loaders.imaging.user_decode import Decode, ImageReader, check_decode, user_formats
from patchnpack.loaders.imaging.values.bands import band_request
from patchnpack.loaders.labels.label_rule import Classes, Label
from patchnpack.loaders.members import check_extensions, checked_extras
from patchnpack.loaders.shards.sample_rule import images_of, is_by_members, sample_rule
from patchnpack.loaders.shards.tar import IMAGE
from patchnpack.loaders.streaming.progress import Progress, has_state
from patchnpack.loaders.streaming.samples import SampleReader
from patchnpack.loaders.streaming.stream import Stream
from patchnpack.loaders.targets.target import BY_MEMBERS, Target, checked_targets, members_of
from patchnpack.packer import PackedBatch, Packing
from patchnpack.packer.checks import check_flag, check_whole, kind_of, shown

# B packs in a batch


def pack_stream(
    samples: Iterable[Any],
    packing: Packing | None = None,
    *,
    batch_size: int,
    image: str = IMAGE,
    label: Label = None,
    classes: Classes = None,
    extras: Sequence[str] = (),
    targets: Mapping[str, Target] | None = None,
    transform: Transform | None = None,
    decode: Decode | None = None,
    formats: Mapping[str, ImageReader] | None = None,
    pages: Pages = "first",
    sample: str | Callable[[str], str] | None = None,
    seed: int = 0,
    drop_last: bool = False,
    num_threads: int | None = None,
    prefetch: int = 2,
    errors: ErrorPolicy | None = None,
) -> PackedStream:
    """Pack the samples of any iterable into `PackedBatch`es as they arrive: a stage for a webdataset pipeline.

    The size of an image is known when its sample arrives. Packs are planned from sizes, in order of arrival, while the
    encoded bytes wait; pixels are decoded once their pack is planned. The batches depend on the samples, `packing` and
    `seed`, not on the threads. Without an index there is no epoch and no even split over ranks; for these see
    `PackedImageLoader`. A stream resumes where `samples` have `state_dict` and `load_state_dict`, as an
    `IterableDataset` of Hugging Face does; see `ResumableStream`.

    ```
    samples    a b c d e f g h ...     at most `lookahead` wait (4 * `lookahead` with "..._decreasing")
    packs      | a c f | b d g h | ...
    ```

    Args:
        samples: dicts from member to value, as webdataset yields them, or (image, label) pairs. An image is encoded
            bytes, a PIL image (turned upright by its EXIF or XMP), a uint8 array (height, width, C) or a dict of bytes
            and path, as Hugging Face's `Image(decode=False)` gives it.
        packing: what a sequence looks like; `Packing()` by default. The first `lookahead` images decide the algorithm
            that "auto" stands for. `balance` has no effect, since it would delay 256 packs. For schedules, each stream
            multiplies its own image count by ranks x workers.
        batch_size: B, packs in a batch.
        image: members that hold the image, separated by ";". If a sample has several, the first one listed is used. A
            member that is None is absent, and the case of names does not matter, here and below. With
            `sample="members"`, the default includes videos.
        label: None, "cls" (or any member that holds text or a number), "json:FIELD", or a callable from a sample's dict
            to an int or an array. The second item of a pair is its label: a number, a text, an array or None.
        classes: names of the classes as a list, a file with one name per line, or a mapping from name to index.
        extras: members for `batch.extras`, by their names in lower case: txt as str, json as object, others as bytes,
            decoded values unchanged; None where a sample lacks the member.
        decode: called with the bytes of each encoded image, as in `PackedImageLoader`; PIL images and arrays skip it.
        formats: readers of formats of your own, as in `PackedImageLoader`; they read the members of these names.
        pages: "first" or "error": what becomes of files with several pages or frames, as in `PackedImageLoader`.
        sample: which images are one sample, and so share a pack, in order. None: each alone. "members": those of one
            item of `samples`: all members that `image` names, in natural order (p2 before p10), the images in a list or
            in an array (frames, height, width, C), and all pages and frames of encoded files. "key:REGEX", or a
            function from a key to a name: neighbouring items whose names agree; the group of the expression, which must
            match the whole key, is the name.
        targets: what follows each image through crop, resize and flip, by name, as in `PackedImageLoader`: encoded
            members, PIL images, arrays and lists. Not with `sample="members"`.
        transform: called as `transform(image, rng)`, or with the targets, as in `PackedImageLoader`.
        seed: seeds every draw. Draws differ between ranks and workers but not between calls: change it each epoch.
        drop_last: leave out an incomplete last batch; otherwise empty packs fill it.
        num_threads: decoding threads; 0 decodes in the caller's thread. None is this process's share of the CPUs, or 0
            in a worker process of a `DataLoader`.
        prefetch: batches decoded ahead of the one in use, at least 1; more if these hold fewer than two images per
            thread.
        errors: what is done about bad images; None is `ErrorPolicy()`.

    Returns:
        An iterator over the batches, a `ResumableStream` if `samples` have a state. `batch.rows` number the samples in
        order of arrival, from 0. `batch.position` is the number of packs so far, and `batch.epoch` is 0.

    Raises:
        ValueError: an option is out of range. While iterating: a sample or image has an unsupported type, a label is
            neither a number nor a known class, or none of the first 1,000 samples has an image, a label or a member
            that was asked for. Also an image that `packing` refuses: `oversize="error"` or `undersize="error"`.

    An image that cannot be read is logged, counted and left out; `stats()` lists it.

    >>> import numpy as np
    >>> pairs = [(np.zeros((32, 48, 3), np.uint8), label) for label in range(5)]
    >>> stream = pack_stream(pairs, Packing(seq_len=16, patch_size=16), batch_size=2)
    >>> [batch.labels[batch.image_mask].tolist() for batch in stream]
    [[0, 1, 2, 3], [4]]
    """
    _check_options(samples, packing, errors, batch_size, prefetch, num_threads)
    check_extensions(image)
    extras = checked_extras(extras)
    check_whole("seed", seed, least=-(1 << 63))
    check_flag("drop_last", drop_last)
    check_decode(decode)
    check_pages(pages)
    targets = checked_targets(targets)
    check_transform(transform, bool(targets))
    rule = sample_rule(sample)
    if targets and is_by_members(rule):
        raise ValueError(BY_MEMBERS)
    own = user_formats(formats)
    image = images_of(image, rule, [format.name for format in own])
    if is_by_members(rule) and pages == "error":
        raise ValueError(
            "pages is 'error', which refuses files of several pages, and sample is 'members', which uses all their "
            "pages; leave out one of the two"
        )
    stats, policy = Stats(), errors if errors is not None else ErrorPolicy()
    progress = Progress(samples, None if rule is None else rule.name) if has_state(samples) else None
    stream = Stream(
        samples=samples,
        reader=SampleReader(
            image,
            label,
            classes,
            extras,
            policy,
            any_kind=decode is not None,
            pages=pages,
            rule=rule,
            bands=band_request(packing or Packing()),
            targets=list(dict.fromkeys(name for target in targets.values() for name in members_of(target))),
            formats=own,
        ),
        rule=rule,
        packing=packing if packing is not None else Packing(),
        batch_size=batch_size,
        decode=decode,
        formats=own,
        transform=watched(transform),
        seed=seed,
        drop_last=drop_last,
        num_threads=num_threads,
        prefetch=prefetch,
        stats=stats,
        errors=policy,
        progress=progress,
        targets=targets,
    )
    if progress is not None:
        return ResumableStream(stream.batches(), stats, progress)
    return PackedStream(stream.batches(), stats)


def _check_options(
    samples: Iterable[Any],
    packing: object,
    errors: object,
    batch_size: int,
    prefetch: int,
    num_threads: int | None,
) -> None:
    # Objects that have only `__getitem__`, such as torch's data sets, are iterable, too.
    if isinstance(samples, str | bytes | os.PathLike | Mapping | type) or not (
        hasattr(samples, "__iter__") or hasattr(samples, "__getitem__")
    ):
        what = f"the class {samples.__name__}" if isinstance(samples, type) else f"a {kind_of(samples)}"
        called = " Call it, and give what it returns" if callable(samples) else ""
        raise ValueError(
            f"samples is {what}; it must be an iterable of samples, such as a webdataset pipeline."
            f"{called or ' To load shards by name, use PackedImageLoader'}"
        )
    if packing is not None and not isinstance(packing, Packing):
        raise ValueError(f"packing is {shown(packing)}; give Packing(seq_len=...)")
    if errors is not None and not isinstance(errors, ErrorPolicy):
        raise ValueError(f"errors is {shown(errors)}; give ErrorPolicy(on_error=...)")
    check_whole("batch_size", batch_size)
    check_whole("prefetch", prefetch)
    if num_threads is not None:
        check_whole("num_threads", num_threads, least=0)


class PackedStream(Iterator[PackedBatch]):
    """An iterator over the batches of a stream. Its threads end when it is closed or no longer referenced."""

    def __init__(self, batches: Generator[PackedBatch, None, None], stats: Stats) -> None:
        self._batches, self._stats = batches, stats

    def __next__(self) -> PackedBatch:
        return next(self._batches)

    def __repr__(self) -> str:
        stats = self._stats.report()
        return f"PackedStream, so far {stats['batches']:,} batches of {stats['images']:,} images"

    def __getattr__(self, name: str) -> Any:
        # Not methods: whoever asks whether the stream has a state must learn that it has none.
        if name in ("state_dict", "load_state_dict"):
            raise AttributeError(
                f"the stream has no {name}, since its samples have none: it resumes if they come from an iterable with "
                "state_dict and load_state_dict, such as Hugging Face's IterableDataset; or use PackedImageLoader"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def close(self) -> None:
        """End the stream: wait for the images that are being decoded and drop the rest."""
        self._batches.close()

    def stats(self) -> dict[str, Any]:
        """Return the totals so far, as `PackedImageLoader.stats` does.

        Once the stream has ended, samples + bad_samples + skipped + without_image equals the number of samples that
        arrived, or of groups, where `sample` joins them. Samples that are in no batch are counted with the next batch.
        """
        return self._stats.report()


class ResumableStream(PackedStream):
    """A `PackedStream` over samples with a state: it can save its own state and resume.

    ```python
    stream = pack_stream(dataset, packing, batch_size=8, image="image")    # a Hugging Face IterableDataset
    stream.load_state_dict(state)                                          # before the first batch
    ```
    """

    def __init__(self, batches: Generator[PackedBatch, None, None], stats: Stats, progress: Progress) -> None:
        super().__init__(batches, stats)
        self._progress = progress
        self._last: tuple[int, int] | None = None  # step and position of the last batch

    def __next__(self) -> PackedBatch:
        batch = super().__next__()
        self._last = batch.step, batch.position
        return batch

    def state_dict(self, after: PackedBatch | None = None) -> dict[str, Any]:
        """Return the state once `after`, or else the last yielded batch, has been used: a dict of a few kilobytes.

        It holds the state of the samples' iterable before the oldest sample that waits for its pack, and which samples
        since have been used, so that each is used once. `"limits"` says in words what it cannot promise: the packs may
        differ from those of a run without a stop, since samples that waited are planned again.

        Raises:
            ValueError: `after` is not one of the last 64 batches.
        """
        step, position = (after.step, after.position) if after is not None else self._last or self._begin()
        return self._progress.state(step, position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at `state`, before the first batch. The samples' iterable loads its own state.

        Used samples that arrive again are passed over; `stats` does not count them.

        Raises:
            ValueError: a batch has been yielded already, or `state` is not the state of a stream. While iterating: it
                was saved by another rank or worker, or with another number of these.
        """
        if self._last is not None:
            raise ValueError("the stream has begun; load a state before its first batch")
        self._progress.load(state)

    def _begin(self) -> tuple[int, int]:
        return self._progress.step - 1, self._progress.position
