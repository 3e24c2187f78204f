"""How near a faster form of an encoder comes to float32, measured on music that it knows nothing of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from featurestore.errors import SettingError

LEAST_COSINE = 0.98
"""Half precision whose `Fidelity.cosines` fall below is taken for wrong: rounding alone leaves .998 and more."""

_WINDOWS, _SECONDS = 8, 0.5


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Distance of an encoder from the same one in float32, for each hidden state.

    Parameters
    ----------
    cosines : tuple of float
        Cosine of the angle between the states less float32's mean: of all frames of all windows, or of the
        windows' means, as they are stored, whichever is lower.
    errors : tuple of float
        Largest difference, relative to the largest value.
    """

    cosines: tuple[float, ...]
    errors: tuple[float, ...]


def compared(states: Iterable[Tensor], exact: Iterable[Tensor]) -> Fidelity:
    """The distance of hidden states [windows, frames, dim] from those in float32; NaN where one is not finite."""
    cosines, errors = [], []
    for state, wanted in zip(states, exact, strict=True):
        found = state.float()
        pooled = _cosine(found.mean(dim=1, keepdim=True), wanted.mean(dim=1, keepdim=True))
        cosines.append(min(_cosine(found, wanted), pooled))
        errors.append(float((found - wanted).abs().max() / wanted.abs().max()))
    return Fidelity(cosines=tuple(cosines), errors=tuple(errors))


def check_close(found: Fidelity, what: str, hint: str) -> None:
    """Raise SettingError unless half precision is float32 up to rounding: all cosines are at least `LEAST_COSINE`.

    It names `what` (model and setting), the state, its cosine and `hint`, the setting to use instead.
    """
    for number, cosine in enumerate(found.cosines):
        if not cosine >= LEAST_COSINE:  # nor NaN
            raise SettingError(
                f"{what} is far from float32 on this processor: the centred cosine of hidden state {number} is "
                f"{cosine:.4f} on a test signal, where at least {LEAST_COSINE} is asked for. Either torch "
                f"{torch.__version__} computes half precision wrongly here, or the model needs more bits: "
                f"use {hint}"
            )


def _cosine(found: Tensor, wanted: Tensor) -> float:
    """Of states [window, frame, feature], less the mean of those that are wanted."""
    mean = wanted.mean(dim=(0, 1))
    a, b = ((state - mean).flatten().double() for state in (found, wanted))
    return float(a @ b / torch.sqrt((a @ a) * (b @ b)).clamp_(min=1e-30))


def test_signal(sample_rate: int, min_samples: int) -> Tensor:
    """Pieces of synthetic music [windows, samples], always the same: chords that decay, drums, loud and quiet."""
    generator = torch.Generator().manual_seed(0)
    samples = max(round(_SECONDS * sample_rate), min_samples)
    time = torch.arange(samples, dtype=torch.float32) / sample_rate
    waves = torch.zeros(_WINDOWS, samples, dtype=torch.float32)
    for number, wave in enumerate(waves):
        for beat in range(2):
            since = time - beat * _SECONDS / 2
            sounding = since >= 0
            for note in torch.randint(0, 48, (3,), generator=generator).tolist():
                pitch = 55 * 2 ** (note / 12)
                for partial in range(1, min(9, int(sample_rate / 2 / pitch) + 1)):
                    tone = torch.sin(2 * math.pi * pitch * partial * since) / partial
                    wave += sounding * tone * torch.exp(-2 * partial * since.clamp(min=0))
            drum = torch.randn(samples, generator=generator, dtype=torch.float32) * torch.exp(
                -30 * since.clamp(min=0)
            )
            wave += sounding * drum * (number % 2)
        wave *= 0.5 ** (number / 2) / wave.abs().max()
    return waves
