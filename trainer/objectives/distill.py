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
from patchnpack.trainer.loader_check import check_loader
from patchnpack.trainer.objectives.losses import Classification, Outcome

# N images of a batch, T tokens of all of them, P patch size, C channels


def repatchify(batch: PackedBatch, patch_size: int) -> PackedBatch:
    """Cut the images of a batch into patches of another size: one pack of all N images, in order, and their samples.

    A side that is not a multiple of the new size is padded with 0, as with `Native(edge="pad")`. Labels are not copied.

    Args:
        batch: a batch on the CPU without dropped tokens.
        patch_size: patch size of the result, in pixels.

    Raises:
        ValueError: a token was dropped, so pixels are missing.
    """
    P, new_P, N = batch.patch_size, patch_size, batch.num_images
    lengths = torch.tensor(batch.lengths, dtype=torch.int64)
    grids = batch.grids[batch.image_mask].long()  # (N, 2)
    if len(wrong := (grids.prod(-1) != lengths).nonzero()):
        i = int(wrong[0])
        raise ValueError(
            f"an image has {int(lengths[i])} of its {int(grids[i].prod())} tokens, but a teacher of patch size {new_P} "
            f"needs all pixels; drop no tokens (fill='trim' also does), or use patch size {new_P}"
        )
    new_grids = -(-grids * P // new_P)
    new_lengths = new_grids.prod(-1)
    total, channels = int(new_lengths.sum()), batch.patches.shape[-1] // P**2
    image_T, image_t = (torch.repeat_interleave(torch.arange(N), each) for each in (lengths, new_lengths))
    first = new_lengths.cumsum(0) - new_lengths
    x, y = (batch.coords.flatten(0, 1)[batch.token_index].long().T[..., None, None] * P).unbind()
    x, y = x + torch.arange(P), y + torch.arange(P)[:, None]  # (T, 1, P) and (T, P, 1): a pixel's place in its image
    token = first[image_T][:, None, None] + y // new_P * new_grids[image_T, 0][:, None, None] + x // new_P
    place = (token * new_P + y % new_P) * new_P + x % new_P
    pixels = torch.zeros(total * new_P**2, channels, dtype=batch.patches.dtype)
    pixels[place.flatten()] = batch.patches.flatten(0, 1)[batch.token_index].view(-1, channels)
    index_t, across = torch.arange(total) - first[image_t], new_grids[image_t, 0]
    coords = torch.stack([index_t % across, index_t // across], -1)
    return PackedBatch(
        patches=pixels.view(1, total, -1),
        segment_ids=(image_t + 1)[None].int(),
        coords=coords[None].int(),
        grids=new_grids[None].int(),
        image_sizes=batch.image_sizes[batch.image_mask][None],
        image_mask=torch.ones(1, N, dtype=torch.bool),
        labels=torch.full((1, N), -100),
        rows=batch.rows[batch.image_mask][None],
        samples=torch.from_numpy(batch.sample_numbers() + 1).int()[None],
        frames=batch.frames[batch.image_mask][None],
        keys=[[key for keys in batch.keys for key in keys]],
        patch_size=new_P,
    )


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
            taught = teacher(seen)[teacher.units(seen).image_mask].float()  # (N, classes)
        logits = model(batch)
        learnt = logits[units.image_mask].float()
        log_p, log_q = (taught / t).log_softmax(-1), (learnt / t).log_softmax(-1)
        total = t**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True) + 0 * logits.sum()
        if self.task_weight:
            total = total + self.task_weight * self.outcome(logits, units).total
        hits = (taught.argmax(-1) == learnt.argmax(-1)).sum()
        return Outcome(total, torch.as_tensor(units.num_images, device=total.device), hits)
