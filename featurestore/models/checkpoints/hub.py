"""Models of the hub: which files, of which commit, and what to do without a network. Imports no torch."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from featurestore.errors import CheckpointError, HubUnreachableError, MissingDependencyError, ModelError
from featurestore.models.checkpoints.config_muq import is_muq
from featurestore.models.checkpoints.files import (
    CONFIG,
    MUSICFM_FILES,
    PICKLE,
    PICKLE_SHARDS,
    PREPROCESSOR,
    PROCESSOR,
    SAFETENSORS,
    SHARDS,
    find_musicfm,
    find_weights,
    is_musicfm,
    read_json,
    read_preprocessor,
    shard_names,
)
from featurestore.models.warning_filters import suppress_warnings

TIMEOUT = 5.0
"""Seconds that the hub has for its first answer."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")

# In the order of preference of a local folder; nothing else is fetched, code least of all.
_AUDIO = (PREPROCESSOR, PROCESSOR)
_WEIGHTS = (SAFETENSORS, SHARDS, PICKLE, PICKLE_SHARDS)
_WANTED = ((CONFIG,), _AUDIO, _WEIGHTS)
_MUSICFM = tuple(((stats,), weights) for stats, weights in MUSICFM_FILES)

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def is_hub_name(name: str) -> bool:
    """Whether a string has the form ``owner/model``."""
    return _HUB_NAME.fullmatch(name) is not None


def fetch(name: str, *, revision: str | None = None) -> Path:
    """Bring a model of the hub into the local cache: its folder there, which is called as the commit is.

    Without a network the cache alone is used; a commit that it holds is used without asking the hub.

    Raises
    ------
    HubUnreachableError
        If the hub cannot be reached and the cache does not hold the model.
    ModelError
        If the hub has no such model or revision (branch, tag or commit, by default "main"), or does not give it.
    MissingDependencyError
        If huggingface_hub is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} comes from the hub, which needs huggingface_hub: pip install 'featurestore[extract]'"
        ) from error
    # The errors of the library's HTTP client (requests or httpx, depending on its version) and of sockets.
    unreachable: tuple[type[BaseException], ...] = (OSError, *errors.HfHubHTTPError.__bases__)
    try:
        if revision and _COMMIT.fullmatch(revision) and (cached := _cached(name, revision)):
            return cached
        with suppress_warnings("huggingface_hub"):
            info = huggingface_hub.HfApi().model_info(name, revision=revision, timeout=TIMEOUT)
            return _download(name, revision, {x.rfilename for x in info.siblings or ()})
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{name} has no `revision` {revision!r} on the hub") from error
    except errors.GatedRepoError as error:
        raise ModelError(
            f"the hub gives {name} only to those whom its owner lets in: log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no model {name} on the hub (or it is private), and no local folder of this name"
        ) from error
    except errors.HFValidationError as error:
        raise ModelError(f"{name} is no name that the hub allows: {error}") from error
    except unreachable as error:
        if getattr(error, "errno", None) in _DISK_ERRORS:
            raise ModelError(
                f"{name} cannot be written to the local cache {constants.HF_HUB_CACHE}: {error}"
            ) from error
        if cached := _cached(name, revision):
            return cached
        raise HubUnreachableError(_hint(name, revision, error)) from error


def _download(name: str, revision: str | None, present: set[str]) -> Path:
    from huggingface_hub import hf_hub_download

    pairs = (pair for pair in _MUSICFM if not any(map(present.isdisjoint, pair)))
    wanted = next(pairs, _WANTED) if present.isdisjoint(_WEIGHTS) else _WANTED
    missing = [names for names in wanted if present.isdisjoint(names)]
    if missing == [_AUDIO] and is_muq(read_json(Path(hf_hub_download(name, CONFIG, revision=revision)))):
        missing = []
    if missing:
        lacks = ", ".join(map(" or ".join, missing))
        raise ModelError(f"{name} on the hub is no checkpoint that can be read: it lacks {lacks}")
    first, *others = (next(x for x in names if x in present) for names in wanted if not present.isdisjoint(names))
    # By the name of the revision, so that the cache knows it offline; the rest by the commit that this gave.
    folder = Path(hf_hub_download(name, first, revision=revision)).parent
    for file in others:
        hf_hub_download(name, file, revision=folder.name)
    for index in {SHARDS, PICKLE_SHARDS}.intersection(others):
        for file in shard_names(folder / index):
            hf_hub_download(name, file, revision=folder.name)
    return folder


def _cached(name: str, revision: str | None) -> Path | None:
    """The model as the cache holds it, if it is complete there."""
    from huggingface_hub import try_to_load_from_cache

    for first in (CONFIG, *(stats for stats, _ in MUSICFM_FILES)):
        path = try_to_load_from_cache(name, first, revision=revision)
        if isinstance(path, str) and _is_complete(folder := Path(path).parent):
            return folder
    return None


def _is_complete(folder: Path) -> bool:
    try:
        if is_musicfm(folder):
            find_musicfm(folder)
            return True
        find_weights(folder)
        if not is_muq(read_json(folder / CONFIG)):
            read_preprocessor(folder)
    except CheckpointError:
        return False
    return True


def _hint(name: str, revision: str | None, error: BaseException) -> str:
    from huggingface_hub import constants

    reason = (str(error) or type(error).__name__).strip().split("\n", 1)[0]
    at = f" at revision {revision}" if revision else ""
    return (
        f"the hub cannot be reached ({reason}), and {name}{at} is not in the local cache "
        f"{constants.HF_HUB_CACHE}. Give a local folder that holds the files as the hub has them (most models: "
        f"config.json, preprocessor_config.json, and model.safetensors or pytorch_model.bin): "
        f"`model='/path/to/folder'`; or "
        "use what comes with the library and needs no hub: `model='mini'` (a small MERT) or `model='logmel'` "
        "(spectra)"
    )
