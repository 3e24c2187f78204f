"""FeatureSpec: everything that identifies a feature, and its fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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

_MEASURED = ("int8_cosines", "int8_errors")
"""What is found out about the features, not what identifies them."""


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
            f"feature_level must be one of {', '.join(FEATURE_LEVELS)}, not {feature_level!r}"
        ) from None


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """Everything that identifies a feature: two features of equal specs can be compared.

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
        Hz, of the audio that the model hears.
    do_normalize : bool, optional
        Whether each window is brought to zero mean and unit variance.
    frame_rate : float, optional
        Frames a second in raw.
    segment_duration : float, optional
        Seconds.
    overlap : float, optional
        Share of a window that the next one repeats, in [0, 1).
    resampler : str, optional
        How audio is brought to `sample_rate`.
    precision : str
        Arithmetic of the encoder: "fp32", "fp16" or "bf16" for mixed precision, or "int8".
    dtype : {"float32", "float16"}
        Type of the stored numbers.
    codec : {"none", "zstd", "lz4", "bitround"}
        How they are compressed; "bitround" first rounds them to 10 bits of mantissa.
    int8_cosines, int8_errors : tuple of float, optional
        Of each stored layer, how near int8 came to fp32 on a probe when the store was made: centred cosine, and
        largest difference relative to the largest value. A measurement, not part of the identity.
    """

    layers: tuple[int, ...]
    dim: int
    model: str | None = None
    revision: str | None = None
    weights_sha256: str | None = None
    sample_rate: int | None = None
    do_normalize: bool | None = None
    frame_rate: float | None = None
    segment_duration: float | None = None
    overlap: float | None = None
    resampler: str | None = None
    precision: str = "fp32"
    dtype: str = "float32"
    codec: str = "none"
    int8_cosines: tuple[float, ...] | None = None
    int8_errors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        layers = self.layers
        if not layers or any(type(x) is not int or x < 0 for x in layers) or list(layers) != sorted(set(layers)):
            raise SettingError(f"layers must be ascending, distinct and not negative, not {layers!r}")
        if type(self.dim) is not int or self.dim < 1:
            raise SettingError(f"dim must be a whole number of at least 1, not {self.dim!r}")
        if self.dtype not in DTYPES:
            raise SettingError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.codec not in CODECS:
            raise SettingError(f"codec must be one of {', '.join(CODECS)}, not {self.codec!r}")
        if self.codec == "bitround" and self.dtype != "float32":
            raise SettingError(f"codec bitround rounds float32, not {self.dtype}")

    @classmethod
    def for_arrays(
        cls, *, layers: int | Sequence[int], dim: int, dtype: str = "float32", codec: str = "none"
    ) -> FeatureSpec:
        """Spec of features that were made elsewhere.

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
        """
        return cls(
            layers=tuple(range(layers)) if isinstance(layers, int) else tuple(layers),
            dim=dim,
            dtype=dtype,
            codec=codec,
        )

    def identity(self) -> dict[str, Any]:
        """The settings that identify a feature, without those at their default.

        So that a setting that a later release adds does not change the fingerprints of older stores.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in self.to_dict().items()
            if value != defaults[name]
            and name not in _MEASURED
            and not (name in ("model", "revision") and self.weights_sha256 is not None)
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the identity as canonical JSON, 64 hex digits."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def differences(self, requested: FeatureSpec) -> dict[str, tuple[Any, Any]]:
        """Settings of the identity in which another spec differs, as name to (own, requested)."""
        if self.fingerprint == requested.fingerprint:
            return {}
        own, other = self.to_dict(), requested.to_dict()
        names = self.identity().keys() | requested.identity().keys()
        return {name: (own[name], other[name]) for name in own if name in names and own[name] != other[name]}

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values; what int8 measures only where it was measured."""
        values = {**dataclasses.asdict(self), "layers": list(self.layers)}
        for name in _MEASURED:
            if (measured := values.pop(name)) is not None:
                values[name] = list(measured)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureSpec:
        """Spec of plain JSON values.

        Raises
        ------
        SettingError
            If a setting is missing, unknown or impossible.
        """
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

    def to_json(self) -> str:
        """The spec as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> FeatureSpec:
        """Spec of `to_json`'s text."""
        return cls.from_dict(json.loads(text))

    def to_toml(self) -> str:
        """The spec as TOML; settings that do not apply are left out."""
        return "".join(
            # JSON's strings, numbers, booleans and flat lists are also TOML's, but for a bare DEL.
            f"{name} = {json.dumps(value, ensure_ascii=False)}\n".replace("\x7f", "\\u007f")
            for name, value in self.to_dict().items()
            if value is not None
        )

    @classmethod
    def from_toml(cls, text: str) -> FeatureSpec:
        """Spec of `to_toml`'s text."""
        return cls.from_dict(tomllib.loads(text))
