"""Measuring a `NaViT` on packed batches: precision, running sums, and evaluation that counts every image once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

from patchnpack.models.navit import NaViT
from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.trainer.losses import Classification, Objective, Outcome
from patchnpack.trainer.ranks import over_ranks


class Batches(Protocol):
    """What training and evaluation need of a loader: each `iter` is one epoch of batches."""

    def __iter__(self) -> Iterator[PackedBatch]: ...

    def __len__(self) -> int: ...


def autocast_dtype(device: torch.device, precision: str = "auto") -> torch.dtype | None:
    """The dtype of autocast on `device`, or None for plain float32.

    "auto" is bfloat16 where the hardware multiplies it: CUDA from compute capability 8.0 on, CPUs with AVX-512 BF16 or
    AMX. On such a CPU a training step was measured 2.5 to 3 times as fast as in float32.
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
    """The autocast context that `precision` stands for on `device`; it does nothing for float32."""
    dtype = autocast_dtype(device, precision)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is not None)


@dataclass(kw_only=True, slots=True)
class Meter:
    """Sums over batches. Losses and hits stay on the device until they are read, so that no step waits for one."""

    loss: Any = 0.0
    hits: Any = 0
    labelled: Any = 0
    images: int = 0
    tokens: int = 0
    slots: int = 0
    start: float = field(default_factory=time.perf_counter)

    SUMS: ClassVar = ("loss", "hits", "labelled", "images", "tokens", "slots")

    def add(self, batch: PackedBatch, outcome: Outcome) -> None:
        """Counts one batch."""
        self.loss += outcome.total.detach()
        self.hits += outcome.hits
        self.labelled += outcome.images
        self.images += batch.num_images
        self.tokens += batch.num_tokens
        self.slots += batch.segment_ids.numel()

    def over_ranks(self, device: torch.device) -> Meter:
        """The sums of all ranks; every rank calls it."""
        ours = torch.tensor([float(getattr(self, name)) for name in self.SUMS], dtype=torch.float64)
        sums: dict[str, Any] = dict(zip(self.SUMS, over_ranks(ours, device).tolist(), strict=True))
        return Meter(start=self.start, **sums)

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps of it: the sums, and the seconds that they took."""
        return {name: float(getattr(self, name)) for name in self.SUMS} | {"seconds": time.perf_counter() - self.start}

    @classmethod
    def of_state(cls, state: dict[str, float]) -> Meter:
        """One that goes on where `state` was taken."""
        sums: dict[str, Any] = {name: state[name] for name in cls.SUMS}
        return cls(start=time.perf_counter() - state["seconds"], **sums)

    def row(self) -> dict[str, float]:
        """Means so far: loss, accuracy, images_per_second, tokens_per_second, padding."""
        seconds, labelled = time.perf_counter() - self.start, max(int(self.labelled), 1)
        return {
            "loss": float(self.loss) / labelled,
            "accuracy": int(self.hits) / labelled,
            "images_per_second": self.images / seconds,
            "tokens_per_second": self.tokens / seconds,
            "padding": 1 - self.tokens / max(self.slots, 1),
        }


def evaluate(
    model: NaViT, loader: Batches, *, precision: str = "auto", objective: Objective | None = None
) -> dict[str, float]:
    """Loss and accuracy over one pass of `loader`, each of its images counted once.

    Where several ranks train together, each gives the loader of its own share, and gets the figures of all.

    Args:
        model: evaluated on the device where its weights lie; its mode is left as it was.
        loader: one that gives each image once: no `repeat`, no token drop. Batches may hold unequal numbers of images.
        precision: as in `TrainConfig`.
        objective: what is measured, on the same device; None is `Classification()`.

    Returns:
        loss, accuracy, images (the labelled ones, which alone count), unlabelled, seconds. An image with float targets
        is a hit if the class with the highest logit has the highest target.

    Raises:
        ValueError: a loader without a length or without a labelled image, or a batch that does not fit the model.
    """
    try:
        len(loader)
    except TypeError as error:
        raise ValueError("evaluation needs a loader that ends, so one with a length; use repeat=False") from error
    objective = Classification() if objective is None else objective.for_evaluation()
    device, was_training, meter = next(model.parameters()).device, model.training, Meter()
    model.eval()
    for batch in loader:
        moved = [part.to(device, non_blocking=True) for part in objective.prepare(model, batch)]
        with torch.no_grad(), autocast(device, precision):
            meter.add(batch, objective(model, *moved))
    model.train(was_training)
    meter = meter.over_ranks(device)
    labelled = int(meter.labelled)
    if labelled == 0:
        raise ValueError(
            f"the evaluation data hold {int(meter.images)} images, none labelled; check `label` and the shards"
        )
    means = meter.row()
    return {
        "loss": means["loss"],
        "accuracy": means["accuracy"],
        "images": labelled,
        "unlabelled": int(meter.images) - labelled,
        "seconds": time.perf_counter() - meter.start,
    }
