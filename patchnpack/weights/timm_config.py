"""Read from timm's config.json the options of a model that its weights do not show."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchnpack.weights.state_dicts import Source

Options = dict[str, Any]

# Options of architectures (timm 1.0.31) whose weights have the names and shapes of the usual ones.
_BY_NAME: tuple[tuple[str, Options], ...] = (
    (r"^vit_.*_rpn_", {"block_norm": "res_post"}),
    (r"^vit_(base_patch32|(so400m|giantopt)_patch16)_siglip_", {"gelu": "tanh"}),
    (r"^vit_large_patch16_siglip_(gap_)?512", {"gelu": "tanh"}),
    (r"^naflexvit_.*_siglip", {"gelu": "tanh", "position_resize": "bilinear"}),
    (r"^naflexvit_.*_par(fac)?_", {"position_keep_aspect": True}),
    (
        r"^naflexvit_.*_radio_v",
        {"position_keep_aspect": True, "position_antialias": False, "position_resize": "bilinear"},
    ),
    (r"^naflexvit_(base|huge)_patch16_radio_v3", {"position_align_corners": True}),
)
_REFUSED_NAMES = ((r"_quickgelu_", "QuickGELU"),)

_POOLINGS = {"map": "attention", "avg": "mean", "max": "max", "token": "cls"}
# Values of model_args that map; each option may also be absent or None.
_ONLY: dict[str, tuple[Any, ...]] = {
    "pool_include_prefix": (False,),
    "patchify_channels_last": (True,),
    "norm_layer": ("layernorm",),
    "attn_layer": ("", "attn"),
    "attn_type": ("standard",),
    "mlp_layer": ("Mlp",),
    "rope_type": ("", "none", "axial"),
    "rope_ref_feat_shape": (),
    "rope_grid_offset": (0,),
    "rope_grid_indexing": ("ij",),
    "rope_rotate_half": (False,),
    "rope_mrope_section": (),
}
_CHOICES: dict[str, tuple[str, dict[Any, Any]]] = {  # the argument of from_timm, and its value for each of timm's
    "global_pool": ("pooling", _POOLINGS),
    "act_layer": ("gelu", {"gelu": "erf", "gelu_tanh": "tanh"}),
    "block_fn": ("block_norm", {"Block": "pre", "ResPostBlock": "res_post"}),
    "pos_embed_interp_mode": ("position_resize", {"bicubic": "bicubic", "bilinear": "bilinear"}),
    "pos_embed_antialias": ("position_antialias", {True: True, False: False}),
    "pos_embed_align_corners": ("position_align_corners", {True: True, False: False}),
    "pos_embed_ar_preserving": ("position_keep_aspect", {True: True, False: False}),
}
# Options that names and shapes of the weights show, or that change nothing after training.
_SHOWN = re.compile(
    r"(patch|img)_size|in_chans|num_classes|embed_dim|depth|mlp_ratio|qkv_bias|proj_bias|qk_norm|scale_\w+|init_values|"
    r"class_token|reg_tokens|no_embed_class|pre_norm|final_norm|fc_norm|pos_embed|pos_embed_grid_size|\w*drop_rate|"
    r"dynamic_img_\w+|strict_img_size|weight_init|fix_init|embed_proj_type|(input|embed)_norm_layer|num_kv_heads|"
    r"enable_patch_interpolator|use_key_only_attn_mask|use_naflex|attn_pool_mlp_ratio|attn_gated|swiglu_\w+|qkv_fused|"
    r"attn_only_layer_scale|rope_(shift|jitter|rescale)_coords"
)


def timm_options(source: Source, config: Mapping[str, Any] | str | Path | None) -> Options:
    """Return the arguments of `from_timm` that timm's config.json determines.

    Args:
        source: the weights; a config.json of timm is looked for beside a file.
        config: the content of a config.json, or its path; None looks beside the weights, {} ignores what is there.

    Returns:
        Arguments by name; `image` is the image size (h, w) in pixels. Empty without a config.

    Raises:
        ValueError: the model has an option that a `NaViT` does not have, or that is unknown here.

    >>> timm_options({}, {"architecture": "vit_base_patch16_rpn_224", "model_args": {"img_size": [64, 256]}})
    {'block_norm': 'res_post', 'image': (64, 256)}
    """
    content, where = _read(source, config)
    name = str(content.get("architecture", ""))
    options: Options = {}
    for pattern, by_name in _BY_NAME:
        options |= by_name if re.search(pattern, name) else {}
    for pattern, reason in _REFUSED_NAMES:
        if re.search(pattern, name):
            raise ValueError(f"{where} is of the architecture {name}, with {reason}, which a NaViT does not have")
    about = content.get("pretrained_cfg", content)
    size = about.get("input_size")
    options |= {key: tuple(about[key]) for key in ("mean", "std") if about.get(key)}
    options |= {"image": tuple(size[1:])} if size else {}
    given = {"global_pool": content.get("global_pool"), **(content.get("model_args") or {})}
    given = {key: value for key, value in given.items() if value is not None}
    if given.get("img_size"):
        sides = given["img_size"]
        options["image"] = (sides, sides) if isinstance(sides, int) else tuple(sides)
    return options | _of_arguments(given, where)


def _read(source: Source, config: Mapping[str, Any] | str | Path | None) -> tuple[Mapping[str, Any], str]:
    """Return the content of the config.json, empty where there is none of timm, and a name for messages."""
    if isinstance(config, Mapping):
        return config, "timm_config"
    if config is None and isinstance(source, Mapping):
        return {}, ""
    path = Path(source).parent / "config.json" if config is None else Path(config)  # type: ignore[arg-type]
    if config is None and not path.exists():
        return {}, ""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; give timm_config={{}} to ignore it") from error
    if not isinstance(content, dict) or "architecture" not in content:
        if config is None:
            return {}, ""  # of another library, such as transformers
        raise ValueError(f"{path} has no 'architecture'; give a config.json that timm wrote")
    return content, str(path)


def _of_arguments(given: Mapping[str, Any], where: str) -> Options:
    """Convert the arguments with which timm made the model."""
    options: Options = {}
    for name, value in given.items():
        remedy = f"{where} sets {name}={value!r}"
        if name in _CHOICES:
            ours, values = _CHOICES[name]
            if value not in values:
                raise ValueError(f"{remedy}, which a NaViT does not have; it has {', '.join(map(repr, values))}")
            options[ours] = values[value]
        elif name in _ONLY:
            if value not in _ONLY[name]:
                allowed = ", ".join(map(repr, _ONLY[name])) or "none"
                raise ValueError(f"{remedy}, which a NaViT does not have; what maps is {allowed}")
        elif name == "num_heads":
            options["heads"] = value
        elif name == "attn_pool_num_heads":
            if value != given.get("num_heads", value):
                raise ValueError(f"{remedy} and num_heads={given['num_heads']}; in a NaViT they are equal")
            options["heads"] = value
        elif name == "pos_embed_use_grid_sample":
            options["sampled"] = value
        elif name != "rope_temperature" and not _SHOWN.fullmatch(name):
            raise ValueError(
                f"{remedy}, an option that from_timm does not know; to load the weights without regard to it, give "
                "timm_config={} and the other options as arguments"
            )
    if options.pop("sampled", False):  # F.grid_sample of single positions has no antialias
        options["position_antialias"] = False
    if given.get("rope_type") == "axial":
        options["rope_base"] = float(given.get("rope_temperature", 10_000.0))
    return options
