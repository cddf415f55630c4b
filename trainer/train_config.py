"""How a model is trained: plain values, checked when they are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a model is trained. Give exactly one of `epochs`, `steps` and `minutes`.

    Attributes:
        epochs, steps, minutes: the budget; the learning rate falls to its end. Minutes are of wall time, over all parts
            of a run that was taken up again; the schedule follows the clock, so two runs differ, and the last
            evaluation comes on top.
        accumulate: batches of a step and rank. Its loss is the mean over the images of all of them, on all ranks. The
            last step of an epoch may have fewer.
        lr: peak learning rate of AdamW; the default suits steps of some tens of images.
        schedule: after the warm-up "cosine" falls along half a cosine to 0; "rsqrt" falls with the square root of the
            time (arXiv 2106.04560, section 3.5), then over the `cooldown` in a line to 0.
        warmup: share of the budget in which the learning rate grows linearly.
        cooldown: share of the budget at its end, of "rsqrt".
        layer_decay: the learning rate of each block over that of the next one (arXiv 2106.08254, section 3.2).
        weight_decay: on matrices; norms, biases, position tables and the pooling query have none.
        betas: of AdamW.
        clip: largest norm of the gradient over all parameters.
        ema: weight of the old value in a moving average of the weights, which is what is evaluated and given back;
            0 is none. At step n it is at most (1 + n) / (10 + n).
        loss: "softmax", "sigmoid" (each class by itself), or "auto": softmax for classes, sigmoid for float targets.
        label_smoothing: share of the target spread evenly over the classes; not of the float targets of a sigmoid loss.
        mixup, cutmix: alpha of the Beta distribution that shares are drawn from (see `mix`); 0 is off.
        temperature, task_weight: of distillation (see `Distillation`); read where there is a teacher.
        eval_every: epochs between evaluations; there is always one at the end.
        save_every, save_minutes: steps, and minutes, between checkpoints beside those at the end of each epoch.
        keep: newest checkpoints that are kept.
        log_steps: steps between the scalars that `log` and TensorBoard get.
        log_every: seconds between lines where the output is not a terminal.
        tensorboard: whether scalars are written to `out` for TensorBoard (extra `tensorboard`).
        seed: of the initial weights and, with the step and the rank, of every draw.
        device: "auto" is CUDA where there is one, else the CPU.
        precision: "float32", "bfloat16" (autocast), or "auto": bfloat16 where the hardware multiplies it.

    >>> TrainConfig(epochs=10, minutes=5)
    Traceback (most recent call last):
    ValueError: the budget is {'epochs': 10, 'minutes': 5}; give exactly one of epochs, steps and minutes
    """

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
    accumulate: int = 1
    lr: float = 2e-4
    schedule: str = "cosine"
    warmup: float = 0.1
    cooldown: float = 0.2
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    ema: float = 0.0
    loss: str = "auto"
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    temperature: float = 1.0
    task_weight: float = 0.0
    eval_every: int = 1
    save_every: int | None = None
    save_minutes: float | None = None
    keep: int = 1
    log_steps: int = 10
    log_every: float = 20.0
    tensorboard: bool = False
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    # What a run that is taken up again may have otherwise than it began: it changes no loss.
    FREE: ClassVar[frozenset[str]] = frozenset(
        {"eval_every", "save_every", "save_minutes", "keep", "log_steps", "log_every", "tensorboard", "device"}
    )

    def __post_init__(self) -> None:
        budgets = {"epochs": self.epochs, "steps": self.steps, "minutes": self.minutes}
        given = {name: value for name, value in budgets.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"the budget is {given or 'not given'}; give exactly one of epochs, steps and minutes")
        above_0 = ("lr", "layer_decay", "clip", "temperature", "eval_every", "save_every", "save_minutes", "log_steps")
        for name in (*given, *above_0, "accumulate", "keep"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        for name in ("warmup", "label_smoothing", "ema", "cooldown"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, at least 0 and less than 1")
        for name in ("weight_decay", "mixup", "cutmix", "task_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.layer_decay > 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it must be at most 1, which is none")
        choices = {
            "precision": ("auto", "float32", "bfloat16"),
            "schedule": ("cosine", "rsqrt"),
            "loss": ("auto", "softmax", "sigmoid"),
        }
        for name, values in choices.items():
            if getattr(self, name) not in values:
                *others, last = map(repr, values)
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose {', '.join(others)} or {last}")
        if self.schedule == "rsqrt" and (self.warmup == 0 or self.warmup + self.cooldown > 1):
            raise ValueError(
                f"schedule 'rsqrt' has warmup {self.warmup} and cooldown {self.cooldown}; it needs a warmup above "
                "0, and both together at most 1"
            )
