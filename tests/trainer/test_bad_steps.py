from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import (
    Classification,
    Contrastive,
    Distillation,
    Objective,
    TrainConfig,
    evaluate,
    load_checkpoint,
    train,
)
from patchnpack.trainer.objectives.losses import Outcome

Draw = Callable[..., Any]
Pack = Callable[..., Any]
OBJECTIVES = ["classification", "mixing", "distillation", "contrastive"]


@pytest.fixture
def batches(draw: Draw, pack: Pack) -> list[Any]:
    """Four batches of four images with texts."""
    images = [draw(2 + i % 3, 3, label=i % 2, seed=i, high=256 if i % 2 else 60) for i in range(16)]
    packed = [pack([images[i : i + 2], images[i + 2 : i + 4]], slots=24, columns=3) for i in range(0, 16, 4)]
    return [dataclasses.replace(batch, extras={"txt": [["a cat", "a dog"]] * 2}) for batch in packed]


@pytest.fixture
def small(config: NaViTConfig) -> NaViTConfig:
    return dataclasses.replace(config, num_classes=2, depth=1, width=12)


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 8, "lr": 3e-3, "precision": "float32", "warmup": 0.0, **changes})


class Fault:
    """Replaces the loss in some steps; in the others nothing changes. Evaluations do not count."""

    def __init__(self, steps: set[int], how: str) -> None:
        self.steps, self.how, self.step = steps, how, 0

    def __call__(self, outcome: Outcome) -> Outcome:
        if not torch.is_grad_enabled():
            return outcome
        self.step += 1
        if self.step not in self.steps:
            return outcome
        total = outcome.total
        if self.how == "infinite loss":  # with gradients of 0, as where a loss overflows to a constant
            total = total * 0 + math.inf
        elif self.how == "NaN loss":
            total = total * math.nan
        else:  # a loss of 0 with an infinite gradient
            total = _InfiniteGradient.apply(total)  # type: ignore[no-untyped-call]
        return outcome._replace(total=total)


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * math.inf


def objective_of(kind: str, model: NaViT, fault: Fault | None = None) -> Objective:
    torch.manual_seed(1)
    objective: Objective
    if kind == "contrastive":
        objective = Contrastive(model, embed=8, tower={"width": 12, "depth": 1, "heads": 2})
    elif kind == "distillation":
        objective = Distillation(NaViT(model.config))
    else:
        objective = Classification(mixup=0.5 if kind == "mixing" else 0.0, cutmix=0.5 if kind == "mixing" else 0.0)
    if fault is not None:
        whole = objective.forward
        objective.forward = lambda *inputs: fault(whole(*inputs))  # type: ignore[method-assign]
    return objective


def model_of(kind: str, config: NaViTConfig) -> NaViT:
    torch.manual_seed(0)
    return NaViT(dataclasses.replace(config, num_classes=0) if kind == "contrastive" else config)


def weights(model: NaViT) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("how", ["infinite loss", "NaN loss", "infinite gradient"])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_bad_step_ends_the_run_names_the_step_and_leaves_the_last_good_checkpoint(
    kind: str, how: str, tmp_path: Path, batches: list[Any], small: NaViTConfig
) -> None:
    config, model = settings(save_every=1, keep=2), model_of(kind, small)
    objective = objective_of(kind, model, Fault({6}, how))
    with pytest.raises(FloatingPointError, match=r"in step 6, so .* not taken; the checkpoint of step 5 is unchanged"):
        train(model, batches, config=config, objective=objective, out=tmp_path)
    kept = load_checkpoint(tmp_path / "checkpoint.pt")
    assert kept.step == 5
    assert (tmp_path / "checkpoint-0000000004.pt").exists()
    assert torch.equal(weights(kept.model), weights(model)), "the step changed no weight"
    assert weights(model).isfinite().all()
    model = model_of(kind, small)  # the same command once more, with batches that are good now
    resumed = train(model, batches, config=config, objective=objective_of(kind, model), out=tmp_path, resume=True)
    assert len(resumed.losses) == 8
    assert all(map(math.isfinite, resumed.losses))


@pytest.mark.parametrize("how", ["infinite loss", "NaN loss", "infinite gradient"])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_skipped_steps_change_nothing_and_are_counted(
    kind: str, how: str, batches: list[Any], small: NaViTConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config, model = settings(skip_bad_steps=2, ema=0.9), model_of(kind, small)
    seen: list[torch.Tensor] = []
    steps: list[tuple[int, dict[str, float]]] = []
    model.register_forward_pre_hook(lambda *_: seen.append(weights(model)) if model.training else None)
    fault = Fault({3, 4, 7}, how)
    with caplog.at_level(logging.WARNING, "patchnpack"):
        result = train(
            model,
            batches,
            config=dataclasses.replace(config, log_steps=1),
            objective=objective_of(kind, model, fault),
            log=lambda step, scalars: steps.append((step, scalars)),
        )
    assert result.skipped_steps == 3
    assert torch.equal(seen[2], seen[3])
    assert torch.equal(seen[3], seen[4])
    assert torch.equal(seen[6], seen[7])
    assert not torch.equal(seen[4], seen[5])
    assert weights(result.model).isfinite().all()
    finite = [math.isfinite(loss) for loss in result.losses]
    assert how == "infinite gradient" or finite == [i not in (3, 4, 7) for i in range(1, 9)]
    assert [row["skipped_steps"] for row in result.history] == [2, 3]
    assert all(math.isfinite(row["loss"]) for row in result.history)
    assert [scalars["train/skipped_steps"] for _, scalars in steps] == [0, 0, 1, 2, 2, 2, 3, 3]
    assert [int(re.findall(r"step (\d+) is skipped", line)[0]) for line in caplog.messages] == [3, 4, 7]


def test_one_bad_step_more_than_allowed_in_a_row_ends_the_run(batches: list[Any], small: NaViTConfig) -> None:
    model = model_of("classification", small)
    with pytest.raises(FloatingPointError, match=r"in step 5 \(3 bad steps in a row\).* set skip_bad_steps above 2"):
        train(
            model,
            batches,
            config=settings(skip_bad_steps=2),
            objective=objective_of("classification", model, Fault({1, 3, 4, 5}, "NaN loss")),
        )


def test_the_count_of_skipped_steps_survives_a_resume(tmp_path: Path, batches: list[Any], small: NaViTConfig) -> None:
    def go(skip: int, fault: Fault) -> Any:
        model = model_of("classification", small)
        objective = objective_of("classification", model, fault)
        return train(
            model, batches, config=settings(skip_bad_steps=skip, save_every=1), objective=objective, out=tmp_path
        )

    with pytest.raises(FloatingPointError, match=r"in step 6 \(3 bad steps in a row\)"):
        go(2, Fault({2, 4, 5, 6}, "NaN loss"))
    # steps 4 and 5 were saved as skipped; of the next process, step 6 is the first
    with pytest.raises(FloatingPointError, match=r"in step 6 \(3 bad steps in a row\)"):
        go(2, Fault({1}, "NaN loss"))
    result = go(3, Fault({1}, "NaN loss"))  # the limit may change
    assert result.skipped_steps == 4
    assert [math.isfinite(loss) for loss in result.losses] == [True, False, True, False, False, False, True, True]


def test_weights_that_a_step_made_infinite_are_not_saved(
    tmp_path: Path, batches: list[Any], small: NaViTConfig
) -> None:
    config = settings(steps=40, lr=1e12, weight_decay=1.0, save_every=1, keep=2)
    with pytest.raises(FloatingPointError, match=r"step \d+.*the checkpoint of step \d+ is unchanged"):
        train(small, batches, config=config, out=tmp_path)
    kept = sorted(tmp_path.glob("checkpoint*.pt"))
    assert kept
    for path in kept:
        model = load_checkpoint(path).model
        assert weights(model).isfinite().all()
        assert math.isfinite(evaluate(model, batches, precision="float32")["loss"]), path


def test_finite_weights_with_which_no_step_succeeds_are_not_saved(
    tmp_path: Path, batches: list[Any], small: NaViTConfig
) -> None:
    """The overflow shows only in the next step's loss, in the middle of an epoch and at its end."""
    for save_every, steps in ((1, 1), (None, 4)):
        model, out = model_of("classification", small), tmp_path / str(save_every)

        def blow_up(step: int, scalars: dict[str, float], model: NaViT = model, at: int = steps) -> None:
            if step == 4 + at:
                with torch.no_grad():
                    model.get_parameter("blocks.0.qkv.weight").fill_(1e38)

        config = settings(steps=12, save_every=save_every, log_steps=1)
        with pytest.raises(FloatingPointError, match=rf"step {4 + steps} left weights with which the loss is"):
            train(model, batches, config=config, out=out, log=blow_up)
        assert load_checkpoint(out / "checkpoint.pt").step == 4


def test_an_infinite_weight_is_not_saved_even_where_no_batch_uses_it(
    tmp_path: Path, batches: list[Any], small: NaViTConfig
) -> None:
    model = model_of("classification", small)

    def overflow(step: int, scalars: dict[str, float]) -> None:
        if step == 5:
            with torch.no_grad():
                model.get_parameter("pos_embed.x")[15] = torch.inf  # a column that no image has

    with pytest.raises(FloatingPointError, match="step 5 left weights that are not finite, so they are not saved"):
        train(model, batches, config=settings(save_every=1, log_steps=1), out=tmp_path, log=overflow)
    assert load_checkpoint(tmp_path / "checkpoint.pt").step == 4


def test_evaluation_reports_losses_that_are_not_finite(
    batches: list[Any], small: NaViTConfig, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of("classification", small)
    with torch.no_grad():
        model.get_parameter("head.bias").fill_(torch.nan)
    with caplog.at_level(logging.WARNING, "patchnpack"):
        assert math.isnan(evaluate(model, batches, precision="float32")["loss"])
    assert "the loss of 4 of 4 evaluated batches is not finite" in caplog.text


def test_a_model_without_trainable_parameters_is_refused(batches: list[Any], small: NaViTConfig) -> None:
    model = NaViT(small).requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"no parameter of the model requires a gradient.*model\.requires_grad_\(True\)"
    ):
        train(model, batches, config=settings())
    student = NaViT(small)
    with pytest.raises(ValueError, match="The teacher of a Distillation is frozen: train a copy"):
        train(student, batches, config=settings(), objective=Distillation(student))
    with torch.no_grad(), pytest.raises(ValueError, match=r"gradients are disabled.*outside torch\.no_grad"):
        train(NaViT(small), batches, config=settings())
    model.head.requires_grad_(True)
    before = weights(model)
    train(model, batches, config=settings())
    assert not torch.equal(weights(model), before), "the head alone can be trained"
