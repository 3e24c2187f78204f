"""Settings of the networks of MERT that are known by a name."""

from __future__ import annotations

from typing import Any

_CONVS = {"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
_BASE = {
    "model_type": "mert_model",
    "architectures": ["MERTModel"],
    **_CONVS,
    "num_feat_extract_layers": 7,
    "conv_bias": False,
    "deepnorm": False,
    "feature_extractor_cqt": False,
    "feat_extract_activation": "gelu",
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "sample_rate": 24_000,
}

SHAPES: dict[str, dict[str, Any]] = {
    "95m": {
        **_BASE,
        "conv_dim": [512] * 7,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "do_stable_layer_norm": False,
    },
    "330m": {
        **_BASE,
        "conv_dim": [512] * 7,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "do_stable_layer_norm": True,
    },
    "tiny": {
        **_BASE,
        "conv_dim": [32] * 7,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "do_stable_layer_norm": False,
    },
}
"""config.json of MERT-v1-95M's and -330M's shape, and of a tiny network with the frames of both."""

_MERT2 = {
    "model_type": "mert2",
    "architectures": ["MERT2Model"],
    "sampling_rate": 24_000,
    "n_fft": 2048,
    "win_length": 2048,
    "hop_length": 240,
    "conv_depthwise_kernel_size": 31,
    "rotary_embedding_base": 10_000,
    "layer_norm_eps": 1e-5,
    "subsampling_layer_norm_eps": 1e-6,
}
_MERT2_LARGE = {
    **_MERT2,
    "num_mel_bins": 128,
    "subsampling_channels": [128, 512, 1024],
    "subsampling_depths": [3, 4, 5],
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
}

MERT2_SHAPES: dict[str, dict[str, Any]] = {
    "mert2-30s": {**_MERT2_LARGE, "variant": "30s", "context_seconds": 30.0},
    "mert2-fs": {**_MERT2_LARGE, "variant": "fs", "context_seconds": 360.0},
    "mert2-tiny": {
        **_MERT2,
        "num_mel_bins": 32,
        "subsampling_channels": [32, 48, 64],
        "subsampling_depths": [1, 2, 1],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "variant": "30s",
        "context_seconds": 30.0,
    },
}
"""config.json of both variants of MERT-v2, and of a tiny network with the frames of both."""

_MUQ = {"label_rate": 25, "features": ["melspec_2048"], "hop_length": 240, "n_mels": 128}
_CONFORMER = {
    "model_type": "wav2vec2-conformer",
    "hidden_act": "swish",
    "conv_depthwise_kernel_size": 31,
    "position_embeddings_type": "rotary",
    "rotary_embedding_base": 10_000,
    "layer_norm_eps": 1e-5,
}
_MUQ_LARGE = {
    **_MUQ,
    "conv_dim": 512,
    "encoder_dim": 1024,
    "encoder_depth": 12,
    "w2v2_config": {**_CONFORMER, "num_attention_heads": 16, "intermediate_size": 4096},
}
_MUQ_TINY = {
    **_MUQ,
    "conv_dim": 8,
    "encoder_dim": 64,
    "encoder_depth": 3,
    "w2v2_config": {**_CONFORMER, "num_attention_heads": 4, "intermediate_size": 128},
}
MUQ_STATISTICS = {"melspec_2048_mean": 6.768444971712967, "melspec_2048_std": 18.417922652295623}
"""Decibels of the music that MuQ was trained with."""

MUQ_SHAPES: dict[str, dict[str, Any]] = {
    "muq": {**_MUQ_LARGE, "stat": MUQ_STATISTICS},
    "muq-tiny": {**_MUQ_TINY, "stat": MUQ_STATISTICS},
    "musicfm": {**_MUQ_LARGE, "model_type": "musicfm"},
    "musicfm-tiny": {**_MUQ_TINY, "model_type": "musicfm"},
}
"""config.json of MuQ-large and of MusicFM, and of tiny networks with the frames of both."""
