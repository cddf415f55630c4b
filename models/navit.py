"""NaViT: a vision transformer over packed images, computed on one flat stream of their tokens."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from patchnpack.models.attention import attention
from patchnpack.models.config import NaViTConfig
from patchnpack.models.patch_embed import PatchEmbed
from patchnpack.models.pooling import AttentionPooling
from patchnpack.models.pos_embed import FactorizedPosEmbed
from patchnpack.packer.batch import PackedBatch

# B packs, L token slots in a pack, K images in a pack at most, T valid tokens of the batch, N images of the batch,
# P patch size, C channels, D width, H heads, E width of a head

NO_LABEL = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stream:
    """The valid tokens of a batch laid end to end, and where each image lies in them."""

    token_index: torch.Tensor  # (T,) in the flattened B*L slots
    cu_seqlens: torch.Tensor  # int32 (N + 1,)
    lengths: list[int]  # N host ints
    columns: torch.Tensor  # (N,) each image's place in the flattened B*K columns


def _stream(batch: PackedBatch) -> _Stream:
    tokens, lengths, cu_seqlens = batch.token_index, batch.lengths, batch.cu_seqlens
    if tokens.device.type == "cpu":  # sorted, images of one length are neighbours, which attention takes as one batch
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        parts = torch.split(tokens, lengths)
        tokens = torch.cat([tokens[:0], *(parts[i] for i in order)])
        lengths = [lengths[i] for i in order]
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    first = tokens[cu_seqlens[:-1]]
    (_, L), (_, K) = batch.segment_ids.shape, batch.image_mask.shape
    columns = first // L * K + batch.segment_ids.flatten()[first] - 1
    return _Stream(token_index=tokens, cu_seqlens=cu_seqlens, lengths=lengths, columns=columns)


class Block(nn.Module):
    """A pre-norm transformer block on the flat stream, (T, D) -> (T, D).

    Queries and keys are normalised and biases left out, as in NaViT (arXiv 2307.06304, section 3).
    """

    def __init__(self, config: NaViTConfig, drop_path: float) -> None:
        super().__init__()
        D, E, hidden = config.width, config.width // config.heads, int(config.mlp_ratio * config.width)
        self.heads, self.backend, self.drop_path = config.heads, config.backend, drop_path
        self.norm1 = nn.LayerNorm(D, bias=False)
        self.qkv = nn.Linear(D, 3 * D, bias=False)
        self.q_norm = nn.LayerNorm(E, bias=False) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(E, bias=False) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(D, D, bias=False)
        self.norm2 = nn.LayerNorm(D, bias=False)
        self.up = nn.Linear(D, hidden, bias=False)
        self.down = nn.Linear(hidden, D, bias=False)

    def forward(self, x: torch.Tensor, stream: _Stream) -> torch.Tensor:
        q_THE, k_THE, v_THE = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(1)
        mixed_THE = attention(
            self.q_norm(q_THE).to(v_THE.dtype),  # autocast on CUDA normalises in float32
            self.k_norm(k_THE).to(v_THE.dtype),
            v_THE,
            cu_seqlens=stream.cu_seqlens,
            lengths=stream.lengths,
            backend=self.backend,
        )
        x = x + self._drop(self.out(mixed_THE.flatten(1)), stream)
        return x + self._drop(self.down(F.gelu(self.up(self.norm2(x)))), stream)

    def _drop(self, branch: torch.Tensor, stream: _Stream) -> torch.Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        keep_N = torch.rand(len(stream.lengths), device=branch.device) >= self.drop_path
        scale_N = keep_N.to(branch.dtype) / (1 - self.drop_path)
        return branch * scale_N.repeat_interleave(stream.cu_seqlens.diff(), output_size=len(branch))[:, None]


class NaViT(nn.Module):
    """Vision transformer for packed images of any size and aspect ratio (NaViT, arXiv 2307.06304, section 2.1).

    Takes a `PackedBatch` and gives a row of logits for each image. Inside, the valid tokens of the whole batch are one
    flat stream: padding costs nothing, and neither an image's pack nor its neighbours there change its output.

    >>> model = NaViT(NaViTConfig(num_classes=10, width=48, depth=1))
    >>> sum(p.numel() for p in model.parameters())
    102954
    """

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        self.config = config
        D, hidden, last = config.width, int(config.mlp_ratio * config.width), max(config.depth - 1, 1)
        self.patch_embed = PatchEmbed(config.patch_size, config.channels, D, mean=config.mean, std=config.std)
        self.pos_embed = FactorizedPosEmbed(config.max_grid, D)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / last) for i in range(config.depth))
        self.norm = nn.LayerNorm(D, bias=False)
        self.pool = AttentionPooling(width=D, heads=config.heads, hidden=hidden, backend=config.backend)
        self.head = nn.Linear(D, config.num_classes) if config.num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        if isinstance(self.head, nn.Linear):  # every class is equally likely at first
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def check(self, batch: PackedBatch, labels: bool = False) -> None:
        """Raises ValueError if this model cannot take `batch`, or with `labels` cannot be trained on it.

        Values of tensors are looked at on the CPU only, where that costs microseconds; on a GPU every step would wait
        for it. So check a batch before it moves, as `train` and `evaluate` do.
        """
        ours, channels = self.config, batch.patches.shape[-1] // batch.patch_size**2
        if batch.patch_size != ours.patch_size:
            raise ValueError(
                f"the batch has patches of {batch.patch_size} pixels a side, the model takes {ours.patch_size}; "
                f"give Packing and NaViTConfig the same patch_size"
            )
        if channels != ours.channels:
            raise ValueError(
                f"the batch has {channels} channels, the model takes {ours.channels}; "
                f"set NaViTConfig(channels={channels}), or Packing's image_mode"
            )
        self.pos_embed.check(batch.coords)
        if labels:
            self._check_labels(batch)

    def _check_labels(self, batch: PackedBatch) -> None:
        classes, labels = self.config.num_classes, batch.labels
        if classes == 0:
            raise ValueError("the model has num_classes 0, so there is no loss; give NaViTConfig the number of classes")
        if labels.is_floating_point():
            if labels.shape[-1] != classes:
                raise ValueError(
                    f"labels have {labels.shape[-1]} targets an image, the model {classes}; set num_classes"
                )
        elif labels.device.type == "cpu":
            labels = labels[batch.image_mask]
            if len(labels) and (labels == NO_LABEL).all():
                warnings.warn(
                    f"none of the {len(labels)} images of the batch has a label, so their loss is 0; was the loader "
                    "given label=, such as 'cls'?",
                    stacklevel=4,
                )
            wrong = labels[(labels != NO_LABEL) & ((labels < 0) | (labels >= classes))]
            if len(wrong):
                raise ValueError(
                    f"label {int(wrong[0])} is not a class from 0 to {classes - 1}; set num_classes to the number of "
                    f"classes, or check `label` and `classes` of the loader"
                )

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits (B, K, num_classes), 0 where there is no image; with num_classes 0 the pooled features (B, K, D).

        Raises:
            ValueError: the batch's patch size, channels or a coordinate do not fit this model.
        """
        self.check(batch)
        stream = _stream(batch)
        x = self.patch_embed(batch.patches.flatten(0, 1)[stream.token_index])
        x = x + self.pos_embed(batch.coords.flatten(0, 1)[stream.token_index])
        for block in self.blocks:
            x = block(x, stream)
        out: torch.Tensor = self.head(self.pool(self.norm(x), cu_seqlens=stream.cu_seqlens, lengths=stream.lengths))
        B, K = batch.image_mask.shape
        return out.new_zeros(B * K, out.shape[-1]).index_copy(0, stream.columns, out).unflatten(0, (B, K))

    def loss(self, batch: PackedBatch, reduction: str = "mean", label_smoothing: float = 0.0) -> torch.Tensor:
        """Classification loss over the labelled images of the batch, 0-d; see `classification_loss`.

        Without a labelled image it is 0 and reaches every parameter with a gradient of 0, so that a rank with an empty
        batch takes its step with the others. Ranks of unequal counts use the sum over the global number of images.

        Args:
            batch: on the model's device.
            reduction: "mean" over images, or "sum".
            label_smoothing: share of the target spread evenly over the classes; int labels only.

        Raises:
            ValueError: the batch does not fit this model, or a label is not one of its classes.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}; choose 'mean' or 'sum'")
        self.check(batch, labels=True)
        total, images = classification_loss(self(batch), batch, label_smoothing)
        return total if reduction == "sum" else total / images.clamp(min=1)


def classification_loss(
    logits: torch.Tensor, batch: PackedBatch, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss summed over the labelled images, and their number, both 0-d; one over the other is the mean.

    Args:
        logits: (B, K, classes), as `NaViT` gives them for `batch`.
        batch: int64 labels give softmax cross entropy; float32 labels (several classes, or soft ones) give sigmoid
            cross entropy summed over classes (Beyer et al., arXiv 2006.07159). -100, or a NaN target, is no label.
        label_smoothing: share of the target spread evenly over the classes; int labels only.
    """
    logits, labels = logits.float(), batch.labels
    if labels.is_floating_point():
        labelled = batch.image_mask & ~labels.isnan().any(-1)
        each = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none").sum(-1)
        return (each * labelled).sum(), labelled.sum()
    labels = labels.masked_fill(~batch.image_mask, NO_LABEL).flatten()
    total = F.cross_entropy(
        logits.flatten(0, 1), labels, ignore_index=NO_LABEL, reduction="sum", label_smoothing=label_smoothing
    )
    return total, (labels != NO_LABEL).sum()
