from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from patchnpack.packer import Packing, PatchSizes, Rows
from patchnpack.packer.analysis.advice import Advice, advise, best_setting
from patchnpack.packer.analysis.sweep import sweep


def _advice(rows: Rows, packing: Packing, **settings: Any) -> Advice:
    return advise(sweep(rows, packing, **settings))


def _of(tokens: list[int]) -> Rows:
    """Images of so many tokens at patch size 16, one row of patches each."""
    return Rows.of_sizes([16 * n for n in tokens], [16] * len(tokens))


def test_a_length_that_the_images_exceed_is_not_advised_however_well_it_fills() -> None:
    rows = Rows.of_sizes(
        np.full(1000, 640), np.full(1000, 640)
    )  # 1,600 tokens, and 16 x 16 once they are shrunk to 256
    swept = sweep(rows, Packing(seq_len=256), seq_lens=[256, 4096])
    shrinking = [s for s in swept.settings if s.seq_len == 256]
    assert all(s.padding == 0 for s in shrinking)
    advice = advise(swept)
    assert advice.best.seq_len == 4096
    assert advice.best.padding > 0.2
    said = " ".join(advice.sentences)
    assert "With the 256 slots that are set, 1,000 of 1,000 images (100.0%) are made smaller, and 84.0% of the" in said
    assert "of what is set now" not in said


def test_where_every_length_is_exceeded_the_least_harmful_is_advised_and_that_is_said() -> None:
    rows = Rows.of_sizes(np.full(100, 640), np.full(100, 640))
    advice = _advice(rows, Packing(seq_len=256), seq_lens=[256, 400])
    assert advice.best.seq_len == 400
    said = " ".join(advice.sentences)
    assert (
        "100 of 100 images (100.0%) have more than 400 tokens and are made smaller, which takes 75.00% of all" in said
    )
    assert "No length of the sweep does better" in said


def test_of_lengths_that_fill_alike_the_shortest_is_advised() -> None:
    advice = _advice(_of([64] * 1024), Packing(seq_len=128), seq_lens=[128, 256, 512])
    assert advice.best.seq_len == 128
    assert advice.sentences[0].startswith("Keep what is set, --seq-len 128 --algorithm ")
    assert "Longer sequences gain nothing." in advice.sentences


def test_savings_are_those_of_the_slots() -> None:
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(48, 700, (2, 3000)))
    swept = sweep(rows, Packing(seq_len=2048), seq_lens=[2048, 4096])
    advice, current = advise(swept), swept.current
    best = advice.best
    assert current is not None
    next_fit = next(s for s in swept.settings if s.algorithm == "next_fit" and s.seq_len == best.seq_len)
    said = " ".join(advice.sentences)
    assert f"It saves {1 - best.slots / next_fit.slots:.1%} of the slots of next-fit at this length" in said
    assert f"{1 - best.slots / best.slots_longest:.1%} of the slots of padding each image to the longest" in said


def test_bucketing_that_needs_fewer_slots_is_admitted() -> None:
    rows = _of([600] * 900 + [1000] * 100)  # two do not fit into 1,024 slots; two buckets fit them to the slot
    advice = _advice(rows, Packing(seq_len=1024), seq_lens=[1024])
    best = advice.best
    assert best.saved_bucketed < 0
    share = 1 - best.slots_bucketed / best.slots
    assert f"8 buckets of like length would need {share:.1%} fewer slots" in " ".join(advice.sentences)


def test_the_number_of_images_per_pack_is_named_where_it_is_what_limits() -> None:
    advice = _advice(_of([4] * 5000), Packing(seq_len=1024, max_images=16), seq_lens=[1024])
    assert any("hold 16 images and are not full: raise --max-images." in sentence for sentence in advice.sentences)


def test_ranks_that_wait_are_told() -> None:
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(48, 1500, (2, 3000)))
    uneven = _advice(rows, Packing(seq_len=16384, balance=0), seq_lens=[16384], width=64)
    assert any("packs that run side by side costs" in sentence for sentence in uneven.sentences)
    even = _advice(rows, Packing(seq_len=16384), seq_lens=[16384], width=4096)
    assert not any("packs that run side by side costs" in sentence for sentence in even.sentences)


def test_another_patch_size_is_another_model_and_never_the_advice_itself() -> None:
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(48, 700, (2, 1000)))
    advice = _advice(rows, Packing(seq_len=2048), patch_sizes=[32], seq_lens=[2048])
    assert advice.best.patch_size == 16
    assert advice.sentences[-1].startswith("At patch size 32, which is another model, 2,048 slots")
    several = _advice(rows, Packing(seq_len=2048, patch_size=PatchSizes((32, 16))), seq_lens=[2048])
    assert several.best.patch_size == 16


def test_of_settings_that_pack_alike_the_one_that_is_set_stays() -> None:
    settings = sweep(_of([64] * 256), Packing(seq_len=128, algorithm="subset_sum"), seq_lens=[128]).settings
    assert best_setting(settings).current
    assert best_setting([s for s in settings if not s.current]) == settings[0]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_advised_for_a_few_images_is_better_than_what_is_set_or_is_what_is_set(seed: int) -> None:
    rows = _of(np.random.default_rng(seed).integers(40, 160, 49).tolist())
    swept = sweep(rows, Packing(seq_len=576))
    best, current = advise(swept).best, swept.current
    assert current is not None
    assert best.current or (best.padding < current.padding and best.slots < current.slots)


@pytest.mark.parametrize("seed", range(8))
def test_of_few_packs_one_more_is_not_as_good(seed: int) -> None:
    rows = _of(np.random.default_rng(seed).integers(40, 160, 49).tolist())
    swept = sweep(rows, Packing(seq_len=576))
    best = advise(swept).best
    assert best.current or best.packs == min(s.packs for s in swept.settings if s.seq_len == best.seq_len)


def test_one_pack_more_is_as_good_where_it_is_a_small_share_of_them() -> None:
    (setting,) = sweep(_of([64] * 256), Packing(seq_len=128), seq_lens=[128], algorithms=["next_fit"]).settings[:1]
    for packs, first in ((199, False), (200, True)):
        fewest = replace(setting, current=False, packs=packs, tokens=128 * packs - 64)
        one_more = replace(fewest, packs=packs + 1)
        assert (best_setting([one_more, fewest]) is one_more) == first


def test_what_is_set_stays_where_a_shorter_sequence_would_pad_more() -> None:
    rows = _of(np.random.default_rng(0).integers(100, 500, 2000).tolist())
    swept = sweep(rows, Packing(seq_len=4096), seq_lens=[2048, 4096], algorithms=["largest_fit"])
    assert min(s.padding for s in swept.settings if s.seq_len == 2048) < min(s.padding for s in swept.settings) + 0.01
    advice = advise(swept)
    assert advice.best.current
    assert advice.sentences[0].startswith("Keep what is set, --seq-len 4096 --algorithm subset_sum --lookahead 256: ")
    assert "of what is set now" not in " ".join(advice.sentences)


@pytest.mark.parametrize(
    ("tokens", "packing", "lengths", "says"),
    [
        ([600] * 1000, 1024, [1024], ["Padding each image to the longest would need 41.4% fewer slots."]),
        ([100], 1024, [1024], ["Padding each image to the longest would need 90.2% fewer slots."]),
        (
            [256] * 970 + [260] * 30,
            256,
            [256, 260],
            [
                "What is set now needs 1.5% fewer slots.",
                "With the 256 slots that are set, 30 of 1,000 images (3.0%) are made smaller.",
            ],
        ),
    ],
)
def test_a_way_that_needs_fewer_slots_is_named_and_no_saving_is_negative(
    tokens: list[int], packing: int, lengths: list[int], says: list[str]
) -> None:
    said = " ".join(_advice(_of(tokens), Packing(seq_len=packing), seq_lens=lengths).sentences)
    assert all(sentence in said for sentence in says)
    assert " -" not in said.replace(" --", "")  # the flags
