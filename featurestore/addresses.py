"""Paths as people write them: with ``~``, or as an address with ``file://``."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # pathlib makes one slash of two
_REMOTE = {
    "s3",
    "s3a",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "adl",
    "http",
    "https",
    "ftp",
    "sftp",
    "ssh",
    "hf",
    "hdfs",
}


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
