import numpy as np
import pytest
from suspicious import LONG, PLANTED

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.store.runs import write_run
from featurestore.store.track_writer import TrackWriter


@pytest.fixture(scope="session")
def suspicious_store(tmp_path_factory):
    """Eighty tracks of three groups; some of them are wrong, and some have names that would do harm."""
    path = tmp_path_factory.mktemp("report") / "<i>s.zarr"
    random = np.random.default_rng(0)
    groups = random.normal(size=(3, 3, 16)) * 2
    names = [*(f"{['folk', 'jazz', 'rock'][n % 3]}/{n:02d}" for n in range(70)), *PLANTED]
    names += ["bad/nan", "bad/far", "bad/twin", LONG, "{{ 7 * 7 }}"]
    blocks = {}
    spec = FeatureSpec.for_arrays(layers=3, dim=16)
    with pytest.MonkeyPatch.context() as patch, StoreWriter(path, spec=spec, durable=False) as writer:
        # Our writer refuses what is no number; a store that another program has written may have it.
        patch.setattr(TrackWriter, "_as_stored", lambda *given: np.ascontiguousarray(given[-1], "<f4"))
        for number, name in enumerate(names):
            block = 5 + groups[number % 3] + random.normal(size=(12 + number % 5, 3, 16))
            if name == "bad/nan":
                block[:, 1, 3] = np.nan
            if name == "bad/far":
                block *= 1000
            if name == "bad/twin":
                block = blocks["jazz/01"] * (1 + 1e-6)
            blocks[name] = block
            known = {"levels": {"rms": 0.1, "peak": 0.5, "clipped": 0.0}, "audio": {"duration": 30.0 + number}}
            attributes = known | {"device": "cpu"} | PLANTED.get(name, {})
            with writer.track(name, kinds=["segments"], attributes=attributes) as track:
                track.append(segments=block, starts=(2.5 * np.arange(len(block))).tolist())
        writer.pack()
    failure = {"track_id": "<b>gone</b>", "path": "gone.mp3", "error": "AudioError", "message": "<i>no audio</i>"}
    run = {"began": "2026-01-02T03:04:05+00:00", "command": "fs-extract build <music>", "source": "music"}
    write_run(path, {**run, "whole": True, "errors": [failure]})
    return FeatureStore(path)
