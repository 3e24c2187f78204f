"""config.json of a checkpoint and the settings of its audio, as far as inference needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.errors import CheckpointError

MODEL_TYPES = ("mert_model", "music_hubert", "hubert")
"""Values of model_type that name a HuBERT network; the second is what MERT's training code writes."""

# Far above any network of these families: they only keep a hostile file from costing time or memory.
MOST_LAYERS, MOST_CONVS, MOST_UNITS, MOST_RATE = 512, 32, 1 << 16, 1_000_000


@dataclass(frozen=True, kw_only=True)
class MertConfig:
    """Shape of a HuBERT network; the fields are those of config.json.

    Parameters
    ----------
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size : int
        Transformer.
    conv_dim, conv_kernel, conv_stride : tuple of int
        Channels, kernel and stride (samples) of each convolution over the samples.
    conv_bias : bool
        Whether these convolutions have biases.
    feat_extract_norm : {"group", "layer"}
        "group": the first convolution is normalised over time; "layer": each one over channels.
    feat_proj_layer_norm : bool
        Whether the frames are normalised before they are projected to `hidden_size`.
    do_stable_layer_norm : bool
        Layer norm before (True, pre-LN) or after attention and feed-forward.
    num_conv_pos_embeddings, num_conv_pos_embedding_groups : int
        Kernel (frames) and groups of the positional convolution.
    layer_norm_eps : float
        Added to variances.
    sample_rate : int or None
        Hz, where the file says it.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    conv_dim: tuple[int, ...]
    conv_kernel: tuple[int, ...]
    conv_stride: tuple[int, ...]
    conv_bias: bool = False
    feat_extract_norm: str = "group"
    feat_proj_layer_norm: bool = True
    do_stable_layer_norm: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    layer_norm_eps: float = 1e-5
    sample_rate: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str) -> MertConfig:
        """Check the values of a config.json, which errors call `source`, and keep what inference needs.

        Absent keys have the defaults of transformers' HubertConfig, but those that shape the network and cannot be
        checked against the weights must be there. CheckpointError is raised if a value is missing or impossible,
        or asks for something that is not supported.
        """
        _refuse_other_networks(values, source)
        read = Reader(values, source)
        config = cls(
            hidden_size=read.integer("hidden_size", MOST_UNITS),
            num_hidden_layers=read.integer("num_hidden_layers", MOST_LAYERS),
            num_attention_heads=read.integer("num_attention_heads", MOST_UNITS),
            intermediate_size=read.integer("intermediate_size", MOST_UNITS),
            conv_dim=read.integers("conv_dim"),
            conv_kernel=read.integers("conv_kernel"),
            conv_stride=read.integers("conv_stride"),
            conv_bias=read.boolean("conv_bias", False),
            feat_extract_norm=values.get("feat_extract_norm", "group"),
            feat_proj_layer_norm=read.boolean("feat_proj_layer_norm", True),
            do_stable_layer_norm=read.boolean("do_stable_layer_norm"),
            num_conv_pos_embeddings=read.integer("num_conv_pos_embeddings", MOST_UNITS, 128),
            num_conv_pos_embedding_groups=read.integer("num_conv_pos_embedding_groups", MOST_UNITS, 16),
            layer_norm_eps=read.fraction("layer_norm_eps", 1e-5),
            sample_rate=read.integer("sample_rate", MOST_RATE) if "sample_rate" in values else None,
        )
        config._check_fit(values, source)
        return config

    def _check_fit(self, values: Mapping[str, Any], source: str) -> None:
        convs = values.get("num_feat_extract_layers", len(self.conv_dim))
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride) == convs:
            raise CheckpointError(
                f"{source}: conv_dim, conv_kernel, conv_stride and num_feat_extract_layers disagree"
            )
        if self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"{source}: hidden_size {self.hidden_size} is no multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_size % self.num_conv_pos_embedding_groups:
            raise CheckpointError(
                f"{source}: hidden_size {self.hidden_size} is no multiple of "
                f"num_conv_pos_embedding_groups {self.num_conv_pos_embedding_groups}"
            )


def audio_settings(preprocessor: Mapping[str, Any], stated_rate: int | None, *, source: str) -> tuple[int, bool]:
    """Sample rate (Hz) and do_normalize of a preprocessor_config.json, which errors call `source`.

    An absent do_normalize is True, as in Wav2Vec2FeatureExtractor. CheckpointError is raised if the sample rate is
    missing or not that of config.json (`stated_rate`), or the preprocessing is of another kind.
    """
    read = extractor_reader(preprocessor, "Wav2Vec2FeatureExtractor", source)
    return sampling_rate_of(preprocessor, stated_rate, source), read.boolean("do_normalize", True)


def sampling_rate_of(preprocessor: Mapping[str, Any], stated_rate: int | None, source: str) -> int:
    """Sample rate (Hz) of preprocessor_config.json, which agrees with that of config.json where both say it."""
    rate = Reader(preprocessor, source).integer("sampling_rate", MOST_RATE, stated_rate)
    if stated_rate not in (None, rate):
        raise CheckpointError(f"{source}: sampling_rate is {rate} Hz, but config.json says {stated_rate} Hz")
    return rate


def _refuse_other_networks(values: Mapping[str, Any], source: str) -> None:
    if (kind := values.get("model_type")) not in MODEL_TYPES:
        raise CheckpointError(
            f"{source}: model_type {kind!r} is not supported; supported are {', '.join(MODEL_TYPES)}"
        )
    for key, meaning in {
        "deepnorm": "DeepNorm residuals",
        "feature_extractor_cqt": "a constant-Q transform as second input",
        "conv_pos_batch_norm": "batch norm in the positional convolution",
        "adapter_attn_dim": "attention adapters",
    }.items():
        if values.get(key) not in (None, False):
            raise CheckpointError(f"{source}: {key} ({meaning}) is not supported")
    for key in ("hidden_act", "feat_extract_activation"):
        if (activation := values.get(key, "gelu")) != "gelu":
            raise CheckpointError(f"{source}: {key} {activation!r} is not supported, only 'gelu' is")
    if (norm := values.get("feat_extract_norm", "group")) not in ("group", "layer"):
        raise CheckpointError(f"{source}: feat_extract_norm {norm!r} is neither 'group' nor 'layer'")


def check_conformer(*, width: int, heads: int, kernel: int, source: str) -> None:
    """Raise CheckpointError unless heads have pairs, and the depthwise convolution a middle."""
    if width % (2 * heads):
        raise CheckpointError(
            f"{source}: a width of {width} over num_attention_heads {heads} must be an even size of heads, as "
            f"rotary positions turn pairs"
        )
    if not kernel % 2:
        raise CheckpointError(f"{source}: conv_depthwise_kernel_size must be odd, not {kernel}")


class Reader:
    """Values of a JSON object with their types and bounds checked."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values, self.source = values, source

    def present(self, key: str, default: Any = None) -> Any:
        value = self._values.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.source} does not say {key}")
        return value

    def integer(self, key: str, most: int, default: int | None = None) -> int:
        value = self.present(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise CheckpointError(f"{self.source}: {key} must be a whole number from 1 to {most}, not {value!r}")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        value = self.present(key)
        if (
            not isinstance(value, list)
            or not 1 <= len(value) <= MOST_CONVS
            or any(type(x) is not int or not 1 <= x <= MOST_UNITS for x in value)
        ):
            raise CheckpointError(
                f"{self.source}: {key} must be a list of 1 to {MOST_CONVS} whole numbers from 1 to {MOST_UNITS}"
            )
        return tuple(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self.present(key, default)
        if type(value) is not bool:
            raise CheckpointError(f"{self.source}: {key} must be true or false, not {value!r}")
        return value

    def fraction(self, key: str, default: float) -> float:
        value = self.present(key, default)
        if type(value) not in (int, float) or not 0 < value < 1:
            raise CheckpointError(f"{self.source}: {key} must be above 0 and below 1, not {value!r}")
        return float(value)

    def number(self, key: str, least: float, most: float, default: float | None = None) -> float:
        value = self.present(key, default)
        if type(value) not in (int, float) or not least <= value <= most:
            raise CheckpointError(
                f"{self.source}: {key} must be a number from {least:g} to {most:g}, not {value!r}"
            )
        return float(value)

    def choice(self, key: str, names: tuple[str, ...], default: str | None = None) -> str:
        value = self.present(key, default)
        if value not in names:
            raise CheckpointError(f"{self.source}: {key} must be one of {', '.join(names)}, not {value!r}")
        return str(value)


def extractor_reader(preprocessor: Mapping[str, Any], kind: str, source: str) -> Reader:
    """Reads a preprocessor_config.json; CheckpointError if it is that of another class of transformers."""
    if (found := preprocessor.get("feature_extractor_type", kind)) != kind:
        raise CheckpointError(f"{source}: feature_extractor_type {found!r} is not supported, only {kind} is")
    return Reader(preprocessor, source)
