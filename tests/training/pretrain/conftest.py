import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file

from featurestore.training.pretrain import Recipe, pretrain

RATE, HOP = 24_000, 320
NO_DROPOUT = {"input": 0.0, "hidden": 0.0, "attention": 0.0, "activation": 0.0, "layers": 0.0}
GOLDEN = Path(__file__).parents[2] / "data" / "golden"

SMALL = {
    "conv_dim": [8] * 7,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def make_data(folder, *, files=6, seconds=1.2, seed=0, rate=RATE):
    """A folder of training data: melodies of 12 notes, with their notes as tokens and as auxiliary labels."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    samples = int(seconds * rate)
    frames = samples // HOP
    for split, count in (("train", files), ("valid", 4)):
        manifest, tokens, keys, loud = [str(folder)], [], [], []
        for index in range(count):
            notes = random.integers(0, 12, size=4)
            played = np.repeat(notes, -(-samples // 4))[:samples]
            wave = 0.3 * np.sin(2 * np.pi * np.cumsum(300 * 2 ** (played / 6)) / rate)
            wave += 0.01 * random.normal(size=samples)
            name = f"{split}{index}.wav"
            soundfile.write(folder / name, wave.astype(np.float32), rate, subtype="PCM_16")
            manifest.append(f"{name}\t{samples}")
            of_frame = played[np.arange(frames) * HOP]
            tokens.append(" ".join(map(str, of_frame)))
            keys.append(np.eye(12, dtype=np.uint8)[of_frame])
            loud.append(np.eye(2, dtype=np.uint8)[of_frame % 2])
        (folder / f"{split}.tsv").write_text("\n".join(manifest) + "\n")
        (folder / f"{split}.km").write_text("\n".join(tokens) + "\n")
        np.save(folder / f"{split}.keys.npy", np.concatenate(keys))
        np.save(folder / f"{split}.odd.npy", np.concatenate(loud))
    (folder / "dict.km.txt").write_text("".join(f"{x} 1\n" for x in range(12)))
    return folder


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory):
    """Training data that no test changes."""
    return make_data(tmp_path_factory.mktemp("data") / "music")


@pytest.fixture
def own_data(tmp_path):
    """Training data to be tampered with."""
    return make_data(tmp_path / "music", files=3)


def settings(folder, **tables):
    """Values of a recipe that takes some hundredths of a second a step, with every loss."""
    values = {
        "data": {"folder": str(folder), "labels": ["km"], "window": 0.5, "windows_per_file": "all"},
        "model": {"shape": "tiny", "config": SMALL},
        "mixing": {"seconds": [0.1, 0.3]},
        "tokens": {"dim": 8},
        "cqt": {"bins": 60, "bins_per_octave": 12, "lowest": 130.0},
        "heads": [{"name": "keys"}, {"name": "odd", "kind": "classes"}],
        "optimizer": {"lr": 1e-3, "warmup": 2},
        "run": {
            "steps": 8,
            "batch": 4,
            "log_every": 1,
            "checkpoint_every": 3,
            "evaluate_every": 100,
            "valid_windows": 4,
            "probe": "keys",
        },
    }
    for name, table in tables.items():
        values[name] = {**values.get(name, {}), **table} if isinstance(table, dict) else table
    return values


def recipe_for(folder, **tables):
    return Recipe.from_dict(settings(folder, **tables), source="the test")


@pytest.fixture(scope="session")
def preloaded(preloaded):
    preloaded.load("featurestore.training.pretrain", "torch._dynamo")  # of optimizers
    return preloaded


@pytest.fixture
def start_process(preloaded):
    """Starts Python in a process of its own."""

    def start(arguments, **environment):
        environment = {**os.environ, **environment}
        return preloaded.start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)

    return start


@pytest.fixture
def start_command(start_process):
    """Starts `fs-extract` in a process of its own."""
    return lambda arguments, **environment: start_process(["-m", "fs_extract", *arguments], **environment)


def lines_of(out):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(x, parse_constant=refuse) for x in (out / "metrics.jsonl").read_text().splitlines()]


def losses_of(out):
    """The loss of every step, each once."""
    found = [(x["step"], x["loss"]) for x in lines_of(out) if "loss" in x]
    assert [step for step, _ in found] == list(range(1, len(found) + 1))
    return [loss for _, loss in found]


def weights_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="session")
def whole(shared_data, tmp_path_factory):
    """A training of 8 steps that nothing disturbs, with all that is drawn: dropouts, masks, mixtures."""
    out = tmp_path_factory.mktemp("whole")
    report = pretrain(recipe_for(shared_data), out)
    return out, report
