"""Export a model to a file of timm, big_vision or ONNX, or refuse before training what such a file could not hold."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchnpack.models import NaViT
from patchnpack.packer.files import atomic_write, make_folder_of
from patchnpack.weights.big_vision import to_big_vision
from patchnpack.weights.onnx import to_onnx
from patchnpack.weights.state_dicts import Weights
from patchnpack.weights.timm import to_timm
from patchnpack.weights.timm_layout import Kind

SUFFIXES = {"timm": (".safetensors", ".pth"), "big_vision": (".npz",), "onnx": (".onnx",)}
_FORMATS = "'timm', 'big_vision' or 'onnx'"
_KINDS: dict[str, Kind] = {"naflex": "naflexvit", "vit": "vit"}
# The architectures whose arguments a config.json can all override; block functions it can only name by one of them.
_ARCHITECTURES = {"naflexvit": "naflexvit_base_patch16_siglip", "vit": "vit_base_patch16_224"}
_RES_POST = "vit_base_patch16_rpn_224"
_POOLINGS = {"attention": "map", "mean": "avg", "max": "max", "cls": "token"}


def export_model(model: NaViT, path: str | Path, format: str, *, kind: str = "naflex") -> None:
    """Write a model to a file that another library loads, with the same outputs.

    Args:
        model: the model.
        path: the file. For timm a .safetensors (needs the package of that name) or .pth, with a config.json beside it
            that states the options; timm loads the folder: `timm.create_model("local-dir:FOLDER", pretrained=True)`.
            For big_vision an .npz, for ONNX an .onnx (`to_onnx`).
        format: "timm", "big_vision" or "onnx".
        kind: "naflex" for the model that takes any size (`NaFlexVit`, `naflex_vit`), or "vit", whose outputs are the
            same for images of the position table's size. Not for ONNX.

    Raises:
        ModuleNotFoundError: a package that writes the file is not installed; the message names the extra.
        ValueError: the other library has no such model, the suffix is another, or the config.json beside the file is of
            another model.

    >>> from patchnpack.models import NaViTConfig
    >>> export_model(NaViT(NaViTConfig(num_classes=7, width=48, depth=1)), "model.pth", "timm")
    Traceback (most recent call last):
    ValueError: norm_eps is 1e-05, and that of timm's models is 1e-06; train with norm_eps 1e-06
    """
    path = Path(path)
    if format not in SUFFIXES:
        raise ValueError(f"format is {format!r}; choose {_FORMATS}")
    if path.suffix not in SUFFIXES[format]:
        raise ValueError(f"out is {str(path)!r}; for {format} it must end in {' or '.join(SUFFIXES[format])}")
    check_export(model, format, kind=kind)
    content = to_onnx(model) if format == "onnx" else b""
    make_folder_of(path)
    if format == "onnx":
        atomic_write(path, lambda file: file.write(content))
        return
    if format == "big_vision":
        arrays = to_big_vision(model, "naflex" if kind == "naflex" else "vit")
        atomic_write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        return
    weights, about = to_timm(model, _KINDS[kind]), path.parent / "config.json"
    if about.exists() and '"architecture"' not in about.read_text(encoding="utf-8"):
        raise ValueError(f"{about} is of another model; give an output file in another folder")
    atomic_write(path, lambda file: file.write(_file_of(weights, path.suffix)))
    text = json.dumps(timm_config_of(model, _KINDS[kind]), indent=2)
    atomic_write(about, lambda file: file.write(f"{text}\n".encode()))


def check_export(model: NaViT, format: str, *, kind: str = "naflex") -> None:
    """Raise ValueError if a model of this configuration could not be exported with the same outputs.

    Args:
        model: the model; its weights do not matter.
        format, kind: as in `export_model`.
    """
    if format not in SUFFIXES:
        raise ValueError(f"the format is {format!r}; choose {_FORMATS}")
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}; choose {' or '.join(map(repr, _KINDS))}")
    if format == "onnx":
        if kind != "naflex":
            raise ValueError(f"kind is {kind!r}, which an ONNX file does not have: it takes any size; leave kind out")
        return
    if format == "big_vision":
        to_big_vision(model, "naflex" if kind == "naflex" else "vit")
        return
    if (eps := model.config.norm_eps) != 1e-6:
        raise ValueError(f"norm_eps is {eps}, and that of timm's models is 1e-06; train with norm_eps 1e-06")
    if model.config.block_norm == "res_post" and kind == "naflex":
        raise ValueError("block_norm is 'res_post', which only kind 'vit' has in a config.json of timm; choose it")
    to_timm(model, _KINDS[kind])


def _file_of(weights: Weights, suffix: str) -> bytes:
    if suffix == ".pth":
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        return buffer.getvalue()
    try:  # of an optional extra
        from safetensors.torch import save
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            ".safetensors needs safetensors, which is not installed; run: pip install 'patchnpack[weights]', or give "
            "a .pth file",
            name=error.name,
        ) from error
    return bytes(save(weights))


def timm_config_of(model: NaViT, kind: Kind) -> Mapping[str, Any]:
    """Return the config.json with which timm makes the model that `to_timm` converts to, and `from_timm` reads it."""
    config = model.config
    rows, columns = config.position_shape
    P, pooling = config.patch_size, _POOLINGS[config.pooling]
    arguments: dict[str, Any] = {
        "patch_size": P,
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.bias or config.qkv_bias is not False,
        "qk_norm": config.qk_norm,
        "init_values": config.layer_scale,
        "class_token": config.pooling == "cls",
        "reg_tokens": config.registers,
        "final_norm": config.last_norm != "none",
        "fc_norm": config.last_norm == "pooled",
        "act_layer": "gelu_tanh" if config.gelu == "tanh" else "gelu",
        "global_pool": pooling,
    }
    if kind == "vit":
        arguments |= {"img_size": [rows * P, columns * P], "no_embed_class": False}
        arguments["dynamic_img_size"] = config.position_resize == "bicubic"  # as timm resizes there
    else:
        tables = {"grid": "learned", "fractional": "factorized", "rope": "none"}
        arguments |= {
            "pos_embed": tables[config.positions[0]],
            "pos_embed_grid_size": [rows, columns],
            "pos_embed_interp_mode": config.position_resize,
            "pos_embed_antialias": config.position_antialias,
            "pos_embed_align_corners": config.position_align_corners,
            "pos_embed_ar_preserving": config.position_keep_aspect,
            "embed_proj_type": "linear",
            **({"rope_type": "axial", "rope_temperature": config.rope_base} if config.position == "rope" else {}),
        }
    spread = {name: list(getattr(config, name)) for name in ("mean", "std")}
    spread = {name: value * config.channels if len(value) == 1 else value for name, value in spread.items()}
    return {
        "architecture": _RES_POST if config.block_norm == "res_post" else _ARCHITECTURES[kind],
        "num_classes": config.num_classes,
        "num_features": config.width,
        "global_pool": pooling,
        "model_args": {name: value for name, value in arguments.items() if value is not None},
        "pretrained_cfg": {
            "num_classes": config.num_classes,
            "input_size": [config.channels, rows * P, columns * P],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            **spread,
            "first_conv": "patch_embed.proj" if kind == "vit" else "embeds.proj",
            "classifier": "head",
        },
    }
