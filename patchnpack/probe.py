"""A linear probe: a head fitted on the features of a frozen model, which are computed once."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from patchnpack.models import NaViT
from patchnpack.weights.files import with_config

# N images, D width of the features, C classes

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of L2, among which a held-out share of the images decides


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    l2: float | None = None,
    class_weights: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Fit multinomial logistic regression on features, to the optimum (L-BFGS on all images at once).

    Features are standardised, and the weights are returned for features as they are.

    Args:
        features: (N, D), finite.
        labels: (N,), classes from 0 to num_classes - 1.
        num_classes: C.
        l2: half of it times the squared weights of the standardised features is added to the mean loss. None chooses
            among `STRENGTHS` by the accuracy on a fifth of the images, drawn with `seed`, and fits again on all.
        class_weights: (C,), factors of the loss.
        seed: of the draw.

    Returns:
        The weight (C, D), the bias (C,), both float32, and the l2.

    Raises:
        ValueError: there are no images, or a feature is not finite.

    >>> weight, bias, _ = fit_probe(np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([0, 0, 1, 1]), 2, l2=0.01)
    >>> (torch.tensor([[-3.0], [3.0]]) @ weight.T + bias).argmax(1).tolist()
    [0, 1]
    """
    if len(features) == 0 or not np.isfinite(features).all():
        what = "no image has a label" if len(features) == 0 else "some features are not finite"
        raise ValueError(f"{what}, so there is nothing to fit; check label, or the precision of the features")
    x, y = torch.from_numpy(np.asarray(features, np.float64)), torch.from_numpy(np.asarray(labels, np.int64))
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    x = (x - mean) / std
    factors = None if class_weights is None else torch.from_numpy(np.asarray(class_weights, np.float64))
    if l2 is None:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
        kept, held = order[len(x) // 5 :], order[: len(x) // 5]
        hits = [_hits(_fit(x[kept], y[kept], num_classes, each, factors), x[held], y[held]) for each in STRENGTHS]
        l2 = STRENGTHS[max(range(len(STRENGTHS)), key=lambda i: (hits[i], i))]  # of equals, the strongest
    weight, bias = _fit(x, y, num_classes, l2, factors)
    weight = weight / std
    return weight.float(), (bias - weight @ mean).float(), l2


def _fit(
    x: torch.Tensor, y: torch.Tensor, num_classes: int, l2: float, factors: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.zeros(num_classes, x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = F.cross_entropy(x @ weight.T + bias, y, weight=factors, reduction="sum") / max(len(x), 1)
        total = total + l2 / 2 * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def _hits(head: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> int:
    weight, bias = head
    return int(((x @ weight.T + bias).argmax(1) == y).sum())


def with_head(model: NaViT, weight: torch.Tensor, bias: torch.Tensor) -> NaViT:
    """Return the model with a head of weight (C, D) and bias (C,)."""
    new = with_config(model, num_classes=len(weight))
    new.head.load_state_dict({"weight": weight, "bias": bias})
    return new
