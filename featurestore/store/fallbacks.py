"""What a file system may lack, and how the store does without it.

It needs folders and files that can be made, written, synced, listed, and renamed to a free name. Hard links, an
exchange of two folders, and renaming folders of another layer of it only make the store faster.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from featurestore.errors import StoreAccessError
from featurestore.store import filesystem, reading
from featurestore.store.format.metadata import METADATA

_REFUSED = (errno.EACCES, errno.EPERM, errno.EXDEV, errno.EROFS, errno.EBUSY, errno.EIO)
_COPYING = ".copying"


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Hard-link a file that never changes again, or copy it where that is refused, for whatever reason."""
    try:
        filesystem.link(source, target)
    except OSError:
        filesystem.copy_file(Path(source), Path(target))


def replace_dir(source: Path, target: Path, backup: Path, *, keep: bool = True) -> None:
    """Put a folder in the place of another; the other is afterwards at `source` or at `backup`.

    In one step where the system can. Otherwise `target` is missing or incomplete for an instant, and `backup` is
    whole. Can be done again from wherever it stopped. Where the other cannot be moved, it is copied if it is to be
    kept, and removed.
    """
    # Never by a rename over the other: a pool of disks makes one of both where each has files on another disk.
    if not os.path.lexists(target):
        filesystem.rename(source, target)
        return
    if filesystem.exchange(source, target):
        return
    set_aside(target, backup, keep=keep)
    try:
        filesystem.rename(source, target)
    except OSError:
        if reading.is_dir(backup) and not os.path.lexists(target):
            filesystem.rename(backup, target)
        raise


def set_aside(folder: Path, backup: Path, *, keep: bool = True) -> None:
    """Rename a folder; where it cannot be renamed (a lower layer, another mount), copy it and remove it.

    A whole copy that is at `backup` already is used; what is not to be kept is not copied.
    """
    if not reading.is_dir(backup):
        try:
            filesystem.rename(folder, backup)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        if keep:
            copy_dir(folder, backup)
    # Readers that do not find the metadata look at the backup: it must not come back when other files are gone.
    filesystem.unlink(folder / METADATA)
    filesystem.sync_dir(folder)
    filesystem.remove_dir(folder)


def copy_dir(source: Path, target: Path) -> None:
    """Copy a folder of files and make the copy durable; `target` is there once it is whole."""
    copy = target.with_name(target.name + _COPYING)
    filesystem.remove_tree(copy)
    filesystem.make_dir(copy)
    for name in sorted(os.listdir(source)):
        filesystem.copy_file(source / name, copy / name)
    filesystem.sync_tree(copy)
    filesystem.rename(copy, target)
    filesystem.sync_dir(target.parent)


def check_movable(folder: Path, file: Path) -> None:
    """Raise OSError if a folder cannot be moved to another one: it is somebody else's, or on another disk.

    It is not moved, as no folder can be renamed to a file, and `file` is one, in the other folder. What is no
    folder is not looked at.
    """
    if not reading.is_dir(folder):
        return
    try:
        filesystem.rename(folder, file)
    except OSError as error:
        if error.errno in _REFUSED:
            raise
    else:
        filesystem.rename(file, folder)
        raise StoreAccessError(
            f"{file.parent}: the file system puts folders in the place of files: use another disk"
        )
    # To move it changes its own entry for the folder above.
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def check_target(folder: Path, staged: Path) -> None:
    """Raise OSError if a staged folder cannot be moved into a folder, as far as can be told without doing it."""
    if folder.stat().st_dev != staged.stat().st_dev:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


_EFFECTIVE = os.access in os.supports_effective_ids
