"""Remote files through obstore: http(s), s3, gs, az. Translates fsspec's option names and obstore's errors."""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit, urlunsplit

from patchnpack.loaders.remote.addresses import MAGIC, redact, scheme_of
from patchnpack.loaders.remote.backend import ObjectMeta, Options, import_optional
from patchnpack.loaders.remote.errors import INDEX_AGAIN, NoRange, PermanentError, TransientError

_MAX_CONNECT_S = 5.0
_TRANSIENT = {408, 425, 429}  # transient statuses below 500; S3 and GCS throttle with 429 and 503
_PERMANENT = {501, 505}  # permanent statuses from 500 on

# The obstore store of each protocol, and obstore's names for the options of s3fs, gcsfs and adlfs.
STORES = {"s3": "s3", "gs": "gs", "gcs": "gs", "az": "az", "http": "http", "https": "http"}
_FSSPEC_NAMES = {
    "s3": {
        "key": "access_key_id",
        "secret": "secret_access_key",
        "token": "session_token",
        "endpoint_url": "endpoint",
        "region_name": "region",
        "anon": "skip_signature",
        "requester_pays": "request_payer",
    },
    "gs": {"endpoint_url": "base_url", "anon": "skip_signature"},
    "az": {"sas_token": "sas_key", "anon": "skip_signature"},
    "http": {},
}
_CREDENTIALS = {
    "s3": "give storage_options={'key': ..., 'secret': ...} or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a "
    "public bucket storage_options={'anon': True}",
    "gs": "give storage_options={'token': 'KEY_FILE.json'} or set GOOGLE_APPLICATION_CREDENTIALS; for a public bucket "
    "storage_options={'token': 'anon'}",
    "az": "give storage_options={'account_name': ..., 'account_key': ...} or set AZURE_STORAGE_ACCOUNT_NAME and "
    "AZURE_STORAGE_ACCOUNT_KEY; for a public container storage_options={'account_name': ..., 'anon': True}",
    "http": "give storage_options={'headers': {'Authorization': ...}}, or a newly signed address",
}


class StoredFile:
    """A file in an object store or on a web server: the `Backend` for the protocols of `STORES`.

    `stall_s` seconds without a byte end an attempt.
    """

    _process: ClassVar[int | None] = None  # the first process that used obstore, whose threads a fork does not copy

    def __init__(self, url: str, options: Options, stall_s: float) -> None:
        if StoredFile._process not in (None, os.getpid()):
            raise PermanentError(
                "this process was forked from one that has fetched shards, and a fork does not copy obstore's threads",
                "spawn the workers instead: DataLoader(..., multiprocessing_context='spawn')",
            )
        StoredFile._process = os.getpid()
        self._url, self._options, self._stall_s = url, options, stall_s
        self._obstore, self._kind = import_optional("obstore"), STORES[scheme_of(url)]
        self._path = "" if self._kind == "http" else url.partition("://")[2].partition("/")[2]
        self._head = True

    def stat(self, deadline: float) -> ObjectMeta:
        try:
            if self._head:
                store = self._store(deadline)
                with self._translated():
                    return _object_meta(self._obstore.head(store, self._path))
        except PermanentError as error:
            if error.status not in (403, 405, 501):
                raise
        # An address signed for GET refuses HEAD, and some servers do not support it. The body is not read.
        self._head = False
        store = self._store(deadline)
        with self._translated():
            return _object_meta(self._obstore.get(store, self._path).meta)

    def read(self, start: int, version: str, deadline: float) -> tuple[ObjectMeta, Iterator[bytes]]:
        options: dict[str, Any] = {"range": {"offset": start}} if start else {}
        if version.startswith('"'):  # a weak ETag never matches
            options["if_match"] = version
        store = self._store(deadline)
        with self._translated():
            result = self._obstore.get(store, self._path, options=options)
        return _object_meta(result.meta), self._pieces(result)

    def write(self, data: Any, deadline: float) -> None:
        store, is_file = self._store(deadline), isinstance(data, Path)
        # Bytes go in one put, and a large file in parts, except to a web server, which has no multipart upload.
        parts = None if is_file and self._kind != "http" else False
        with self._translated():
            self._obstore.put(store, self._path, data if is_file else bytes(data), use_multipart=parts)

    def glob(self, deadline: float) -> list[str]:
        """The addresses that match this one, sorted; `*`, `?` and `[...]` never match a `/`."""
        if self._kind == "http":
            raise PermanentError(
                "plain HTTP cannot list files", "write the names as a brace range: train-{000000..000099}.tar"
            )
        found: list[str] = []

        def walk(folder: str, parts: list[str]) -> None:
            fixed = next((i for i, part in enumerate(parts) if MAGIC.search(part)), len(parts) - 1)
            folder, parts = "/".join(filter(None, [folder, *parts[:fixed]])), parts[fixed:]
            store = self._store(deadline)
            with self._translated():
                listed = self._obstore.list_with_delimiter(store, folder or None)
            names = [entry["path"] for entry in listed["objects"]] if len(parts) == 1 else listed["common_prefixes"]
            for name in names:
                if fnmatchcase(name.rpartition("/")[2], parts[0]):
                    found.append(name) if len(parts) == 1 else walk(name, parts[1:])

        walk("", self._path.split("/"))
        root = self._url[: len(self._url) - len(self._path)]
        return sorted(root + name for name in found)

    def below(self, deadline: float) -> list[tuple[str, ObjectMeta]]:
        if self._kind == "http":
            raise PermanentError("plain HTTP cannot list files", "write a table of addresses: a CSV with path='url'")
        prefix, store = self._path.strip("/"), self._store(deadline)
        found: list[tuple[str, ObjectMeta]] = []
        with self._translated():
            for batch in self._obstore.list(store, prefix or None):
                for entry in batch:
                    path = entry["path"].removeprefix(prefix).lstrip("/")
                    if path and entry["size"] >= 0 and not entry["path"].endswith("/"):
                        found.append((path, _object_meta(entry)))
        return found

    def _pieces(self, result: Any) -> Iterator[bytes]:
        # Pieces are yielded as they arrive: bytes still buffered for a larger piece are lost with the connection.
        with self._translated():
            yield from result.stream(min_chunk_size=1)

    def _store(self, deadline: float) -> Any:
        return open_store(self._url, self._options, self._stall_s, deadline - time.monotonic())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate obstore's errors to `TransientError`, `PermanentError` or `NoRange`.

        Their text is dropped: it quotes signed addresses, and responses that quote keys.
        """
        errors = import_optional("obstore.exceptions")
        try:
            yield
        except FileNotFoundError:
            raise PermanentError("no such file", "correct the address", missing=True) from None
        except errors.PreconditionError:
            raise PermanentError("the file has changed", INDEX_AGAIN) from None
        except errors.BaseError as error:
            text = str(error)
            if isinstance(error, errors.NotSupportedError) and "Range request" in text:
                raise NoRange from None
            raise _translate(text, self._kind, self._stall_s) from None


def open_store(url: str, options: Options, stall_s: float, timeout_s: float) -> Any:
    """Create obstore's store for `url`.

    Timeouts belong to the store, so each attempt creates one, which takes a few milliseconds. The store does not retry:
    the caller counts attempts against one deadline, and resumes an interrupted body.
    """
    stores, kind = import_optional("obstore.store"), STORES[scheme_of(url)]
    given = {**options, **options.get("client_kwargs", {})}
    given.pop("client_kwargs", None)
    if "retry_config" in given:
        raise ValueError("storage_options has retry_config; the loader retries itself: give retry={'attempts': ...}")
    client = {**given.pop("client_options", {})}
    client["default_headers"] = {**client.get("default_headers", {}), **given.pop("headers", {})}
    provider = given.pop("credential_provider", None)
    if kind == "gs" and "token" in given:
        given |= _gcs_token(given.pop("token"))
    config = {_FSSPEC_NAMES[kind].get(name, name): value for name, value in given.items() if value is not None}
    if kind == "http":
        if config:
            raise ValueError(f"storage_options has {_listed(config)}; for http it can have headers and client_options")
        url, headers = _without_user(url)
        client["default_headers"] = headers | client["default_headers"]
        make = partial(stores.HTTPStore, url)
    else:
        bucket = url.partition("://")[2].partition("/")[0]
        store = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}[kind]
        make = partial(store, bucket, credential_provider=provider, **config)
    if any(str(address).startswith("http://") for address in _endpoints(url, kind, config)):
        client.setdefault("allow_http", True)
    limits = {"timeout": timeout_s, "read_timeout": stall_s, "connect_timeout": min(stall_s, _MAX_CONNECT_S)}
    client |= {name: timedelta(seconds=max(0.001, min(seconds, timeout_s))) for name, seconds in limits.items()}
    try:
        return make(client_options=client, retry_config={"max_retries": 0})
    except (ValueError, TypeError, import_optional("obstore.exceptions").BaseError) as error:
        # The error's text may quote values, which may be secrets.
        raise ValueError(
            f"{redact(url)}: obstore cannot create its {make.func.__name__} with the storage_options {_listed(config)} "
            f"({type(error).__name__}); give options that obstore documents: {_CREDENTIALS[kind]}"
        ) from None


def _endpoints(url: str, kind: str, config: Options) -> list[str]:
    if kind == "http":
        return [url]
    given = {name: str(config[name]) for name in ("endpoint", "aws_endpoint_url_s3", "base_url") if name in config}
    for name, address in given.items():
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"{name} in storage_options is not an address; it must begin with https:// or http://")
    if kind == "s3" and not given:
        return [os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")]
    return list(given.values())


def _without_user(url: str) -> tuple[str, dict[str, str]]:
    """The address without user and password, which obstore would drop, and the header that sends them instead."""
    address = urlsplit(url)._replace(fragment="")
    user, at, host = address.netloc.rpartition("@")
    credentials = base64.b64encode(unquote(user).encode()).decode()
    return urlunsplit(address._replace(netloc=host)), {"Authorization": f"Basic {credentials}"} if at else {}


def _gcs_token(token: Any) -> dict[str, Any]:
    if token == "anon":
        return {"skip_signature": True}
    if isinstance(token, str) and os.path.exists(token):
        return {"application_credentials": token}
    if token in (None, "google_default"):
        return {}
    raise ValueError("token in storage_options must be 'anon', 'google_default' or the path of a key file")


def _listed(config: Options) -> str:
    return ", ".join(repr(name) for name in sorted(config)) or "{}"


def _object_meta(meta: Any) -> ObjectMeta:
    modified = meta["last_modified"]
    version = meta["e_tag"] or (modified.isoformat() if modified.timestamp() > 0 else "")
    return ObjectMeta(meta["size"], version)


def _translate(text: str, kind: str, stall_s: float) -> Exception:
    credentials = _CREDENTIALS[kind]
    if "169.254.169.254" in text or "metadata.google" in text:
        return TransientError("no credentials were found", credentials)
    if found := re.search(r"status code: (\d{3})", text):
        status = int(found[1])
        name = f"{status} {HTTPStatus(status).phrase}" if status in {s.value for s in HTTPStatus} else str(status)
        if status in _TRANSIENT or (status >= 500 and status not in _PERMANENT):
            return TransientError(f"the server answered {name}")
        if status == 416:
            return PermanentError("the file has changed: it is shorter now", INDEX_AGAIN)
        remedy = credentials if status in (401, 403) else "correct the address, or storage_options"
        return PermanentError(f"the server answered {name}", remedy, status=status)
    if "without LOCATION" in text:
        return PermanentError("the bucket is in another region", "give storage_options={'region': ...}")
    if "MissingContentLength" in text:
        return PermanentError("the server does not report the file's size", "serve it with a Content-Length header")
    if "BadScheme" in text:
        return PermanentError(
            "the address is not https", "give storage_options={'client_options': {'allow_http': True}}"
        )
    if "certificate" in text:
        return PermanentError(
            "the server's certificate is not trusted",
            "give storage_options={'client_options': {'root_certificate': ...}}",
        )
    kinds = re.findall(r"kind: (\w+)", text)
    if "Timeout" in kinds or "TimedOut" in text:
        return TransientError(f"no bytes for {stall_s:g} s, or the deadline has passed")
    if "Connect" in kinds:
        return TransientError(f"no connection ({'unknown host' if 'dns error' in text else 'refused or lost'})")
    if "Interrupted" in kinds or "IncompleteBody" in text:
        return TransientError("the connection was closed early")
    return TransientError(f"the transfer failed ({', '.join(dict.fromkeys(kinds)) or 'obstore names no reason'})")
