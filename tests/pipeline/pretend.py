"""Processes without a model: all is real but the encoder, and the name of its device says what it does."""

import os
import signal
import time
from types import SimpleNamespace

import numpy as np

from featurestore import FeatureSpec
from featurestore.errors import DeviceError, DeviceLostError, StoreAccessError
from featurestore.pipeline import worker
from featurestore.windows import sliding_windows


class Encoder:
    """Windows of 1 s, whose features are their first samples."""

    def __init__(self, config):
        self.device = config.encoder["device"]
        self.store = config.job.store
        self.died_late = self.store.parent / "died-late"
        self.model = SimpleNamespace(sample_rate=24_000)
        if self.device == "refusing":
            raise DeviceError("there is no such device")
        if self.device == "failing":
            (config.job.store.parent / f"failing-{os.getpid()}").touch()
        if self.device == "stillborn":
            os.kill(os.getpid(), signal.SIGKILL)
        worker.logger.warning("%s is ready", self.device)

    def spec(self, dtype, codec):
        return FeatureSpec(
            layers=(0, 1),
            dim=4,
            sample_rate=24_000,
            frame_rate=75.0,
            segment_duration=1.0,
            overlap=0.0,
            precision="fp16" if self.device == "half" else "fp32",
            dtype=dtype,
            codec=codec,
        )

    def windows(self, blocks):
        return sliding_windows(blocks, 24_000, 24_000)

    def encode_tracks(self, windows, *, raw, stream, dtype):
        for owner, start, samples in ((w.owner, w.start, w.samples) for w in windows if w is not None):
            if self.device == "mortal" or owner.plan.track.track_id == "too-large":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.device == "slow":
                time.sleep(0.2)
            if self.device == "patient":  # until the one beside it fails for the second time
                while len(list(self.died_late.parent.glob("failing-*"))) < 2:
                    time.sleep(0.05)
                time.sleep(1)
                self.device = "b"
            if self.device == "hungry":
                eaten = []
                while True:
                    eaten.append(b"x" * 10**7)
            if self.device == "once" and not self.died_late.exists():
                self.died_late.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.device == "late" and not self.died_late.exists():
                self.died_late.touch()
                wait_until_nothing_is_published(self.store)
                os.kill(os.getpid(), signal.SIGKILL)
            if owner.plan.track.track_id == "deadly":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.device == "failing" or owner.plan.track.track_id == "card-killer":
                raise DeviceLostError(f"{self.device} has failed")
            if self.device == "stuck":
                raise StoreAccessError("the disk is full")
            features = np.tile(samples[:4], (1, 2, 1)).astype(np.float32)
            end = (start + len(samples)) / 24_000
            yield owner, SimpleNamespace(starts=[start / 24_000], end=end, segments=features, raw=None)


def wait_until_nothing_is_published(store):
    """Until the others have been silent for a second."""
    seen, since = set(), time.monotonic()
    while time.monotonic() - since < 1:
        if (found := set(store.glob("aggregated/*"))) != seen:
            seen, since = found, time.monotonic()
        time.sleep(0.05)


def worker_main(connection, counts, config):
    """Do what a process of a build does."""
    worker.worker_main(connection, counts, config, open_encoder=Encoder)
