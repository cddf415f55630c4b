"""What a model is made of: plain values, checked when they are given."""

from __future__ import annotations

from dataclasses import dataclass

from patchnpack.models.attention import attention_backend
from patchnpack.models.patch_embed import RESIZES
from patchnpack.models.pooling import GELUS, POOLINGS
from patchnpack.models.pos_embed import AXIAL, COMBINES, POSITIONS

_CHOICES = {
    "patch_resize": RESIZES,
    "position": POSITIONS,
    "position_combine": COMBINES,
    "position_resize": RESIZES,
    "pooling": POOLINGS,
    "gelu": GELUS,
    "last_norm": ("tokens", "pooled", "none"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class NaViTConfig:
    """What a `NaViT` is made of.

    Attributes:
        num_classes: outputs of the head; 0 is no head, so that the model gives pooled features.
        width: features of a token.
        depth: number of blocks.
        heads: attention heads; divides `width`.
        patch_size: side in pixels of the patches that the weights are for; batches of another size are embedded with
            the weights resized (`pi_resize`).
        patch_resize: how that is done, "bilinear" (FlexiViT) or "bicubic" (timm).
        channels: of a pixel; 3 for RGB.
        mlp_ratio: hidden width of an MLP over `width`.
        position: what tells where a token lies: "absolute", "fractional", "sinusoidal" or "fourier", all of
            `FactorizedPosEmbed`, "grid" (`GridPosEmbed`), "learned_grid" (`LearnedGridPosEmbed`), "mlp"
            (`CoordinateMLP`), or "rope" (`axial_rope`). All but "absolute" take any grid.
        position_combine: of the first four: columns and rows "add", "stack" or "product"; "auto" is "stack" for
            "sinusoidal", where the others could not tell columns from rows, and else "add".
        max_grid: patches a side that the tables of "absolute" hold.
        position_grid: rows a side of the tables of "fractional", "grid" and "learned_grid".
        position_resize: of "grid": "bilinear" or "bicubic", both with antialias.
        rope_base: of "rope".
        registers: tokens that each image is given more, learned and thrown away at the end (arXiv 2309.16588).
        pooling: how tokens become one vector: "attention", "mean", "max", or "cls", which adds a class token.
        last_norm: of the "tokens", of the "pooled" vector instead ("fc_norm" in timm), or "none".
        bias: whether linear layers and norms have biases; patch embedding and head always do.
        qkv_bias: the same for queries, keys and values; None is as `bias`.
        layer_scale: what LayerScale starts from (arXiv 2103.17239, section 2); None is without.
        gelu: of the MLPs: "erf", the exact one, or "tanh", its approximation, which flax and so big_vision compute.
        norm_eps: of every norm.
        qk_norm: whether queries and keys are normalised in each head (arXiv 2302.05442, section 2).
        drop_path: chance that an image skips a branch of the last block in training; less in earlier blocks, 0 in the
            first (stochastic depth; arXiv 1603.09382, section 3).
        mean, std: for each channel, or one value for all, on the scale where pixels are 0 to 1.
        backend: of `attention`: "auto", "split", "varlen", "flash", "flex" or "dense", with which shapes depend on the
            batch's alone.

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
    position: str = "absolute"
    position_combine: str = "auto"
    max_grid: int = 128
    position_grid: int = 16
    position_resize: str = "bilinear"
    rope_base: float = 10_000.0
    registers: int = 0
    pooling: str = "attention"
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
        for name in ("width", "depth", "heads", "patch_size", "channels", "max_grid", "position_grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        for name in ("norm_eps", "rope_base"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.registers < 0:
            raise ValueError(f"registers is {self.registers}; give the number of tokens, or 0 for none")
        if self.num_classes < 0:
            raise ValueError(f"num_classes is {self.num_classes}; give the number of classes, or 0 for no head")
        if rest := self.width % self.heads:
            low = self.width - rest
            remedy = f"choose a width of {low} or {low + self.heads}"
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; {remedy}")
        if self.position == "rope" and self.width // self.heads % 4:
            raise ValueError(
                f"width {self.width} over heads {self.heads} is {self.width // self.heads} features a head, but rope "
                f"turns pairs of them for rows and for columns; choose a width that is a multiple of {4 * self.heads}"
            )
        if self.position == "sinusoidal" and self.combine != "stack":
            raise ValueError(
                f"position_combine is {self.position_combine!r}; sinusoids are the same for columns and rows, so (x, y)"
                " and (y, x) would embed alike: choose 'stack'"
            )
        halves = (self.combine == "stack") + (self.position in ("sinusoidal", "fourier"))
        if self.position in AXIAL and self.width % 2**halves:
            raise ValueError(
                f"width {self.width} does not go evenly into position {self.position!r}, {self.combine!r}; "
                f"choose a multiple of {2**halves}"
            )
        if self.mlp_ratio * self.width < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} leaves no hidden unit at width {self.width}; 4 is usual")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; it must be at least 0 and less than 1")
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels; give one, or one each")
            object.__setattr__(self, name, values * (self.channels // len(values)))
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; every value must be above 0")
        if self.backend not in ("varlen", "flash"):  # whether those can run is known only where the tensors are
            attention_backend("cpu", backend=self.backend)

    @property
    def combine(self) -> str:
        """How columns and rows are combined: `position_combine`, and what "auto" stands for."""
        if self.position_combine != "auto":
            return self.position_combine
        return "stack" if self.position == "sinusoidal" else "add"
