"""The speech and music encoders of transformers: which of its classes, and config.json as far as it is trusted.

Only settings listed here reach transformers. A config.json can also ask for code of the repository, kernels of the
hub or quantisation; none of that is ever looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.errors import CheckpointError
from featurestore.models.checkpoints.config import MOST_CONVS, MOST_LAYERS, MOST_UNITS, Reader

_ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "swish")
_ACTIVATED = ("hidden_act", "feat_extract_activation", "activation_function", "projection_hidden_act")
"""What activations are called, and settings that name one."""

_POSITIONS = "position_embeddings_type"
_CLAP = "ClapAudioModelWithProjection"
_MOST_BASE, _MOST_SPEC, _MOST_WINDOW = 10**9, 1 << 10, 16
"""Base of rotary positions; sides of CLAP's image and of a window of its attention, which weights hardly show."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of network of transformers.

    Parameters
    ----------
    module : str
        Where its classes are, below ``transformers.models``.
    config, network : str
        Names of the classes.
    prefixes : tuple of str
        What the names of its tensors begin with in checkpoints that hold more than this network.
    integers : dict of str to int
        Settings that are whole numbers from 1, and the most that they may be.
    booleans : tuple of str
        Settings that are true or false.
    positions : tuple of str
        Values of position_embeddings_type that are supported, beside null; none without such a setting.
    required : tuple of str
        Settings that must be there, because the weights do not show them.
    ignored : tuple of str
        What the names of tensors begin with that no state needs.
    renames : tuple of (str, str)
        Parts of names of tensors in older checkpoints, and what the installed transformers may call them.
    final_norm : bool or None
        Whether the last state passes a norm; None if `do_stable_layer_norm` says it.
    """

    module: str
    config: str
    network: str
    prefixes: tuple[str, ...]
    integers: Mapping[str, int]
    booleans: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ("masked_spec_embed", "adapter.", "intermediate_ffn.")
    renames: tuple[tuple[str, str], ...] = ()
    final_norm: bool | None = None

    def settings(self, values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
        """The settings of a config.json that shape the network; those that it lacks are left to transformers.

        CheckpointError is raised if a value is missing or impossible; it names `source`.
        """
        if self.network == _CLAP:
            values = _audio_part(values, source)
        read = Reader(values, source)
        for key in ("deepnorm", "feature_extractor_cqt"):
            # The weights would fit all the same, and give other numbers than the model's.
            if values.get(key) not in (None, False):
                raise CheckpointError(f"{source}: {key} is not supported")
        for key in self.required:
            read.present(key)
        found: dict[str, Any] = {}
        for key, most in self.integers.items():
            if values.get(key) is not None:
                found[key] = read.integer(key, most)
        for key in self.booleans:
            if values.get(key) is not None:
                found[key] = read.boolean(key)
        for key in _ACTIVATED:
            if values.get(key) is not None:
                found[key] = read.choice(key, _ACTIVATIONS)
        if values.get("layer_norm_eps") is not None:
            found["layer_norm_eps"] = read.fraction("layer_norm_eps", 1e-5)
        if self.positions:
            found[_POSITIONS] = _positions(read, values, self.positions, source)
        width, heads = found.get("hidden_size", 0), found.get("num_attention_heads", 1)
        if width % (heads * (2 if found.get(_POSITIONS) == "rotary" else 1)):
            raise CheckpointError(
                f"{source}: hidden_size {width} over num_attention_heads {heads} is no whole size of heads, "
                f"which is even where positions are rotary"
            )
        if "conv_dim" in self.required:
            found |= _convolutions(read, values, source)
        if "masked_spec_embed" in self.ignored:
            # Masking is for training, and the adapter comes behind the last hidden state.
            found |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "add_adapter": False}
        if self.network == _CLAP:
            found |= _stages(read, values, source)
        if found.get("max_bucket_distance", 800) <= found.get("num_buckets", 320) // 4:
            raise CheckpointError(f"{source}: max_bucket_distance must be above a quarter of num_buckets")
        return found


def _convolutions(read: Reader, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings of the networks that hear samples."""
    found: dict[str, Any] = {key: list(read.integers(key)) for key in ("conv_dim", "conv_kernel", "conv_stride")}
    if len({len(x) for x in found.values()}) != 1:
        raise CheckpointError(f"{source}: conv_dim, conv_kernel and conv_stride disagree")
    if values.get("feat_extract_norm") is not None:
        found["feat_extract_norm"] = read.choice("feat_extract_norm", ("group", "layer"))
    return found


def _positions(read: Reader, values: Mapping[str, Any], names: tuple[str, ...], source: str) -> str | None:
    """Kind of the positions, None if the network has none: weights do not show it."""
    if _POSITIONS not in values:
        raise CheckpointError(f"{source} does not say {_POSITIONS}")
    return None if values[_POSITIONS] is None else read.choice(_POSITIONS, names)


def _audio_part(values: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Settings of CLAP's audio tower, which the projection's on top overrule as in transformers."""
    audio = values.get("audio_config", values)
    if not isinstance(audio, Mapping):
        raise CheckpointError(f"{source}: audio_config must be an object, not {audio!r}")
    return {**audio, **{key: values[key] for key in ("projection_dim", "projection_hidden_act") if key in values}}


def _stages(read: Reader, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings of the stages of a Swin transformer, and what must fit between them."""
    found: dict[str, Any] = {}
    for key, default in (("depths", [2, 2, 6, 2]), ("num_attention_heads", [4, 8, 16, 32])):
        found[key] = list(Reader({key: default, **values}, source).integers(key))
    stride = values.get("patch_stride", [4, 4])
    found["patch_stride"] = list(
        Reader({"stride": stride if isinstance(stride, list) else [stride] * 2}, source).integers("stride")
    )
    stages = len(found["depths"])
    if stages != len(found["num_attention_heads"]) or stages > 8 or sum(found["depths"]) > MOST_LAYERS:
        raise CheckpointError(
            f"{source}: depths and num_attention_heads must have a number for each of at most 8 stages, and "
            f"{MOST_LAYERS} layers in all at most"
        )
    size, bands = read.integer("spec_size", _MOST_SPEC, 256), read.integer("num_mel_bins", _MOST_SPEC, 64)
    if size % bands or any(size % (x << (stages - 1)) for x in found["patch_stride"]):
        raise CheckpointError(
            f"{source}: spec_size {size} is no multiple of num_mel_bins {bands} and of patch_stride "
            f"{found['patch_stride']} in each of {stages} stages"
        )
    width = read.integer("patch_embeds_hidden_size", MOST_UNITS, 96) << (stages - 1)
    if (hidden := read.integer("hidden_size", MOST_UNITS, 768)) != width:
        raise CheckpointError(f"{source}: hidden_size {hidden} is not the width {width} of the last stage")
    return {**found, "mlp_ratio": read.number("mlp_ratio", 0.01, 100, 4.0)}


_TRANSFORMER = {
    "hidden_size": MOST_UNITS,
    "num_hidden_layers": MOST_LAYERS,
    "num_attention_heads": MOST_UNITS,
    "intermediate_size": MOST_UNITS,
}
_SAMPLES = {
    **_TRANSFORMER,
    "num_conv_pos_embeddings": MOST_UNITS,
    "num_conv_pos_embedding_groups": MOST_UNITS,
}
_PATCHES = dict.fromkeys(
    ("patch_size", "frequency_stride", "time_stride", "max_length", "num_mel_bins"), MOST_UNITS
)


def _hears_samples(name: str, module: str, integers: Mapping[str, int], *booleans: str, **others: Any) -> Family:
    """One of the relatives of wav2vec 2.0: convolutions of samples, then a transformer."""
    package, _, stem = module.rpartition(".")
    return Family(
        module=f"{package or stem}.modeling_{stem}",
        config=f"{name}Config",
        network=f"{name}Model",
        prefixes=(f"{stem}.",),
        integers={**_SAMPLES, **integers},
        booleans=("conv_bias", *booleans),
        required=(*_TRANSFORMER, "conv_dim", "conv_kernel", "conv_stride", *booleans[:1]),
        **others,
    )


_STABLE = "do_stable_layer_norm"
_ADAPTER = {"adapter_attn_dim": MOST_UNITS}
_BUCKETS = {"num_buckets": MOST_UNITS, "max_bucket_distance": MOST_UNITS}
# Here the first is the number of convolutions of positions, not the width of one.
_CONVS = {"num_conv_pos_embeddings": MOST_CONVS, "conv_pos_kernel_size": MOST_UNITS}
_CONFORMER = {"conv_depthwise_kernel_size": MOST_UNITS, "rotary_embedding_base": _MOST_BASE}

FAMILIES: dict[str, Family] = {
    "hubert": _hears_samples("Hubert", "hubert", _ADAPTER, _STABLE, "feat_proj_layer_norm", "conv_pos_batch_norm"),
    "wav2vec2": _hears_samples("Wav2Vec2", "wav2vec2", _ADAPTER, _STABLE),
    "wavlm": _hears_samples("WavLM", "wavlm", _BUCKETS, _STABLE),
    "unispeech-sat": _hears_samples("UniSpeechSat", "unispeech_sat", _ADAPTER, _STABLE),
    "data2vec-audio": _hears_samples("Data2VecAudio", "data2vec.data2vec_audio", _CONVS),
    "wav2vec2-conformer": _hears_samples(
        "Wav2Vec2Conformer",
        "wav2vec2_conformer",
        _CONFORMER,
        positions=("relative", "rotary"),
        final_norm=True,
    ),
    "whisper": Family(
        module="whisper.modeling_whisper",
        config="WhisperConfig",
        network="WhisperEncoder",
        prefixes=("model.encoder.", "encoder."),
        integers={
            "d_model": MOST_UNITS,
            "encoder_layers": MOST_LAYERS,
            "encoder_attention_heads": MOST_UNITS,
            "encoder_ffn_dim": MOST_UNITS,
            "num_mel_bins": MOST_UNITS,
            "max_source_positions": MOST_UNITS,
        },
        required=("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
        ignored=(),
        final_norm=True,
    ),
    "wav2vec2-bert": Family(
        module="wav2vec2_bert.modeling_wav2vec2_bert",
        config="Wav2Vec2BertConfig",
        network="Wav2Vec2BertModel",
        prefixes=("wav2vec2_bert.",),
        integers={
            **_TRANSFORMER,
            "feature_projection_input_dim": MOST_UNITS,
            "left_max_position_embeddings": MOST_UNITS,
            "right_max_position_embeddings": MOST_UNITS,
            **_CONFORMER,
        },
        positions=("relative_key", "relative", "rotary"),
        required=(*_TRANSFORMER, "left_max_position_embeddings", "right_max_position_embeddings"),
        final_norm=False,
    ),
    "audio-spectrogram-transformer": Family(
        module="audio_spectrogram_transformer.modeling_audio_spectrogram_transformer",
        config="ASTConfig",
        network="ASTModel",
        prefixes=("audio_spectrogram_transformer.",),
        integers={**_TRANSFORMER, **_PATCHES},
        booleans=("qkv_bias",),
        required=(*_TRANSFORMER, *_PATCHES),
        ignored=(),
        renames=(
            ("encoder.layer.", "layers."),
            ("attention.attention.query.", "attention.q_proj."),
            ("attention.attention.key.", "attention.k_proj."),
            ("attention.attention.value.", "attention.v_proj."),
            ("attention.output.dense.", "attention.o_proj."),
            ("intermediate.dense.", "mlp.fc1."),
            ("output.dense.", "mlp.fc2."),
        ),
        final_norm=True,
    ),
}
FAMILIES |= dict.fromkeys(
    ("clap", "clap_audio_model"),
    Family(
        module="clap.modeling_clap",
        config="ClapAudioConfig",
        network=_CLAP,
        prefixes=(),
        integers={
            **dict.fromkeys(("hidden_size", "patch_embeds_hidden_size", "projection_dim"), MOST_UNITS),
            **dict.fromkeys(("patch_size", "aff_block_r"), MOST_UNITS),
            **dict.fromkeys(("num_mel_bins", "spec_size"), _MOST_SPEC),
            "window_size": _MOST_WINDOW,
        },
        booleans=("enable_fusion", "qkv_bias", "enable_patch_layer_norm"),
        ignored=("text_model.", "text_projection.", "logit_scale"),
    ),
)
"""By model_type of config.json."""
