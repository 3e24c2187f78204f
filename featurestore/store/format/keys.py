"""Track ids as names of folders: a reversible escape that any file system keeps as it is.

Every byte outside ``[a-z0-9_-]`` of the id's UTF-8 becomes ``=`` and two hex digits, so no key is ``..`` or
``zarr.json``, none contains a separator, and no two keys differ only in case or in Unicode normal form. A
key of more than 200 bytes is replaced by ``=h`` and the SHA-256 of the id; the id is then in the attributes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from featurestore.errors import SettingError

MAX_KEY_BYTES = 200
MAX_ID_BYTES = 65_536
_SAFE = b"abcdefghijklmnopqrstuvwxyz0123456789_-"
_UNSAFE = re.compile(rb"[^a-z0-9_-]")
_ESCAPED = re.compile(rb"=([0-9a-f]{2})")
_PLAIN = re.compile(r"[a-z0-9_-]+\Z")
_HASHED = re.compile(r"=h[0-9a-f]{64}\Z")
_BETWEEN = "\0"  # ids, of which hardly any has it
# Names that Windows keeps for devices.
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])\Z")
_RESERVED_LENGTH = 4


def encode_key(track_id: str) -> str:
    """Key of a track id.

    Raises
    ------
    SettingError
        If the id is no text, empty, longer than 65,536 bytes of UTF-8, or not valid Unicode.
    """
    if not isinstance(track_id, str):
        raise SettingError(f"a track id is text, not {track_id!r:.100}")
    if _PLAIN.match(track_id) and len(track_id) <= MAX_KEY_BYTES and not _RESERVED.match(track_id):
        return track_id
    try:
        raw = track_id.encode()
    except UnicodeEncodeError:
        raise SettingError(f"the track id {track_id!r} is not valid Unicode: choose another id") from None
    if not 0 < len(raw) <= MAX_ID_BYTES:
        raise SettingError(f"a track id has 1 to {MAX_ID_BYTES} bytes, not {len(raw)}: {track_id[:40]!r}")
    key = _UNSAFE.sub(lambda match: b"=%02x" % match[0][0], raw).decode()
    if _RESERVED.match(key):
        key = f"={raw[0]:02x}{key[1:]}"
    return key if len(key) <= MAX_KEY_BYTES else "=h" + hashlib.sha256(raw).hexdigest()


def encode_keys(track_ids: Sequence[str]) -> list[str]:
    """Keys of many track ids, as `encode_key` gives them but many times quicker."""
    joined = _BETWEEN.join(track_ids)
    if joined.count(_BETWEEN) != len(track_ids) - 1:  # none at all, or one that has it
        return list(map(encode_key, track_ids))
    try:
        raw = joined.encode()
    except UnicodeEncodeError:
        raise SettingError("a track id is not valid Unicode") from None
    unsafe = rest = raw.translate(None, _SAFE + _BETWEEN.encode())
    while rest:  # what escapes others is escaped before them
        byte = b"=" if b"=" in rest else rest[:1]
        raw, rest = raw.replace(byte, b"=%02x" % ord(byte)), rest.replace(byte, b"")
    keys = raw.decode("ascii").split(_BETWEEN) if unsafe else list(track_ids)
    lengths, found = range(_RESERVED_LENGTH + 1, MAX_KEY_BYTES + 1), set(map(len, keys))
    if min(found) in lengths and max(found) in lengths:
        return keys
    return [
        key if len(key) in lengths else encode_key(track_id) for key, track_id in zip(keys, track_ids, strict=True)
    ]


def is_hashed(key: str) -> bool:
    """Whether a key is a hash, and its track's id in the attributes."""
    return bool(_HASHED.match(key))


def decode_key(key: str) -> str | None:
    """Track id of a key, or None where the key is a hash and the id is in the attributes.

    Raises
    ------
    ValueError
        If no id has this key.
    """
    if _PLAIN.match(key) and len(key) <= MAX_KEY_BYTES and not _RESERVED.match(key):
        return key
    if is_hashed(key):
        return None
    track_id = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), key.encode()).decode()
    if not track_id or encode_key(track_id) != key:
        raise ValueError(f"{key!r} is not the key of any track id")
    return track_id
