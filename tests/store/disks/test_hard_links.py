"""Hard links are refused in many ways; all of them mean: copy."""

import errno
import os

import pytest
from samples import SPEC, features, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.store.table import layout


@pytest.mark.parametrize(
    "code",
    [errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV, errno.EINVAL, errno.EIO],
)
def test_packing_copies_where_links_are_refused(path, monkeypatch, code):
    refused = []

    def link(*_, **__):
        refused.append(code)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(layout, "SMALL_ROWS", 2)
    monkeypatch.setattr(layout, "first_layout", lambda: 0)
    write_store(path, {name: features(seed) for seed, name in enumerate("abcd")}, pack=True)
    monkeypatch.setattr(os, "link", link)
    with StoreWriter(path, spec=SPEC) as writer:
        writer.put("e", features(4))
        writer.pack()
    assert refused
    store = FeatureStore(path)
    assert store.info()["packed"] == 5
    assert store.verify(deep=True).ok
