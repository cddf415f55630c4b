"""`advise`: recommend a setting from a sweep, with its savings and its limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from patchnpack.packer.analysis.baselines import BUCKETS
from patchnpack.packer.analysis.length_search import EQUAL_PADDING, TOLERANCE, LengthSearch
from patchnpack.packer.analysis.setting import MAX_OVERSIZE, Setting, Sweep
from patchnpack.packer.analysis.sweep import ROUND_MULTIPLES
from patchnpack.packer.text import counted

# Pack counts within this share count as equal at one length: the first algorithm and lookahead of the sweep is
# preferred.
EQUAL_PACKS = 0.0005
# One more pack also counts as equal, where it is at most this share of the packs.
ONE_PACK = 0.001
# Settings whose shares of removed tokens differ by more than this do not show the model the same images.
_OTHER_IMAGES = 0.005
_UNEVEN = 1.05
_CURRENT = "the current setting"


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The recommended setting, and why.

    Attributes:
        best: the setting, at the packing's own patch size (the smallest, if it has several).
        flags: the command-line flags that set it.
        sentences: what to set and what that saves; then the treatment of large images, the cost, and the limits.
    """

    best: Setting
    flags: str
    sentences: tuple[str, ...]


def best_setting(settings: Sequence[Setting]) -> Setting:
    """The setting to recommend: the shortest sequence whose padding equals the best.

    Only lengths that at most 1 % of the images exceed are compared.

    If more images exceed every length, the lengths that remove the fewest tokens are compared. The current setting is
    kept unless another one pads less and needs no more slots for the same images.
    """
    acceptable = [s for s in settings if _acceptable(s)]
    if not acceptable:
        least = min(s.lost for s in settings)
        acceptable = [s for s in settings if s.lost == least]
    current = next((s for s in acceptable if s.current), None)
    if current is not None:
        acceptable = [s for s in acceptable if s.current or _better(s, current)]
    least_padding = min(s.padding for s in acceptable)
    length = min(s.seq_len for s in acceptable if s.padding <= least_padding + EQUAL_PADDING)
    # A fill that trims makes fewer packs where it removes more tokens, so few packs do not imply little padding.
    least_of_length = min(s.padding for s in acceptable if s.seq_len == length)
    of_length = [s for s in acceptable if s.seq_len == length and s.padding <= least_of_length + ONE_PACK]
    fewest = min(s.packs for s in of_length)
    good = [s for s in of_length if s.packs - fewest <= max(EQUAL_PACKS * fewest, min(1, ONE_PACK * fewest))]
    return next((s for s in good if s.current), good[0])


def _acceptable(setting: Setting) -> bool:
    return setting.oversize <= MAX_OVERSIZE * (setting.samples + setting.skipped)


def _better(setting: Setting, current: Setting) -> bool:
    if setting.padding >= current.padding - EQUAL_PACKS:
        return False
    return not _same_images(setting, current) or setting.slots < current.slots


def _same_images(one: Setting, other: Setting) -> bool:
    return abs(one.lost - other.lost) < _OTHER_IMAGES


def advise(sweep: Sweep) -> Advice:
    """Recommend a setting, and explain it; figures that are not comparable are named.

    >>> import numpy as np
    >>> from patchnpack.packer import Packing, Rows
    >>> from patchnpack.packer.analysis.sweep import sweep
    >>> rows = Rows.of_sizes(np.full(1000, 512), np.full(1000, 384))
    >>> advice = advise(sweep(rows, Packing(seq_len=1024)))
    >>> advice.flags
    '--seq-len 768 --algorithm next_fit'
    >>> print(advice.sentences[0])
    Set --seq-len 768 --algorithm next_fit: 0.0% of the slots are padding, compared with 25.0% now.
    """
    own = min(sweep.packing.patch_sizes)
    best = best_setting([s for s in sweep.settings if s.patch_size == own])
    flags = f"--seq-len {best.seq_len} --algorithm {best.algorithm}"
    if best.algorithm != "next_fit":
        flags += f" --lookahead {best.lookahead}"
    if best.fill != sweep.packing.fill:
        flags += f" --fill {best.fill}"
    sentences = [
        _setting(best, flags, sweep.current),
        _savings(best, sweep.current, sweep.item),
        _large_images(best, sweep),
        *_other_lengths(best, sweep, own),
        _round(best, sweep, own),
        _costs(best, sweep, own),
        *_limits(best, sweep),
        *_other_patch_sizes(sweep, own),
    ]
    return Advice(best=best, flags=flags, sentences=tuple(sentence for sentence in sentences if sentence))


def _setting(best: Setting, flags: str, current: Setting | None) -> str:
    padding = f"{_percent(best.padding)} of the slots are padding"
    if best.current:
        return f"Keep the current setting, {flags}: {padding}."
    compared = "" if current is None else f", compared with {_percent(current.padding)} now"
    return f"Set {flags}: {padding}{compared}."


def _savings(best: Setting, current: Setting | None, item: str) -> str:
    """The slots saved compared with each baseline, then each baseline that needs fewer slots."""
    buckets = f"{BUCKETS} buckets of similar length"
    shares = [(f"padding each {item} to the longest", best.saved_longest)]
    if best.algorithm != "next_fit":
        shares.insert(0, ("next-fit at this length", best.saved_next_fit))
    if current is not None and not best.current and _same_images(best, current):
        shares.append((_CURRENT, 1 - best.slots / current.slots))
    shares.append((buckets, best.saved_bucketed))
    saved = [f"{_percent(share)} compared with {baseline}" for baseline, share in shares if share > 0]
    words = []
    if saved:
        *first, last = saved
        words.append(f"Slots saved: {', '.join(first)}{' and ' if first else ''}{last}.")
    for baseline, share in shares:
        if share < 0:
            caveat = f", but a batch would hold only {item}s of similar size" if baseline == buckets else ""
            verb = "needs" if baseline == _CURRENT else "would need"
            fewer = _percent(1 - 1 / (1 - share))
            words.append(f"{baseline[0].upper()}{baseline[1:]} {verb} {fewer} fewer slots{caveat}.")
    return " ".join(words)


def _large_images(best: Setting, sweep: Sweep) -> str:
    treated = {
        "shrink": "are shrunk",
        "drop": "lose tokens",
        "skip": "are skipped",
        "error": "raise an error",
    }[sweep.packing.oversize]
    current, what = sweep.current, f"{sweep.item}s"
    words = [_oversize(best, treated, sweep)]
    if best.oversize > MAX_OVERSIZE * sweep.samples:
        fewer = ", or their number with --frames" if sweep.item == "sample" else ""
        words.append(
            "No length in the sweep does better: try longer ones with --sweep-seq-len, or limit the size of the images "
            f"with --resolution fit:TOKENS{fewer}."
        )
    if current is not None and not best.current:
        exceeding = (
            f"At the current {current.seq_len:,} slots, {_share(current.oversize, sweep.samples, what)} {treated}"
        )
        if current.lost > best.lost + _OTHER_IMAGES:
            words.append(
                f"{exceeding}, which removes {_percent(current.lost)} of all tokens: the figures of "
                f"this setting are not comparable, since they are those of other {what}."
            )
        elif not _acceptable(current):
            words.append(f"{exceeding}.")
    return " ".join(words)


def _oversize(setting: Setting, treated: str, sweep: Sweep) -> str:
    limit = f"more than {setting.seq_len:,} tokens"
    if sweep.item == "sample":
        limit += f" or {counted(sweep.packing.max_images, 'image')}"
    if not setting.oversize:
        return f"All {sweep.item}s fit: none has {limit}."
    return (
        f"{_share(setting.oversize, sweep.samples, f'{sweep.item}s')} have {limit} and {treated}, which removes "
        f"{_percent(setting.lost, 2)} of all tokens."
    )


def _other_lengths(best: Setting, sweep: Sweep, own: int) -> list[str]:
    """What other lengths gain at most: all in the range of a search, or the longer ones of those given."""
    search = _search(sweep, own)
    if search is not None:
        least = min(s.padding for s in sweep.settings if s.patch_size == own and (s == best or _acceptable(s)))
        # The bound of a search assumes that a packer never does better at a length than at a longer one. Packers do, by
        # little.
        gain = min(best.padding, max(0.0, best.padding - least) + max(search.gap, TOLERANCE))
        multiples = f"multiple of {search.multiple}" if search.multiple > 1 else "length"
        some = f", measured on {search.samples:,} {sweep.item}s" if search.samples < best.samples else ""
        points = f" by more than {math.ceil(1e4 * gain) / 100:.2f} percentage points" if gain > 0.00005 else ""
        between = f"from {search.shortest:,} to {search.longest:,} slots"
        return [f"No {multiples} {between} reduces padding{points}{some}."]
    longer = [s.padding for s in sweep.settings if s.patch_size == own and s.seq_len > best.seq_len]
    if not longer:
        return []
    gain = best.padding - min(longer)
    if gain <= 0.00005:
        return ["The longer sequences that were tried do not reduce padding."]
    return [f"The longer sequences that were tried reduce padding by at most {100 * gain:.2f} percentage points."]


def _search(sweep: Sweep, patch_size: int) -> LengthSearch | None:
    return next((search for search in sweep.searches if search.patch_size == patch_size), None)


def _round(best: Setting, sweep: Sweep, own: int) -> str:
    """The padding of the next lengths that are multiples of 64 and 128, where the length is of no such multiple."""
    search = _search(sweep, own)
    if search is None or search.multiple > 1:
        return ""
    padding: dict[int, float] = {}
    for s in sweep.settings:
        if s.patch_size == own:
            padding[s.seq_len] = min(s.padding, padding.get(s.seq_len, 1.0))
    nexts = {-(-best.seq_len // multiple) * multiple: multiple for multiple in ROUND_MULTIPLES}
    found = [
        f"{length:,} slots, a multiple of {multiple}, leave {_percent(padding[length])} padding"
        for length, multiple in nexts.items()
        if length != best.seq_len and length in padding
    ]
    if not found:
        return ""
    return f"{' and '.join(found)}; --sweep-multiple {ROUND_MULTIPLES[-1]} searches only multiples of it."


def _costs(best: Setting, sweep: Sweep, own: int) -> str:
    shorter = [s for s in sweep.settings if s.patch_size == own and 2 * s.seq_len <= best.seq_len and _acceptable(s)]
    half = min(shorter, key=lambda s: s.padding, default=None)
    memory = f"{best.pack_bytes / 2**20:.2f} MiB"
    return (
        "Attention costs the same at every length that removes no tokens, since each "
        f"{sweep.packing.scope} attends only to itself. Memory grows with the length: a pack takes {memory} of a "
        "batch, so longer sequences need a smaller batch_size."
        + (
            f" At half the length or less, {half.seq_len:,} slots leave {_percent(half.padding)} padding."
            if half
            else ""
        )
    )


def _limits(best: Setting, sweep: Sweep) -> list[str]:
    words = []
    if best.at_most_images > 0.01 * best.packs:
        words.append(
            f"{_share(best.at_most_images, best.packs, 'packs')} hold the maximum of {sweep.packing.max_images} images "
            "but are not full: raise --max-images."
        )
    if best.model_imbalance > _UNEVEN:
        words.append(
            f"The costliest of {sweep.ranks} parallel packs costs {best.model_imbalance:.2f} times their mean in a "
            f"model of width {sweep.width}, and the other ranks wait: raise --balance, or put more packs in a batch."
        )
    return words


def _other_patch_sizes(sweep: Sweep, own: int) -> list[str]:
    words = []
    for size in sorted({s.patch_size for s in sweep.settings} - {own}):
        other = best_setting([s for s in sweep.settings if s.patch_size == size])
        words.append(
            f"At patch size {size}, which makes a different model, {other.seq_len:,} slots and {other.algorithm} leave "
            f"{_percent(other.padding)} padding."
        )
    return words


def _percent(share: float, digits: int = 1) -> str:
    return f"{share:.{digits}%}"


def _share(count: int, of: int, what: str = "images") -> str:
    return f"{count:,} of {of:,} {what} ({_percent(count / of)})"
