"""Hypothesis profiles, of HYPOTHESIS_PROFILE: `default` is quick, `ci` looks longer, `nightly` for hours.

And a small model that several rooms need.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), max_examples=200, derandomize=False)
settings.register_profile("nightly", parent=settings.get_profile("default"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a small checkpoint with the frames of MERT v1."""
    from featurestore.models import save_random_checkpoint

    return save_random_checkpoint(tmp_path_factory.mktemp("tiny"), shape="tiny")


@pytest.fixture(scope="session")
def model(tiny):
    from featurestore.models import load_model

    return load_model(tiny)
