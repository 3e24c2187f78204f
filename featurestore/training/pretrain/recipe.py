"""Recipes of pretraining: TOML files of settings, checked key by key.

The defaults are those of MERT-v1-95M's training (its fairseq configuration, and Li et al. 2023, arXiv:2306.00107).
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from featurestore.errors import SettingError
from featurestore.training.labels.tokens import NAME
from featurestore.training.pretrain.settings import (
    CqtSettings,
    DataSettings,
    DropoutSettings,
    HeadSettings,
    MaskingSettings,
    MixingSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    TokenSettings,
    VarianceSettings,
    bounded_field,
)
from featurestore.training.pretrain.toml_config import read_value

_TERMS = frozenset({"loss", "features", "cqt", "variance", "covariance"})

PRESETS = ("95m", "330m", "mini")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Holds all settings of a pretraining; the fields are the tables of the TOML file.

    Attributes
    ----------
    data : DataSettings
    model : ModelSettings
    masking : MaskingSettings
    mixing : MixingSettings
    dropout : DropoutSettings
    feature_gradient : float
        Factor of the gradient that reaches the convolutions over the samples; with 0 they stay as they are.
    feature_penalty : float
        Weight of the mean square of what these convolutions give.
    tokens : TokenSettings
    cqt : CqtSettings
    heads : tuple of HeadSettings
    variance : VarianceSettings
    optimizer : OptimizerSettings
    run : RunSettings

    Examples
    --------
    >>> from featurestore.training.pretrain import Recipe
    >>> Recipe().masking.span, Recipe().cqt.bins
    (5, 336)
    """

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    masking: MaskingSettings = field(default_factory=MaskingSettings)
    mixing: MixingSettings = field(default_factory=MixingSettings)
    dropout: DropoutSettings = field(default_factory=DropoutSettings)
    feature_gradient: float = bounded_field(0.1, least=0, most=1)
    feature_penalty: float = bounded_field(10.0, least=0)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    cqt: CqtSettings = field(default_factory=CqtSettings)
    heads: tuple[HeadSettings, ...] = ()
    variance: VarianceSettings = field(default_factory=VarianceSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str) -> Recipe:
        """Check the values of a recipe; absent ones have their defaults.

        Parameters
        ----------
        values : mapping
            As parsed from TOML.
        source : str
            Named in errors.

        Raises
        ------
        SettingError
            If a key is unknown or a value impossible; the message names the key and what is allowed.

        Examples
        --------
        >>> from featurestore.training.pretrain import Recipe
        >>> recipe = Recipe.from_dict({"optimizer": {"lr": 1e-4}}, source="mine.toml")
        >>> recipe.optimizer.lr, recipe.optimizer.betas
        (0.0001, (0.9, 0.98))
        """
        recipe: Recipe = read_value(cls, values, source, "")
        recipe._check_together(source)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as values of JSON.

        Examples
        --------
        >>> from featurestore.training.pretrain import Recipe
        >>> Recipe().to_dict()["masking"]["span"]
        5
        """
        return dataclasses.asdict(self)

    def _check_together(self, source: str) -> None:
        names = [*self.data.labels, *(head.name for head in self.heads)]
        if odd := [x for x in names if not NAME.fullmatch(x)]:
            raise SettingError(f"{source}: names are of letters, digits, _ and -, not {odd[0]!r}")
        if taken := _TERMS.intersection(names):
            raise SettingError(f"{source}: a term of the loss is called {min(taken)!r} already: rename the labels")
        if twice := {x for x in names if names.count(x) > 1}:
            raise SettingError(
                f"{source}: labels and heads must have different names; {min(twice)!r} is there twice"
            )
        if self.run.probe and self.run.probe not in names:
            raise SettingError(
                f"{source}: run.probe must be one of {', '.join(names) or 'no names'}, not {self.run.probe!r}; "
                'run.probe = "" asks for no probe'
            )
        if self.run.compile and self.dropout.layers:
            raise SettingError(f"{source}: run.compile needs dropout.layers = 0: a graph has all layers or none")
        for name, (low, high) in {"seconds": self.mixing.seconds, "count": self.mixing.count}.items():
            if not 0 < low <= high:
                raise SettingError(
                    f"{source}: mixing.{name} must be two ascending numbers above 0, not {low}, {high}"
                )
        for i, (step, probability) in enumerate(self.masking.schedule):
            if step < 0 or not 0 <= probability <= 1:
                raise SettingError(
                    f"{source}: masking.schedule[{i}] must be a step and a probability from 0 to 1, "
                    f"not {step}, {probability}"
                )
        if self.mixing.probability and self.mixing.seconds[1] > self.data.window:
            raise SettingError(f"{source}: mixing.seconds must not exceed data.window, {self.data.window} s")
        if not (self.data.labels or self.heads or self.cqt.masked or self.cqt.everywhere):
            raise SettingError(f"{source}: nothing is predicted: give data.labels, a head, or a weight of cqt")


def load_recipe(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe from a preset or a TOML file.

    Parameters
    ----------
    name_or_path : str
        A name of `PRESETS`, or a TOML file. A file may name a preset as ``base``, whose values it changes.
    overrides : mapping, optional
        Values that come last, nested as in the file.

    Raises
    ------
    SettingError
        If there is no such preset or file, it is no TOML, or a key or value is wrong.

    Examples
    --------
    >>> from featurestore.training.pretrain import load_recipe
    >>> recipe = load_recipe("95m", {"run": {"steps": 1_000}, "data": {"folder": "data"}})
    >>> recipe.run.steps, recipe.data.folder, recipe.masking.probability
    (1000, 'data', 0.8)
    """
    values = _values(name_or_path)
    return Recipe.from_dict(_merged(values, overrides or {}), source=f"recipe {name_or_path}")


def _values(name: str) -> dict[str, Any]:
    if name in PRESETS:
        recipes = resources.files("featurestore.training.pretrain") / "recipes"
        text = (recipes / f"{name}.toml").read_text("utf-8")
    else:
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(
                f"the recipe {name!r} is neither one of {', '.join(PRESETS)} nor a file that can be read: {error}"
            ) from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"the recipe {name!r} is not TOML: {error}") from None
    base = values.pop("base", None)
    if base is None:
        return values
    if base not in PRESETS:
        raise SettingError(f"recipe {name}: base must be one of {', '.join(PRESETS)}, not {base!r}")
    return _merged(_values(base), values)


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(values)
    for key, value in changes.items():
        before = out.get(key)
        both = isinstance(value, Mapping) and isinstance(before, Mapping)
        out[key] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return out


def shaping_settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that say which tensors the network and its heads have.

    Parameters
    ----------
    recipe : mapping
        As `Recipe.to_dict` gives it, also by way of JSON.
    """
    values = json.loads(json.dumps(recipe))
    found = {f"model.{key}": x for key, x in values.get("model", {}).items()}
    cqt = values.get("cqt", {})
    predicts = bool(cqt.get("masked") or cqt.get("everywhere"))
    found["cqt.masked or cqt.everywhere above 0"] = predicts
    found["cqt.bins"] = cqt.get("bins") if predicts else None
    found["data.labels"] = labels = values.get("data", {}).get("labels")
    found["tokens.dim"] = values.get("tokens", {}).get("dim") if labels else None
    found["list of heads"] = sorted(head["name"] for head in values.get("heads", []))
    return found


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the settings in which two recipes differ, as `Recipe.to_dict` gives them, also by way of JSON."""
    changed = []
    for table, values in json.loads(json.dumps(now)).items():
        old = json.loads(json.dumps(before.get(table)))
        if isinstance(values, dict) and isinstance(old, dict):
            changed += [f"{table}.{key}" for key, value in values.items() if value != old.get(key)]
        elif values != old:
            changed.append(table)
    return changed
