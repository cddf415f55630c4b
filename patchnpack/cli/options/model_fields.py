"""`--model KEY=VALUE`: fields of `NaViTConfig` as texts, parsed by their types."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    import typer

# Fields that follow from other flags.
_OF_FLAGS = {
    "num_classes": "--num-classes",
    "patch_size": "--patch-size, or with several --underlying",
    "channels": "--channels or --image-mode",
    "scope": "--scope",
}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "none"}


def parse_model_fields(texts: Sequence[str]) -> dict[str, Any]:
    """Parse KEY=VALUE texts into fields of `NaViTConfig`; whether a value is allowed, the class decides.

    Numbers and texts are as they are; true, false and none in any case; several values are separated by commas.

    Raises:
        ValueError: a key is unknown, is given twice or follows from another flag, or a value is of another type.

    >>> parse_model_fields(["registers=4", "qk_norm=false", "position_grid=4,16", "layer_scale=none"])
    {'registers': 4, 'qk_norm': False, 'position_grid': (4, 16), 'layer_scale': None}
    """
    from patchnpack.models import NaViTConfig

    hints, fields = get_type_hints(NaViTConfig), dict[str, Any]()
    for text in texts:
        key, equals, value = text.partition("=")
        name = key.strip().replace("-", "_")
        if name in _OF_FLAGS:
            raise ValueError(f"--model has {name}, which follows from another flag; give {_OF_FLAGS[name]}")
        if name not in hints:
            close = difflib.get_close_matches(name, hints, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"the fields are {', '.join(hints.keys() - _OF_FLAGS)}"
            raise ValueError(f"--model is {text!r}, and a model has no field {name!r}; {hint}")
        if not equals:
            raise ValueError(f"--model is {text!r}; give KEY=VALUE, such as {name}={_example(hints[name])}")
        if name in fields:
            raise ValueError(f"--model has {name!r} twice; give it once")
        fields[name] = _of_type(name, value.strip(), hints[name])
    return fields


def given_fields(context: typer.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `NaViTConfig` that were given: flags such as --width, --model, and those in a run file.

    Args:
        context: the context of the command.
        values: the values of the flags by field, and under "model" the fields of --model.

    Raises:
        ValueError: a flag and --model contradict each other.
    """
    source = {name: getattr(context.get_parameter_source(name), "name", "DEFAULT") for name in values}
    in_file = parse_model_fields((context.default_map or {}).get("model") or ())
    listed = values["model"] if source["model"] == "COMMANDLINE" else {}
    flags = {name: value for name, value in values.items() if name != "model"}
    typed = {name: value for name, value in flags.items() if source[name] == "COMMANDLINE"}
    for name in typed.keys() & listed.keys():
        if typed[name] != listed[name]:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} is {typed[name]}, and --model has {name}={listed[name]}; leave one of them out")
    saved = {name: value for name, value in flags.items() if source[name] == "DEFAULT_MAP"}
    return {**saved, **in_file, **typed, **listed}


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _of_type(name: str, text: str, hint: Any) -> Any:
    kinds = _kinds(hint)
    words: dict[str, Any] = {"true": True, "false": False} if bool in kinds else {}
    words |= {"none": None} if NoneType in kinds else {}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    several = next((kind for kind in kinds if get_origin(kind) is tuple), None)
    if several is not None and ("," in text or kinds == (several,)):
        return tuple(_of_type(name, part.strip(), get_args(several)[0]) for part in text.split(","))
    if str in kinds:
        return text
    raise ValueError(f"--model has {name}={text}; {name} must be {' or '.join(_described(kind) for kind in kinds)}")


def _described(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"{_KINDS[get_args(kind)[0]].removeprefix('a ')}s separated by commas"
    return _KINDS[kind]


def _example(hint: Any) -> str:
    kinds = _kinds(hint)
    return "true" if bool in kinds else "4" if int in kinds else "0.5" if float in kinds else "VALUE"
