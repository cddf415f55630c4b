"""`train`: train a `NaViT` on packed batches, in one plain loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from patchnpack.models.config import NaViTConfig
from patchnpack.models.navit import NaViT
from patchnpack.trainer import sharding
from patchnpack.trainer.device import find_device
from patchnpack.trainer.display import Display
from patchnpack.trainer.evaluate import Batches, evaluate
from patchnpack.trainer.objectives.losses import Classification, Objective
from patchnpack.trainer.optim import freeze
from patchnpack.trainer.ranks import over_ranks, rank_and_size
from patchnpack.trainer.run import CHECKPOINT, Run
from patchnpack.trainer.train_config import TrainConfig

Log = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """The result of `train`.

    Attributes:
        model: the trained model, or its moving average, in evaluation mode.
        metrics: metrics of the last evaluation, or without validation of the last epoch's training.
        history: one row per evaluation: step, epoch, minutes, the loss, accuracy, padding, and images, samples and
            tokens _per_second of the epoch's training, skipped_steps of the run so far, and with validation val_loss,
            val_accuracy, and val_images or in scope "sample" val_samples.
        losses: loss of every step, including the steps before the run was resumed; NaN or infinite for skipped ones.
        skipped_steps: number of steps skipped because their loss or gradient was not finite.
        checkpoint: path of the checkpoint; None without `out`.
    """

    model: NaViT
    metrics: dict[str, float]
    history: list[dict[str, float]]
    losses: list[float]
    skipped_steps: int
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
    """Train a `NaViT` on a loader of packed batches.

    In a process group of several ranks, every rank calls this with the loader of its own share, and all train one model
    (DDP, or FSDP2). The loss of a step is the mean over its images, or in scope "sample" samples, on all ranks and in
    `config.accumulate` batches.

    Args:
        model: a model, trained in place, or the configuration of a new one, initialised from `config.seed`. FSDP shards
            the model in place; the result is a whole copy.
        loader: each `iter` is one epoch. If the loader has them, `set_epoch(epoch)` is called before each epoch,
            `total_steps(epochs)` gives the length of the schedule, and `state_dict` and `load_state_dict` its position.
            A loader without `state_dict` is fast-forwarded: the batches of an interrupted epoch are drawn and skipped.
        config: configuration of training.
        objective: the loss to minimise; None is `Classification` with the options of `config`.
        validation: loader that is evaluated every `eval_every` epochs and at the end.
        out: folder, created if absent, for `checkpoint.pt` and `history.jsonl`, written at the end of each epoch.
        resume: None resumes from the checkpoint in `out` if there is one, True requires one, False deletes it. The
            losses of a resumed run equal those of an uninterrupted run, on a CPU bit for bit. A finished run returns
            its result, or with more epochs or steps in `config` trains those that are added, with a schedule of their
            own.
        log: called on rank 0 with the step and its scalars, every `log_steps` steps and after each evaluation. Give it
            on all ranks or on none.
        started: called on rank 0 after all checks, before the first step.

    Raises:
        ValueError: images or labels of a loader do not fit the model, a loader is empty, the model is frozen, or the
            checkpoint belongs to another run. What the index knows is checked before the first step.
        FloatingPointError: the loss or the gradient is NaN or infinite in more than `config.skip_bad_steps` steps in a
            row, or a step left weights that are. Such weights are never saved, so the checkpoint remains usable.
    """
    rank, _ = rank_and_size()
    device, folder = find_device(config.device), None if out is None else Path(out)
    if folder is None and (resume or config.save_every or config.save_minutes):
        raise ValueError("resume, save_every and save_minutes need a folder; give out=")
    if folder is not None and config.sharding == "fsdp":
        sharding.checkpoints()
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        Display(config.log_every, quiet=rank > 0) as display,
    ):
        torch.manual_seed(config.seed)
        model = (NaViT(model) if isinstance(model, NaViTConfig) else model).to(device).train()
        if objective is None:
            mixing = {name: getattr(config, name) for name in ("loss", "label_smoothing", "mixup", "cutmix")}
            objective = Classification(**mixing)
        freeze(model, config.freeze)
        _check_trainable(model, objective)
        objective.check_loader(model, loader)
        if validation is not None:
            objective.for_evaluation().check_loader(model, validation)
        run = Run(model, objective.to(device), config, device, folder)
        batches_left = run.restore(loader, resume)
        if validation is not None and run.progress < 1:
            for batch in itertools.islice(validation, 1):  # reports a mistake now instead of at the end of an epoch
                objective.for_evaluation().prepare(model, batch)
        run.plan(loader, batches_left)
        if started is not None and rank == 0:
            started()
        try:
            _train_epochs(run, loader, validation, display, log)
        except KeyboardInterrupt:
            display.say(run.stopped())
            raise
        over_ranks(torch.zeros(1), device)  # a barrier: no rank returns before the checkpoint is written
    return TrainResult(
        model=sharding.whole_model(run.evaluated()).eval(),
        metrics=run.metrics,
        history=run.history,
        losses=run.all_losses().tolist(),
        skipped_steps=run.bad.skipped,
        checkpoint=folder and folder / CHECKPOINT,
    )


def _check_trainable(model: NaViT, objective: Objective) -> None:
    if not torch.is_grad_enabled():
        raise ValueError("gradients are disabled here; call train outside torch.no_grad() and torch.inference_mode()")
    if not any(parameter.requires_grad for module in (model, objective) for parameter in module.parameters()):
        raise ValueError(
            "no parameter of the model requires a gradient, so training would change nothing; call "
            "model.requires_grad_(True), or for some layers such as model.head.requires_grad_(True). The teacher of a "
            "Distillation is frozen: train a copy of it"
        )


def _train_epochs(run: Run, loader: Batches, validation: Batches | None, display: Display, log: Log | None) -> None:
    """Take the remaining steps, evaluate, and save at the end of each epoch."""
    config = run.config
    while run.progress < 1:
        for _ in run.steps(loader):
            if log is not None and run.step % config.log_steps == 0:
                scalars = run.scalars(loader)  # on every rank, since they are sums over ranks
                if run.rank == 0:
                    log(run.step, scalars)
            if display.due():
                display.show(run.progress, {"epoch": run.epoch, **run.meter.row()})
        run.check_finite()
        if due := run.progress >= 1 or (run.epoch + 1) % config.eval_every == 0:
            run.history.append(_evaluate_epoch(run, validation, log))
        run.end_epoch()
        if due:
            display.show(run.progress, run.history[-1], keep=True)


def _evaluate_epoch(run: Run, validation: Batches | None, log: Log | None) -> dict[str, float]:
    """Compute the history row of an epoch and set `run.metrics`."""
    row = {"step": run.step, "epoch": run.epoch, "minutes": run.minutes()}
    row |= run.meter.over_ranks(run.device).row() | {"skipped_steps": run.bad.skipped}
    run.metrics = {"loss": row["loss"], "accuracy": row["accuracy"]}
    if validation is not None:
        if hasattr(validation, "set_epoch"):
            validation.set_epoch(0)  # the same draws in each evaluation
        run.metrics = evaluate(run.evaluated(), validation, precision=run.config.precision, objective=run.objective)
        row |= {f"val_{name}": value for name, value in run.metrics.items() if name not in ("unlabelled", "seconds")}
        if log is not None and run.rank == 0:
            log(run.step, {f"validation/{name}": value for name, value in run.metrics.items()})
    return row
