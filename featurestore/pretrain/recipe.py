"""Recipes of pretraining: TOML files of settings, checked key by key.

The defaults are those of MERT-v1-95M's training (its fairseq configuration, and Li et al. 2023, arXiv:2306.00107).
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from featurestore.errors import SettingError

_NAME = re.compile(r"[A-Za-z0-9_-]+")

PRESETS = ("95m", "330m", "mini")


def _setting(default: Any, *, least: float | None = None, most: float | None = None, among: Any = None) -> Any:
    return field(default=default, metadata={"least": least, "most": most, "among": among})


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is learned from.

    Attributes
    ----------
    folder : str
        Holds train.tsv, valid.tsv and the labels beside them.
    labels : tuple of str
        Codebooks: ``train.<name>`` holds their tokens, ``dict.<name>.txt`` their classes.
    window : float
        Seconds of a window.
    windows_per_file : {"one", "all"}
        How many windows of a file an epoch takes: a random one, or as many as fit.
    cache : str
        Where targets that are computed once are kept, by default the folder of the data.
    threads : int
        That read ahead, in each process.
    """

    folder: str = ""
    labels: tuple[str, ...] = ()
    window: float = _setting(5.0, least=0.1, most=600)
    windows_per_file: str = _setting("one", among=("one", "all"))
    cache: str = ""
    threads: int = _setting(1, least=1, most=64)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network.

    Attributes
    ----------
    start : str
        Folder or hub name of a checkpoint to go on from; empty for random weights.
    shape : str
        "95m", "330m" or "tiny", where there is no `start`.
    config : dict
        Values of config.json that differ from the shape's.
    do_normalize : bool
        Whether windows are brought to zero mean and unit variance; with `start`, the checkpoint says it.
    """

    start: str = ""
    shape: str = "95m"
    config: dict[str, Any] = field(default_factory=dict)
    do_normalize: bool = False


@dataclass(frozen=True, kw_only=True)
class MaskingSettings:
    """Spans of frames that the network does not see.

    Attributes
    ----------
    probability : float
        Frames in all spans together, overlaps counted twice, over frames.
    span : int
        Frames of a span.
    schedule : tuple of (int, float)
        From which step on another probability holds.
    """

    probability: float = _setting(0.8, least=0, most=1)
    span: int = _setting(5, least=1, most=1000)
    schedule: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class MixingSettings:
    """Snippets of other windows of the batch that are added to a window.

    Attributes
    ----------
    probability : float
        Of a window to be mixed.
    seconds : tuple of float
        Shortest and longest snippet.
    count : tuple of int
        Fewest and most snippets.
    volume : float
        Factor of the snippets.
    """

    probability: float = _setting(0.5, least=0, most=1)
    seconds: tuple[float, float] = (0.5, 1.0)
    count: tuple[int, int] = (1, 3)
    volume: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DropoutSettings:
    """What is dropped in training.

    Attributes
    ----------
    input, hidden, attention, activation : float
        Of frames before the transformer; of what attention and feed-forward give; of attention weights; inside
        the feed-forward.
    layers : float
        Probability of a transformer layer to be skipped.
    """

    input: float = _setting(0.1, least=0, most=0.99)
    hidden: float = _setting(0.1, least=0, most=0.99)
    attention: float = _setting(0.1, least=0, most=0.99)
    activation: float = _setting(0.0, least=0, most=0.99)
    layers: float = _setting(0.05, least=0, most=0.99)


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """Prediction of the codebooks' tokens.

    Attributes
    ----------
    masked, unmasked : float
        Weights of cross-entropy, summed over codebooks, at masked and at other frames.
    dim : int
        Of the space in which frames and tokens are compared.
    temperature : float
        By which cosine similarities are divided.
    """

    masked: float = _setting(1.0, least=0)
    unmasked: float = _setting(0.0, least=0)
    dim: int = _setting(64, least=1, most=1 << 16)
    temperature: float = _setting(0.1, least=1e-4)


@dataclass(frozen=True, kw_only=True)
class CqtSettings:
    """Reconstruction of a constant-Q spectrogram of the window, before it was mixed with others.

    Attributes
    ----------
    masked, everywhere : float
        Weights of the mean squared error at masked and at all frames.
    bins, bins_per_octave : int
        How many.
    lowest : float
        Hz.
    scale : {"magnitude", "log"}
        Magnitudes as librosa scales them, or their natural logarithm after 0.001 was added.
    centre : bool
        Whether the mean of each window is subtracted.
    layer : int
        Hidden state that predicts it, -1 for the last.
    compute : {"once", "always"}
        Once, into a file of half precision that the training reads, or in every step, on the device.
    """

    masked: float = _setting(1.0, least=0)
    everywhere: float = _setting(0.0, least=0)
    bins: int = _setting(336, least=1, most=4096)
    bins_per_octave: int = _setting(48, least=1, most=512)
    lowest: float = _setting(32.7, least=1)
    scale: str = _setting("magnitude", among=("magnitude", "log"))
    centre: bool = False
    layer: int = -1
    compute: str = _setting("once", among=("once", "always"))


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """A linear head for labels that the music is known to have.

    Attributes
    ----------
    name : str
        ``train.<name>.npy`` holds them: uint8 [frames of all files, classes].
    kind : {"multilabel", "classes"}
        Each class by itself (binary cross-entropy), or one of them (cross-entropy; frames without any class are
        left out).
    weight : float
        Of its loss.
    layer : int
        Hidden state that predicts it, -1 for the last.
    frames : {"all", "masked"}
        Where it is asked.
    positive : float
        Weight of what is there against what is not, of a multilabel.
    """

    name: str
    kind: str = _setting("multilabel", among=("multilabel", "classes"))
    weight: float = _setting(1.0, least=0)
    layer: int = -1
    frames: str = _setting("all", among=("all", "masked"))
    positive: float = _setting(1.0, least=0)


@dataclass(frozen=True, kw_only=True)
class VarianceSettings:
    """Keeps features from collapsing (Bardes et al. 2022, arXiv:2105.04906), on means over `frames` frames.

    Attributes
    ----------
    variance, covariance : float
        Weights of the hinge on standard deviations below 1, and of squared covariances.
    frames : int
        Frames that are averaged.
    layer : int
        Hidden state, -1 for the last.
    """

    variance: float = _setting(0.0, least=0)
    covariance: float = _setting(0.0, least=0)
    frames: int = _setting(25, least=1)
    layer: int = -1


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW, warmed up linearly, then decayed polynomially.

    Attributes
    ----------
    lr, end_lr : float
        Highest and last learning rate.
    warmup : int
        Steps.
    power : float
        Of the decay.
    betas : tuple of float
    eps, weight_decay : float
    clip : float
        Largest norm of all gradients together; 0 for none.
    """

    lr: float = _setting(5e-4, least=0)
    end_lr: float = _setting(0.0, least=0)
    warmup: int = _setting(32_000, least=0)
    power: float = _setting(1.0, least=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = _setting(1e-6, least=0)
    weight_decay: float = _setting(0.01, least=0)
    clip: float = _setting(10.0, least=0)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How it runs.

    Attributes
    ----------
    steps : int
        Updates of the weights, all in all.
    batch : int
        Windows of one pass of one process.
    accumulate : int
        Passes of a process before an update.
    seed : int
        Of everything that is drawn.
    precision : {"float32", "float16", "bfloat16"}
        Of the network's arithmetic; weights stay in float32.
    compile : bool
        Whether torch.compile turns the network into C++ or GPU kernels first.
    checkpoint_every, evaluate_every, log_every : int
        Steps.
    keep : int
        Checkpoints that are kept.
    valid_windows : int
        Windows of valid.tsv that an evaluation looks at.
    probe : str
        Name of the auxiliary labels or the codebook that the probe predicts from pooled features.
    """

    steps: int = _setting(400_000, least=1)
    batch: int = _setting(16, least=1)
    accumulate: int = _setting(1, least=1)
    seed: int = _setting(1337, least=0)
    precision: str = _setting("float32", among=("float32", "float16", "bfloat16"))
    compile: bool = False
    checkpoint_every: int = _setting(1_000, least=1)
    evaluate_every: int = _setting(1_000, least=1)
    log_every: int = _setting(10, least=1)
    keep: int = _setting(2, least=1)
    valid_windows: int = _setting(64, least=1)
    probe: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a pretraining; the fields are the tables of the TOML file.

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
    """

    data: DataSettings = DataSettings()
    model: ModelSettings = field(default_factory=ModelSettings)
    masking: MaskingSettings = MaskingSettings()
    mixing: MixingSettings = MixingSettings()
    dropout: DropoutSettings = DropoutSettings()
    feature_gradient: float = _setting(0.1, least=0, most=1)
    feature_penalty: float = _setting(10.0, least=0)
    tokens: TokenSettings = TokenSettings()
    cqt: CqtSettings = CqtSettings()
    heads: tuple[HeadSettings, ...] = ()
    variance: VarianceSettings = VarianceSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    run: RunSettings = RunSettings()

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
        """
        recipe: Recipe = _read(cls, values, source, "")
        recipe._check_together(source)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """The recipe as values of JSON."""
        return dataclasses.asdict(self)

    def _check_together(self, source: str) -> None:
        names = [*self.data.labels, *(head.name for head in self.heads)]
        if odd := [x for x in names if not _NAME.fullmatch(x)]:
            raise SettingError(f"{source}: names are of letters, digits, _ and -, not {odd[0]!r}")
        if twice := {x for x in names if names.count(x) > 1}:
            raise SettingError(
                f"{source}: labels and heads must have different names; {min(twice)!r} is there twice"
            )
        if self.run.probe and self.run.probe not in names:
            raise SettingError(
                f"{source}: run.probe must be one of {', '.join(names) or 'no names'}, not {self.run.probe!r}"
            )
        if self.run.compile and self.dropout.layers:
            raise SettingError(f"{source}: run.compile needs dropout.layers = 0: a graph has all layers or none")
        for name, (low, high) in {"seconds": self.mixing.seconds, "count": self.mixing.count}.items():
            if not 0 < low <= high:
                raise SettingError(
                    f"{source}: mixing.{name} must be two ascending numbers above 0, not {low}, {high}"
                )
        if self.mixing.probability and self.mixing.seconds[1] > self.data.window:
            raise SettingError(f"{source}: mixing.seconds must not exceed data.window, {self.data.window} s")
        if not (self.data.labels or self.heads or self.cqt.masked or self.cqt.everywhere):
            raise SettingError(f"{source}: nothing is predicted: give data.labels, a head, or a weight of cqt")


def load_recipe(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from a preset or a TOML file.

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
    """
    values = _values(name_or_path)
    return Recipe.from_dict(_merged(values, overrides or {}), source=f"recipe {name_or_path}")


def _values(name: str) -> dict[str, Any]:
    if name in PRESETS:
        text = resources.files("featurestore.pretrain").joinpath("recipes", f"{name}.toml").read_text("utf-8")
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


def _read(kind: Any, value: Any, source: str, where: str, limits: Mapping[str, Any] | None = None) -> Any:
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
            _read(x, y, source, f"{where}[{i}]") for i, (x, y) in enumerate(zip(items, value, strict=True))
        )
    if get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise SettingError(f"{source}: {where} must be a table, not {value!r}")
        return dict(value)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
    fits = type(value) in (int, float) if kind is float else type(value) is kind
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
        name: _read(hints[name], value, source, f"{prefix}{name}", fields[name].metadata)
        for name, value in values.items()
    }
    return kind(**read)
