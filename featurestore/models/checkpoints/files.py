"""The files of a checkpoint: what they are called, which are read, their digest. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from featurestore.errors import CheckpointError
from featurestore.models.checkpoints.config_muq import MUSICFM, is_muq

CONFIG = "config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
SAFETENSORS, SHARDS = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_SHARDS = "pytorch_model.bin", "pytorch_model.bin.index.json"

TRAINED = ".pt"
"""Suffix of what PyTorch Lightning saves: a pickle whose "state_dict" holds the tensors."""

MUSICFM_FILES = tuple(
    (f"{x}_stats.json", (f"pretrained_{x}.safetensors", f"pretrained_{x}.pt")) for x in ("msd", "fma")
)
"""Statistics and weights of MusicFM, the better first, as its authors say."""

_NESTED = "feature_extractor"
"""Where the settings of PREPROCESSOR are in PROCESSOR, which is all that a processor of transformers 5 saves."""

_MOST_JSON = 1 << 24
"""Bytes; the largest file that is JSON is the index of a sharded checkpoint."""

_SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.(safetensors|bin)")


def find_weights(folder: Path) -> list[Path]:
    """Files of weights of a checkpoint: model.safetensors, else its shards, else pytorch_model.bin or its shards.

    CheckpointError is raised if there are none, or the index of the shards is damaged or names anything but files
    beside it.
    """
    for whole, index in ((folder / SAFETENSORS, folder / SHARDS), (folder / PICKLE, folder / PICKLE_SHARDS)):
        if whole.is_file():
            return [whole]
        if index.is_file():
            names = shard_names(index)
            if missing := [x for x in names if not (folder / x).is_file()]:
                raise CheckpointError(f"{index} names {first_few(missing)}, which is not there")
            return [folder / name for name in names]
    raise CheckpointError(f"{folder} holds no weights: neither {SAFETENSORS} nor {PICKLE}")


def is_musicfm(folder: Path) -> bool:
    """Whether a folder holds files of MusicFM, which need no config.json, and none of another network."""
    names = {x for stats, weights in MUSICFM_FILES for x in (stats, *weights)}
    if not any((folder / name).is_file() for name in names):
        return False
    values = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return values.get("model_type") in (None, MUSICFM) and not is_muq(values)


def find_musicfm(folder: Path) -> tuple[Path, Path]:
    """Statistics and weights of MusicFM, trained on the Million Song Dataset if they are there, or else on FMA.

    CheckpointError is raised if there is no pair of them.
    """
    for stats, weights in MUSICFM_FILES:
        for name in weights:
            if (folder / stats).is_file() and (folder / name).is_file():
                return folder / stats, folder / name
    pairs = " nor ".join(f"{stats} with {weights[1]}" for stats, weights in MUSICFM_FILES)
    raise CheckpointError(f"{folder} holds neither {pairs}: statistics and weights belong together")


def shard_names(index: Path) -> list[str]:
    """Names of the shards that an index lists, sorted.

    CheckpointError is raised if the index is damaged or names anything but files of its own format beside it.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index} has no weight_map")
    suffix = ".bin" if index.name == PICKLE_SHARDS else ".safetensors"
    for name in names.values():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or not name.endswith(suffix):
            raise CheckpointError(f"{index} names {name!r}, which is no {suffix} file beside it")
    return sorted(set(names.values()))


def read_preprocessor(folder: Path) -> tuple[dict[str, Any], str]:
    """What a checkpoint says of its audio, and the file that says it.

    That is preprocessor_config.json, else "feature_extractor" of processor_config.json. CheckpointError is raised
    if there is neither, or the file is damaged.
    """
    path = folder / PREPROCESSOR
    if path.is_file():
        return read_json(path), str(path)
    path = folder / PROCESSOR
    values = read_json(path).get(_NESTED) if path.is_file() else None
    if isinstance(values, dict):
        return values, str(path)
    raise CheckpointError(
        f"{folder} has no {PREPROCESSOR}, nor a {PROCESSOR} with a {_NESTED}: without it nobody knows whether the "
        f"model wants normalised audio, and checkpoints of one family differ in it. Copy it from where the model "
        f"comes from"
    )


def weights_sha256(files: list[Path]) -> str:
    """SHA-256 of the file of weights, 64 hex digits; CheckpointError if it cannot be read.

    Of shards, the SHA-256 of the lines ``<digest>  <name>`` (as sha256sum prints them) in the order of their
    names.
    """
    digests = []
    for path in files:
        try:
            with open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(files) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise CheckpointError(f"{path} is larger than any such file is")
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}: is it the folder of a checkpoint?") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return values


def first_few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
