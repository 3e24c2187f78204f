"""What a file system may lack, and how the store does without it.

It needs folders and files that can be made, written, synced, listed, and renamed to a free name. Hard links, an
exchange of two folders, and renaming folders of another layer of it only make the store faster.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from featurestore.errors import StoreAccessError
from featurestore.store import filesystem
from featurestore.store.format.metadata import METADATA

MAY_NOT = (errno.EACCES, errno.EPERM)
_REFUSED = (*MAY_NOT, errno.EROFS, errno.EBUSY, errno.EIO)
_COPYING = ".copying"


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file that never changes again, or copy it where that is refused, for whatever reason."""
    try:
        filesystem.link(source, target)
    except OSError:
        filesystem.copy_file(source, target)


def replace_dir(source: Path, target: Path, backup: Path, *, keep: bool = True) -> None:
    """Put a folder in the place of another; the other is afterwards at `source` or at `backup`.

    In one step where the system can. Otherwise `target` is missing or incomplete for an instant, and `backup` is
    whole. Can be done again from wherever it stopped. Where the other cannot be moved, it is copied if it is to be
    kept, and removed.
    """
    try:
        filesystem.rename(source, target)
        return
    except OSError:
        if not os.path.lexists(target):
            raise
    if filesystem.exchange(source, target):
        return
    set_aside(target, backup, keep=keep)
    try:
        filesystem.rename(source, target)
    except OSError:
        if filesystem.is_dir(backup) and not os.path.lexists(target):
            filesystem.rename(backup, target)
        raise


def set_aside(folder: Path, backup: Path, *, keep: bool = True) -> None:
    """Rename a folder; where it cannot be renamed (a lower layer, another mount), copy it and remove it.

    A whole copy that is at `backup` already is used; what is not to be kept is not copied.
    """
    if not filesystem.is_dir(backup):
        try:
            filesystem.rename(folder, backup)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        if keep:
            copy_dir(folder, backup)
    # Readers that do not find the metadata look at the backup.
    filesystem.unlink(folder / METADATA)
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


def can_be_renamed(folder: Path, full: Path) -> bool:
    """Whether a folder can be moved to where another one is, tried without moving it.

    Parameters
    ----------
    folder : Path
        Of an array, for example.
    full : Path
        A folder with content, which nothing can be renamed to.

    Returns
    -------
    bool
        False if it has to be copied instead.

    Raises
    ------
    OSError
        If it can neither be moved nor be removed, since it is somebody else's, for example.
    """
    try:
        filesystem.rename(folder, full)
    except OSError as error:
        movable = error.errno != errno.EXDEV
        # Some answer EPERM whatever is there: what may be written may be moved, too.
        if error.errno in _REFUSED and not (error.errno == errno.EPERM and _may_write(folder)):
            raise
    else:
        filesystem.rename(full, folder)
        raise StoreAccessError(
            f"{full.parent}: the file system renames folders over others that have content: keep the store on "
            "another one"
        )
    if not movable and not _may_write(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return movable


def check_target(folder: Path, staged: Path) -> None:
    """Raise OSError if a staged folder cannot be renamed into a folder, as far as can be told without doing it."""
    if folder.stat().st_dev != staged.stat().st_dev:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _may_write(folder: Path) -> bool:
    return all(os.access(path, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE) for path in (folder, folder.parent))


_EFFECTIVE = os.access in os.supports_effective_ids
