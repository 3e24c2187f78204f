"""Paths as people write them: with ``~``, or as an address; and addresses of stores in buckets."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # pathlib makes one slash of two
_OF_STORES = {"s3", "s3a", "gs", "az", "abfs", "abfss", "adl", "http", "https"}
_REMOTE = _OF_STORES | {"gcs", "ftp", "sftp", "ssh", "hf", "hdfs"}
_URL = re.compile(r"([a-z0-9]+):/+([^/].*?)/*\Z", re.DOTALL)


class StoreUrl(str):
    """The address of a store in a bucket or on a web server; `store_url` makes one."""

    @property
    def scheme(self) -> str:
        """What it begins with, like ``s3``."""
        return self.partition(":")[0]

    @property
    def name(self) -> str:
        """Its last part."""
        return self.rpartition("/")[2]


def store_url(path: str | os.PathLike[str]) -> StoreUrl | None:
    """The address that is meant, None if it is a path or of a kind from which no store is read.

    Raises
    ------
    ValueError
        If it holds a password, a token or a query, which would be shown wherever the store is named.

    Examples
    --------
    >>> store_url("s3://bucket/my-store/"), store_url("/data/store.zarr")
    ('s3://bucket/my-store', None)
    """
    found = _URL.match(os.fspath(path))
    if found is None or found[1] not in _OF_STORES:
        return None
    if "://" not in os.fspath(path) and os.path.lexists(path):
        return None  # a folder that is called so
    if ("@" in found[2].partition("/")[0] and found[1] not in ("abfs", "abfss")) or set("?#") & set(found[2]):
        raise ValueError(
            "an address with a password, a query or a fragment: give it without, and what is secret by the "
            "environment or by `storage_options`"
        )
    return StoreUrl(f"{found[1]}://{found[2]}")


def noted_path(path: str | os.PathLike[str]) -> dict[str, str]:
    """What is written down of a file: its `path` as given, and the `folder` in which a relative one begins.

    Examples
    --------
    >>> noted_path("/music/song.wav"), sorted(noted_path("music/song.wav"))
    ({'path': '/music/song.wav'}, ['folder', 'path'])
    """
    text = os.fspath(path)
    return {"path": text} if os.path.isabs(text) else {"path": text, "folder": os.getcwd()}


def local_path(path: str | os.PathLike[str]) -> str:
    """The local path that is meant; one that is no address is given back as it is.

    Parameters
    ----------
    path : str or Path
        As it was given: ``~`` and ``~user`` are home folders, ``file:///x`` is ``/x``.

    Raises
    ------
    ValueError
        If it is the address of something else, as ``s3://bucket/x``.

    Examples
    --------
    >>> local_path("file:///data/my%20store.zarr")
    '/data/my store.zarr'
    """
    text = os.fspath(path)
    found = _ADDRESS.match(text)
    if found is None:
        return os.path.expanduser(text)
    scheme = found[1].lower()
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc in ("", "localhost"):
            return unquote(parts.path)
        raise ValueError("on another computer: mount its disk, and give the path of the folder")
    if "://" in text or (scheme in _REMOTE and not os.path.lexists(path)):
        raise ValueError(
            "an address, and only local folders can be used: mount it (rclone mount, s3fs, gcsfuse), or copy it "
            "to a local folder (rclone copy) and give that one's path"
        )
    return text
