"""The probe on disk: read as it was written, or one clear error."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DIM, IDENTITY, FakeEncoder, edit_record

from pipeline.backbones import probe
from pipeline.backbones.probe import Probe
from pipeline.engines import probing
from pipeline.errors import StoreError


@pytest.fixture
def made(tmp_path: Path) -> Probe:
    made = probing.make(FakeEncoder(), IDENTITY)
    probe.keep(tmp_path, made)
    return made


def test_it_is_read_as_it_was_written(made: Probe, tmp_path: Path) -> None:
    for dim in (DIM, None):
        found = probe.find(tmp_path, IDENTITY, dim)
        assert found is not None and found.folder == tmp_path
        np.testing.assert_array_equal(found.features, made.features)
        assert found.features.dtype == np.float32
        assert (found.pixels, found.decoder, found.network, found.identity) == (
            *(made.pixels, made.decoder, made.network),
            IDENTITY,
        )


def test_a_folder_without_one_has_none(tmp_path: Path) -> None:
    assert probe.find(tmp_path, IDENTITY, DIM) is None
    assert probe.find(tmp_path / "nowhere", IDENTITY, DIM) is None


def test_one_of_other_images_is_none(made: Probe, tmp_path: Path) -> None:
    edit_record(tmp_path / probe.FILE, lambda record: record.update(images_sha256="0" * 64))
    assert probe.find(tmp_path, IDENTITY, DIM) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": replace(IDENTITY, pooling="max").as_json()},
        {"identity": {}},
        {"features": "AAAA"},
        {"features": "not base64"},
        {"features": ""},
        {"features": "é" * 64},
        {"features": None},
        {"pixels": {"photo.jpg": "0" * 64}},
        {"pixels": {}},
        {"decoder": {"Pillow": 13}},
        {"network": "openvino"},
        {"schema_version": 9},
    ],
)
def test_what_it_cannot_say_is_one_clear_error(
    made: Probe, tmp_path: Path, changes: dict[str, Any]
) -> None:
    edit_record(tmp_path / probe.FILE, lambda record: record.update(changes))
    with pytest.raises(StoreError, match="probe") as caught:
        probe.find(tmp_path, IDENTITY, DIM)
    assert "verify --repair" in caught.value.hint


def test_every_changed_byte_is_found(made: Probe, tmp_path: Path) -> None:
    path = tmp_path / probe.FILE
    data = path.read_bytes()
    for place in range(0, len(data) - 1, 97):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            found = probe.find(tmp_path, IDENTITY, DIM)
        except StoreError:
            continue
        assert found is not None, place
        np.testing.assert_array_equal(found.features, made.features)


def test_no_features_at_all_are_refused(made: Probe, tmp_path: Path) -> None:
    edit_record(tmp_path / probe.FILE, lambda record: record.update(features=""))
    with pytest.raises(StoreError, match="0 bytes of features"):
        probe.find(tmp_path, IDENTITY)


def test_features_of_another_length_are_refused(made: Probe, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="bytes of features"):
        probe.find(tmp_path, IDENTITY, DIM + 1)
