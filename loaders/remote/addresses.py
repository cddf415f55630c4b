"""Addresses of remote files: their parts, checks, brace ranges, and how to show one without its secrets."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import unquote

from braceexpand import braceexpand

MAGIC = re.compile(r"[*?[]")


def is_remote(address: str) -> bool:
    """Whether this is an address, not a local path.

    >>> is_remote("s3://bucket/a.tar"), is_remote("shards/a.tar")
    (True, False)
    """
    return "://" in address


def scheme_of(address: str) -> str:
    """The protocol of an address, in lower case."""
    return address.partition("://")[0].lower()


def is_http(address: str) -> bool:
    """Whether an address is of a web server."""
    return address.lower().startswith(("http://", "https://"))


def without_query(address: str) -> str:
    """An http address without query and fragment; any other address as it is."""
    return re.split(r"[?#]", address, maxsplit=1)[0] if is_http(address) else address


def name_of(address: str) -> str:
    """The file name at the end of an address or a path.

    >>> name_of("https://host/a.tar?X-Amz-Signature=0a1b"), name_of("shards/what?.tar")
    ('a.tar', 'what?.tar')
    """
    return PurePosixPath(re.split(r"[?#]", address, maxsplit=1)[0] if is_remote(address) else address).name


def redact(address: str) -> str:
    """The address without what may be a secret: user and password, query and fragment.

    >>> redact("https://me:word@host/a.tar?X-Amz-Signature=0a1b")
    'https://host/a.tar?...'
    """
    address = re.sub(r"(?<=://)[^/?#]*:[^/?#]*@", "", address)
    if is_http(address):
        address = re.sub(r"(?<=://)[^/?#]*@", "", address)
        return re.sub(r"[?#].*", "?...", address, flags=re.DOTALL)
    return re.sub(r"\?[\w.-]+=.*", "?...", address, flags=re.DOTALL)


def expand_braces(pattern: str) -> list[str]:
    """The paths or addresses of a pattern with brace ranges, in order.

    Raises:
        ValueError: a brace is unbalanced, or braces hold no range and no list.

    >>> expand_braces("train-{08..10}.tar")
    ['train-08.tar', 'train-09.tar', 'train-10.tar']
    """
    shown = redact(pattern) if is_remote(pattern) else pattern
    try:
        expanded = list(braceexpand(pattern))
    except ValueError:
        raise ValueError(f"{shown!r} has an unbalanced brace; write a range as {{000000..000009}}") from None
    if not all(expanded) or any("{" in name or "}" in name for name in expanded):
        raise ValueError(f"the braces in {shown!r} name no shard; write a range as {{000000..000009}} or {{a,b}}")
    return expanded


def check_not_file(address: str) -> None:
    """Raise ValueError, with the path to give instead, for a file: address.

    >>> check_not_file("file:///data/a%20b.tar")
    Traceback (most recent call last):
        ...
    ValueError: 'file:///data/a%20b.tar' is the address of a local file; give its path: '/data/a b.tar'
    """
    scheme, _, path = address.partition(":")
    if scheme.lower() != "file":
        return
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        path = slash + rest if host in ("", "localhost") else host + slash + rest
    raise ValueError(f"{address!r} is the address of a local file; give its path: {unquote(path)!r}")


def check_address(url: str) -> None:
    """Raise ValueError if `url` is not the address of a file, or of a pattern of files."""
    scheme = url.partition("://")[0]
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ValueError(
            f"{redact(url)!r} is not the address of a file; write one as https://host/path or s3://bucket/path"
        )
    check_not_file(url)
    path = without_query(url)[len(scheme) + 3 :]
    if path.endswith("/") or "/" not in path:
        raise ValueError(f"{redact(url)!r} names no file; name one, or several with a brace range or a *")
