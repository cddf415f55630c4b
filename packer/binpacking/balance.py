"""Balance: packs in an order in which all ranks of a step hold packs of like attention cost."""

from __future__ import annotations

import numpy as np

# n packs of a window, W ranks


def window_of(balance: int, share: int) -> int:
    """Packs of a window: as many whole shares as `balance` holds, and one at least.

    >>> window_of(256, 24), window_of(4, 24)
    (240, 24)
    """
    return max(1, balance // share) * share


def balanced_order(cost: np.ndarray, share: int, drawn: np.ndarray) -> np.ndarray:
    """The packs of a window in shares of like cost, the shares in random order; int64 (n,).

    ```
    cost      9 1 5 8 2 4 7, share 2
    shares    [9 8] [7 5] [4 2], and 1 is left
    drawn     3 1 2             [7 5] [4 2] [9 8] 1
    ```

    Args:
        cost: (n,), of each pack.
        share: packs of a share. What is left of the cheapest packs comes last.
        drawn: (n // share,) or more, what the shares are ordered by.

    >>> cost = np.array([9, 1, 5, 8, 2, 4, 7])
    >>> cost[balanced_order(cost, 2, np.array([3, 1, 2]))].tolist()
    [7, 5, 4, 2, 9, 8, 1]
    """
    dearest_first = np.argsort(-cost, kind="stable")
    shares = len(cost) // share
    mixed = dearest_first[: shares * share].reshape(shares, share)[np.argsort(drawn[:shares], kind="stable")]
    return np.concatenate([mixed.reshape(-1), dearest_first[shares * share :]])


def window_order(cost: np.ndarray, patch_size: np.ndarray, share: int, drawn: np.ndarray) -> np.ndarray:
    """`balanced_order` of a window whose shares are of several patch sizes: each size's among its own; int64 (n,).

    Args:
        cost: (n,), of each pack.
        patch_size: (n,), of each pack, the same within a share.
        share: packs of a share.
        drawn: one for each share, also for one that is not full.
    """
    order = np.arange(len(cost))
    for size in np.unique(patch_size):
        same = np.flatnonzero(patch_size == size)
        order[same] = same[balanced_order(cost[same], share, drawn[same[::share] // share])]
    return order


def load_imbalance(cost: np.ndarray, ranks: int) -> float:
    """The dearest pack of a step over the mean of its packs, averaged over steps: how long the other ranks wait.

    A step takes `ranks` consecutive packs, one a rank; packs that are left over make no step. 1 is even.

    >>> load_imbalance(np.array([3.0, 1.0, 2.0, 2.0]), 2)
    1.25
    """
    steps = cost[: len(cost) // ranks * ranks].reshape(-1, ranks)
    return float((steps.max(1) / steps.mean(1)).mean()) if len(steps) else 1.0
