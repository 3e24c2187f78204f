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
