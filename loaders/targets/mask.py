"""`Mask`: a class, or an instance, for each pixel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from patchnpack.loaders.imaging.user_decode import check_decode
from patchnpack.loaders.targets.dense import DecodeTarget, Values, nearest, placed_values, read_values
from patchnpack.loaders.targets.target import Read, Source, bad_target, check_member, check_upright
from patchnpack.loaders.targets.tokens import cut, majority
from patchnpack.packer.checks import check_choice, check_whole
from patchnpack.packer.config import Interpolation
from patchnpack.packer.geometry import Geometry

# B packs in a batch, L slots in a pack, P patch size, h rows, w columns

MaskType = Literal["uint8", "int16", "uint16", "int32", "int64"]


@dataclass(frozen=True)
class Mask:
    """A label map: one whole number per pixel of an image, resized by nearest neighbour.

    `batch.targets` holds (B, L, P*P), in the order of the pixels of `batch.patches`, or (B, L) with `per_token`. The
    file may be grey of any depth, with a palette (whose indices count), of 1 bit (0 and 1), or an array (.npy); its
    size is that of the image.

    Attributes:
        member: the member of the sample that holds the mask: "seg.png". Of a data set, the field of an item: a PIL
            image, an array (height, width) or encoded bytes.
        fill: the value of padding, and of what lies beyond the image.
        dtype: of the batch: "uint8", "int16", "uint16", "int32" or "int64".
        num_classes: values are below it, or `fill`; None does not check them.
        per_token: "majority" gives each token the most frequent of its pixels' values (of equally frequent ones the
            smallest, and without what lies beyond the image); None gives all pixels.
        upright: whether the mask is upright although its image is stored in another orientation. Otherwise the EXIF
            orientation of the image turns the mask, too, unless the mask has an orientation of its own.
        decode: a function from the bytes of the file to whole numbers (height, width), for files that are read in no
            other way, such as colours that stand for classes.

    Raises:
        ValueError: a value of the wrong type or out of range.

    >>> Mask("seg.png", fill=300)
    Traceback (most recent call last):
        ...
    ValueError: fill is 300, which dtype 'uint8' does not hold; give 0 to 255, or another dtype
    """

    member: str
    fill: int = field(default=255, kw_only=True)
    dtype: MaskType = field(default="uint8", kw_only=True)
    num_classes: int | None = field(default=None, kw_only=True)
    per_token: Literal["majority"] | None = field(default=None, kw_only=True)
    upright: bool = field(default=False, kw_only=True)
    decode: DecodeTarget | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_member("member", self.member, path=False)
        check_choice("dtype", self.dtype, get_args(MaskType))
        ends = np.iinfo(self.dtype)
        check_whole("fill", self.fill, least=-(1 << 63))
        if not ends.min <= self.fill <= ends.max:
            raise ValueError(
                f"fill is {self.fill}, which dtype {self.dtype!r} does not hold; give {ends.min} to {ends.max}, or "
                "another dtype"
            )
        if self.num_classes is not None:
            check_whole("num_classes", self.num_classes)
        if self.per_token is not None:
            check_choice("per_token", self.per_token, ("majority",))
        check_upright(self.upright)
        check_decode(self.decode)

    def member_fields(self) -> tuple[str, ...]:
        """Return the fields that name members."""
        return ("member",)

    def decoded(self, read: Read, source: Source) -> Values:
        """Return the mask of a whole image. Raises BadImage."""
        values = read_values(read, self.member, source, self.decode, upright=self.upright, indices=True)
        return values._replace(array=self._checked(values.array))

    def placed(self, decoded: Values, source: Source, geometry: Geometry, interpolation: Interpolation) -> np.ndarray:
        """Return the mask of the sized and mirrored image, (h, w)."""
        return placed_values(decoded, source, geometry, nearest)[..., 0]

    def shape(self, patch_size: int) -> tuple[int, ...]:
        """Return the shape of a token's values."""
        return () if self.per_token else (patch_size * patch_size,)

    def write(
        self, value: np.ndarray, geometry: Geometry, coords: np.ndarray, out: np.ndarray, first: int, keep: int
    ) -> None:
        """Write the kept tokens of a mask (h, w) to their slots; see `tokens.cut`."""
        if self.per_token:
            kept = slice(first, first + keep)
            out[kept] = majority(value[..., None], geometry, self.fill, coords[kept])
        else:
            cut(value[..., None], geometry, self.fill, coords, out, first, keep)

    def _checked(self, array: np.ndarray) -> np.ndarray:
        """Return the values of a file as `dtype`."""
        reason, (bands, kind) = None, (array.shape[2], array.dtype.kind)
        if bands != 1:
            reason = (
                f"it has {bands} channels, and a mask has one value per pixel; save it as grey or with a palette, or "
                "give decode=, a function from its bytes to an array (height, width)"
            )
        elif kind == "f" and not (array == np.rint(array)).all():
            reason = "its values are fractions or NaN, and those of a mask are whole numbers; give Map for it"
        elif (where := self._beyond(array)) is not None:
            y, x = where
            limit = f"dtype {self.dtype} holds; give another dtype, or correct it"
            if self.num_classes is not None:
                limit = f"num_classes {self.num_classes} allows (fill is {self.fill}); correct it, or give more classes"
            reason = f"it holds {array[y, x, 0]} at ({x}, {y}), which is not among the values that {limit}"
        if reason is not None:
            raise bad_target(f"its .{self.member} member cannot be used: {reason}")
        return array.astype(self.dtype, copy=False)

    def _beyond(self, array: np.ndarray) -> tuple[int, int] | None:
        """Return (row, column) of the first value that cannot be used, None if all can."""
        ends = np.iinfo(self.dtype)
        low, high = (ends.min, ends.max) if self.num_classes is None else (0, min(self.num_classes - 1, ends.max))
        if array.min() >= low and array.max() <= high:
            return None
        wrong = ((array < low) | (array > high)) & (array != self.fill)
        if not wrong.any():
            return None
        y, x, _ = np.unravel_index(int(wrong.argmax()), array.shape)
        return int(y), int(x)
