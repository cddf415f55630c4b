"""examples/ddp.py under torchrun with two processes: equal steps, equal gradients, exact counts and exact resume."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from patchnpack import ErrorPolicy, PackedImageLoader
from tests.closeness import assert_near
from tests.images import read_tar, rewrite_tar

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRIAL = Path(__file__).with_name("ddp_trial.py")
PRINTED = re.compile(r"epoch (\d+), step (\d+): loss (\S+), (\d+) images \+ (\d+) bad \+ (\d+) skipped of (\d+)")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Epoch:
    """The last line that the example printed for an epoch; `step` counts from the start of the run."""

    number: int
    step: int
    loss: float
    images: int
    bad: int
    skipped: int
    rows: int


@dataclass
class Run:
    """The output of a run, and the records of each rank."""

    code: int
    output: str
    ranks: list[list[dict[str, object]]]

    @property
    def epochs(self) -> list[Epoch]:
        lines = [
            Epoch(int(number), int(step), float(loss), *map(int, rest))
            for number, step, loss, *rest in PRINTED.findall(self.output)
        ]
        return list({line.number: line for line in lines}.values())

    def recorded(self, rank: int, name: str) -> list[object]:
        """The values that a rank recorded under `name`, one per step."""
        return [record[name] for record in self.ranks[rank] if name in record]

    def norms(self) -> list[float]:
        return [float(str(norm)) for norm in self.recorded(0, "norm")]

    def keys(self, epoch: int) -> Counter[str]:
        """How often each image was yielded in an epoch, over all ranks."""
        records = [record for rank in self.ranks for record in rank if record.get("epoch") == epoch]
        return Counter(key for record in records for key in record["keys"])  # type: ignore[attr-defined]


def torchrun(folder: Path, name: str, shards: str, *, ranks: int = 2, die_before: int = 0, batch_size: int = 1) -> Run:
    """Run the example; a later run with the same `name` resumes from its checkpoint."""
    log = folder / f"{name}-{len(list(folder.glob('*.0')))}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(TRIAL)]
    process = subprocess.Popen(
        [*command, str(log), str(batch_size), str(die_before), shards, str(folder / name / "checkpoint.pt")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        output, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # killing only torchrun would leave its ranks running
        pytest.fail(f"the ranks hang: {process.communicate()[0]}")
    written = [Path(f"{log}.{rank}").read_text().splitlines() for rank in range(ranks)]
    return Run(process.returncode, output, [[json.loads(line) for line in lines] for lines in written])


def check(run: Run, rows: int, lost: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Check a finished run: ranks in step, every image yielded once per epoch or counted, finite losses."""
    assert run.code == 0, run.output
    assert [epoch.number for epoch in run.epochs] == [0, 1]
    first = run.recorded(0, "grads")
    assert len(first) == run.epochs[-1].step > run.epochs[0].step > 0
    assert run.recorded(0, "missing") == [0] * len(first)
    for rank in range(len(run.ranks)):
        assert run.recorded(rank, "grads") == first
        assert run.recorded(rank, "weights") == run.recorded(0, "weights")
    assert all(math.isfinite(norm) and norm > 0 for norm in run.norms())
    for epoch in run.epochs:
        assert math.isfinite(epoch.loss)
        assert (epoch.images, epoch.bad, epoch.skipped, epoch.rows) == (rows - len(lost), len(lost), 0, rows)
        keys = run.keys(epoch.number)
        assert len(keys) == keys.total() == rows - len(lost)
        assert not lost & set(keys)


def draw(folder: Path, images: int, images_per_shard: int) -> str:
    load(EXAMPLES / "shapes.py").draw_shapes(folder, images, 1, images_per_shard=images_per_shard)
    return f"{folder}/train-*.tar"


def rank_keys(shards: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images of a rank in the first epoch of two ranks."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    packing = load(TRIAL).SMALL
    loader = PackedImageLoader(shards, packing, batch_size=1, shuffle=True, errors=ErrorPolicy(max_rate=1))
    return [key for batch in loader for keys in batch.keys for key in keys]


def damage(folder: Path, cut: set[str], garbled: set[str]) -> None:
    """Truncate the JPEGs of some keys to 60 % of their bytes, and replace those of others by text."""
    for shard in folder.glob("train-*.tar"):
        images = {name: data for name, data in read_tar(shard) if name.endswith(".jpg")}
        changed: dict[str, bytes | None] = {}
        changed |= {name: data[: len(data) * 6 // 10] for name, data in images.items() if name[:-4] in cut}
        changed |= {name: b"no image" for name in images if name[:-4] in garbled}
        rewrite_tar(shard, changed)


def test_ranks_take_equal_steps_and_yield_every_image_once(tmp_path: Path) -> None:
    run = torchrun(tmp_path, "good", draw(tmp_path, 46, 12))
    check(run, rows=46)
    assert run.epochs[1].loss < run.epochs[0].loss


def test_two_ranks_on_one_shard_match_the_gradients_of_one_rank(tmp_path: Path) -> None:
    shards = draw(tmp_path, 45, 45)
    two = torchrun(tmp_path, "two", shards)
    one = torchrun(tmp_path, "one", shards, ranks=1, batch_size=2)
    check(two, rows=45)
    check(one, rows=45)
    # Each step sums the same packs in another order.
    assert_near(two.norms(), one.norms(), 1e-4)
    assert [epoch.loss for epoch in two.epochs] == pytest.approx([epoch.loss for epoch in one.epochs], abs=0.0011)


def test_rank_with_only_empty_batches_keeps_step(tmp_path: Path) -> None:
    run = torchrun(tmp_path, "few", draw(tmp_path, 3, 3))
    check(run, rows=3)
    assert run.recorded(1, "keys") == [[], []]


def test_bad_images_are_counted_and_a_killed_run_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = draw(tmp_path, 60, 12)
    damage(tmp_path, set(), {"train-00007", "train-00031"})
    mine = rank_keys(shards, 1, monkeypatch)
    cut = set(mine[:: len(mine) // round(0.3 * len(mine))][: round(0.3 * len(mine))])
    damage(tmp_path, cut, set())
    assert len(cut) == round(0.3 * len(mine)) > 5
    lost = cut | {"train-00007", "train-00031"}
    whole = torchrun(tmp_path, "whole", shards)
    check(whole, rows=60, lost=lost)

    killed = torchrun(tmp_path, "killed", shards, die_before=6)
    assert killed.code != 0
    _, step, *_ = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert step == 4 < whole.epochs[0].step  # in the middle of the first epoch
    resumed = torchrun(tmp_path, "killed", shards)
    assert resumed.code == 0, resumed.output
    for rank in range(2):
        for name in ("keys", "grads", "weights"):
            assert resumed.recorded(rank, name) == whole.recorded(rank, name)[4:], name
    counted = [(epoch.images, epoch.bad, epoch.skipped, epoch.rows) for epoch in resumed.epochs]
    assert counted == [(60 - len(lost), len(lost), 0, 60)] * 2
    ends = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed")]
    (epoch, step, _, model, _, loader), (epochs, steps, _, resumed_model, _, resumed_loader) = ends
    assert all(torch.equal(weight, resumed_model[name]) for name, weight in model.items())
    assert loader == resumed_loader
    assert (epoch, step) == (epochs, steps) == (2, len(whole.recorded(0, "grads")))


def test_without_torchrun_the_error_names_the_command(tmp_path: Path) -> None:
    script = [sys.executable, str(EXAMPLES / "ddp.py"), "a.tar", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "start it with torchrun" in done.stderr
