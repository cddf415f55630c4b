"""Every step on a device runs without the host: no tensor is left on the CPU, and nothing waits for a value.

Tensors on the meta device have no values, so waiting for one fails; see `tests.host_guard`.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from patchnpack.models import NaViT, NaViTConfig, token_maps
from patchnpack.models import attention as attention_module
from patchnpack.models.attention import BACKENDS
from patchnpack.models.pooling import POOLINGS
from patchnpack.models.pos_embed import POSITIONS
from patchnpack.packer.batch.packed_batch import PackedBatch
from patchnpack.trainer import Classification, Contrastive, Distillation, Objective, Outcome, TrainConfig, evaluate
from patchnpack.trainer.bad_steps import BadSteps
from patchnpack.trainer.evaluate import Meter
from patchnpack.trainer.run import Run
from tests.host_guard import nothing_on_the_host
from tests.models.conftest import P, of_samples

Draw = Callable[..., Any]
Pack = Callable[..., Any]

META = torch.device("meta")
TIMES = ("none", "learned", "sinusoidal", "rope")
SCOPES = [(scope, time) for scope in ("image", "sample") for time in TIMES if (scope, time) != ("image", "rope")]


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let autocast, the fused optimizer and all backends take meta tensors as they take those on a GPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it does not know "meta"
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    optimizers = sys.modules["torch.optim.optimizer"]  # torch.optim has no such attribute
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    # The block mask is made on the device; the kernel takes no modes that watch it.
    flex = lambda q, k, v, block_mask: q + 0 * (k.sum() + v.sum())  # noqa: E731
    monkeypatch.setattr(attention_module, "_compiled_flex", lambda device: flex)
    monkeypatch.setattr(attention_module, "attention_backend", lambda device, dtype, name, width: name)
    monkeypatch.setattr("patchnpack.models.navit.attention_backend", lambda device, dtype, name, width: name)
    kernel = SimpleNamespace(flash_attn_varlen_func=lambda q, k, v, *_: q + 0 * (k.sum() + v.sum()))
    monkeypatch.setitem(sys.modules, "flash_attn", kernel)
    monkeypatch.setattr(BadSteps, "add", lambda *_: None)  # a copy to the host, which is read one step later


@pytest.fixture
def batch(draw: Draw, pack: Pack) -> PackedBatch:
    """A batch on the CPU with texts, samples of several images, and an empty pack."""
    packs = [[draw(5, 3, 1), draw(3, 5, 2), draw(1, 1, 0)], [], [draw(4, 4, 3), draw(2, 6, 4)]]
    batch = of_samples(pack(packs), [[2, 1], [], [2]])
    batch.extras["txt"] = [["a", "b", None], [], ["d", "e"]]
    return batch


def make(**fields: Any) -> NaViT:
    return NaViT(NaViTConfig(**{"num_classes": 5, "width": 24, "depth": 1, "heads": 3, "patch_size": P} | fields))


def step(model: NaViT, objective: Objective, batch: PackedBatch, accumulate: int = 2, **settings: Any) -> Run:
    """One step of some batches on the meta device, with all that `train` does in it."""
    config = TrainConfig(steps=9, ema=0.9, accumulate=accumulate, precision="float32", **settings)
    run = Run(model.to(META).train(), objective.to(META), config, META, None)
    with nothing_on_the_host():
        run._take([batch] * accumulate)
    assert run.losses[0].is_meta
    assert all(p.grad is not None for p in run.module.parameters() if p.requires_grad)
    return run


PAIRS = list(itertools.product(POSITIONS, POOLINGS))
KERNELS = [name for name in BACKENDS if name != "auto"]
# Models that differ in position, pooling, scope with time, and backend. Two of each position and pooling make all pairs
# of options occur: 7 scopes and 5 backends take turns.
ALL = list(itertools.product(PAIRS, SCOPES, KERNELS))
SOME = [(PAIRS[i // 2], SCOPES[i % len(SCOPES)], KERNELS[i % len(KERNELS)]) for i in range(2 * len(PAIRS))]


def test_the_models_of_the_short_suite_have_all_pairs_of_options() -> None:
    def pairs(models: list[Any]) -> set[Any]:
        options = [(*pair, scope, backend) for pair, scope, backend in models]
        return {pair for each in options for pair in itertools.combinations(enumerate(each), 2)}

    assert pairs(SOME) == pairs(ALL)


def check_steps(pair: tuple[str, str], scope_time: tuple[str, str], backend: str, batch: PackedBatch) -> None:
    (position, pooling), (scope, time) = pair, scope_time
    model = make(
        position=position,
        pooling=pooling,
        scope=scope,
        time=time,
        registers=1 if time == "learned" else 0,
        width=48 if "rope" in (position, time) else 24,
        heads=3,
        drop_path=0.5,
        patch_size=P if time == "none" else 2 * P,  # resizes the weights
    )
    object.__setattr__(model.config, "backend", backend)
    mixing: dict[str, Any] = {"mixup": 0.5, "cutmix": 0.5} if scope == "image" else {}
    step(model, Classification(**mixing, label_smoothing=0.1), batch, accumulate=1)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("pair", "scope_time", "backend"), SOME, ids=["-".join([*a, *b, c]) for a, b, c in SOME])
def test_steps_of_all_models_run_without_the_host(
    pair: tuple[str, str], scope_time: tuple[str, str], backend: str, batch: PackedBatch
) -> None:
    check_steps(pair, scope_time, backend, batch)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("pair", PAIRS, ids=map("-".join, PAIRS))
def test_steps_of_every_combination_run_without_the_host(pair: tuple[str, str], batch: PackedBatch) -> None:
    for _, scope_time, backend in (model for model in ALL if model[0] == pair):
        check_steps(pair, scope_time, backend, batch)


@pytest.mark.parametrize("position", [("learned_grid", "mlp"), ("grid", "rope")])
def test_steps_with_added_positions_run_without_the_host(position: tuple[str, ...], batch: PackedBatch) -> None:
    step(make(position=position, width=48, position_keep_aspect=True), Classification(), batch)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["sigmoid", "weighted", "soft", "contrastive", "distillation", "other patches"])
@pytest.mark.parametrize("scope", ["image", "sample"])
def test_steps_of_all_objectives_run_without_the_host(
    scope: str, name: str, recompute: bool, batch: PackedBatch
) -> None:
    model = make(scope=scope, num_classes=0 if name == "contrastive" else 5, drop_path=0.5)
    teacher = make(scope=scope, patch_size=2 * P if name == "other patches" else P, width=12).to(META)
    makers: dict[str, Callable[[], Objective]] = {
        "sigmoid": lambda: Classification(loss="sigmoid"),
        "weighted": lambda: Classification(class_weights=[1, 2, 3, 4, 5.0]),
        "soft": lambda: Classification(loss="softmax"),
        "contrastive": lambda: Contrastive(model, embed=8, chunk=2, tower={"width": 12, "depth": 1, "heads": 2}),
        "distillation": lambda: Distillation(teacher, temperature=2.0, task_weight=0.5),
        "other patches": lambda: Distillation(teacher),
    }
    objective = makers[name]()
    if name == "soft":
        labels = F.one_hot(batch.labels.clamp(min=0), 5).float()
        batch.labels = labels.masked_fill(batch.labels[..., None] < 0, torch.nan)
    run = step(model, objective, batch, activation_checkpointing=recompute)
    assert run.average is not None


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("auto", "flex")])
def test_padded_batches_and_features_need_no_host(backend: str, batch: PackedBatch) -> None:
    model = make(registers=1, scope="sample", time="learned").to(META)
    object.__setattr__(model.config, "backend", backend)
    for each in (batch, batch.padded()):
        moved = each.to(META)
        with nothing_on_the_host():
            model.loss(moved).backward()
            features = model.features(moved)
        assert features.tokens.shape[0] == len(moved.token_index)
        assert features.cu_seqlens.shape == moved.by_sample().cu_seqlens.shape


def test_evaluation_reads_nothing_until_its_end(batch: PackedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = 0

    class Guarded(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            nonlocal guarded
            for each in [batch, batch]:
                guarded += 1
                yield each
            stack.close()  # what follows may wait, once

    class AtTheEnd(Exception):
        pass

    def read(*_: Any) -> Any:
        raise AtTheEnd

    monkeypatch.setattr(Meter, "over_ranks", read)
    for objective in (Classification(), Distillation(make().to(META))):
        model, stack = make().to(META), contextlib.ExitStack()
        stack.enter_context(nothing_on_the_host())
        with stack, pytest.raises(AtTheEnd):
            evaluate(model, Guarded([0, 0]), objective=objective)
    assert guarded == 4


WAITS: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool(x.any()),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "mask": lambda x: x[x > 0],
    "mask of the host": lambda x: x[torch.ones(x.shape, dtype=torch.bool)],
    "nonzero": lambda x: (x > 0).nonzero(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "repeat_interleave": lambda x: torch.repeat_interleave(x.int().flatten()),
    "left on the host": lambda x: x + torch.ones(x.shape),
    "index on the host": lambda x: x.flatten()[torch.zeros(2, dtype=torch.int64)],
    "blocking copy": lambda x: torch.ones(x.shape).to(x.device),
    "blocking copy into": lambda x: torch.empty_like(x).copy_(torch.ones(x.shape)),
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "as_tensor": lambda x: torch.as_tensor(3, device=x.device),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_each_way_to_wait_for_the_device_fails(wait: Callable[[torch.Tensor], Any], batch: PackedBatch) -> None:
    class Waiting(Classification):
        def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
            outcome = super().forward(model, *batches)
            wait(batches[0].coords.float())
            return outcome

    step(make(), Classification(), batch)
    with pytest.raises((AssertionError, NotImplementedError, RuntimeError, TypeError)):
        step(make(), Waiting(), batch)


def test_what_reads_values_by_its_nature_fails_on_a_device_without_them(batch: PackedBatch) -> None:
    moved = batch.to(META)
    with pytest.raises((NotImplementedError, RuntimeError)), nothing_on_the_host():
        token_maps(torch.zeros(moved.num_tokens, 4, device=META), moved)
    allowed = torch.ones(3).to(META, non_blocking=True)
    with nothing_on_the_host():
        assert (allowed + torch.tensor(2.0)).is_meta, "a number is an argument of a kernel"
        torch.empty(3, device=META).copy_(torch.ones(3), non_blocking=True)
