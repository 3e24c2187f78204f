"""What `.featurestore/runs` holds may be of anybody: what is no run of a build is left out."""

import json
import os

import numpy as np
import pytest

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.store.runs import write_run

FAILURE = {"track_id": "a", "path": "a.wav", "message": "broken"}
RUN = {"began": "2026-01-02T03:04:05+00:00", "source": "music", "errors": [FAILURE]}


@pytest.fixture
def store(tmp_path):
    with StoreWriter(tmp_path / "s.zarr", spec=FeatureSpec.for_arrays(layers=1, dim=2), durable=False) as writer:
        writer.put("a", {"aggregated": np.ones((1, 2))})
    write_run(tmp_path / "s.zarr", RUN)
    return FeatureStore(tmp_path / "s.zarr")


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "[]",
        json.dumps({**RUN, "began": 5}),
        json.dumps({**RUN, "errors": [1]}),
        json.dumps({**RUN, "errors": [{**FAILURE, "track_id": 5}]}),
        json.dumps({**RUN, "errors": [{"track_id": "a"}]}),
        json.dumps({**RUN, "retried": [[]]}),
        json.dumps({**RUN, "options": []}),
        json.dumps({**RUN, "options": {"exclude": [5]}}),
        json.dumps({**RUN, "options": {"file_pattern": 5}}),
        json.dumps({**RUN, "options": {"dataset": [], "id_from": "stem"}}),
        json.dumps({**RUN, "elapsed_time": "long"}),
    ],
    ids=lambda content: content[-60:],
)
def test_what_is_no_run_is_left_out(store, content):
    (store.path / ".featurestore/runs/20260202T000000.000000Z.json").write_text(content)
    assert store.runs() == [RUN]
    assert [failure["track_id"] for failure in store.failures()] == ["a"]


def test_nobody_waits_for_a_pipe(store):
    os.mkfifo(store.path / ".featurestore/runs/20260202T000000.000000Z.json")
    assert store.runs() == [RUN]
