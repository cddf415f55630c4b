"""`Progress`: which samples of a stream have arrived and which are used, so that its state can be saved and loaded."""

from __future__ import annotations

import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from patchnpack.loaders.streaming.samples import BadSample, NoImage, Sample

VERSION = 2
_EVERY = 64  # samples between two states of the iterable: a resumed stream reads up to so many again
_KEPT = 64  # batches whose states can still be asked for
_LIMITS = (
    "Each sample is used once, but samples that waited are packed again: the packs may differ from those of a run "
    "without a stop. If the iterable does not repeat the samples that followed its state, as with a shuffle buffer, "
    "those that it held back may be lost or repeated. The state belongs to one stream of the same number of ranks and "
    "workers."
)


def has_state(samples: Any) -> bool:
    """Return whether an iterable can save its state and resume."""
    return all(callable(getattr(samples, name, None)) for name in ("state_dict", "load_state_dict"))


class Progress:
    """The arrivals of one stream, over an iterable with a state.

    ```
    rows    | u u w u u u w w . .      u used, w waiting, . still to come
            ^ state of the iterable: row and state of the last checkpoint before the oldest waiting sample
    ```

    A state holds the iterable's state at that checkpoint, and the used rows since. A stream that loads it reads the
    samples from there, and passes over those that are used. Samples that are grouped are used together, so a group that
    waits is read again as a whole.

    Args:
        samples: the iterable.
        rule: name of the rule that groups them, None for none.

    Attributes:
        row: the row of the first sample that arrives.
        step, position, seen: batches, packs and samples (groups, where they are grouped) before the first one.
    """

    def __init__(self, samples: Iterable[Any], rule: str | None = None) -> None:
        self._samples: Any = samples
        self._rule = rule
        self.row = self.step = self.position = self.seen = 0
        self._stream: tuple[int, int] | None = None
        self._checkpoints: deque[tuple[int, Any]] = deque([(0, None)])  # None: as the iterable begins
        self._arrived = self._oldest = 0
        self._used: dict[int, int] = {}  # the batch with which each row was used
        self._followers = Counter[int]()  # by the same batch, used rows that are not the first of their group
        self._identities: dict[int, int] = {}
        self._expected: dict[int, int] = {}  # identities of the rows that arrive again
        self._replayed: set[int] = set()  # those of them that were used before the state
        self._unmatched: Counter[int] | None = None  # once the iterable has given other samples than before

    def samples(self, stream: tuple[int, int]) -> Iterator[Any]:
        """Yield the samples of the iterable.

        Args:
            stream: the number of this stream, and of all streams that train together.

        Raises:
            ValueError: the state that was loaded is of another stream.
        """
        if self._stream is not None and self._stream != stream:
            raise ValueError(
                f"the state is of stream {self._stream[0]} of {self._stream[1]}, and this is {stream[0]} of "
                f"{stream[1]}; resume with as many ranks and workers, each with its own state"
            )
        self._stream = stream
        for sample in self._samples:
            yield sample
            if self._arrived - self._checkpoints[-1][0] >= _EVERY:  # now all that arrived has been noted
                self._checkpoints.append((self._arrived, self._samples.state_dict()))

    def arrive(self, read: Sample | BadSample | NoImage) -> bool:
        """Note the next sample; return whether it is new, and not one that was used before the state was saved."""
        identity = _identity(read)
        self._arrived = read.row + 1
        self._identities[read.row] = identity
        if self._unmatched is None and self._expected.get(read.row, identity) != identity:
            to_come = [row for row in self._replayed if row >= read.row]
            self._unmatched = Counter(map(self._expected.__getitem__, to_come))
            for row in to_come:
                del self._used[row]
            warnings.warn(
                "the iterable does not repeat the samples that followed its state, as with a shuffle buffer: samples "
                "that it held back may be lost or repeated",
                stacklevel=2,
            )
        if self._unmatched is None:
            is_new = read.row not in self._replayed
        else:
            is_new = self._unmatched[identity] == 0
            self._unmatched[identity] -= not is_new
        if not is_new:
            self._used[read.row] = self.step - 1
        return is_new

    def use(self, rows: Sequence[int], step: int) -> None:
        """Note the rows of a group that are used by a batch, or left out before it."""
        self._used.update(dict.fromkeys(rows, step))
        if len(rows) > 1:
            self._followers[step] += len(rows) - 1
        self._forget(step - _KEPT)

    def _forget(self, step: int) -> None:
        """Drop what only the states before a batch need."""
        while self._used.get(self._oldest, step) < step:
            self._oldest += 1
        for old in [old for old in self._followers if old < step and len(self._followers) > 2 * _KEPT]:
            self._followers[step] += self._followers.pop(old)
        while len(self._checkpoints) > 1 and self._checkpoints[1][0] <= self._oldest:
            first, _ = self._checkpoints.popleft()
            for row in range(first, self._checkpoints[0][0]):
                self._used.pop(row, None)
                self._identities.pop(row, None)

    def state(self, step: int, position: int) -> dict[str, Any]:
        """Return the state after a batch.

        Raises:
            ValueError: the batch is older than those whose states are kept.
        """
        oldest = self._checkpoints[0][0]
        while self._used.get(oldest, step + 1) <= step:
            oldest += 1
        if step < max(self._used.values(), default=step) - _KEPT:
            raise ValueError(
                f"the batch of step {step} is too old; the states of the last {_KEPT} batches, prefetched ones "
                "included, are kept: save the state sooner"
            )
        row, state = next(one for one in reversed(self._checkpoints) if one[0] <= oldest)
        used = sorted(number for number, by in self._used.items() if number >= row and by <= step)
        return {
            "version": VERSION,
            "limits": _LIMITS,
            "iterable": state,
            "row": row,
            "used": used,
            "identities": [self._identities[number] for number in range(row, used[-1] + 1 if used else row)],
            "step": step + 1,
            "position": position,
            "seen": row + len(used) - sum(count for by, count in self._followers.items() if by <= step),
            "sample": self._rule,
            "stream": self._stream,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Resume at a state; the iterable is set to its own.

        Raises:
            ValueError: it is not the state of a stream.
        """
        try:
            version, row, step, position = (int(state[name]) for name in ("version", "row", "step", "position"))
            seen, rule = int(state.get("seen", 0)), state.get("sample")
            expected = dict(enumerate(map(int, state["identities"]), row))
            replayed = set(map(int, state["used"]))
            stream = None if state["stream"] is None else (int(state["stream"][0]), int(state["stream"][1]))
            iterable = state["iterable"]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"this is not the state of a stream ({type(error).__name__}: {error}); give what state_dict() of "
                "pack_stream returned"
            ) from None
        if not replayed <= expected.keys():
            raise ValueError("the state names used rows without their identities: it is damaged; load another one")
        if version != VERSION:
            raise ValueError(
                f"the state has version {version}, but this release reads {VERSION}; begin the stream again"
            )
        if rule != self._rule:
            raise ValueError(
                f"the state is of a stream with sample={rule!r}, and this one has sample={self._rule!r}; resume with "
                "the same, or begin the stream again"
            )
        if iterable is not None:
            self._samples.load_state_dict(iterable)
        self.row = self._arrived = self._oldest = row
        self.step, self.position, self._stream = step, position, stream
        self._expected, self._replayed = expected, replayed
        self._used, self._identities = dict.fromkeys(replayed, step - 1), dict(expected)
        self._checkpoints = deque([(row, iterable)])
        self.seen, self._followers = seen, Counter({step - 1: row + len(replayed) - seen})


def _identity(read: Sample | BadSample | NoImage) -> int:
    """Return a number by which a sample is recognized when it arrives again: of its images and its label."""
    if not isinstance(read, Sample):
        return 0
    identity = 0
    for picture in read.pictures:
        pixels: Any = picture if isinstance(picture, bytes) else b""
        if isinstance(picture, np.ndarray):
            pixels = np.ascontiguousarray(picture).data
        identity = xxhash.xxh3_64_intdigest(pixels, seed=identity)
    about = f"{[run.header for run in read.runs]} {read.label!r}".encode()
    return xxhash.xxh3_64_intdigest(about, seed=identity)
