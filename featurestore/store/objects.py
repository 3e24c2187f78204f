"""The bytes of a store that is in a bucket or on a web server, through obstore."""

from __future__ import annotations

import errno
import importlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache, cached_property
from typing import Any

from featurestore.addresses import StoreUrl
from featurestore.errors import MissingDependencyError, SettingError, StoreAccessError
from featurestore.store.object_errors import no_credentials, place_settings, reason

_CACHE_BYTES = 512 * 2**20
"""Of objects that were read as a whole: metadata, and chunks of the packed table."""
_TAIL_BYTES = 2**16
"""What is read first of an object that is not read as a whole: its end, with the index."""
_TIMEOUT = "5m"
"""Of a request, where the options say nothing; obstore's 30 s are too short for a large object on a slow line."""
_KEYS = {"access_key_id", "skip_signature"}
_VARIABLES = (
    *("ACCESS_KEY_ID", "SKIP_SIGNATURE", "WEB_IDENTITY_TOKEN_FILE"),
    *("CONTAINER_CREDENTIALS_RELATIVE_URI", "CONTAINER_CREDENTIALS_FULL_URI"),
)
"""Settings that tell obstore by itself how to sign requests; the environment has them behind AWS_."""


@cache
def _process() -> int:
    """The process in which obstore runs: its threads do not survive a fork."""
    return os.getpid()


class ObjectSource:
    """The objects of a store below a URL, to read and to write.

    What is read as a whole is kept, as objects of a store never change. The options, for `obstore.store.from_url`,
    may hold secrets, and are never shown.
    """

    def __init__(self, url: StoreUrl, options: Mapping[str, Any] | None = None) -> None:
        self.url = url
        self._options = dict(options or {})
        self._cache: OrderedDict[str, memoryview] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self._options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self.url)!r}>"

    @property
    def can_list(self) -> bool:
        """Whether objects can be listed: not on a web server."""
        return self.url.scheme not in ("http", "https")

    @cached_property
    def _store(self) -> Any:
        try:
            stores = importlib.import_module("obstore.store")
        except ImportError as error:
            raise MissingDependencyError("obstore is needed: pip install 'featurestore[s3]'") from error
        options = dict(self._options)
        client = {"timeout": _TIMEOUT, **options.pop("client_options", {})}
        name = {key.lower().removeprefix("aws_").removesuffix("_url"): key for key in options}
        endpoint = options.get(name.get("endpoint", ""))
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
        if f"{endpoint if self.url.scheme in ('s3', 's3a') else self.url}".startswith("http://"):
            client.setdefault("allow_http", True)  # whoever writes http means it
        if self.url.scheme in ("s3", "s3a") and not _KEYS & name.keys() and "credential_provider" not in options:
            options |= self._credentials()
        make = stores.from_url if self.can_list else stores.HTTPStore.from_url
        try:
            return make(str(self.url), client_options=client, **options)
        except Exception as error:
            if "Account must be specified" in str(error):
                raise StoreAccessError(f"{self.url}: {no_credentials(self.url.scheme)}") from None
            # Others may show what they were given.
            known = type(error).__name__ == "UnknownConfigurationKeyError"
            said = f" ({str(error).partition('Debug')[0].rstrip(' .' + chr(10))})" if known else ""
            raise SettingError(
                f"`storage_options` for {self.url} are none that obstore takes{said}: see "
                "https://developmentseed.org/obstore"
            ) from None

    def _credentials(self) -> dict[str, Any]:
        """What signs requests where neither options nor environment say it: profiles, if boto3 is there."""
        if any(f"AWS_{name}" in os.environ for name in _VARIABLES):
            return {}
        try:
            auth = importlib.import_module("obstore.auth.boto3")
        except ImportError:
            return {}
        try:
            return {"credential_provider": auth.Boto3CredentialProvider()}
        except ValueError:
            raise StoreAccessError(f"{self.url}: {no_credentials(self.url.scheme)}") from None

    @contextmanager
    def client(self, path: str = "") -> Iterator[Any]:
        """Surround requests about an object: yields the store of obstore.

        Raises
        ------
        FileNotFoundError
            If there is no such object.
        StoreAccessError
            If the bucket is not there, or cannot be used.
        """
        if _process() != os.getpid():
            raise StoreAccessError(
                f"{self.url} cannot be read in a process that was forked from one that has read a bucket: start "
                "it afresh, as DataLoader(..., multiprocessing_context='spawn') does"
            )
        store = self._store
        errors = importlib.import_module("obstore.exceptions")
        try:
            yield store
        except FileNotFoundError as error:
            if any(code in str(error) for code in ("NoSuchBucket", "ContainerNotFound")):
                raise StoreAccessError(
                    f"{self.url}: there is no such bucket: see its name, and {place_settings(self.url.scheme)}"
                ) from None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.url}/{path}") from None
        except (errors.AlreadyExistsError, errors.PreconditionError, errors.NotSupportedError):
            raise
        except errors.BaseError as error:
            raise StoreAccessError(f"{self.url}: {reason(error, self.url.scheme)}") from None

    def forget(self, path: str) -> None:
        """Ask for an object again when it is read the next time."""
        with self._lock:
            if path in self._cache:
                self._cached_bytes -= len(self._cache.pop(path))

    def get(self, path: str, *, limit: int | None = None) -> memoryview:
        """Read a whole object; ValueError if it has more than `limit` bytes."""
        with self._lock:
            if path in self._cache:
                self._cache.move_to_end(path)
                return self._cache[path]
        return self._fetch(path, limit)[0]

    def refresh(self, path: str) -> str | None:
        """Read an object anew, so that `get` has it, and give the tag of its content."""
        self.forget(path)
        return self._fetch(path)[1]

    def _fetch(self, path: str, limit: int | None = None) -> tuple[memoryview, str | None]:
        with self.client(path) as store:
            found = store.get(path)
            if limit is not None and found.meta["size"] > limit:
                raise ValueError(f"{path} is not a file of at most {limit} bytes")
            content = memoryview(found.bytes())
        self._keep(path, content)
        return content, found.meta["e_tag"]

    def _keep(self, path: str, content: memoryview) -> None:
        with self._lock:
            if path not in self._cache and len(content) <= _CACHE_BYTES // 4:
                self._cache[path] = content
                self._cached_bytes += len(content)
            while self._cached_bytes > _CACHE_BYTES:
                self._cached_bytes -= len(self._cache.popitem(last=False)[1])

    def tail(self, path: str) -> tuple[int, memoryview]:
        """Size of an object, and its last bytes: all of a small one."""
        with self._lock:
            if path in self._cache:
                return len(self._cache[path]), self._cache[path]
        with self.client(path) as store:
            try:
                found = store.get(path, options={"range": {"suffix": _TAIL_BYTES}})
            except self._no_ranges:
                content = self.get(path)
                return len(content), content
            size, content = found.meta["size"], memoryview(found.bytes())
        if size == len(content):
            self._keep(path, content)
        return size, content

    def ranges(self, path: str, starts: Sequence[int], ends: Sequence[int]) -> list[memoryview]:
        """Read parts of an object; those that are near each other in one request, at most ten at once."""
        with self.client(path) as store:
            try:
                return [memoryview(part) for part in store.get_ranges(path, starts=starts, ends=ends)]
            except self._no_ranges:
                content = self.get(path)
                return [content[start:end] for start, end in zip(starts, ends, strict=True)]

    @cached_property
    def _no_ranges(self) -> type[Exception]:
        """The error of a web server that sends whole files only."""
        found: type[Exception] = importlib.import_module("obstore.exceptions").NotSupportedError
        return found

    def exists(self, path: str) -> bool:
        """Whether there is an object."""
        try:
            self.written(path)
        except FileNotFoundError:
            return False
        return True

    def names(self, path: str) -> set[str]:
        """Names of what is right below a path, objects and folders."""
        with self.client(path) as store:
            found = store.list_with_delimiter(path)
        below = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return {name.rstrip("/").rpartition("/")[2] for name in below}

    def entries(self, path: str) -> Iterator[tuple[str, datetime]]:
        """All objects below a path, and when each was last written."""
        with self.client(path) as store:
            for block in store.list(path, chunk_size=1000):
                for entry in block:
                    yield entry["path"], entry["last_modified"]

    def written(self, path: str) -> datetime:
        """When an object was written."""
        with self.client(path) as store:
            moment: datetime = store.head(path)["last_modified"]
        return moment

    def create(self, path: str, content: Any) -> bool:
        """Write an object in one step; False if there is one."""
        return self._put(path, content, "create")

    def replace(self, path: str, content: bytes, tag: str) -> bool:
        """Write an object in the place of the one that has a tag; False if another is there by now."""
        if self._put(path, content, {"e_tag": tag}):
            return True
        if self.refresh(path) != tag:
            return False
        # Gateways of Ceph compare without the quotes that all others want.
        return self._put(path, content, {"e_tag": tag.strip('"')})

    def _put(self, path: str, content: Any, mode: Any) -> bool:
        errors = importlib.import_module("obstore.exceptions")
        try:
            with self.client(path) as store:
                store.put(path, content, mode=mode, use_multipart=False)
        except (errors.AlreadyExistsError, errors.PreconditionError):
            return False
        except errors.NotSupportedError:
            raise StoreAccessError(
                f"{self.url} cannot be written safely: push to a bucket (s3://, gs://, az://) whose server has "
                "conditional writes"
            ) from None
        return True

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the bucket."""
        with self.client(source) as store:
            store.copy(source, target)

    def delete(self, paths: Sequence[str]) -> None:
        """Remove objects, if they are there."""
        with self.client() as store:
            store.delete(list(paths))
