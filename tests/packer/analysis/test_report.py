from __future__ import annotations

import importlib
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from patchnpack.packer import BetaDrop, ConstantDrop, FitTokens, Frames, Native, Packing, PatchSizes, Plan, Rows, plan
from patchnpack.packer.analysis.baselines import buckets
from patchnpack.packer.analysis.report import pack_bytes, report
from patchnpack.packer.planning.measure import measure
from patchnpack.report.fields import report_fields
from patchnpack.report.table import facts
from tests.packer.planning.plans import random_rows, random_samples

module = importlib.import_module("patchnpack.packer.analysis.report")


def _rows(n: int = 400) -> Rows:
    return Rows.of_sizes(*np.random.default_rng(3).integers(48, 385, (2, n)))


def test_report_counts_what_the_plan_holds() -> None:
    rows, packing = _rows(), Packing(seq_len=600, token_drop=ConstantDrop(0.3))
    made, found = plan(rows, packing), report(rows, packing)
    assert (found.images, found.packs, found.tokens) == (len(rows), len(made), int(made.tokens().sum()))
    assert found.padding == pytest.approx(1 - made.tokens().sum() / (len(made) * 600))
    assert found.tokens_before_drop == int(made.images.grid.prod(1).sum())
    counts = np.diff(made.offsets)
    assert found.images_per_pack[::2] == (counts.min(), counts.max())
    assert found.images_per_pack[1] == pytest.approx(counts.mean())


def test_every_baseline_holds_every_image() -> None:
    rows = _rows()
    found = report(rows, Packing(seq_len=576))
    packed, next_fit, longest, bucketed, fitted, square = found.baselines
    longest_image = found.tokens_per_image[3]
    assert packed.tokens == next_fit.tokens == longest.tokens == bucketed.tokens == found.tokens
    assert (longest.sequences, longest.slots) == (400, 400 * longest_image)
    assert [baseline.sequences for baseline in (bucketed, fitted, square)] == [400] * 3
    assert [baseline.resized for baseline in found.baselines] == [False] * 4 + [True] * 2
    assert square.padding == 0
    assert packed.slots <= next_fit.slots < longest.slots
    assert packed.attention_cost < bucketed.attention_cost < longest.attention_cost


def test_buckets_hold_equally_many_images_and_are_as_long_as_their_longest() -> None:
    keep = np.random.default_rng(0).integers(1, 100, 803)
    longest, images = buckets(keep)
    assert (len(longest), images.sum(), images.max() - images.min()) == (8, 803, 1)
    parts = np.split(np.sort(keep), np.cumsum(images)[:-1])
    assert longest.tolist() == [part.max() for part in parts]
    bucketed = report(_rows(), Packing(seq_len=576)).baselines[3]
    longest, images = buckets(plan(_rows(), Packing(seq_len=576)).images.keep)
    assert bucketed.slots == (longest * images).sum()


def test_fitted_images_have_the_most_tokens_up_to_the_mean() -> None:
    rows, packing = _rows(), Packing(seq_len=576)
    fitted = report(rows, packing).baselines[4]
    length = fitted.slots // 400
    assert fitted.name == f"fitted to {length} tokens"
    grid = FitTokens(length, upsample=True).sizes(rows.width, rows.height, 16).grid.prod(1)
    assert (fitted.slots, fitted.tokens) == (400 * length, grid.sum())
    assert 0 < fitted.padding < 0.1


def test_square_costs_about_as_much_as_the_mean_image() -> None:
    rows = Rows.of_sizes([320, 160], [160, 320])
    square = report(rows, Packing(seq_len=400)).baselines[-1]
    assert square.name == "resized to 224x224"
    assert square.slots == 2 * 14**2
    assert "100% of images stretched by over 10 %; median 100%" in square.note


def test_next_fit_is_compared_only_with_unpacked_baselines() -> None:
    names = [baseline.name for baseline in report(_rows(), Packing(seq_len=576, algorithm="next_fit")).baselines]
    assert names[0] == "packed, next_fit"
    assert names[1] == "padded to the longest"
    assert len(names) == 5


def test_tokens_are_counted_before_the_resolution_before_the_drop_and_after() -> None:
    rows = Rows.of_sizes([320, 33], [320, 33])
    found = report(rows, Packing(resolution=FitTokens(100), token_drop=ConstantDrop(0.5), fill="none"))
    assert found.tokens_native == 20 * 20 + 3 * 3
    assert found.tokens_before_drop == 10 * 10 + 3 * 3
    assert found.tokens == 50 + 4
    assert found.drop_rate == pytest.approx((1 / 2 + 5 / 9) / 2)


def test_distributions_hold_every_image_and_every_pack() -> None:
    found = report(_rows(), Packing(seq_len=576, token_drop=BetaDrop(0.4, 0.8)))
    shown = found.distributions
    for histogram in (shown.tokens_per_image, shown.aspect, shown.drop_rate):
        assert sum(histogram.counts) == 400
        assert len(histogram.edges) == len(histogram.counts) + 1
    for histogram in (shown.images_per_pack, shown.attention_per_pack):
        assert sum(histogram.counts) == found.packs
    assert (
        np.dot(np.arange(len(shown.images_per_pack.counts)) + found.images_per_pack[0], shown.images_per_pack.counts)
        == 400
    )
    fill = np.array(shown.fill)
    assert (fill[:, 0] <= fill[:, 1]).all()
    assert fill[:, 1].mean() == pytest.approx(1 - found.padding, abs=0.01)
    assert all(sum(pack) <= 576 for pack in shown.packs)


def test_attention_of_packs_is_reported_with_its_spread() -> None:
    rows, packing = _rows(), Packing(seq_len=576)
    cost, found = plan(rows, packing).attention_cost(), report(rows, packing)
    assert found.attention_cost == cost.sum() == found.baselines[0].attention_cost
    assert found.attention_per_pack == pytest.approx((cost.min(), cost.mean(), cost.max()))
    assert found.attention_spread == pytest.approx(cost.std() / cost.mean())


def test_steps_share_all_packs_and_empty_packs_fill_the_last() -> None:
    found = report(_rows(), Packing(seq_len=576), batch_size=3, ranks=2)
    assert found.steps * 6 == found.packs + found.empty_packs
    assert 0 <= found.empty_packs < 6
    assert found.epoch_padding == pytest.approx(1 - found.tokens / (found.steps * 6 * 576))
    assert found.batch_bytes == 3 * pack_bytes(found.packing)
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        report(_rows(), Packing(), batch_size=0)


def test_oversize_and_skipped_are_counted() -> None:
    rows = Rows.of_sizes([64, 640], [64, 640])
    shrunk, skipped = (report(rows, Packing(seq_len=256, oversize=how)) for how in ("shrink", "skip"))
    assert (shrunk.images, shrunk.oversize, shrunk.skipped) == (2, 1, {"oversize": 0, "undersize": 0})
    assert (skipped.images, skipped.oversize, skipped.skipped) == (1, 1, {"oversize": 1, "undersize": 0})


def test_undersize_images_are_counted_and_skipped_by_reason() -> None:
    rows = Rows.of_sizes([64, 640, 8, 15, 15], [64, 640, 8, 15, 40])
    padded = report(rows, Packing(seq_len=256))
    assert (padded.images, padded.undersize, padded.oversize) == (5, 2, 1)
    skipped = report(rows, Packing(seq_len=256, oversize="skip", undersize="skip"))
    assert (skipped.images, skipped.undersize) == (2, 2)
    assert skipped.skipped == report_fields(skipped)["skipped"] == {"oversize": 1, "undersize": 2}
    assert ("undersize", "2 images smaller than a patch, skipped") in facts(skipped)
    assert ("undersize", "2 images smaller than a patch, padded or enlarged to one") in facts(padded)


def test_nothing_left_to_pack_is_an_error_that_says_why() -> None:
    with pytest.raises(ValueError, match="none of the 2 images is left to pack: 2 were skipped as oversize"):
        report(Rows.of_sizes([640, 640], [640, 640]), Packing(seq_len=256, oversize="skip"))


def test_planning_time_is_measured_on_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[int] = []

    def counted(rows: Rows, packing: Packing, **options: Any) -> Plan:
        planned.append(len(rows))
        return plan(rows, packing, **options)

    clock = SimpleNamespace(perf_counter=lambda: sum(planned) * 3e-6)  # as if every row took 3 microseconds
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "plan", counted)
    monkeypatch.setattr(module, "_TIMED_ROWS", 2000)
    for resolution in (FitTokens(64), Native(max_tokens=64)):
        for count, timed in ((10, 2000), (2500, 2500)):
            planned.clear()
            found = report(_rows(count), Packing(resolution=resolution))
            assert found.images == count
            assert planned[-1] == timed
            assert found.planning_seconds_per_million == pytest.approx(3)


def test_prices_are_reported_with_their_groups() -> None:
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(16, 1500, (2, 3000)))
    found = report(rows, Packing(seq_len=8192, algorithm="priced")).pricing
    tokens = np.unique(measure(rows, Packing(seq_len=8192), seed=0, epoch=0)[0].keep)
    assert found is not None
    assert (found.token_counts, found.groups) == (len(tokens), 256)
    assert 0 < found.seconds < 30
    lines = dict(facts(report(rows, Packing(seq_len=8192, algorithm="priced"))))
    assert re.fullmatch(rf"{len(tokens):,} token counts in 256 groups, \d+\.\d\d s", lines["prices"])
    assert report(rows, Packing(algorithm="largest_fit")).pricing is None


def test_balance_evens_the_attention_of_ranks_and_0_changes_nothing() -> None:
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(48, 700, (2, 3000)))
    as_packed, balanced = report(rows, Packing(seq_len=2048)).attention_imbalance
    assert 1 <= balanced < 1.05 < as_packed
    off = report(rows, Packing(seq_len=2048, balance=0)).attention_imbalance
    assert off == (as_packed, as_packed)


@pytest.mark.parametrize("fill", ["none", "undrop", "trim", "rescale"])
def test_every_fill_is_compared_with_next_fit(fill: Any) -> None:
    found = report(_rows(), Packing(seq_len=576, fill=fill))
    assert [baseline.name for baseline in found.baselines][1] == "packed, next_fit"
    assert found.padding < found.baselines[1].padding


def test_several_patch_sizes_are_reported_as_one_data_set() -> None:
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(64, 500, (2, 2000)))
    found = report(rows, Packing(seq_len=1024, patch_size=PatchSizes((16, 32))), ranks=4)
    packed, _, longest, bucketed, fitted, square = found.baselines
    assert packed.tokens == longest.tokens == found.tokens
    assert packed.slots < longest.slots
    assert longest.sequences == bucketed.sequences == fitted.sequences == square.sequences == 2000
    assert packed.tokens == bucketed.tokens
    assert " or " in longest.note


def test_more_ranks_wait_longer_and_a_whole_model_is_more_even_than_its_attention() -> None:
    rows = Rows.of_sizes(*np.random.default_rng(0).integers(48, 700, (2, 3000)))
    two, many = (report(rows, Packing(seq_len=2048), ranks=ranks) for ranks in (2, 32))
    assert (two.ranks, many.ranks) == (2, 32)
    assert 1 < two.attention_imbalance[0] < many.attention_imbalance[0]
    for found in (two, many):
        assert 1 <= found.model_imbalance[1] < found.model_imbalance[0] < found.attention_imbalance[0]
    wide = report(rows, Packing(seq_len=2048), width=4096)
    assert wide.model_imbalance[0] < report(rows, Packing(seq_len=2048), width=192).model_imbalance[0]
    with pytest.raises(ValueError, match="ranks is 0; it must be at least 1"):
        report(rows, Packing(), ranks=0)


def test_a_report_counts_samples_and_images_and_packs_samples_whole() -> None:
    rows = random_samples(300, 5)
    packing = Packing(seq_len=1024, scope="sample")
    found, made = report(rows, packing), plan(rows, packing, block=64)
    assert found.samples == 300
    assert rows.offsets is not None
    assert found.images == len(rows.row) == round(300 * found.images_per_sample[1])
    assert found.images_per_sample[::2] == (1, 5)
    assert found.packs == len(made)
    assert found.attention_cost == made.attention_cost().sum()
    assert found.attention_cost > report(rows, packing.replace(scope="image")).attention_cost
    longest = next(baseline for baseline in found.baselines if baseline.name == "padded to the longest")
    lengths = made.images.sample_sums(made.images.keep)
    assert (longest.sequences, longest.slots) == (300, 300 * lengths.max())
    assert longest.note == f"one sample per row of {lengths.max():,} slots"
    assert report(random_rows(50), Packing()).images_per_sample == (1, 1.0, 1)


def test_a_report_names_samples_skipped_for_too_few_frames() -> None:
    rows = random_samples(60, 3)
    found = report(rows, Packing(frames=Frames(3, short="skip")))
    assert found.skipped["frames"] == 60 - found.samples > 0
    with pytest.raises(ValueError, match=r"none of the 60 samples is left .* as undersize, 60 for too few frames"):
        report(rows, Packing(frames=Frames(9, short="skip")))
