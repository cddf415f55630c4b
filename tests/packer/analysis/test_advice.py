from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from patchnpack.packer import Packing, PatchSizes, Rows
from patchnpack.packer.analysis.advice import Advice, advise, best_setting
from patchnpack.packer.analysis.setting import Setting
from patchnpack.packer.analysis.sweep import sweep


def _advice(rows: Rows, packing: Packing, **settings: Any) -> Advice:
    return advise(sweep(rows, packing, **settings))


def _text(advice: Advice) -> str:
    return " ".join(advice.sentences)


def _naming(advice: Advice, *facts: str) -> list[str]:
    """The sentences that name all the given flags and figures."""
    return [sentence for sentence in advice.sentences if all(fact in sentence for fact in facts)]


def _saving(setting: Setting, slots: int) -> str:
    """The share of slots saved by the cheaper of `setting` and a baseline of `slots` slots, as a percentage."""
    few, many = sorted((setting.slots, slots))
    return f"{1 - few / many:.1%}"


def _of(tokens: list[int]) -> Rows:
    """Images of the given token counts at patch size 16, one row of patches each."""
    return Rows.of_sizes([16 * n for n in tokens], [16] * len(tokens))


def test_a_length_that_images_exceed_is_not_advised_however_little_it_pads() -> None:
    rows = Rows.of_sizes(np.full(1000, 640), np.full(1000, 640))  # 1,600 tokens, or 16 x 16 when shrunk to 256
    swept = sweep(rows, Packing(seq_len=256), seq_lens=[256, 4096])
    shrinking = [s for s in swept.settings if s.seq_len == 256]
    assert all(s.padding == 0 for s in shrinking)
    advice = advise(swept)
    assert advice.best.seq_len == 4096
    assert advice.best.padding > 0.2
    assert _naming(advice, "256 slots", "1,000 of 1,000 images (100.0%)", "84.0%")
    assert swept.current is not None
    assert _saving(advice.best, swept.current.slots) not in _text(advice)  # not comparable, so not compared


def test_where_images_exceed_every_length_the_least_harmful_is_advised_and_remedies_are_named() -> None:
    rows = Rows.of_sizes(np.full(100, 640), np.full(100, 640))
    advice = _advice(rows, Packing(seq_len=256), seq_lens=[256, 400])
    assert advice.best.seq_len == 400
    assert _naming(advice, "100 of 100 images (100.0%)", "400 tokens", "75.00%")
    assert _naming(advice, "--sweep-seq-len", "--resolution fit:TOKENS")


def test_of_lengths_that_pad_equally_the_shortest_is_advised() -> None:
    advice = _advice(_of([64] * 1024), Packing(seq_len=128), seq_lens=[128, 256, 512])
    assert advice.best.seq_len == 128
    assert advice.best.current
    assert f"{advice.flags}: 0.0%" in advice.sentences[0]
    assert not _naming(advice, "percentage points")  # longer sequences gain nothing
    gaining = _advice(_of([100] * 1000), Packing(seq_len=501), seq_lens=[501, 1000])
    assert gaining.best.seq_len == 501
    assert _naming(gaining, "0.20 percentage points")


def test_the_advice_bounds_what_other_lengths_gain_and_names_round_and_short_ones() -> None:
    rows = _of([300] * 500 + [512] * 500)
    swept = sweep(rows, Packing(seq_len=1024))
    advice, (search,) = advise(swept), swept.searches
    assert _naming(advice, "No length from 512 to 2,048 slots", "reduces padding")
    assert search.gap < 0.001
    padding = {s.seq_len: s.padding for s in sorted(swept.settings, key=lambda s: -s.padding)}
    for multiple in (64, 128):
        length = -(-advice.best.seq_len // multiple) * multiple
        assert _naming(advice, f"{length:,} slots", f"{padding[length]:.1%} padding")
    assert _naming(advice, "--sweep-multiple 128")
    round_already = _advice(rows, Packing(seq_len=1024), multiple=64)
    assert not _naming(round_already, "--sweep-multiple")
    assert _naming(round_already, "No multiple of 64 from 512 to 2,048 slots")


def test_a_much_shorter_length_is_named() -> None:
    rows = _of(np.random.default_rng(0).integers(200, 500, 1000).tolist())
    swept = sweep(rows, Packing(seq_len=512))
    advice = advise(swept)
    (sentence,) = _naming(advice, "At half the length or less")
    half = [s for s in swept.settings if 2 * s.seq_len <= advice.best.seq_len and s.oversize <= 10]
    least = min(half, key=lambda s: s.padding)
    assert f"{least.seq_len:,} slots leave {least.padding:.1%} padding" in sentence
    assert not _naming(_advice(rows, Packing(seq_len=512), seq_lens=[512]), "At half the length")


def test_savings_are_those_of_the_slots() -> None:
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(48, 700, (2, 3000)))
    swept = sweep(rows, Packing(seq_len=2048), seq_lens=[2048, 4096])
    advice, current = advise(swept), swept.current
    best = advice.best
    assert current is not None
    next_fit = next(s for s in swept.settings if s.algorithm == "next_fit" and s.seq_len == best.seq_len)
    assert _naming(advice, _saving(best, next_fit.slots), "next-fit", _saving(best, best.slots_longest), "the longest")


def test_bucketing_that_needs_fewer_slots_is_reported() -> None:
    rows = _of([600] * 900 + [1000] * 100)  # two do not fit into 1,024 slots; two buckets fit them to the slot
    advice = _advice(rows, Packing(seq_len=1024), seq_lens=[1024])
    best = advice.best
    assert best.saved_bucketed < 0
    assert _naming(advice, "8 buckets", f"{_saving(best, best.slots_bucketed)} fewer slots")


def test_a_limiting_number_of_images_per_pack_is_named() -> None:
    advice = _advice(_of([4] * 5000), Packing(seq_len=1024, max_images=16), seq_lens=[1024])
    assert _naming(advice, "16 images", "--max-images")
    assert not _naming(_advice(_of([4] * 5000), Packing(seq_len=64), seq_lens=[64]), "--max-images")


def test_an_imbalance_of_the_ranks_is_reported() -> None:
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(48, 1500, (2, 3000)))
    uneven = _advice(rows, Packing(seq_len=16384, balance=0), seq_lens=[16384], width=64)
    assert _naming(uneven, "8 parallel packs", f"{uneven.best.model_imbalance:.2f} times", "width 64", "--balance")
    even = _advice(rows, Packing(seq_len=16384), seq_lens=[16384], width=4096)
    assert not _naming(even, "--balance")


def test_another_patch_size_is_mentioned_but_never_advised() -> None:
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(48, 700, (2, 1000)))
    advice = _advice(rows, Packing(seq_len=2048), patch_sizes=[32], seq_lens=[2048])
    assert advice.best.patch_size == 16
    assert _naming(advice, "patch size 32", "2,048 slots") == [advice.sentences[-1]]
    several = _advice(rows, Packing(seq_len=2048, patch_size=PatchSizes((32, 16))), seq_lens=[2048])
    assert several.best.patch_size == 16


def test_of_settings_that_pack_equally_well_the_current_one_is_kept() -> None:
    settings = sweep(_of([64] * 256), Packing(seq_len=128, algorithm="subset_sum"), seq_lens=[128]).settings
    assert best_setting(settings).current
    assert best_setting([s for s in settings if not s.current]) == settings[0]


@pytest.mark.parametrize("seed", range(8))
def test_advice_for_a_few_images_is_better_than_the_current_setting_or_keeps_it(seed: int) -> None:
    rows = _of(np.random.default_rng(seed).integers(40, 160, 49).tolist())
    swept = sweep(rows, Packing(seq_len=576))
    best, current = advise(swept).best, swept.current
    assert current is not None
    assert best.current or (best.padding < current.padding and best.slots < current.slots)


@pytest.mark.parametrize("seed", range(8))
def test_one_more_of_few_packs_is_worse(seed: int) -> None:
    rows = _of(np.random.default_rng(seed).integers(40, 160, 49).tolist())
    swept = sweep(rows, Packing(seq_len=576))
    best = advise(swept).best
    assert best.current or best.packs == min(s.packs for s in swept.settings if s.seq_len == best.seq_len)


def test_one_more_of_many_packs_is_equal() -> None:
    (setting,) = sweep(_of([64] * 256), Packing(seq_len=128), seq_lens=[128], algorithms=["next_fit"]).settings[:1]
    for packs, first in ((999, False), (1000, True)):
        fewest = replace(setting, current=False, packs=packs, tokens=128 * packs - 64)
        one_more = replace(fewest, packs=packs + 1)
        assert (best_setting([one_more, fewest]) is one_more) == first


def test_the_current_setting_is_kept_where_a_shorter_sequence_pads_more() -> None:
    rows = _of(np.random.default_rng(0).integers(100, 500, 2000).tolist())
    swept = sweep(rows, Packing(seq_len=4096), seq_lens=[2048, 4096], algorithms=["largest_fit"])
    assert min(s.padding for s in swept.settings if s.seq_len == 2048) < min(s.padding for s in swept.settings) + 0.01
    advice = advise(swept)
    assert advice.best.current
    assert advice.flags == "--seq-len 4096 --algorithm subset_sum --lookahead 256"
    assert f"{advice.flags}: {advice.best.padding:.1%}" in advice.sentences[0]
    assert " now" not in _text(advice)  # nothing to compare the current setting with


@pytest.mark.parametrize(
    ("tokens", "packing", "lengths", "named"),
    [
        ([600] * 1000, 1024, [1024], [("the longest", "41.4% fewer slots")]),
        ([100], 1024, [1024], [("the longest", "90.2% fewer slots")]),
        (
            [256] * 970 + [260] * 30,
            256,
            [256, 260],
            [("The current setting", "1.5% fewer slots"), ("256 slots", "30 of 1,000 images (3.0%)")],
        ),
    ],
)
def test_a_baseline_that_needs_fewer_slots_is_named_and_no_saving_is_negative(
    tokens: list[int], packing: int, lengths: list[int], named: list[tuple[str, str]]
) -> None:
    advice = _advice(_of(tokens), Packing(seq_len=packing), seq_lens=lengths)
    assert all(_naming(advice, *facts) for facts in named)
    assert " -" not in _text(advice).replace(" --", "")  # the flags
