"""Balance: order packs so that all ranks of a step hold packs of similar attention cost."""

from __future__ import annotations

import numpy as np

# n packs of a window, W ranks; a share is the packs of one step


def window_of(balance: int, share: int) -> int:
    """Number of packs in a window: as many whole shares as fit into `balance`, at least one.

    >>> window_of(256, 24), window_of(4, 24)
    (240, 24)
    """
    return max(1, balance // share) * share


def balanced_order(cost: np.ndarray, share: int, drawn: np.ndarray) -> np.ndarray:
    """Sort the packs of a window into shares of similar cost, in random order; int64 (n,).

    ```
    cost      9 1 5 8 2 4 7, share 2
    shares    [9 8] [7 5] [4 2], and 1 is left
    drawn     3 1 2             [7 5] [4 2] [9 8] 1
    ```

    Args:
        cost: (n,), cost of each pack.
        share: packs per share. The cheapest packs, which fill no share, come last.
        drawn: (n // share,) or more random numbers; shares are sorted by them.

    >>> cost = np.array([9, 1, 5, 8, 2, 4, 7])
    >>> cost[balanced_order(cost, 2, np.array([3, 1, 2]))].tolist()
    [7, 5, 4, 2, 9, 8, 1]
    """
    costliest_first = np.argsort(-cost, kind="stable")
    shares = len(cost) // share
    mixed = costliest_first[: shares * share].reshape(shares, share)[np.argsort(drawn[:shares], kind="stable")]
    return np.concatenate([mixed.reshape(-1), costliest_first[shares * share :]])


def window_order(cost: np.ndarray, patch_size: np.ndarray, share: int, drawn: np.ndarray) -> np.ndarray:
    """`balanced_order` of a window with several patch sizes, within each patch size; int64 (n,).

    Args:
        cost: (n,), cost of each pack.
        patch_size: (n,), patch size of each pack; the packs of a share have the same.
        share: packs per share.
        drawn: one random number per share, including a last one that is not full.
    """
    order = np.arange(len(cost))
    for size in np.unique(patch_size):
        same = np.flatnonzero(patch_size == size)
        order[same] = same[balanced_order(cost[same], share, drawn[same[::share] // share])]
    return order


def load_imbalance(cost: np.ndarray, ranks: int) -> float:
    """Cost of a step's costliest pack over the mean of its packs, averaged over steps; 1 is even.

    The other ranks of the step wait for the costliest pack. A step takes `ranks` consecutive packs, one per rank;
    leftover packs make no step.

    >>> load_imbalance(np.array([3.0, 1.0, 2.0, 2.0]), 2)
    1.25
    """
    steps = cost[: len(cost) // ranks * ranks].reshape(-1, ranks)
    return float((steps.max(1) / steps.mean(1)).mean()) if len(steps) else 1.0
