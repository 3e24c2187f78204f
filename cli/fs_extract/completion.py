"""fs-extract completion: what a shell completes of commands, options, models and track ids."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

import featurestore
from featurestore.errors import FeatureStoreError
from fs_extract.command import Command

_MODELS = ("mini", "logmel", "m-a-p/MERT-v1-95M", "m-a-p/MERT-v1-330M", "m-a-p/MERT-v0")
_MOST = 1000  # ids that a shell is given


def complete_models(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models by name, and else folders."""
    names = [CompletionItem(name) for name in _MODELS if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="dir")]


def complete_tracks(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of the tracks in the store that the command line names."""
    try:
        ids = featurestore.FeatureStore(ctx.params["store"]).track_ids
    except (KeyError, TypeError, FeatureStoreError):
        return []
    return [CompletionItem(x) for x in ids if x.startswith(incomplete) and x.isprintable()][:_MOST]


@click.command(
    cls=Command,
    has_json=False,
    examples={"for fish": "completion fish > ~/.config/fish/completions/fs-extract.fish"},
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options, models, stores and track ids.

    For bash, put this into ~/.bashrc: eval "$(fs-extract completion bash)"
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "fs-extract", "_FS_EXTRACT_COMPLETE").source())
