"""`DenseNaViT`: the model over tensors of fixed shapes, compiled and exported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from patchnpack.models import DenseNaViT, NaViTConfig
from tests.closeness import assert_near
from tests.models.conftest import of_samples

Draw = Callable[..., Any]
Pack = Callable[..., Any]
Build = Callable[..., Any]

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "grid, mean": {"position": "grid", "pooling": "mean"},
    "rope, cls, registers": {"position": "rope", "pooling": "cls", "registers": 2},
    "learned_grid, max": {"position": "learned_grid", "pooling": "max"},
    "fractional": {"position": "fractional"},
    "sinusoidal": {"position": "sinusoidal"},
    "fourier": {"position": "fourier"},
    "mlp": {"position": "mlp"},
    "learned_grid and mlp": {"position": ("learned_grid", "mlp"), "position_align_corners": True},
    "samples, mean": {"scope": "sample", "time": "learned", "pooling": "mean"},
    "samples, cls": {"scope": "sample", "time": "sinusoidal", "pooling": "cls", "position": ("grid", "rope")},
}


def two_batches(draw: Draw, pack: Pack) -> list[Any]:
    """Batches of one shape with different images."""
    one = pack([[draw(5, 3), draw(3, 5, keep=9), draw(1, 1)], [draw(4, 4)]], slots=32, columns=4)
    return [one, pack([[], [draw(2, 6), draw(6, 2, keep=3), draw(3, 3), draw(1, 4)]], slots=32, columns=4)]


def tensors(batch: Any) -> tuple[torch.Tensor, ...]:
    return batch.patches, batch.segment_ids, batch.coords, batch.grids


def of_other_shapes(draw: Draw, pack: Pack) -> list[Any]:
    """Batches of which no two agree in the number of packs, slots or images."""
    three = pack([[draw(2, 2)], [], [draw(3, 3), draw(1, 4), draw(2, 2)]], slots=40, columns=5)
    return [of_samples(three, [[1], [], [1, 2]]), pack([[draw(3, 1), draw(2, 1)]], slots=7, columns=2)]


def inputs_of(batch: Any) -> dict[str, torch.Tensor]:
    return {name: getattr(batch, name) for name in ("patches", "segment_ids", "coords", "grids", "samples", "frames")}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_an_exported_model_gives_the_logits_of_batches_of_any_number_of_packs_slots_and_images(
    variant: dict[str, Any], draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model = build(dataclasses.replace(config, **variant))
    first, second = two_batches(draw, pack)
    B, L, K = (torch.export.Dim(name) for name in "BLK")
    slots, columns = {0: B, 1: L}, {0: B, 1: K}
    shapes = dict.fromkeys(("patches", "segment_ids", "coords"), slots)
    shapes |= dict.fromkeys(("grids", "samples", "frames"), columns)
    exported = torch.export.export(DenseNaViT(model), (), inputs_of(first), dynamic_shapes=shapes).module()
    for batch in (first, second, *of_other_shapes(draw, pack)):
        assert_near(exported(**inputs_of(batch)), model(batch), 1e-5)


def test_a_dense_model_is_in_the_mode_of_its_model(build: Build, config: NaViTConfig) -> None:
    model = build(config)
    assert not DenseNaViT(model.eval()).training
    assert DenseNaViT(model.train()).training
    assert model.training


def test_a_model_exports_at_another_patch_size(draw: Draw, pack: Pack, build: Build, config: NaViTConfig) -> None:
    model, batch = build(dataclasses.replace(config, patch_size=6)), two_batches(draw, pack)[0]
    exported = torch.export.export(DenseNaViT(model), tensors(batch)).module()
    assert_near(exported(*tensors(batch)), model(batch), 1e-5)


def compiled_equals_eager(model: DenseNaViT, batches: list[Any], backend: str, tolerance: float) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    for batch in batches:
        results = []
        for run in (compiled, model):
            model.zero_grad()
            logits = run(*tensors(batch))
            logits.square().sum().backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            assert len(gradients) == len(list(model.parameters()))
            results.append((logits, gradients))
        (ours, our_gradients), (theirs, their_gradients) = results
        assert_near(ours, theirs, tolerance)
        assert_near(our_gradients, their_gradients, tolerance)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "a batch of the same shape compiled anew"


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")  # torch, there alone
@pytest.mark.parametrize("name", ["default", "grid, mean", "rope, cls, registers"])
def test_forward_and_backward_compile_as_one_graph_for_all_batches_of_a_shape(
    name: str, draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model = DenseNaViT(build(dataclasses.replace(config, **VARIANTS[name])).train())
    compiled_equals_eager(model, two_batches(draw, pack), "aot_eager", 1e-4)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor uses it
def test_forward_and_backward_compile_with_inductor(draw: Draw, pack: Pack, build: Build, config: NaViTConfig) -> None:
    compiled_equals_eager(DenseNaViT(build(config).train()), two_batches(draw, pack), "inductor", 1e-4)
