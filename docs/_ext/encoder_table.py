"""The table of encoders in docs/guides/encoders.md, made by the code that loads them.

``python docs/_ext/encoder_table.py`` writes it anew. What a model gives is read from an encoder that is built of
the settings of its config.json, without its weights; written down here are those settings and the licence alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featurestore.models import Encoder, MertEncoder, load_model
from featurestore.models.checkpoints.config import MertConfig
from featurestore.models.checkpoints.config_mert2 import Mert2Config
from featurestore.models.checkpoints.config_muq import MuqConfig
from featurestore.models.checkpoints.families import FAMILIES
from featurestore.models.checkpoints.shapes import MERT2_SHAPES, MUQ_SHAPES, MUQ_STATISTICS, SHAPES
from featurestore.models.checkpoints.transformers import behind_frontend, empty_network
from featurestore.models.encoder import context_seconds, frame_rate
from featurestore.models.mert2 import Mert2Encoder
from featurestore.models.muq import MuqEncoder

PAGE = Path(__file__).parents[1] / "guides" / "encoders.md"
BEGIN = "<!-- the table of encoders, made by docs/_ext/encoder_table.py -->\n"
END = "<!-- end of the table -->\n"

NON_COMMERCIAL, APACHE, MICROSOFT = "CC BY-NC 4.0", "Apache 2.0", "not stated; of the code CC BY-SA 3.0"


@dataclass(frozen=True)
class Row:
    """A model, the licence of its weights, and how its encoder is built."""

    model: str
    licence: str
    build: Callable[[], Encoder]
    model_type: str | None = None


def _without_weights(network: Callable[..., Encoder], *args: Any, **settings: Any) -> Encoder:
    with torch.device("meta"):
        return network(*args, **settings)


def _mert(shape: dict[str, Any], rate: int) -> Callable[[], Encoder]:
    config = MertConfig.from_dict({**shape, "sample_rate": rate}, source="config.json")
    return lambda: _without_weights(MertEncoder, config, sample_rate=rate, do_normalize=True)


def _mert2(shape: str) -> Callable[[], Encoder]:
    config = Mert2Config.from_dict(MERT2_SHAPES[shape], source="config.json")
    return lambda: _without_weights(Mert2Encoder, config, sample_rate=24_000)


def _muq(shape: str) -> Callable[[], Encoder]:
    values = MUQ_SHAPES[shape]
    config = MuqConfig.from_dict(values, MUQ_STATISTICS, source="config.json", statistics_source="statistics")
    return lambda: _without_weights(MuqEncoder, config)


def _family(kind: str, config: dict[str, Any], preprocessor: dict[str, Any]) -> Callable[[], Encoder]:
    def build() -> Encoder:
        settings = FAMILIES[kind].settings(config, source="config.json")
        network = empty_network(FAMILIES[kind], settings, source="config.json")
        return behind_frontend(network, kind, preprocessor, source="preprocessor_config.json", name=kind)

    return build


def _transformers(
    model: str, licence: str, kind: str, config: dict[str, Any], preprocessor: dict[str, Any] | None = None
) -> Row:
    return Row(model, licence, _family(kind, config, preprocessor or {"sampling_rate": 16_000}), kind)


_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_CONVS = {"conv_dim": [512] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
_SPEECH = {**_BASE, **_CONVS, "do_stable_layer_norm": False}
_CONFORMER = {**_LARGE, **_CONVS, "feat_extract_norm": "layer", "position_embeddings_type": "relative"}
_W2V_BERT = {
    **_LARGE,
    "feature_projection_input_dim": 160,
    "position_embeddings_type": "relative_key",
    "left_max_position_embeddings": 64,
    "right_max_position_embeddings": 8,
}
_WHISPER = {
    "d_model": 512,
    "encoder_layers": 6,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
}
_AST = {
    **_BASE,
    "patch_size": 16,
    "frequency_stride": 10,
    "time_stride": 10,
    "max_length": 1024,
    "num_mel_bins": 128,
}
_LARGER_CLAP = {"audio_config": {"patch_embeds_hidden_size": 128, "depths": [2, 2, 12, 2], "hidden_size": 1024}}
_CLAP_AUDIO = {"truncation": "rand_trunc"}

ROWS = (
    Row("mini", "see [mini](../mini.md#licences)", lambda: load_model("mini")),
    Row("logmel", "no weights", lambda: load_model("logmel")),
    Row("m-a-p/MERT-v2-30s", NON_COMMERCIAL, _mert2("mert2-30s"), "mert2"),
    Row("m-a-p/MERT-v2-FullSong", NON_COMMERCIAL, _mert2("mert2-fs"), "mert2"),
    Row("OpenMuQ/MuQ-large-msd-iter", NON_COMMERCIAL, _muq("muq")),
    Row("minzwon/MusicFM", "MIT", _muq("musicfm")),
    Row("m-a-p/MERT-v1-330M", NON_COMMERCIAL, _mert(SHAPES["330m"], 24_000), "mert_model"),
    Row("m-a-p/MERT-v1-95M", NON_COMMERCIAL, _mert(SHAPES["95m"], 24_000), "mert_model"),
    Row("m-a-p/MERT-v0-public", NON_COMMERCIAL, _mert(SHAPES["95m"], 16_000), "mert_model"),
    _transformers("laion/larger_clap_music", APACHE, "clap", _LARGER_CLAP, _CLAP_AUDIO),
    _transformers("laion/clap-htsat-unfused", APACHE, "clap", {}, _CLAP_AUDIO),
    _transformers(
        "laion/clap-htsat-fused",
        APACHE,
        "clap",
        {"audio_config": {"enable_fusion": True}},
        {"padding": "repeatpad"},
    ),
    _transformers(
        "MIT/ast-finetuned-audioset-10-10-0.4593", "BSD 3-Clause", "audio-spectrogram-transformer", _AST, {}
    ),
    Row("facebook/hubert-base-ls960", APACHE, _mert(SHAPES["95m"], 16_000), "hubert"),
    _transformers("facebook/wav2vec2-base", APACHE, "wav2vec2", _SPEECH),
    _transformers("facebook/wav2vec2-conformer-rel-pos-large", APACHE, "wav2vec2-conformer", _CONFORMER),
    _transformers("facebook/w2v-bert-2.0", "MIT", "wav2vec2-bert", _W2V_BERT, {}),
    _transformers("facebook/data2vec-audio-base", APACHE, "data2vec-audio", _SPEECH),
    _transformers("microsoft/wavlm-base-plus", MICROSOFT, "wavlm", _SPEECH),
    _transformers("microsoft/unispeech-sat-base-plus", MICROSOFT, "unispeech-sat", _SPEECH),
    _transformers("openai/whisper-base", APACHE, "whisper", _WHISPER, {}),
)

COLUMNS = (
    *("model", "`model_type`", "Hz", "frames/s", "states", "width"),
    *("window (s)", "longest (s)", "needs transformers", "licence of the weights"),
)


def table() -> str:
    """The table in Markdown."""
    return f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n{''.join(map(_line, ROWS))}"


def _line(row: Row) -> str:
    encoder = row.build()
    window = context_seconds(encoder)
    rate = frame_rate(encoder, round(window * encoder.sample_rate))
    cells = (
        f"`{row.model}`",
        "" if row.model_type is None else f"`{row.model_type}`",
        f"{encoder.sample_rate:,}",
        "1 a window" if rate is None else f"{rate:g}",
        f"{encoder.layers + 1}",
        f"{encoder.dim:,}",
        f"{window:g}",
        _longest(encoder),
        "yes" if type(encoder).__module__.endswith("transformers_encoder") else "no",
        row.licence,
    )
    return f"| {' | '.join(cells)} |\n"


def _longest(encoder: Encoder) -> str:
    """Seconds of the longest window, which `frames` tells by refusing a day."""
    try:
        encoder.frames(86_400 * encoder.sample_rate)
    except ValueError as error:
        found = re.search(r"hears ([\d.]+) s at most", str(error))
        return found[1] if found else str(error)
    return "any"


def written(page: str) -> str:
    """A page with the table between its marks made anew."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}{table()}{rest[rest.index(END) :]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
