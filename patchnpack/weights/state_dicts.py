"""Read state dicts of other libraries, and compare their names and shapes with those a model expects."""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchnpack.models import NaViT, NaViTConfig

Source = str | Path | Mapping[str, Any]
Weights = dict[str, torch.Tensor]
Reasons = Sequence[tuple[str, str]]

_MAX_LISTED = 12  # names in an error message


def read_weights(source: Source, prefix: str = "") -> Weights:
    """Read a state dict as float32 tensors on the CPU, without executing code from a file.

    Args:
        source: a mapping from names to tensors or numpy arrays, or a file: .npz, .safetensors (needs the package of
            that name), or torch's .pth, .pt and .bin, read with `weights_only=True`.
        prefix: read only the names that start with it, and remove it from them.

    Returns:
        A dict of tensors that may share memory with `source`. float16 and bfloat16 become float32 exactly, including
        bfloat16 that numpy stored as two void bytes; float64 is rounded.

    Raises:
        ValueError: the kind of file is unknown, the file cannot be read or would execute code, a value is not a
            floating-point array, or no name starts with `prefix`.

    >>> read_weights({"a.w": np.ones(2), "b.w": np.ones(3)}, prefix="a.")
    {'w': tensor([1., 1.])}
    """
    found = source if isinstance(source, Mapping) else read_file(Path(source))
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"the state dict is {found!r:.80}; it must be a mapping from names to arrays")
    chosen = {name: value for name, value in found.items() if str(name).startswith(prefix)}
    if not chosen:
        raise ValueError(f"no name starts with {prefix!r}; the names are {named(found)}")
    return {name.removeprefix(prefix): _tensor(name, value, found) for name, value in chosen.items()}


def read_file(path: Path) -> Any:
    """Read the content of a file of weights, without executing code; see `read_weights`."""
    if path.suffix not in (".npz", ".safetensors", ".pth", ".pt", ".bin"):
        raise ValueError(f"{path} ends in {path.suffix!r}; give a .npz, .safetensors, .pth, .pt or .bin file")
    try:
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (ValueError, zipfile.BadZipFile, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as plain arrays, and code in it is never executed: {reason}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of JSON that holds an object; anything else is a ValueError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; it must be an object")
    return content


def _read_safetensors(path: Path) -> Weights:
    try:  # of an optional extra
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} needs safetensors, which is not installed; run: pip install 'patchnpack[weights]'", name=error.name
        ) from error
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _tensor(name: str, value: Any, found: Mapping[str, Any]) -> torch.Tensor:
    if isinstance(value, np.ndarray) and value.dtype == np.dtype("V2"):  # how numpy stores bfloat16
        value = torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().to("cpu", torch.float32)
    kind = f"{value.dtype} array" if isinstance(value, np.ndarray | torch.Tensor) else type(value).__name__
    nested = [key for key, inner in found.items() if isinstance(inner, Mapping)]
    remedy = (
        f"the state dict is nested; load the file and pass the value under {' or '.join(map(repr, nested))}"
        if nested
        else "leave it out, or pass float16, bfloat16, float32 or float64 arrays"
    )
    raise ValueError(f"{name!r} is not an array of weights but of type {kind}; {remedy}")


def named(names: Iterable[str], reasons: Reasons = ()) -> str:
    """List names for an error message, with the blocks merged; a name whose pattern matches gets the reason.

    >>> named(["blocks.0.a", "blocks.1.a", "b"], [("^b$", "why")])
    'blocks.*.a (2 of them), b (why)'
    """
    groups: dict[str, list[str]] = {}
    for name in map(str, names):
        groups.setdefault(re.sub(r"(?<=blocks\.)\d+|(?<=encoderblock_)\d+", "*", name), []).append(name)
    listed = []
    for pattern, each in list(groups.items())[:_MAX_LISTED]:
        why = [reason for part, reason in reasons if re.search(part, each[0])][:1]
        notes = [f"{len(each)} of them"] * (len(each) > 1) + why
        listed.append((pattern if len(each) > 1 else each[0]) + (f" ({': '.join(notes)})" if notes else ""))
    rest = len(groups) - len(listed)
    return ", ".join(listed) + (f" and {rest} more" if rest else "")


def refuse(given: Iterable[str], reasons: Reasons) -> None:
    """Raise ValueError with the reason if a name is known to have no counterpart.

    Call it before inferring the configuration from the other names.

    >>> refuse(["a", "b"], [("^b$", "why")])
    Traceback (most recent call last):
    ValueError: the state dict does not fit: no counterpart for b (why)
    """
    if extra := [name for name in given if any(re.search(pattern, name) for pattern, _ in reasons)]:
        raise ValueError(f"the state dict does not fit: no counterpart for {named(extra, reasons)}")


def check_fit(given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Compare names and shapes, and report every difference in one error.

    Args:
        given: the state dict that was read.
        wanted: the state dict that the model would be saved as; only names and shapes matter.

    Raises:
        ValueError: a name is unknown, a name is missing, or a shape differs.

    >>> check_fit({"a": torch.ones(2), "c": torch.ones(1)}, {"a": torch.ones(3), "b": torch.ones(1)})
    Traceback (most recent call last):
    ValueError: the state dict does not fit: no counterpart for c; b is missing; a has shape (2,), expected (3,)
    """
    faults = []
    if extra := [name for name in given if name not in wanted]:
        faults.append(f"no counterpart for {named(extra)}")
    if missing := [name for name in wanted if name not in given]:
        faults.append(f"{named(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    faults += [
        f"{name} has shape {tuple(given[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in given
        if name in wanted and given[name].shape != wanted[name].shape
    ]
    if faults:
        shown = faults[:_MAX_LISTED] + [f"{len(faults) - _MAX_LISTED} more shapes"] * (len(faults) > _MAX_LISTED)
        raise ValueError(f"the state dict does not fit: {'; '.join(shown)}")


def require(weights: Mapping[str, torch.Tensor], name: str, ndims: Sequence[int], meaning: str) -> torch.Tensor:
    """Return the array of a name if it has one of the given numbers of dimensions; else raise ValueError."""
    if name not in weights:
        raise ValueError(f"{name}, {meaning}, is missing; the names are {named(weights)}")
    if weights[name].ndim not in ndims:
        raise ValueError(f"{name} has shape {tuple(weights[name].shape)}; it must be {meaning}")
    return weights[name]


def has(weights: Iterable[str], start: str) -> bool:
    """Whether any name starts with `start`."""
    return any(name.startswith(start) for name in weights)


def depth_of(weights: Mapping[str, torch.Tensor], pattern: str) -> int:
    """Number of blocks: one more than the highest number that `pattern` finds in the names, or 0."""
    return max((int(match[1]) + 1 for name in weights if (match := re.match(pattern, name))), default=0)


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio for which int(ratio * width) is `hidden`."""
    ratio = hidden / width
    return ratio if int(ratio * width) == hidden else (hidden + 0.5) / width


def side_of(tokens: int) -> int | None:
    """The side of a square grid with this many tokens, or None if the number is not a square."""
    side = math.isqrt(max(tokens, 0))
    return side if side * side == tokens and side else None


def with_biases(model: NaViT) -> Weights:
    """Return the state dict of a model with zero biases added to linear layers and norms without one.

    The other libraries always have these biases. Queries, keys and values stay without if the model has biases
    elsewhere, because timm has that option too.
    """
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    kept = model.config.bias and model.config.qkv_bias is False
    for name, module in model.named_modules():
        bare = isinstance(module, torch.nn.Linear | torch.nn.LayerNorm) and module.bias is None
        if bare and not (kept and name.endswith(".qkv")):
            weights[f"{name}.bias"] = module.weight.new_zeros(module.weight.shape[0])
    return weights


def outline(config: NaViTConfig) -> Weights:
    """The state dict that `with_biases` returns for a model of `config`, on the meta device."""
    with torch.device("meta"):
        return with_biases(NaViT(config))


def build(config: NaViTConfig, weights: Weights, num_classes: int | None) -> NaViT:
    """Build a model in evaluation mode with copies of `weights`; its head is new if `num_classes` is given."""
    model = NaViT(config)
    if num_classes is not None:
        head = {name: value for name, value in model.state_dict().items() if name.startswith("head.")}
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")} | head
    model.load_state_dict(weights)
    return model.eval()
