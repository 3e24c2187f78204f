"""Audio of samples that are known, as files and what is decoded of them."""

import io
import struct

import numpy as np
import soundfile
from hypothesis import HealthCheck, settings

from featurestore.audio import Found, decode

RATE = 8_000
few = settings(
    max_examples=max(12, settings().max_examples // 4),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def music(frames, channels=1, rate=RATE, seed=0):
    """Notes with a little noise, [frame, channel], as 16 bits hold them."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames)[:, None] / rate
    pitch = 110 * 2 ** (rng.integers(0, 36, channels) / 12)
    signal = 0.3 * np.sin(2 * np.pi * pitch * t) * np.exp(-(t % 0.5)) + rng.normal(0, 0.01, (frames, channels))
    return np.round(signal * 32_768) / 32_768


def encoded(signal, container, subtype, rate=RATE, **keywords):
    data = io.BytesIO()
    channels = signal.shape[1]
    with soundfile.SoundFile(data, "w", rate, channels, subtype=subtype, format=container, **keywords) as file:
        for i in range(0, len(signal), rate):
            file.write(signal[i : i + rate])
    return bytearray(data.getvalue())


def found(path, data, rate=RATE):
    """What is decoded at the file's own rate, and the warnings."""
    path.write_bytes(data)
    told = Found()
    blocks = list(decode(path, rate, found=told))
    assert told.samples == sum(map(len, blocks))
    return np.concatenate(blocks), told.warnings


def mean(signal):
    return signal.mean(axis=1).astype(np.float32)


def chunk(name, data):
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) & 1)
