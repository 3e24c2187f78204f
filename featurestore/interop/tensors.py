"""Views as torch tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.errors import MissingDependencyError

if TYPE_CHECKING:
    import torch

    from featurestore.store.views import View


def to_torch(view: View) -> torch.Tensor:
    """Tensor of a view, read now.

    Raises
    ------
    MissingDependencyError
        If torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("torch is needed: pip install 'featurestore[extract]'") from error
    return torch.from_numpy(view.to_numpy())
