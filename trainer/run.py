"""`Run`: the state of a training run, its steps, and its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from patchnpack.models.config import NaViTConfig
from patchnpack.models.navit import NaViT
from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.packer.files import atomic_write
from patchnpack.trainer import optim, sharding
from patchnpack.trainer.bad_steps import BadSteps
from patchnpack.trainer.checkpoint import read_checkpoint, save_checkpoint
from patchnpack.trainer.evaluate import Batches, Meter, autocast
from patchnpack.trainer.objectives.losses import Objective, Outcome
from patchnpack.trainer.ranks import over_ranks, rank_and_size
from patchnpack.trainer.train_config import TrainConfig

CHECKPOINT = "checkpoint.pt"
SHARDS = "shards"  # folders of sharded checkpoints, with epoch and step
HISTORY = "history.jsonl"


class _Step(nn.Module):
    """Model and objective as one module for DDP to wrap."""

    def __init__(self, model: NaViT, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, *batches: PackedBatch) -> Outcome:
        return self.objective(self.model, *batches)


class Run:
    """The state of a training run, which takes steps and writes checkpoints."""

    def __init__(
        self, model: NaViT, objective: Objective, config: TrainConfig, device: torch.device, folder: Path | None
    ) -> None:
        self.model, self.objective, self.config, self.device, self.folder = model, objective, config, device, folder
        self.rank, self.size = rank_and_size()
        self.average = optim.Average(model, config.ema) if config.ema else None
        model.activation_checkpointing = config.activation_checkpointing
        for block in model.blocks if config.compile else ():
            block.compile(dynamic=True)  # one graph for all blocks and batches
        self.module: nn.Module = _Step(model, objective)
        if self.size > 1 and config.sharding == "fsdp":
            sharding.shard(model, objective, *([self.average.model] if self.average else []))
        elif self.size > 1:
            # DDP keeps its group alive past destroy_process_group, so it gets a group of its own.
            self.module = DistributedDataParallel(self.module, process_group=dist.new_group())
        self.optimizer = optim.make_optimizer(model, config, objective.parameters())
        self.step, self.epoch, self.batches = 0, 0, 0  # batches: number of batches of this epoch used so far
        self.meter, self.metrics, self.history = Meter(), dict[str, float](), list[dict[str, float]]()
        self.losses: list[torch.Tensor] = []  # loss over all ranks of each step
        self.old_losses = torch.zeros(0)  # losses of the steps before `losses`
        self.norm = torch.zeros(())
        self.bad = BadSteps(config)
        self.anchor = (0.0, 0, 0)  # progress, step, and steps left at that step
        self.loader_state: dict[str, Any] = {}
        self.began, self.saved_step, self.saved_minutes = time.perf_counter(), 0, 0.0
        self.clock = 0.0  # minutes after the last step

    def evaluated(self) -> NaViT:
        """The model to evaluate and return: the moving average, if the run keeps one."""
        return self.average.model if self.average else self.model

    def minutes(self) -> float:
        """Minutes of rank 0 so far, over all sessions of the run."""
        minutes = (time.perf_counter() - self.began) / 60
        if self.size == 1:
            return minutes
        return float(over_ranks(torch.tensor(minutes if self.rank == 0 else 0.0, dtype=torch.float64), self.device))

    def plan(self, loader: Batches, batches_left: int | None) -> None:
        """Set how steps map to progress; a resumed run with other steps left continues from its progress."""
        config, (_, begin, left) = self.config, self.anchor
        if config.minutes or self.progress >= 1:
            return
        steps_left = config.steps - self.step if config.steps else _steps_left(loader, config, self.epoch, batches_left)
        if begin + left != self.step + steps_left:
            self.anchor = (self.progress, self.step, steps_left)

    @property
    def progress(self) -> float:
        """Share of the budget that is used, 0 to 1."""
        if self.config.minutes:
            return min(self.clock / self.config.minutes, 1.0)
        return self._progress_at(self.step)

    def _progress_at(self, step: float) -> float:
        start, begin, left = self.anchor
        return start + (1 - start) * (step - begin) / left if left else start

    def steps(self, loader: Batches) -> Iterator[None]:
        """Take the remaining steps of the epoch, or of the budget."""
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(self.epoch)
        batches: Iterable[PackedBatch] = loader
        if self.batches and not hasattr(loader, "load_state_dict"):
            batches = itertools.islice(loader, self.batches, None)
        last, batches = None, iter(batches)
        while group := list(itertools.islice(batches, self.config.accumulate)):
            if last is not None and self.save_due():  # the epoch continues; at its end, end_epoch saves
                self.check_finite()
                self.save()
            self._take(group)
            self.bad.judge(self._kept(), wait=False)
            last = group[-1]
            if hasattr(loader, "state_dict"):
                self.loader_state = loader.state_dict(after=last)
            yield
            if self.progress >= 1:
                break
        if not self.batches:
            raise ValueError(f"the loader yields no batch in epoch {self.epoch}; check its source and its filters")

    def _take(self, group: list[PackedBatch]) -> None:
        """Take one step on the mean loss over the images of a group of batches on all ranks."""
        config, objective = self.config, self.objective
        # Keyed by step and rank, so that no random state needs saving.
        keys = ((config.seed % 2**64, self.step, self.rank, i) for i in range(len(group)))
        rngs = [np.random.default_rng(key) for key in keys]
        prepared = [objective.prepare(self.model, batch, rng) for batch, rng in zip(group, rngs, strict=True)]
        counted = torch.tensor(sum(objective.count(self.model.units(parts[0])) for parts in prepared))
        images = over_ranks(counted, self.device).clamp(min=1)
        # The rate at the middle of the step, so that no step has a rate of 0.
        progress = self.progress if config.minutes else self._progress_at(self.step + 0.5)
        optim.set_learning_rate(self.optimizer, optim.learning_rate(progress, config))
        self.optimizer.zero_grad()
        total, outcomes = torch.zeros((), device=self.device), list[Outcome]()
        for i, (parts, rng) in enumerate(zip(prepared, rngs, strict=True), 1):
            moved = [part.to(self.device, non_blocking=True) for part in parts]
            torch.manual_seed(int(rng.integers(2**63)))
            accumulating = isinstance(self.module, DistributedDataParallel) and i < len(group)
            with self.module.no_sync() if accumulating else contextlib.nullcontext():  # type: ignore[operator]
                with autocast(self.device, config.precision):
                    outcome: Outcome = self.module(*moved)
                # DDP and FSDP divide the sum of gradients by the ranks; divide by the images of all ranks instead.
                (outcome.total * self.size / images).backward()
            outcomes.append(outcome._replace(total=outcome.total.detach()))
            total += outcome.total.detach()
        norm = sharding.whole(nn.utils.clip_grad_norm_(self.module.parameters(), config.clip))
        self._update(torch.stack([total / images, norm.float()]), group, outcomes)
        if config.minutes:
            self.clock = self.minutes()

    def _update(self, seen: torch.Tensor, group: list[PackedBatch], outcomes: list[Outcome]) -> None:
        """Update the weights if this rank's share of the loss and the gradient norm, (2,), are finite on all ranks.

        The device decides, so that the host need not wait for the step: with `found_inf`, as `GradScaler` sets it, the
        optimizer changes neither weights nor moments.
        """
        seen = over_ranks(seen, self.device)
        seen[1] /= self.size  # all ranks have the same norm
        good = seen.isfinite().all()
        self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.step, self.batches = self.step + 1, self.batches + len(group)
        if self.average:
            self.average.update(self.model, self.step, good)
        for batch, outcome in zip(group, outcomes, strict=True):
            self.meter.add(batch, outcome, good)
        self.losses.append(seen[0])
        self.norm = seen[1]
        self.bad.add(self.step, seen, group[0])

    def check_finite(self) -> None:
        """Raise FloatingPointError if the state is not worth saving. Every rank must call it.

        Weights and moments must be finite. If there is a folder, the loss of the newest good batch must be, too: it
        shows weights that are finite but so large that no step succeeds.
        """
        self.bad.judge(self._kept(), wait=True)
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        averages = self.average.model.parameters() if self.average else ()
        tensors = map(sharding.local, (*self.module.parameters(), *moments, *averages))
        finite = [each.isfinite().all().to(self.device) for each in tensors]
        loss = torch.zeros((), device=self.device)
        if self.folder is not None and self.bad.good_batch is not None:
            self.model.eval()
            moved = [part.to(self.device) for part in self.objective.prepare(self.model, self.bad.good_batch)]
            with torch.no_grad(), autocast(self.device, self.config.precision):
                loss = self.objective(self.model, *moved).total.float()
            self.model.train()
        bad = (~torch.stack(finite).all()).float()
        bad_ranks, total = over_ranks(torch.stack([bad, loss]), self.device).tolist()
        if bad_ranks or not math.isfinite(total):
            left = "weights that are not finite" if bad_ranks else f"weights with which the loss is {total:g}"
            raise FloatingPointError(
                f"step {self.step} left {left}, so they are not saved; {self._kept()}; try an lr below {self.config.lr}"
            )

    def _kept(self) -> str:
        if self.folder is None or not self.saved_step:
            return "no checkpoint has been written"
        return f"the checkpoint of step {self.saved_step} is unchanged"

    def scalars(self, loader: Batches) -> dict[str, float]:
        """Scalars of the last step, of the epoch so far and of all loaders. Every rank must call it."""
        self.bad.judge(self._kept(), wait=True)
        row = self.meter.over_ranks(self.device).row()
        scalars = {
            "train/loss": float(self.losses[-1]),
            "train/accuracy": row["accuracy"],
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/gradient_norm": float(self.norm),
            "train/epoch": float(self.epoch),
            "train/skipped_steps": float(self.bad.skipped),
        }
        stats = loader.stats() if hasattr(loader, "stats") else {}
        flat = {name: value for name, value in stats.items() if isinstance(value, int | float)}
        flat |= {f"skipped_{name}": value for name, value in stats.get("skipped", {}).items()}
        sums = over_ranks(torch.tensor(list(flat.values()), dtype=torch.float64), self.device).tolist()
        means = ("padding", "wait_s", "run_s")  # averaged over ranks, since their sum has no meaning
        for name, value in zip(flat, sums, strict=True):
            scalars[f"loader/{name}"] = value / self.size if name in means else value
        return scalars

    def all_losses(self) -> torch.Tensor:
        """The loss of every step, also of the skipped ones, float32 (step,)."""
        if self.losses:
            self.old_losses, self.losses = torch.cat([self.old_losses, torch.stack(self.losses).cpu()]), []
        return self.old_losses

    def stopped(self) -> str:
        """The message for a run that is interrupted now: what is saved, and how to resume."""
        if self.folder is None:
            return f"stopped at step {self.step}; nothing is saved without `out`"
        if not self.saved_step:
            return (
                f"stopped at step {self.step}, before the first checkpoint: checkpoints are written at the end of each "
                "epoch, and more often with save_minutes"
            )
        return f"stopped at step {self.step}; run it again to resume from the checkpoint of step {self.saved_step}"

    def save_due(self) -> bool:
        """Whether a checkpoint is due by steps or minutes; the same on all ranks, all of which must call it."""
        config = self.config
        if config.save_every and self.step - self.saved_step >= config.save_every:
            return True
        return bool(config.save_minutes and self.minutes() - self.saved_minutes >= config.save_minutes)

    def end_epoch(self) -> None:
        """Advance to the next epoch, and save. Call `check_finite` first."""
        self.epoch, self.batches, self.meter = self.epoch + 1, 0, Meter()
        self.save()

    def save(self) -> None:
        """Write the checkpoint and the history, on rank 0. Every rank must call it, after `check_finite`."""
        losses, meter = self.all_losses(), self.meter.over_ranks(self.device)
        before, self.saved_step, self.saved_minutes = self.saved_step, self.step, self.minutes()
        if self.folder is None:
            return
        tensors, shards = self._tensors(), {}
        if self.config.sharding == "fsdp":
            name = f"{SHARDS}-{self.epoch:05d}-{self.step:010d}"  # never that of the checkpoint to replace
            shards, tensors = {"folder": name, "files": sharding.save_shards(self.folder / name, tensors)}, {}
        if self.rank:
            return
        path = self.folder / CHECKPOINT
        if self.config.keep > 1 and path.exists():
            kept = self.folder / f"checkpoint-{before:010d}.pt"
            kept.unlink(missing_ok=True)
            os.link(path, kept)  # a second name for the same file, so that a complete checkpoint exists at any time
        state = {
            "objective": self._objective() | {"weights": tensors.get("objective", {})},
            "ema": tensors.get("ema", {}),
            "loader": self.loader_state,
            "epoch": self.epoch,
            "batches": self.batches,
            "anchor": self.anchor,
            "minutes": self.saved_minutes,
            "meter": meter.state(),
            "history": self.history,
            "losses": losses,
            "skipped": [self.bad.skipped, self.bad.in_row],
        }
        fields = {"train_config": dataclasses.asdict(self.config), "metrics": self.metrics, "state": state}
        save_checkpoint(path, self.model, optimizer=self.optimizer, step=self.step, shards=shards, **fields)
        steps = sorted(path.stem[-10:] for path in self.folder.glob("checkpoint-*.pt"))
        _delete(self.folder, {f"{self.step:010d}", *steps} - {*steps[: -self.config.keep + 1 or None]})
        lines = "".join(json.dumps(row) + "\n" for row in self.history)
        atomic_write(self.folder / HISTORY, lambda file: file.write(lines.encode()))

    def _objective(self) -> dict[str, Any]:
        return {"name": type(self.objective).__name__, "settings": self.objective.settings()}

    def _tensors(self) -> dict[str, Any]:
        """The tensors of a checkpoint, in nested dicts."""
        ema = {"ema": self.average.model} if self.average else {}
        modules = {"model": self.model, "objective": self.objective, **ema}
        parts: dict[str, Any] = {name: module.state_dict() for name, module in modules.items()}
        return parts | {"optimizer": self.optimizer.state_dict()["state"]}

    def restore(self, loader: Batches, resume: bool | None) -> int | None:
        """Resume from the checkpoint in the folder, if any; returns the batches left in a started epoch, else None."""
        if self.folder is None:
            return None
        path = self.folder / CHECKPOINT
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            if resume is False:
                path.unlink(missing_ok=True)
                _delete(self.folder)
        over_ranks(torch.zeros(1), self.device)  # a barrier: no rank looks before rank 0 has deleted
        if not path.exists():
            if resume:
                raise ValueError(f"{path} does not exist, so there is nothing to resume; give another `out`")
            return None
        content = read_checkpoint(path, whole=False)
        state = content["state"]
        if not state:
            raise ValueError(f"{path} holds a model but no run; give another `out`, or resume=False to delete it")
        extended = self._check_same(path, content)
        optim.start_moments(self.optimizer)
        if shards := content.get("shards"):
            sharding.load_shards(self.folder / shards["folder"], shards["files"], self._tensors())
        else:
            saved = {"model": content["model"], "objective": state["objective"]["weights"], "ema": state["ema"]}
            sharding.fill(self._tensors(), saved | {"optimizer": content["optimizer"]["state"]})
        self.step, self.epoch, self.batches = content["step"], state["epoch"], state["batches"]
        self.metrics, self.history, self.old_losses = content["metrics"], state["history"], state["losses"]
        self.anchor, self.clock = tuple(state["anchor"]), state["minutes"]
        if extended:  # the added steps have a schedule of their own; `plan` counts them
            self.anchor = (0.0, self.step, 0)
        self.bad.skipped, self.bad.in_row = state.get("skipped", (0, 0))
        self.saved_step, self.saved_minutes = self.step, self.clock
        self.began = time.perf_counter() - 60 * self.clock
        if self.batches and self.rank == 0:  # the saved sums are those of all ranks
            self.meter = Meter.of_state(state["meter"])
        used = self.batches
        if hasattr(loader, "load_state_dict"):
            self.loader_state, used = state["loader"], 0  # the length of the loader is then what is left
            loader.load_state_dict(self.loader_state)  # also for a finished run: with other shards it raises
        return len(loader) - used if self.batches and self.config.epochs and self.progress < 1 else None

    def _check_same(self, path: Path, content: dict[str, Any]) -> bool:
        """Raise ValueError if the checkpoint is of another run; return whether it adds steps to a finished one."""
        # Through the classes, so that fields added since have their defaults.
        saved = dataclasses.asdict(NaViTConfig(**content["model_config"]))
        saved |= dataclasses.asdict(TrainConfig(**content["train_config"]))
        given = {**dataclasses.asdict(self.model.config), **dataclasses.asdict(self.config)}
        for fields, objective in ((saved, content["state"]["objective"]), (given, self._objective())):
            fields["objective"] = objective["name"]  # compared before the settings, in alphabetical order
            fields |= {f"the objective's {name}": value for name, value in objective["settings"].items()}
        (start, begin, left), extended = content["state"]["anchor"], False
        finished = start >= 1 or (left and content["step"] >= begin + left)
        for name in sorted(given.keys() - TrainConfig.FREE - {"backend"}):
            if name in ("epochs", "steps") and finished and (saved[name] or math.inf) < (given[name] or 0):
                extended = True
            elif given[name] != saved.get(name):
                raise ValueError(
                    f"{path} is of a run with {name} {saved.get(name)}, but this run has {given[name]}; use the same "
                    "configuration, another `out`, or resume=False to delete the checkpoint and start again"
                )
        return extended


def _delete(folder: Path, kept: Collection[str] = ()) -> None:
    """Delete the checkpoints and shards of single steps, except those of the steps that are kept."""
    for old in [*folder.glob("checkpoint-*.pt"), *folder.glob(f"{SHARDS}-*")]:
        if old.stem[-10:] not in kept:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def _steps_left(loader: Batches, config: TrainConfig, epoch: int, batches_left: int | None) -> int:
    """Steps to the end of the last epoch; `batches_left` is None if `epoch` has not started."""
    epochs, k = config.epochs or 0, config.accumulate
    first = epoch if batches_left is None else epoch + 1
    try:
        count = getattr(loader, "total_steps", None) or (len(loader).__mul__)
    except TypeError as error:
        raise ValueError("this loader has no length, so epochs cannot be counted; give steps or minutes") from error
    ends = [int(count(e)) for e in ((first, epochs) if k == 1 else range(first, epochs + 1))]
    steps = sum(-(-(end - start) // k) for start, end in itertools.pairwise(ends)) - (-(batches_left or 0) // k)
    if steps == 0:
        raise ValueError("the loader yields no batch; check its source and its filters")
    return steps
