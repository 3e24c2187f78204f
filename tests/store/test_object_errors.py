"""Buckets of any provider: what goes wrong is said in the words of that provider."""

import pytest

from featurestore import FeatureStore
from featurestore.errors import StoreAccessError
from featurestore.store.object_errors import reason

KEYS = {
    "s3": "AWS_ACCESS_KEY_ID",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME",
    "abfss": "AZURE_STORAGE_ACCOUNT_NAME",
}


class UnauthenticatedError(Exception):
    """Named as that of obstore."""


@pytest.mark.parametrize(("scheme", "name"), KEYS.items())
@pytest.mark.parametrize(
    "error",
    [
        UnauthenticatedError("... status code: 403 Forbidden: ..."),
        RuntimeError("error sending request for url (http://169.254.169.254/metadata/token)"),
        RuntimeError("error sending request for url (http://metadata.google.internal/token)"),
        RuntimeError("error sending request for url (http://localhost:1/)"),
        RuntimeError("... status code: 400 Bad Request: ..."),
        RuntimeError("Something else: because"),
    ],
)
def test_the_way_out_is_that_of_the_provider(scheme, name, error):
    said = reason(error, scheme)
    expected = (
        name if "metadata" in str(error) or isinstance(error, UnauthenticatedError) or scheme != "s3" else "AWS_"
    )
    assert expected in said
    assert not any(other in said for key, other in KEYS.items() if other != name)


@pytest.mark.parametrize("scheme", ["az", "abfss"])
def test_azure_without_an_account_is_told_so(scheme, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    pytest.importorskip("obstore")
    with pytest.raises(StoreAccessError, match=r"no credentials were found: set AZURE_STORAGE_ACCOUNT_NAME and"):
        FeatureStore(f"{scheme}://container/s")
