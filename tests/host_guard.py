"""`nothing_on_the_host`: a context in which tensors on the meta device stand for those on a GPU.

A meta tensor has no values, so whatever would wait for a GPU to read one fails: `item`, `tolist`, `bool`, `cpu`,
`nonzero`, indexing with a mask. The modes here fail for what a meta tensor allows and a GPU does not, or not without
waiting: operations with a tensor that was left on the CPU, and copies from the CPU that block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class OnTheHost(AssertionError):
    """A tensor was left on the host, or the host would wait."""


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == "meta":
            raise OnTheHost(f"{func.__name__} copies a value to the device and waits; fill a tensor there")
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        held = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        to_device = func is aten._to_copy.default and torch.device(kwargs.get("device") or "cpu").type == "meta"
        if to_device or func is aten.copy_.default:
            blocking = not (kwargs.get("non_blocking") or (func is aten.copy_.default and args[2:] == (True,)))
            if held and blocking and (to_device or args[0].is_meta):
                raise OnTheHost(f"a copy of {tuple(held[0].shape)} to the device waits for it; use non_blocking=True")
        elif len(held) < len(tensors) and any(tensor.ndim for tensor in held):
            raise OnTheHost(f"{func} mixes the device with a tensor of {tuple(held[0].shape)} on the CPU")
        return func(*args, **kwargs)


@contextlib.contextmanager
def nothing_on_the_host() -> Iterator[None]:
    """Raise where a step on the meta device would wait, or would use a tensor on the CPU."""
    with _Functions(), _Operators():  # type: ignore[no-untyped-call]
        yield
