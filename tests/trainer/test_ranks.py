from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from webdataset import ShardWriter

from patchnpack.trainer import load_checkpoint
from patchnpack.trainer.ranks import rank_and_size
from tests.closeness import assert_near
from tests.images import encode_image

BAD = str(Path(__file__).with_name("bad_on_one_rank.py"))
SCRIPT = str(Path(__file__).with_name("ranks_agree.py"))


@pytest.fixture
def shard(tmp_path: Path) -> str:
    """27 small images, so that the last step of an epoch has fewer."""
    rng = np.random.default_rng(0)
    with ShardWriter(f"{tmp_path}/images-%d.tar", verbose=0, encoder=False) as sink:
        for i in range(27):
            pixels = rng.integers(0, 256 if i % 2 else 120, (*rng.integers(16, 65, 2), 3), dtype=np.uint8)
            sink.write({"__key__": f"{i:03d}", "png": encode_image(pixels, "PNG"), "cls": str(i % 2).encode()})
    return f"{tmp_path}/images-0.tar"


Plan = tuple[Path, int, int, str]  # where to, batch size, batches per step, sharding


def start_all(shard: str, ranks: int, *plans: Plan, die: int = 0) -> list[list[Any]]:
    """Run the script, without torchrun on one rank; returns for each plan the results of each rank."""
    runs = [":".join(map(str, plan)) for plan in plans]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, "-P", *torchrun, SCRIPT, shard, str(die), *runs],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode == 0) != bool(die), done.stderr
    every = range(0 if die else ranks)
    return [[torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in every] for out, *_ in plans]


def start(
    out: Path, shard: str, *, ranks: int, batch_size: int, accumulate: int = 1, die: int = 0, sharding: str = "ddp"
) -> list[Any]:
    """The results of each rank of one run."""
    return start_all(shard, ranks, (out, batch_size, accumulate, sharding), die=die)[0]


def start_bad(out: Path, *arguments: int) -> list[Any]:
    """Run bad_on_one_rank.py on two ranks; returns the results of each."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, "-P", *torchrun, BAD, str(out), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def close(one: Any, other: Any) -> None:
    assert_near(one["losses"], other["losses"], 1e-5)
    assert_near(one["weights"], other["weights"], 1e-5)
    assert one["metrics"]["images"] == other["metrics"]["images"] == 27
    for name in ("loss", "accuracy"):
        assert one["metrics"][name] == pytest.approx(other["metrics"][name], abs=1e-5)


def test_two_ranks_are_one_with_twice_the_batch_and_one_that_accumulates(tmp_path: Path, shard: str) -> None:
    (first, second), sharded = start_all(
        shard, 2, (tmp_path / "two", 1, 1, "ddp"), (tmp_path / "sharded", 1, 1, "fsdp")
    )
    (one,), (steps,) = start_all(shard, 1, (tmp_path / "one", 2, 1, "ddp"), (tmp_path / "accumulated", 1, 2, "ddp"))
    close(first, one)
    close(steps, one)
    for each in sharded:
        close(each, one)
        close(each, first)
    assert torch.equal(sharded[0]["weights"], sharded[1]["weights"]), "each rank returns the whole model"
    assert len(list((tmp_path / "sharded").glob("shards-*/*.safetensors"))) == 2
    read = load_checkpoint(tmp_path / "sharded" / "checkpoint.pt")  # on one rank
    assert_near(torch.cat([p.detach().flatten() for p in read.model.parameters()]), sharded[0]["weights"], 1e-6)
    assert first["losses"] == second["losses"]
    assert torch.equal(first["weights"], second["weights"])
    assert Counter(first["keys"] + second["keys"]) == Counter(one["keys"])
    assert set(Counter(one["keys"]).values()) == {1}, "every image once an epoch, over both ranks"


@pytest.mark.soak
def test_a_sharded_run_that_is_killed_resumes_on_one_rank_and_on_three(tmp_path: Path, shard: str) -> None:
    (whole,) = start(tmp_path / "whole", shard, ranks=1, batch_size=6)
    start(tmp_path / "killed", shard, ranks=2, batch_size=3, die=3, sharding="fsdp")
    saved = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert (saved["step"], saved["shards"]) == (2, {"folder": "shards-00000-0000000002", "files": 2})
    assert not saved["model"], "the weights are in the shards alone"
    for name, ranks, batch_size, sharding in (("one", 1, 6, "ddp"), ("three", 3, 2, "fsdp")):
        shutil.copytree(tmp_path / "killed", tmp_path / name)
        resumed = start(tmp_path / name, shard, ranks=ranks, batch_size=batch_size, sharding=sharding)
        for each in resumed:
            assert len(each["losses"]) == len(whole["losses"]) == 6
            close(each, whole)
        read = load_checkpoint(tmp_path / name / "checkpoint.pt")
        assert_near(torch.cat([p.detach().flatten() for p in read.model.parameters()]), whole["weights"], 1e-5)
    assert [path.name for path in (tmp_path / "three").glob("shards-*")] == ["shards-00002-0000000006"]
    assert not list((tmp_path / "one").glob("shards-*")), "the folder that no checkpoint needs any more is deleted"


@pytest.mark.soak
@pytest.mark.parametrize("die", [3, 6, 9])
def test_two_ranks_resume_bit_for_bit_after_one_is_killed(die: int, tmp_path: Path, shard: str) -> None:
    whole = start(tmp_path / "whole", shard, ranks=2, batch_size=1, accumulate=2)
    start(tmp_path / "killed", shard, ranks=2, batch_size=1, accumulate=2, die=die)
    resumed = start(tmp_path / "killed", shard, ranks=2, batch_size=1, accumulate=2)
    for rank in range(2):
        assert resumed[rank]["losses"] == whole[rank]["losses"]
        assert torch.equal(resumed[rank]["weights"], whole[rank]["weights"])


def test_all_ranks_skip_a_step_that_is_bad_on_one_of_them(tmp_path: Path) -> None:
    first, second = start_bad(tmp_path / "skips", 1, 2, 4)
    assert first["skipped"] == second["skipped"] == 2
    assert [math.isfinite(loss) for loss in first["losses"]] == [True, False, True, False, True, True]
    assert first["losses"] == second["losses"]
    assert torch.equal(first["weights"], second["weights"])


def test_all_ranks_stop_at_a_step_that_is_bad_on_one_of_them(tmp_path: Path) -> None:
    first, second = start_bad(tmp_path / "stops", 0, 3)
    assert first["error"] == second["error"]
    assert re.search(r"the loss is inf .* in step 3, .* the checkpoint of step 2 is unchanged", first["error"])
    assert torch.equal(first["weights"], second["weights"])
    assert load_checkpoint(tmp_path / "stops" / "checkpoint.pt").step == 2


def test_ranks_without_a_process_group_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"WORLD_SIZE is 2, but there is no process group"):
        rank_and_size()
