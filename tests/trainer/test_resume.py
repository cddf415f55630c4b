from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from webdataset import ShardWriter

from patchnpack import PackedImageLoader, Packing
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import Classification, Distillation, TrainConfig, learning_rate, load_checkpoint, train
from patchnpack.trainer.checkpoint import save_checkpoint
from tests.images import encode_image

Draw = Callable[..., Any]
Pack = Callable[..., Any]


@pytest.fixture
def batches(draw: Draw, pack: Pack) -> list[Any]:
    """Five batches of dark images (class 0) and bright ones (class 1), in packs of two."""
    images = [draw(2 + i % 3, 3, label=i % 2, seed=i, high=256 if i % 2 else 60) for i in range(20)]
    return [pack([images[i : i + 2], images[i + 2 : i + 4]], slots=24, columns=3) for i in range(0, 20, 4)]


@pytest.fixture
def small(config: NaViTConfig) -> NaViTConfig:
    return dataclasses.replace(config, num_classes=2, depth=2, width=12, drop_path=0.2)


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 3, "lr": 3e-3, "precision": "float32", "mixup": 0.5, **changes})


class Stopped(Exception):
    """The error that ends a run early."""


class Interrupted:
    """Batches that raise once too many are requested."""

    def __init__(self, batches: list[Any], most: int) -> None:
        self.batches, self.left = batches, most

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if self.left == 0:
                raise Stopped
            self.left -= 1
            yield batch


@pytest.mark.parametrize("points", [2, pytest.param(10, marks=pytest.mark.soak)])
def test_a_run_killed_anywhere_resumes_with_the_losses_of_an_uninterrupted_run(points: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(f"{tmp_path}/images-%d.tar", verbose=0, encoder=False) as sink:
        for i in range(26):
            pixels = rng.integers(0, 256 if i % 2 else 120, (*rng.integers(16, 65, 2), 3), dtype=np.uint8)
            sink.write({"__key__": f"{i:03d}", "png": encode_image(pixels, "PNG"), "cls": str(i % 2).encode()})
    script = str(Path(__file__).with_name("killed.py"))
    command = [sys.executable, "-P", script, str(tmp_path), f"{tmp_path}/images-0.tar", str(points), "5"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    whole, *others = (
        json.loads((tmp_path / name / "record.json").read_text())
        for name in ("whole", *(f"killed-{i}" for i in range(points)))
    )
    assert len(whole["losses"]) >= 10
    for other in others:
        assert other["losses"] == whole["losses"]
        assert other["history"] == whole["history"]
    ends = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", f"killed-{points - 1}")
    ]
    for ours, theirs in ((ends[0]["model"], ends[1]["model"]), (ends[0]["state"]["ema"], ends[1]["state"]["ema"])):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert sorted(path.name for path in (tmp_path / "killed-0").glob("checkpoint*")) == sorted(
        path.name for path in (tmp_path / "whole").glob("checkpoint*")
    )


@pytest.mark.parametrize("most", [1, 2, 3, 5, 6, 8, 11, 14])
def test_a_loader_without_a_state_is_fast_forwarded(
    most: int, tmp_path: Path, batches: list[Any], small: NaViTConfig
) -> None:
    config = settings(save_every=1)
    whole = train(small, batches, config=settings())
    with pytest.raises(Stopped):
        train(small, Interrupted(batches, most), config=config, out=tmp_path)
    resumed = train(small, batches, config=config, out=tmp_path)
    assert resumed.losses == whole.losses
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


def test_a_run_of_steps_resumes_on_a_loader_that_never_ends(tmp_path: Path, small: NaViTConfig) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)
    with ShardWriter(f"{tmp_path}/images-%d.tar", verbose=0, encoder=False) as sink:
        for i, image in enumerate(pixels):
            sink.write({"__key__": f"{i:03d}", "png": encode_image(image, "PNG"), "cls": str(i % 2).encode()})

    def run(out: Path | None = None, stop: int = 0) -> list[float]:
        def log(step: int, scalars: dict[str, float]) -> None:
            if step == stop:
                raise Stopped

        packing = Packing(seq_len=16)
        loader = PackedImageLoader(
            f"{tmp_path}/images-0.tar", packing, batch_size=1, shuffle=True, label="cls", num_threads=1, repeat=True
        )
        config = settings(epochs=None, steps=8, log_steps=1, save_every=2 if out else None)
        return train(dataclasses.replace(small, patch_size=16), loader, config=config, out=out, log=log).losses

    with pytest.raises(Stopped):
        run(tmp_path / "run", stop=5)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt").step == 4
    assert run(tmp_path / "run") == run()


def test_a_finished_run_returns_its_result_again(tmp_path: Path, batches: list[Any], small: NaViTConfig) -> None:
    first = train(small, batches, config=settings(), out=tmp_path)
    again = train(small, Interrupted(batches, 0), config=settings(), out=tmp_path)
    assert (again.losses, again.metrics, again.history) == (first.losses, first.metrics, first.history)


@pytest.mark.parametrize(("budget", "first", "more"), [("epochs", 2, 3), ("steps", 7, 12)])
def test_a_finished_run_is_extended_with_a_schedule_of_its_own(
    budget: str, first: int, more: int, tmp_path: Path, batches: list[Any], small: NaViTConfig
) -> None:
    def config(count: int, **changes: Any) -> TrainConfig:
        return settings(**{"epochs": None, budget: count, **changes})

    rates: list[float] = []
    before = train(small, batches, config=config(first), out=tmp_path)
    extended = train(
        small,
        batches,
        config=config(more, log_steps=1),
        out=tmp_path,
        log=lambda step, row: rates.append(row.get("train/lr", -1)),
    )
    rates = [rate for rate in rates if rate >= 0]
    assert extended.losses[: len(before.losses)] == before.losses
    assert len(extended.losses) == (more if budget == "steps" else 5 * more)
    assert [row["epoch"] for row in extended.history] == [*range(len(extended.history))]
    added = len(extended.losses) - len(before.losses)
    progress = [(i + 0.5) / added for i in range(added)]
    assert rates == pytest.approx([learning_rate(p, config(more)) for p in progress])
    assert train(small, Interrupted(batches, 0), config=config(more), out=tmp_path).losses == extended.losses
    with pytest.raises(ValueError, match=rf"a run with {budget} {more}, but this run has {first}"):
        train(small, batches, config=config(first), out=tmp_path)


def test_an_extension_that_is_killed_resumes_and_an_unfinished_run_is_not_extended(
    tmp_path: Path, batches: list[Any], small: NaViTConfig
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        train(small, batches, config=settings(epochs=1), out=out)
    unbroken = train(small, batches, config=settings(epochs=3), out=whole)
    with pytest.raises(Stopped):
        train(small, Interrupted(batches, 7), config=settings(epochs=3, save_every=1), out=parts)
    with pytest.raises(ValueError, match=r"a run with epochs 3, but this run has 4"):
        train(small, batches, config=settings(epochs=4), out=parts)
    assert train(small, batches, config=settings(epochs=3), out=parts).losses == unbroken.losses


class _Named(list[Any]):
    """Batches of a loader whose state is its shards' name."""

    def __init__(self, name: str, batches: list[Any]) -> None:
        super().__init__(batches)
        self.name = name

    def state_dict(self, after: object = None) -> dict[str, Any]:
        return {"shards": self.name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state != self.state_dict():
            raise ValueError(f"the state is of {state['shards']}, this loader has {self.name}")


def test_a_finished_run_is_not_the_result_of_other_shards(
    tmp_path: Path, batches: list[Any], small: NaViTConfig
) -> None:
    first = train(small, _Named("a", batches), config=settings(), out=tmp_path)
    assert train(small, _Named("a", batches), config=settings(), out=tmp_path).losses == first.losses
    with pytest.raises(ValueError, match="the state is of a, this loader has b"):
        train(small, _Named("b", batches), config=settings(), out=tmp_path)


def test_an_epoch_without_evaluation_also_ends_with_a_checkpoint(
    tmp_path: Path, batches: list[Any], small: NaViTConfig
) -> None:
    steps: list[int] = []

    def log(step: int, scalars: dict[str, float]) -> None:
        if (tmp_path / "checkpoint.pt").exists():
            steps.append(load_checkpoint(tmp_path / "checkpoint.pt").step)

    config = settings(epochs=3, eval_every=3, log_steps=1, save_every=None)
    result = train(small, batches, config=config, out=tmp_path, log=log)
    assert len(result.history) == 1
    assert len(set(steps)) == 2, "after the first epoch, and after the second"


def test_an_interrupted_run_reports_what_is_saved(
    tmp_path: Path, batches: list[Any], small: NaViTConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(epochs=3, eval_every=3, log_steps=1, save_every=None)

    def interrupt_at(wanted: int) -> Callable[[int, dict[str, float]], None]:
        def log(step: int, scalars: dict[str, float]) -> None:
            if step == wanted:
                raise KeyboardInterrupt

        return log

    for step, out, said in (
        (1, None, r"stopped at step 1; nothing is saved without `out`"),
        (
            1,
            tmp_path,
            r"stopped at step 1, before the first checkpoint: checkpoints are written at the end of each epoch",
        ),
        (7, tmp_path, r"stopped at step 7; run it again to resume from the checkpoint of step 5"),
    ):
        with pytest.raises(KeyboardInterrupt):
            train(small, batches, config=config, out=out, log=interrupt_at(step))
        assert re.search(said, capsys.readouterr().err)


def test_the_minutes_of_all_sessions_count(tmp_path: Path, batches: list[Any], small: NaViTConfig) -> None:
    config = settings(epochs=None, minutes=1.0, save_every=1)
    with pytest.raises(Stopped):
        train(small, Interrupted(batches, 3), config=config, out=tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    content["state"]["minutes"] = 0.999
    save_again = {name: content[name] for name in ("step", "train_config", "metrics", "state")}
    model = load_checkpoint(tmp_path / "checkpoint.pt").model
    save_checkpoint(tmp_path / "checkpoint.pt", model, optimizer=_Saved(content["optimizer"]), **save_again)  # type: ignore[arg-type]
    result = train(small, batches, config=config, out=tmp_path)
    assert 1 <= result.history[-1]["minutes"] < 1.1
    assert len(result.losses) > content["step"]


class _Saved:
    def __init__(self, state: dict[str, Any]) -> None:
        self.state_dict = lambda: state


def test_the_newest_checkpoints_are_kept(tmp_path: Path, batches: list[Any], small: NaViTConfig) -> None:
    train(small, batches, config=settings(save_every=2, keep=3), out=tmp_path)
    kept = sorted(path.name for path in tmp_path.glob("checkpoint*"))
    assert kept == ["checkpoint-0000000010.pt", "checkpoint-0000000012.pt", "checkpoint.pt"] or len(kept) == 3
    steps = [load_checkpoint(tmp_path / name).step for name in kept]
    assert steps == [*(int(name[11:21]) for name in kept[:2]), 15]
    assert steps == sorted(steps)


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(
    tmp_path: Path, batches: list[Any], small: NaViTConfig
) -> None:
    train(small, batches, config=settings(), out=tmp_path)
    train(small, batches, config=settings(keep=4, log_steps=3, eval_every=2), out=tmp_path)
    for config, model, message in (
        (settings(lr=1e-3), small, r"a run with lr 0.003, but this run has 0.001"),
        (settings(), dataclasses.replace(small, width=24), r"a run with width 12, but this run has 24"),
    ):
        with pytest.raises(ValueError, match=message + r"; use the same configuration, another `out`, or"):
            train(model, batches, config=config, out=tmp_path)

    class Other(Classification):
        pass

    with pytest.raises(ValueError, match=r"a run with objective Classification, but this run has Other"):
        train(small, batches, config=settings(), objective=Other(), out=tmp_path)
    with pytest.raises(ValueError, match=r"a run with the objective's label_smoothing 0.1, but this run has 0.2"):
        train(small, batches, config=settings(), objective=Classification(label_smoothing=0.2), out=tmp_path)


def test_a_run_resumes_only_with_the_same_teacher(tmp_path: Path, batches: list[Any], small: NaViTConfig) -> None:
    teacher = NaViT(small)
    train(small, batches, config=settings(), objective=Distillation(teacher), out=tmp_path)
    train(small, batches, config=settings(keep=4), objective=Distillation(copy.deepcopy(teacher)), out=tmp_path)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        next(other.parameters()).add_(1e-6)
    for taught in (Distillation(other), Distillation(NaViT(dataclasses.replace(small, norm_eps=1e-4)))):
        with pytest.raises(
            ValueError, match=r"a run with the objective's teacher [0-9a-f]{16}, but this run has [0-9a-f]"
        ):
            train(small, batches, config=settings(), objective=taught, out=tmp_path)
    with pytest.raises(ValueError, match=r"a run with the objective's temperature 1.0, but this run has 2.0"):
        train(small, batches, config=settings(), objective=Distillation(teacher, temperature=2.0), out=tmp_path)


def test_resume_true_requires_a_checkpoint_and_false_deletes_it(
    tmp_path: Path, batches: list[Any], small: NaViTConfig
) -> None:
    with pytest.raises(ValueError, match=r"checkpoint.pt does not exist, so there is nothing to resume"):
        train(small, batches, config=settings(), out=tmp_path, resume=True)
    train(small, batches, config=settings(), out=tmp_path)
    anew = train(small, batches, config=settings(seed=1), out=tmp_path, resume=False)
    assert load_checkpoint(tmp_path / "checkpoint.pt").train_config["seed"] == 1
    assert train(small, batches, config=settings(seed=1), out=tmp_path, resume=True).losses == anew.losses
    save_checkpoint(tmp_path / "checkpoint.pt", anew.model)
    with pytest.raises(ValueError, match=r"holds a model but no run"):
        train(small, batches, config=settings(), out=tmp_path)
    for changes in ({"resume": True}, {"config": settings(save_every=1)}):
        with pytest.raises(ValueError, match=r"need a folder; give out="):
            train(small, batches, **{"config": settings(), **changes})  # type: ignore[arg-type]


def test_a_run_resumed_with_other_steps_left_continues_from_its_progress(
    tmp_path: Path, batches: list[Any], small: NaViTConfig
) -> None:
    config = settings(save_every=1, mixup=0.0)
    with pytest.raises(Stopped):
        train(small, Interrupted(batches, 6), config=config, out=tmp_path)  # 5 of 15 steps are saved
    rates: list[float] = []
    longer = [*batches, *batches]  # 10 steps per epoch from now on, as with half the ranks
    train(
        small,
        longer,
        config=dataclasses.replace(config, log_steps=1),
        out=tmp_path,
        log=lambda step, scalars: rates.append(scalars.get("train/lr", -1)),
    )
    rates = [rate for rate in rates if rate >= 0]
    assert len(rates) == 20
    assert all(a > b for a, b in itertools.pairwise(rates)), "it falls without a jump, to the end"
    assert rates[-1] < 0.02 * config.lr
