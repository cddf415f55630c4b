"""Error messages of the library in the words of the command line: `seq_len` becomes `--seq-len`."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from typer.core import TyperOption

# Library messages name Python arguments. One-word arguments such as `out` or `label` are also English words, so they
# are replaced only where a message uses them as an argument: before "is", after a verb that asks for one, or in quotes.
_BEFORE_VALUE = r"(?:^|(?<=; )|(?<=, and )|(?<= and ))"
_ASKS = r"(?:give|leave out|start without|choose|raise|lower|set|check|exactly one of|another)"
_DICT = r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)?\}"
_NESTED = r"\([^()]*\)"
for _ in range(6):
    _NESTED = rf"\((?:[^()]|{_NESTED})*\)"
_OBJECT = rf"\b[A-Z]\w*{_NESTED}"  # a printed object, such as Packing(seq_len=64, ...), which stays as it is


class Flag(NamedTuple):
    """How the command line spells a Python argument.

    Attributes:
        on: the long flag, such as "--seq-len".
        off: the flag that sets a boolean to False, such as "--no-shuffle"; "" where there is none.
        default: the default value.
        numeric: whether the flag takes a number.
    """

    on: str
    off: str = ""
    default: Any = None
    numeric: bool = False


def message_of(error: Exception) -> str:
    """Return what an exception says; a bare error of the operating system names its file and the reason in words.

    >>> message_of(FileNotFoundError(2, "No such file or directory", "a.pt"))
    "'a.pt' does not exist; correct the path"
    """
    name = error.filename if isinstance(error, OSError) else None
    if name is None or not isinstance(error, OSError) or not str(error).startswith("[Errno"):
        return str(error)
    path = os.fsdecode(name) if isinstance(name, str | bytes) else str(name)
    if isinstance(error, FileNotFoundError):
        from patchnpack.packer.files import absent

        return f"{path!r} {absent(path)}; correct the path"
    if isinstance(error, FileExistsError):
        return f"{path!r} exists already, as a file; name another file"
    if isinstance(error, IsADirectoryError):
        return f"{path!r} is a folder; name a file"
    if isinstance(error, NotADirectoryError):
        return f"{path!r} is below a file, not a folder; correct the path"
    if isinstance(error, PermissionError):
        return f"{path!r} cannot be opened: permission denied; change its permissions, or name another file"
    return f"{path!r}: {error.strerror}"


def notes_of(error: Exception) -> str:
    """Return what was noted of an exception, such as the sample that it was raised for, in parentheses.

    >>> error = ValueError("label 'x' is no class")
    >>> error.add_note("raised for the label of the sample with key 'a'")
    >>> notes_of(error)
    " (raised for the label of the sample with key 'a')"
    """
    return "".join(f" ({note})" for note in getattr(error, "__notes__", ()))


def flags_of(parameters: Iterable[Any]) -> dict[str, Flag]:
    """Map each option among the parameters of a command to its flag."""
    return {
        str(option.name): Flag(
            on=max(option.opts, key=len),
            off="".join(option.secondary_opts[:1]),
            default=option.default,
            numeric=option.metavar in ("INTEGER", "FLOAT"),
        )
        for option in parameters
        if isinstance(option, TyperOption)
    }


def in_flags(message: str, flags: Mapping[str, Flag]) -> str:
    """Replace the Python arguments that a message names by flags.

    Args:
        message: the message of an exception that a library function raised.
        flags: the command's flags; arguments without a flag stay as they are.

    >>> flags = {"seq_len": Flag("--seq-len"), "out": Flag("--out"), "resume": Flag("--resume", "--no-resume")}
    >>> in_flags("seq_len is 0; it must be at least 1", flags)
    '--seq-len is 0; it must be at least 1'
    >>> in_flags("give another `out`, or resume=False to delete it", flags)
    'give another --out, or --no-resume to delete it'
    """
    if not flags:
        return message
    if "frames" in flags:
        message = re.sub(r"Packing\(frames=Frames\((\d+)\)\)", rf"{flags['frames'].on} \1", message)
    ordered = sorted(flags, key=len, reverse=True)
    name = "|".join(ordered)
    compound = "|".join(n for n in ordered if "_" in n) or "(?!)"  # (?!) matches nothing
    numeric = "|".join(n for n in ordered if flags[n].numeric) or "(?!)"
    listed = rf"(?:(?:{name})(?![\w-])|--[a-z-]+)"
    keyword = rf"(?:\bgive )?(?<![\w.(])({name})=({_DICT}|'[^']*'|[\w.]*)"
    message = re.sub(rf"{_OBJECT}|{keyword}", lambda match: _keyword(match, flags) if match[1] else match[0], message)
    for pattern in (
        rf"(?<!extra )`({name})`",
        rf"(?<![\w./'\"=-])({compound})(?![\w/'\"=-]|\.\w)",
        rf"{_BEFORE_VALUE}({name})(?= (?:is|has) )",
        rf"(?<![\w./'\"=-])({numeric})(?= -?\d)",
    ):
        message = re.sub(pattern, lambda match: flags[match[1]].on, message)
    return re.sub(
        rf"\b({_ASKS}) ({listed}(?:(?:, | and | or ){listed})*)(?=[,;:.)]|$| (?:and|or|so|by) )",
        lambda match: match[1] + " " + re.sub(rf"(?<![\w-])({name})(?![\w-])", lambda m: flags[m[1]].on, match[2]),
        message,
    )


def _keyword(match: re.Match[str], flags: Mapping[str, Flag]) -> str:
    """The flag for `name=value`; None becomes the advice to leave the flag out."""
    give = "give " if match[0].startswith("give ") else ""
    flag, value = flags[match[1]], match[2]
    if value == "None":
        return f"leave out {flag.on}" if flag.default is None else f"{give}{flag.on} ''"
    if value in ("True", "False"):
        return f"{give}{flag.on if value == 'True' else flag.off}"
    if value.startswith("{"):
        return give + " ".join(f"{flag.on} {text}" for text in _key_values(ast.literal_eval(value)))
    choices = match.string[match.end() :].startswith((", '", " or '"))  # more values follow, quoted as well
    return f"{give}{flag.on} {value if choices else value.strip(chr(39))}".rstrip()


def _key_values(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """KEY=VALUE for each entry; a nested option is KEY.KEY=VALUE."""
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _key_values(value, f"{prefix}{key}.")
        else:
            shown = "..." if value is ... else str(value).lower() if isinstance(value, bool) else value
            yield f"{prefix}{key}={shown}"
