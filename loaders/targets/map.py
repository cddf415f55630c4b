"""`Map`: values for each pixel that are measured, not counted: depth, heat, flow, normals."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from patchnpack.loaders.imaging.user_decode import check_decode
from patchnpack.loaders.imaging.values.bands import resize_values
from patchnpack.loaders.targets.dense import DecodeTarget, Values, nearest, placed_values, read_values
from patchnpack.loaders.targets.target import Read, Source, bad_target, check_member, check_upright
from patchnpack.loaders.targets.tokens import cut, means
from patchnpack.packer.checks import check_choice, check_real, check_whole
from patchnpack.packer.config import Interpolation
from patchnpack.packer.dtypes import Dtype, as_dtype
from patchnpack.packer.geometry import Geometry

# B packs in a batch, L slots in a pack, P patch size, C values per pixel, h rows, w columns


@dataclass(frozen=True)
class Map:
    """Values for each pixel of an image, resized with its own filter: depth, heat, flow, normals.

    `batch.targets` holds (B, L, P*P*C), in the order of the pixels of `batch.patches`, or (B, L, C) with `per_token`.
    Values are those of the file, neither scaled nor changed by the flip of an image: a `transform` of three arguments
    can turn vectors.

    Attributes:
        member: the member of the sample that holds the map: "depth.png", "flow.npy". Of a data set, the field of an
            item: a PIL image, an array (height, width) or (height, width, C), or encoded bytes.
        channels: C, values per pixel.
        dtype: of the batch: "float32", "uint8", "uint16" or "int16".
        fill: the value of padding, and of what lies beyond the image.
        interpolation: PIL's name of the resizing filter; None is that of `Packing`. With "nearest", values may be NaN;
            otherwise NaN makes an image bad, since filters spread it.
        per_token: "mean" gives each token the mean of its pixels, without what lies beyond the image; None gives all
            pixels.
        upright: whether the map is upright although its image is stored in another orientation, as for `Mask`.
        decode: a function from the bytes of the file to an array (height, width, C), for files that are read in no
            other way.

    Raises:
        ValueError: a value of the wrong type or out of range.

    >>> Map("depth.png", dtype="uint16", fill=-1)
    Traceback (most recent call last):
        ...
    ValueError: fill is -1, which dtype 'uint16' does not hold; give a whole number from 0 to 65535, or another dtype
    """

    member: str
    channels: int = field(default=1, kw_only=True)
    dtype: Dtype = field(default="float32", kw_only=True)
    fill: float = field(default=0.0, kw_only=True)
    interpolation: Interpolation | None = field(default=None, kw_only=True)
    per_token: Literal["mean"] | None = field(default=None, kw_only=True)
    upright: bool = field(default=False, kw_only=True)
    decode: DecodeTarget | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_member("member", self.member, path=False)
        check_whole("channels", self.channels)
        check_choice("dtype", self.dtype, get_args(Dtype))
        if self.fill == self.fill or self.dtype != "float32":  # NaN may mark what lies beyond an image
            check_real("fill", self.fill)
        if self.dtype != "float32":
            ends = np.iinfo(self.dtype)
            if self.fill != int(self.fill) or not ends.min <= self.fill <= ends.max:
                raise ValueError(
                    f"fill is {self.fill}, which dtype {self.dtype!r} does not hold; give a whole number from "
                    f"{ends.min} to {ends.max}, or another dtype"
                )
        if self.interpolation is not None:
            check_choice("interpolation", self.interpolation, get_args(Interpolation))
        if self.per_token is not None:
            check_choice("per_token", self.per_token, ("mean",))
        check_upright(self.upright)
        check_decode(self.decode)

    def member_fields(self) -> tuple[str, ...]:
        """Return the fields that name members."""
        return ("member",)

    def decoded(self, read: Read, source: Source) -> Values:
        """Return the map of a whole image. Raises BadImage."""
        values = read_values(read, self.member, source, self.decode, upright=self.upright, indices=False)
        return values._replace(array=self._checked(values.array))

    def placed(self, decoded: Values, source: Source, geometry: Geometry, interpolation: Interpolation) -> np.ndarray:
        """Return the map of the sized and mirrored image, (h, w, C)."""
        filter = self.interpolation or interpolation
        resize = functools.partial(resize_values, interpolation=filter)
        return placed_values(decoded, source, geometry, nearest if filter == "nearest" else resize)

    def shape(self, patch_size: int) -> tuple[int, ...]:
        """Return the shape of a token's values."""
        return (self.channels,) if self.per_token else (patch_size * patch_size * self.channels,)

    def write(
        self, value: np.ndarray, geometry: Geometry, coords: np.ndarray, out: np.ndarray, first: int, keep: int
    ) -> None:
        """Write the kept tokens of a map (h, w, C) to their slots; see `tokens.cut`."""
        if self.per_token:
            kept = slice(first, first + keep)
            out[kept] = means(value, geometry, self.fill, coords[kept])
        else:
            cut(value, geometry, self.fill, coords, out, first, keep)

    def _checked(self, array: np.ndarray) -> np.ndarray:
        """Return the values of a file as `dtype`."""
        reason = None
        if array.shape[2] != self.channels:
            reason = (
                f"it has {array.shape[2]} channels, and Map asks for {self.channels}; give channels={array.shape[2]}"
            )
        elif array.dtype.kind == "f" and self.interpolation != "nearest" and not np.isfinite(array).all():
            y, x, _ = np.unravel_index(int((~np.isfinite(array)).argmax()), array.shape)
            reason = (
                f"it holds NaN or infinity, first at ({x}, {y}), which filters spread; give "
                "Map(interpolation='nearest') and mask them in the loss, or replace them"
            )
        else:
            try:
                return as_dtype(array, self.dtype)
            except ValueError as error:
                reason = f"{error}; give another dtype"
        raise bad_target(f"its .{self.member} member cannot be used: {reason}")
