"""The random draws in plain Python. Tests check that `_kernels.py` and `_draws.py` equal it."""

from __future__ import annotations

import math

_MASK = (1 << 64) - 1


def mix(word: int) -> int:
    """The finaliser of splitmix64 on one word."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)


def kept_tokens(key: int, tokens: int, keep: int) -> list[int]:
    """A forward Fisher-Yates shuffle drawn from `key`; its first `keep` entries, in ascending order."""
    permutation = list(range(tokens))
    for i in range(keep):
        key = key + 0x9E3779B97F4A7C15 & _MASK
        j = i + mix(key) % (tokens - i)
        permutation[i], permutation[j] = permutation[j], permutation[i]
    return sorted(permutation[:keep])


def uniform(state: int) -> tuple[int, float]:
    """The next state of a key's stream, and a value in (0, 1)."""
    state = state + 0x9E3779B97F4A7C15 & _MASK
    return state, ((mix(state) >> 12) + 0.5) / 2**52


def normal(state: int) -> tuple[int, float]:
    """The next state of a key's stream, and a standard normal value (Box and Muller 1958)."""
    state, u = uniform(state)
    state, v = uniform(state)
    return state, math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)


def log_gamma_value(state: int, shape: float) -> tuple[int, float]:
    """The next state of a key's stream, and the logarithm of a gamma value (Marsaglia and Tsang 2000)."""
    boost = 0.0
    if shape < 1:  # gamma(a) is gamma(a + 1) u^(1/a)
        state, u = uniform(state)
        boost, shape = math.log(u) / shape, shape + 1
    d = shape - 1 / 3
    while True:
        state, x = normal(state)
        state, u = uniform(state)
        v = (1 + x / math.sqrt(9 * d)) ** 3
        if v > 0 and math.log(u) < x * x / 2 + d - d * v + d * math.log(v):
            return state, math.log(d * v) + boost


def beta(key: int, a: float, b: float) -> float:
    """A beta value drawn from `key`: x / (x + y) of two gamma values."""
    key, x = log_gamma_value(key, a)
    key, y = log_gamma_value(key, b)
    return 1 / (1 + math.exp(min(700.0, y - x)))


def truncated_normal(key: int, mean: float, std: float, low: float, high: float) -> float:
    """A normal value drawn from `key`: the first that lies within [low, high)."""
    key, z = normal(key)
    while not low <= mean + std * z < high:
        key, z = normal(key)
    return mean + std * z


def random_crop(
    key: int, width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw a crop from `key`, as in GoogLeNet (Szegedy et al. 2015, section 6).

    Returns (left, top, width, height).

    The crop's area is a uniform share of the image's; the logarithm of its aspect is uniform. Up to ten crops are drawn
    until one lies within the image; otherwise the largest centre crop whose aspect is within `ratio` is used.
    """
    for _ in range(10):
        key, u = uniform(key)
        key, v = uniform(key)
        area = (scale[0] + (scale[1] - scale[0]) * u) * (width * height)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * v)
        w, h = math.floor(math.sqrt(area * aspect) + 0.5), math.floor(math.sqrt(area / aspect) + 0.5)
        if 1 <= w <= width and 1 <= h <= height:
            key, u = uniform(key)
            key, v = uniform(key)
            return int(u * (width - w + 1)), int(v * (height - h + 1)), w, h
    w = max(1, min(width, math.floor(height * ratio[1] + 0.5)))
    h = max(1, min(height, math.floor(width / ratio[0] + 0.5)))
    return (width - w) // 2, (height - h) // 2, w, h


def chosen_frames(images: int, count: int, how: str, short: str, key: int) -> list[int]:
    """The images of a sample that `Frames(count, how, short)` chooses among `images`.

    "random" draws by Floyd's algorithm (Bentley 1987): each step draws one more number from a range that is one larger,
    and takes the range's last where the number is taken.
    """
    stride = int(how.partition(":")[2] or 1)
    offered = list(range(0, images, stride))
    if len(offered) <= count:
        return offered + offered[-1:] * (count - len(offered) if short == "repeat" else 0)
    if how == "uniform":
        return [(2 * j + 1) * images // (2 * count) for j in range(count)]
    if how != "random":
        return offered[:count]
    taken = set[int]()
    for last in range(images - count, images):
        key = key + 0x9E3779B97F4A7C15 & _MASK
        drawn = mix(key) % (last + 1)
        taken.add(last if drawn in taken else drawn)
    return sorted(taken)
