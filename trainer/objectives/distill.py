"""Knowledge distillation from a teacher that sees the same pixels at its own patch size."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xxhash

from patchnpack.models.navit import NaViT
from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.packer.batch.repatchify import repatchify
from patchnpack.trainer.loader_check import check_loader
from patchnpack.trainer.objectives.losses import Classification, Outcome

# N images of a batch


class Distillation(Classification):
    """t^2 KL(teacher || student) at temperature t, plus a weighted task loss.

    Both are summed over images; the distributions are softmaxes at temperature t.

    The factor t^2 keeps the scale of gradients independent of t (Hinton et al., arXiv 1503.02531, section 2). The
    teacher sees the same crops at its own patch size, as when FlexiViT learns from a ViT (arXiv 2212.08013, section
    3.5): the pixels of each batch are cut into patches again, so that one loader serves both. A student of several
    patch sizes should start from the teacher's weights. A hit is an image for which both predict the same class.

    Args:
        teacher: the teacher, put in evaluation mode; neither trained nor saved.
        temperature: t.
        task_weight: weight of the classification loss over the labelled images; with 0, no labels are needed.
        task: keyword arguments of `Classification`.
    """

    def __init__(self, teacher: NaViT, *, temperature: float = 1.0, task_weight: float = 0.0, **task: Any) -> None:
        super().__init__(**task)
        if temperature <= 0 or task_weight < 0:
            raise ValueError(
                f"temperature is {temperature} and task_weight is {task_weight}; temperature must be above 0, and "
                "task_weight at least 0"
            )
        self._teacher = (teacher.eval().requires_grad_(False),)  # in a tuple, so that it is not a submodule
        self.temperature, self.task_weight = temperature, task_weight

    def prepare(
        self, model: NaViT, batch: PackedBatch, rng: np.random.Generator | None = None
    ) -> tuple[PackedBatch, ...]:
        """The batch, mixed with `rng`, and the same pixels at the teacher's patch size."""
        (teacher,) = self._teacher
        classes, teacher_classes = model.config.num_classes, teacher.config.num_classes
        if classes != teacher_classes or classes == 0:
            raise ValueError(
                f"the student has {classes} classes, the teacher {teacher_classes}; they must be equal, and above 0"
            )
        if model.config.scope != teacher.config.scope:
            raise ValueError(f"the student has scope {model.config.scope!r}, the teacher {teacher.config.scope!r}")
        if self.task_weight or self.mixup or self.cutmix:
            (batch,) = super().prepare(model, batch, rng)
        model.check(batch)
        patch_size = teacher.config.patch_size
        seen = batch if batch.patch_size == patch_size else repatchify(batch, patch_size)
        teacher.check(seen)
        return batch, seen

    def check_loader(self, model: NaViT, loader: Any) -> None:
        """Check what the student and the teacher need; labels only if the loss or mixing reads them."""
        (teacher,) = self._teacher
        check_loader(model, loader, labels=bool(self.task_weight or self.mixing))
        check_loader(teacher, loader, labels=False, patch_size=teacher.config.patch_size)

    def count(self, batch: PackedBatch) -> int:
        """Number of images."""
        return batch.num_images

    def settings(self) -> dict[str, Any]:
        """The arguments, with the teacher as a digest of its configuration and weights."""
        own = super().settings()
        return own | {"temperature": self.temperature, "task_weight": self.task_weight, "teacher": self._digest}

    @functools.cached_property
    def _digest(self) -> str:
        (teacher,) = self._teacher
        digest = xxhash.xxh3_64(repr(teacher.config).encode())
        for weight in teacher.state_dict().values():
            digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
        """Compute the outcome for (batch, the teacher's batch)."""
        (teacher,), (batch, seen), t = self._teacher, batches, self.temperature
        units = model.units(batch)
        with torch.no_grad():
            taught = teacher(seen).flatten(0, 1)[teacher.units(seen).column_index].float()  # (N, classes)
        logits = model(batch)
        learnt = logits.flatten(0, 1)[units.column_index].float()
        log_p, log_q = (taught / t).log_softmax(-1), (learnt / t).log_softmax(-1)
        total = t**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True) + 0 * logits.sum()
        if self.task_weight:
            total = total + self.task_weight * self.outcome(logits, units).total
        hits = (taught.argmax(-1) == learnt.argmax(-1)).sum()
        return Outcome(total, torch.full_like(hits, units.num_images), hits)
