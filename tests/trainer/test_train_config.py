from __future__ import annotations

from typing import Any

import pytest

from patchnpack.trainer import TrainConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": None}, r"not given.*exactly one of epochs, steps and minutes"),
        ({"steps": 5}, r"'epochs': 1, 'steps': 5.*exactly one"),
        ({"epochs": 0}, r"epochs is 0; it must be above 0"),
        ({"lr": -1.0}, r"lr is -1.0; it must be above 0"),
        ({"warmup": 1.0}, r"warmup is 1.0; it must be a share"),
        ({"label_smoothing": -0.1}, r"label_smoothing is -0.1; it must be a share"),
        ({"weight_decay": -0.1}, r"weight_decay is -0.1; it must not be negative"),
        ({"accumulate": 0}, r"accumulate is 0; it must be above 0"),
        ({"keep": 0}, r"keep is 0; it must be above 0"),
        ({"save_every": 0}, r"save_every is 0; it must be above 0"),
        ({"temperature": 0.0}, r"temperature is 0.0; it must be above 0"),
        ({"ema": 1.0}, r"ema is 1.0; it must be a share"),
        ({"layer_decay": 1.5}, r"layer_decay is 1.5; it must be at most 1"),
        ({"mixup": -1.0}, r"mixup is -1.0; it must not be negative"),
        ({"schedule": "step"}, r"schedule is 'step'; choose 'cosine' or 'rsqrt'"),
        ({"schedule": "rsqrt", "warmup": 0.0}, r"'rsqrt' has warmup 0.0 and cooldown 0.2; it needs a warmup above 0"),
        ({"schedule": "rsqrt", "warmup": 0.6, "cooldown": 0.5}, r"a sum of both of at most 1"),
        ({"loss": "hinge"}, r"loss is 'hinge'; choose 'auto', 'softmax' or 'sigmoid'"),
        ({"precision": "float16"}, r"precision is 'float16'; choose 'auto', 'float32' or 'bfloat16'"),
    ],
)
def test_an_impossible_training_is_refused_with_value_and_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"epochs": 1, **changes})
