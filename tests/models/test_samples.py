"""Scope "sample": what a model computes for samples of several images, and what their frames change."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patchnpack.models import DenseNaViT, NaViT, NaViTConfig, token_maps
from patchnpack.packer import PackedBatch
from tests.closeness import assert_near, difference
from tests.models.conftest import of_samples

Draw = Callable[..., Any]
Pack = Callable[..., Any]
Build = Callable[..., Any]

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "learned": {"time": "learned", "max_frames": 4},
    "sinusoidal, grid, mean": {"time": "sinusoidal", "position": "grid", "pooling": "mean"},
    "learned, rope, cls, registers": {
        "time": "learned", "max_frames": 4, "position": "rope", "pooling": "cls", "registers": 2},
    "rope, rope, max": {"time": "rope", "position": "rope", "pooling": "max"},
    "rope, fractional": {"time": "rope", "position": "fractional", "registers": 1},
}  # fmt: skip
TIMES = ["learned", "sinusoidal", "rope"]


def some_packs(draw: Draw) -> tuple[list[list[Any]], list[list[int]]]:
    """Samples of 1 to 3 images, two of them of equal length, some with dropped tokens; one pack is empty."""
    first = [draw(5, 3, 0), draw(3, 5, 0, keep=9), draw(1, 1, 2), draw(4, 4, 3, seed=1), draw(3, 3, 3)]
    return [first, [], [draw(3, 5, 4, seed=2), draw(2, 2, 4), draw(2, 3, 4, keep=5)]], [[2, 1, 2], [], [3]]


def a_batch(draw: Draw, pack: Pack) -> PackedBatch:
    packs, sizes = some_packs(draw)
    return of_samples(pack(packs, slots=60), sizes)


@pytest.fixture
def scoped(config: NaViTConfig) -> Callable[..., NaViTConfig]:
    return lambda **changes: dataclasses.replace(config, **{"scope": "sample", "position_grid": 6, **changes})


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("backend", ["split", "dense"])
def test_a_sample_in_a_pack_equals_the_sample_alone_in_output_and_gradient(
    backend: str, variant: dict[str, Any], draw: Draw, pack: Pack, build: Build, scoped: Any
) -> None:
    model = build(scoped(backend=backend, **variant), torch.float64)
    (packs, sizes), parameters = some_packs(draw), list(model.parameters())
    together = model(a_batch(draw, pack))
    assert together.shape == (3, 6, 5)
    direction = torch.linspace(-1, 1, 5, dtype=torch.float64)
    for b, counts in enumerate(sizes):
        assert not together[b, len(counts) :].any()
        for s, count in enumerate(counts):
            images = packs[b][sum(counts[:s]) :][:count]
            alone = model(of_samples(pack([images]), [[count]]))[0, 0]
            assert alone.detach().norm() > 0.01
            assert_near(together[b, s], alone, 1e-12)
            in_pack = torch.autograd.grad(together[b, s] @ direction, parameters, retain_graph=True)
            assert_near(in_pack, torch.autograd.grad(alone @ direction, parameters), 1e-12)


@pytest.mark.parametrize("variant", [{}, {"position": "grid", "pooling": "mean"}, {"position": "rope", "registers": 2}])
def test_equal_frames_without_time_equal_one_tall_image_with_their_positions(
    variant: dict[str, Any], draw: Draw, pack: Pack, build: Build, scoped: Any
) -> None:
    batch = of_samples(pack([[draw(4, 3, seed=i) for i in range(3)], [draw(2, 5), draw(2, 5, seed=1)]]), [[3], [2]])
    tall = dataclasses.replace(
        batch.by_sample(), coords=batch.coords, grids=batch.grids * batch.by_sample().image_mask[..., None]
    )
    model = build(scoped(**variant), torch.float64)
    expected = build(scoped(scope="image", **variant), torch.float64)(tall)
    assert_near(model(batch), expected, 1e-13)
    assert difference(model(batch), build(scoped(scope="image", **variant), torch.float64)(batch)) > 1e-3


@pytest.mark.parametrize("backend", ["split", "dense"])
def test_scope_image_ignores_samples_and_single_images_are_alike_in_both_scopes_bit_for_bit(
    backend: str, draw: Draw, pack: Pack, build: Build, scoped: Any
) -> None:
    plain = pack(some_packs(draw)[0], slots=60)
    image, sample = build(scoped(scope="image", backend=backend)), build(scoped(backend=backend))
    assert torch.equal(image(a_batch(draw, pack)), image(plain))
    assert torch.equal(sample(plain), image(plain))


@pytest.mark.parametrize("time", ["none", *TIMES])
@pytest.mark.parametrize("position", ["absolute", "rope"])
def test_the_order_of_frames_matters_only_with_time(
    position: str, time: str, draw: Draw, pack: Pack, build: Build, scoped: Any
) -> None:
    one, two = draw(4, 3), draw(3, 3)
    model = build(scoped(time=time, position=position), torch.float64)
    forth, back = (model(of_samples(pack([images]), [[2]])) for images in ([one, two], [two, one]))
    if time == "none":
        assert_near(forth, back, 1e-13)
    else:
        assert difference(forth, back) > 1e-3


@pytest.mark.parametrize("position", ["fractional", "rope"])
def test_with_rope_only_the_distance_of_frames_matters(
    position: str, draw: Draw, pack: Pack, build: Build, scoped: Any
) -> None:
    batch, model = pack([[draw(4, 3), draw(3, 3)]]), build(scoped(time="rope", position=position), torch.float64)
    near, later, far = (model(of_samples(batch, [[2]], [frames])) for frames in ([0, 1], [5, 6], [0, 6]))
    assert_near(later, near, 1e-7)  # angles are float32
    assert difference(far, near) > 1e-3


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_every_backend_gives_the_logits_of_the_dense_one(
    draw: Draw, pack: Pack, build: Build, scoped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, dense = a_batch(draw, pack), build(scoped(backend="dense", time="learned"))
    expected = dense(batch)
    for backend in ("auto", "split"):
        assert_near(build(scoped(backend=backend, time="learned"))(batch), expected, 1e-5)
    with torch.no_grad():
        assert_near(build(scoped(backend="flex", time="learned"))(batch), expected, 1e-5)

    def kernel(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, longest_q: int, longest_k: int) -> torch.Tensor:
        """What a kernel for variable lengths computes, sequence by sequence."""
        assert (longest_q, longest_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
        each = zip(
            q.split(cu_q.diff().tolist()), k.split(cu_k.diff().tolist()), v.split(cu_k.diff().tolist()), strict=True
        )
        parts = [[x.transpose(0, 1) for x in qkv] for qkv in each]
        sdpa = torch.nn.functional.scaled_dot_product_attention
        return torch.cat([sdpa(*part).transpose(0, 1) for part in parts])

    monkeypatch.setitem(__import__("sys").modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=kernel))
    for module in ("attention", "navit"):
        monkeypatch.setattr(f"patchnpack.models.{module}.attention_backend", lambda *_: "flash")  # as if on CUDA
    assert_near(build(scoped(backend="flash", time="learned"))(batch), expected, 1e-5)


def test_the_loss_is_the_mean_over_labelled_samples(draw: Draw, pack: Pack, build: Build, scoped: Any) -> None:
    model, batch = build(scoped()), a_batch(draw, pack)
    batch.labels[0, 2] = -100
    log_p = model(batch).log_softmax(-1)
    each = torch.stack([-log_p[0, 0, 0], -log_p[0, 2, 3], -log_p[2, 0, 4]])
    torch.testing.assert_close(model.loss(batch), each.mean())
    torch.testing.assert_close(model.loss(batch, "sum"), each.sum())
    batch.labels[0, 3:5] = 7
    with pytest.raises(ValueError, match=r"label 7 is not a class from 0 to 4 \(sample '0/3'\)"):
        model.loss(batch)


@pytest.mark.parametrize("packs", [[[]], [[], []]])
def test_a_batch_without_samples_has_loss_zero_that_reaches_every_parameter(
    packs: list[list[Any]], pack: Pack, build: Build, scoped: Any
) -> None:
    model = build(scoped(time="learned", registers=1)).train()
    loss = model.loss(pack(packs))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_drop_path_drops_or_scales_a_branch_for_whole_samples(
    draw: Draw, pack: Pack, build: Build, scoped: Any
) -> None:
    model = build(scoped(drop_path=0.5)).train()
    batch = of_samples(pack([[draw(2, 2) for _ in range(12)] for _ in range(8)], columns=12), [[2] * 6] * 8)
    torch.manual_seed(0)
    outcomes: list[torch.Tensor] = []
    for logits in model(batch)[batch.by_sample().image_mask].detach():
        if all(difference(logits, known) > 1e-4 for known in outcomes):
            outcomes.append(logits)
    assert len(outcomes) == 4  # attention and MLP of the second block, each dropped or not


@pytest.mark.parametrize("backend", ["split", "dense"])
def test_features_are_those_of_samples_and_token_maps_those_of_images(
    backend: str, draw: Draw, pack: Pack, build: Build, scoped: Any
) -> None:
    model, batch = build(scoped(backend=backend, time="sinusoidal"), torch.float64), a_batch(draw, pack)
    features, units = model.features(batch), batch.by_sample()
    assert features.cu_seqlens.tolist() == units.cu_seqlens.tolist() == [0, 24, 25, 50, 74]
    assert torch.equal(features.pooled.any(-1), units.image_mask)
    torch.testing.assert_close(model.head(features.pooled)[units.image_mask], model(batch)[units.image_mask])
    maps = token_maps(features.tokens, batch)
    assert [tuple(each.mask.shape[::-1]) for each in maps] == [image.grid for image in batch.images()]
    (packs, sizes) = some_packs(draw)
    alone = model.features(of_samples(pack([packs[2]]), [sizes[2]])).tokens
    torch.testing.assert_close(features.tokens[50:], alone)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_an_exported_model_gives_the_logits_of_other_batches_of_its_shape_too(
    variant: dict[str, Any], draw: Draw, pack: Pack, build: Build, scoped: Any
) -> None:
    model, first = build(scoped(**variant)), a_batch(draw, pack)
    second = of_samples(pack([[], [draw(4, 4), draw(2, 3)], [draw(5, 5)]], slots=60), [[], [2], [1]])
    names = ("patches", "segment_ids", "coords", "grids", "samples", "frames")
    inputs = [tuple(getattr(batch, name) for name in names) for batch in (first, second)]
    exported = torch.export.export(DenseNaViT(model), inputs[0]).module()
    for tensors, batch in zip(inputs, (first, second), strict=True):
        assert_near(exported(*tensors), model(batch), 1e-5)
    with pytest.raises(ValueError, match=r"scope 'sample' and time .*pass it the batch's samples and frames"):
        DenseNaViT(model)(*inputs[0][:4])


@pytest.mark.parametrize("scope", ["image", "sample"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("backend", ["split", "dense"])
def test_forward_loss_and_backward_run_without_values_on_the_host(
    backend: str,
    variant: dict[str, Any],
    scope: str,
    draw: Draw,
    pack: Pack,
    scoped: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it does not know "meta"
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    if scope == "image" and variant.get("time") == "rope":
        pytest.skip("refused")
    model = NaViT(scoped(**variant, scope=scope, backend=backend, drop_path=0.1)).to("meta")
    batch = a_batch(draw, pack).to("meta")
    loss = model.train().loss(batch)
    loss.backward()
    assert loss.device.type == "meta"
    assert all(p.grad is not None for p in model.parameters())
    assert model.features(batch).pooled.shape == (3, 6, 24)


def test_time_needs_frames_that_fit_and_widths_that_divide(draw: Draw, pack: Pack, scoped: Any) -> None:
    batch = of_samples(pack([[draw(2, 2), draw(3, 3)]]), [[2]], [[0, 9]])
    with pytest.raises(
        ValueError, match=r"image '0/1' is frame 9 .*max_frames 8; raise max_frames to at least 10, give"
    ):
        NaViT(scoped(time="learned", max_frames=8))(batch)
    assert NaViT(scoped(time="learned", max_frames=10))(batch).isfinite().all()
    with pytest.raises(ValueError, match=r"time is 'rope' with scope 'image'.*set scope='sample'"):
        scoped(scope="image", time="rope")
    with pytest.raises(ValueError, match=r"12 features per head, but rope .* each axis; .* multiple of 16"):
        scoped(width=24, heads=2, position="rope", time="rope")
    with pytest.raises(ValueError, match=r"width 15 is odd, but time 'sinusoidal' needs an even one"):
        scoped(width=15, heads=3, position="mlp", time="sinusoidal")
    with pytest.raises(ValueError, match=r"scope is 'pack'; choose one of image, sample"):
        scoped(scope="pack")
    with pytest.raises(ValueError, match=r"time is 'learnt'; choose one of none, learned, sinusoidal, rope"):
        scoped(time="learnt")
    with pytest.raises(ValueError, match=r"max_frames is 0; it must be at least 1"):
        scoped(max_frames=0)


def test_the_table_of_frames_is_trained_and_starts_at_the_size_of_positions(
    draw: Draw, pack: Pack, scoped: Any
) -> None:
    model = NaViT(scoped(time="learned", max_frames=64))
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    model.loss(a_batch(draw, pack)).backward()
    gradient = model.frame_embed.grad
    assert gradient is not None
    assert gradient.any(1).tolist() == [True] * 3 + [False] * 61
    assert 0.15 < float(model.frame_embed.detach().std()) < 0.25
