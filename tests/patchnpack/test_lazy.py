from __future__ import annotations

import ast
import importlib
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import patchnpack

LAZY = ["patchnpack", "patchnpack.loaders", "patchnpack.packer", "patchnpack.report"]


def python(code: str) -> list[str]:
    """The words that a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("package", LAZY)
def test_importing_a_package_imports_no_torch(package: str) -> None:
    assert python(f"import sys, {package}; print('torch' in sys.modules)") == ["False"]


def test_importing_the_front_door_imports_none_of_its_packages() -> None:
    code = "import sys, patchnpack; print(*(m for m in sys.modules if m.startswith('patchnpack')))"
    assert set(python(code)) == {"patchnpack", "patchnpack._lazy"}


def test_star_import_gives_every_public_name() -> None:
    imports = "; ".join(f"from {package} import *" for package in LAZY)
    names = {name for package in LAZY for name in importlib.import_module(package).__all__}
    assert names <= set(python(f"{imports}; print(*dir())"))


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_see_the_objects_that_users_get(package: str) -> None:
    module = importlib.import_module(package)
    seen = {}
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("patchnpack."):
            source = importlib.import_module(str(node.module))
            seen.update({alias.name: getattr(source, alias.name) for alias in node.names})
    assert {name: getattr(module, name) for name in module.__all__} == {name: seen[name] for name in module.__all__}


@pytest.mark.parametrize("package", LAZY)
def test_public_names_are_listed_by_dir_and_none_is_a_lazy_module(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))
    modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    assert not modules & set(module.__all__)


@pytest.mark.parametrize("package", LAZY)
def test_unknown_name_is_an_attribute_error_that_names_the_package(package: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'PackedImageLoder'"):
        importlib.import_module(package).PackedImageLoder  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'PackedImageLoder'"):
        exec(f"from {package} import PackedImageLoder")


def test_public_classes_survive_a_pickle() -> None:
    for name in patchnpack.__all__:
        value = getattr(patchnpack, name)
        assert pickle.loads(pickle.dumps(value)) is value  # noqa: S301 -- written on the line itself


def test_packages_are_attributes_of_the_front_door() -> None:
    code = "import patchnpack; print(patchnpack.packer.Packing.__name__, patchnpack.loaders.Index.__name__)"
    assert python(code) == ["Packing", "Index"]
