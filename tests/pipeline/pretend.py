"""Processes of a crew that open no model and extract nothing, but speak as those that do."""

import os
import signal

from featurestore import FeatureSpec
from featurestore.errors import DeviceError
from featurestore.pipeline.report import Failure, Tally

SPEC = FeatureSpec(layers=(0, 1), dim=4, sample_rate=24_000, frame_rate=75.0, segment_duration=5.0, overlap=0.5)


def work(connection, orders):
    """Settles every track; what is special says the name of the device."""
    device = orders.extractor["device"]
    if device == "refusing":
        connection.send(("refused", DeviceError("there is no such device")))
        return
    if device == "stillborn":
        os.kill(os.getpid(), signal.SIGKILL)
    spec = FeatureSpec(**{**SPEC.to_dict(), "layers": (0, 1), "precision": "fp16" if device == "half" else "fp32"})
    connection.send(("log", 30, f"{device} is ready"))
    connection.send(("ready", spec))
    tally = Tally()
    more = connection.recv()
    while more:
        connection.send(("next",))
        plan = connection.recv()
        if plan is None:
            connection.send(("idle",))
            more = connection.recv()
            continue
        track_id, failures = plan.track.track_id, []
        if device == "mortal" or track_id == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        if device == "stuck":
            connection.send(("stopped", "the disk is full"))
            return
        if track_id == "bad":
            failures = [Failure(track_id="bad", path="bad.wav", error="AudioError", message="bad.wav is bad")]
        else:
            tally.processed += 1
            tally.audio_seconds += plan.seconds
            tally.furthest = tally.audio_seconds
        tally.track = track_id
        connection.send(("log", 30, f"{device}: {track_id}"))
        connection.send(("told", tally))
        connection.send(("settled", track_id, failures, [], tally))
