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
    booleans, activations : tuple of str
        Settings of these types.
    required : tuple of str
        Settings that must be there, because the weights do not show them.
    """

    module: str
    config: str
    network: str
    prefixes: tuple[str, ...]
    integers: Mapping[str, int]
    booleans: tuple[str, ...] = ()
    activations: tuple[str, ...] = ("hidden_act", "feat_extract_activation")
    required: tuple[str, ...]

    def settings(self, values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
        """The settings of a config.json that shape the network; those that it lacks are left to transformers.

        Parameters
        ----------
        values : mapping
            As parsed.
        source : str
            Named in errors.

        Raises
        ------
        CheckpointError
            If a value is missing or impossible.
        """
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
        for key in self.activations:
            if values.get(key) is not None:
                found[key] = read.choice(key, _ACTIVATIONS)
        if "conv_dim" in self.required:
            found |= _convolutions(read, values, source)
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
    if values.get("layer_norm_eps") is not None:
        found["layer_norm_eps"] = read.fraction("layer_norm_eps", 1e-5)
    # Masking is for training, and the adapter comes behind the last hidden state.
    return {**found, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "add_adapter": False}


_SAMPLES = {
    "hidden_size": MOST_UNITS,
    "num_hidden_layers": MOST_LAYERS,
    "num_attention_heads": MOST_UNITS,
    "intermediate_size": MOST_UNITS,
    "num_conv_pos_embeddings": MOST_UNITS,
    "num_conv_pos_embedding_groups": MOST_UNITS,
}
_NEEDED = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("conv_dim", "conv_kernel", "conv_stride"),
)

FAMILIES = {
    "hubert": Family(
        module="hubert.modeling_hubert",
        config="HubertConfig",
        network="HubertModel",
        prefixes=("hubert.",),
        integers={**_SAMPLES, "adapter_attn_dim": MOST_UNITS},
        booleans=("conv_bias", "do_stable_layer_norm", "feat_proj_layer_norm", "conv_pos_batch_norm"),
        required=(*_NEEDED, "do_stable_layer_norm"),
    ),
    "wav2vec2": Family(
        module="wav2vec2.modeling_wav2vec2",
        config="Wav2Vec2Config",
        network="Wav2Vec2Model",
        prefixes=("wav2vec2.",),
        integers={**_SAMPLES, "adapter_attn_dim": MOST_UNITS},
        booleans=("conv_bias", "do_stable_layer_norm"),
        required=(*_NEEDED, "do_stable_layer_norm"),
    ),
    "wavlm": Family(
        module="wavlm.modeling_wavlm",
        config="WavLMConfig",
        network="WavLMModel",
        prefixes=("wavlm.",),
        integers={**_SAMPLES, "num_buckets": MOST_UNITS, "max_bucket_distance": MOST_UNITS},
        booleans=("conv_bias", "do_stable_layer_norm"),
        required=(*_NEEDED, "do_stable_layer_norm"),
    ),
    "data2vec-audio": Family(
        module="data2vec.modeling_data2vec_audio",
        config="Data2VecAudioConfig",
        network="Data2VecAudioModel",
        prefixes=("data2vec_audio.",),
        # Here this is the number of convolutions of positions, not the width of one.
        integers={**_SAMPLES, "num_conv_pos_embeddings": MOST_CONVS, "conv_pos_kernel_size": MOST_UNITS},
        booleans=("conv_bias",),
        required=_NEEDED,
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
        activations=("activation_function",),
        required=("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
    ),
}
"""By model_type of config.json."""
