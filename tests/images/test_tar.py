"""Tar files: what is read of them is what was written, whatever else they hold or lack."""

import bz2
import gzip
import io
import json
import lzma
import multiprocessing
import random
import tarfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from fakes import Command, FakeEncoder, write_image
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, ManifestError, UnreadableImageError
from pipeline.finetune.photos import Photos
from pipeline.images import packed, place, reading, sources
from pipeline.images.manifest import Manifest
from pipeline.images.packed import compressed_tar, tar_file
from pipeline.images.packed.kinds import Pack

LIMIT = 1 << 20
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.bz2": bz2.compress,
    ".tar.gz": gzip.compress,
    ".tar.xz": lzma.compress,
}
FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def tar_of(
    members: Mapping[str, bytes] | list[tuple[str, bytes]],
    *,
    others: list[tarfile.TarInfo] | None = None,
    form: int = tarfile.PAX_FORMAT,
) -> bytes:
    """Return a tar file of members, others without bytes before them."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for info in others or ():
            archive.addfile(info)
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


def image(seed: int, folder: Path) -> bytes:
    return write_image(folder / f"{seed}.png", seed)


def opened(path: Path, data: bytes) -> Pack:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    packed.forget()
    return packed.opened(path)


def contents(pack: Pack) -> dict[str, bytes]:
    return {name: pack.read(name, limit=LIMIT) for name in pack.names}


def rows(listing: Manifest) -> dict[str, tuple[str, str]]:
    found = zip(listing.labels, listing.splits, strict=True)
    return dict(zip(listing.paths, found, strict=True))


# -- what was written ----------------------------------------------------------------------

NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 90)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@settings(max_examples=30, deadline=None)
@given(
    members=st.dictionaries(PATHS, st.binary(max_size=2000), max_size=8),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    suffix=st.sampled_from(list(COMPRESS)),
    order=st.randoms(use_true_random=False),
)
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes], form: int, suffix: str,
    order: random.Random,
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("tar") / f"made{suffix}"
    pack = opened(path, COMPRESS[suffix](tar_of(members, form=form)))
    assert list(pack.names) == list(members)
    names = list(members)
    order.shuffle(names)
    assert {name: pack.read(name, limit=LIMIT) for name in names} == members
    assert dict(pack.texts(("",), limit=LIMIT)) == members


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 6 * 1024), suffix=st.sampled_from(list(COMPRESS)))
def test_of_a_file_that_was_cut_short_each_member_is_whole_or_bad(
    tmp_path_factory: pytest.TempPathFactory, cut: int, suffix: str
) -> None:
    members = {f"{number}.jpg": bytes([number]) * (700 * number) for number in range(4)}
    whole = COMPRESS[suffix](tar_of(members, form=tarfile.USTAR_FORMAT)[:6144])
    path = tmp_path_factory.mktemp("tar") / f"made{suffix}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed_tar, "_DOUBTFUL", 0)
        try:
            pack = opened(path, whole[: min(cut, len(whole))])
        except ManifestError:
            return  # cut within the first header
    for name in pack.names:
        try:
            assert pack.read(name, limit=LIMIT) == members[name]
        except UnreadableImageError as error:
            assert "cut short" in str(error)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 6143), bit=st.integers(0, 7), suffix=st.sampled_from(list(COMPRESS)))
def test_a_flipped_bit_gives_no_member_the_bytes_of_another(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int, suffix: str
) -> None:
    members = {f"{number}.jpg": bytes([number]) * (700 * number) for number in range(1, 4)}
    made = bytearray(COMPRESS[suffix](tar_of(members, form=tarfile.USTAR_FORMAT)[:6144]))
    place %= len(made)
    made[place] ^= 1 << bit
    path = tmp_path_factory.mktemp("tar") / f"made{suffix}"
    try:
        read = contents(opened(path, bytes(made)))
    except (ManifestError, UnreadableImageError, ConfigError):
        return
    for name, data in read.items():
        assert name in members
        # A plain tar file has checksums of headers alone.
        different = [a != b for a, b in zip(data, members[name], strict=True)]
        assert sum(different) <= (1 if suffix == ".tar" else 0)


def test_long_names_and_large_numbers_of_every_dialect(tmp_path: Path) -> None:
    names = ["a" * 90, f"{'b' * 90}/{'c' * 90}.jpg", "\u00fc\u4e2d.jpg"]
    for name, form in FORMATS.items():
        pack = opened(tmp_path / f"{name}.tar", tar_of(dict.fromkeys(names, b"x"), form=form))
        assert list(pack.names) == names
    names.append(f"{'d' * 300}/{'e' * 300}.jpg")
    for name in ("gnu", "pax"):
        data = tar_of(dict.fromkeys(names, b"x"), form=FORMATS[name])
        assert contents(opened(tmp_path / f"{name}.tar", data)) == dict.fromkeys(names, b"x")
    # A size in base 256, as GNU writes those of 8 GB and more.
    header = bytearray(tar_of({"a": b"xyz"}))
    header[124:136] = b"\x80" + (3).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    assert contents(opened(tmp_path / "base.tar", bytes(header))) == {"a": b"xyz"}
    # A checksum of bytes with a sign, as old programs wrote it.
    header[:2] = b"\xff\0"
    header[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in header[:512])
    header[148:156] = b"%06o\0 " % signed
    assert opened(tmp_path / "sign.tar", bytes(header)).names == ["\udcff"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", COMPRESS)
def test_many_threads_read_what_was_written(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed_tar, "_PASSED", 50_000)
    members = {f"{number}.jpg": random.Random(number).randbytes(1500) for number in range(100)}
    pack = opened(tmp_path / f"made{suffix}", COMPRESS[suffix](tar_of(members)))
    names = list(members) + random.Random(0).sample(list(members), 5)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda name: pack.read(name, limit=LIMIT), names))
    assert read == [members[name] for name in names]


def test_forked_processes_read_what_was_written(tmp_path: Path) -> None:
    members = {f"{number}.jpg": random.Random(number).randbytes(900) for number in range(50)}
    paths = []
    for suffix in COMPRESS:
        paths.append(tmp_path / f"made{suffix}")
        opened(paths[-1], COMPRESS[suffix](tar_of(members))).read("7.jpg", limit=LIMIT)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        asked = [(path, name) for name in members for path in paths]
        read = pool.starmap(_read, asked, chunksize=20)
    assert read == [members[name] for _, name in asked]


def _read(path: Path, name: str) -> bytes:
    return packed.read(path, name, limit=LIMIT)[0]


def test_a_compressed_file_is_read_once_from_front_to_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {f"{number:03}.jpg": random.Random(number).randbytes(3000) for number in range(64)}
    pack = opened(tmp_path / "made.tgz", gzip.compress(tar_of(members)))
    starts: list[Path] = []
    real = compressed_tar._opened

    def counted(path: Path, kind: str) -> object:
        starts.append(path)
        return real(path, kind)

    monkeypatch.setattr(compressed_tar, "_opened", counted)
    names = list(members)
    for first in range(0, len(names), 8):  # nearly in order
        for name in reversed(names[first : first + 8]):
            pack.read(name, limit=LIMIT)
    assert len(starts) == 1
    # At most some of them are open at a time.
    packs = [opened(tmp_path / f"{n}.tgz", gzip.compress(tar_of(members))) for n in range(6)]
    for other in packs:
        other.read(names[3], limit=LIMIT)
    assert sum(getattr(other, "_stream") is not None for other in packs) <= 4  # noqa: B009
    assert all(contents(other) == members for other in packs)


def test_a_file_that_is_written_over_gives_no_other_bytes(tmp_path: Path) -> None:
    for suffix, compress in COMPRESS.items():
        path = tmp_path / f"made{suffix}"
        pack = opened(path, compress(tar_of({"a.jpg": b"old" * 300, "b.jpg": b"b"})))
        with path.open("r+b") as file:  # the same inode
            file.write(compress(tar_of({"b.jpg": b"new" * 300, "a.jpg": b"a"})))
            file.truncate()
        assert packed.read(path, "a.jpg", limit=LIMIT)[0] == b"a"
        assert packed.opened(path) is not pack


# -- what cannot be used -------------------------------------------------------------------


def test_what_is_no_file_or_points_elsewhere_is_left_out_and_said(tmp_path: Path) -> None:
    kinds = {"l": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "d": tarfile.CHRTYPE,
             "p": tarfile.FIFOTYPE, "s": tarfile.GNUTYPE_SPARSE, "cat": tarfile.DIRTYPE,
             "?": b"?"}  # fmt: skip
    others = []
    for name, kind in kinds.items():
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "cat/1.jpg"
        others.append(info)
    names = ["./cat//1.jpg", "/abs/2.jpg", "../up.jpg", "a/../b.jpg", "cat/3.jpg"]
    pack = opened(tmp_path / "made.tar", tar_of(dict.fromkeys(names, b"x"), others=others))
    assert list(pack.names) == ["cat/1.jpg", "abs/2.jpg", "cat/3.jpg"]
    assert pack.notes == [
        "left out, devices, 1: 'd'",
        "left out, links, 2: 'l', 'h'",
        "left out, members of an unknown kind, 1: '?'",
        "left out, names that point elsewhere or are too long, 2: '../up.jpg', 'a/../b.jpg'",
        "left out, pipes, 1: 'p'",
        "left out, sparse files, 1: 's'",
    ]
    sparse = tarfile.TarInfo("s2.jpg")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "real.jpg"}
    pack = opened(tmp_path / "made.tar", tar_of({"a.jpg": b"x"}, others=[sparse]))
    assert (pack.names, pack.notes) == (["a.jpg"], ["left out, sparse files, 1: 'real.jpg'"])


def test_how_a_file_ends_is_said(tmp_path: Path) -> None:
    whole = tar_of({"a.jpg": b"x" * 600, "b.jpg": b"y"}, form=tarfile.USTAR_FORMAT)
    path = tmp_path / "made.tar"
    assert opened(path, whole).notes == []
    assert opened(path, whole[:2560]).notes == ["cut short, or without an end mark: it has 2 files"]
    pack = opened(path, whole[:1000])
    assert pack.notes == ["cut short, or without an end mark: it has 1 file"]
    with pytest.raises(UnreadableImageError, match=r"cut short: .* after 488 of 600 bytes"):
        pack.read("a.jpg", limit=LIMIT)
    assert "bytes behind its end mark" in opened(path, whole + tar_of({"c.jpg": b"z"})).notes[0]
    for empty in (b"", bytes(1024), bytes(10240)):
        pack = opened(path, empty)
        assert (list(pack.names), len(pack.members)) == ([], 0)
        with pytest.raises(ManifestError, match="There are no files"):
            sources.scan(path)


def test_near_the_cut_of_a_compressed_file_nothing_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed_tar, "_DOUBTFUL", 3000)
    members = {f"{n}.jpg": random.Random(n).randbytes(1500) for n in range(6)}
    whole = gzip.compress(tar_of(members, form=tarfile.USTAR_FORMAT)[: 6 * 2048 + 1024])
    pack = opened(tmp_path / "a.tgz", whole[:-9])
    said = "the compressed file is cut short: no checksum vouches for the last 1 file, which"
    assert pack.notes[-1].startswith(said)
    assert all(pack.read(f"{n}.jpg", limit=LIMIT) == members[f"{n}.jpg"] for n in range(5))
    with pytest.raises(UnreadableImageError, match="cut short: no checksum"):
        pack.read("5.jpg", limit=LIMIT)
    assert "5.jpg" not in dict(pack.texts((".jpg",), limit=LIMIT))


def test_after_a_damaged_header_the_next_one_counts(tmp_path: Path) -> None:
    members = {f"{number}.jpg": bytes([number]) * 600 for number in range(3)}
    whole = bytearray(tar_of(members, form=tarfile.USTAR_FORMAT))
    whole[1536 + 130] ^= 1
    pack = opened(tmp_path / "made.tar", bytes(whole))
    assert contents(pack) == {name: members[name] for name in ("0.jpg", "2.jpg")}
    said = "a damaged header at byte 1,536: 1,536 bytes, up to the next one, are lost"
    assert pack.notes == [said]
    whole[3072 + 130] ^= 1
    said = "a damaged header at byte 1,536: what follows is lost"
    assert opened(tmp_path / "made.tar", bytes(whole)).notes == [said]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.tar", b"\x89PNG" + bytes(range(256)) * 8, "Expected a tar file at .*a.tar"),
        ("a.tar.gz", gzip.compress(b"no tar" * 500), "Expected a tar file at .*a.tar.gz"),
        ("a.tgz", gzip.compress(tar_of({"a": b""}))[:-8] + bytes(8), "by gzip.* damaged bytes"),
        ("a.tar", b"PK\x03\x04" + bytes(60), "Received: a zip file. Rename it to end in .zip"),
    ],
    ids=["png", "text", "checksum", "zip"],
)
def test_what_is_no_tar_file_is_refused(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ManifestError, match=said):
        sources.scan(tmp_path / name)


def test_bytes_tell_how_a_file_is_compressed(tmp_path: Path) -> None:
    members = {"a.jpg": b"x"}
    for suffix, compress in COMPRESS.items():
        path = tmp_path / f"from{suffix}" / "misnamed.tar"
        assert contents(opened(path, compress(tar_of(members)))) == members
    if not any(map(find_spec, ("zstandard", "backports"))):
        (tmp_path / "a.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
        with pytest.raises(ConfigError, match="zstd, which needs a library"):
            sources.scan(tmp_path / "a.tar.zst")


def test_members_of_one_name(tmp_path: Path) -> None:
    for suffix, compress in COMPRESS.items():
        members = [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3"), ("b.jpg", b"2"),
                   ("B.jpg", b"4")]  # fmt: skip
        pack = opened(tmp_path / f"made{suffix}", compress(tar_of(members)))
        assert list(pack.names) == ["a.jpg", "b.jpg", "B.jpg"]
        assert pack.notes[0].startswith("names that several members have, 2: 'a.jpg', 'b.jpg'")
        assert (pack.read("b.jpg", limit=LIMIT), pack.read("B.jpg", limit=LIMIT)) == (b"2", b"4")
        with pytest.raises(UnreadableImageError, match="hold different bytes"):
            pack.read("a.jpg", limit=LIMIT)
        with pytest.raises(UnreadableImageError, match="not in the tar file"):
            pack.read("c.jpg", limit=LIMIT)
        with pytest.raises(UnreadableImageError, match="too large"):
            pack.read("b.jpg", limit=0)


# -- packed folders ------------------------------------------------------------------------


def write_shards(folder: Path, shards: Mapping[str, Mapping[str, bytes]]) -> Path:
    for name, members in shards.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(tar_of(members))
    packed.forget()
    return folder


def test_shards_are_one_folder_with_splits_by_name(tmp_path: Path) -> None:
    data = write_shards(
        tmp_path,
        {
            f"{split}-{number}.tar": {f"{label}/1.jpg": b"x" for label in ("cat", "dog")}
            for split in ("train", "val")
            for number in range(2)
        },
    )
    listing = sources.scan(data)
    assert list(rows(listing).items())[:3] == [
        ("train-0.tar/cat/1.jpg", ("cat", "train")),
        ("train-0.tar/dog/1.jpg", ("dog", "train")),
        ("train-1.tar/cat/1.jpg", ("cat", "train")),
    ]
    assert len(listing) == 8 and listing.root == tmp_path
    said = "Splits are told from the names of files: train (2 files), val (2 files)"
    assert said in listing.notes
    assert set(sources.scan(data, layout="classes").splits) == {""}
    write_shards(tmp_path, {"more.tar": {"cat/2.jpg": b"y"}})
    with pytest.raises(ManifestError, match=r"Received both: 'train-0.tar'.* and not 'more.tar'"):
        sources.scan(data)
    assert len(sources.scan(data, layout="splits")) == 8
    lone = write_shards(tmp_path / "lone", {f"test-{n}.tar": {"cat/1.jpg": b"x"} for n in range(2)})
    assert set(sources.scan(lone).splits) == {""}
    assert sources.scan(lone).notes[0].startswith("All files are named as test, so that")


def test_folders_of_several_splits_in_a_file_go_before_its_name(tmp_path: Path) -> None:
    inside = {"train.tar": ("train", "val"), "test.tar": ("test",)}
    shards = {
        name: {f"{split}/{label}/1.jpg": b"x" for split in splits for label in ("cat", "dog")}
        for name, splits in inside.items()
    }
    folders = sources.scan(write_shards(tmp_path / "folders", shards))
    expected = [(label, split) for split in ("test", "train", "val") for label in ("cat", "dog")]
    assert list(rows(folders).values()) == expected
    assert folders.notes == ("Splits are the folders in packed files, not what these are called",)
    samples = {
        name: {k: v for path in members for k, v in sample(path[:-4], "cat").items()}
        for name, members in shards.items()
    }
    with_cls = sources.scan(write_shards(tmp_path / "samples", samples))
    assert [split for _, split in rows(with_cls).values()] == [split for _, split in expected]
    assert folders.notes[0] in with_cls.notes
    by_name = sources.scan(tmp_path / "folders", layout="classes")
    assert set(by_name.labels) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (("x/train/cat/1", "x/val/cat/1", "x/train/dog/1"), ("y/test/cat/1", "y/test/dog/1")),
        (("cat/train/1", "cat/val/1"), ("cat/1", "dog/1")),
        (("cat/1", "dog/1"), ("test/1", "dev/1")),
        (("train/1", "val/1"), ("1", "2")),
    ],
    ids=["wrapped apart", "below classes", "only in one", "loose"],
)
def test_where_folders_do_not_say_every_split_names_of_files_do(
    train: tuple[str, ...], test: tuple[str, ...], tmp_path: Path
) -> None:
    inside = {"train.tar": train, "test.tar": test}
    for kind in ("folders", "samples"):
        shards = {
            name: {f"{path}.jpg": b"x" for path in paths} if kind == "folders"
            else {k: v for path in paths for k, v in sample(path, "cat").items()}
            for name, paths in inside.items()
        }  # fmt: skip
        listing = sources.scan(write_shards(tmp_path / kind, shards))
        for path, split in zip(listing.paths, listing.splits, strict=True):
            assert split == path.partition(".")[0]


def test_nothing_but_packed_files_within_one_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of({"in/b.zip": b"x", "c.tar.gz": b"x"}))
    with pytest.raises(ManifestError, match=r"not entered, 2: 'in/b\.zip', 'c\.tar\.gz'"):
        sources.scan(tmp_path / "a.tar")


def test_a_file_per_class_and_numbered_files(tmp_path: Path) -> None:
    one = {"1.jpg": b"x"}
    names = [f"{split}/{label}.tar" for split in ("train", "test") for label in ("cat", "dog")]
    classes = write_shards(tmp_path / "a", dict.fromkeys(names, one))
    found = rows(sources.scan(classes))
    assert found["train/cat.tar/1.jpg"] == ("cat", "train")
    assert found["test/dog.tar/1.jpg"] == ("dog", "test")
    numbered = write_shards(tmp_path / "b", {f"s-{n}.tar": one for n in range(3)})
    assert set(sources.scan(numbered).labels) == {""}
    assert sorted(set(sources.scan(numbered, layout="classes").labels)) == ["s-0", "s-1", "s-2"]
    imagenet = write_shards(
        tmp_path / "c", {f"n0{n}.tar": {"1.jpg": b"x"} for n in (1440764, 1443537)}
    )
    assert sorted(set(sources.scan(imagenet).labels)) == ["n01440764", "n01443537"]


@pytest.mark.parametrize("kind", ["folders", "samples"])
def test_folders_around_packed_files_are_classes_as_if_unpacked_in_them(
    tmp_path: Path, kind: str
) -> None:
    def shard(name: str) -> dict[str, bytes]:
        return {f"{name}.jpg": b"x"} if kind == "folders" else sample(name, json=b"{}")

    names = [f"{label}/p{n}.tar" for label in ("cat", "dog") for n in range(2)]
    data = write_shards(tmp_path / "a", dict.fromkeys(names, shard("1")))
    listing = sources.scan(data)
    assert {path: label for path, (label, _) in rows(listing).items()} == {
        f"{name}/1.jpg": name[:3] for name in names
    }
    assert "Folders around packed files are classes: 'cat', 'dog'" in listing.notes
    split = [f"{split}/{name}" for split in ("train", "test") for name in names]
    write_shards(tmp_path / "b", dict.fromkeys(split, shard("1")))
    assert set(rows(sources.scan(tmp_path / "b")).values()) == {
        (label, split) for label in ("cat", "dog") for split in ("train", "test")
    }
    # With folders inside as well, either may be the classes.
    write_shards(tmp_path / "c", dict.fromkeys(names, shard("indoor/1") | shard("outdoor/1")))
    with pytest.raises(ManifestError, match=r"such files in several .*: 'cat', 'dog'") as refused:
        sources.scan(tmp_path / "c")
    assert "--layout classes takes the folders around them" in str(refused.value.hint)
    listing = sources.scan(tmp_path / "c", layout="classes")
    assert {label for label, _ in rows(listing).values()} == {"cat", "dog"}
    assert "Folders around packed files are classes: 'cat', 'dog'" in listing.notes
    # A file beside the folders is of no class.
    write_shards(tmp_path / "d", {"0.tar": shard("1"), "more/1.tar": shard("1")})
    with pytest.raises(ManifestError, match=r"'0\.tar' beside folders with others"):
        sources.scan(tmp_path / "d")
    assert sources.scan(tmp_path / "d", layout="classes").labels == ["", "more"]
    # Names of the files say splits, or some of them do.
    named = [f"{label}/{split}-0.tar" for label in ("cat", "dog") for split in ("train", "val")]
    write_shards(tmp_path / "e", dict.fromkeys(named, shard("1")))
    listing = sources.scan(tmp_path / "e")
    assert {path.rpartition("/")[0]: row for path, row in rows(listing).items()} == {
        name: (name[:3], name[4:].partition("-")[0]) for name in named
    }
    assert any("names of files: train (2 files), val (2 files)" in n for n in listing.notes)
    write_shards(tmp_path / "e", {"cat/more.tar": shard("1")})
    with pytest.raises(ManifestError, match="to be named as splits, or none"):
        sources.scan(tmp_path / "e")
    # One split alone is none, of which nothing is to be said here.
    write_shards(tmp_path / "g", {f"{label}/train.tar": shard("1") for label in ("cat", "dog")})
    listing = sources.scan(tmp_path / "g")
    assert set(rows(listing).values()) == {("cat", ""), ("dog", "")}
    assert not any("--layout splits" in note for note in listing.notes)
    with pytest.raises(ManifestError, match="Received: 'cat', 'dog'") as refused:
        sources.scan(tmp_path / "g", layout="splits")
    assert "Leave --layout out" in refused.value.hint


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (("part-00", "part-01"), {""}),
        (("train/shard1", "test/shard2"), {""}),
        (("0", "1"), {"0", "1"}),
        (("class1", "class2"), {"class1", "class2"}),
        (("cat/part-0", "dog/part-0"), {"cat", "dog"}),
    ],
)
def test_numbered_parts_of_a_data_set_are_no_classes(
    folders: tuple[str, ...], labels: set[str], tmp_path: Path
) -> None:
    data = write_shards(tmp_path, {f"{folder}/0.tar": {"1.jpg": b"x"} for folder in folders})
    listing = sources.scan(data)
    assert {label for label, _ in rows(listing).values()} == labels
    assert {split for _, split in rows(listing).values()} == {
        folder.partition("/")[0] if "/s" in folder else "" for folder in folders
    }
    assert set(sources.scan(data, layout="classes").labels) == {
        folder.partition("/")[0] for folder in folders
    }


def test_split_folders_around_class_folders_of_packed_files(tmp_path: Path) -> None:
    places = [f"{split}/{label}/0.tar" for split in ("train", "test") for label in ("cat", "dog")]
    data = write_shards(tmp_path, {place: {"1.jpg": b"x"} for place in places})
    for layout in ("auto", "splits"):
        found = set(rows(sources.scan(data, layout=layout)).values())
        assert found == {(label, split) for label in ("cat", "dog") for split in ("train", "test")}


def test_folders_around_packed_files_with_splits_above_and_classes_inside(tmp_path: Path) -> None:
    shard = {"cat/1.jpg": b"x", "dog/1.jpg": b"y"}
    places = [f"{split}/{group}/0.tar" for split in ("train", "test") for group in ("a", "b")]
    data = write_shards(tmp_path, dict.fromkeys(places, shard))
    with pytest.raises(ManifestError) as refused:
        sources.scan(data)
    assert "--layout classes takes the folders around them for classes ('test', 'train'); " in str(
        refused.value.hint
    )
    assert "--layout splits those named as splits for splits" in str(refused.value.hint)
    found = set(rows(sources.scan(data, layout="classes")).values())
    assert found == {("train", ""), ("test", "")}
    found = set(rows(sources.scan(data, layout="splits")).values())
    assert found == {(label, split) for label in ("cat", "dog") for split in ("train", "test")}


def test_a_damaged_shard_is_left_out_and_said(tmp_path: Path) -> None:
    data = write_shards(tmp_path, {"s-0.tar": {"cat/1.jpg": b"x", "dog/in.tar": b"y"}})
    (data / "s-1.tar").write_bytes(b"nothing of the kind" * 100)
    (data / "README.md").write_text("about")
    (data / "s-0.idx").write_text("an index of DALI's")
    listing = sources.scan(data)
    assert listing.paths == ["s-0.tar/cat/1.jpg"]
    assert listing.notes[0] == (
        "Packed files within packed files are not entered, 1: 's-0.tar/dog/in.tar'"
    )
    assert listing.notes[1].startswith("Left out, 1: 's-1.tar' (Expected a tar file at")
    assert listing.notes[2] == "Left out, beside packed files: 'README.md', 's-0.idx'"
    (data / "s-0.tar").unlink()
    with pytest.raises(ManifestError, match="No packed file could be read"):
        sources.scan(data)


def test_rows_of_a_compressed_file_are_in_stored_order_and_that_is_said(tmp_path: Path) -> None:
    names = ["dog/2.jpg", "cat/9.jpg", "dog/1.jpg"]
    (tmp_path / "a.tgz").write_bytes(gzip.compress(tar_of(dict.fromkeys(names, b"x"))))
    listing = sources.scan(tmp_path / "a.tgz")
    assert listing.paths == names and list(listing.labels) == ["dog", "cat", "dog"]
    assert "Compressed as a whole" in listing.notes[0] and "'a.tgz'" in listing.notes[0]


# -- samples -------------------------------------------------------------------------------


def sample(key: str, label: str | None = None, **others: bytes) -> dict[str, bytes]:
    beside = {} if label is None else {f"{key}.cls": label.encode()}
    return {f"{key}.jpg": f"{key}{label}".encode(), **beside,
            **{f"{key}.{kind}": data for kind, data in others.items()}}  # fmt: skip


def test_samples_with_a_cls(tmp_path: Path) -> None:
    members = {
        **sample("a", "3\n"),
        **sample("b", " 10 ", txt=b"a cat"),
        **sample("c"),
        "d.cls": b"3",
        **sample("e", "\x00\x01"),
        "f.png": b"f1", "f.jpg": b"f2", "f.cls": b"3",
        "g.JPG": b"g", "g.seg.png": b"mask", "g.cls": b"3",
    }  # fmt: skip
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    listing = sources.scan(tmp_path / "a.tar")
    assert rows(listing) == {
        "a.jpg": ("3", ""), "b.jpg": ("10", ""), "c.jpg": ("", ""), "e.jpg": ("", ""),
        "g.JPG": ("3", ""),
    }  # fmt: skip
    assert listing.notes == (
        "Labels are from the .cls of each sample; they are numbers, and are taken for the names "
        "of classes",
        "Samples without a label, which are never trained or scored on: 2",
        "Left out, images beside that of their sample, 1: 'a.tar/g.seg.png'",
        "Left out, labels that are no name and no number, 1: 'a.tar/e'",
        "Left out, samples with several images, 1: 'a.tar/f (png, jpg)'",
        "Left out, samples without an image, 2: 'a.tar/d', 'a.tar/f'",
        "Members of other kinds are not read: .txt (1)",
    )
    chosen = sources.scan(tmp_path / "a.tar", image_column="png")
    assert rows(chosen) == {"f.png": ("3", "")}


def test_a_name_with_two_labels_is_left_out(tmp_path: Path) -> None:
    twice = [*sample("a", "cat").items(), *sample("a", "dog").items(), *sample("b", "cat").items()]
    (tmp_path / "a.tar").write_bytes(tar_of(twice))
    listing = sources.scan(tmp_path / "a.tar")
    assert rows(listing) == {"b.jpg": ("cat", "")}
    assert "Left out, samples with two labels, 1: 'a.tar/a'" in listing.notes


def test_samples_with_a_json(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"

    def scanned(records: list[object], **chosen: str) -> Manifest:
        members: dict[str, bytes] = {}
        for number, record in enumerate(records):
            members |= sample(f"{number}", json=json.dumps(record).encode())
        path.write_bytes(tar_of(members))
        packed.forget()
        return sources.scan(path, **chosen)

    listing = scanned([{"label": "cat", "id": 7}, {"label": 3}, {"label": None}, [], {"id": 8}])
    assert list(listing.labels) == ["cat", "3", "", "", ""]
    assert listing.notes[:3] == (
        "Labels are from 'label' in the .json of each sample",
        "Samples without a label, which are never trained or scored on: 3",
        "Left out, labels that are no name and no number, 2: 'a.tar/2', 'a.tar/3'",
    )
    two = [{"label": 3, "class_name": "cat"}]
    with pytest.raises(ManifestError, match=r"one key .*'class_name', 'label'") as refused:
        scanned(two)
    assert "--label-column class_name" in str(refused.value.hint)
    with pytest.raises(ManifestError, match=r"one key .*'cls', 'label'"):
        scanned([{"label": 3}, {"cls": 3}])
    assert list(scanned(two, label_column="class_name").labels) == ["cat"]
    with pytest.raises(ManifestError, match=r"--label-column: .*'what'; there are 'class_name'"):
        scanned(two, label_column="what")
    assert "say nothing of labels, only 'url'" in scanned([{"url": "x"}]).notes[0]


def test_samples_in_folders_have_the_splits_and_classes_of_a_folder(tmp_path: Path) -> None:
    where = [f"{split}/{label}/{split}-{label}" for split in ("train", "test") for label in "ab"]
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of({k: v for key in where for k, v in sample(key, json=b"{}").items()}))
    found = {f"{key}.jpg": (key[-1], key.partition("/")[0]) for key in where}
    assert rows(sources.scan(path)) == found
    in_one = {k: v for key in where for k, v in sample(f"data/{key}", json=b"{}").items()}
    (tmp_path / "b.tar").write_bytes(tar_of(in_one))
    assert rows(sources.scan(tmp_path / "b.tar")) == {f"data/{k}": v for k, v in found.items()}
    with_cls = {k: v for key in where for k, v in sample(f"data/{key}", key[-1]).items()}
    (tmp_path / "c.tar").write_bytes(tar_of(with_cls))
    listing = sources.scan(tmp_path / "c.tar")
    assert rows(listing) == {f"data/{k}": v for k, v in found.items()}
    note = "Splits are told from the folders in packed files: train (2 images), test (2 images)"
    assert note in listing.notes
    assert not any(sources.scan(tmp_path / "c.tar", layout="classes").splits)
    (tmp_path / "d.tar").write_bytes(tar_of(sample("cat/1", "3") | sample("dog/2", "3")))
    assert not any(sources.scan(tmp_path / "d.tar").splits)
    with pytest.raises(ManifestError, match="in folders that are named as splits"):
        sources.scan(tmp_path / "d.tar", layout="splits")


def test_an_image_beside_the_class_folders_takes_no_label_of_the_others(tmp_path: Path) -> None:
    members = sample("cat/1", json=b'{"iso": 1}') | sample("dog/2", json=b"{}")
    members["cover.jpg"] = b"x"
    for name in ("a", "b"):
        write_shards(tmp_path / name, {f"s-{n}.tar": members for n in range(1 + (name == "b"))})
        listing = sources.scan(tmp_path / name)
        labels = {path.partition("/")[2]: label for path, (label, _) in rows(listing).items()}
        assert labels == {"cat/1.jpg": "cat", "cover.jpg": "", "dog/2.jpg": "dog"}
        assert any(
            note.startswith("Images in no class folder but in ")
            and note.endswith(
                f"have no label and are never trained or scored on: {len(listing) // 3}"
            )
            for note in listing.notes
        )


def test_a_cls_that_is_of_no_sample_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of({"a.b.jpg": b"x", "a.b.cls": b"3"}))
    listing = sources.scan(tmp_path / "a.tar")
    assert rows(listing) == {"a.b.jpg": ("", "")}
    assert listing.notes == (
        "No .cls or .json of a sample says a label: images have no label",
        "Left out, labels of no sample, which is named up to the first dot and has its label in "
        "NAME.cls, 1: 'a.tar/a.b.cls'",
    )


def test_samples_by_folder_and_a_cls_before_a_json(tmp_path: Path) -> None:
    members = sample("cat/1", json=b'{"url": "x"}') | sample("dog/2", json=b"{}")
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    assert list(sources.scan(tmp_path / "a.tar").labels) == ["cat", "dog"]
    (tmp_path / "b.tar").write_bytes(tar_of(sample("1", "cat", json=b'{"label": 3}')))
    assert list(sources.scan(tmp_path / "b.tar").labels) == ["cat"]
    assert list(sources.scan(tmp_path / "b.tar", label_column="label").labels) == ["3"]
    with pytest.raises(ConfigError, match="--unlabelled: expected none for tar shards"):
        sources.scan(tmp_path / "b.tar", unlabelled=["cat"])
    (tmp_path / "c.tar").write_bytes(tar_of({"cat/1.jpg": b"x"}))
    with pytest.raises(ConfigError, match="--label-column: expected none"):
        sources.scan(tmp_path / "c.tar", label_column="label")
    (tmp_path / "d.tar").write_bytes(tar_of({"1.jpg": b"x", "1.png": b"y", "1.cls": b"3"}))
    with pytest.raises(ManifestError, match="Expected samples of one image each"):
        sources.scan(tmp_path / "d.tar")


def test_a_cut_shard_costs_one_image(
    tmp_path: Path, command: Command, fake_network: FakeEncoder
) -> None:
    members = {}
    for number in range(4):
        members[f"{number}.cls"] = b"cat" if number % 2 else b"dog"
        members[f"{number}.png"] = image(number, tmp_path / "images")
    whole = tar_of(members, form=tarfile.USTAR_FORMAT)
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(members["3.png"]) + 100])
    flags = ("--weights", "random", "--image-size", 32)
    status, result = command("extract", tmp_path / "cut.tar", "--store", tmp_path / "s", *flags)
    assert (status, result["encoded"], result["skipped"]) == (0, 3, 1)
    (error,) = result["errors"]
    assert error["path"] == "3.png" and "cut short: the tar file ends" in error["reason"]
    assert any("cut short, or without an end mark" in note for note in result["notes"])
    status, result = command("extract", tmp_path / "cut.tar", "--store", tmp_path / "t", *flags,
                             "--on-error", "raise")  # fmt: skip
    assert status == 2 and "'3.png': cut short" in result["error"]["message"]


def test_what_is_read_ahead_does_not_miss_small_or_large_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for near, much, little in ((0, 1, 1), (600, 512, 512), (1 << 16, 1 << 20, 1 << 12)):
        monkeypatch.setattr(tar_file, "_NEAR", near)
        monkeypatch.setattr(tar_file, "_MUCH", much)
        monkeypatch.setattr(tar_file, "_LITTLE", little)
        members = {f"{n}.cls": bytes([n]) * (n * 97 % 3000) for n in range(60)}
        pack = opened(tmp_path / "a.tar", tar_of(members))
        assert contents(pack) == members == dict(pack.texts((".cls",), limit=LIMIT))


def test_a_listing_is_dropped_where_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_shards(
        tmp_path, {f"s-{n}.tar": {f"cat/{m}.jpg": b"%d" % m for m in range(9)} for n in range(4)}
    )
    monkeypatch.setattr(packed, "_KEPT", 20)
    listing = sources.scan(data)
    assert len(packed._opened) == 2
    for row in range(len(listing)):
        expected = listing.paths[row].rpartition("/")[2][:1].encode()
        assert reading.read(listing, row).data == expected
    assert place.exists(data, "s-3.tar/cat/8.jpg") and not place.exists(data, "s-3.tar/cat/9.jpg")


def test_what_can_only_be_read_forward_is_known_from_a_manifest(tmp_path: Path) -> None:
    whole = tar_of({"cat/1.jpg": b"x", "dog/1.jpg": b"y"})
    (tmp_path / "a.tgz").write_bytes(gzip.compress(whole))
    (tmp_path / "b.tar").write_bytes(whole)
    alone = sources.scan(tmp_path / "a.tgz")
    assert reading.forward_only(alone) == [str(tmp_path / "a.tgz")]
    assert reading.forward_only(sources.scan(tmp_path)) == [str(tmp_path / "a.tgz")]
    assert reading.forward_only(sources.scan(tmp_path / "b.tar")) == []
    with Photos(alone, 8, "squash", augment_seed=None) as photos:
        (note,) = photos.notes()
    assert "in random order" in note and "a.tgz" in note and "gunzip" in note
