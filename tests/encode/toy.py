"""A model of one's own for windows of any length, and devices that overlap, without a card."""

import numpy as np
import torch

from featurestore.encode.batching import BatchEncoder
from featurestore.encode.transfer import Transfer

CPU = torch.device("cpu")
LAYERS, DIM, SAMPLES = 3, 5, 40


def out_of_cuda(size):
    raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} GiB.\nmany more lines")


def out_of_context(size):
    raise RuntimeError("CUDA error: out of memory\nmany more lines")


def out_of_host(size):
    torch.empty(1 << 60)


def out_of_numpy(size):
    np.empty(1 << 52)


class Toy:
    """A model of one's own: state i is i + 1 times the samples, in frames of DIM; memory holds `fits` windows."""

    name, revision, weights_sha256 = "toy", None, None
    sample_rate, layers, dim, do_normalize, min_samples = 10, LAYERS, DIM, False, DIM

    def __init__(self, fits=10**9, fail=out_of_cuda, fail_at=0):
        self.fits, self.fail, self.fail_at = fits, fail, fail_at
        self.sizes, self.computed = [], []

    def frames(self, n_samples):
        return n_samples // DIM

    def states(self, wave, last=None):
        self.sizes.append(len(wave))
        for layer in range((self.layers if last is None else last) + 1):
            if layer == self.fail_at and len(wave) > self.fits:
                self.fail(len(wave))
            self.computed.append(layer)
            yield (layer + 1) * wave.unflatten(1, (-1, DIM))

    def hidden_states(self, wave):
        return torch.stack(list(self.states(wave)), dim=1)

    def to(self, device):
        return self


class Overlapping(Transfer):
    """Copies of a device that takes the next windows while it computes, if no more than `fits` of them."""

    overlaps = True

    def __init__(self, fits):
        super().__init__(CPU)
        self.fits = fits

    def send(self, windows):
        if len(windows) > self.fits:
            out_of_cuda(len(windows))
        return super().send(windows)


def windows(count, samples=SAMPLES, seed=0):
    noise = np.random.default_rng(seed).normal(size=(count, samples)).astype(np.float32)
    return [(7 * number, window) for number, window in enumerate(noise)]


def encoder(model, *, batch_size=4, layers=range(LAYERS + 1), **options):
    return BatchEncoder(model=model, device=CPU, batch_size=batch_size, layers=tuple(layers), **options)


def expected(given_windows, layers=range(LAYERS + 1)):
    frames = np.stack([window for _, window in given_windows]).reshape(len(given_windows), 1, -1, DIM)
    return frames * np.array([layer + 1 for layer in layers], np.float32)[:, None, None]
