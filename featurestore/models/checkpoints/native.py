"""A checkpoint folder in the hub's layout to an encoder. Nothing of a checkpoint is ever executed."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from featurestore.errors import CheckpointError, MissingDependencyError
from featurestore.models.checkpoints.config import MertConfig, Reader, audio_settings, sampling_rate_of
from featurestore.models.checkpoints.config_mert2 import SAMPLE_RATE, Mert2Config
from featurestore.models.checkpoints.files import (
    CONFIG,
    PREPROCESSOR,
    PROCESSOR,
    SAFETENSORS,
    TRAINED,
    find_weights,
    first_few,
    read_json,
    read_preprocessor,
    weights_sha256,
)
from featurestore.models.mert import MertEncoder
from featurestore.models.mert2 import Mert2Encoder

_TRAINING_ONLY = re.compile(
    r"masked_spec_embed|mask_emb|encoder_mask_emb|label_embs_concat"
    r"|(final_proj|encoder_cqt_model|encoder_mel_model)\..+"
)
"""Tensors of masking and of the heads of pretraining."""

_POSITIONAL = "encoder.pos_conv_embed.conv."
_NEW_NAMES = {
    f"{_POSITIONAL}parametrizations.weight.original0": f"{_POSITIONAL}weight_g",
    f"{_POSITIONAL}parametrizations.weight.original1": f"{_POSITIONAL}weight_v",
}
"""How torch's newer weight norm calls magnitude and direction."""


def load_checkpoint(folder: Path, *, name: str, revision: str | None = None) -> MertEncoder:
    """Load a checkpoint of MERT or HuBERT from a local folder, in float32, on the CPU.

    Parameters
    ----------
    folder : Path
        Holds config.json, preprocessor_config.json (or processor_config.json) and model.safetensors, or else
        pytorch_model.bin, which is only read with ``weights_only=True``; or the shards of one with their index.
    name, revision : str
        What the encoder says of itself.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged or unsafe, or is not a network of this kind; names what is wrong.
    """
    config = MertConfig.from_dict(read_json(folder / CONFIG), source=str(folder / CONFIG))
    preprocessor, source = read_preprocessor(folder)
    sample_rate, do_normalize = audio_settings(preprocessor, config.sample_rate, source=source)
    files = find_weights(folder)
    # Shapes only: nothing is allocated before the weights have shown that they are of this size.
    with torch.device("meta"):
        encoder = MertEncoder(
            config, sample_rate=sample_rate, do_normalize=do_normalize, name=name, revision=revision
        )
    encoder.weights_sha256 = fill(encoder, files, _fitting, source=str(folder))
    return encoder


def load_mert2_checkpoint(folder: Path, *, name: str, revision: str | None = None) -> Mert2Encoder:
    """Load a checkpoint of MERT-v2; parameters and errors are those of `load_checkpoint`."""
    config = Mert2Config.from_dict(read_json(folder / CONFIG), source=str(folder / CONFIG))
    if (folder / PREPROCESSOR).exists() or (folder / PROCESSOR).exists():
        preprocessor, source = read_preprocessor(folder)
    else:  # the rate is known, and MERT-v2 hears audio as it is
        preprocessor, source = {"sampling_rate": config.sampling_rate or SAMPLE_RATE}, str(folder / CONFIG)
    if Reader(preprocessor, source).boolean("do_normalize", False):
        raise CheckpointError(f"{source}: do_normalize is true, but MERT-v2 does not hear normalised audio")
    sample_rate = sampling_rate_of(preprocessor, config.sampling_rate, source)
    files = find_weights(folder)
    with torch.device("meta"):
        encoder = Mert2Encoder(config, sample_rate=sample_rate, name=name, revision=revision)
    if encoder.min_samples > encoder.max_samples:
        raise CheckpointError(
            f"{folder / CONFIG}: context_seconds {config.context_seconds:g} is less than the shortest window that "
            f"n_fft and hop_length allow ({encoder.min_samples} samples)"
        )
    encoder.weights_sha256 = fill(encoder.network, files, _fitting_mert2, source=str(folder))
    return encoder


def fill(
    network: nn.Module,
    files: list[Path],
    fitting: Callable[[Mapping[str, Tensor], Mapping[str, tuple[int, ...]], str], dict[str, Tensor]],
    *,
    source: str,
) -> str:
    """Give a network on "meta" the tensors that `fitting` makes of those in files; the digest of the files."""
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(weights_sha256, files)
        network.load_state_dict(fitting(read_weights(files), wanted, source), strict=True, assign=True)
        return digest.result()


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """Tensors of all files; together they hold no more bytes than the files."""
    state: dict[str, Tensor] = {}
    for path in files:
        tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
        if twice := sorted(state.keys() & tensors.keys()):
            raise CheckpointError(f"{path} repeats tensors of another shard: {first_few(twice)}")
        claimed = sum(x.numel() * x.element_size() for x in tensors.values())
        if claimed > path.stat().st_size:
            raise CheckpointError(f"{path} is damaged: its tensors claim {claimed} bytes, more than it has")
        state.update(tensors)
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} needs safetensors to be read: pip install 'featurestore[extract]'"
        ) from error
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    if _is_compressed(path):
        raise CheckpointError(f"{path} is compressed, as torch never writes it, and could unfold to any size")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile pickle makes the unpickler raise
        reason = str(error).strip().split("\n", 1)[0]
        hint = f"Use a checkpoint with {SAFETENSORS}"
        if path.suffix == TRAINED:
            hint = f"If you trust it, make {path.with_suffix('.safetensors').name} of it: {convert_command(path)}"
        raise CheckpointError(
            f"{path} is damaged or unsafe, nothing of it was executed: {reason}. {hint}"
        ) from error
    if path.suffix == TRAINED and isinstance(state, Mapping):
        state = state.get("state_dict", state)
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(x, Tensor) and x.layout is torch.strided and x.device.type == "cpu"
        for key, x in state.items()
    ):
        raise CheckpointError(f"{path} holds something else than tensors by name")
    return dict(state)


def convert_command(path: Path) -> str:
    """The command that makes safetensors of a pickle, which may execute whatever it likes."""
    safe = path.with_suffix(".safetensors")
    return (
        'python -c "import torch; from safetensors.torch import save_file; '
        f"save_file(torch.load('{path}', weights_only=False)['state_dict'], '{safe}')\""
    )


def _is_compressed(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False  # torch's older format, or damaged, which torch.load will say


def _fitting(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], source: str) -> dict[str, Tensor]:
    """Check names and shapes strictly, and fold the weight norm of the positional convolution."""
    given = {_NEW_NAMES.get(key, key): value for key, value in state.items() if not _TRAINING_ONLY.fullmatch(key)}
    wanted = dict(shapes)
    weight, magnitude, direction = (f"{_POSITIONAL}{x}" for x in ("weight", "weight_g", "weight_v"))
    if weight not in given:
        wanted[direction] = wanted.pop(weight)
        wanted[magnitude] = (1, 1, wanted[direction][2])
    check_tensors(given, wanted, source=source)
    given = single(given)
    if weight not in given:
        # Salimans and Kingma 2016, arXiv:1602.07868, with one magnitude for each tap.
        v, g = given.pop(direction), given.pop(magnitude)
        given[weight] = v * (g / torch.linalg.vector_norm(v, dim=(0, 1), keepdim=True))
    return given


def _fitting_mert2(
    state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], source: str
) -> dict[str, Tensor]:
    """Check names and shapes strictly, and that what makes the spectra is finite."""
    check_tensors(state, wanted, source=source)
    given = single(state)
    for key, value in given.items():
        if key.startswith("feature_extractor.") and not torch.isfinite(value).all():
            raise CheckpointError(f"{source}: {key} holds NaN or infinity")
    return given


def single(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().float().contiguous() for key, value in state.items()}


def check_tensors(given: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], *, source: str) -> None:
    """Raise a CheckpointError unless the tensors have exactly the names and shapes that are wanted."""
    if missing := sorted(wanted.keys() - given.keys()):
        raise CheckpointError(
            f"{source}: the weights lack {len(missing)} tensors of this network: {first_few(missing)}"
        )
    if unexpected := sorted(given.keys() - wanted.keys()):
        raise CheckpointError(
            f"{source}: the weights hold {len(unexpected)} tensors that this network has not: "
            f"{first_few(unexpected)}"
        )
    for key, shape in wanted.items():
        if tuple(given[key].shape) != shape:
            raise CheckpointError(
                f"{source}: {key} has shape {tuple(given[key].shape)}, but {CONFIG} asks for {shape}"
            )
        if not given[key].is_floating_point():
            raise CheckpointError(f"{source}: {key} is of type {given[key].dtype}, not floating point")
