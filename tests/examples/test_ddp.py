"""examples/ddp.py under torchrun, two processes: even steps, equal gradients, exact counts, exact resuming."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = {"tokens": 16, "seq_len": 64, "batch_size": 1}
OPTIONS = ["--tokens=16", "--seq-len=64", "--batch-size=1", "--width=48", "--depth=1", "--save-every=2", "--epochs=2"]
EPOCH = re.compile(r"epoch (\d+): (\d+) steps, loss (\S+), (\d+) images \+ (\d+) bad \+ (\d+) skipped = (\d+) in the")

# Runs the example as it is and writes down what this rank trained on, its gradients and its weights after each step.
SPY = """
import hashlib, json, os, runpy, sys
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from patchnpack import PackedImageLoader

log, die_before, script, *arguments = sys.argv[1:]
rank, steps, begin = os.environ["RANK"], 0, PackedImageLoader.__iter__
file = open(f"{log}.{rank}", "w", buffering=1)

def write(**record):
    file.write(json.dumps(record) + "\\n")

def digest(tensors):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()

def parameters(optimizer):
    return [p.detach() for group in optimizer.param_groups for p in group["params"]]

def before(optimizer, *_):
    global steps
    steps += 1
    if rank == "1" and steps == int(die_before):
        os._exit(1)
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    norm = sum(float(grad.double().square().sum()) for grad in grads) ** 0.5
    write(grads=digest(grads), norm=norm)

def noted(batches):
    for batch in batches:
        write(keys=sum(batch.keys, []), epoch=batch.epoch)
        yield batch

register_optimizer_step_pre_hook(before)
register_optimizer_step_post_hook(lambda optimizer, *_: write(weights=digest(parameters(optimizer))))
PackedImageLoader.__iter__ = lambda loader: noted(begin(loader))
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Epoch:
    """A line that the example printed."""

    number: int
    steps: int
    loss: float
    images: int
    bad: int
    skipped: int
    rows: int


@dataclass
class Run:
    """What a run printed, and what each of its ranks wrote down."""

    code: int
    output: str
    ranks: list[list[dict[str, object]]]

    @property
    def epochs(self) -> list[Epoch]:
        return [
            Epoch(int(number), int(steps), float(loss), *map(int, rest))
            for number, steps, loss, *rest in EPOCH.findall(self.output)
        ]

    def noted(self, rank: int, name: str) -> list[object]:
        """What the rank wrote under `name`, a value a step."""
        return [record[name] for record in self.ranks[rank] if name in record]

    def norms(self) -> list[float]:
        return [float(str(norm)) for norm in self.noted(0, "norm")]

    def keys(self, epoch: int) -> Counter[str]:
        """How often each image came in an epoch, over all ranks."""
        records = [record for rank in self.ranks for record in rank if record.get("epoch") == epoch]
        return Counter(key for record in records for key in record["keys"])  # type: ignore[attr-defined]


def torchrun(folder: Path, name: str, shards: str, *, ranks: int = 2, die_before: int = 0, batch_size: int = 1) -> Run:
    """Runs the example; `name` is of its checkpoint, which another run goes on from."""
    spy, log = folder / "spy.py", folder / f"{name}-{len(list(folder.glob('*.0')))}"
    spy.write_text(SPY)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(spy)]
    example = [str(EXAMPLES / "ddp.py"), shards, f"--out={folder / name}", *OPTIONS, f"--batch-size={batch_size}"]
    process = subprocess.Popen(
        [*command, str(log), str(die_before), *example],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        output, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # torchrun's own end would leave its ranks behind
        pytest.fail(f"the ranks hang: {process.communicate()[0]}")
    written = [Path(f"{log}.{rank}").read_text().splitlines() for rank in range(ranks)]
    return Run(process.returncode, output, [[json.loads(line) for line in lines] for lines in written])


def check(run: Run, rows: int, lost: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """What holds of every run that ends: ranks in step, every image once an epoch or counted, losses finite."""
    assert run.code == 0, run.output
    assert [epoch.number for epoch in run.epochs] == [0, 1]
    first = run.noted(0, "grads")
    assert len(first) == sum(epoch.steps for epoch in run.epochs) > 0
    for rank in range(len(run.ranks)):
        assert run.noted(rank, "grads") == first
        assert run.noted(rank, "weights") == run.noted(0, "weights")
    assert all(math.isfinite(norm) and norm > 0 for norm in run.norms())
    for epoch in run.epochs:
        assert math.isfinite(epoch.loss)
        assert (epoch.images, epoch.bad, epoch.skipped, epoch.rows) == (rows - len(lost), len(lost), 0, rows)
        keys = run.keys(epoch.number)
        assert len(keys) == keys.total() == rows - len(lost)
        assert not lost & set(keys)


def draw(folder: Path, images: int, images_per_shard: int) -> str:
    load("shapes").draw_shapes(folder, images, 1, images_per_shard=images_per_shard)
    return f"{folder}/train-*.tar"


def rank_keys(shards: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images of this rank in the first epoch of two ranks."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = load("ddp").make_loader(argparse.Namespace(shards=shards, **SMALL))
    return [key for batch in loader for keys in batch.keys for key in keys]


def damage(folder: Path, cut: set[str], garbled: set[str]) -> None:
    """Cuts the JPEGs of some keys to six tenths of their bytes, and makes those of others no JPEGs at all."""
    for shard in folder.glob("train-*.tar"):
        with tarfile.open(shard) as tar:
            members = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
        with tarfile.open(shard, "w") as tar:
            for name, data in members:
                key, extension = name.split(".")
                if extension == "jpg" and key in cut:
                    data = data[: len(data) * 6 // 10]
                if extension == "jpg" and key in garbled:
                    data = b"no image"
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def test_ranks_take_equal_steps_and_every_image_comes_once(tmp_path: Path) -> None:
    run = torchrun(tmp_path, "good", draw(tmp_path, 46, 12))
    check(run, rows=46)
    assert run.epochs[1].loss < run.epochs[0].loss


def test_one_shard_serves_two_ranks_with_the_gradients_of_one(tmp_path: Path) -> None:
    shards = draw(tmp_path, 45, 45)
    two = torchrun(tmp_path, "two", shards)
    one = torchrun(tmp_path, "one", shards, ranks=1, batch_size=2)
    check(two, rows=45)
    check(one, rows=45)
    # The same packs a step, summed in another order. Later steps drift apart, as Adam divides noise by noise.
    assert two.norms()[0] == pytest.approx(one.norms()[0], rel=1e-4)
    assert two.norms() == pytest.approx(one.norms(), rel=0.05)
    assert [epoch.loss for epoch in two.epochs] == pytest.approx([epoch.loss for epoch in one.epochs], abs=0.005)


def test_a_rank_whose_batches_are_all_empty_keeps_step(tmp_path: Path) -> None:
    run = torchrun(tmp_path, "few", draw(tmp_path, 3, 3))
    check(run, rows=3)
    assert run.noted(1, "keys") == [[], []]


def test_damaged_shards_are_counted_and_a_killed_run_goes_on_bit_for_bit(
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
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"] == 4
    resumed = torchrun(tmp_path, "killed", shards)
    assert resumed.code == 0, resumed.output
    for rank in range(2):
        for name in ("keys", "grads", "weights"):
            assert resumed.noted(rank, name) == whole.noted(rank, name)[4:], name
    counted = [(epoch.images, epoch.bad, epoch.skipped, epoch.rows) for epoch in resumed.epochs]
    assert counted == [(60 - len(lost), len(lost), 0, 60)] * 2
    ends = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed")]
    assert all(torch.equal(*pair) for pair in zip(*(end["model"].values() for end in ends), strict=True))
    assert ends[0]["loader"] == ends[1]["loader"]
    assert [end["step"] for end in ends] == [len(whole.noted(0, "grads"))] * 2


def test_without_torchrun_it_says_how_to_start(tmp_path: Path) -> None:
    script = [sys.executable, str(EXAMPLES / "ddp.py"), "a.tar", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "start it with torchrun" in done.stderr
