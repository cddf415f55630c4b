"""The compiled inner loops: functions on arrays, without Python objects.

`reference_draws.py` defines the random ones in plain Python.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from patchnpack.packer._memory import (
    LINE,
    call_memcpy,
    copy_bytes,
    fence,
    prefetch,
    stream_bytes,
    stream_rows_of_48,
)

# P patch size, C channels

_AHEAD = 192  # bytes to prefetch ahead: rows of the next patches lie too far apart for the hardware prefetcher


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
def mix_pairs(words: np.ndarray, numbers: np.ndarray, out: np.ndarray) -> None:
    """Write a hash of each pair of `words` and `numbers` to `out` (n,), all uint64; at number 0 the word itself."""
    for i in range(len(words)):
        out[i] = words[i]
        if numbers[i] != 0:
            out[i] = mix(mix(words[i]) + numbers[i] * np.uint64(0x9E3779B97F4A7C15))


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
def fill_columns(
    counts: np.ndarray,
    seq_len: int,
    row: np.ndarray,
    grid: np.ndarray,
    keep: np.ndarray,
    width: np.ndarray,
    height: np.ndarray,
    box: np.ndarray,
    size: np.ndarray,
    rows: np.ndarray,
    grids: np.ndarray,
    image_sizes: np.ndarray,
    boxes: np.ndarray,
    sizes: np.ndarray,
    column: np.ndarray,
    segment: np.ndarray,
    first: np.ndarray,
    starts: np.ndarray,
    used: np.ndarray,
) -> None:
    """Write what is known of M images into the columns of their packs; pack b holds the next `counts[b]` images.

    Reads row, grid, keep, width, height, box and size, (M,) each. Writes `rows` (B, K), `grids`, `image_sizes` and
    `sizes` (B, K, 2), `boxes` (B, K, 4), the image's position in the flattened (B*K) columns, its number in its pack
    and its position in the flattened (B*L) slots, (M,) each, the tokens before each image and in total, `starts`
    (M + 1,), and the slots that each pack uses (B,).
    """
    i, starts[0] = 0, 0
    for b in range(len(counts)):
        tokens = 0
        for j in range(counts[b]):
            rows[b, j] = row[i]
            grids[b, j, 0], grids[b, j, 1] = grid[i, 0], grid[i, 1]
            image_sizes[b, j, 0], image_sizes[b, j, 1] = width[i], height[i]
            sizes[b, j, 0], sizes[b, j, 1] = size[i, 0], size[i, 1]
            for side in range(4):
                boxes[b, j, side] = box[i, side]
            column[i], segment[i], first[i] = b * rows.shape[1] + j, j + 1, b * seq_len + tokens
            starts[i + 1] = starts[i] + keep[i]
            tokens += keep[i]
            i += 1
        used[b] = tokens


@njit(nogil=True, cache=True)
def lay_out(
    key: np.ndarray,
    grid: np.ndarray,
    keep: np.ndarray,
    segment: np.ndarray,
    first: np.ndarray,
    segment_ids: np.ndarray,
    coords: np.ndarray,
    token_index: np.ndarray,
) -> None:
    """Write the segment number and the grid position of every kept token of M images; the other slots become 0.

    `key`, `grid` and `keep` are those of `Images`. `segment` (M,) are the images' numbers in their packs, and `first`
    (M,) their first slots, ascending, in `segment_ids` (n,) and `coords` (n, 2). `token_index`, as long as all `keep`
    together, becomes the slot of each kept token.
    """
    slot, tokens = 0, 0
    flat = coords.reshape(-1)  # compilers vectorise loops over one dimension
    for i in range(len(key)):
        segment_ids[slot : first[i]] = 0
        coords[slot : first[i]] = 0
        slot = first[i]
        width, height = grid[i, 0], grid[i, 1]
        segment_ids[slot : slot + keep[i]] = segment[i]
        for token in range(keep[i]):
            token_index[tokens + token] = slot + token
        tokens += keep[i]
        if keep[i] == width * height:
            for y in range(height):
                row = flat[2 * slot : 2 * (slot + width)]
                for x in range(width):
                    row[2 * x], row[2 * x + 1] = x, y
                slot += width
        else:
            for token in kept_tokens(key[i], width * height, keep[i]):
                coords[slot, 0], coords[slot, 1] = token % width, token // width
                slot += 1
    segment_ids[slot:] = 0
    coords[slot:] = 0


@njit(nogil=True, cache=True)
def place_image(
    pixels: np.ndarray,
    patch: int,
    grid_w: int,
    grid_h: int,
    coords: np.ndarray,
    patches: np.ndarray,
    first: int,
    keep: int,
) -> None:
    """Write an image's kept tokens into its slots, `first` to `first + keep - 1` of `patches`.

    `pixels` is uint8 (H, W, C), contiguous. An image larger than its grid is centre-cropped; a smaller one is padded
    with 0 at the right and the bottom. `coords` (n, 2), as `lay_out` writes them, and `patches` uint8 (n, P*P*C) are
    those of all images.
    """
    height, width, channels = pixels.shape
    source, target = pixels.reshape(-1), patches.reshape(-1)
    top, left = max(0, height - grid_h * patch) // 2, max(0, width - grid_w * patch) // 2
    stride, row_bytes, token_bytes = width * channels, patch * channels, patch * patch * channels
    # Each token is assembled here, in the nearest cache, and then moved. Its cache lines hold nothing else: malloc may
    # put the tokens of two threads side by side, and writing to a shared line takes as long as cutting the patches.
    memory = np.empty(token_bytes + 2 * LINE, np.uint8)
    begin = -memory.ctypes.data % LINE
    token = memory[begin : begin + token_bytes]
    stream = target.ctypes.data % LINE == 0 and token_bytes % LINE == 0
    # A whole RGB patch of 16 pixels is assembled in registers: a line that is loaded right after its parts were stored
    # waits for these stores.
    in_registers = stream and row_bytes == 48 and patch % 4 == 0
    for slot in range(first, first + keep):
        first_row, first_column = top + coords[slot, 1] * patch, left + coords[slot, 0] * patch
        rows, columns = max(0, min(patch, height - first_row)), max(0, min(patch, width - first_column))
        start, to = first_row * stride + first_column * channels, slot * token_bytes
        whole = rows == patch and columns == patch
        if whole and in_registers:
            for row in range(0, patch, 4):
                for ahead in range(4):
                    prefetch(source, start + ahead * stride + _AHEAD)
                stream_rows_of_48(target, to + row * row_bytes, source, start, stride)
                start += 4 * stride
            continue
        if not whole:
            token[:] = 0
        for row in range(rows):
            prefetch(source, start + _AHEAD)
            copy_bytes(token, row * row_bytes, source, start, columns * channels)
            start += stride
        if stream:
            stream_bytes(target, to, token, 0, token_bytes)
        else:
            call_memcpy(target, to, token, 0, token_bytes)
    fence()


@njit(nogil=True, cache=True)
def find_tokens(segment_ids: np.ndarray, token_index: np.ndarray, starts: np.ndarray) -> tuple[int, int]:
    """Find the tokens and the images in `segment_ids` (B, L).

    Each image's tokens are contiguous, except for the padding that a failed image leaves inside a sample.

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
                before = segment
                token_index[tokens] = b * segment_ids.shape[1] + slot
                tokens += 1
    if images < len(starts):
        starts[images] = tokens
    return tokens, images


@njit(nogil=True, cache=True)
def count_tokens(
    image_mask: np.ndarray, grids: np.ndarray, image_sizes: np.ndarray, starts: np.ndarray, patch: int
) -> tuple[int, int, int, float, int, float]:
    """Count what the packs of a batch hold; the arrays are those of `PackedBatch`, `starts` its `cu_seqlens`.

    Returns the packs that are not empty, the tokens at native size and before any drop, the sum of the images' drop
    rates, and the sums of the packs' attention costs and of their squares.
    """
    packs, native, before, drop_rates, attention, squares = 0, 0, 0, 0.0, 0, 0.0
    image = 0
    for b in range(len(image_mask)):
        cost = 0
        for column in range(image_mask.shape[1]):
            if not image_mask[b, column]:
                continue
            tokens = starts[image + 1] - starts[image]
            image += 1
            grid = grids[b, column, 0] * grids[b, column, 1]  # numba multiplies in 64 bits
            width, height = image_sizes[b, column]
            native += -(-width // patch) * -(-height // patch)
            before += grid
            drop_rates += 1 - tokens / grid
            cost += tokens * tokens
        packs += cost > 0
        attention += cost
        squares += float(cost) * float(cost)
    return packs, native, before, drop_rates, attention, squares


@njit(nogil=True, cache=True)
def clear_padding(patches: np.ndarray, used: np.ndarray) -> None:
    """Zero the slots after the first `used[b]` of each pack `b` of `patches` (B, L, D)."""
    target, size = patches.reshape(-1), patches.shape[2]
    nothing = np.zeros(size, np.uint8)
    stream = target.ctypes.data % LINE == 0 and size % LINE == 0
    for b in range(len(patches)):
        for slot in range(b * patches.shape[1] + used[b], (b + 1) * patches.shape[1]):
            if stream:
                stream_bytes(target, slot * size, nothing, 0, size)
            else:
                call_memcpy(target, slot * size, nothing, 0, size)
    fence()


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
