"""Who keeps buckets: what an address begins with, and by which variables an account is found.

`obstore` speaks to all of them alike. What the store asks of one is a put that fails if there is something already, and
one that fails if what is there is no longer what was looked at.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from obstore.store import ObjectStore


@dataclass(frozen=True)
class Provider:
    """One kind of bucket."""

    example: str
    keys: str
    """Where keys belong, for a message; `obstore` reads them there."""
    settings: str
    """What to check if the provider refuses."""
    endpoints: tuple[str, ...] = ()
    """The variables, strongest first, that say where it answers if not at its usual place."""


PROVIDERS = {
    "s3": Provider(
        "s3://bucket/prefix",
        "AWS_ACCESS_KEY_ID and its kin",
        "AWS_ENDPOINT_URL, AWS_REGION and the AWS_* keys",
        ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    ),
    "gs": Provider(
        "gs://bucket/prefix",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT",
    ),
    "az": Provider(
        "az://container/prefix",
        "AZURE_STORAGE_ACCOUNT_KEY and its kin",
        "AZURE_STORAGE_ACCOUNT_NAME and the AZURE_STORAGE_* keys",
        ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    ),
}
"""By the scheme of an address."""

_EXAMPLES = ["a folder", "file:///path", *(provider.example for provider in PROVIDERS.values())]
PLACES = f"{', '.join(_EXAMPLES[:-1])} or {_EXAMPLES[-1]}"
"""Addresses that a store may have, for messages."""


def provider_of(url: str) -> Provider:
    return PROVIDERS[urlsplit(url).scheme]


def connect(url: str) -> "ObjectStore":
    """Opens a bucket, with what the provider's own variables in the environment say."""
    from obstore.store import from_url  # here: a folder does without

    endpoint = next((found for name in provider_of(url).endpoints if (found := os.environ.get(name))), "")
    options: dict[str, Any] = {"client_options": {"allow_http": True}} if endpoint.startswith("http://") else {}
    return from_url(url, retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=20)}, **options)
