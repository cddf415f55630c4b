"""`Packing`: the configuration of packed sequences."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from patchnpack.packer.binpacking.algorithms import CHOICES, Algorithm
from patchnpack.packer.binpacking.pricing.prices import Prices
from patchnpack.packer.checks import check_choice, check_flag, check_real, check_whole, shown
from patchnpack.packer.convert import Convert, check_convert
from patchnpack.packer.dtypes import DTYPES, Dtype
from patchnpack.packer.policies.frames import Frames
from patchnpack.packer.policies.patch_sizes import PatchSizes
from patchnpack.packer.policies.resolution import Native, Resolution, Square
from patchnpack.packer.policies.sampled_resolution import RESOLUTIONS, ScheduledResolution
from patchnpack.packer.policies.token_drop import (
    BetaDrop,
    ComplexityDrop,
    ConstantDrop,
    DropToTokens,
    NoDrop,
    ResolutionDrop,
    ScheduledDrop,
    TokenDrop,
)
from patchnpack.packer.policies.views import Views

TOKEN_DROPS = (NoDrop, ConstantDrop, BetaDrop, ResolutionDrop, ComplexityDrop, DropToTokens, ScheduledDrop)

_PRICED_BY = ("algorithm", "seq_len", "patch_size")

Fill = Literal["none", "undrop", "trim", "rescale"]
Oversize = Literal["shrink", "drop", "skip", "error"]
Undersize = Literal["pad", "skip", "error"]
Scope = Literal["image", "sample"]
Select = Literal["random", "detail"]
ImageMode = Literal["L", "RGB", "RGBA"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

_WHOLE = {"seq_len": 1, "lookahead": 1, "max_images": 1, "grid_multiple": 1, "balance": 0}  # the least of each
_CHOICES: dict[str, tuple[str, ...]] = {
    "oversize": get_args(Oversize),
    "undersize": get_args(Undersize),
    "algorithm": get_args(Algorithm),
    "fill": get_args(Fill),
    "scope": get_args(Scope),
    "select": get_args(Select),
    "image_mode": get_args(ImageMode),
    "interpolation": get_args(Interpolation),
    "dtype": DTYPES,
}
_COLOR_MODES: dict[int, ImageMode] = {len(mode): mode for mode in get_args(ImageMode)}
_SHARE = "a share above 0 and at most 0.5"
_PROBABILITY = "a probability from 0 to 1, such as 0.5"
_REALS = {"max_trim": _SHARE, "max_scale": _SHARE, "flip": _PROBABILITY, "vflip": _PROBABILITY}


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """The configuration of packed sequences. Immutable; `replace` makes a changed copy.

    Attributes:
        seq_len: L, token slots per pack.
        patch_size: P, side of a square patch in pixels, or `PatchSizes`: one size per block of packs.
        resolution: policy for the size of each image: `Native`, `FitTokens`, `SampleSide`, `RandomResizedCrop`,
            `Square` or `ScheduledResolution`.
        oversize: treatment of a sample that has more than L tokens after token drop: shrink its images by one scale
            ("shrink"), drop more of their tokens ("drop"), skip and count it ("skip"), or raise ValueError ("error").
            Of more than K images, "drop" uses K, evenly spaced; "shrink" raises ValueError.
        undersize: treatment of an image smaller than a patch, both sides shorter than P x `grid_multiple` pixels (with
            `Native(edge="crop")`, either side): give it one patch, as `resolution` does with a single short side
            ("pad"; policies that resize enlarge it), skip and count its sample ("skip"), or raise ValueError ("error").
            With `PatchSizes`, the largest size decides.
        token_drop: policy for how many tokens each image loses: `NoDrop`, `ConstantDrop`, `BetaDrop`, `ResolutionDrop`,
            `ComplexityDrop`, `DropToTokens` or `ScheduledDrop`.
        select: how the kept tokens are chosen: "random" chooses at random, "detail" keeps the tokens whose pixels have
            the largest variance, which is computed after decoding.
        frames: which images of each sample are used, as `Frames`; None uses all.
        views: several images of each picture, as `Views`, which then sizes them instead of `resolution`; None makes
            one.
        flip, vflip: probability that an image is mirrored left-right, and top-bottom, after resizing. All frames of a
            sample are mirrored alike; each view has its own draw.
        algorithm: packing algorithm: "next_fit", "first_fit", "best_fit", "first_fit_decreasing",
            "best_fit_decreasing", "largest_fit", "subset_sum", "priced", or "auto", which chooses one of the last
            three.
        lookahead: R, number of waiting samples that the packer chooses from.
        max_images: K, maximum images per pack.
        fill: use of leftover slots. "none" leaves them empty; "undrop" gives them back to images of the same pack whose
            tokens were dropped. "trim" and "rescale" also let an image that is slightly too long close a pack: "trim"
            drops the excess evenly from all images of the pack, "rescale" makes images slightly smaller or larger;
            slots still left are given back as by "undrop".
        max_trim: largest share of an image's tokens that "trim" drops.
        max_scale: largest change of an image's sides by "rescale", as a share.
        balance: window, in packs, within which a shuffling loader groups packs of similar attention cost, so that the
            ranks of a step wait less for each other; 0 is off.
        scope: what a token attends to in the model, its "image" or its "sample"; decides the attention cost of a pack.
        grid_multiple: both sides of a grid are multiples of this (2 for models that merge 2x2 tokens).
        image_mode: "RGB", "L" (grey) or "RGBA": the 8-bit colours that images are converted to, by PIL's rules.
        channels: C, values per pixel; None is that of `image_mode`. With "uint8" and 1, 3 or 4, it sets `image_mode`.
            With any other number or `dtype`, pixels are the values of the file, band by band and without a change: see
            `by_bands`.
        dtype: type of the values, "uint8", "uint16", "int16" or "float32".
        convert: how an image of another depth or number of bands becomes one of `channels` and `dtype`: "scale" (full
            range to full range), "window:LOW:HIGH" (these values to the range from 0 on, clipped), "exact" (the same
            values, where `dtype` holds them), or a function from values (height, width, bands) to the result; see
            `packer.convert.converted`. None makes it a bad image. Images that need no conversion are not changed.
        interpolation: PIL's name of the filter that resizes images.
        scaled_decode: decode a JPEG that will be shrunk at least twofold at a lower scale, which is faster.
        prices: price of each token count for "priced", one `Prices` per patch size. None, the default, computes them
            once, from the images' token counts; a loader's `packing` holds the result.

    Raises:
        ValueError: a value is out of range; the message names the limit.

    >>> Packing(seq_len=256, patch_size=32).replace(seq_len=512).seq_len
    512
    """

    seq_len: int = 1024
    patch_size: int | PatchSizes = 16
    resolution: Resolution = field(default_factory=Native)
    oversize: Oversize = "shrink"
    undersize: Undersize = "pad"
    token_drop: TokenDrop = field(default_factory=NoDrop)
    select: Select = "random"
    frames: Frames | None = None
    views: Views | None = None
    flip: float = 0.0
    vflip: float = 0.0
    algorithm: Algorithm = "auto"
    lookahead: int = 256
    max_images: int = 64
    fill: Fill = "undrop"
    max_trim: float = 0.05
    max_scale: float = 0.05
    balance: int = 256
    scope: Scope = "image"
    grid_multiple: int = 1
    image_mode: ImageMode = "RGB"
    channels: int = None  # type: ignore[assignment]  # set from image_mode
    dtype: Dtype = "uint8"
    convert: Convert | None = None
    interpolation: Interpolation = "bicubic"
    scaled_decode: bool = True
    prices: tuple[Prices, ...] | None = None

    def __post_init__(self) -> None:
        self._check_types()
        if self.fill in ("trim", "rescale") and self.algorithm not in ("auto", *CHOICES):
            raise ValueError(
                f"fill is {self.fill!r} and algorithm is {self.algorithm!r}, which does not choose among waiting "
                f"images; use algorithm='auto', {', '.join(map(repr, CHOICES[:-1]))} or {CHOICES[-1]!r}"
            )
        self._check_prices()
        self._check_samples()
        if self.fill == "rescale" and isinstance(self.resolution, Square | ScheduledResolution):
            raise ValueError(
                f"fill is 'rescale' and resolution is {self.resolution}, whose sizes are fixed; use fill='trim'"
            )
        if self.grid_multiple**2 > self.seq_len:
            raise ValueError(
                f"grid_multiple {self.grid_multiple} makes every image at least {self.grid_multiple**2} tokens, "
                f"more than seq_len {self.seq_len}; raise seq_len"
            )
        # Sizes that no image can take, such as a Square that is not a multiple of the patch size, are refused now.
        for policy in self.size_policies:
            stages = policy.stages if isinstance(policy, ScheduledResolution) else ((0, policy),)
            for _, each in stages:
                for patch_size in self.patch_sizes:
                    self._check_smallest(each, patch_size)

    def _check_types(self) -> None:
        """Check each field by itself, and store numpy's numbers as Python's, so that equal settings look equal."""
        for name, least in _WHOLE.items():
            check_whole(name, getattr(self, name), least)
            object.__setattr__(self, name, int(getattr(self, name)))
        if not isinstance(self.patch_size, PatchSizes):
            object.__setattr__(self, "patch_size", _checked_patch_size(self.patch_size))
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name, types, meant in (
            ("resolution", RESOLUTIONS, _meant_resolution),
            ("token_drop", TOKEN_DROPS, _meant_token_drop),
        ):
            if not isinstance(value := getattr(self, name), types):
                raise ValueError(
                    f"{name} is {shown(value)}; it must be one of {', '.join(t.__name__ + '(...)' for t in types)}"
                    f"{meant(value)}"
                )
        for name, wanted in _REALS.items():
            value = getattr(self, name)
            check_real(name, value, wanted)
            if not (0 < value <= 0.5 if wanted is _SHARE else 0 <= value <= 1):
                raise ValueError(f"{name} is {value!r}; it must be {wanted}")
            object.__setattr__(self, name, float(value))
        self._check_pixels()
        check_flag("scaled_decode", self.scaled_decode)
        object.__setattr__(self, "scaled_decode", bool(self.scaled_decode))

        for name, kind, example in (
            ("frames", Frames, "Frames(8)"),
            ("views", Views, "Views((2, RandomResizedCrop(max_tokens=196)))"),
        ):
            if (given := getattr(self, name)) is not None and not isinstance(given, kind):
                raise ValueError(
                    f"{name} is {shown(given)}; it must be {kind.__name__}(...), such as {example}, or None"
                )

    def _check_pixels(self) -> None:
        """Check `channels` and `convert`, and let `channels` and `image_mode` agree where they can."""
        check_convert(self.convert)
        given: object = self.channels
        if given is None:
            object.__setattr__(self, "channels", len(self.image_mode))
            return
        check_whole("channels", given)
        channels = int(self.channels)
        object.__setattr__(self, "channels", channels)
        if self.dtype != "uint8" or channels == len(self.image_mode):
            return
        if self.image_mode != "RGB":
            raise ValueError(
                f"channels is {channels} and image_mode is {self.image_mode!r}, which has {len(self.image_mode)}; give "
                "only one of them"
            )
        if channels in _COLOR_MODES:
            object.__setattr__(self, "image_mode", _COLOR_MODES[channels])

    def _check_samples(self) -> None:
        """Refuse frames and views that contradict other fields."""
        views = 1 if self.views is None else self.views.count
        frames = 1 if self.frames is None else self.frames.count
        if self.views is not None and self.resolution != Native():
            raise ValueError(
                f"views and resolution={self.resolution} are both given; each group of views has its own policy: leave "
                "resolution out"
            )
        if frames * views > self.most_images:
            both = " x ".join(
                [f"{frames} frames"] * (self.frames is not None) + [f"{views} views"] * (self.views is not None)
            )
            name, limit = (
                ("max_images", self.max_images) if self.max_images <= self.seq_len else ("seq_len", self.seq_len)
            )
            raise ValueError(
                f"{both} are {frames * views} images per sample, more than {name} {limit}, and a sample stays in one "
                f"pack; raise {name}, or use fewer {'views' if views > 1 else 'frames'}"
            )
        if self.fill == "rescale" and frames * views > 1:
            raise ValueError(
                "fill is 'rescale', which changes sizes image by image, and samples have several images; use "
                "fill='trim'"
            )

    def _check_prices(self) -> None:
        prices: object = self.prices
        if prices is None:
            return
        if self.algorithm != "priced":
            raise ValueError(
                f"prices are given and algorithm is {self.algorithm!r}; only algorithm='priced' uses prices: leave "
                "them out"
            )
        if not isinstance(prices, tuple) or not all(isinstance(table, Prices) for table in prices):
            raise ValueError(f"prices is {prices!r}; it must be a tuple of Prices, one per patch size, or None")
        if len(prices) != len(self.patch_sizes):
            raise ValueError(
                f"there are {len(prices)} prices for {len(self.patch_sizes)} patch sizes; give one Prices per size"
            )

    def _check_smallest(self, policy: Resolution, patch_size: int) -> None:
        """Try `policy` on the smallest possible image."""
        unit, key = patch_size * self.grid_multiple, np.zeros(1, np.uint64)
        sizes = policy.sizes(np.array([unit]), np.array([unit]), patch_size, self.grid_multiple, keys=key)
        tokens = int(sizes.grid.prod())
        if (
            isinstance(policy, Square)
            and tokens > self.seq_len
            and self.oversize != "drop"
            and isinstance(self.token_drop, NoDrop)
        ):
            largest = math.isqrt(self.seq_len) // self.grid_multiple * unit
            raise ValueError(
                f"Square({policy.size}) makes every image {tokens} tokens, more than seq_len {self.seq_len}; use "
                f"Square({largest}), raise seq_len, or choose oversize='drop'"
            )

    @property
    def can_follow_patterns(self) -> bool:
        """Whether "priced" follows the patterns of the whole where the lookahead holds all images.

        Patterns know nothing of blocks of one patch size, nor of images that are cut to close a pack.
        """
        return isinstance(self.patch_size, int) and self.fill not in ("trim", "rescale")

    @property
    def most_images(self) -> int:
        """Images that a sample has at most: they share one pack, and each keeps at least one token."""
        return min(self.max_images, self.seq_len)

    @property
    def size_policies(self) -> tuple[Resolution, ...]:
        """The policies that size images: `resolution`, or one per group of `views`."""
        return (self.resolution,) if self.views is None else self.views.policies

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        """The possible patch sizes of a pack, in pixels."""
        return tuple(self.patch_size.sizes) if isinstance(self.patch_size, PatchSizes) else (self.patch_size,)

    @property
    def by_bands(self) -> bool:
        """Whether pixels are the values of the file, band by band, instead of 8-bit colours.

        >>> Packing(channels=1).by_bands, Packing(channels=5).by_bands, Packing(dtype="uint16").by_bands
        (False, True, True)
        """
        return self.dtype != "uint8" or self.channels != len(self.image_mode)

    def token_bytes(self, patch_size: int) -> int:
        """Bytes per token at a patch size: P*P*C values of `dtype`."""
        return patch_size**2 * self.channels * np.dtype(self.dtype).itemsize

    def summary(self) -> str:
        """The sequence length, the patch size and whatever differs from the defaults, without prices.

        >>> Packing(seq_len=256, max_images=32).summary()
        'seq_len=256, patch_size=16, max_images=32'
        """
        default = Packing()
        shown_always = ("seq_len", "patch_size")
        return ", ".join(
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if f.name != "prices"
            and (f.name != "channels" or self.by_bands)
            and (f.name in shown_always or getattr(self, f.name) != getattr(default, f.name))
        )

    def replace(self, **changes: Any) -> Packing:
        """A copy with the given fields changed and validated.

        Prices belong to an algorithm, a sequence length and patch sizes: where one of these changes, they are left out
        unless they are given.
        """
        if any(name in changes and changes[name] != getattr(self, name) for name in _PRICED_BY):
            changes = {"prices": None} | changes
        if "channels" in changes:
            changes = {"image_mode": "RGB"} | changes
        elif "image_mode" in changes:
            changes = changes | {"channels": None}
        return dataclasses.replace(self, **changes)


def _checked_patch_size(given: object) -> int:
    """Return a single patch size as an int; ValueError, with what was probably meant, for anything else."""
    sizes = given.tolist() if isinstance(given, np.ndarray) else given
    if isinstance(sizes, tuple | list | set | range):
        several = tuple(dict.fromkeys(sizes))
        if len(several) == 1:
            raise ValueError(f"patch_size is {shown(given)}; patches are square: give the side, {several[0]}")
        raise ValueError(
            f"patch_size is {shown(given)}; patches are square: give one side, such as 16. To draw one of several "
            f"sizes for each block of packs, give PatchSizes({several})"
        )
    if isinstance(given, type) and issubclass(given, PatchSizes):
        raise ValueError("patch_size is the class PatchSizes; call it, for example PatchSizes((8, 16, 32))")
    check_whole("patch_size", given)
    return int(given)  # type: ignore[call-overload, no-any-return]  # check_whole has checked it


def _meant_resolution(value: object) -> str:
    """Return a suggestion for a wrong `resolution`, "" where there is none."""
    if isinstance(value, type):
        return f": call the class, {value.__name__}(...)" if issubclass(value, RESOLUTIONS) else ""
    if isinstance(value, tuple | list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value > 0:
        return f": for squares of {value} pixels give Square({value})"
    name = value.partition(":")[0] if isinstance(value, str) else "native" if value is None else ""
    known = {"native": "Native()", "fit": "FitTokens(max_tokens)", "naflex": "FitTokens(max_tokens, upsample=True)"}
    return f": give {known[name]}" if name in known else ""


def _meant_token_drop(value: object) -> str:
    """Return a suggestion for a wrong `token_drop`, "" where there is none."""
    if isinstance(value, type):
        return f": call the class, {value.__name__}(...)" if issubclass(value, TOKEN_DROPS) else ""
    if value is None or (isinstance(value, int | float) and value == 0):
        return ": to keep all tokens give NoDrop()"
    if isinstance(value, float) and 0 < value < 1:
        return f": to drop this share of each image's tokens give ConstantDrop({value})"
    return ""
