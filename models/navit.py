"""`NaViT`: a vision transformer over packed images, computed on one flat stream of tokens."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from patchnpack.models.attention import attention_backend
from patchnpack.models.config import NaViTConfig
from patchnpack.models.features import Features
from patchnpack.models.patch_embed import PatchEmbed
from patchnpack.models.pooling import GELUS, AttentionPooling, max_pool, mean_pool
from patchnpack.models.pos_embed import axial_rope, make_pos_embed, rotate, wide
from patchnpack.models.stream import Stream
from patchnpack.packer.batch.packed_batch import PackedBatch

# B packs, L token slots per pack, K maximum images per pack, T tokens of the stream, N units of the batch (its images,
# or in scope "sample" its samples), P patch size, C channels, D width, H heads, E width of a head, R prefix tokens per
# unit

NO_LABEL = -100
Rope = tuple[torch.Tensor, torch.Tensor]
Kept = Sequence[torch.Tensor | None]


class Block(nn.Module):
    """A transformer block on a stream, (T, D) -> (T, D).

    ```
    pre         x + branch(norm(x))         as in ViT
    res_post    x + norm(branch(x))
    ```

    By default queries and keys are normalised and biases omitted, as in NaViT (arXiv 2307.06304, section 3).
    """

    def __init__(self, config: NaViTConfig, drop_path: float) -> None:
        super().__init__()
        D, E, hidden = config.width, config.width // config.heads, int(config.mlp_ratio * config.width)
        bias, eps = config.bias, config.norm_eps
        self.heads, self.drop_path, self.gelu = config.heads, drop_path, GELUS[config.gelu]
        self.norm_first, self.dense = config.block_norm == "pre", config.backend == "dense"
        self.attend: Callable[..., torch.Tensor] = Stream.attend
        self.norm1 = nn.LayerNorm(D, eps, bias=bias)
        self.qkv = nn.Linear(D, 3 * D, bias=bias if config.qkv_bias is None else config.qkv_bias)
        self.q_norm = nn.LayerNorm(E, eps, bias=bias) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(E, eps, bias=bias) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(D, D, bias=bias)
        self.norm2 = nn.LayerNorm(D, eps, bias=bias)
        self.up = nn.Linear(D, hidden, bias=bias)
        self.down = nn.Linear(hidden, D, bias=bias)
        if config.layer_scale is not None:
            self.scale1 = nn.Parameter(torch.full((D,), config.layer_scale))
            self.scale2 = nn.Parameter(torch.full((D,), config.layer_scale))

    def forward(self, x: torch.Tensor, stream: Stream, rope: Rope | None, kept: Kept = (None, None)) -> torch.Tensor:
        normed = self.norm1(x) if self.norm_first else x
        q_THE, k_THE, v_THE = self.qkv(normed).unflatten(-1, (3, self.heads, -1)).unbind(1)
        q_THE, k_THE = self.q_norm(q_THE), self.k_norm(k_THE)
        if rope is not None:
            q_THE, k_THE = rotate(q_THE, rope), rotate(k_THE, rope)
        # On CUDA, autocast normalises in float32.
        mixed_THE = self.attend(stream, q_THE.to(v_THE.dtype), k_THE.to(v_THE.dtype), v_THE)
        x = x + self._branch(self.out(mixed_THE.flatten(1)), self.norm1, "scale1", kept[0])
        hidden = F.gelu(self.up(self.norm2(x) if self.norm_first else x), approximate=self.gelu)
        return x + self._branch(self.down(hidden), self.norm2, "scale2", kept[1])

    def _branch(self, branch: torch.Tensor, norm: nn.Module, scale: str, kept: torch.Tensor | None) -> torch.Tensor:
        if not self.norm_first:
            branch = norm(branch)
        if hasattr(self, scale):
            branch = branch * getattr(self, scale)
        return branch if kept is None else branch * kept.to(branch.dtype)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile; attention stays outside, unless the backend is "dense", since its lengths vary between batches."""
        self.attend = Stream.attend if self.dense else torch.compiler.disable(Stream.attend)
        super().compile(*args, **options)

    def draw(self, stream: Stream, dtype: torch.dtype) -> Kept:
        """Factors (T, 1) of the two branches, 0 for units that skip one; `forward` draws nothing, so it repeats."""
        if not self.training or self.drop_path == 0:
            return None, None
        drawn_2N = F.pad(torch.rand(2, stream.columns.shape[0], device=stream.unit.device), (0, 1))  # and padding
        return ((drawn_2N >= self.drop_path).to(dtype) / (1 - self.drop_path))[:, stream.unit, None].unbind()


class NaViT(nn.Module):
    """Vision transformer for packed images of any size and aspect ratio.

    See NaViT, arXiv 2307.06304, section 2.1.

    Maps a `PackedBatch` to logits per image, or with `scope="sample"` per sample. Inside, the valid tokens of the whole
    batch are one flat stream: padding costs nothing, and an output depends on neither the pack nor what else is in it.
    With `activation_checkpointing` set to True, the backward pass recomputes each block from its input.

    >>> model = NaViT(NaViTConfig(num_classes=10, width=48, depth=1))
    >>> sum(p.numel() for p in model.parameters())
    102954
    """

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        self.config, self.activation_checkpointing = config, False
        D, hidden, last = config.width, int(config.mlp_ratio * config.width), max(config.depth - 1, 1)
        self.patch_embed = PatchEmbed(
            config.patch_size, config.channels, D, mean=config.mean, std=config.std, resize=config.patch_resize
        )
        self.pos_embed = make_pos_embed(config)
        if config.time == "learned":
            self.frame_embed = nn.Parameter(torch.randn(config.max_frames, D) * 0.2)
        if R := config.registers + (config.pooling == "cls"):  # the class token is the first
            self.prefix = nn.Parameter(torch.randn(R, D) * 0.02)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / last) for i in range(config.depth))
        self.norm = nn.Identity() if config.last_norm == "none" else nn.LayerNorm(D, config.norm_eps, bias=config.bias)
        if config.pooling == "attention":
            self.pool = AttentionPooling(
                width=D, heads=config.heads, hidden=hidden, bias=config.bias, eps=config.norm_eps, gelu=config.gelu
            )
        self.head = nn.Linear(D, config.num_classes) if config.num_classes else nn.Identity()
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.startswith("pos_embed"):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head, nn.Linear):  # all classes start equally likely
            nn.init.zeros_(self.head.weight)

    def check(self, batch: PackedBatch, labels: bool = False) -> None:
        """Raise ValueError if this model cannot take `batch`, or with `labels` cannot be trained on it.

        Tensor values are checked only on the CPU, where that takes microseconds; on a GPU every step would synchronise.
        So check a batch before it is moved, as `train` and `evaluate` do.
        """
        config, channels = self.config, batch.patches.shape[-1] // batch.patch_size**2
        if channels != config.channels:
            raise ValueError(
                f"the batch has {channels} channels, but the model takes {config.channels}; "
                f"set NaViTConfig(channels={channels}), or another Packing(channels=...)"
            )
        if "absolute" in config.positions and batch.grids.device.type == "cpu":
            sides = F.pad(batch.grids.amax(-1).flatten(), (0, 1))
            if int(sides.max()) > config.max_grid:
                image = _keys(batch)[int(batch.image_mask.flatten()[: int(sides.argmax())].sum())]
                raise ValueError(
                    f"image {image!r} has {int(sides.max())} patches per side, but the position tables end at max_grid "
                    f"{config.max_grid}; raise max_grid to at least {int(sides.max())}, give position='fractional', or "
                    "use smaller images or larger patches"
                )
        if config.time == "learned" and batch.frames.device.type == "cpu":
            last = int(F.pad(batch.frames, (0, 1)).max())
            if last >= config.max_frames:
                image = _keys(batch)[int(batch.frames[batch.image_mask].argmax())]
                raise ValueError(
                    f"image {image!r} is frame {last} of its sample, counted from 0, but the table of frames ends at "
                    f"max_frames {config.max_frames}; raise max_frames to at least {last + 1}, give time='sinusoidal', "
                    "or use fewer images per sample"
                )
        if labels:
            self._check_labels(self.units(batch))

    def units(self, batch: PackedBatch) -> PackedBatch:
        """The batch whose segments are this model's units: itself, or in scope "sample" `batch.by_sample()`."""
        return batch.by_sample() if self.config.scope == "sample" else batch

    def _check_labels(self, batch: PackedBatch) -> None:
        classes, labels, scope = self.config.num_classes, batch.labels, self.config.scope
        if classes == 0:
            raise ValueError("the model has num_classes 0, so there is no loss; set NaViTConfig(num_classes=...)")
        if labels.is_floating_point():
            if labels.shape[-1] != classes:
                raise ValueError(
                    f"labels have {labels.shape[-1]} targets per image, but the model has {classes} outputs; set "
                    "num_classes"
                )
        elif labels.device.type == "cpu":
            labels = labels[batch.image_mask]
            if len(labels) and (labels == NO_LABEL).all():
                warnings.warn(
                    f"none of the {len(labels)} {scope}s of the batch has a label, so their loss is 0; does the loader "
                    "set label=, such as label='cls'?",
                    stacklevel=4,
                )
            wrong = ((labels != NO_LABEL) & ((labels < 0) | (labels >= classes))).nonzero()
            if len(wrong):
                i = int(wrong[0])
                raise ValueError(
                    f"label {int(labels[i])} is not a class from 0 to {classes - 1} ({scope} {_keys(batch)[i]!r}); set "
                    "num_classes to the number of classes, or check `label` and `classes` of the loader"
                )

    def encode(
        self,
        patches: torch.Tensor,
        coords: torch.Tensor,
        grids: torch.Tensor,
        stream: Stream,
        frames: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute tokens (T, D) after the last norm, and pooled features (N, D).

        Args:
            patches: (B, L, S*S*C), as in `PackedBatch`, of any patch size S.
            coords: integers (B, L, 2), as in `PackedBatch`.
            grids: integers (B, K, 2), as in `PackedBatch`.
            stream: the slots that hold tokens, and their images and units.
            frames: integers (B, K), as in `PackedBatch`; for models with `time`.
        """
        config, coords = self.config, coords.flatten(0, 1)[stream.slots]
        coords = coords * (stream.unit < stream.columns.shape[0])[:, None]  # values in padding must not become NaN
        x = self.patch_embed(patches.flatten(0, 1)[stream.slots])
        places, added = [coords[:, 1], coords[:, 0]] if "rope" in config.positions else [], []
        with torch.autocast(x.device.type, enabled=False):
            if self.pos_embed is not None:
                grids = F.pad(grids.flatten(0, 1).clamp(min=1), (0, 0, 0, 1), value=1)
                if config.position_keep_aspect:
                    grids = grids.amax(1, keepdim=True).expand_as(grids)
                added.append(self.pos_embed(coords, grids[stream.images]))
            if config.time != "none":
                assert frames is not None, "a model with time needs the frames of the batch"
                frame_T = F.pad(frames.flatten(), (0, 1))[stream.images]
                if config.time == "rope":
                    places.append(frame_T)
                elif config.time == "learned":
                    added.append(F.embedding(frame_T, self.frame_embed.to(wide(self.frame_embed.dtype))))
                else:
                    added.append(torch.cat(axial_rope([frame_T], config.width, 10_000.0), -1)[:, 0])
            if added:  # rounded once, after the sum
                x = sum(added, x).to(torch.promote_types(x.dtype, self.patch_embed.weight.dtype))
        inner, old, new = stream, None, None
        if hasattr(self, "prefix"):
            inner, old, new = stream.with_prefix(len(self.prefix))
            empty = x.new_empty(inner.unit.shape[0], x.shape[1])
            prefix = self.prefix.to(x.dtype).repeat(new.shape[0], 1)
            x = empty.index_copy(0, old, x).index_copy(0, new.flatten(), prefix)
            # Prefix tokens have no position: rope does not rotate those at place 0.
            places = [place.new_zeros(x.shape[0]).index_copy(0, old, place) for place in places]
        rope = axial_rope(places, config.width // config.heads, config.rope_base) if places else None
        again = self.activation_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            inputs = x, inner, rope, block.draw(inner, x.dtype)  # type: ignore[operator]
            x = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False) if again else block(*inputs)
        x = x if config.last_norm == "pooled" else self.norm(x)
        tokens = x if old is None else x[old]
        if config.pooling == "attention":
            pooled = self.pool(tokens, stream)
        elif new is not None and config.pooling == "cls":
            pooled = x[new[:, 0]]
        else:
            pooled = mean_pool(tokens, stream) if config.pooling == "mean" else max_pool(tokens, stream)
        return tokens, self.norm(pooled) if config.last_norm == "pooled" else pooled

    def stream(self, batch: PackedBatch) -> Stream:
        """The stream in which this model computes `batch`, by its backend for the device and dtype."""
        config, device, dtype = self.config, batch.patches.device, self.patch_embed.weight.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        backend = attention_backend(device, dtype, config.backend, config.width // config.heads)
        if backend == "dense":
            samples = batch.samples if config.scope == "sample" else None
            return Stream.dense(batch.segment_ids, batch.image_mask.shape[1], samples)
        return Stream.flat(batch, self.units(batch), backend)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Compute logits (B, K, num_classes), 0 without an image; in scope "sample", column s - 1 is sample s.

        With num_classes 0, these are the pooled features (B, K, D).

        Raises:
            ValueError: the channels or a grid of the batch do not fit this model.
        """
        self.check(batch)
        stream = self.stream(batch)
        _, pooled = self.encode(batch.patches, batch.coords, batch.grids, stream, batch.frames)
        return in_columns(self.head(pooled), stream, self.units(batch).image_mask)

    def features(self, batch: PackedBatch) -> Features:
        """Compute token features and pooled features of `batch`, for other heads; see `Features`."""
        self.check(batch)
        stream, units = self.stream(batch), self.units(batch)
        tokens, pooled = self.encode(batch.patches, batch.coords, batch.grids, stream, batch.frames)
        slots = torch.where(stream.unit < len(stream.columns), stream.slots, batch.segment_ids.numel())
        in_slots = tokens.new_zeros(batch.segment_ids.numel() + 1, tokens.shape[1]).index_copy(0, slots, tokens)
        return Features(
            tokens=in_slots[batch.token_index],
            cu_seqlens=units.cu_seqlens,
            pooled=in_columns(pooled, stream, units.image_mask),
        )

    def loss(self, batch: PackedBatch, reduction: str = "mean", label_smoothing: float = 0.0) -> torch.Tensor:
        """Classification loss over the labelled images, or samples, of the batch, 0-d; see `classification_loss`.

        Without a labelled one the loss is 0 and gives every parameter a gradient of 0, so that a rank with an empty
        batch takes its step with the others. Ranks with unequal counts use the sum over the global number of images.

        Args:
            batch: on the model's device.
            reduction: "mean" over images or samples, or "sum".
            label_smoothing: share of the target spread evenly over the classes; int labels only.

        Raises:
            ValueError: the batch does not fit this model, or a label is not one of its classes.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}; choose 'mean' or 'sum'")
        self.check(batch, labels=True)
        total, images = classification_loss(self(batch), self.units(batch), label_smoothing)
        return total if reduction == "sum" else total / images.clamp(min=1)


class DenseNaViT(nn.Module):
    """A `NaViT` on a batch's tensors, for `torch.export` and compiling as one graph.

    It computes whole packs with a mask, so shapes depend only on B, L and K, not on the images. Only shapes are
    checked; call `NaViT.check` first.

    >>> model = DenseNaViT(NaViT(NaViTConfig(num_classes=10, width=48, depth=1)).eval())
    >>> patches = torch.zeros(2, 8, 16 * 16 * 3, dtype=torch.uint8)
    >>> segment_ids, coords, grids = (torch.ones(2, *s, dtype=torch.int32) for s in ((8,), (8, 2), (3, 2)))
    >>> model(patches, segment_ids, coords, grids).shape
    torch.Size([2, 3, 10])
    """

    def __init__(self, model: NaViT) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)  # exporters ask the outermost module

    def forward(
        self,
        patches: torch.Tensor,
        segment_ids: torch.Tensor,
        coords: torch.Tensor,
        grids: torch.Tensor,
        samples: torch.Tensor | None = None,
        frames: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the logits (B, K, num_classes) of `NaViT` from the fields of a `PackedBatch`.

        Scope "sample" needs `samples`, and `time` needs `frames`.
        """
        scope, time, K, mask = self.model.config.scope, self.model.config.time, grids.shape[1], grids[..., 0] > 0
        if (scope == "sample" and samples is None) or (time != "none" and frames is None):
            raise ValueError(f"the model has scope {scope!r} and time {time!r}; pass it the batch's samples and frames")
        samples = samples if scope == "sample" else None
        if samples is not None:
            mask = samples.amax(1, keepdim=True) > torch.arange(K, device=samples.device)
        stream = Stream.dense(segment_ids, K, samples)
        _, pooled = self.model.encode(patches, coords, grids, stream, frames)
        return in_columns(self.model.head(pooled), stream, mask)


def _keys(batch: PackedBatch) -> list[str]:
    return [key for keys in batch.keys for key in keys]


def in_columns(values: torch.Tensor, stream: Stream, mask: torch.Tensor) -> torch.Tensor:
    """Put each unit's row of (N, D) at its place in `mask` (B, K); 0 without a unit."""
    placed = values.new_zeros(mask.numel() + 1, values.shape[1]).index_copy(0, stream.columns, values)[:-1]
    return placed.unflatten(0, mask.shape).masked_fill(~mask[..., None], 0)


def classification_loss(
    logits: torch.Tensor, batch: PackedBatch, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss summed over the labelled images, and their number, both 0-d; their quotient is the mean.

    Args:
        logits: (B, K, classes), the output of `NaViT` for `batch`.
        batch: int64 labels give softmax cross entropy; float32 labels (multi-label or soft) give sigmoid cross entropy
            summed over classes (Beyer et al., arXiv 2006.07159). -100, or a NaN target, means no label. For a model of
            scope "sample", give `batch.by_sample()`.
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
