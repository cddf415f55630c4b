from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from patchnpack import BetaDrop, FitTokens, PackedImageLoader, Packing, PatchSizes, SampleSide
from patchnpack.loaders import scan
from patchnpack.loaders.plan_report import planned_rows, report_of
from patchnpack.loaders.prepacking.job import Job
from patchnpack.packer.analysis.report import pack_bytes
from patchnpack.report.fields import SHARED_WITH_STATS, report_fields


def _used(loader: PackedImageLoader, epochs: int = 1) -> dict[str, Any]:
    for _ in range(epochs):
        for _batch in loader:
            pass
    return loader.stats()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("fill", ["undrop", "rescale"])
@pytest.mark.parametrize("oversize", ["shrink", "skip"])
def test_stats_of_a_finished_epoch_equal_the_report_of_its_plan(
    drawn: Any, shuffle: bool, fill: Any, oversize: Any
) -> None:
    packing = Packing(seq_len=36, patch_size=8, fill=fill, oversize=oversize, token_drop=BetaDrop(mean=0.2, max=0.5))
    loader = PackedImageLoader(drawn.shards, packing, batch_size=3, shuffle=shuffle, seed=4, shuffle_window=2)
    planned = report_fields(report_of(loader))
    stats = _used(loader)
    for name in SHARED_WITH_STATS:
        assert stats[name] == pytest.approx(planned[name], rel=1e-9), name
    assert stats["skipped"]["oversize"] == planned["skipped"]["oversize"]
    assert stats["batches"] == planned["steps"]
    assert stats["images"] > 0
    assert planned["oversize"] > 0
    assert planned["attention_spread"] > 0
    assert stats["tokens"] < stats["tokens_before_drop"]
    assert stats["tokens_before_drop"] < stats["tokens_native"] or oversize == "skip"


def test_stats_of_all_ranks_add_up_to_the_report(drawn: Any) -> None:
    packing = Packing(seq_len=64, patch_size=8, resolution=FitTokens(20))
    loaders = [
        PackedImageLoader(drawn.shards, packing, batch_size=2, shuffle=True, seed=1, rank=rank, world_size=3)
        for rank in range(3)
    ]
    planned = report_fields(report_of(loaders[0]))
    assert (planned["ranks"], planned["batch_size"]) == (3, 2)
    stats = [_used(loader) for loader in loaders]
    for name in ("images", "packs", "empty_packs", "tokens_native", "tokens_before_drop", "tokens", "attention_cost"):
        assert sum(each[name] for each in stats) == planned[name], name
    assert {each["batches"] for each in stats} == {planned["steps"]}


def test_stats_include_worker_processes(drawn: Any) -> None:
    packing = Packing(seq_len=64, patch_size=8, token_drop=BetaDrop(mean=0.2, max=0.5))
    loader = PackedImageLoader(drawn.shards, packing, batch_size=2, num_threads=1)
    planned = report_fields(report_of(loader))
    for _ in DataLoader(loader.as_dataset(), batch_size=None, num_workers=2):
        pass
    stats = loader.stats()
    for name in SHARED_WITH_STATS:
        assert stats[name] == pytest.approx(planned[name], rel=1e-9), name


def test_report_of_a_later_epoch_uses_its_draws(drawn: Any) -> None:
    packing = Packing(seq_len=64, patch_size=8, token_drop=BetaDrop(mean=0.3, max=0.6), fill="none")
    loader = PackedImageLoader(drawn.shards, packing, batch_size=2, shuffle=True)
    reports = [report_of(loader, epoch) for epoch in range(2)]
    assert reports[0].tokens != reports[1].tokens
    assert _used(loader, 2)["tokens"] == reports[0].tokens + reports[1].tokens


def test_images_are_counted_at_the_patch_size_of_their_block(drawn: Any) -> None:
    packing = Packing(seq_len=64, patch_size=PatchSizes((8, 4)), oversize="drop")
    loader = PackedImageLoader(drawn.shards, packing, batch_size=2, shuffle=True)
    planned = report_fields(report_of(loader))
    stats = _used(loader)
    for name in ("images", "packs", "tokens_native", "tokens_before_drop", "tokens", "attention_cost", "oversize"):
        assert stats[name] == planned[name], name


def test_image_that_fails_after_planning_is_counted_as_bad(make_drawn: Any) -> None:
    drawn = make_drawn((9,), kinds=("png",))
    packing = Packing(seq_len=64, patch_size=8)
    whole = report_of(PackedImageLoader(drawn.shards, packing, batch_size=2))
    with tarfile.open(drawn.shards[0]) as tar:
        file = tar.extractfile(f"{drawn.keys[4]}.png")
        assert file is not None
        data = file.read()
    drawn.rewrite({f"{drawn.keys[4]}.png": data[:60]})
    stats = _used(PackedImageLoader(drawn.shards, packing, batch_size=2))
    height, width, _ = drawn.pixels[drawn.keys[4]].shape
    tokens = -(-width // 8) * -(-height // 8)
    assert (stats["images"], stats["bad_images"]) == (whole.images - 1, 1)
    assert (stats["tokens"], stats["tokens_native"]) == (whole.tokens - tokens, whole.tokens_native - tokens)
    assert stats["attention_cost"] == whole.attention_cost - tokens**2


def test_planned_rows_follow_the_order_of_the_loader(drawn: Any) -> None:
    packing = Packing(seq_len=64, patch_size=8, algorithm="next_fit", balance=0)
    loader = PackedImageLoader(drawn.shards, packing, batch_size=2, shuffle=True, seed=3)
    given = [int(row) for batch in loader for row in batch.rows[batch.image_mask]]
    assert planned_rows(loader).row.tolist() == given


@pytest.mark.parametrize("store", ["images", "patches"])
@pytest.mark.parametrize("part_packs", [1, 4, 64])  # more parts than the two shards, several, and fewer
@pytest.mark.parametrize("shuffle", [True, False])
def test_planned_rows_of_a_packed_folder_equal_those_of_its_shards(
    store: Any, part_packs: int, shuffle: bool, make_drawn: Any, tmp_path: Path
) -> None:
    drawn = make_drawn((20, 17))
    packing = Packing(seq_len=40, patch_size=8, token_drop=BetaDrop(mean=0.3, max=0.6), oversize="skip")
    order: dict[str, Any] = {"shuffle": shuffle, "seed": 3, "shuffle_window": 1}
    out = tmp_path / "packed"
    job = Job(source=scan(drawn.shards), out=str(out), packing=packing, store=store, part_packs=part_packs, **order)
    assert job.run()
    parts = len(list((out / "parts").iterdir()))
    assert (parts > 2) == (part_packs < 64)
    ours = PackedImageLoader(out, batch_size=2)
    theirs = PackedImageLoader(drawn.shards, packing, batch_size=2, **order)
    found, expected = planned_rows(ours), planned_rows(theirs)
    for name in ("row", "row_id", "width", "height"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
    reports = [report_fields(report_of(loader)) for loader in (ours, theirs)]
    for fields in reports:
        del fields["planning_seconds_per_million"]
        (fields["pricing"] or {}).pop("seconds", None)
    assert reports[0] == reports[1]
    assert reports[0]["skipped"]["oversize"] > 0


def test_report_after_the_last_stored_plan_equals_that_of_the_first(make_drawn: Any, tmp_path: Path) -> None:
    packing = Packing(seq_len=64, patch_size=8, resolution=SampleSide(low=16, high=64))
    index = scan(make_drawn((20, 17)).shards)
    Job(source=index, out=str(tmp_path / "packed"), packing=packing, epochs=2, part_packs=3, shuffle=True).run()
    ours = PackedImageLoader(tmp_path / "packed", batch_size=2)
    theirs = PackedImageLoader(index, packing, batch_size=2, shuffle=True)
    found = [planned_rows(ours, epoch).row.tolist() for epoch in range(3)]
    assert found == [planned_rows(theirs, epoch).row.tolist() for epoch in (0, 1, 0)]
    assert found[0] != found[1]
    assert report_of(ours, 2).baselines == report_of(ours, 0).baselines == report_of(theirs, 0).baselines


def test_report_of_several_streams_is_refused(drawn: Any) -> None:
    loader = PackedImageLoader(drawn.shards, Packing(seq_len=64, patch_size=8), batch_size=2, num_streams=2)
    with pytest.raises(ValueError, match="num_streams is 2; each stream is packed by itself"):
        report_of(loader)


def test_batch_bytes_equal_those_of_its_tensors(drawn: Any) -> None:
    packing = Packing(seq_len=64, patch_size=8)
    batch = next(iter(PackedImageLoader(drawn.shards, packing, batch_size=2)))
    tensors = (
        batch.patches,
        batch.segment_ids,
        batch.coords,
        batch.grids,
        batch.image_sizes,
        batch.image_mask,
        batch.labels,
        batch.rows,
    )
    assert sum(tensor.nbytes for tensor in tensors) == 2 * pack_bytes(packing)
