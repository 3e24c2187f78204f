"""What the errors of obstore mean to a user, and the way out, by the kind of address."""

from __future__ import annotations

import re
from typing import NamedTuple

_STATUS = re.compile(r"status code: (\d{3}[^:]*)(?::.*?<Code>(\w+)</Code>)?", re.DOTALL)


class _Settings(NamedTuple):
    """Variables of the environment that decide how a bucket is found and opened."""

    place: str
    keys: str
    open_to_all: str


_S3 = _Settings(
    "AWS_ENDPOINT_URL and AWS_REGION",
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (install boto3 for the profiles of ~/.aws)",
    "AWS_SKIP_SIGNATURE=true",
)
_GOOGLE = _Settings(
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_APPLICATION_CREDENTIALS to the file of a service account's key",
    "GOOGLE_SKIP_SIGNATURE=true",
)
_AZURE = _Settings(
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_TOKEN)",
    "AZURE_SKIP_SIGNATURE=true",
)
_OTHERS = {"gs": _GOOGLE, **dict.fromkeys(("az", "abfs", "abfss", "adl"), _AZURE)}


def place_settings(scheme: str) -> str:
    """Name the settings of where the buckets of a scheme are."""
    return _OTHERS.get(scheme, _S3).place


def no_credentials(scheme: str, what: str = "no credentials were found") -> str:
    """Say how to sign requests to the buckets of a scheme."""
    settings = _OTHERS.get(scheme, _S3)
    return f"{what}: set {settings.keys}, or for a bucket that is open to all {settings.open_to_all}"


def reason(error: Exception, scheme: str) -> str:
    """Say what an error of obstore at an address of a scheme means, without what it was sent, and the way out."""
    text = str(error).partition("\n\nDebug source")[0]
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        return no_credentials(scheme)
    known = {
        "PermissionDeniedError": "access is denied: see that the credentials may read it (to push: write it), and "
        "that there is such a store",
        "UnauthenticatedError": no_credentials(scheme, "the credentials are not valid"),
    }.get(type(error).__name__)
    place = place_settings(scheme)
    status = _STATUS.search(text)
    if status is not None:
        said = " ".join(part for part in status.groups() if part).strip()
        return f"{known} ({said})" if known else f"the server answers {said}: see {place}"
    if "InvalidCertificate" in str(error):
        return "its certificate is not trusted: see `storage_options`, `client_options={'root_certificate': ...}`"
    if "redirect" in text:
        return "the bucket is in another region: set AWS_REGION"
    if "error sending request" in text or "timed out" in text or "timeout" in text:
        return f"the server cannot be reached: see the network, and {place}"
    return known or f"{re.split(r'[:.] ', text)[0]}: see its URL, and {place}"
