"""Values of TOML to frozen dataclasses: names, types and limits are checked, and mistakes are named."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

from featurestore.errors import SettingError

_LARGEST = {int: 2**63 - 1, float: sys.float_info.max}


def read_value(kind: Any, value: Any, source: str, where: str, limits: Mapping[str, Any] | None = None) -> Any:
    """A value as the type says, or a SettingError."""
    if dataclasses.is_dataclass(kind):
        return _read_table(kind, value, source, where)
    limits = limits or {}
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise SettingError(f"{source}: {where} must be a list, not {value!r}")
        kinds = get_args(kind)
        if kinds[-1] is not Ellipsis and len(value) != len(kinds):
            raise SettingError(f"{source}: {where} must be a list of {len(kinds)}, not {value!r}")
        items = [kinds[0]] * len(value) if kinds[-1] is Ellipsis else kinds
        return tuple(
            read_value(x, y, source, f"{where}[{i}]", limits)
            for i, (x, y) in enumerate(zip(items, value, strict=True))
        )
    if get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise SettingError(f"{source}: {where} must be a table, not {value!r}")
        return dict(value)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
    fits = type(value) in (int, float) if kind is float else type(value) is kind
    if fits and kind in _LARGEST and not -_LARGEST[kind] <= value <= _LARGEST[kind]:  # NaN is not either
        fits, words = False, {int: "a whole number below 2**63", float: "a finite number"}[kind]
    least, most, among = (limits.get(x) for x in ("least", "most", "among"))
    if among is not None:
        words = f"one of {', '.join(among)}"
        fits = fits and value in among
    if least is not None or most is not None:
        words += f" of at least {least:g}" if most is None else f" from {least:g} to {most:g}"
        fits = fits and least <= value and (most is None or value <= most)
    if not fits:
        raise SettingError(f"{source}: {where} must be {words}, not {value!r}")
    return kind(value)


def _read_table(kind: Any, values: Any, source: str, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise SettingError(f"{source}: {where or 'it'} must be a table, not {values!r}")
    fields = {x.name: x for x in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    if unknown := sorted(values.keys() - fields.keys()):
        raise SettingError(f"{source}: there is no setting {prefix}{unknown[0]}; allowed are {', '.join(fields)}")
    hints = get_type_hints(kind)
    required = [x.name for x in fields.values() if x.default is x.default_factory is dataclasses.MISSING]
    if missing := [x for x in required if x not in values]:
        raise SettingError(f"{source}: {prefix}{missing[0]} is missing")
    read = {
        name: read_value(hints[name], value, source, f"{prefix}{name}", fields[name].metadata)
        for name, value in values.items()
    }
    return kind(**read)
