"""`NaViTConfig`: the configuration of a model, validated on construction."""

from __future__ import annotations

import math
from dataclasses import dataclass

from patchnpack.models.attention import attention_backend
from patchnpack.models.patch_embed import RESIZES
from patchnpack.models.pooling import GELUS, POOLINGS
from patchnpack.models.pos_embed import AXIAL, COMBINES, POSITIONS

_LEAST = dict.fromkeys(("width", "depth", "heads", "patch_size", "channels", "max_grid", "max_frames"), 1)
_LEAST["registers"] = 0
_CHOICES = {
    "patch_resize": RESIZES,
    "position": POSITIONS,
    "position_combine": COMBINES,
    "position_resize": RESIZES,
    "pooling": POOLINGS,
    "gelu": GELUS,
    "last_norm": ("tokens", "pooled", "none"),
    "block_norm": ("pre", "res_post"),
    "scope": ("image", "sample"),
    "time": ("none", "learned", "sinusoidal", "rope"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class NaViTConfig:
    """Configuration of a `NaViT`.

    Attributes:
        num_classes: outputs of the head; 0 means no head, so that the model returns pooled features.
        width: features per token.
        depth: number of blocks.
        heads: number of attention heads; must divide `width`.
        patch_size: patch side in pixels of the embedding weights; for batches of another patch size the weights are
            resized (`pi_resize`).
        patch_resize: resize of the embedding weights: "bilinear" (FlexiViT) or "bicubic" (timm).
        channels: channels per pixel; 3 for RGB.
        mlp_ratio: hidden width of the MLPs over `width`.
        position: position embedding: "absolute", "fractional", "sinusoidal" or "fourier" (`FactorizedPosEmbed`), "grid"
            (`GridPosEmbed`), "learned_grid" (`LearnedGridPosEmbed`), "mlp" (`CoordinateMLP`), or "rope" (`axial_rope`).
            All except "absolute" support any grid. Several, such as ("learned_grid", "mlp"), are added.
        position_combine: combination of columns and rows in `FactorizedPosEmbed`: "add", "stack" or "product". "auto"
            is "stack" for "sinusoidal", where the others could not distinguish columns from rows, and "add" otherwise.
        max_grid: patches per side in the tables of "absolute".
        position_grid: entries per side in the tables of "fractional", "grid" and "learned_grid", or (rows, columns).
        position_resize: interpolation of "grid": "bilinear" or "bicubic".
        position_antialias: whether resizing the table of "grid" to fewer entries averages over those that a patch
            covers.
        position_align_corners: whether the corner entries of "grid" and "learned_grid" lie on the corner patches, as in
            `F.interpolate(align_corners=True)`; "grid" requires `position_antialias=False`.
        position_keep_aspect: whether positions relative to the sides are taken in a square around the image, anchored
            at its upper left corner; "absolute" and "rope" are not relative. Requires a square `position_grid`.
        rope_base: base of the frequencies of "rope".
        scope: what a token attends to, and what is pooled: its "image", or all images of its "sample".
        time: position of a frame in its sample: "none", "learned" (a table), "sinusoidal", or "rope" (`axial_rope`).
        max_frames: frames in the table of "learned".
        registers: learned extra tokens per image or sample, discarded at the end (arXiv 2309.16588).
        pooling: reduction of tokens to one vector: "attention", "mean", "max", or "cls", which adds a class token.
        block_norm: "pre" normalises the input of each branch of a block; "res_post" normalises its output (Swin V2,
            arXiv 2111.09883, section 3.2).
        last_norm: input of the last norm: "tokens", the "pooled" vector ("fc_norm" in timm), or "none".
        bias: whether linear layers and norms have biases; the patch embedding and the head always do.
        qkv_bias: whether queries, keys and values have biases; None follows `bias`.
        layer_scale: initial value of LayerScale (arXiv 2103.17239, section 2); None disables it.
        gelu: GELU of the MLPs: "erf" (exact) or "tanh" (the approximation that flax, and so big_vision, computes).
        norm_eps: epsilon of every norm.
        qk_norm: whether queries and keys are normalised per head (arXiv 2302.05442, section 2).
        drop_path: probability that an image, or sample, skips a branch of the last block in training; it falls linearly
            to 0 in the first block (stochastic depth; arXiv 1603.09382, section 3).
        mean, std: one value per channel, or one for all, in the units of the pixels; of uint8, where they are 0 to 1.
        backend: backend of `attention`: "auto", "split", "varlen", "flash", "flex", or "dense", with which shapes
            depend only on those of the batch.

    >>> NaViTConfig(num_classes=10, width=100, heads=3)
    Traceback (most recent call last):
    ValueError: width 100 is not a multiple of heads 3; choose a width of 99 or 102
    """

    num_classes: int
    width: int = 192
    depth: int = 6
    heads: int = 3
    patch_size: int = 16
    patch_resize: str = "bilinear"
    channels: int = 3
    mlp_ratio: float = 4.0
    position: str | tuple[str, ...] = "absolute"
    position_combine: str = "auto"
    max_grid: int = 128
    position_grid: int | tuple[int, int] = 16
    position_resize: str = "bilinear"
    position_antialias: bool = True
    position_align_corners: bool = False
    position_keep_aspect: bool = False
    rope_base: float = 10_000.0
    scope: str = "image"
    time: str = "none"
    max_frames: int = 64
    registers: int = 0
    pooling: str = "attention"
    block_norm: str = "pre"
    last_norm: str = "tokens"
    bias: bool = False
    qkv_bias: bool | None = None
    layer_scale: float | None = None
    gelu: str = "erf"
    norm_eps: float = 1e-5
    qk_norm: bool = True
    drop_path: float = 0.0
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.num_classes < 0:
            raise ValueError(f"num_classes is {self.num_classes}; give the number of classes, or 0 for no head")
        self._check_positions()
        for name, choices in _CHOICES.items():
            for value in self.positions if name == "position" else (getattr(self, name),):
                if value not in choices:
                    raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
        for name in ("norm_eps", "rope_base"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if rest := self.width % self.heads:
            low = self.width - rest
            remedy = f"choose a width of {low} or {low + self.heads}"
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; {remedy}")
        multiple = (4 if "rope" in self.positions else 1) * (2 if self.time == "rope" else 1)
        if self.width // self.heads % multiple:
            raise ValueError(
                f"width {self.width} over heads {self.heads} is {self.width // self.heads} features per head, but rope "
                f"rotates pairs of features on each axis; choose a width that is a multiple of {multiple * self.heads}"
            )
        if self.time == "rope" and self.scope == "image":
            raise ValueError(
                "time is 'rope' with scope 'image', where tokens attend to one frame only, so that rotating by frame "
                "changes nothing; set scope='sample', or another time"
            )
        if self.time == "sinusoidal" and self.width % 2:
            raise ValueError(f"width {self.width} is odd, but time 'sinusoidal' needs an even one; choose 'learned'")
        if "sinusoidal" in self.positions and self.combine("sinusoidal") != "stack":
            raise ValueError(
                f"position_combine is {self.position_combine!r}; sinusoids are the same for columns and rows, so (x, y)"
                " and (y, x) would get equal embeddings: choose 'stack'"
            )
        for kind in set(self.positions) & set(AXIAL):
            halves = (self.combine(kind) == "stack") + (kind in ("sinusoidal", "fourier"))
            if self.width % 2**halves:
                raise ValueError(
                    f"width {self.width} cannot be split evenly for position {kind!r} with {self.combine(kind)!r}; "
                    f"choose a multiple of {2**halves}"
                )
        if self.mlp_ratio * self.width < 1:
            raise ValueError(
                f"mlp_ratio {self.mlp_ratio} leaves no hidden unit at width {self.width}; use a larger one, usually 4"
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; it must be at least 0 and less than 1")
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) not in (1, self.channels):
                raise ValueError(
                    f"{name} has {len(values)} values for {self.channels} channels; give one value, or one per channel"
                )
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{name} is {values}; every value must be a finite number")
            object.__setattr__(self, name, values * (self.channels // len(values)))
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; every value must be above 0: `patchnpack stats SHARDS` prints both")
        if self.backend not in ("varlen", "flash"):  # these depend on the device of the tensors
            attention_backend("cpu", backend=self.backend)

    def _check_positions(self) -> None:
        kinds = self.positions
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError(f"position is {self.position!r}; give one, or several different ones, which are added")
        object.__setattr__(self, "position", kinds[0] if len(kinds) == 1 else kinds)  # one spelling of a single one
        grid = self.position_grid if isinstance(self.position_grid, int) else tuple(self.position_grid)
        rows, columns = shape = (grid, grid) if isinstance(grid, int) else (*grid, 0)[:2]
        if (not isinstance(grid, int) and len(grid) != 2) or min(shape) < 1:
            raise ValueError(f"position_grid is {grid}; give one number, or (rows, columns), each at least 1")
        object.__setattr__(self, "position_grid", rows if rows == columns else shape)  # one spelling of a square
        aligned = not self.position_antialias if "grid" in kinds else "learned_grid" in kinds
        if self.position_align_corners and not aligned:
            raise ValueError(
                f"position_align_corners is set with position {self.position!r} and position_antialias "
                f"{self.position_antialias}; it needs position 'grid' and position_antialias=False, since torch's own "
                "antialiased resize with align_corners misplaces rows, or 'learned_grid'"
            )
        if self.position_keep_aspect and (set(kinds) <= {"absolute", "rope"} or rows != columns):
            raise ValueError(
                f"position_keep_aspect is set with position {self.position!r} and position_grid {grid}; it needs "
                "positions relative to the sides and a square table: choose 'grid' or 'fractional', and one number"
            )

    @property
    def position_shape(self) -> tuple[int, int]:
        """Rows and columns of the position table."""
        grid = self.position_grid
        return (grid, grid) if isinstance(grid, int) else grid

    @property
    def positions(self) -> tuple[str, ...]:
        """The position embeddings that are added."""
        return (self.position,) if isinstance(self.position, str) else tuple(self.position)

    def combine(self, kind: str) -> str:
        """Combination of columns and rows in position `kind`: `position_combine` with "auto" resolved."""
        if self.position_combine != "auto":
            return self.position_combine
        return "stack" if kind == "sinusoidal" else "add"
