"""One name for every model: a local folder, one of the library, one of an installed package, or one of the hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path

from featurestore.errors import CheckpointError, FeatureStoreError, ModelError, SettingError
from featurestore.models.checkpoints.config import MODEL_TYPES
from featurestore.models.checkpoints.config_mert2 import MODEL_TYPE as MERT2
from featurestore.models.checkpoints.config_muq import MUSICFM, is_muq
from featurestore.models.checkpoints.families import FAMILIES
from featurestore.models.checkpoints.files import CONFIG, is_musicfm, read_json
from featurestore.models.checkpoints.hub import fetch, is_hub_name
from featurestore.models.checkpoints.installed import load_offered, offered, packages
from featurestore.models.checkpoints.muq import load_muq_checkpoint, load_musicfm_checkpoint
from featurestore.models.checkpoints.native import load_checkpoint, load_mert2_checkpoint
from featurestore.models.encoder import Encoder, broken_rule, require_encoder
from featurestore.models.logmel import NAME as LOGMEL
from featurestore.models.logmel import LogMelEncoder
from featurestore.spelling import close_hint

MINI = "mini"
"""The small MERT whose weights come with the library, in half precision; see docs/mini.md."""


def _load_mini() -> Encoder:
    return load_checkpoint(Path(__file__).parents[1] / MINI, name=MINI)


BUILT_IN: Mapping[str, Callable[[], Encoder]] = {LOGMEL: LogMelEncoder, MINI: _load_mini}
"""Models that come with the library, by name."""


def load_model(name_or_path: str | os.PathLike[str], *, revision: str | None = None) -> Encoder:
    """Load an encoder.

    Parameters
    ----------
    name_or_path : str or path
        A local folder in the hub's layout (config.json, preprocessor_config.json or processor_config.json,
        model.safetensors or pytorch_model.bin), ``mini``, ``logmel``, a name that an installed package offers,
        or a name of the hub such as ``m-a-p/MERT-v1-95M``, ``m-a-p/MERT-v2-30s`` or
        ``facebook/hubert-base-ls960``; docs/guides/encoders.md lists the networks. A folder that exists comes
        first. Code of a folder or of the hub is never run.
    revision : str, optional
        Branch, tag or commit of a model of the hub, by default "main". The commit that it names is recorded
        as the model's `revision`. A model that comes with the library has one revision only.

    Returns
    -------
    Encoder
        In float32, on the CPU, in evaluation mode.

    Raises
    ------
    CheckpointError
        If the checkpoint is incomplete, damaged, unsafe or of another network.
    HubUnreachableError
        If the model is not in the local cache and the hub cannot be reached.
    ModelError
        If there is no such folder or model, or another revision of one that is installed; if a name of an
        installed package is that of a folder too, or of several packages, or its code raises or gives no encoder.
    SettingError
        If a revision of a local folder is asked for.

    Examples
    --------
    >>> import torch
    >>> model = load_model("mini")
    >>> model.layers, model.dim, model.sample_rate
    (4, 192, 24000)
    >>> model.hidden_states(torch.zeros(1, 5 * 24_000)).shape
    torch.Size([1, 5, 374, 192])
    """
    name = os.fspath(name_or_path)
    if not name:
        raise ModelError("`model` is empty: give a local folder or a name of the hub (owner/model)")
    folder = Path(name).expanduser()
    # A string that only a path can be is never a name of anything else.
    is_name = not isinstance(name_or_path, os.PathLike) and Path(name).name == name
    points = offered(name) if is_name else []
    if folder.is_dir():
        if revision is not None:
            raise SettingError(f"{name} is a local folder, which has no `revision` {revision!r}")
        if points:
            raise ModelError(
                f"`model` {name!r} is a local folder and a name that the installed package {packages(points)} "
                f"offers: for the folder write {os.path.join(os.curdir, name)!r}, for the package work elsewhere"
            )
        return _load_folder(folder, name=name, revision=None)
    if folder.exists():
        raise ModelError(f"{name} is a file: give the folder that holds it together with config.json")
    if is_name and name in BUILT_IN:
        if points:
            raise ModelError(
                f"`model` {name!r} comes with featurestore, and the installed package {packages(points)} offers "
                f"another of this name: uninstall it, or have it renamed"
            )
        return _of_revision(BUILT_IN[name](), revision, "this release of featurestore")
    if points:
        return _load_offered(name, points, revision)
    if isinstance(name_or_path, os.PathLike) or not is_hub_name(name):
        names = sorted({*BUILT_IN, *(x.name for x in offered())})
        raise ModelError(
            f"`model`: there is no folder {name}{close_hint(folder)}, and it is neither a model that "
            f"comes with the library or an installed package ({', '.join(names)}) nor a name of the hub "
            f"(owner/model)"
        )
    snapshot = fetch(name, revision=revision)
    return _load_folder(snapshot, name=name, revision=snapshot.name)


def _load_offered(name: str, points: list[EntryPoint], revision: str | None) -> Encoder:
    """The encoder of an installed package, which bears the name by which stores will ask for it again."""
    encoder: Encoder = load_offered(name, points)
    try:
        require_encoder(encoder)
    except FeatureStoreError as error:
        raise ModelError(
            f"the installed package {packages(points)} offers {name!r} as an encoder: {error}"
        ) from error
    if encoder.name != name:
        raise broken_rule(
            encoder,
            "name",
            f"{packages(points)} offers it as {name!r}, by which no store that names it is reopened",
        )
    return _of_revision(encoder, revision, packages(points))


def _of_revision(encoder: Encoder, revision: str | None, source: str) -> Encoder:
    if revision not in (None, encoder.revision):
        raise ModelError(
            f"{encoder.name} of {source} has revision {encoder.revision!r}, not the `revision` {revision!r}: its "
            "features cannot be compared with those of the other; begin another store, or use the release that "
            "has it"
        )
    return encoder


def _load_folder(folder: Path, *, name: str, revision: str | None) -> Encoder:
    """MERT, MuQ, MusicFM and HuBERT as native networks; HuBERT that does not fit, and others, by transformers."""
    source = folder / CONFIG
    values = {"model_type": MUSICFM} if is_musicfm(folder) else read_json(source)
    kind = values.get("model_type")
    if kind == MUSICFM:
        return load_musicfm_checkpoint(folder, name=name, revision=revision)
    if is_muq(values):
        return load_muq_checkpoint(folder, name=name, revision=revision)
    supported = tuple(dict.fromkeys((*MODEL_TYPES, MERT2, MUSICFM, *FAMILIES)))
    if kind not in supported:
        raise CheckpointError(
            f"{source}: model_type {kind!r} is not supported: this release does not know the network, and code of "
            f"a checkpoint is never run. Supported are {', '.join(supported)}; for any other network write an "
            f"encoder of your own, which takes some ten lines ('Your own model' in docs/guides/encoders.md)"
        )
    if kind == MERT2:
        return load_mert2_checkpoint(folder, name=name, revision=revision)
    if kind in MODEL_TYPES:
        try:
            return load_checkpoint(folder, name=name, revision=revision)
        except CheckpointError:
            if kind not in FAMILIES:
                raise
    from featurestore.models.checkpoints.transformers import load_transformers_checkpoint

    return load_transformers_checkpoint(folder, name=name, revision=revision)
