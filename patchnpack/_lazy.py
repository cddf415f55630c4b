"""Names that a package imports on first use (PEP 562), so that importing the package is fast."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a package whose public names are imported on first use.

    The package repeats the imports under `if TYPE_CHECKING:`, for type checkers and for the documentation. A public
    name must differ from the names of the package's modules: importing `packer/config.py` sets `packer.config`.

    Args:
        package: the package's `__name__`.
        modules: the public names that each module defines; modules are relative to the package.
    """
    home = {name: f"{package}.{module}" for module, names in modules.items() for name in names}
    children = {module.partition(".")[0] for module in modules}

    def __getattr__(name: str) -> Any:
        if name in children:  # `patchnpack.packer.plan` after `import patchnpack`
            return importlib.import_module(f"{package}.{name}")
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return __getattr__, __dir__
