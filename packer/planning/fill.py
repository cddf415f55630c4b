"""`Packing.fill`: give leftover slots back, or fit images that are slightly too long."""

from __future__ import annotations

import numpy as np

from patchnpack.packer.binpacking import _fill
from patchnpack.packer.config import Packing
from patchnpack.packer.planning.images import Images

# M images

_EDGES = {"pad": _fill.PAD, "crop": _fill.CROP, "resize": _fill.RESIZE}
_NO_LIMIT = 1 << 40


def _rescaling(packing: Packing, patch_size: int) -> tuple[int, int, int, float, int, int]:
    """Limits of size changes, as the kernels take them.

    P, grid multiple, edge, the largest change of a side as a share, the largest grid, and the cap on kept tokens.
    """
    policy = packing.resolution
    edge, limit = getattr(policy, "edge", "resize"), getattr(policy, "max_tokens", None)
    largest = _NO_LIMIT if limit is None else limit
    return patch_size, packing.grid_multiple, _EDGES[edge], packing.max_scale, largest, _cap(packing)


def _cap(packing: Packing) -> int:
    cap = packing.token_drop.cap
    return _NO_LIMIT if cap is None else cap


def most_tokens(tokens: np.ndarray, drawn: np.ndarray, packing: Packing) -> np.ndarray:
    """Most tokens that each image may hold once leftover slots are given back, int64 (M,).

    Args:
        tokens: int64 (M,), all tokens of each image.
        drawn: int (M,), tokens that each keeps by the token drop; it may keep more only up to the drop's cap.
        packing: the configuration.
    """
    most: np.ndarray = np.minimum(tokens, np.maximum(drawn.astype(np.int64), _cap(packing)))
    return most


def fewest_tokens(images: Images, packing: Packing, patch_size: int) -> np.ndarray | None:
    """Fewest tokens that `fill` may cut each image to, int64 (M,); None where it cuts none."""
    if packing.fill == "trim":
        keep = images.keep.astype(np.int64)
        return keep - (keep * packing.max_trim).astype(np.int64)
    if packing.fill == "rescale":
        least = np.empty(len(images), np.int64)
        _fill.fewest(images.size, images.grid, images.keep, *_rescaling(packing, patch_size), least)
        return least
    return None


def fill_packs(images: Images, offsets: np.ndarray, packing: Packing, patch_size: int) -> None:
    """Fill the slots of each pack as `packing.fill` says; changes `images` in place."""
    if packing.fill == "none":
        return
    drawn = images.keep.copy()
    if packing.fill == "trim":
        least = fewest_tokens(images, packing, patch_size)
        _fill.trim(least, images.keep, offsets, packing.seq_len)
    elif packing.fill == "rescale":
        limits = _rescaling(packing, patch_size)
        _fill.rescale(images.size, images.grid, images.keep, offsets, packing.seq_len, *limits)
    most = most_tokens(images.grid.prod(1, dtype=np.int64), drawn, packing)
    _fill.undrop(most, images.keep, offsets, packing.seq_len)
