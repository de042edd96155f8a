"""What differs between the providers of buckets: addresses and variables. The rest is held by tests of every place."""

from pathlib import Path

import pytest
from obstore.store import AzureStore, GCSStore, S3Store

from bico.errors import StoreError
from storage.artefacts import ArtefactStore
from storage.bucket import _same_tag, _version
from storage.providers import PLACES, PROVIDERS, connect


@pytest.mark.parametrize(
    ("url", "kind"), [("s3://bucket/a/b", S3Store), ("gs://bucket/a/b", GCSStore), ("az://container/a/b", AzureStore)]
)
def test_an_address_opens_the_store_of_its_provider(url: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    store = connect(url)
    assert isinstance(store, kind)
    assert store.prefix == "a/b"


def test_every_provider_is_named_to_who_gives_another_address() -> None:
    assert all(provider.example in PLACES for provider in PROVIDERS.values())
    assert all(provider.example.startswith(f"{scheme}://") for scheme, provider in PROVIDERS.items())


def test_an_account_that_is_missing_is_named_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StoreError, match="az://container/x refused .*Account.*: check .*AZURE_STORAGE_ACCOUNT_NAME"):
        ArtefactStore("az://container/x", staging=tmp_path)


@pytest.mark.parametrize(
    ("listed", "given", "same"),
    [
        ('"0x8D"', '"0x8D"', True),
        ("0x8D", '"0x8D"', True),  # Azure quotes the tag of a put, and not that of a listing
        ("0x8E", '"0x8D"', False),
        (None, '"0x8D"', False),
        (None, None, False),  # a bucket without tags vouches for nothing
    ],
)
def test_tags_are_compared_without_their_quotes(listed: str | None, given: str | None, same: bool) -> None:
    assert _same_tag(listed, given) is same


def test_a_version_says_all_that_the_provider_told() -> None:
    """Google goes by the number, the others by the tag."""
    assert _version({"e_tag": "a", "version": "7", "size": 3}) == {"e_tag": "a", "version": "7"}  # type: ignore[typeddict-item]
    assert _version({"e_tag": "a", "version": None, "size": 3}) == {"e_tag": "a"}  # type: ignore[typeddict-item]
