"""Zip files: what is read of them is what was written, whatever else they hold or lack."""

import io
import os
import random
import stat
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ManifestError, UnreadableImageError
from pipeline.images import packed, sources
from pipeline.images.packed.kinds import Pack

LIMIT = 1 << 20
PATHS = st.lists(st.text("ab\u00fc ", min_size=1, max_size=8), min_size=1, max_size=3).map("/".join)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return made.getvalue()


def opened(path: Path, data: bytes) -> Pack:
    path.write_bytes(data)
    packed.forget()
    return packed.opened(path)


def contents(pack: Pack) -> dict[str, bytes]:
    return {name: pack.read(name, limit=LIMIT) for name in pack.names}


@settings(max_examples=30, deadline=None)
@given(
    members=st.dictionaries(
        PATHS, st.binary(max_size=2000),
        max_size=8,
    ),
    method=st.sampled_from(METHODS),
)  # fmt: skip
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes], method: int
) -> None:
    pack = opened(tmp_path_factory.mktemp("zip") / "made.zip", zip_of(members, method))
    assert contents(pack) == members == dict(pack.texts(("",), limit=LIMIT))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), method=st.sampled_from(METHODS))
def test_a_flipped_bit_gives_no_member_other_bytes(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int, method: int
) -> None:
    require_no_other_bytes(tmp_path_factory.mktemp("zip"), place, bit, method)


def test_a_flipped_bit_where_the_directory_ends_gives_no_member_other_bytes(
    tmp_path: Path,
) -> None:
    """What stands there says where all members are."""
    for place in range(-22, 0):
        for bit in range(8):
            require_no_other_bytes(tmp_path, place, bit, zipfile.ZIP_STORED)


def require_no_other_bytes(folder: Path, place: int, bit: int, method: int) -> None:
    members = {f"{number}.jpg": bytes([number]) * (700 * number) for number in range(1, 4)}
    made = bytearray(zip_of(members, method))
    made[place % len(made)] ^= 1 << bit
    try:
        pack = opened(folder / "made.zip", bytes(made))
    except ManifestError:
        return
    for name in pack.names:
        try:
            data = pack.read(name, limit=LIMIT)
        except UnreadableImageError:
            continue
        # A name may be another one: a zip file has no checksum of names.
        assert data in members.values() and data == members.get(name, data)


def test_many_threads_read_what_was_written(tmp_path: Path) -> None:
    members = {f"{number}.jpg": random.Random(number).randbytes(1500) for number in range(100)}
    pack = opened(tmp_path / "made.zip", zip_of(members))
    names = random.Random(0).choices(list(members), k=300)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda name: pack.read(name, limit=LIMIT), names))
    assert read == [members[name] for name in names]


def test_zip64_and_bytes_before_the_first_member(tmp_path: Path) -> None:
    made = io.BytesIO(b"#!/bin/sh\n")
    made.seek(0, os.SEEK_END)
    with zipfile.ZipFile(made, "w") as archive, archive.open("a", "w", force_zip64=True) as file:
        file.write(b"x")
    assert contents(opened(tmp_path / "made.zip", made.getvalue())) == {"a": b"x"}


def test_names_that_windows_and_others_write(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in ("cat\\1.jpg", "dog\\", "/abs/2.jpg", "../up.jpg", "cat//3.jpg"):
            archive.writestr(name, name)
        archive.writestr(link, "cat/3.jpg")
        archive.writestr("\u00fc/4.jpg", "utf-8")
    pack = opened(tmp_path / "made.zip", made.getvalue())
    assert list(pack.names) == ["cat/1.jpg", "abs/2.jpg", "cat/3.jpg", "\u00fc/4.jpg"]
    assert pack.notes == [
        "left out, links, 1: 'link.jpg'",
        "left out, names that point elsewhere or are too long, 1: '../up.jpg'",
        "names whose backslashes were read as slashes, 2: 'cat\\\\1.jpg', 'dog\\\\'",
    ]


def test_names_in_no_unicode(tmp_path: Path) -> None:
    whole = zip_of({"A\u00fc/1.jpg": b"x"})
    bare = whole.replace(struct.pack("<H", 0x800), bytes(2))
    pack = opened(tmp_path / "made.zip", bare)  # UTF-8 without its flag, as many programs write it
    assert (list(pack.names), pack.notes) == (["A\u00fc/1.jpg"], [])
    pack = opened(tmp_path / "made.zip", bare.replace("\u00fc".encode(), b"\x81z"))
    assert list(pack.names) == ["A\u00fcz/1.jpg"]
    assert pack.notes == ["names in no Unicode, read as code page 437, 1: 'A\u00fcz/1.jpg'"]
    told = zipfile.ZipInfo("\u00e9.jpg")
    name = "\u4e2d.jpg".encode()
    told.extra = struct.pack("<HHBI", 0x7075, 5 + len(name), 1, 0) + name
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(told, b"x")
    bare = made.getvalue().replace(struct.pack("<H", 0x800), bytes(2))
    bare = bare.replace("\u00e9".encode(), b"\x82z")
    assert contents(opened(tmp_path / "made.zip", bare)) == {"\u4e2d.jpg": b"x"}


def test_encrypted_and_repeated_members(tmp_path: Path) -> None:
    whole = bytearray(zip_of({"a.jpg": b"a", "b.jpg": b"b"}))
    whole[whole.index(b"PK\1\2") + 8] |= 1  # the flag of the first
    pack = opened(tmp_path / "made.zip", bytes(whole))
    assert pack.notes == ["encrypted, which count as bad images, 1: 'a.jpg'"]
    assert pack.read("b.jpg", limit=LIMIT) == b"b"
    with pytest.raises(UnreadableImageError, match="it is encrypted"):
        pack.read("a.jpg", limit=LIMIT)
    assert dict(pack.texts((".jpg",), limit=LIMIT)) == {"b.jpg": b"b"}
    twice = zip_of({"a.jpg": b"a", "b.jpg": b"b"}).replace(b"b.jpg", b"a.jpg")
    pack = opened(tmp_path / "made.zip", twice)
    assert list(pack.names) == ["a.jpg"] and "several members have" in pack.notes[0]
    with pytest.raises(UnreadableImageError, match="hold different bytes"):
        pack.read("a.jpg", limit=LIMIT)


def test_bounds(tmp_path: Path) -> None:
    pack = opened(tmp_path / "made.zip", zip_of({"a.jpg": bytes(2000)}))
    with pytest.raises(UnreadableImageError, match="too large: 2,000 bytes"):
        pack.read("a.jpg", limit=1999)
    with pytest.raises(UnreadableImageError, match="not in the zip file"):
        pack.read("b.jpg", limit=LIMIT)
    lying = bytearray(zip_of({"a.jpg": bytes(2000)}))
    lying[lying.index(b"PK\1\2") + 24] -= 1  # fewer bytes than are packed
    pack = opened(tmp_path / "made.zip", bytes(lying))
    with pytest.raises(UnreadableImageError, match="a wrong checksum"):
        pack.read("a.jpg", limit=LIMIT)


def test_what_macos_leaves_and_packed_files_within(tmp_path: Path) -> None:
    members = {"photos/cat/1.jpg": b"x", "photos/dog/1.jpg": b"y", "photos/dog/in.zip": b"z",
               "__MACOSX/photos/cat/._1.jpg": b"", "photos/.DS_Store": b""}  # fmt: skip
    (tmp_path / "a.zip").write_bytes(zip_of(members))
    listing = sources.scan(tmp_path / "a.zip")
    assert listing.paths == ["photos/cat/1.jpg", "photos/dog/1.jpg"]
    assert list(listing.labels) == ["cat", "dog"]
    assert "Packed files within packed files are not entered, 1: 'photos/dog/in.zip'" in (
        listing.notes
    )


def test_what_systems_leave_is_ignored_in_several_files_as_in_one(tmp_path: Path) -> None:
    junk = ("cat/.DS_Store", "cat/._1.png", "dog/Thumbs.db", "dog/desktop.ini", "@eaDir/1.png")
    images = {"cat/1.png": b"x", "dog/2.png": b"y"}
    (tmp_path / "a.zip").write_bytes(zip_of(images | dict.fromkeys(junk, b"")))
    expected = [f"a.zip/{name}" for name in images]
    assert sources.scan(tmp_path).paths == expected
    (tmp_path / "b.zip").write_bytes(zip_of(images))
    assert sources.scan(tmp_path).paths == [*expected, *(f"b.zip/{name}" for name in images)]
    for name in ("a.zip", "b.zip"):
        (tmp_path / name).write_bytes(zip_of({"cat/.DS_Store": b""}))
    with pytest.raises(ManifestError, match="There are no files"):
        sources.scan(tmp_path)


def test_a_member_in_very_many_folders(tmp_path: Path) -> None:
    deep, deeper = (f"cat/{'d/' * count}1.png" for count in (1500, 2500))
    (tmp_path / "a.zip").write_bytes(zip_of({deep: b"x", deeper: b"y", "dog/2.png": b"z"}))
    listing = sources.scan(tmp_path / "a.zip")
    assert listing.paths == [deep, "dog/2.png"] and list(listing.labels) == ["cat", "dog"]
    assert any("point elsewhere or are too long, 1: 'cat/d/d/" in note for note in listing.notes)
