from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from patchnpack.packer import (
    BetaDrop,
    ConstantDrop,
    DropToTokens,
    FitTokens,
    NoDrop,
    Packing,
    PatchSizes,
    Rows,
    SampleSide,
    ScheduledDrop,
    plan,
)
from patchnpack.packer.analysis import sweep as sweeping
from patchnpack.packer.analysis import trial as module
from patchnpack.packer.analysis.baselines import baselines
from patchnpack.packer.analysis.report import imbalance, pack_bytes
from patchnpack.packer.analysis.setting import Setting, Sweep
from patchnpack.packer.analysis.sweep import length_range, sweep
from tests.packer.planning.plans import random_samples


def _rows(n: int = 700) -> Rows:
    return Rows.of_sizes(*np.random.default_rng(3).integers(48, 500, (2, n)))


def _tokens(rows: Rows) -> np.ndarray:
    return -(-rows.width.astype(np.int64) // 16) * -(-rows.height.astype(np.int64) // 16)


def _without_times(found: Sweep) -> list[Setting]:
    return [dataclasses.replace(setting, packing_seconds_per_million=0.0) for setting in found.settings]


@pytest.mark.parametrize("fill", ["none", "undrop", "trim", "rescale"])
@pytest.mark.parametrize("oversize", ["shrink", "drop", "skip"])
@pytest.mark.parametrize("drop", [NoDrop(), BetaDrop(0.4, 0.8)])
def test_each_setting_equals_its_plan(fill: Any, oversize: Any, drop: Any) -> None:
    rows, packing = _rows(), Packing(fill=fill, oversize=oversize, token_drop=drop)
    algorithms: list[Any] = ["next_fit", "best_fit", "first_fit_decreasing", "largest_fit", "subset_sum"]
    found = sweep(
        rows,
        packing,
        seq_lens=[300, 2000],
        patch_sizes=[16, 24],
        algorithms=algorithms,
        lookaheads=[8],
        seed=5,
        ranks=4,
    )
    assert len(found.settings) == 2 * 2 * 5 + 6  # and 1,024 at patch size 16, the packing's own with a lookahead of 256
    for s in found.settings:
        swept = packing.replace(
            seq_len=s.seq_len, patch_size=s.patch_size, algorithm=s.algorithm, lookahead=s.lookahead, fill=s.fill
        )
        made = plan(rows, swept, seed=5)
        assert (s.images, s.packs, s.tokens) == (len(made.images), len(made), made.tokens().sum())
        assert (s.oversize, s.skipped) == (len(made.oversize), len(made.skipped))
        assert s.attention_cost == made.attention_cost().sum()
        cost = made.attention_cost(), made.model_cost(768), made.patch_size
        assert s.model_imbalance == imbalance(*cost, swept, 5, 4)[1]
        assert s.pack_bytes == pack_bytes(swept)
        assert s.fill == (fill if s.algorithm in ("largest_fit", "subset_sum") or fill == "none" else "undrop")
        assert s.padding == 1 - s.tokens / (len(made) * s.seq_len)
        usual = plan(rows, swept.replace(algorithm="next_fit", fill="undrop"), seed=5)
        assert s.packs_next_fit == len(usual)
        if drop == NoDrop() and fill in ("none", "undrop"):
            others = {baseline.name: baseline for baseline in baselines(made, rows, swept, seed=5, epoch=0, block=8)}
            assert s.slots_longest == others["padded to the longest"].slots
            assert s.slots_bucketed == others["bucketed by length"].slots


@pytest.mark.parametrize("resolution", [SampleSide(low=64, high=256), FitTokens(100)])
def test_rows_measured_in_chunks_equal_those_measured_at_once(resolution: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    packing = Packing(resolution=resolution, token_drop=DropToTokens(80))
    whole = sweep(_rows(), packing, seq_lens=[256])
    monkeypatch.setattr(module, "_CHUNK", 64)
    assert _without_times(sweep(_rows(), packing, seq_lens=[256])) == _without_times(whole)


def test_schedules_continue_across_chunks_as_in_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 64)
    drop = ScheduledDrop(drop=ConstantDrop(0.6), start=1.0, end=0.0, midpoint=350, tau=50)
    packing = Packing(token_drop=drop, seq_len=512, algorithm="largest_fit", lookahead=64)
    (setting,) = sweep(_rows(), packing, seq_lens=[512], algorithms=["largest_fit"], lookaheads=[64]).settings
    made = plan(_rows(), packing)
    assert (setting.packs, setting.tokens) == (len(made), made.tokens().sum())
    constant = plan(_rows(), packing.replace(token_drop=ConstantDrop(0.6)))
    assert len(made) > len(constant)


def test_the_packing_itself_is_swept_and_marked_once() -> None:
    found = sweep(_rows(), Packing(seq_len=777, algorithm="best_fit", lookahead=99), seq_lens=[512])
    (current,) = [s for s in found.settings if s.current]
    assert found.current == current
    assert (current.seq_len, current.patch_size, current.algorithm, current.lookahead) == (777, 16, "best_fit", 99)


def test_several_patch_sizes_are_swept_one_by_one_and_none_is_current() -> None:
    found = sweep(_rows(), Packing(patch_size=PatchSizes((16, 32))), seq_lens=[512])
    assert {s.patch_size for s in found.settings} == {16, 32}
    assert found.current is None


def test_the_range_starts_where_99_percent_of_the_images_fit() -> None:
    keep, packing = np.concatenate([np.full(99, 300), [5000]]), Packing()
    assert length_range(np.full(100, 300), packing) == (300, 512)
    assert length_range(keep, packing) == (300, 512)
    assert length_range(keep[1:], packing) == (5000, 8192)  # 1 of 99 is more than 1 %
    assert length_range(keep, packing.replace(oversize="error")) == (5000, 8192)
    assert length_range(np.full(100, 512), packing) == (512, 512)
    assert length_range(np.full(100, 1), packing.replace(grid_multiple=3)) == (9, 16)
    found = sweep(_rows(), Packing(seq_len=1024))
    assert {1024, 2048, 4096} < {s.seq_len for s in found.settings}
    assert all(s.oversize <= 7 for s in found.settings)
    (search,) = found.searches
    assert (search.shortest, search.longest) == (length_range(_tokens(_rows()), packing)[0], 4096)


def test_the_sweep_holds_the_found_lengths_and_the_next_multiples() -> None:
    found = sweep(_rows(), Packing(seq_len=1024))
    (search,), lengths = found.searches, {s.seq_len for s in found.settings}
    assert {search.best, search.advised, -(-search.advised // 64) * 64, -(-search.advised // 128) * 128} <= lengths
    padding = {n: min(s.padding for s in found.settings if s.seq_len == n) for n in lengths}
    assert {n: p for n, p in search.padding if n in lengths}.items() <= padding.items()
    assert padding[search.best] == min(p for _, p in search.padding)


def test_multiples_restrict_the_search() -> None:
    found = sweep(_rows(), Packing(seq_len=777), multiple=96)
    (search,) = found.searches
    assert all(n % 96 == 0 for n, _ in search.padding)
    assert {s.seq_len for s in found.settings if s.seq_len % 96} <= {777}


def test_many_rows_are_sampled_for_the_search_only(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sweep(_rows(), Packing())
    monkeypatch.setattr(sweeping, "_SAMPLE", 300)
    sampled = sweep(_rows(), Packing())
    assert (whole.searches[0].samples, sampled.searches[0].samples) == (700, 300)
    assert {s.images for s in sampled.settings} == {700}
    drop = ScheduledDrop(drop=ConstantDrop(0.6), start=1.0, end=0.0, midpoint=350, tau=50)
    scheduled = sweep(_rows(), Packing(token_drop=drop, fill="none"))
    padding = dict(scheduled.searches[0].padding)[1024]  # of the sample, spread over all of the schedule
    assert padding == pytest.approx(min(s.padding for s in scheduled.settings if s.seq_len == 1024), abs=0.02)


def test_no_image_exceeds_the_lengths_of_a_sweep_in_which_that_is_an_error() -> None:
    rows = Rows.of_sizes([320] * 200 + [1600], [320] * 200 + [1600])
    found = sweep(rows, Packing(seq_len=10_000, oversize="error"))
    assert min(s.seq_len for s in found.settings) >= 10_000
    with pytest.raises(ValueError, match="has 10000 tokens, more than seq_len 512"):
        sweep(rows, Packing(seq_len=10_000, oversize="error"), seq_lens=[512])


def test_tokens_removed_by_a_short_sequence_are_reported() -> None:
    rows = Rows.of_sizes([640] * 10 + [320] * 10, [640] * 10 + [320] * 10)
    found = {s.seq_len: s for s in sweep(rows, Packing(seq_len=1600), seq_lens=[400, 1600]).settings}
    assert (found[400].oversize, found[1600].oversize) == (10, 0)
    assert found[1600].lost == 0
    assert found[400].lost == pytest.approx(10 * 1200 / (10 * 1600 + 10 * 400))
    skipped = sweep(rows, Packing(seq_len=400, oversize="skip"), seq_lens=[400]).settings[0]
    assert (skipped.images, skipped.skipped, skipped.lost) == (10, 10, 0.8)


def test_packs_that_are_full_of_images_are_counted() -> None:
    rows = Rows.of_sizes([32] * 100, [32] * 100)
    full = [s.at_most_images for s in sweep(rows, Packing(seq_len=400, max_images=10), seq_lens=[400]).settings]
    assert set(full) == {10}
    roomy = [s.at_most_images for s in sweep(rows, Packing(seq_len=40, max_images=10), seq_lens=[40]).settings]
    assert set(roomy) == {0}


def test_progress_ends_with_all_lengths_done() -> None:
    told: list[tuple[int, int]] = []
    sweep(_rows(), Packing(), seq_lens=[512, 2048], progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_lens": []}, "seq_lens is empty; give at least one"),
        ({"multiple": 0}, "multiple is 0; it must be at least 1"),
        ({"multiple": 64, "seq_lens": [100]}, "multiple is 64, but seq_lens names the lengths"),
        ({"lookaheads": [0]}, "lookaheads is 0; it must be at least 1"),
        ({"patch_sizes": [0]}, "patch_sizes is 0; it must be at least 1"),
        ({"algorithms": []}, "algorithms is empty; give at least one"),
        ({"algorithms": ["worst_fit"]}, "algorithm is 'worst_fit'; it must be one of"),
    ],
)
def test_an_invalid_setting_is_an_error(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(_rows(), Packing(), **settings)


def test_a_sweep_of_nothing_is_an_error_that_says_why() -> None:
    with pytest.raises(ValueError, match="there are no images to sweep over"):
        sweep(Rows.of_sizes([], []), Packing())
    rows = Rows.of_sizes([640, 640], [640, 640])
    with pytest.raises(ValueError, match="none of the 2 images is left to pack at any sequence length"):
        sweep(rows, Packing(seq_len=64, oversize="skip"), seq_lens=[64])


def test_a_sweep_of_patch_sizes_counts_and_skips_the_images_smaller_than_each() -> None:
    rows = Rows.of_sizes([64] * 20 + [20] * 5, [64] * 20 + [20] * 5)
    for policy, images in (("pad", (25, 25)), ("skip", (25, 20))):
        packing = Packing(seq_len=64, undersize=policy)  # type: ignore[arg-type]
        settings = sweep(rows, packing, patch_sizes=[16, 32], seq_lens=[64]).settings
        found = {s.patch_size: (s.images, s.undersize, s.skipped) for s in settings}
        assert found == {16: (images[0], 0, 0), 32: (images[1], 5, 25 - images[1])}
    with pytest.raises(ValueError, match=r"row 20 of 20x20 pixels is smaller than a patch of 32x32 \(5 of 25 rows are"):
        sweep(rows, Packing(seq_len=64, undersize="error"), patch_sizes=[16, 32])


@pytest.mark.parametrize("scope", ["image", "sample"])
@pytest.mark.parametrize("fill", ["none", "undrop", "trim"])
def test_samples_are_swept_as_they_are_planned(fill: Any, scope: Any) -> None:
    rows = random_samples(400, 4)
    packing = Packing(seq_len=512, token_drop=BetaDrop(0.3, 0.6), fill=fill, scope=scope, max_images=20)
    found = sweep(rows, packing, seq_lens=[512], algorithms=["subset_sum", "next_fit"], lookaheads=[64])
    for s in found.settings:
        swept = packing.replace(algorithm=s.algorithm, lookahead=s.lookahead, fill=s.fill)
        made = plan(rows, swept)
        assert (s.packs, s.tokens, s.images) == (len(made), made.tokens().sum(), len(made.images))
        assert s.attention_cost == made.attention_cost().sum()
