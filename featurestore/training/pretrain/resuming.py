"""Going on from the newest checkpoint: with which settings, and what to do where it is damaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featurestore.errors import CheckpointError, SettingError
from featurestore.training.pretrain import checkpoints
from featurestore.training.pretrain.network import Start, start, start_again
from featurestore.training.pretrain.recipe import Recipe, changed_settings, shaping_settings


@contextmanager
def newest(folder: Path) -> Iterator[Path | None]:
    """The newest checkpoint of a folder, if it has any; an error about it names the way out."""
    there = checkpoints.found(folder)
    try:
        yield there[-1] if there else None
    except CheckpointError as error:
        if not there:
            raise
        after = f"go on from {there[-2].name}" if len(there) > 1 else "begin anew"
        raise CheckpointError(f"{error}. Remove {there[-1]} to {after}") from error


def begin(recipe: Recipe, folder: Path, processes: int) -> Start:
    """The network of the newest checkpoint, which needs nothing else; without one, that of the recipe.

    Raises
    ------
    SettingError, CheckpointError, ModelError
        As `changes` and `featurestore.training.pretrain.network.start`.
    """
    with newest(folder) as checkpoint:
        if checkpoint is None:
            return start(recipe)
        changes(checkpoint, checkpoints.read_scalars(checkpoint), recipe, processes)
        return start_again(checkpoint)


def changes(checkpoint: Path, scalars: Mapping[str, Any], recipe: Recipe, processes: int) -> list[str]:
    """Names of the settings that have changed since a checkpoint.

    Parameters
    ----------
    checkpoint : Path
        Is named in errors.
    scalars : mapping
        What it remembers: its ``recipe``, and how many ``processes`` there were.
    recipe : Recipe
        Of now.
    processes : int
        Of now.

    Raises
    ------
    SettingError
        If one of them shapes the network or its heads.
    """
    before, now = scalars.get("recipe", {}), recipe.to_dict()
    shaped = shaping_settings(now)
    for name, value in shaping_settings(before).items():
        if value != (wanted := shaped.get(name)):
            raise SettingError(
                f"{checkpoint} was trained with another {name}: {value}, not {wanted}. It shapes the network or "
                "its heads and may not change on the way: set it back, or begin a new training with another "
                f"folder for the output and `model.start={str(checkpoint)!r}`"
            )
    changed = changed_settings(before, now)
    if scalars.get("processes", processes) != processes:
        changed.append(f"the number of processes ({scalars['processes']}, now {processes})")
    return changed
