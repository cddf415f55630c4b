"""Classes: the names of classes as a user gives them, and the number of each."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from patchnpack.packer.checks import check_whole, shown
from patchnpack.packer.files import absent

Classes = Sequence[str] | Mapping[str, int] | str | os.PathLike[str] | None

_MOST = np.iinfo(np.int64).max


def listed_classes(classes: object) -> list[str]:
    """Return a copy of the names of classes. Raises ValueError where these are no list of texts."""
    if not hasattr(classes, "__iter__") or isinstance(classes, set | frozenset):
        raise ValueError(
            f"classes is {shown(classes)}; give the names of the classes as a list, a file with one name per line, or "
            "a dict from name to number. Labels that are numbers need no classes"
        )
    names = list(classes)
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"classes holds {shown(name)}; each class is named by its text, such as {str(name)!r}")
    return list(map(str, names))


def class_table(classes: Classes) -> Mapping[str, int] | None:
    """Return the number of each class; None for None. Raises ValueError for anything that names no classes."""
    if classes is None:
        return None
    if isinstance(classes, Mapping):
        return {str(name): _class_number(name, number) for name, number in classes.items()}
    if isinstance(classes, str | os.PathLike):
        classes = _class_names(Path(classes))
    names = listed_classes(classes)
    table = {name: i for i, name in enumerate(names)}
    if len(table) < len(names):
        ((repeated, _),) = Counter(names).most_common(1)
        raise ValueError(
            f"classes repeats {len(names) - len(table)} names, such as {shown(repeated)}; each class needs a name of "
            "its own"
        )
    return table


def remedy_of_unknown(name: str, classes: Mapping[str, int]) -> str:
    """Return what a message about a name that is no class says of the classes: the one that differs little, or all."""
    alike = next((each for each in classes if _folded(each) == _folded(name)), None)
    if alike is not None:
        return (
            f"classes has {alike!a}, and this is {name!a}: they differ in case or in the Unicode form of their letters"
            "; write both alike"
        )
    listed = ": " + shown(", ".join(classes)).strip("'") if classes else ""
    return f"classes has {len(classes)} others{listed}"


def _folded(name: str) -> str:
    """A name without differences of case, of composed and decomposed letters, and of white space around it."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _class_number(name: str, number: object) -> int:
    check_whole(f"the number of class {name!r} in classes", number, least=0)
    if int(number) > _MOST:  # type: ignore[call-overload]  # check_whole has checked it
        raise ValueError(f"the number of class {name!r} in classes is {shown(number)}; it must be at most {_MOST}")
    return int(number)  # type: ignore[call-overload, no-any-return]  # check_whole has checked it


def _class_names(path: Path) -> list[str]:
    if not path.exists():
        raise FileNotFoundError(
            f"classes file {str(path)!r} {absent(str(path))}; give a file with one class name per line, or in Python a "
            "list of the names"
        )
    if path.is_dir():
        raise ValueError(f"classes is {str(path)!r}, a folder; give a file with one class name per line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"classes file {str(path)!r} is not in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); "
            "save it in UTF-8"
        ) from error
    if path.suffix.lower() == ".json":
        raise ValueError(
            f"classes file {str(path)!r} is JSON; give a file with one class name per line, or in Python the list or "
            "dict itself"
        )
    lines = text.split("\n")
    return [line.strip() for line in lines if line.strip()]
