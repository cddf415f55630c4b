"""Training of a `NaViT` on packed batches: one plain loop, usable as a function."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from patchnpack.models.checkpoint import save_checkpoint
from patchnpack.models.config import NaViTConfig, TrainConfig
from patchnpack.models.evaluate import Batches, Meter, autocast, evaluate
from patchnpack.models.navit import NaViT, classification_loss
from patchnpack.packer.batch import PackedBatch
from patchnpack.packer.files import atomic_write

CHECKPOINT = "checkpoint.pt"
HISTORY = "history.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What `train` gives back.

    Attributes:
        model: the trained model, in evaluation mode.
        metrics: of the last evaluation, or of the last epoch's training where there is no validation.
        history: one row for each evaluation: step, epoch, minutes, loss, accuracy, images_per_second,
            tokens_per_second and padding of the epoch's training, and with validation val_loss, val_accuracy,
            val_images.
        losses: the loss of every step.
        checkpoint: where it lies, or None without `out`.
    """

    model: NaViT
    metrics: dict[str, float]
    history: list[dict[str, float]]
    losses: list[float]
    checkpoint: Path | None


def learning_rate(progress: float, config: TrainConfig) -> float:
    """The learning rate at `progress` (0 to 1) of the budget: linear warm-up, then a half cosine down to 0.

    >>> [round(learning_rate(p, TrainConfig(steps=100, lr=1.0, warmup=0.1)), 2) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < config.warmup:
        return config.lr * progress / config.warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * min((progress - config.warmup) / (1 - config.warmup), 1.0)))


def make_optimizer(model: NaViT, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.ndim > 1 and not name.startswith(("pos_embed.", "pool.query"))].append(parameter)
    decays = ((True, config.weight_decay), (False, 0.0))
    settings = [{"params": groups[decayed], "weight_decay": decay} for decayed, decay in decays]
    return torch.optim.AdamW(settings, lr=config.lr, betas=config.betas, fused=True)


def train(
    model: NaViT | NaViTConfig,
    loader: Batches,
    *,
    config: TrainConfig,
    validation: Batches | None = None,
    out: str | Path | None = None,
) -> TrainResult:
    """Trains a `NaViT` on a loader of packed batches.

    Args:
        model: a model, trained in place, or the configuration of a new one, drawn from `config.seed`.
        loader: each `iter` is one epoch. `set_epoch(epoch)` is called before it and `total_steps(epochs)` gives the
            length of the schedule, where the loader has them. Augmentation is its `transform`.
        config: how to train.
        validation: evaluated every `eval_every` epochs and at the end.
        out: folder, made if absent, that receives `checkpoint.pt` and `history.jsonl` at each evaluation.

    The loss of a step is the sum over the labelled images of the batch, divided by their number.

    Raises:
        ValueError: a batch does not fit the model, or a loader is empty.
        FloatingPointError: the loss is no longer a number.
    """
    best = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(best if config.device == "auto" else config.device)
    total = None if config.minutes else config.steps or _total_steps(loader, config.epochs or 0)
    folder = None if out is None else Path(out)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _Display(config.log_every) as display:
        torch.manual_seed(config.seed)
        model = (NaViT(model) if isinstance(model, NaViTConfig) else model).to(device).train()
        first = () if validation is None else itertools.islice(validation, 1)
        for batch in first:  # a mistake there must not wait for the end of an epoch
            model.check(batch, labels=True)
        optimizer = make_optimizer(model, config)
        history: list[dict[str, float]] = []
        losses: list[torch.Tensor] = []
        start, progress = time.perf_counter(), 0.0
        half = 0.5 / total if total else 0.0  # a step takes the learning rate of its middle, so that no step has none
        for epoch in itertools.count():
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            meter = Meter()
            for batch in loader:
                model.check(batch, labels=True)
                batch = batch.to(device, non_blocking=True)
                losses.append(_step(model, optimizer, batch, meter, config, progress + half))
                minutes = (time.perf_counter() - start) / 60
                progress = len(losses) / total if total else minutes / (config.minutes or 1)
                if display.due():
                    display.show(progress, {"epoch": epoch, **_finite(meter.row(), config)})
                if progress >= 1:
                    break
            if meter.slots == 0:
                raise ValueError(f"the loader gave no batch in epoch {epoch}; check its source and its filters")
            if progress < 1 and (epoch + 1) % config.eval_every:
                continue
            row = {"step": len(losses), "epoch": epoch, "minutes": minutes, **_finite(meter.row(), config)}
            metrics = {"loss": row["loss"], "accuracy": row["accuracy"]}
            if validation is not None:
                metrics = evaluate(model, validation, precision=config.precision)
                row |= {f"val_{name}": metrics[name] for name in ("loss", "accuracy", "images")}
            history.append(row)
            display.show(progress, row, keep=True)
            if folder:
                _write(folder, model, optimizer, config, history, metrics)
            if progress >= 1:
                break
    return TrainResult(
        model=model.eval(),
        metrics=metrics,
        history=history,
        losses=torch.stack(losses).tolist(),
        checkpoint=folder and folder / CHECKPOINT,
    )


def _step(
    model: NaViT,
    optimizer: torch.optim.Optimizer,
    batch: PackedBatch,
    meter: Meter,
    config: TrainConfig,
    progress: float,
) -> torch.Tensor:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(progress, config)
    with autocast(batch.patches.device, config.precision):
        logits = model(batch)
    total, images = classification_loss(logits, batch, config.label_smoothing)
    loss = total / images.clamp(min=1)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    meter.add(batch, logits, total, images)
    return loss.detach()


def _total_steps(loader: Batches, epochs: int) -> int:
    try:
        steps = int(loader.total_steps(epochs)) if hasattr(loader, "total_steps") else epochs * len(loader)
    except TypeError as error:
        raise ValueError("this loader has no length, so epochs cannot be counted; give steps or minutes") from error
    if steps == 0:
        raise ValueError("the loader has no batch; check its source and its filters")
    return steps


def _finite(row: dict[str, float], config: TrainConfig) -> dict[str, float]:
    if not math.isfinite(row["loss"]):
        raise FloatingPointError(f"the loss is {row['loss']}; try an lr below {config.lr}, or precision 'float32'")
    return row


def _write(
    folder: Path,
    model: NaViT,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    history: list[dict[str, float]],
    metrics: dict[str, float],
) -> None:
    save_checkpoint(
        folder / CHECKPOINT,
        model,
        optimizer=optimizer,
        step=int(history[-1]["step"]),
        train_config=dataclasses.asdict(config),
        metrics=metrics,
    )
    lines = "".join(json.dumps(row) + "\n" for row in history)
    atomic_write(folder / HISTORY, lambda file: file.write(lines.encode()))


class _Display:
    """A progress bar on a terminal; elsewhere a plain line every `log_every` seconds."""

    def __init__(self, log_every: float) -> None:
        console = Console(stderr=True, highlight=False)
        text = TextColumn("{task.description}")
        self.bar = Progress(BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), text, console=console)
        self.bar.disable = not console.is_terminal
        self.every = log_every if self.bar.disable else 0.5
        self.task = self.bar.add_task("", total=1.0)
        self.last = time.perf_counter()

    def __enter__(self) -> _Display:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def due(self) -> bool:
        return time.perf_counter() - self.last >= self.every

    def show(self, progress: float, row: dict[str, float], keep: bool = False) -> None:
        """Shows a row; with `keep`, as a line that stays."""
        self.last = time.perf_counter()
        text = (
            f"epoch {row['epoch']}  loss {row['loss']:.3f}  accuracy {row['accuracy']:.3f}  "
            f"{row['images_per_second']:.0f} images/s  {row['tokens_per_second']:.0f} tokens/s  "
            f"padding {row['padding']:.1%}"
        )
        if "val_loss" in row:
            text += f"  validation loss {row['val_loss']:.3f}  accuracy {row['val_accuracy']:.3f}"
        self.bar.update(self.task, completed=progress, description=text)
        if keep or self.bar.disable:
            self.bar.console.print(f"{progress:4.0%}  {text}", soft_wrap=True)
