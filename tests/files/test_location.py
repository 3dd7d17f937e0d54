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
        ("https://host/a.jpg?size=2", Remote("https://host/a.jpg?size=2")),
    ],
)
def test_a_text_names_a_path_or_an_address(text: str, expected: object) -> None:
    assert locate(text) == expected
    assert is_address(text) == ("://" in text and text != "odd://")


@pytest.mark.parametrize(
    "text",
    ["s3://key:secret@bucket/a", "https://user@host/a", "https://host/a?X-Amz-Signature=abc",
     "https://account/a?sv=1&sig=abc"],
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


def test_records_name_addresses_as_they_are(tmp_path: Path) -> None:
    root = Remote("s3://bucket/photos")
    assert places.absolute(root) == str(root) and places.nearby(root, tmp_path) is None
    assert places.of_images(str(root), None, tmp_path, lambda place: False) == root
