"""MixUp and CutMix inside packs: regions of patches are blended or replaced between images."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from patchnpack.packer.batch.packed_batch import PackedBatch

# B packs, L token slots, K maximum images per pack, C classes; image i has n tokens in a grid of gw x gh


def mix(
    batch: PackedBatch, rng: np.random.Generator, *, num_classes: int, mixup: float = 0.0, cutmix: float = 0.0
) -> PackedBatch:
    """Mix each labelled image of a batch with another one; segments do not change.

    Grids differ, so a region of w x h patches of both images is mixed:

    ```
    CutMix   a rectangle of the grid is replaced by one of the same size from anywhere in the partner; 1 - s of its area
    MixUp    the upper left w x h patches that both have: pixels become s of its own and 1 - s of the partner's
    ```

    s is drawn from Beta(alpha, alpha) per image (arXiv 1710.09412, section 2; 1905.04899, section 3). Where the
    partner's patch was dropped, the image keeps its own. The partner's share of the label is its share of the image's
    kept tokens (times 1 - s for MixUp).

    Args:
        batch: a batch on the CPU; not modified.
        rng: the source of all draws.
        num_classes: C, for int64 labels.
        mixup, cutmix: alpha of each; 0 is off. With both, one of the two is chosen per batch.

    Returns:
        A batch with new `patches` and float32 labels (B, K, C), NaN without a label.
    """
    labels = batch.labels
    if not labels.is_floating_point():
        absent = (labels < 0)[..., None]
        labels = F.one_hot(labels.clamp(min=0), num_classes).float().masked_fill(absent, torch.nan)
    cut = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    columns = batch.image_mask.nonzero().numpy()
    flat_labels = labels[batch.image_mask].numpy()
    mixable = np.flatnonzero(~np.isnan(flat_labels).any(-1))
    partners = dict(zip(order := rng.permutation(mixable), np.roll(order, 1), strict=True))
    ends = np.cumsum(batch.lengths)
    slots = [batch.token_index[end - n : end].numpy() for end, n in zip(ends, batch.lengths, strict=True)]
    grids, coords = batch.grids[batch.image_mask].numpy(), batch.coords.flatten(0, 1).numpy()
    old = batch.patches.flatten(0, 1).numpy()
    new, new_labels = old.copy(), flat_labels.copy()
    for i, j in partners.items():
        keep = rng.beta(alpha, alpha)
        common = np.minimum(grids[i], grids[j])
        size = np.minimum(common, np.rint(np.sqrt(1 - keep) * grids[i]).astype(np.int64)) if cut else common
        corner_i, corner_j = (rng.integers(grids[k] - size + 1) if cut else np.zeros(2, np.int64) for k in (i, j))
        slot_of = np.full(grids[j][::-1], -1)  # slot of each patch of the partner, -1 where it was dropped
        slot_of[tuple(coords[slots[j]].T[::-1])] = slots[j]
        inside = coords[slots[i]] - corner_i
        covered = ((inside >= 0) & (inside < size)).all(1)
        x, y = (inside[covered] + corner_j).T
        source, target = slot_of[y, x], slots[i][covered]
        source, target = source[source >= 0], target[source >= 0]
        share = 1.0 if cut else 1 - keep
        blended = (1 - share) * old[target] + share * old[source]
        new[target] = blended if old.dtype.kind == "f" else np.rint(blended)
        share *= len(target) / len(slots[i])
        new_labels[i] = (1 - share) * flat_labels[i] + share * flat_labels[j]
    mixed = labels.clone()
    mixed[tuple(columns.T)] = torch.from_numpy(new_labels)
    return dataclasses.replace(batch, patches=torch.from_numpy(new).view_as(batch.patches), labels=mixed)
