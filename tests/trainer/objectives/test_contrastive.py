from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.trainer import Contrastive, TextTower, TrainConfig, sigmoid_loss, train

Draw = Callable[..., Any]
Pack = Callable[..., Any]

RANKS = """
import sys, torch, torch.distributed as dist, torch.nn.functional as F
from patchnpack.trainer import sigmoid_loss
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
counts = [5, 3][:size]
generator = torch.Generator().manual_seed(0)
X, Y = (F.normalize(torch.randn(sum(counts), 8, generator=generator), dim=-1) for _ in range(2))
x, y, t, b = (value.clone().requires_grad_() for value in (X, Y, torch.tensor(3.0), torch.tensor(-1.0)))
z = 2 * torch.eye(len(X)) - 1
dense = -F.logsigmoid(z * (t * x @ y.T + b)).sum()
dense.backward()
mine = slice(sum(counts[:rank]), sum(counts[:rank + 1]))
p, q, u, v = (value.detach().clone().requires_grad_() for value in (X[mine], Y[mine], t, b))
loss = sigmoid_loss(p, q, u, v, chunk=2)
loss.backward()
sums = torch.stack([loss.detach(), u.grad, v.grad])
dist.all_reduce(sums)
torch.testing.assert_close(sums, torch.stack([dense.detach(), t.grad, b.grad]), rtol=1e-5, atol=1e-5)
torch.testing.assert_close(p.grad, x.grad[mine], rtol=1e-5, atol=1e-5)
torch.testing.assert_close(q.grad, y.grad[mine], rtol=1e-5, atol=1e-5)
dist.destroy_process_group()
print("equal")
"""


def dense(x: torch.Tensor, y: torch.Tensor, t: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    z = 2 * torch.eye(len(x)) - 1
    return -F.logsigmoid(z * (t * x @ y.T + b)).sum()


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_the_chunked_loss_and_its_gradient_equal_the_dense_ones(chunk: int) -> None:
    torch.manual_seed(0)
    values = [
        F.normalize(torch.randn(7, 5), dim=-1),
        F.normalize(torch.randn(7, 5), dim=-1),
        *torch.tensor([4.0, -2.0]),
    ]
    ours, theirs = ([value.clone().requires_grad_() for value in values] for _ in range(2))
    a, b = sigmoid_loss(*ours, chunk=chunk), dense(*theirs)
    (3 * a).backward()
    (3 * b).backward()
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_loss_and_gradient_over_two_ranks_of_unequal_batches_equal_those_of_all_pairs(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2


def with_texts(batch: PackedBatch, texts: list[Any]) -> PackedBatch:
    left = iter(texts)
    extras = {"txt": [[next(left) for _ in keys] for keys in batch.keys]}
    return dataclasses.replace(batch, extras=extras)


@pytest.fixture
def image(config: NaViTConfig) -> NaViT:
    torch.manual_seed(0)
    return NaViT(dataclasses.replace(config, num_classes=0))


def objective_of(image: NaViT) -> Contrastive:
    return Contrastive(image, embed=8, tower={"width": 12, "depth": 1, "heads": 2, "max_bytes": 16})


def test_contrastive_training_learns_a_tiny_task(draw: Draw, pack: Pack, image: NaViT) -> None:
    highs = {"black": 20, "dim": 90, "grey": 160, "bright": 256}
    batches = [
        with_texts(
            pack([[draw(2 + i, 3, seed=10 * k + i, high=high) for i, high in enumerate(highs.values())]]), list(highs)
        )
        for k in range(4)
    ]
    settings = TrainConfig(steps=120, lr=5e-3, precision="float32", eval_every=30)
    result = train(image, batches, config=settings, objective=objective_of(image), validation=batches)
    assert result.metrics["accuracy"] == 1.0
    assert result.losses[-1] < 0.5 * result.losses[0]


def test_an_image_without_a_text_does_not_count(draw: Draw, pack: Pack, image: NaViT) -> None:
    a, b, c = (draw(3, 2 + i, seed=i) for i in range(3))
    objective = objective_of(image)
    three = objective(image, with_texts(pack([[a, b], [c]]), ["one", None, "three"]))
    two = objective(image, with_texts(pack([[a, c]]), ["one", "three"]))
    torch.testing.assert_close(three.total, two.total)
    assert three.images == two.images == objective.count(with_texts(pack([[a, b]]), ["one", "two"])) == 2


@pytest.mark.parametrize("texts", [[], [None]])
def test_a_batch_without_a_pair_has_loss_0_and_reaches_every_parameter(
    texts: list[Any], draw: Draw, pack: Pack, image: NaViT
) -> None:
    objective = objective_of(image)
    total = objective(image, with_texts(pack([[draw(3, 2) for _ in texts]]), texts)).total
    total.backward()
    assert total.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in (*image.parameters(), *objective.parameters()))


def test_the_embedding_of_a_text_does_not_depend_on_the_other_texts() -> None:
    torch.manual_seed(0)
    tower = TextTower(8, width=12, depth=2, heads=2, max_bytes=6)
    alone, beside = tower(["kü"]), tower(["kü", "a longer one", ""])
    torch.testing.assert_close(alone[0], beside[0])
    torch.testing.assert_close(tower(["a long"]), tower(["a longer one"]), msg="beyond max_bytes is left out")
    assert not torch.allclose(tower(["ab"]), tower(["ba"]))


def test_models_and_batches_that_do_not_match_are_refused(
    draw: Draw, pack: Pack, image: NaViT, config: NaViTConfig
) -> None:
    with pytest.raises(ValueError, match=r"num_classes is 5; image-text training needs num_classes=0"):
        Contrastive(NaViT(config))
    with pytest.raises(ValueError, match=r"no member 'txt', only none; give the loader extras=\['txt'\]"):
        objective_of(image).prepare(image, pack([[draw(3, 2)]]))
    with pytest.raises(ValueError, match=r"member 'txt' holds bytes, not text"):
        objective_of(image).count(with_texts(pack([[draw(3, 2)]]), [b"x"]))
    with pytest.raises(ValueError, match=r"2 images and 3 texts"):
        sigmoid_loss(torch.eye(2), torch.ones(3, 2), torch.tensor(1.0), torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"width 10 of the text tower is not a multiple of heads 3"):
        TextTower(4, width=10, heads=3)
