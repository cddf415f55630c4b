"""Objectives: what a training step minimises, as a sum over the images of a batch and their number."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from patchnpack.models.navit import NaViT, classification_loss
from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.trainer.mixing import mix

# B packs, K images in a pack at most, C classes


class Outcome(NamedTuple):
    """0-d tensors: the loss summed over the images that count, how many those are, and how many were told right."""

    total: torch.Tensor
    images: torch.Tensor
    hits: torch.Tensor


class Objective(nn.Module):
    """What a training step minimises. Parameters of its own are trained and saved along with the model's.

    The sum of `Outcome.total` over ranks and micro-batches, divided by that of `count`, is the loss of a step. A batch
    without an image must give 0 and reach every parameter, so that its rank takes its step with the others.
    """

    @abstractmethod
    def prepare(
        self, model: NaViT, batch: PackedBatch, rng: np.random.Generator | None = None
    ) -> tuple[PackedBatch, ...]:
        """On the host: checks the batch, and gives what `forward` takes. Without `rng` nothing is drawn.

        Raises:
            ValueError: model, objective and batch do not fit together.
        """

    @abstractmethod
    def count(self, batch: PackedBatch) -> int:
        """On the host: images of the batch that the loss is a sum over."""

    @abstractmethod
    def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
        """The outcome for what `prepare` gave, on the model's device."""

    def for_evaluation(self) -> Objective:
        """What evaluation measures."""
        return self

    def settings(self) -> dict[str, float | str]:
        """What its loss depends on beside its weights; a run is resumed with the same only."""
        return {}


class Classification(Objective):
    """Softmax or sigmoid cross entropy, of classes, soft labels or several labels; with MixUp and CutMix.

    Args:
        loss: "softmax", "sigmoid" summed over classes (Beyer et al., arXiv 2006.07159), or "auto": softmax for int64
            labels, sigmoid for float32 ones. Softmax takes float targets that sum to 1.
        label_smoothing: share of the target spread evenly over the classes; not of float targets of a sigmoid.
        mixup, cutmix: as in `mix`.

    >>> Classification(loss="hinge")
    Traceback (most recent call last):
    ValueError: loss is 'hinge'; choose 'auto', 'softmax' or 'sigmoid'
    """

    def __init__(
        self, *, loss: str = "auto", label_smoothing: float = 0.0, mixup: float = 0.0, cutmix: float = 0.0
    ) -> None:
        super().__init__()
        if loss not in ("auto", "softmax", "sigmoid"):
            raise ValueError(f"loss is {loss!r}; choose 'auto', 'softmax' or 'sigmoid'")
        self.loss, self.label_smoothing, self.mixup, self.cutmix = loss, label_smoothing, mixup, cutmix
        self.mixing = bool(mixup or cutmix)

    def prepare(
        self, model: NaViT, batch: PackedBatch, rng: np.random.Generator | None = None
    ) -> tuple[PackedBatch, ...]:
        """Checks labels; with `rng`, mixes images."""
        model.check(batch, labels=True)
        soft, mixing = batch.labels.is_floating_point(), self.mixing
        if soft and mixing and self.loss == "auto":
            raise ValueError("mixup and cutmix of float labels need a loss; choose 'softmax' or 'sigmoid'")
        if soft and self.loss == "softmax":
            sums = batch.labels[_labelled(batch)].sum(-1)
            wrong = sums[(sums - 1).abs() > 1e-3]
            if len(wrong):
                raise ValueError(
                    f"the float targets of an image sum to {float(wrong[0]):.4g}; those of a softmax must sum to 1: "
                    "choose loss 'sigmoid'"
                )
        if not mixing or rng is None:
            return (batch,)
        return (mix(batch, rng, num_classes=model.config.num_classes, mixup=self.mixup, cutmix=self.cutmix),)

    def count(self, batch: PackedBatch) -> int:
        """Images with a label."""
        return int(_labelled(batch).sum())

    def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
        """The loss of one batch."""
        (batch,) = batches
        return self.outcome(model(batch), batch)

    def outcome(self, logits: torch.Tensor, batch: PackedBatch) -> Outcome:
        """Logits (B, K, C) against the batch's labels. A hit: no target is higher than that of the highest logit."""
        best, labels = logits.detach().argmax(-1), batch.labels
        soft = labels.is_floating_point()
        kind = self.loss if self.loss != "auto" else "sigmoid" if soft and not self.mixing else "softmax"
        hits = labels.gather(-1, best[..., None])[..., 0] == labels.amax(-1) if soft else labels == best
        hits = (hits & batch.image_mask).sum()
        if soft == (kind == "sigmoid") and not (soft and self.mixing):
            return Outcome(*classification_loss(logits, batch, self.label_smoothing), hits)
        labelled, logits, classes = _labelled(batch), logits.float(), logits.shape[-1]
        targets = labels.nan_to_num() if soft else F.one_hot(labels.clamp(min=0), classes).float()
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / classes
        each = (
            -(targets * logits.log_softmax(-1)).sum(-1)
            if kind == "softmax"
            else F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)
        )
        return Outcome((each * labelled).sum(), labelled.sum(), hits)

    def for_evaluation(self) -> Objective:
        """The plain loss: no smoothing, nothing mixed."""
        return Classification(loss=self.loss)

    def settings(self) -> dict[str, float | str]:
        """Its arguments."""
        names = ("loss", "label_smoothing", "mixup", "cutmix")
        return {name: getattr(self, name) for name in names}


def _labelled(batch: PackedBatch) -> torch.Tensor:
    """bool (B, K), the images that have a label."""
    labels = batch.labels
    return batch.image_mask & (~labels.isnan().any(-1) if labels.is_floating_point() else labels >= 0)
