"""Keywords that another pipeline has for the same things."""

from __future__ import annotations

from typing import Any

from featurestore.errors import SettingError


def one_of(**given: Any) -> Any:
    """The one value that is given, of several keywords for the same, or None.

    Raises
    ------
    SettingError
        If more than one is given.
    """
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise SettingError(f"{' and '.join(f'`{name}`' for name in named)} are two names of the same: give one")
    return given[named[0]] if named else None


def required(**given: Any) -> Any:
    """`one_of`, where one must be given.

    Raises
    ------
    SettingError
        If none is, or more than one.
    """
    found = one_of(**given)
    if found is None:
        raise SettingError(f"`{next(iter(given))}` must be given, and must not be None")
    return found
