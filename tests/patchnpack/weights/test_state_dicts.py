from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack.weights.state_dicts import check_fit, mlp_ratio, named, read_weights, side_of

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def write(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in weights.items()})  # type: ignore[arg-type]
    elif path.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pt", ".bin"])
def test_every_kind_of_file_round_trips(suffix: str, tmp_path: Path) -> None:
    read = read_weights(write(tmp_path / f"weights{suffix}", WEIGHTS))
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], value) for name, value in WEIGHTS.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_exactly(dtype: torch.dtype) -> None:
    value = torch.tensor([1.5, -0.0078125]).to(dtype)
    assert torch.equal(read_weights({"a": value})["a"], value.float())


def test_bfloat16_stored_as_void_by_numpy_is_read(tmp_path: Path) -> None:
    value = torch.tensor([[1.5, -3.25], [0.5, 1e30]], dtype=torch.bfloat16)
    np.savez(tmp_path / "a.npz", a=value.view(torch.int16).numpy().view("V2"))
    assert torch.equal(read_weights(tmp_path / "a.npz")["a"], value.float())


def test_missing_safetensors_raises_with_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'patchnpack\[weights\]'"):
        read_weights(tmp_path / "model.safetensors")


class _Attack:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_file_that_would_execute_code_is_refused(suffix: str, tmp_path: Path) -> None:
    path, folder = tmp_path / f"weights{suffix}", tmp_path / "made"
    if suffix == ".pth":
        torch.save({"a": _Attack(folder)}, path)
    else:
        np.savez(path, a=np.array([_Attack(folder)], dtype=object))
    with pytest.raises(ValueError, match="code in it is never executed"):
        read_weights(path)
    assert not folder.exists()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_truncated_file_raises_and_is_named(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"weights{suffix}", WEIGHTS)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"weights\{suffix} cannot be read"):
        read_weights(path)


def test_missing_file_raises_file_not_found(tmp_path: Path) -> None:
    for suffix in (".npz", ".pth"):
        with pytest.raises(FileNotFoundError):
            read_weights(tmp_path / f"none{suffix}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("weights.ckpt", r"weights.ckpt ends in '.ckpt'; give a .npz"),
        ({}, "must be a mapping"),
        ({"a": np.zeros(2, np.int64)}, "'a' is not an array of weights but of type int64 array; leave it out"),
        ({"a": 3.0}, "'a' is not an array of weights but of type float"),
        ({"epoch": 3, "state_dict": {}}, "nested; .* pass the value under 'state_dict'"),
    ],
)
def test_invalid_state_dict_raises(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_weights(source)


def test_all_differences_are_reported_in_one_error() -> None:
    given = {f"blocks.{i}.x": torch.ones(1) for i in range(3)} | {"a": torch.ones(2)}
    with pytest.raises(
        ValueError, match=r"no counterpart for blocks\.\*\.x \(3 of them\); b is missing; a has shape \(2,\)"
    ):
        check_fit(given, {"a": torch.ones(3), "b": torch.ones(1)})


def test_long_list_of_names_ends_with_the_number_of_others() -> None:
    assert named([f"name{i}" for i in range(40)]).endswith("name11 and 28 more")


def test_mlp_ratio_restores_the_hidden_width() -> None:
    for width in (48, 192, 384, 1152, 1408):
        for hidden in range(width, 5 * width, 7):
            assert int(mlp_ratio(hidden, width) * width) == hidden


def test_side_of_accepts_only_square_numbers() -> None:
    assert [n for n in range(-3, 30) if side_of(n)] == [1, 4, 9, 16, 25]
