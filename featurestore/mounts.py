"""The type of the file system that a folder is on, and what that means for a store."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

_LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "tmpfs", "ramfs", "apfs", "jfs")
_SHARED = "builds on all hosts that see it share a store by its locks"
_ONE_HOST = "locks hold within a host only: let one host write a store at a time"
_LATE = "others see changes"


class Mount(NamedTuple):
    """A file system: its type, as Linux names it, and its options."""

    kind: str
    options: frozenset[str]


def mount_of(folder: Path, table: str | None = None) -> Mount | None:
    """Find the file system of a folder in a table of mounts, /proc/self/mountinfo; None where there is none."""
    if table is None:
        try:
            table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return None
    path, found, longest = os.path.realpath(folder), None, -1
    for line in table.splitlines():
        own, dash, of_disk = line.partition(" - ")
        fields, (kind, _, *options) = own.split(" "), of_disk.split(" ") if dash else ("", "")
        if len(fields) < 6 or not kind:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        # The last one of a place hides those before it.
        if len(point) >= longest and (point == "/" or f"{path}/".startswith(f"{point}/")):
            longest = len(point)
            found = Mount(kind, frozenset(",".join([fields[5], *options]).split(",")))
    return found


def describe_mount(mount: Mount) -> tuple[bool | None, str]:
    """Say whether several hosts may write a store on a file system (None: nobody has tried), and what it means."""
    kind, options = mount
    local = sorted(options & {"nolock", "local_lock=all", "local_lock=flock", "localflock"})
    if kind in ("nfs", "nfs4"):
        version = next(
            (x.removeprefix("vers=") for x in options if x.startswith("vers=")), "4" if kind[3:] else "3"
        )
        if local:
            return False, f"NFS {version}, mounted with {local[0]}: {_ONE_HOST}, or mount it without that option"
        if version.startswith("3"):
            return None, (
                f"NFS {version}: {_SHARED}; those of a host that dies are held until it is back, and its tracks "
                f"are done by others after a minute. {_LATE} some 15 s late. NFS 4 is better in both"
            )
        return True, (
            f"NFS {version}: {_SHARED}; those of a host that dies are free after about a minute. "
            f"{_LATE} some 2 s late"
        )
    if kind == "lustre":
        if "flock" in options:
            return True, f"Lustre with flock: {_SHARED}"
        return False, f"Lustre without the mount option flock: {_ONE_HOST if local else 'there are no locks'}"
    if kind in ("fuse.sshfs", "cifs", "smb3", "fuse.rclone"):
        return None, f"{kind}: {_ONE_HOST}"
    if kind in ("fuse.s3fs", "fuse.goofys", "fuse.gcsfuse", "fuse.mount-s3", "fuse.blobfuse2"):
        return False, f"{kind}, which is object storage: no store can be written here; build on a disk and copy it"
    if kind in _LOCAL:
        return True, f"{kind}, of this machine: its builds share a store by its locks"
    return None, f"{kind}: nobody has tried whether locks hold across hosts there"
