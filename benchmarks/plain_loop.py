"""The script that people write today: a plain transformers loop that saves .npy files.

Shares no code with featurestore: it is the peer that features are checked against and that speed is
measured against.

    python -m benchmarks.plain_loop MODEL_FOLDER AUDIO_FOLDER OUT [--kinds segments aggregated]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aiff"}


def load_peer(folder: Path) -> tuple[HubertModel, Wav2Vec2FeatureExtractor]:
    """transformers' HubertModel with the weights of a MERT checkpoint."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    known = HubertConfig().to_dict()
    network = HubertConfig(**{k: v for k, v in config.items() if k in known and k != "model_type"})
    network._attn_implementation = "sdpa"
    model = HubertModel(network)
    state = load_file(folder / "model.safetensors")
    renamed = {
        key.replace("conv.weight_g", "conv.parametrizations.weight.original0").replace(
            "conv.weight_v", "conv.parametrizations.weight.original1"
        ): value
        for key, value in state.items()
    }
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    if missing or unexpected:
        raise SystemExit(f"weights do not fit: {missing}, {unexpected}")
    return model.eval(), Wav2Vec2FeatureExtractor.from_pretrained(folder)


def windows(audio: torch.Tensor, window: int, hop: int) -> list[int]:
    """Starts of the windows, with one anchored at the end."""
    starts = list(range(0, max(1, len(audio) - window + 1), hop))
    if len(audio) > window and starts[-1] + window < len(audio):
        starts.append(len(audio) - window)
    return starts


@torch.inference_mode()
def encode(
    path: Path, model: HubertModel, extractor: Wav2Vec2FeatureExtractor, *, batch_size: int = 4, raw: bool = False
) -> dict[str, np.ndarray]:
    """Features of a file: segments [segment, layer, feature], aggregated, and raw if asked for."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    target = extractor.sampling_rate
    audio = torchaudio.functional.resample(torch.from_numpy(samples.mean(axis=1)), rate, target)
    window = 5 * target
    blocks = []
    starts = windows(audio, window, window // 2)
    for first in range(0, len(starts), batch_size):
        clips = [audio[start : start + window].numpy() for start in starts[first : first + batch_size]]
        inputs = extractor(clips, sampling_rate=target, return_tensors="pt")["input_values"]
        hidden = model(inputs, output_hidden_states=True).hidden_states
        blocks.append(torch.stack(hidden, dim=1).numpy())
    features = {"raw": np.concatenate(blocks)}
    features["segments"] = features["raw"].mean(axis=2)
    features["aggregated"] = features["segments"].mean(axis=0)
    if not raw:
        del features["raw"]
    return features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("audio", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kinds", nargs="+", default=["segments", "aggregated"])
    arguments = parser.parse_args()
    model, extractor = load_peer(arguments.model)
    for path in sorted(p for p in arguments.audio.rglob("*") if p.suffix in SUFFIXES):
        features = encode(path, model, extractor, raw="raw" in arguments.kinds)
        name = path.relative_to(arguments.audio).with_suffix("").as_posix().replace("/", "__")
        for kind in arguments.kinds:
            folder = arguments.out / kind
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{name}.npy", features[kind])


if __name__ == "__main__":
    main()
