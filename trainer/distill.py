"""Knowledge distillation: a student learns from a teacher that sees the same pixels at its own patch size."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
import xxhash

from patchnpack.models.navit import NaViT
from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.trainer.losses import Classification, Outcome

# N images of a batch, T their tokens, P patch size, C channels


def repatchify(batch: PackedBatch, patch_size: int) -> PackedBatch:
    """The same images cut into patches of another size: one pack of all N images, in their order.

    A side that the new size does not divide is padded with 0, as by `Native(edge="pad")`. Labels and keys stay behind.

    Args:
        batch: on the CPU, without dropped tokens.
        patch_size: of the result, in pixels.

    Raises:
        ValueError: a token was dropped, so that pixels are missing.
    """
    P, new_P = batch.patch_size, patch_size
    lengths = torch.tensor(batch.lengths, dtype=torch.int64)
    grids = batch.grids[batch.image_mask].long()  # (N, 2)
    if len(wrong := (grids.prod(-1) != lengths).nonzero()):
        i = int(wrong[0])
        raise ValueError(
            f"an image has {int(lengths[i])} of its {int(grids[i].prod())} tokens, and a teacher of patch size {new_P} "
            f"needs the pixels of all; drop no tokens (fill 'trim' does, too), or take patch size {new_P}"
        )
    new_grids = -(-grids * P // new_P)
    new_lengths = new_grids.prod(-1)
    total, channels = int(new_lengths.sum()), batch.patches.shape[-1] // P**2
    image_T = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    dy, dx = torch.arange(P)[:, None], torch.arange(P)[None]
    x, y = (batch.coords.flatten(0, 1)[batch.token_index].long().T[..., None, None] * P).unbind()
    x, y = x + dx, y + dy  # (T, 1, P) and (T, P, 1): each pixel's place in its image
    first = (new_lengths.cumsum(0) - new_lengths)[image_T][:, None, None]
    token = first + y // new_P * new_grids[image_T, 0][:, None, None] + x // new_P
    place = (token * new_P + y % new_P) * new_P + x % new_P
    pixels = torch.zeros(total * new_P**2, channels, dtype=torch.uint8)
    pixels[place.flatten()] = batch.patches.flatten(0, 1)[batch.token_index].view(-1, channels)
    image_t = torch.repeat_interleave(torch.arange(len(lengths)), new_lengths)
    index_t = torch.arange(total) - (new_lengths.cumsum(0) - new_lengths)[image_t]
    across = new_grids[image_t, 0]
    coords = torch.stack([index_t % across, index_t // across], -1)
    N = len(lengths)
    return PackedBatch(
        patches=pixels.view(1, total, -1),
        segment_ids=(image_t + 1)[None].int(),
        coords=coords[None].int(),
        grids=new_grids[None].int(),
        image_sizes=batch.image_sizes[batch.image_mask][None],
        image_mask=torch.ones(1, N, dtype=torch.bool),
        labels=torch.full((1, N), -100),
        rows=batch.rows[batch.image_mask][None],
        keys=[[key for keys in batch.keys for key in keys]],
        patch_size=new_P,
    )


class Distillation(Classification):
    """t^2 KL(teacher || student) of the softmax at temperature t, summed over images, plus a share of the task's loss.

    The factor t^2 keeps gradients of one size at every temperature (Hinton et al., arXiv 1503.02531, section 2). The
    teacher sees the same crops at its own patch size, as when FlexiViT learns from a ViT (arXiv 2212.08013, section
    3.5): the pixels of each batch are cut anew, so there is one loader, and nothing that could differ. A student of
    several patch sizes should start from the teacher's weights. A hit: both say the same class of an image.

    Args:
        teacher: put in evaluation mode; neither trained nor saved.
        temperature: t.
        task_weight: of the classification loss, on the images that have a label; 0 needs no labels.
        task: keywords of `Classification`: loss, label_smoothing, mixup, cutmix.
    """

    def __init__(
        self, teacher: NaViT, *, temperature: float = 1.0, task_weight: float = 0.0, **task: float | str
    ) -> None:
        super().__init__(**task)  # type: ignore[arg-type]  # checked there
        if temperature <= 0 or task_weight < 0:
            raise ValueError(f"temperature is {temperature}, task_weight {task_weight}; above 0, and at least 0")
        self._teacher = (teacher.eval().requires_grad_(False),)  # in a tuple, so that it is no part of this module
        self.temperature, self.task_weight = temperature, task_weight

    def prepare(
        self, model: NaViT, batch: PackedBatch, rng: np.random.Generator | None = None
    ) -> tuple[PackedBatch, ...]:
        """The batch, mixed with `rng`, and the same pixels as the teacher takes them."""
        (teacher,) = self._teacher
        if (ours := model.config.num_classes) != (its := teacher.config.num_classes) or ours == 0:
            raise ValueError(f"the student has {ours} classes, the teacher {its}; they must be the same, and above 0")
        if self.task_weight or self.mixup or self.cutmix:
            (batch,) = super().prepare(model, batch, rng)
        model.check(batch)
        theirs = teacher.config.patch_size
        seen = batch if batch.patch_size == theirs else repatchify(batch, theirs)
        teacher.check(seen)
        return batch, seen

    def count(self, batch: PackedBatch) -> int:
        """All images."""
        return batch.num_images

    def settings(self) -> dict[str, float | str]:
        """Its arguments; of the teacher a digest of configuration and weights."""
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
        """The outcome for (batch, the teacher's batch)."""
        (teacher,), (batch, seen), t = self._teacher, batches, self.temperature
        with torch.no_grad():
            taught = teacher(seen)[seen.image_mask].float()  # (N, classes)
        logits = model(batch)
        learnt = logits[batch.image_mask].float()
        log_p, log_q = (taught / t).log_softmax(-1), (learnt / t).log_softmax(-1)
        total = t**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True) + 0 * logits.sum()
        if self.task_weight:
            total = total + self.task_weight * self.outcome(logits, batch).total
        hits = (taught.argmax(-1) == learnt.argmax(-1)).sum()
        return Outcome(total, torch.as_tensor(batch.num_images, device=total.device), hits)
