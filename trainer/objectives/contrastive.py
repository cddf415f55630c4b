"""Contrastive image-text training: a byte-level text tower and a sigmoid loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from patchnpack.models.navit import NaViT
from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.trainer.objectives.losses import Objective, Outcome
from patchnpack.trainer.ranks import over_ranks, rank_and_size

# N image-text pairs of this rank, M texts per chunk, W ranks, S maximum bytes per text, D width, E embedding

PAD = 256  # the id after those of the 256 bytes


class TextTower(nn.Module):
    """A transformer over the UTF-8 bytes of texts, which needs no vocabulary: N texts to (N, E).

    Args:
        embed: E, width of the embeddings.
        width, depth, heads: shape of the transformer.
        max_bytes: S; longer texts are truncated.

    >>> TextTower(8, width=12, depth=1, heads=2)(["a cat", ""]).shape
    torch.Size([2, 8])
    """

    def __init__(self, embed: int, *, width: int = 192, depth: int = 4, heads: int = 3, max_bytes: int = 128) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} of the text tower is not a multiple of heads {heads}; change one of them")
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
    """Sigmoid loss of image-text pairs over all ranks (SigLIP, arXiv 2303.15343, section 3.2).

    The logit of image i and text j is t x_i . y_j + b. Matching pairs are trained to high logits, all others to low
    ones:

        sum over i of sum over j of  -log sigmoid(z_ij (t x_i . y_j + b)),     z_ij = 1 for i = j, else -1

    Args:
        image: the model, with `num_classes` 0, so that it returns pooled features.
        text: member that holds the texts, one of the loader's `extras`. An image without a text does not count. A
            sample has the text of its first image.
        embed: E, width of the shared embedding space.
        tower: keyword arguments of `TextTower`.
        chunk: M, number of texts whose logits are held in memory at a time.

    A hit is an image whose highest logit, among the texts of its rank's batch, is that of its own text.
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
            raise ValueError(f"num_classes is {image.config.num_classes}; image-text training needs num_classes=0")
        self.text, self.chunk = text, chunk
        self.tower = TextTower(embed, **(tower or {}))
        self.projection = nn.Linear(image.config.width, embed, bias=False)
        # t = exp(scale) and b, of one element since FSDP shards no scalars; start values of section 3.2
        self.scale, self.bias = nn.Parameter(torch.full((1,), 10.0).log()), nn.Parameter(torch.full((1,), -10.0))

    def settings(self) -> dict[str, float | str]:
        """The name of the text member."""
        return {"text": self.text}

    def prepare(
        self, model: NaViT, batch: PackedBatch, rng: np.random.Generator | None = None
    ) -> tuple[PackedBatch, ...]:
        """Check that the batch has texts."""
        model.check(batch)
        if self.text not in batch.extras:
            raise ValueError(
                f"the batch has no member {self.text!r}, only {sorted(batch.extras) or 'none'}; give the loader "
                f"extras=[{self.text!r}]"
            )
        return (batch,)

    def _texts(self, batch: PackedBatch) -> list[Any]:
        """The text of each image of the batch, None without a text."""
        texts = [text for texts in batch.extras[self.text] for text in texts]
        if len(wrong := [text for text in texts if text is not None and not isinstance(text, str)]):
            raise ValueError(f"member {self.text!r} holds {type(wrong[0]).__name__}, not text; choose a .txt member")
        return texts

    def count(self, batch: PackedBatch) -> int:
        """Number of images with a text."""
        return sum(text is not None for text in self._texts(batch))

    def embed(self, model: NaViT, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed images, or in scope "sample" samples, and their texts: two float32 (N, E) of unit length."""
        units = model.units(batch)
        texts = self._texts(units)
        which = [i for i, text in enumerate(texts) if text is not None]
        index = torch.tensor(which, dtype=torch.int64).to(batch.patches.device, non_blocking=True)
        images = self.projection(model(batch).flatten(0, 1)[units.column_index[index]])
        words = self.tower([texts[i] for i in which])
        return F.normalize(images.float(), dim=-1), F.normalize(words.float(), dim=-1)

    def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
        """Compute the loss of this rank's images against the texts of all ranks."""
        images, texts = self.embed(model, *batches)
        total = sigmoid_loss(images, texts, self.scale.exp()[0], self.bias[0], chunk=self.chunk)
        with torch.no_grad():
            parts = images.split(self.chunk) if len(texts) else ()
            best = torch.cat([images.new_zeros(0), *((part @ texts.T).argmax(-1) for part in parts)])
            hits = (best == torch.arange(len(best), device=best.device)).sum()
        return Outcome(total, torch.full_like(hits, len(images)), hits)


def sigmoid_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *, chunk: int = 1024
) -> torch.Tensor:
    """Sum the sigmoid loss of this rank's images against the texts of all ranks; 0-d.

    Each rank passes its texts on to the next rank, W times in a ring. The gradient of the texts travels with them and
    is complete when they return (SigLIP, arXiv 2303.15343, section 3.3). So a rank holds only its own and a neighbour's
    texts and N x `chunk` logits, and the backward pass sends nothing. The gradient is that of the sum over all ranks:
    every rank must call this and give the result the same weight.

    Args:
        images, texts: (N, E) float32; N may differ between ranks, and may be 0.
        scale, bias: t and b, 0-d.
        chunk: number of texts whose logits are held in memory at a time.

    >>> x = torch.eye(2)
    >>> round(float(sigmoid_loss(x, x, torch.tensor(10.0), torch.tensor(-10.0))), 4)
    1.3864
    """
    if len(images) != len(texts):
        raise ValueError(f"there are {len(images)} images and {len(texts)} texts; give one text per image")
    total: torch.Tensor = _Ring.apply(images, texts, scale, bias, chunk)  # type: ignore[no-untyped-call]
    return total


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        images, texts, scale, bias, chunk = inputs
        rank, size = rank_and_size()
        counts = len(texts) * F.one_hot(torch.tensor(rank), size)
        lengths = counts.tolist() if size == 1 else over_ranks(counts, images.device).tolist()
        total, d_images, d_scale, d_bias = (torch.zeros_like(x) for x in (scale, images, scale, bias))
        travelling = torch.stack([texts, torch.zeros_like(texts)])  # texts and their gradient, (2, N, E)
        for hop in range(size):
            for start in range(0, travelling.shape[1], chunk):
                part, d_part = travelling[:, start : start + chunk]
                similarity = images @ part.T
                z = torch.full_like(similarity, -1.0)
                if hop == 0:  # this rank's own texts
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
    """Send a tensor (2, N, E) to the next rank; return the previous rank's, (2, length, E)."""
    rank, size = rank_and_size()
    received = tensor.new_empty(2, length, tensor.shape[2])
    # An empty tensor is not sent: both ranks know its length.
    work = [dist.P2POp(dist.isend, tensor.contiguous(), (rank + 1) % size)] * bool(tensor.numel())
    work += [dist.P2POp(dist.irecv, received, (rank - 1) % size)] * bool(received.numel())
    for request in dist.batch_isend_irecv(work) if work else ():
        request.wait()
    return received
