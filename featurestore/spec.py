"""FeatureSpec: everything that identifies a feature, and its fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

from featurestore._html import html_table
from featurestore.errors import SettingError

KINDS = ("raw", "segments", "aggregated")
"""The kinds of features of a track, in the order in which they are published."""

DIMS = {
    "raw": ("segment", "layer", "frame", "feature"),
    "segments": ("segment", "layer", "feature"),
    "aggregated": ("layer", "feature"),
}
"""The dimensions of each kind."""

FEATURE_LEVELS = {"all": KINDS, "segments": ("segments", "aggregated"), "aggregated": ("aggregated",)}
"""The kinds that each feature level stores."""

DTYPES = ("float32", "float16")

CODECS = ("none", "zstd", "lz4", "bitround")
"""How stored numbers may be compressed; bitround is the only one that changes them."""

MAX_LAYERS = 1024
MAX_LAYER = 2**31 - 1
MAX_DIM = 2**18
"""Values of a feature at most: a chunk of the packed table is 1,024 of them, and has at most 1 GiB."""
MAX_VALUES = 2**22
"""Values of all layers together at most: 16 MiB of float32 for each track, were there only a name of it."""
_MAX_NUMBER = 10**9  # Hz, seconds and the like

_MEASURED = ("precision_cosines", "precision_errors")
"""What is found out about the features, not what identifies them."""


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_MAX_NUMBER <= value <= _MAX_NUMBER


def is_whole(value: object) -> bool:
    """Whether this is a whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_count(name: str, value: Any) -> None:
    """Raise SettingError unless a setting is a whole number of at least 1."""
    if not is_whole(value) or value < 1:
        raise SettingError(f"`{name}` must be a whole number of at least 1, not {value!r}")


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _are_measured(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= MAX_LAYERS and all(map(_is_number, values))


def kinds_of_level(feature_level: str) -> tuple[str, ...]:
    """Kinds that a feature level stores, in the order of `KINDS`.

    Raises
    ------
    SettingError
        If there is no such level.
    """
    try:
        return FEATURE_LEVELS[feature_level]
    except KeyError:
        raise SettingError(
            f"`feature_level` must be one of {', '.join(FEATURE_LEVELS)}, not {feature_level!r}"
        ) from None


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """Holds everything that identifies a feature: two features of equal specs can be compared.

    Settings that do not apply (a store of arrays that no model of ours made) are None.

    Parameters
    ----------
    layers : tuple of int
        The hidden states that are stored, ascending; 0 is the input of the first transformer layer.
    dim : int
        Size of the feature axis.
    model : str, optional
        Hub name or folder of the model, as given. Not part of the identity where `weights_sha256` is known.
    revision : str, optional
        Commit of the hub's repository. Not part of the identity where `weights_sha256` is known.
    weights_sha256 : str, optional
        SHA-256 of the file of weights.
    sample_rate : int, optional
        Rate of the audio that the model hears, Hz.
    do_normalize : bool, optional
        Whether each window is brought to zero mean and unit variance.
    frame_rate : float, optional
        Frames a second in raw.
    segment_duration : float or "full", optional
        Length of a window, seconds; "full" for windows as long as their track, or as the model allows.
    overlap : float, optional
        Share of a window that the next one repeats, in [0, 1).
    resampler : str, optional
        How audio is brought to `sample_rate`.
    precision : str
        Arithmetic of the encoder: "fp32", or "fp16" or "bf16" for mixed precision; "int8" in stores of earlier
        releases.
    dtype : {"float32", "float16"}
        Type of the stored numbers.
    codec : {"none", "zstd", "lz4", "bitround"}
        How they are compressed; "bitround" first rounds them to 10 bits of mantissa.
    precision_cosines, precision_errors : tuple of float, optional
        Of each stored layer, how near a precision of fewer bits came to fp32 on a test signal: centred cosine, and
        largest difference relative to the largest value. A measurement, not part of the identity. Earlier releases
        called them `int8_cosines` and `int8_errors`.

    Examples
    --------
    >>> spec = FeatureSpec(layers=(4, 7), dim=768, model="m-a-p/MERT-v1-95M", sample_rate=24_000)
    >>> spec.dtype, spec.codec
    ('float32', 'none')
    >>> spec.fingerprint[:12]
    '4a5db592fd1a'
    """

    layers: tuple[int, ...]
    dim: int
    model: str | None = None
    revision: str | None = None
    weights_sha256: str | None = None
    sample_rate: int | None = None
    do_normalize: bool | None = None
    frame_rate: float | None = None
    segment_duration: float | str | None = None
    overlap: float | None = None
    resampler: str | None = None
    precision: str = "fp32"
    dtype: str = "float32"
    codec: str = "none"
    precision_cosines: tuple[float, ...] | None = None
    precision_errors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        layers = tuple(int(x) if is_whole(x) else x for x in self.layers)  # of numpy, perhaps
        object.__setattr__(self, "layers", layers)
        for name in ("dim", "sample_rate"):
            if is_whole(value := getattr(self, name)):
                object.__setattr__(self, name, int(value))
        if len(layers) > MAX_LAYERS:
            raise SettingError(f"`layers` must be at most {MAX_LAYERS}, not {len(layers)}")
        wrong = not layers or any(type(x) is not int or not 0 <= x <= MAX_LAYER for x in layers)
        if wrong or list(layers) != sorted(set(layers)):
            raise SettingError(
                f"`layers` must be ascending, distinct, not negative and at most {MAX_LAYER}, not {layers!r:.200}"
            )
        if type(self.dim) is not int or not 1 <= self.dim <= MAX_DIM:
            raise SettingError(f"`dim` must be a whole number from 1 to {MAX_DIM}, not {self.dim!r:.100}")
        if len(layers) * self.dim > MAX_VALUES:
            raise SettingError(
                f"layers times dim must be at most {MAX_VALUES}, not {len(layers)} times {self.dim}"
            )
        if self.dtype not in DTYPES:
            raise SettingError(f"`dtype` must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.codec not in CODECS:
            raise SettingError(f"`codec` must be one of {', '.join(CODECS)}, not {self.codec!r}")
        if self.codec == "bitround" and self.dtype != "float32":
            raise SettingError(f"`codec` bitround rounds float32, not {self.dtype}")
        self._check_provenance()

    def _check_provenance(self) -> None:
        """Raise SettingError unless what was said of the model and its audio is of the right type and possible."""
        rules: dict[str, tuple[Callable[[Any], bool], str]] = {
            **dict.fromkeys(("model", "revision", "weights_sha256", "resampler", "precision"), (_is_text, "text")),
            "do_normalize": (lambda value: isinstance(value, bool), "true or false"),
            "sample_rate": (lambda value: type(value) is int and _is_positive(value), "a whole number of Hz"),
            "frame_rate": (_is_positive, "a number of Hz"),
            "segment_duration": (
                lambda value: value == "full" or _is_positive(value),
                "a number of seconds or full",
            ),
            "overlap": (lambda value: _is_number(value) and 0 <= value < 1, "a number in [0, 1)"),
            **dict.fromkeys(_MEASURED, (_are_measured, "a number for each layer")),
        }
        for name, (is_right, what) in rules.items():
            value = getattr(self, name)
            if not is_right(value) and (value is not None or name == "precision"):
                raise SettingError(f"`{name}` must be {what}, not {value!r:.100}")

    @classmethod
    def for_arrays(
        cls, *, layers: int | Sequence[int], dim: int, dtype: str = "float32", codec: str = "none"
    ) -> FeatureSpec:
        """Make the spec of features that were made elsewhere.

        Parameters
        ----------
        layers : int or sequence of int
            The number of layers, counted from 0, or their numbers.
        dim : int
            Size of the feature axis.
        dtype : {"float32", "float16"}
            Type of the stored numbers.
        codec : {"none", "zstd", "lz4", "bitround"}
            How they are compressed.

        Raises
        ------
        SettingError
            If one of them is impossible.

        Examples
        --------
        >>> spec = FeatureSpec.for_arrays(layers=13, dim=768)
        >>> spec.layers[0], spec.layers[-1], spec.model
        (0, 12, None)
        """
        if isinstance(layers, Integral) and not isinstance(layers, bool):
            layers = range(min(int(layers), MAX_LAYERS + 1))
        elif not isinstance(layers, Iterable) or isinstance(layers, str | bytes | Mapping):
            raise SettingError(f"`layers` is a number, or a sequence of numbers, not {layers!r:.100}")
        return cls(layers=tuple(layers), dim=dim, dtype=dtype, codec=codec)

    def identity(self) -> dict[str, Any]:
        """Return the settings that identify a feature, without those at their default.

        A setting that a later release adds therefore does not change the fingerprints of older stores.

        Examples
        --------
        >>> FeatureSpec.for_arrays(layers=2, dim=8, dtype="float16").identity()
        {'layers': [0, 1], 'dim': 8, 'dtype': 'float16'}
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in self.to_dict().items()
            if value != defaults[name]
            and name not in _MEASURED
            and not (name in ("model", "revision") and self.weights_sha256 is not None)
        }

    def _repr_html_(self) -> str:
        return html_table("FeatureSpec", self.to_dict())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the identity as canonical JSON, 64 hex digits."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def of_layers(self, layers: Sequence[int]) -> FeatureSpec:
        """Make the spec of some of these layers, with what was measured of them.

        Examples
        --------
        >>> FeatureSpec.for_arrays(layers=4, dim=8).of_layers([3, 1]).layers
        (1, 3)
        """
        chosen = tuple(sorted(layers))
        measured: dict[str, Any] = {}
        for name in _MEASURED:
            values = getattr(self, name)
            if values is not None and len(values) == len(self.layers):
                measured[name] = tuple(values[self.layers.index(layer)] for layer in chosen)
        return dataclasses.replace(self, layers=chosen, **measured)

    def differences(self, requested: FeatureSpec) -> dict[str, tuple[Any, Any]]:
        """Return the settings of the identity in which another spec differs, as name to (own, requested).

        Examples
        --------
        >>> FeatureSpec.for_arrays(layers=2, dim=8).differences(FeatureSpec.for_arrays(layers=2, dim=16))
        {'dim': (8, 16)}
        """
        if self.fingerprint == requested.fingerprint:
            return {}
        own, other = self.to_dict(), requested.to_dict()
        names = self.identity().keys() | requested.identity().keys()
        # As JSON, as the fingerprint has them: 5 and 5.0 are two settings.
        return {
            name: (own[name], other[name])
            for name in own
            if name in names and json.dumps(own[name]) != json.dumps(other[name])
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain JSON values, with what was measured of the precision only where it was.

        Examples
        --------
        >>> values = FeatureSpec.for_arrays(layers=2, dim=8).to_dict()
        >>> values["layers"], values["dim"], values["model"]
        ([0, 1], 8, None)
        """
        values = {**dataclasses.asdict(self), "layers": list(self.layers)}
        for name in _MEASURED:
            if (measured := values.pop(name)) is not None:
                values[name] = list(measured)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureSpec:
        """Make a spec of plain JSON values.

        Raises
        ------
        SettingError
            If a setting is missing, unknown or impossible.

        Examples
        --------
        >>> FeatureSpec.from_dict({"layers": [0, 1], "dim": 8}) == FeatureSpec.for_arrays(layers=2, dim=8)
        True
        """
        values = {re.sub("^int8_", "precision_", name): value for name, value in values.items()}
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise SettingError(f"unknown settings in the spec: {', '.join(unknown)}")
        try:
            sequences = {
                name: tuple(values[name]) for name in ("layers", *_MEASURED) if values.get(name) is not None
            }
            return cls(**{**values, **sequences})
        except (KeyError, TypeError) as error:
            raise SettingError(f"the spec lacks a setting or holds one of a wrong type: {error}") from None
