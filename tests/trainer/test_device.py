from __future__ import annotations

import pytest
import torch

from patchnpack.models import NaViTConfig
from patchnpack.trainer import TrainConfig, train
from patchnpack.trainer.device import find_device


def test_auto_is_cuda_if_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device("auto") == find_device("cuda") == torch.device("cuda:1")
    assert find_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", r"device is 'gpu'; give 'auto', 'cpu', 'cuda', or a single GPU such as 'cuda:1'"),
        ("cuda", r"device is 'cuda', but torch .* finds 0 GPUs; give 'cpu' or 'auto'"),
        ("cuda:3", r"device is 'cuda:3', but torch .* finds 0 GPUs"),
    ],
)
def test_a_missing_device_is_an_error_that_names_it(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=message):
        train(NaViTConfig(num_classes=2), [], config=TrainConfig(epochs=1, device=name))
