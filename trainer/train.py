"""Training of a `NaViT` on packed batches: one plain loop, usable as a function."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from patchnpack.models.config import NaViTConfig
from patchnpack.models.navit import NaViT
from patchnpack.trainer.device import find_device
from patchnpack.trainer.display import Display, TensorBoard
from patchnpack.trainer.evaluate import Batches, evaluate
from patchnpack.trainer.losses import Classification, Objective
from patchnpack.trainer.ranks import over_ranks, rank_and_size
from patchnpack.trainer.run import CHECKPOINT, Run
from patchnpack.trainer.train_config import TrainConfig

Log = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What `train` gives back.

    Attributes:
        model: the trained model, or its moving average, in evaluation mode.
        metrics: of the last evaluation, or of the last epoch's training where there is no validation.
        history: one row for each evaluation: step, epoch, minutes, loss, accuracy, images_per_second,
            tokens_per_second and padding of the epoch's training, and with validation val_loss, val_accuracy,
            val_images.
        losses: the loss of every step, those before the run was taken up again too.
        checkpoint: where it lies, or None without `out`.
    """

    model: NaViT
    metrics: dict[str, float]
    history: list[dict[str, float]]
    losses: list[float]
    checkpoint: Path | None


def train(
    model: NaViT | NaViTConfig,
    loader: Batches,
    *,
    config: TrainConfig,
    objective: Objective | None = None,
    validation: Batches | None = None,
    out: str | Path | None = None,
    resume: bool | None = None,
    log: Log | None = None,
    started: Callable[[], None] | None = None,
) -> TrainResult:
    """Trains a `NaViT` on a loader of packed batches.

    Where a process group of several ranks has been started, every rank calls this with the loader of its own share, and
    they train one model (DDP). The loss of a step is the sum over its images, of all ranks and `config.accumulate`
    batches, divided by their number.

    Args:
        model: a model, trained in place, or the configuration of a new one, drawn from `config.seed`.
        loader: each `iter` is one epoch. `set_epoch(epoch)` is called before it, `total_steps(epochs)` gives the length
            of the schedule, and `state_dict` and `load_state_dict` its place, where the loader has them; otherwise the
            batches of an epoch that was interrupted are drawn again and passed over.
        config: how to train.
        objective: what is minimised; None is `Classification` as `config` says.
        validation: evaluated every `eval_every` epochs and at the end.
        out: folder, made if absent, that receives `checkpoint.pt` and `history.jsonl` at the end of each epoch.
        resume: whether to go on from the checkpoint in `out`: None where there is one, True insists, False deletes it.
            The losses are then those of a run that was never interrupted, on a CPU bit for bit. A finished run gives
            back what it gave.
        log: called on rank 0 with the step and its scalars, every `log_steps` steps and after each evaluation. Every
            rank must give one, or none.
        started: called on rank 0 once everything has been checked, before the first step.

    Raises:
        ValueError: a batch does not fit the model, a loader is empty, or the checkpoint is of another run.
        FloatingPointError: the loss is no longer a number.
    """
    rank, _ = rank_and_size()
    device, folder = find_device(config.device), None if out is None else Path(out)
    if folder is None and (resume or config.tensorboard or config.save_every or config.save_minutes):
        raise ValueError("resume, tensorboard, save_every and save_minutes need a folder; give out=")
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        Display(config.log_every, quiet=rank > 0) as display,
    ):
        torch.manual_seed(config.seed)
        model = (NaViT(model) if isinstance(model, NaViTConfig) else model).to(device).train()
        if objective is None:
            mixing = {name: getattr(config, name) for name in ("loss", "label_smoothing", "mixup", "cutmix")}
            objective = Classification(**mixing)
        run = Run(model, objective.to(device), config, device, folder)
        batches_left = run.restore(loader, resume)
        if validation is not None and run.progress < 1:
            for batch in itertools.islice(validation, 1):  # a mistake there must not wait for the end of an epoch
                objective.for_evaluation().prepare(model, batch)
        run.plan(loader, batches_left)
        if started is not None and rank == 0:
            started()
        board = TensorBoard(folder, run.step) if config.tensorboard and folder and rank == 0 else None
        logs = [one for one in (log, board) if one is not None and rank == 0]
        logging = log is not None or config.tensorboard
        try:
            while run.progress < 1:
                for _ in run.steps(loader):
                    if logging and run.step % config.log_steps == 0:
                        scalars = run.scalars(loader)
                        for one in logs:
                            one(run.step, scalars)
                    if display.due():
                        display.show(run.progress, {"epoch": run.epoch, **_finite(run.meter.row(), config)})
                if run.progress < 1 and (run.epoch + 1) % config.eval_every:
                    run.end_epoch()
                    continue
                row = {"step": run.step, "epoch": run.epoch, "minutes": run.minutes()}
                row |= _finite(run.meter.over_ranks(device).row(), config)
                run.metrics = {"loss": row["loss"], "accuracy": row["accuracy"]}
                if validation is not None:
                    if hasattr(validation, "set_epoch"):
                        validation.set_epoch(0)  # the same draws each time
                    run.metrics = evaluate(run.evaluated(), validation, precision=config.precision, objective=objective)
                    row |= {f"val_{name}": run.metrics[name] for name in ("loss", "accuracy", "images")}
                    for one in logs:
                        one(run.step, {f"validation/{name}": value for name, value in run.metrics.items()})
                run.history.append(row)
                run.end_epoch()
                display.show(run.progress, row, keep=True)
        except KeyboardInterrupt:
            display.say(run.stopped())
            raise
        if board:
            board.writer.close()
        over_ranks(torch.zeros(1), device)  # no rank returns before the checkpoint is there
    return TrainResult(
        model=run.evaluated().eval(),
        metrics=run.metrics,
        history=run.history,
        losses=run.all_losses().tolist(),
        checkpoint=folder and folder / CHECKPOINT,
    )


def _finite(row: dict[str, float], config: TrainConfig) -> dict[str, float]:
    if not math.isfinite(row["loss"]):
        raise FloatingPointError(f"the loss is {row['loss']}; try an lr below {config.lr}, or precision 'float32'")
    return row
