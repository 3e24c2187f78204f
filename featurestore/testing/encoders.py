"""The rules of an encoder, to be run on one's own: `check_encoder`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from featurestore.errors import SettingError
from featurestore.models.encoder import (
    Encoder,
    broken_rule,
    check_state,
    context_seconds,
    frame_rate,
    require_encoder,
)


def check_encoder(encoder: Encoder, *, device: str = "cpu", tolerance: float = 1e-4) -> None:
    """Check that an encoder keeps the rules that extraction relies on.

    It is run on about a second of noise at a time, on `device`, and is left there.

    Parameters
    ----------
    encoder : Encoder
        As it would be given to `featurestore.FeatureExtractor`.
    device : str
        Where to run it.
    tolerance : float
        Largest difference that counts as rounding, relative to the largest value of a state.

    Raises
    ------
    ModelError
        If a rule is broken: names the rule, and what was found.
    SettingError
        If an attribute or a method is missing.

    Examples
    --------
    >>> from featurestore.models import check_encoder
    >>> check_encoder(load_model("logmel"))
    """
    require_encoder(encoder)
    with torch.inference_mode():
        _Check(encoder, device=torch.device(device), tolerance=tolerance).run()


class _Check:
    def __init__(self, encoder: Encoder, *, device: torch.device, tolerance: float) -> None:
        self._encoder, self._device, self._tolerance = encoder, device, tolerance

    def run(self) -> None:
        self._frames()
        self._context()
        moved = self._encoder.to(self._device)
        self._require(moved is not None, "to", "it returns None, not the encoder on that device")
        self._encoder = moved
        self._states()
        self._early_exit()
        self._quiet()
        self._batches()

    def _require(self, holds: bool, rule: str, found: str) -> None:
        if not holds:
            raise broken_rule(self._encoder, rule, found)

    def _close(self, found: Tensor, wanted: Tensor, rule: str, found_what: str) -> None:
        """Equal shapes, and equal numbers but for rounding."""
        self._require(
            found.shape == wanted.shape,
            rule,
            f"{found_what}: the shape is {tuple(found.shape)}, not {tuple(wanted.shape)}",
        )
        distance = float((found.float() - wanted.float()).abs().max())
        scale = float(wanted.float().abs().max())
        self._require(
            distance <= self._tolerance * max(scale, 1e-6), rule, f"{found_what}: by {distance:.3g} of {scale:.3g}"
        )

    def _noise(self, n_samples: int, windows: int = 1) -> Tensor:
        """The same for the same arguments."""
        generator = torch.Generator().manual_seed(n_samples)
        noise = torch.randn(windows, n_samples, generator=generator, dtype=torch.float32)
        return (0.1 * noise).to(self._device)

    def _lengths(self) -> Iterator[int]:
        """Lengths of windows up to a second, odd ones too."""
        least, second = self._encoder.min_samples, self._encoder.sample_rate
        yield from sorted({least, least + 1, *(x for x in (second // 3, second // 2 + 7, second) if x > least)})

    def _frames(self) -> None:
        encoder = self._encoder
        least = encoder.min_samples
        self._require(encoder.frames(least) >= 1, "min_samples", f"a window of {least} samples has no frame")
        below = encoder.frames(least - 1)
        self._require(below == 0, "min_samples", f"a window of {least - 1} samples has {below} frames, not 0")
        counts = [encoder.frames(n) for n in self._lengths()]
        self._require(
            counts == sorted(counts), "frames", f"windows of {list(self._lengths())} samples have {counts} frames"
        )
        rate = frame_rate(encoder, max(self._lengths()))
        self._require(rate is None or math.isfinite(rate), "frames", f"it gives {rate} frames a second")

    def _context(self) -> None:
        encoder = self._encoder
        if not hasattr(encoder, "context_seconds"):
            return
        n_samples = round(context_seconds(encoder) * encoder.sample_rate)
        try:
            frames = encoder.frames(n_samples)
        except SettingError as error:
            raise broken_rule(encoder, "context_seconds", f"a window so long is refused: {error}") from error
        self._require(frames >= 1, "context_seconds", f"a window of {n_samples} samples has no frame")

    def _states(self) -> None:
        encoder = self._encoder
        for n_samples in self._lengths():
            wave = self._noise(n_samples, 2)
            before = wave.clone()
            states = list(encoder.states(wave))
            wanted = encoder.layers + 1
            self._require(len(states) == wanted, "layers", f"there are {len(states)} states, not {wanted}")
            for number, state in enumerate(states):
                check_state(encoder, number, state, windows=2, n_samples=n_samples)
                self._require(state.device.type == self._device.type, "to", f"state {number} is on {state.device}")
            self._require(torch.equal(wave, before), "states", "it changes the samples that it is given")
            self._require(
                all(bool(torch.isfinite(state).all()) for state in states), "states", "noise gives NaN or infinity"
            )
            for number, again in enumerate(encoder.states(wave)):
                self._close(again, states[number], "states", f"state {number} differs when it is computed again")
            whole = encoder.hidden_states(wave)
            self._close(whole, torch.stack(states, dim=1), "hidden_states", "it differs from the states")

    def _early_exit(self) -> None:
        encoder = self._encoder
        wave = self._noise(max(encoder.min_samples, encoder.sample_rate // 2))
        every = list(encoder.states(wave))
        for last in range(encoder.layers + 1):
            states = list(encoder.states(wave, last=last))
            self._require(
                len(states) == last + 1, "states", f"last={last} gives {len(states)} states, not {last + 1}"
            )
            for number, state in enumerate(states):
                self._close(state, every[number], "states", f"state {number} differs with last={last}")

    def _batches(self) -> None:
        """A window must not depend on those that it is encoded with."""
        encoder = self._encoder
        waves = self._noise(max(encoder.min_samples, encoder.sample_rate // 2), 4)
        waves = waves * torch.tensor([[1.0], [0.01], [3.0], [0.0]], device=self._device, dtype=torch.float32)
        together = encoder.hidden_states(waves)
        for number, wave in enumerate(waves):
            self._close(
                together[number],
                encoder.hidden_states(wave[None])[0],
                "states",
                f"window {number + 1} of a batch of {len(waves)} differs from the same window alone",
            )

    def _quiet(self) -> None:
        encoder = self._encoder
        n_samples = max(encoder.min_samples, encoder.sample_rate // 2)
        noise = self._noise(n_samples)
        for what, wave in {
            "silence": torch.zeros_like(noise),
            "a constant": torch.full_like(noise, 0.7),
            "noise at 1e-7": noise * 1e-6,
            "noise beyond full scale": noise * 100,
        }.items():
            finite = torch.isfinite(encoder.hidden_states(wave)).all()
            self._require(bool(finite), "states", f"{what} gives NaN or infinity")
