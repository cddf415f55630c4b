"""Export a model as an ONNX file for any number of packs, slots and images."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch
from torch.export import Dim

from patchnpack.models import DenseNaViT, NaViT

# B packs, L token slots per pack, K maximum images per pack, P patch size, C channels

_MOST = 2**31  # bytes that a file of one protobuf message holds
_TRACED = {"B": 2, "L": 16, "K": 3}  # the shape of the trace; 0 and 1 would stay constants
_SHAPES = {
    "patches": "BL",
    "segment_ids": "BL",
    "coords": "BL2",
    "grids": "BK2",
    "samples": "BK",
    "frames": "BK",
}


def onnx_inputs(model: NaViT) -> list[str]:
    """Return the fields of a `PackedBatch` that the ONNX file of this model takes, in order.

    >>> from patchnpack.models import NaViTConfig
    >>> onnx_inputs(NaViT(NaViTConfig(num_classes=7, width=48, depth=1, time="learned")))
    ['patches', 'segment_ids', 'coords', 'grids', 'frames']
    """
    unused = {"samples"} if model.config.scope == "image" else set[str]()
    unused |= {"frames"} if model.config.time == "none" else set()
    return [name for name in _SHAPES if name not in unused]


def to_onnx(model: NaViT) -> bytes:
    """Convert a model to the bytes of an ONNX file; needs the packages onnx and onnxscript.

    The inputs are those of `onnx_inputs`, with the names, shapes and dtypes of a `PackedBatch`, and the output is
    `logits`, float32 (B, K, num_classes), as `NaViT.forward` computes it in evaluation mode. B, L and K are dynamic;
    patches have the model's patch size. Values are not checked: call `NaViT.check` on a batch first.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is not installed.
        ValueError: the weights take 2 GiB or more, which an ONNX file cannot hold.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if size >= _MOST:
        raise ValueError(
            f"the weights take {size:,} bytes, and an ONNX file holds less than {_MOST:,}; convert the model to "
            "bfloat16 first, or use torch.export on DenseNaViT"
        )
    try:
        import onnxscript  # noqa: F401  # of an optional extra; torch imports it, and onnx, at the first export
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"an ONNX file needs {error.name}, which is not installed; run: pip install 'patchnpack[onnx]'",
            name=error.name,
        ) from error
    names, device = onnx_inputs(model), model.patch_embed.weight.device
    sides = _TRACED | {"2": 2}
    inputs = {
        name: torch.ones([sides[side] for side in _SHAPES[name]], dtype=torch.int32, device=device) for name in names
    }
    values = model.config.patch_size**2 * model.config.channels
    inputs["patches"] = torch.zeros(_TRACED["B"], _TRACED["L"], values, dtype=torch.uint8, device=device)
    dims = {side: Dim(side) for side in _TRACED}
    training = model.training
    try:
        with _without_advice():
            program = torch.onnx.export(
                DenseNaViT(model.eval()),
                (),
                kwargs=inputs,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes={name: {0: dims["B"], 1: dims[_SHAPES[name][1]]} for name in names},
                dynamo=True,
                verbose=False,
            )
    finally:
        model.train(training)
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silence what the exporter says to its own developers, such as that torchvision is not installed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
