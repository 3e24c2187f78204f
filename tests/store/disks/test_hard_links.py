"""Hard links are refused in many ways; all of them mean: copy."""

import errno
import os

import pytest
from samples import SPEC, features, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.store.table import table


@pytest.mark.parametrize(
    "code",
    [errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV, errno.EINVAL, errno.EIO],
)
def test_packing_copies_where_links_are_refused(path, monkeypatch, code):
    refused = []

    def link(*_, **__):
        refused.append(code)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(table, "MAX_ROWS", 2)
    monkeypatch.setattr(table, "_MIN_ROWS", 2)
    write_store(path, {name: features(seed) for seed, name in enumerate("abcd")}, pack=True)
    monkeypatch.setattr(os, "link", link)
    with StoreWriter(path, spec=SPEC) as writer:
        writer.put("e", features(4))
        writer.pack()
    assert refused
    store = FeatureStore(path)
    assert store.info()["packed"] == 5
    assert store.verify(deep=True).ok
