"""Open a model from a file of weights, whichever library wrote it."""

from __future__ import annotations

import inspect
import logging
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import load_checkpoint
from patchnpack.weights.big_vision import from_big_vision
from patchnpack.weights.state_dicts import read_file, read_json
from patchnpack.weights.timm import from_timm
from patchnpack.weights.transformers import from_transformers

_FREE = ("drop_path", "backend", "num_classes")  # fields that may differ from those of the weights
_FILES = ("checkpoint.pt", "model.safetensors", "pytorch_model.bin")  # the weights in a folder, in this order
# A name that only one library has. A prefix before it, such as "visual.trunk.", is that of the vision tower.
_MARKS: tuple[tuple[str, str], ...] = (
    ("big_vision", r"(?P<prefix>.*/|)embedding/kernel$"),
    ("transformers", r"(?:.*\.)?embeddings\.(?:patch_embeddings?|cls_token).*"),
    ("timm", r"(?P<prefix>(?:.*\.)?)blocks\.0\.attn\.(?:qkv|proj)\.weight$"),
)
_LOADERS: dict[str, Callable[..., NaViT]] = {
    "big_vision": from_big_vision,
    "transformers": from_transformers,
    "timm": from_timm,
}
_log = logging.getLogger("patchnpack.weights")


def open_model(path: str | Path, fields: Mapping[str, Any] | None = None) -> NaViT:
    """Load a model from a checkpoint of this library, or from weights of timm, big_vision or transformers.

    Args:
        path: a checkpoint.pt; a .safetensors, .npz, .pth, .pt or .bin file, which the names of its weights tell apart;
            or a folder that holds such a file. Options are read from the config.json beside it.
        fields: fields of `NaViTConfig` that the weights do not show, such as heads. Others must agree with the weights,
            except drop_path and backend, which may differ.

    Returns:
        The model in evaluation mode, with the head of the file, if it has one.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the names are of no library that maps, or a field contradicts the weights.

    >>> open_model("model.onnx")
    Traceback (most recent call last):
    FileNotFoundError: weights 'model.onnx' do not exist; give a checkpoint.pt, .safetensors, .npz, .pth or .bin file
    """
    path, given = _file(Path(path)), dict(fields or {})
    content = None if path.suffix == ".pt" and not _holds_arrays(path) else read_file(path)
    model = load_checkpoint(path).model if content is None else _of_library(path, content, given)
    check_fields(model.config, given, path)
    changes = {name: given[name] for name in ("drop_path", "backend") if name in given}
    return with_config(model, **changes) if changes else model


def _file(path: Path) -> Path:
    """The file of weights at a path, which may be a folder."""
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).exists()]
        if not found:
            raise FileNotFoundError(f"folder {str(path)!r} holds none of {', '.join(_FILES)}; give the file of weights")
        return found[0]
    if not path.exists() and path.suffix != ".pt":
        raise FileNotFoundError(
            f"weights {str(path)!r} do not exist; give a checkpoint.pt, .safetensors, .npz, .pth or .bin file"
        )
    return path


def _holds_arrays(path: Path) -> bool:
    """Whether a .pt file is a plain state dict rather than a checkpoint."""
    try:
        content = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return False  # `load_checkpoint` raises with the reason
    return isinstance(content, dict) and bool(content) and all(torch.is_tensor(value) for value in content.values())


def _of_library(path: Path, content: Any, given: Mapping[str, Any]) -> NaViT:
    """Load weights of another library; `given` may hold arguments of its loader."""
    if isinstance(content, Mapping):  # a training checkpoint, such as {"state_dict": ..., "epoch": 3}
        nested = [value for value in content.values() if isinstance(value, Mapping) and _library(value)]
        content = nested[0] if len(nested) == 1 and not _library(content) else content
    found = _library(content) if isinstance(content, Mapping) else None
    if found is None:
        raise ValueError(
            f"{path} does not hold weights of timm, big_vision or transformers, and is no checkpoint; its names are "
            f"{', '.join(list(map(str, content))[:5]) if isinstance(content, Mapping) else type(content).__name__}"
        )
    library, prefix = found
    load = _LOADERS[library]
    names = inspect.signature(load).parameters
    arguments = {name: value for name, value in given.items() if name in names}
    if library == "transformers":
        arguments["config"] = path.parent / "config.json"
    elif library == "timm":
        beside = path.parent / "config.json"
        arguments["timm_config"] = beside if beside.exists() and "architecture" in read_json(beside) else {}
    if prefix and library != "transformers":
        kept = sum(str(name).startswith(prefix) for name in content)
        if kept < len(content):
            _log.warning(
                "%s: reads the %d names under %r, and not the %d others", path, kept, prefix, len(content) - kept
            )
        arguments["prefix"] = prefix
    side = given.get("position_grid")
    if side is not None and library != "transformers":
        grid = (side, side) if isinstance(side, int) else side
        stored = f"{prefix}pos_embedding" in content or f"{prefix}Transformer/posembed_input/pos_embedding" in content
        if library == "timm" and f"{prefix}pos_embed" in content:
            arguments["grid"] = grid
        elif library == "big_vision":
            arguments |= {"grid": grid} if stored else {"sincos_grid": grid[0]}
    return load(content, **arguments)


def _library(names: Mapping[Any, Any]) -> tuple[str, str] | None:
    """The library whose names a state dict has, and the prefix of its vision transformer."""
    for library, pattern in _MARKS:
        if matches := [match for name in names if (match := re.match(pattern, str(name)))]:
            prefixes = {match.groupdict().get("prefix", "") for match in matches}
            return library, prefixes.pop() if len(prefixes) == 1 else ""
    return None


def with_config(model: NaViT, **changes: Any) -> NaViT:
    """Return the model under other fields of its configuration; its head is new if the number of classes differs.

    >>> model = NaViT(NaViTConfig(num_classes=7, width=48, depth=1))
    >>> with_config(model, num_classes=3, drop_path=0.1).get_parameter("head.weight").shape
    torch.Size([3, 48])
    """
    new = NaViT(replace(model.config, **changes))
    weights, fresh = model.state_dict(), new.state_dict()
    if new.config.num_classes != model.config.num_classes:
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
        weights |= {name: value for name, value in fresh.items() if name.startswith("head.")}
    new.load_state_dict(weights)
    return new.train(model.training)


def check_fields(config: NaViTConfig, fields: Mapping[str, Any], where: str | Path) -> None:
    """Raise ValueError if a field differs from the configuration of the weights at `where`.

    drop_path, backend and num_classes may differ.
    """
    for name, value in fields.items():
        saved = getattr(config, name)
        if name not in _FREE and _spread(name, value, config) != _spread(name, saved, config):
            raise ValueError(f"{name} is {value}, but {where} has {saved}; leave it out, or give other weights")


def _spread(name: str, value: Any, config: NaViTConfig) -> Any:
    """A field in its long form, so that one value for all channels or sides equals that value for each."""
    if name == "position_grid":
        return (value, value) if isinstance(value, int) else tuple(value)
    if name in ("mean", "std"):
        return tuple(value) * (config.channels if len(value) == 1 else 1)
    return value
