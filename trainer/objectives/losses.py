"""Objectives: the losses that training minimises, as sums over the images of a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from patchnpack.models.navit import NaViT, classification_loss
from patchnpack.packer.batch.mixing import mix
from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.trainer.loader_check import check_loader

# B packs, K maximum images per pack, C classes


class Outcome(NamedTuple):
    """The loss summed over the counted images (in scope "sample" samples), their number, and the hits; all 0-d."""

    total: torch.Tensor
    images: torch.Tensor
    hits: torch.Tensor


class Objective(nn.Module):
    """The loss that training minimises. Its own parameters are trained and saved with the model's.

    The loss of a step is the sum of `Outcome.total` over ranks and micro-batches, divided by the sum of `count`. A
    batch without an image must give 0 and a gradient for every parameter, so that its rank takes its step with the
    others.
    """

    @abstractmethod
    def prepare(
        self, model: NaViT, batch: PackedBatch, rng: np.random.Generator | None = None
    ) -> tuple[PackedBatch, ...]:
        """Check the batch on the host, and return the arguments of `forward`.

        Without `rng` nothing is random.

        Raises:
            ValueError: model, objective and batch do not match.
        """

    @abstractmethod
    def count(self, batch: PackedBatch) -> int:
        """Count, on the host, the images that the loss sums over; `batch` is `model.units` of that of `prepare`."""

    @abstractmethod
    def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
        """Compute the outcome for the batches of `prepare`, on the model's device."""

    def check_loader(self, model: NaViT, loader: Any) -> None:
        """Raise ValueError if model, objective and loader do not match, as far as the loader's index knows."""
        check_loader(model, loader, labels=False)

    def for_evaluation(self) -> Objective:
        """The objective that evaluation measures."""
        return self

    def settings(self) -> dict[str, Any]:
        """The settings of the loss besides its weights; a resumed run must have the same."""
        return {}


class Classification(Objective):
    """Softmax or sigmoid cross entropy for class, soft or multiple labels, with MixUp and CutMix.

    Args:
        loss: "softmax", "sigmoid" summed over classes (Beyer et al., arXiv 2006.07159), or "auto": softmax for int64
            labels, sigmoid for float32 ones. Softmax takes float targets that sum to 1.
        label_smoothing: share of the target spread evenly over the classes; unused for float targets with a sigmoid.
        mixup, cutmix: as in `mix`.
        class_weights: factor of each class in the loss, but not of evaluation; None is 1 each. With a softmax, an image
            counts as its target weighs the classes, as in `F.cross_entropy(weight=)`, but divided by the images.

    >>> Classification(loss="hinge")
    Traceback (most recent call last):
    ValueError: loss is 'hinge'; choose 'auto', 'softmax' or 'sigmoid'
    """

    weights: torch.Tensor | None

    def __init__(
        self,
        *,
        loss: str = "auto",
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if loss not in ("auto", "softmax", "sigmoid"):
            raise ValueError(f"loss is {loss!r}; choose 'auto', 'softmax' or 'sigmoid'")
        self.loss, self.label_smoothing, self.mixup, self.cutmix = loss, label_smoothing, mixup, cutmix
        self.mixing = bool(mixup or cutmix)
        self.class_weights = None if class_weights is None else tuple(map(float, class_weights))
        weights = None if self.class_weights is None else torch.tensor(self.class_weights)
        if weights is not None and not (weights.isfinite().all() and (weights >= 0).all() and weights.any()):
            raise ValueError(f"class_weights is {self.class_weights}; give finite weights of at least 0, not all 0")
        self.register_buffer("weights", weights, persistent=False)

    def prepare(
        self, model: NaViT, batch: PackedBatch, rng: np.random.Generator | None = None
    ) -> tuple[PackedBatch, ...]:
        """Check labels; with `rng`, mix images."""
        model.check(batch, labels=True)
        soft, mixing = batch.labels.is_floating_point(), self.mixing
        if mixing and model.config.scope == "sample":
            raise ValueError(
                "mixup and cutmix mix single images, but the model has scope 'sample'; set both to 0, or scope='image'"
            )
        if soft and mixing and self.loss == "auto":
            raise ValueError("mixup and cutmix with float labels need an explicit loss; choose 'softmax' or 'sigmoid'")
        if soft and self.loss == "softmax":
            sums = batch.labels[_labelled(batch)].sum(-1)
            wrong = sums[(sums - 1).abs() > 1e-3]
            if len(wrong):
                raise ValueError(
                    f"the float targets of an image sum to {float(wrong[0]):.4g}, but softmax needs a sum of 1: "
                    "choose loss='sigmoid'"
                )
        if not mixing or rng is None:
            return (batch,)
        return (mix(batch, rng, num_classes=model.config.num_classes, mixup=self.mixup, cutmix=self.cutmix),)

    def check_loader(self, model: NaViT, loader: Any) -> None:
        """Check channels, grids and labels; see `check_loader`."""
        check_loader(model, loader, labels=True)
        if self.class_weights and len(self.class_weights) != (classes := model.config.num_classes):
            raise ValueError(
                f"class_weights has {len(self.class_weights)} weights for {classes} classes; give one each"
            )

    def count(self, batch: PackedBatch) -> int:
        """Number of images with a label."""
        return int(_labelled(batch).sum())

    def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
        """Compute the loss of one batch."""
        (batch,) = batches
        return self.outcome(model(batch), model.units(batch))

    def outcome(self, logits: torch.Tensor, batch: PackedBatch) -> Outcome:
        """Compare logits (B, K, C) with the labels. In a hit, the highest logit has the highest target."""
        best, labels = logits.detach().argmax(-1), batch.labels
        soft = labels.is_floating_point()
        kind = self.loss if self.loss != "auto" else "sigmoid" if soft and not self.mixing else "softmax"
        hits = labels.gather(-1, best[..., None])[..., 0] == labels.amax(-1) if soft else labels == best
        hits = (hits & batch.image_mask).sum()
        if self.weights is None and soft == (kind == "sigmoid") and not (soft and self.mixing):
            return Outcome(*classification_loss(logits, batch, self.label_smoothing), hits)
        labelled, logits, classes = _labelled(batch), logits.float(), logits.shape[-1]
        targets = labels.nan_to_num() if soft else F.one_hot(labels.clamp(min=0), classes).float()
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / classes
        each = (
            -targets * logits.log_softmax(-1)
            if kind == "softmax"
            else F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        )
        each = (each if self.weights is None else each * self.weights).sum(-1)
        return Outcome((each * labelled).sum(), labelled.sum(), hits)

    def for_evaluation(self) -> Objective:
        """The plain loss, without smoothing and mixing."""
        return Classification(loss=self.loss)

    def settings(self) -> dict[str, Any]:
        """The arguments."""
        names = ("loss", "label_smoothing", "mixup", "cutmix", "class_weights")
        return {name: getattr(self, name) for name in names}


def _labelled(batch: PackedBatch) -> torch.Tensor:
    """Mask of the images that have a label, bool (B, K)."""
    labels = batch.labels
    return batch.image_mask & (~labels.isnan().any(-1) if labels.is_floating_point() else labels >= 0)
