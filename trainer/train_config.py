"""`TrainConfig`: the configuration of training, validated on construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Configuration of training. Give exactly one of `epochs`, `steps` and `minutes`.

    Attributes:
        epochs, steps, minutes: the budget, over which the learning rate falls. Minutes are wall time over all sessions
            of a resumed run; the schedule follows the clock, so two runs differ, and the last evaluation is not
            included.
        accumulate: batches per step and rank. The loss is the mean over the images of all of them, on all ranks. The
            last step of an epoch may have fewer.
        lr: peak learning rate of AdamW; the default suits steps of some tens of images.
        schedule: learning rate after the warm-up: "cosine" falls along half a cosine to 0; "rsqrt" falls with the
            inverse square root of time (arXiv 2106.04560, section 3.5), then linearly to 0 over the `cooldown`.
        warmup: share of the budget in which the learning rate grows linearly.
        cooldown: share of the budget at the end of "rsqrt" in which the learning rate falls to 0.
        layer_decay: learning rate of each block over that of the next block (arXiv 2106.08254, section 3.2).
        freeze: number of first blocks that do not train, nor do the embeddings before them; or "backbone", with which
            only the head trains. Frozen blocks skip no branch (`drop_path`).
        weight_decay: weight decay of matrices; norms, biases, position tables and the pooling query have none.
        betas: betas of AdamW.
        clip: maximum norm of the gradient over all parameters.
        skip_bad_steps: maximum number of consecutive steps to skip because the loss or the gradient is NaN or infinite;
            one more ends the run. A skipped step counts as a step but changes no weight.
        ema: decay of the moving average of the weights, which is evaluated and returned; 0 disables it. At step n the
            decay is at most (1 + n) / (10 + n).
        loss: "softmax", "sigmoid" (independent classes), or "auto": softmax for classes, sigmoid for float targets.
        label_smoothing: share of the target spread evenly over the classes; unused for float targets with a sigmoid.
        mixup, cutmix: alpha of the Beta distribution of mixing shares (see `mix`); 0 is off.
        temperature, task_weight: arguments of `Distillation`; used only with a teacher.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        save_every, save_minutes: steps, and minutes, between checkpoints, besides those at the end of each epoch.
        keep: number of newest checkpoints to keep.
        log_steps: steps between the scalars for `log`.
        log_every: seconds between lines when the output is not a terminal.
        seed: seed of the initial weights and, with step and rank, of every draw.
        device: "auto" is CUDA if available, else the CPU.
        precision: "float32", "bfloat16" (autocast), or "auto": bfloat16 where the hardware supports it.
        activation_checkpointing: whether the backward pass recomputes each block instead of keeping its activations.
        compile: whether `torch.compile` compiles the blocks, once for all lengths.
        sharding: with several ranks, "ddp" keeps the model on each; "fsdp" (FSDP2) shares it and its checkpoints out.

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
    freeze: int | str = 0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    skip_bad_steps: int = 0
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
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    activation_checkpointing: bool = False
    compile: bool = False
    sharding: str = "ddp"

    # Settings that may change when a run is resumed, since they change no finite loss.
    FREE: ClassVar[frozenset[str]] = frozenset(
        {"eval_every", "save_every", "save_minutes", "keep", "log_steps", "log_every", "device", "skip_bad_steps"}
        | {"activation_checkpointing", "compile", "sharding"}
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
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a share, at least 0 and below 1")
        for name in ("weight_decay", "mixup", "cutmix", "task_weight", "skip_bad_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.freeze != "backbone" and not (isinstance(self.freeze, int) and self.freeze >= 0):
            raise ValueError(f"freeze is {self.freeze!r}; give a number of blocks, at least 0, or 'backbone'")
        if self.layer_decay > 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it must be at most 1, which disables it")
        choices = {
            "precision": ("auto", "float32", "bfloat16"),
            "schedule": ("cosine", "rsqrt"),
            "loss": ("auto", "softmax", "sigmoid"),
            "sharding": ("ddp", "fsdp"),
        }
        for name, values in choices.items():
            if getattr(self, name) not in values:
                *others, last = map(repr, values)
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose {', '.join(others)} or {last}")
        if self.schedule == "rsqrt" and (self.warmup == 0 or self.warmup + self.cooldown > 1):
            raise ValueError(
                f"schedule 'rsqrt' has warmup {self.warmup} and cooldown {self.cooldown}; it needs a warmup above "
                "0, and a sum of both of at most 1"
            )
