from __future__ import annotations

from typing import Any

import numpy as np

from patchnpack.packer import Packing, PatchSizes, Rows
from patchnpack.packer.advice import Advice, advise, best_setting
from patchnpack.packer.sweep import sweep


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


def test_the_number_of_images_a_pack_is_named_where_it_is_what_limits() -> None:
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
