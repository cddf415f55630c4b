"""The compiled inner loops: functions on arrays, without Python objects.

`reference_draws.py` defines the random ones in plain Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# P patch size, C channels

_AHEAD = 192  # bytes to prefetch ahead: rows of the next patches lie too far apart for the hardware prefetcher


@intrinsic
def _call_memcpy(typingctx: Any, target: Any, to: Any, source: Any, start: Any, count: Any) -> Any:
    """Call memcpy between two flat uint8 arrays.

    Numba's slice assignment is a byte loop, several times slower.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ends = [
            builder.gep(context.make_array(signature.args[i])(context, builder, args[i]).data, [args[i + 1]])
            for i in (0, 2)
        ]
        cgutils.raw_memcpy(builder, ends[0], ends[1], args[4], ir.Constant(args[4].type, 1))
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), codegen


@intrinsic
def _copy_32_twice(typingctx: Any, target: Any, to: Any, source: Any, start: Any, count: Any) -> Any:
    """Copy the first and the last 32 of `count` bytes.

    These are all bytes where `count` is 32 to 64: no call, no branch.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), 32)
        target, source = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2))
        tail = builder.sub(args[4], ir.Constant(args[4].type, 32))
        loaded = []
        for offset in (args[3], builder.add(args[3], tail)):
            word = builder.load(builder.bitcast(builder.gep(source, [offset]), vector.as_pointer()))
            word.align = 1
            loaded.append(word)
        for offset, word in zip((args[1], builder.add(args[1], tail)), loaded, strict=True):
            store = builder.store(word, builder.bitcast(builder.gep(target, [offset]), vector.as_pointer()))
            store.align = 1
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), codegen


@intrinsic
def _stream_bytes(typingctx: Any, target: Any, to: Any, source: Any, start: Any, count: Any) -> Any:
    """Copy `count` bytes into a flat uint8 array past the caches.

    The target address and `count` are multiples of 16.

    A batch is far larger than a cache, and an ordinary store reads each cache line from memory before it writes it.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, size = ir.VectorType(ir.IntType(8), 16), ir.Constant(args[4].type, 16)
        target, source = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2))
        nontemporal = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, builder.udiv(args[4], size)) as loop:
            offset = builder.mul(loop.index, size)
            address = builder.gep(source, [builder.add(args[3], offset)])
            word = builder.load(builder.bitcast(address, vector.as_pointer()))
            word.align = 1
            address = builder.gep(target, [builder.add(args[1], offset)])
            store = builder.store(word, builder.bitcast(address, vector.as_pointer()))
            store.align = 16
            store.set_metadata("nontemporal", nontemporal)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), codegen


@intrinsic
def _prefetch(typingctx: Any, source: Any, at: Any) -> Any:
    """Prefetch the cache line of byte `at` of a flat array; beyond its end nothing is read."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), word, word, word])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(prefetch, [address, ir.Constant(word, 0), ir.Constant(word, 3), ir.Constant(word, 1)])
        return context.get_dummy_value()

    return types.void(source, types.intp), codegen


@intrinsic
def _fence(typingctx: Any) -> Any:
    """Make all stores so far, streamed or not, visible before any later store."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@njit(nogil=True, cache=True, inline="always")
def _copy_bytes(target, to, source, start, count):  # type: ignore[no-untyped-def]
    """Copy `count` bytes between two flat uint8 arrays.

    32 to 64 bytes, the usual row of a patch, are copied without a call.
    """
    if 32 <= count <= 64:
        _copy_32_twice(target, to, source, start, count)
    else:
        _call_memcpy(target, to, source, start, count)


@njit(nogil=True, cache=True)
def mix(word: np.uint64) -> np.uint64:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014).

    It is a bijection in which every input bit affects every output bit.
    """
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@njit(nogil=True, cache=True)
def mix_all(words: np.ndarray, base: np.uint64, out: np.ndarray) -> None:
    """Write the hash of each of `words` (n,) under the key `base` to `out` (n,); all uint64."""
    for i in range(len(words)):
        out[i] = mix((base ^ words[i]) + np.uint64(0x9E3779B97F4A7C15))


@njit(nogil=True, cache=True)
def kept_tokens(key: np.uint64, tokens: int, keep: int) -> np.ndarray:
    """The first `keep` of a permutation of `tokens`, in ascending order, int32 (keep,).

    The permutation is drawn from `key`.
    """
    if keep == tokens:
        return np.arange(tokens).astype(np.int32)
    permutation = np.arange(tokens).astype(np.int32)
    chosen = np.zeros(tokens, np.bool_)
    state = key
    for i in range(keep):
        state += np.uint64(0x9E3779B97F4A7C15)
        j = i + np.int64(mix(state) % np.uint64(tokens - i))
        permutation[i], permutation[j] = permutation[j], permutation[i]
        chosen[permutation[i]] = True
    kept = np.empty(keep, np.int32)
    n = 0
    for token in range(tokens):
        if chosen[token]:
            kept[n] = token
            n += 1
    return kept


@njit(nogil=True, cache=True)
def place_image(
    pixels: np.ndarray,
    patch: int,
    grid_w: int,
    grid_h: int,
    kept: np.ndarray,
    segment: int,
    patches: np.ndarray,
    segment_ids: np.ndarray,
    coords: np.ndarray,
) -> None:
    """Write an image's kept tokens into its slots of a pack.

    `pixels` is uint8 (H, W, C), contiguous. An image larger than its grid is centre-cropped; a smaller one is padded
    with 0 at the right and the bottom. `patches` uint8 (keep, P*P*C), `segment_ids` (keep,) and `coords` (keep, 2) are
    the image's own slots.
    """
    height, width, channels = pixels.shape
    source, target = pixels.reshape(-1), patches.reshape(-1)
    top, left = max(0, height - grid_h * patch) // 2, max(0, width - grid_w * patch) // 2
    row_bytes, token_bytes = patch * channels, patch * patch * channels
    token = np.empty(token_bytes, np.uint8)  # edge tokens are assembled here, in the nearest cache
    stream = target.ctypes.data % 16 == 0 and row_bytes % 16 == 0
    for i in range(len(kept)):
        y, x = kept[i] // grid_w, kept[i] % grid_w
        segment_ids[i] = segment
        coords[i, 0], coords[i, 1] = x, y
        first_row, first_column = top + y * patch, left + x * patch
        rows, columns = max(0, min(patch, height - first_row)), max(0, min(patch, width - first_column))
        start = (first_row * width + first_column) * channels
        if stream and rows == patch and columns == patch:
            for row in range(patch):
                _prefetch(source, start + _AHEAD)
                _stream_bytes(target, i * token_bytes + row * row_bytes, source, start, row_bytes)
                start += width * channels
            continue
        if rows < patch or columns < patch:
            token[:] = 0
        for row in range(rows):
            _copy_bytes(token, row * row_bytes, source, start, columns * channels)
            start += width * channels
        if stream:
            _stream_bytes(target, i * token_bytes, token, 0, token_bytes)
        else:
            _call_memcpy(target, i * token_bytes, token, 0, token_bytes)
    _fence()


@njit(nogil=True, cache=True)
def place_kept(
    pixels: np.ndarray,
    patch: int,
    grid_w: int,
    grid_h: int,
    key: np.uint64,
    segment: int,
    patches: np.ndarray,
    segment_ids: np.ndarray,
    coords: np.ndarray,
) -> None:
    """Draw `kept_tokens`, as many as there are slots, and `place_image` them.

    One call releases the GIL once.
    """
    kept = kept_tokens(key, grid_w * grid_h, len(segment_ids))
    place_image(pixels, patch, grid_w, grid_h, kept, segment, patches, segment_ids, coords)


@njit(nogil=True, cache=True)
def find_tokens(segment_ids: np.ndarray, token_index: np.ndarray, starts: np.ndarray) -> tuple[int, int]:
    """Find the tokens and the images in `segment_ids` (B, L).

    Each image's tokens are contiguous.

    Writes the flat position of each token to `token_index` and the number of tokens before each image, then the total,
    to `starts`. Returns the numbers of tokens and images. Images beyond the size of `starts` are counted, not written.
    """
    tokens, images = 0, 0
    for b in range(segment_ids.shape[0]):
        before = 0
        for slot in range(segment_ids.shape[1]):
            segment = segment_ids[b, slot]
            if segment != 0:
                if segment != before:
                    if images < len(starts):
                        starts[images] = tokens
                    images += 1
                token_index[tokens] = b * segment_ids.shape[1] + slot
                tokens += 1
            before = segment
    if images < len(starts):
        starts[images] = tokens
    return tokens, images


@njit(nogil=True, cache=True)
def clear_padding(patches: np.ndarray, used: np.ndarray) -> None:
    """Zero the slots after the first `used[b]` of each pack `b` of `patches` (B, L, D)."""
    for b in range(len(patches)):
        slots = patches[b].reshape(-1)
        slots[used[b] * patches.shape[2] :] = 0


@njit(nogil=True, cache=True)
def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`pixels` (H, W, C) turned upright by its EXIF orientation (1 to 8)."""
    height, width, channels = pixels.shape
    swap = orientation >= 5
    out = np.empty((width, height, channels) if swap else (height, width, channels), np.uint8)
    # Maps (y, x) of the upright image to the stored one: EXIF 2.32, tag 0x0112.
    flip_y = orientation in (3, 4, 7, 8)
    flip_x = orientation in (2, 3, 6, 7)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            v, u = (x, y) if swap else (y, x)
            if swap:
                v = height - 1 - v if flip_x else v
                u = width - 1 - u if flip_y else u
            else:
                v = height - 1 - v if flip_y else v
                u = width - 1 - u if flip_x else u
            for c in range(channels):
                out[y, x, c] = pixels[v, u, c]
    return out


@njit(nogil=True, cache=True)
def fit_grids(
    width: np.ndarray, height: np.ndarray, unit: int, limit: np.ndarray, upsample: bool, out: np.ndarray
) -> None:
    """Find the largest scale at which each image fits its limit, exactly.

    Image n may cover at most `limit[n]` cells of `unit` pixels per side.

    Writes (gw, gh, numerator, denominator) for each image: the grid in cells and the scale as a fraction. At scale s
    the grid is ceil(s w / unit) x ceil(s h / unit), so the best s is min(i unit / w, (cells // i) unit / h) for some i.
    The first term grows with i and the second falls, so the best i is where they cross.
    """
    for n in range(len(width)):
        w, h, cells = np.int64(width[n]), np.int64(height[n]), limit[n]
        if not upsample and -(-w // unit) * -(-h // unit) <= cells:
            out[n, 0], out[n, 1], out[n, 2], out[n, 3] = -(-w // unit), -(-h // unit), 1, 1
            continue
        low, high = np.int64(0), np.int64(cells)
        while low < high:  # finds the last i at which the width limits the scale
            i = (low + high + 1) // 2
            if i * h <= (cells // i) * w:
                low = i
            else:
                high = i - 1
        rows = cells // (low + 1) if low < cells else np.int64(0)
        if low * h >= rows * w:  # limited by the width at i = low
            gw, gh, numerator, denominator = low, -(-low * h // w), low * unit, w
        else:  # limited by the height at i = low + 1
            gw, gh, numerator, denominator = -(-rows * w // h), rows, rows * unit, h
        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = gw, gh, numerator, denominator
