from __future__ import annotations

import numpy as np
import pytest
import torch

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.probe import STRENGTHS, fit_probe, with_head


def drawn(n: int = 200, D: int = 6, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return 5 + 3 * (rng.standard_normal((n, D)) + 2 * np.eye(classes, D)[labels]), labels


def test_the_fit_is_the_optimum_of_the_stated_loss() -> None:
    features, labels = drawn()
    weight, bias, l2 = fit_probe(features, labels, 3, l2=0.01)
    assert l2 == 0.01
    mean, std = torch.from_numpy(features).mean(0), torch.from_numpy(features).std(0, correction=0)
    W = (weight.double() * std).requires_grad_()
    b = (bias.double() + weight.double() @ mean).requires_grad_()
    x, y = (torch.from_numpy(features) - mean) / std, torch.from_numpy(labels)
    loss = torch.nn.functional.cross_entropy(x @ W.T + b, y) + 0.005 * W.square().sum()
    loss.backward()
    assert W.grad is not None
    assert b.grad is not None
    assert W.grad.abs().max() < 1e-4
    assert b.grad.abs().max() < 1e-4


def test_the_strength_is_chosen_by_a_draw_of_the_seed() -> None:
    features, labels = drawn(60, 40)
    first, again = (fit_probe(features, labels, 3, seed=1) for _ in range(2))
    assert first[2] in STRENGTHS
    assert first[2] == again[2]
    assert torch.equal(first[0], again[0])


def test_class_weights_move_the_boundary_and_constant_features_do_no_harm() -> None:
    features, labels = drawn(300, 4, 2)
    features = np.concatenate([features, np.full((300, 1), 7.0)], 1)
    plain, weighted = (fit_probe(features, labels, 2, l2=0.01, class_weights=w) for w in (None, np.array([1.0, 20.0])))
    share = [
        float(((torch.from_numpy(features).float() @ w.T + b).argmax(1) == 1).float().mean())
        for w, b, _ in (plain, weighted)
    ]
    assert share[1] > share[0] + 0.02
    assert all(each.isfinite().all() for each in weighted[:2])


def test_the_head_gives_the_logits_of_the_fit() -> None:
    model = NaViT(NaViTConfig(num_classes=0, width=12, depth=1, heads=2))
    new = with_head(model, torch.ones(3, 12), torch.arange(3.0))
    assert new.config.num_classes == 3
    assert torch.equal(new.get_parameter("head.bias"), torch.arange(3.0))


@pytest.mark.parametrize(("features", "message"), [(np.zeros((0, 3)), "no image"), (np.full((2, 3), np.nan), "finite")])
def test_what_cannot_be_fitted_raises(features: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_probe(features, np.zeros(len(features), np.int64), 2)
