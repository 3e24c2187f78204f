"""How much of bundles is kept in memory."""

import pytest

from featurestore.store.bundles import bundle
from featurestore.store.bundles.bundle import Recent


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setattr(bundle, "_KEPT_BYTES", 10)
    return Recent()


def test_what_was_read_last_is_kept_up_to_some_bytes(kept):
    made = []

    def get(name, size):
        def make():
            made.append(name)
            return name, size

        assert kept.get((name,), make) == name

    for name in "ababcab":
        get(name, 5)
    assert "".join(made) == "abcab"
    get("d", 100)
    get("d", 100)
    get("a", 5)
    get("b", 5)
    get("a", 5)
    assert "".join(made) == "abcabdab"
