"""What to set, by a sweep: which setting, what it saves, and what it does not tell by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from patchnpack.packer.analysis.baselines import BUCKETS
from patchnpack.packer.analysis.sweep import Setting, Sweep

# A length that more of the images exceed is not advised: its padding is low because it shows the model less.
MAY_EXCEED = 0.01
# Padding that is this near to the best is as good, as a share of the slots: the shorter sequence then has the call.
AS_GOOD = 0.01
# Likewise the packs of algorithms and lookaheads at one length, as a share: the first in the sweep then has the call.
SAME = 0.0005
# One pack more is also as good, where it is no larger a share than this.
ONE_PACK = 0.005
# Settings that take away more of the tokens than this, as a share, show the model other images.
_OTHER_IMAGES = 0.005
_UNEVEN = 1.05
_NOW = "what is set now"


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The setting to choose, and why.

    Attributes:
        best: the setting, at the packing's own patch size (the smallest, if it has several).
        flags: the command line's flags that set it.
        sentences: what to set and what it saves; then what becomes of large images, what it costs, what limits it.
    """

    best: Setting
    flags: str
    sentences: tuple[str, ...]


def best_setting(settings: Sequence[Setting]) -> Setting:
    """The shortest sequence whose padding is as good as the best, of those that at most 1 % of the images exceed.

    Where every length is exceeded by more, of those that take away least. What is set stays unless another is better:
    less padding, and no more slots for the same images.
    """
    fair = [s for s in settings if _fair(s)]
    if not fair:
        least = min(s.lost for s in settings)
        fair = [s for s in settings if s.lost == least]
    current = next((s for s in fair if s.current), None)
    if current is not None:
        fair = [s for s in fair if s.current or _better(s, current)]
    least_padding = min(s.padding for s in fair)
    length = min(s.seq_len for s in fair if s.padding <= least_padding + AS_GOOD)
    of_length = [s for s in fair if s.seq_len == length]
    fewest = min(s.packs for s in of_length)
    good = [s for s in of_length if s.packs - fewest <= max(SAME * fewest, min(1, ONE_PACK * fewest))]
    return next((s for s in good if s.current), good[0])


def _fair(setting: Setting) -> bool:
    return setting.oversize <= MAY_EXCEED * (setting.images + setting.skipped)


def _better(setting: Setting, current: Setting) -> bool:
    if setting.padding >= current.padding - SAME:
        return False
    return not _same_images(setting, current) or setting.slots < current.slots


def _same_images(one: Setting, other: Setting) -> bool:
    return abs(one.lost - other.lost) < _OTHER_IMAGES


def advise(sweep: Sweep) -> Advice:
    """The setting to choose, and the sentences that say so; honest about what is not comparable.

    >>> import numpy as np
    >>> from patchnpack.packer import Packing, Rows
    >>> from patchnpack.packer.analysis.sweep import sweep
    >>> rows = Rows.of_sizes(np.full(1000, 512), np.full(1000, 384))
    >>> advice = advise(sweep(rows, Packing(seq_len=1024)))
    >>> advice.flags
    '--seq-len 1536 --algorithm next_fit'
    >>> print(advice.sentences[0])
    Set --seq-len 1536 --algorithm next_fit: 0.0% of the slots are padding, now 25.0%.
    """
    own = min(sweep.packing.patch_sizes)
    best = best_setting([s for s in sweep.settings if s.patch_size == own])
    flags = f"--seq-len {best.seq_len} --algorithm {best.algorithm}"
    if best.algorithm != "next_fit":
        flags += f" --lookahead {best.lookahead}"
    if best.fill != sweep.packing.fill:
        flags += f" --fill {best.fill}"
    sentences = [
        _what(best, flags, sweep.current),
        _saves(best, sweep.current),
        _exceeded(best, sweep),
        *_length(best, sweep, own),
        *_limits(best, sweep),
        *_other_patch_sizes(sweep, own),
    ]
    return Advice(best=best, flags=flags, sentences=tuple(sentence for sentence in sentences if sentence))


def _what(best: Setting, flags: str, current: Setting | None) -> str:
    padding = f"{_percent(best.padding)} of the slots are padding"
    if best.current:
        return f"Keep what is set, {flags}: {padding}."
    now = "" if current is None else f", now {_percent(current.padding)}"
    return f"Set {flags}: {padding}{now}."


def _saves(best: Setting, current: Setting | None) -> str:
    buckets = f"{BUCKETS} buckets of like length"
    ways = [("padding each image to the longest", best.saved_longest)]
    if best.algorithm != "next_fit":
        ways.insert(0, ("next-fit at this length", best.saved_next_fit))
    if current is not None and not best.current and _same_images(best, current):
        ways.append((_NOW, 1 - best.slots / current.slots))
    ways.append((buckets, best.saved_bucketed))
    of = {way: f"of {way}" if way in (_NOW, buckets) else f"of the slots of {way}" for way, _ in ways}
    saved = [f"{_percent(share)} {of[way]}" for way, share in ways if share > 0]
    words = []
    if saved:
        *first, last = saved
        words.append(f"It saves {', '.join(first)}{' and ' if first else ''}{last}.")
    for way, share in ways:
        if share < 0:
            but = ", but a batch would hold images of like size only" if way == buckets else ""
            verb = "needs" if way == _NOW else "would need"
            words.append(f"{way[0].upper()}{way[1:]} {verb} {_percent(1 - 1 / (1 - share))} fewer slots{but}.")
    return " ".join(words)


def _exceeded(best: Setting, sweep: Sweep) -> str:
    how = {
        "shrink": "are made smaller",
        "drop": "lose tokens",
        "skip": "are left out",
        "error": "are an error",
    }[sweep.packing.oversize]
    current = sweep.current
    words = [_who(best, how, sweep.images)]
    if best.oversize > MAY_EXCEED * sweep.images:
        words.append(
            "No length of the sweep does better: try longer ones, or choose the size on purpose, with --resolution "
            "fit:TOKENS."
        )
    if current is not None and not best.current and current.lost > best.lost + _OTHER_IMAGES:
        words.append(
            f"With the {current.seq_len:,} slots that are set, {_share(current.oversize, sweep.images)} {how}, and "
            f"{_percent(current.lost)} of the tokens are gone: its figures are those of other images."
        )
    elif current is not None and not best.current and not _fair(current):
        words.append(
            f"With the {current.seq_len:,} slots that are set, {_share(current.oversize, sweep.images)} {how}."
        )
    return " ".join(words)


def _who(setting: Setting, how: str, images: int) -> str:
    if not setting.oversize:
        return f"All images fit: none has more than {setting.seq_len:,} tokens."
    return (
        f"{_share(setting.oversize, images)} have more than {setting.seq_len:,} tokens and {how}, which takes "
        f"{_percent(setting.lost, 2)} of all tokens."
    )


def _length(best: Setting, sweep: Sweep, own: int) -> list[str]:
    words = []
    longer = [s.padding for s in sweep.settings if s.patch_size == own and s.seq_len > best.seq_len]
    if longer:
        gain = best.padding - min(longer)
        words.append(
            f"Longer sequences gain {100 * gain:.2f} points at most."
            if gain > 0.00005
            else "Longer sequences gain nothing."
        )
    words.append(
        "Attention costs the same at any length that takes nothing away, since each image attends to itself; memory "
        f"does not: a pack is {best.pack_bytes / 2**20:.2f} MiB in a batch, so a longer sequence wants a smaller "
        "batch_size."
    )
    return words


def _limits(best: Setting, sweep: Sweep) -> list[str]:
    words = []
    if best.at_most_images > 0.01 * best.packs:
        words.append(
            f"{_share(best.at_most_images, best.packs, 'packs')} hold {sweep.packing.max_images} images and are not "
            "full: raise --max-images."
        )
    if best.model_imbalance > _UNEVEN:
        words.append(
            f"The dearest of {sweep.ranks} packs that run side by side costs {best.model_imbalance:.2f} times their "
            f"mean, in a model of width {sweep.width}: the other ranks wait. A larger --balance, or more packs in a "
            "batch, evens it."
        )
    return words


def _other_patch_sizes(sweep: Sweep, own: int) -> list[str]:
    words = []
    for size in sorted({s.patch_size for s in sweep.settings} - {own}):
        other = best_setting([s for s in sweep.settings if s.patch_size == size])
        words.append(
            f"At patch size {size}, which is another model, {other.seq_len:,} slots and {other.algorithm} leave "
            f"{_percent(other.padding)} padding."
        )
    return words


def _percent(share: float, digits: int = 1) -> str:
    return f"{share:.{digits}%}"


def _share(count: int, of: int, what: str = "images") -> str:
    return f"{count:,} of {of:,} {what} ({_percent(count / of)})"
