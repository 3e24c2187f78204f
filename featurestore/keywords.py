"""Keywords that another pipeline has for the same things."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from featurestore.errors import SettingError

_DEPRECATED = ("output_dir",)


def one_of(*, stacklevel: int = 3, **given: Any) -> Any:
    """The one value that is given, of several keywords for the same, or None; the first is the name to use.

    Raises
    ------
    SettingError
        If more than one is given.
    """
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise SettingError(f"{' and '.join(f'`{name}`' for name in named)} are two names of the same: give one")
    if named and named[0] in _DEPRECATED:
        warnings.warn(
            f"`{named[0]}` is called `{next(iter(given))}` now", DeprecationWarning, stacklevel=stacklevel
        )
    return given[named[0]] if named else None


def required(**given: Any) -> Any:
    """`one_of`, where one must be given.

    Raises
    ------
    SettingError
        If none is, or more than one.
    """
    found = one_of(stacklevel=4, **given)
    if found is None:
        raise SettingError(f"`{next(iter(given))}` must be given, and must not be None")
    return found


def warn_of_earlier_variables() -> None:
    """Name the variables of the environment that another pipeline read and this library does not."""
    for name in ("DEVICE", "BATCH_SIZE"):
        if f"MESS_{name}" in os.environ:
            logging.getLogger("featurestore").warning(
                "MESS_%s is not read: fs-extract reads FEATURESTORE_%s, and Python takes `%s`",
                name,
                name,
                name.lower(),
            )
