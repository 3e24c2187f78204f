"""The model without weights: spectra as hidden states, what every network is compared with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from featurestore.models.encoder import EncoderModule, check_call
from featurestore.models.spectra import ConstantQ, MelBands

NAME = "logmel"

REVISION = "1"
"""Changes with the numbers, so that a store never mixes two definitions."""

STATES = ("log-mel", "constant-Q", "chroma")
"""What each state is."""

FLOOR = 1e-8
"""Added to powers before the logarithm: 80 dB below a sine of amplitude 1."""

_SAMPLE_RATE, _HOP, _FIELD = 24_000, 320, 400
_OCTAVES, _PER_OCTAVE = 7, 24


class LogMelEncoder(EncoderModule):
    """Log-mel and constant-Q spectra and chroma, 75 frames a second at 24 kHz, as an `Encoder`.

    The middle of frame t is sample 200 + 320 t of its window, as in MERT v1, and there are as many. State 0 is the
    natural logarithm of the power in 168 mel bands, state 1 that of the power of a constant-Q transform of 7
    octaves from C1 in quarter tones, and state 2 are the 12 pitch classes from C (the sum of amplitudes over
    octaves, brought to a norm of 1), followed by zeros. All are computed in float32, whatever the precision.
    """

    def __init__(self) -> None:
        super().__init__(name=NAME, revision=REVISION)
        self.sample_rate, self.do_normalize, self.min_samples = _SAMPLE_RATE, False, _FIELD
        self.layers, self.dim = len(STATES) - 1, _OCTAVES * _PER_OCTAVE
        self._mel = MelBands(sample_rate=_SAMPLE_RATE, hop=_HOP, bands=self.dim)
        self._constant_q = ConstantQ(
            sample_rate=_SAMPLE_RATE, hop=_HOP, bins=self.dim, bins_per_octave=_PER_OCTAVE
        )

    def frames(self, n_samples: int) -> int:
        """Frames of a window of `n_samples` samples."""
        return max(0, (n_samples - _FIELD) // _HOP + 1)

    @torch.no_grad()
    def states(self, wave: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """States 0 to `last` (all if None), each of shape (windows, frames, dim), for samples [window, sample]."""
        last = check_call(self, wave, last)
        frames = self.frames(wave.shape[1])
        with torch.autocast(wave.device.type, enabled=False):
            yield torch.log(self._mel(wave.float(), frames, _FIELD // 2) + FLOOR)
        if last == 0:
            return
        with torch.autocast(wave.device.type, enabled=False):
            amplitudes = self._constant_q(wave.float(), frames, _FIELD // 2)
            yield torch.log(amplitudes.square() + FLOOR)
        if last > 1:
            yield _chroma(amplitudes)


def _chroma(amplitudes: Tensor) -> Tensor:
    """Pitch classes of a spectrum in quarter tones; a quarter tone counts half for each of its neighbours."""
    quarters = amplitudes.reshape(*amplitudes.shape[:-1], _OCTAVES, _PER_OCTAVE).sum(dim=-2)
    between = quarters[..., 1::2] / 2
    classes = quarters[..., 0::2] + between + between.roll(1, dims=-1)
    norm = torch.sqrt(classes.square().sum(dim=-1, keepdim=True) + FLOOR)
    return nn.functional.pad(classes / norm, (0, amplitudes.shape[-1] - classes.shape[-1]))
