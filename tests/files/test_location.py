"""Places: paths and addresses, joined and told apart; no credentials in either."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.files import places
from pipeline.files.location import Remote, is_address, join, locate, normalized


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("photos/a.jpg", Path("photos/a.jpg")),
        ("C:\\photos", Path("C:\\photos")),
        ("odd://", Path("odd:")),
        ("file:///data/photos", Path("/data/photos")),
        ("s3://bucket/photos/", Remote("s3://bucket/photos")),
        ("S3://Bucket/a?b", Remote("s3://Bucket/a?b")),
        *((text, Remote(text)) for text in (
            "https://host/a.jpg?size=2", "https://host/a.zip?download=1", "https://host?token_count=3",
            "https://host/a.zip?rlkey=ab&dl=1", "https://host/a.jpg?country_code=de&author=b&token",
            "https://host:8080/a@2x.png", "http://[::1]:8080/a@2x.png", "s3://bucket/me@host/a&key=b",
            "s3://arn:aws:s3:eu-west-1:1234:accesspoint/mine/me@host",
        )),
    ],
)  # fmt: skip
def test_a_text_names_a_path_or_an_address(text: str, expected: object) -> None:
    assert locate(text) == expected
    assert is_address(text) == ("://" in text and text != "odd://")


@pytest.mark.parametrize(
    "text",
    ["s3://key:secret@bucket/a", "https://user@host/a", "https://host/a?X-Amz-Signature=abc",
     "https://account/a?sv=1&sig=abc", "s3://AKIA:secret/abc@bucket/a", "s3://AKIA:/abc@bucket", "s3://AKIA:1234/abc@bucket/a",
     "https://user:secret?abc@host/a", "https://user:secret#abc@host:80/a",
     *(f"https://host/a?x=1&{name}=abc" for name in (
         "private_token", "access_token", "auth_token", "api_key", "apiKey", "password", "code",
         "key", "AWSAccessKeyId", "client_secret", "x-goog-credential", "access%5Ftoken",
     )),
     "https://host/a;x?token=abc", "https://host/a#access_token=abc", "https://host?sig=abc"],
)  # fmt: skip
def test_an_address_with_credentials_is_refused_without_showing_them(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        locate(text)
    assert "secret" not in str(error.value) and "abc" not in str(error.value)
    assert "environment" in error.value.hint


def test_places_are_joined_and_spelled_in_one_way() -> None:
    root = Remote("s3://bucket/photos")
    assert str(root / "cat/1.jpg") == str(join(root, "cat/1.jpg")) == "s3://bucket/photos/cat/1.jpg"
    assert join(Path("/data"), "s3://bucket/a") == Remote("s3://bucket/a")
    assert join(root, "https://host/a") == root / "https://host/a" == Remote("https://host/a")
    assert (root.name, root.parent, root.suffix) == ("photos", Remote("s3://bucket"), "")
    assert normalized("a/./b//c") == "a/b/c" and normalized("S3://b/c/") == "s3://b/c"


@pytest.mark.parametrize(
    ("address", "name", "suffix"),
    [
        ("https://host/files/a.zip?download=1", "a.zip", ".zip"),
        ("https://host/files/a.tar.gz?path=/b/c.d#e", "a.tar.gz", ".gz"),
        ("https://host/files/get?file=a.zip", "get?file=a.zip", ".zip"),
        ("s3://host/files/a.zip?download=1", "a.zip?download=1", ".zip?download=1"),
    ],
)
def test_the_query_of_an_address_is_no_part_of_a_name(address: str, name: str, suffix: str) -> None:
    place = Remote(address)
    assert (place.name, place.suffix) == (name, suffix)
    assert str(place.parent).endswith("://host/files")


def test_records_name_addresses_as_they_are(tmp_path: Path) -> None:
    root = Remote("s3://bucket/photos")
    assert places.absolute(root) == str(root) and places.nearby(root, tmp_path) is None
    assert places.of_images(str(root), None, tmp_path, lambda place: False) == root
