"""Contrastive image-text training: a small text tower on bytes, and a sigmoid loss that never gathers embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from patchnpack.models.navit import NaViT
from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.trainer.losses import Objective, Outcome
from patchnpack.trainer.ranks import rank_and_size

# N image-text pairs of this rank, M texts of a chunk, W ranks, S bytes of a text at most, D width, E embedding

PAD = 256  # beyond the 256 bytes


class TextTower(nn.Module):
    """A transformer over the UTF-8 bytes of texts, so that no vocabulary is needed: N texts to (N, E).

    Args:
        embed: E.
        width, depth, heads: of the transformer.
        max_bytes: S; what comes after is left out.

    >>> TextTower(8, width=12, depth=1, heads=2)(["a cat", ""]).shape
    torch.Size([2, 8])
    """

    def __init__(self, embed: int, *, width: int = 192, depth: int = 4, heads: int = 3, max_bytes: int = 128) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} of the text tower is not a multiple of heads {heads}")
        self.max_bytes = max_bytes
        self.bytes = nn.Embedding(PAD + 1, width)
        self.positions = nn.Parameter(0.02 * torch.randn(max_bytes, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, embed, bias=False)

    def forward(self, texts: list[str]) -> torch.Tensor:
        codes = [list(text.encode()[: self.max_bytes]) or [PAD] for text in texts] or [[PAD]]
        longest = max(map(len, codes))
        device = self.positions.device
        tokens = torch.tensor([code + [PAD] * (longest - len(code)) for code in codes]).to(device, non_blocking=True)
        lengths = torch.tensor([len(code) for code in codes]).to(device, non_blocking=True)
        absent = torch.arange(longest, device=device) >= lengths[:, None]
        x = self.blocks(self.bytes(tokens) + self.positions[:longest], src_key_padding_mask=absent)
        x = x.masked_fill(absent[..., None], 0).sum(1) / lengths[:, None]
        return self.out(x)[: len(texts)]


class Contrastive(Objective):
    """Sigmoid loss of images and their texts (SigLIP, arXiv 2303.15343, section 3.2), over the pairs of all ranks.

    For image i and text j the logit is t x_i . y_j + b; a pair of its own wants it high, any other low:

        sum over i of sum over j of  -log sigmoid(z_ij (t x_i . y_j + b)),     z_ij = 1 for i = j, else -1

    Args:
        image: the model; its `num_classes` is 0, so that it gives pooled features.
        text: member that holds the texts, one of the loader's `extras`. An image without one does not count.
        embed: E, width of the common space.
        tower: keywords of `TextTower`.
        chunk: M, texts whose logits are held at a time.

    A hit is an image whose highest logit, among the texts of its own rank's batch, is that of its own text.
    """

    def __init__(
        self,
        image: NaViT,
        *,
        text: str = "txt",
        embed: int = 128,
        chunk: int = 1024,
        tower: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        if image.config.num_classes:
            raise ValueError(f"num_classes is {image.config.num_classes}; image-text training needs 0, pooled features")
        self.text, self.chunk = text, chunk
        self.tower = TextTower(embed, **(tower or {}))
        self.projection = nn.Linear(image.config.width, embed, bias=False)
        self.scale = nn.Parameter(torch.tensor(10.0).log())  # t = exp(scale); start values of section 3.2
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def settings(self) -> dict[str, float | str]:
        """Which member the texts are."""
        return {"text": self.text}

    def prepare(
        self, model: NaViT, batch: PackedBatch, rng: np.random.Generator | None = None
    ) -> tuple[PackedBatch, ...]:
        """Checks that the batch has texts."""
        model.check(batch)
        if self.text not in batch.extras:
            raise ValueError(
                f"the batch has no member {self.text!r}, only {sorted(batch.extras) or 'none'}; give the loader "
                f"extras=[{self.text!r}]"
            )
        return (batch,)

    def _texts(self, batch: PackedBatch) -> list[Any]:
        """The text of each of the batch's images, None where there is none."""
        texts = [text for texts in batch.extras[self.text] for text in texts]
        if len(wrong := [text for text in texts if text is not None and not isinstance(text, str)]):
            raise ValueError(f"member {self.text!r} holds {type(wrong[0]).__name__}, not a text; name a .txt member")
        return texts

    def count(self, batch: PackedBatch) -> int:
        """Images with a text."""
        return sum(text is not None for text in self._texts(batch))

    def embed(self, model: NaViT, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and their texts, each (N, E) of length 1, in float32."""
        texts = self._texts(batch)
        which = [i for i, text in enumerate(texts) if text is not None]
        index = torch.tensor(which, dtype=torch.int64).to(batch.patches.device, non_blocking=True)
        images = self.projection(model(batch)[batch.image_mask][index])
        words = self.tower([texts[i] for i in which])
        return F.normalize(images.float(), dim=-1), F.normalize(words.float(), dim=-1)

    def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
        """The loss of this rank's images against the texts of all ranks."""
        images, texts = self.embed(model, *batches)
        total = sigmoid_loss(images, texts, self.scale.exp(), self.bias, chunk=self.chunk)
        with torch.no_grad():
            best = torch.cat(
                [
                    torch.zeros(0, device=images.device),
                    *((part @ texts.T).argmax(-1) for part in (images.split(self.chunk) if len(texts) else ())),
                ]
            )
            hits = (best == torch.arange(len(best), device=best.device)).sum()
        return Outcome(total, torch.as_tensor(len(images), device=total.device), hits)


def sigmoid_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *, chunk: int = 1024
) -> torch.Tensor:
    """The sigmoid loss of this rank's images against the texts of all ranks, summed; 0-d.

    Each rank hands its texts on to the next one, W times round; their gradient travels with them and is whole when they
    are home (SigLIP, arXiv 2303.15343, section 3.3). So no rank holds more texts than its own and its neighbours', nor
    logits beyond N x `chunk`; the backward pass sends nothing. The gradient is that of the sum over all ranks: every
    rank must call this, and weigh it alike.

    Args:
        images, texts: (N, E) float32; N may differ between ranks, and be 0.
        scale, bias: 0-d, t and b.
        chunk: texts whose logits are held at a time.

    >>> x = torch.eye(2)
    >>> round(float(sigmoid_loss(x, x, torch.tensor(10.0), torch.tensor(-10.0))), 4)
    1.3864
    """
    if len(images) != len(texts):
        raise ValueError(f"there are {len(images)} images and {len(texts)} texts; each image needs one")
    total: torch.Tensor = _Ring.apply(images, texts, scale, bias, chunk)  # type: ignore[no-untyped-call]
    return total


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        images, texts, scale, bias, chunk = inputs
        rank, size = rank_and_size()
        counts = torch.zeros(size, dtype=torch.int64, device=images.device)
        counts[rank] = len(texts)
        if size > 1:
            dist.all_reduce(counts)
        lengths = counts.tolist()
        total, d_images, d_scale, d_bias = (torch.zeros_like(x) for x in (scale, images, scale, bias))
        travelling = torch.stack([texts, torch.zeros_like(texts)])  # texts and their gradient, (2, M, E)
        for hop in range(size):
            own = hop == 0
            for start in range(0, travelling.shape[1], chunk):
                part, d_part = travelling[:, start : start + chunk]
                similarity = images @ part.T
                z = torch.full_like(similarity, -1.0)
                if own:
                    z.diagonal(-start).fill_(1.0)
                margin = z * (scale * similarity + bias)
                total -= F.logsigmoid(margin).sum()
                d_logits = -z * torch.sigmoid(-margin)
                d_images += scale * (d_logits @ part)
                d_part += scale * (d_logits.T @ images)
                d_scale += (d_logits * similarity).sum()
                d_bias += d_logits.sum()
            if size > 1:
                travelling = _pass_on(travelling, lengths[(rank - hop - 1) % size])
        ctx.save_for_backward(d_images, travelling[1], d_scale, d_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return (*(gradients[0] * saved for saved in ctx.saved_tensors), None)


def _pass_on(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """Sends a tensor (2, M, E) to the next rank, and gives what came from the one before, (2, length, E)."""
    rank, size = rank_and_size()
    received = tensor.new_empty(2, length, tensor.shape[2])
    # An empty one is not sent: both ends know its length.
    work = [dist.P2POp(dist.isend, tensor.contiguous(), (rank + 1) % size)] * bool(tensor.numel())
    work += [dist.P2POp(dist.irecv, received, (rank - 1) % size)] * bool(received.numel())
    for request in dist.batch_isend_irecv(work) if work else ():
        request.wait()
    return received
