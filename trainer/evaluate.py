"""`evaluate`: loss and accuracy over packed batches, with mixed precision and sums over ranks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

from patchnpack.models.navit import NaViT
from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.trainer.objectives.losses import Classification, Objective, Outcome
from patchnpack.trainer.ranks import over_ranks, rank_and_size

_log = logging.getLogger(__name__)


class Batches(Protocol):
    """The loader protocol of training and evaluation: each `iter` is one epoch of batches."""

    def __iter__(self) -> Iterator[PackedBatch]: ...

    def __len__(self) -> int: ...


def autocast_dtype(device: torch.device, precision: str = "auto") -> torch.dtype | None:
    """The dtype of autocast on `device`, or None for plain float32.

    "auto" is bfloat16 where the hardware supports it: CUDA from compute capability 8.0 on, CPUs with AVX-512 BF16 or
    AMX. On such a CPU a training step was measured to be 2.5 to 3 times as fast as in float32.
    """
    if precision == "auto":
        native = False
        if device.type == "cuda":
            native = torch.cuda.get_device_capability(device) >= (8, 0)
        elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
            features: Mapping[str, Any] = torch.cpu.get_capabilities()
            native = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
        precision = "bfloat16" if native else "float32"
    return torch.bfloat16 if precision == "bfloat16" else None


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """The autocast context of `precision` on `device`; disabled for float32."""
    dtype = autocast_dtype(device, precision)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is not None)


@dataclass(kw_only=True, slots=True)
class Meter:
    """Running sums over batches. Loss and hits stay on the device until read, so that no step synchronises."""

    loss: Any = 0.0
    hits: Any = 0
    labelled: Any = 0
    images: int = 0
    samples: int = 0
    tokens: int = 0
    slots: int = 0
    start: float = field(default_factory=time.perf_counter)

    SUMS: ClassVar = ("loss", "hits", "labelled", "images", "samples", "tokens", "slots")

    def add(self, batch: PackedBatch, outcome: Outcome, good: torch.Tensor | None = None) -> None:
        """Add one batch; loss and hits count only if `good`, 0-d bool, is True or None."""
        if good is not None:
            outcome = Outcome(*(torch.where(good, each, torch.zeros_like(each)) for each in outcome))
        self.loss += outcome.total.detach()
        self.hits += outcome.hits
        self.labelled += outcome.images
        self.images += batch.num_images
        self.samples += batch.num_samples
        self.tokens += batch.num_tokens
        self.slots += batch.segment_ids.numel()

    def over_ranks(self, device: torch.device) -> Meter:
        """Sum over all ranks. Every rank must call it."""
        local = torch.tensor([float(getattr(self, name)) for name in self.SUMS], dtype=torch.float64)
        sums: dict[str, Any] = dict(zip(self.SUMS, over_ranks(local, device).tolist(), strict=True))
        return Meter(start=self.start, **sums)

    def state(self) -> dict[str, float]:
        """The state for a checkpoint: the sums and the elapsed seconds."""
        return {name: float(getattr(self, name)) for name in self.SUMS} | {"seconds": time.perf_counter() - self.start}

    @classmethod
    def of_state(cls, state: dict[str, float]) -> Meter:
        """Restore a meter from the dict of `state`."""
        sums: dict[str, Any] = {name: state.get(name, 0.0) for name in cls.SUMS}
        return cls(start=time.perf_counter() - state["seconds"], **sums)

    def row(self) -> dict[str, float]:
        """The means so far: loss, accuracy, images_per_second, samples_per_second, tokens_per_second, padding."""
        seconds, labelled = time.perf_counter() - self.start, max(int(self.labelled), 1)
        return {
            "loss": float(self.loss) / labelled,
            "accuracy": int(self.hits) / labelled,
            "images_per_second": self.images / seconds,
            "samples_per_second": self.samples / seconds,
            "tokens_per_second": self.tokens / seconds,
            "padding": 1 - self.tokens / max(self.slots, 1),
        }


def evaluate(
    model: NaViT, loader: Batches, *, precision: str = "auto", objective: Objective | None = None
) -> dict[str, float]:
    """Compute loss and accuracy over one pass of `loader`, counting each image, or in scope "sample" sample, once.

    With several ranks, each passes the loader of its own share and gets the metrics over all ranks.

    Args:
        model: the model, evaluated on the device of its weights; its training mode is restored.
        loader: a loader that yields each image once, without `repeat` and token drop. Batches may hold unequal numbers
            of images.
        precision: as in `TrainConfig`.
        objective: the objective to measure, on the same device; None means `Classification()`.

    Returns:
        loss, accuracy, images (number of labelled images; others do not count), unlabelled, seconds. A model of scope
        "sample" has samples in place of images. The loss is NaN or infinite if that of a batch is, which is logged as a
        warning. With float targets, a hit is where the class with the highest logit has the highest target.

    Raises:
        ValueError: the loader has no length or no labelled image, or a batch does not fit the model.
    """
    try:
        len(loader)
    except TypeError as error:
        raise ValueError("evaluation needs a loader with a length, which ends; use repeat=False") from error
    objective = Classification() if objective is None else objective.for_evaluation()
    objective.check_loader(model, loader)
    device, was_training, meter = next(model.parameters()).device, model.training, Meter()
    batches = torch.zeros(2, device=device)  # those whose loss is not finite, and all
    model.eval()
    for batch in loader:
        moved = [part.to(device, non_blocking=True) for part in objective.prepare(model, batch)]
        with torch.no_grad(), autocast(device, precision):
            outcome = objective(model, *moved)
        meter.add(batch, outcome)
        batches += torch.stack([~outcome.total.isfinite(), torch.ones_like(outcome.total)])
    model.train(was_training)
    meter = meter.over_ranks(device)
    bad, every = map(int, over_ranks(batches, device).tolist())
    if bad and rank_and_size()[0] == 0:
        remedy = "try precision 'float32', or another checkpoint"
        _log.warning("the loss of %d of %d evaluated batches is not finite; %s", bad, every, remedy)
    units, labelled, means = f"{model.config.scope}s", int(meter.labelled), meter.row()
    every = int(getattr(meter, units))
    if labelled == 0:
        raise ValueError(
            f"none of the {every} {units} of the evaluation data has a label; check `label` and the shards"
        )
    return {
        "loss": means["loss"],
        "accuracy": means["accuracy"],
        units: labelled,
        "unlabelled": every - labelled,
        "seconds": time.perf_counter() - meter.start,
    }
