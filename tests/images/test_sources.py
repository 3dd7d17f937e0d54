"""The same 60 images by every road: equal keys, labels, splits, and features.

A road takes the folder of split folders above class folders, writes its images in another form,
and returns what DATA is then. To add a source, add its road.
"""

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tables
from fakes import Command, FakeEncoder, write_image
from object_store import ObjectStore, Website, set_environment

import pipeline
from pipeline.errors import ManifestError, UnreadableImageError
from pipeline.files import remote
from pipeline.files.location import Remote
from pipeline.files.remote import copies, systems
from pipeline.images import packed, place, reading, sources
from pipeline.images.manifest import Manifest
from pipeline.images.sources import samples as samples_module
from pipeline.serving.predict import list_files
from pipeline.store import scan_cache
from pipeline.store.store import Store
from pipeline.system.progress import Silence

CLASSES = ("cat", "dog", 'it\'s a 3\u20132 "tie"')
SPLITS = {"train": 14, "val": 3, "test": 3}


def folders(photos: Path, target: Path) -> str:
    return str(photos)


def table(photos: Path, target: Path) -> str:
    """A CSV, its paths relative to another folder's."""
    target.mkdir()
    lines = ["path,label,split"]
    for path in files(photos):
        label = path.parent.name.replace('"', '""')
        where = os.path.relpath(path, target).replace('"', '""')
        lines.append(f'"{where}","{label}",{path.parent.parent.name}')
    (target / "photos.csv").write_text("\n".join(lines), "utf-8")
    return str(target / "photos.csv")


def zipped(photos: Path, target: Path) -> str:
    with zipfile.ZipFile(target.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files(photos):
            archive.write(path, Path("wrapped") / path.relative_to(photos))
    return str(target.with_suffix(".zip"))


def parquet_paths(photos: Path, target: Path) -> str:
    rows = [(os.path.relpath(path, target), path) for path in files(photos)]
    columns = {
        "path": [name for name, _ in rows],
        "label": [path.parent.name for _, path in rows],
        "split": [path.parent.parent.name for _, path in rows],
    }
    return str(tables.write_parquet(target / "photos.parquet", pa.table(columns)))


def parquet_images(photos: Path, target: Path) -> str:
    """Plain bytes, in one file."""
    columns = {
        "photo": [path.read_bytes() for path in files(photos)],
        "label": [path.parent.name for path in files(photos)],
        "split": [path.parent.parent.name for path in files(photos)],
    }
    return str(tables.write_parquet(target / "photos.parquet", pa.table(columns)))


def as_hub(photos: Path, split: str) -> pa.Table:
    paths = files(photos / split)
    labels = [CLASSES.index(path.parent.name) for path in paths]
    return tables.hub_table(map(tables.image, paths), labels, CLASSES)


def parquet_folder(photos: Path, target: Path) -> str:
    """A folder as it comes from the Hub; train in two files."""
    for split in SPLITS:
        table, count = as_hub(photos, split), 2 if split == "train" else 1
        for shard, start in enumerate(range(0, table.num_rows, -(-table.num_rows // count))):
            name = f"data/{split}-{shard:05}-of-{count:05}.parquet"
            rows = table.slice(start, -(-table.num_rows // count))
            tables.write_parquet(target / name, rows)
    (target / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    return str(target)


def hub_folder(photos: Path, target: Path) -> str:
    tables.save_splits(target, {split: as_hub(photos, split) for split in SPLITS}, shards=2)
    return str(target)


def prepared(photos: Path, target: Path) -> str:
    """As TensorFlow Datasets prepares a folder."""
    splits = {
        split: [
            (path.read_bytes(), CLASSES.index(path.parent.name)) for path in files(photos / split)
        ]
        for split in SPLITS
    }
    tables.prepare(target, splits, CLASSES)
    return str(target)


def tarred(photos: Path, target: Path, suffix: str = ".tar", mode: str = "w") -> str:
    """A folder that was packed, in no order of names."""
    made = target.with_suffix(suffix)
    with tarfile.open(made, mode) as archive:
        for path in sorted(files(photos), key=lambda path: path.read_bytes()):
            archive.add(path, f"./{path.relative_to(photos)}")
    return str(made)


def tarred_and_compressed(photos: Path, target: Path) -> str:
    return tarred(photos, target, ".tar.gz", "w:gz")


def shards(photos: Path, target: Path) -> str:
    """Three packed folders, whose members have the same names."""
    for number in range(3):
        made = target / f"photos-{number:04}.tar"
        made.parent.mkdir(exist_ok=True)
        with tarfile.open(made, "w", format=tarfile.GNU_FORMAT) as archive:
            for place, path in enumerate(files(photos)[number::3]):
                where = path.parent.relative_to(photos) / f"{place}.png"
                archive.add(path, where)
    return str(target)


def samples(photos: Path, target: Path, beside: Callable[[str], dict[str, bytes]]) -> str:
    """WebDataset shards, two per split, with texts beside the images."""
    for split in SPLITS:
        for number in range(2):
            made = target / split / f"{number:05}.tar"
            made.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(made, "w") as archive:
                for place, path in enumerate(files(photos / split)[number::2]):
                    texts = beside(path.parent.name)
                    for kind, data in {"png": path.read_bytes(), **texts}.items():
                        info = tarfile.TarInfo(f"{place:06}.{kind}")
                        info.size = len(data)
                        archive.addfile(info, io.BytesIO(data))
    return str(target)


def samples_with_cls(photos: Path, target: Path) -> str:
    return samples(photos, target, lambda label: {"cls": label.encode(), "txt": b"a photo"})


def samples_with_json(photos: Path, target: Path) -> str:
    return samples(
        photos, target, lambda label: {"json": json.dumps({"label": label, "w": 1}).encode()}
    )


ROADS: dict[str, Callable[[Path, Path], str]] = {
    "folders": folders,
    "table": table,
    "zip": zipped,
    "tar": tarred,
    "tar.gz": tarred_and_compressed,
    "shards folder": shards,
    "webdataset cls": samples_with_cls,
    "webdataset json": samples_with_json,
    "parquet paths": parquet_paths,
    "parquet images": parquet_images,
    "parquet folder": parquet_folder,
    "hub folder": hub_folder,
    "tfds": prepared,
}


# Roads to addresses, below a bucket or on the web; see ``data``.
REMOTE_ROADS = {
    "s3 folder": "{bucket}/photos",
    "s3 table": "{bucket}/photos.csv",
    "s3 zip": "{bucket}/photos.zip",
    "s3 shards": "{bucket}/shards",
    "s3 addresses": "{folder}/s3.csv",
    "web table": "{web}/photos.csv",
    "web addresses": "{folder}/web.csv",
}


def files(photos: Path) -> list[Path]:
    return sorted(path for path in photos.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("roads") / "photos"
    seed = 0
    for split, count in SPLITS.items():
        for label in CLASSES:
            for number in range(count):
                seed += 1
                write_image(root / split / label / f"{number}.png", seed)
    return root


@pytest.fixture(scope="module")
def addresses(
    photos: Path, tmp_path_factory: pytest.TempPathFactory, object_store_process: ObjectStore
) -> Iterator[dict[str, str]]:
    """The same images in a bucket and on the web, with tables of them and a zip."""
    folder = tmp_path_factory.mktemp("addresses")
    site = Website(photos.parent)
    names = {"bucket": "s3://photos", "web": site.url, "folder": str(folder)}
    for name, root in (("photos", ""), ("s3", "s3://photos/"), ("web", f"{site.url}/")):
        lines = ["path,label,split"]
        for path in files(photos):
            where = f"{root}photos/{path.relative_to(photos)}"
            cells = (text.replace('"', '""') for text in (where, path.parent.name))
            lines.append(",".join(f'"{cell}"' for cell in (*cells, path.parent.parent.name)))
        (folder / f"{name}.csv").write_text("\n".join(lines), "utf-8")
    (photos.parent / "photos.csv").write_bytes((folder / "photos.csv").read_bytes())
    zipped(photos, folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, object_store_process, folder / "copies")
        systems.of(Remote("s3://photos")).mkdir("photos")
        for path in (folder / "photos.csv", folder / "photos.zip"):
            remote.upload(Remote("s3://photos") / path.name, path)
        for path in files(photos):
            remote.upload(Remote("s3://photos/photos") / str(path.relative_to(photos)), path)
        samples_with_cls(photos, folder / "shards")
        for path in files(folder / "shards"):
            remote.upload(Remote("s3://photos") / str(path.relative_to(folder)), path)
        for name in (".DS_Store", "train/cat/._0.png", "train/@eaDir/0.png", "train/cat/"):
            systems.of(Remote("s3://photos")).pipe_file(f"s3://photos/photos/{name}", b"")
    yield names
    site.close()


@pytest.fixture
def data(road: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Return DATA of a road."""
    if road in ROADS:
        return ROADS[road](photos, tmp_path / "made")
    request.getfixturevalue("object_store")
    return REMOTE_ROADS[road].format(**request.getfixturevalue("addresses"))


def by_key(manifest: Manifest) -> dict[bytes, tuple[str, str, str]]:
    rows = zip(manifest.labels, manifest.splits, manifest.statuses, strict=True)
    return dict(zip(manifest.keys.tolist(), rows, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("road", (*ROADS, *REMOTE_ROADS))
def test_every_road_leads_to_the_same_rows(
    data: str, photos: Path, tmp_path: Path, command: Command, fake_network: FakeEncoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(scan_cache, "RACY_NS", 0)
    flags = ("--weights", "random", "--image-size", 32, "--json")
    for name, given in (("folders", photos), ("other", data)):
        assert command("extract", given, "--store", tmp_path / name, *flags)[0] == 0
    plain, other = (Store.open(tmp_path / name) for name in ("folders", "other"))
    rows, expected = other.read_manifest(), plain.read_manifest()
    assert len(rows) == 60 and by_key(rows) == by_key(expected)
    keys = expected.keys
    np.testing.assert_array_equal(other.read(keys), plain.read(keys))
    # What is known is not read again, and what was read by another road is not encoded again.
    encoded = fake_network.images
    assert command("extract", data, "--store", tmp_path / "folders", *flags)[0] == 0
    monkeypatch.setattr(reading, "read", lambda *_: pytest.fail("it is known"))
    assert command("extract", data, "--store", tmp_path / "other", *flags)[0] == 0
    assert fake_network.images == encoded


@pytest.mark.slow
@pytest.mark.parametrize("road", (*ROADS, "s3 folder", "s3 shards", "s3 zip", "web table"))
def test_images_are_found_and_read_from_the_manifest_of_a_store(
    data: str, tmp_path: Path, command: Command, fake_network: FakeEncoder,
) -> None:  # fmt: skip
    store = tmp_path / "store"
    assert command("extract", data, "--store", store, "--weights", "random",
                   "--image-size", 32)[0] == 0  # fmt: skip
    rows = Store.open(store).read_manifest()
    for row in range(len(rows)):
        assert reading.is_there(rows, row)
        assert reading.read(rows, row).key.encode() == rows.keys[row]
    assert len(pipeline.load(store)[1]) == 60


def zip_of(path: Path, labels: dict[str, str]) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for number, (image, label) in enumerate(labels.items()):
            archive.writestr(f"{label}/{number}.png", image)
    return path.with_suffix(".zip")


def shard_of(path: Path, labels: dict[str, str], mode: str = "w") -> Path:
    with tarfile.open(path.with_suffix(".tar"), mode) as archive:
        for number, (image, label) in enumerate(labels.items()):
            for kind, text in {"png": image, "cls": label}.items():
                info = tarfile.TarInfo(f"{number}.{kind}")
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text.encode()))
    return path.with_suffix(".tar")


def parquet_of(path: Path, labels: dict[str, str]) -> Path:
    columns = {"photo": [image.encode() for image in labels], "label": [*labels.values()]}
    return tables.write_parquet(path.with_suffix(".parquet"), pa.table(columns))


@pytest.mark.parametrize("write", [zip_of, shard_of, parquet_of])
@pytest.mark.parametrize("is_remote", [False, True])
def test_what_was_listed_in_a_packed_file_is_not_read_from_another(
    write: Callable[[Path, dict[str, str]], Path], is_remote: bool, bucket: str, tmp_path: Path
) -> None:
    def put(labels: dict[str, str]) -> Path | Remote:
        path = write(tmp_path / "photos", labels)
        if not is_remote:
            return path
        remote.upload(Remote(f"{bucket}/{path.name}"), path)
        return Remote(f"{bucket}/{path.name}")

    data = put({"CAT": "cat", "DOG": "dog"})
    listing = sources.scan(data)
    assert [reading.read(listing, row).data for row in (0, 1)] == [b"CAT", b"DOG"]
    assert reading.read(listing, 0).state == listing.states[0]
    put({"DOG": "dog", "CAT": "cat"})
    remote.forget()
    if is_remote:  # a copy of what was listed is read as long as there is one
        assert [reading.read(listing, row).data for row in (0, 1)] == [b"CAT", b"DOG"]
        shutil.rmtree(copies.folder())
    for row in (0, 1):
        with pytest.raises(UnreadableImageError, match="changed since it was listed: run this"):
            reading.read(listing, row)
    # A manifest without states has keys, which tell what was read.
    of_a_run = replace(listing, states=())
    if reading.is_there(of_a_run, 0):
        assert reading.read(of_a_run, 0).data in (b"CAT", b"DOG")
    again = sources.scan(data)
    assert reading.find(again, 0) != reading.find(listing, 0)
    read = {again.labels[row]: reading.read(again, row).data for row in (0, 1)}
    assert read == {"cat": b"CAT", "dog": b"DOG"}


def test_a_damaged_table_beside_them_leaves_the_states_of_others(tmp_path: Path) -> None:
    parquet_of(tmp_path / "a", {"CAT": "cat", "DOG": "dog"})
    (tmp_path / "b.parquet").write_bytes(b"damaged")
    listing = sources.scan(tmp_path)
    parquet_of(tmp_path / "a", {"DOG": "dog", "CAT": "cat"})
    with pytest.raises(UnreadableImageError, match="changed since it was listed"):
        reading.read(listing, 0)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_labels_are_read_from_shards_that_the_cache_does_not_hold_together(
    mode: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_CACHE_GB", "1e-6")  # 1,000 bytes
    suffix = ".tar.gz" if mode == "w:gz" else ".tar"
    for number in range(3):
        image = os.urandom(1000).hex()
        path = shard_of(tmp_path / "shard", {image: f"class {number}"}, mode)
        remote.upload(Remote(f"{bucket}/{number}{suffix}"), path)
    listing = sources.scan(Remote(bucket))
    assert list(listing.labels) == ["class 0", "class 1", "class 2"]
    assert all(len(reading.read(listing, row).data) == 2000 for row in range(3))


@pytest.mark.parametrize("write", [zip_of, shard_of, parquet_of])
def test_the_query_of_an_address_says_nothing_of_what_is_there(
    write: Callable[[Path, dict[str, str]], Path], website: Website, tmp_path: Path
) -> None:
    path = write(tmp_path / "site/photos", {"CAT": "cat #1?", "DOG": "dog"})
    data = Remote(f"{website.url}/{path.name}?download=1")
    listing = sources.scan(data)
    read = {listing.labels[row]: reading.read(listing, row).data for row in (0, 1)}
    assert read == {"cat #1?": b"CAT", "dog": b"DOG"}
    assert all(reading.is_there(listing, row) for row in (0, 1))
    found = list_files([str(data)], Silence(), without=None)
    assert len(found) == 2 and all(place.exists(Path(), name) for name in found)
    assert not any(asked.endswith(path.name) for _, asked in website.requests)


def test_a_table_with_a_query_names_paths_beside_it(website: Website, tmp_path: Path) -> None:
    write_image(tmp_path / "site/photos/a.png", 1)
    (tmp_path / "site/photos/t.csv").write_text("path,label\na.png,cat\n")
    listing = sources.scan(Remote(f"{website.url}/photos/t.csv?raw=true"))
    assert str(listing.root) == f"{website.url}/photos" and reading.is_there(listing, 0)


def test_a_shard_that_changes_while_it_is_listed_is_said(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, place = shard_of(tmp_path / "shard", {"CAT": "cat"}), Remote(f"{bucket}/0.tar")
    remote.upload(place, path)
    told = samples_module.collect

    def after_a_change(*arguments: Any) -> Any:
        remote.upload(place, shard_of(tmp_path / "shard", {"CAT": "dog"}))
        remote.forget()
        shutil.rmtree(copies.folder())
        return told(*arguments)

    monkeypatch.setattr(samples_module, "collect", after_a_change)
    with pytest.raises(ManifestError, match="changed while it was listed"):
        sources.scan(place)


def test_what_is_no_zip_is_refused_and_a_damaged_member_is_one_bad_image(
    photos: Path, tmp_path: Path
) -> None:
    data = Path(zipped(photos, tmp_path / "made"))
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ManifestError, match=r"Expected a zip file at .*made\.zip"):
        sources.scan(data)
    changed = bytearray(whole)
    changed[200] ^= 0xFF
    data.write_bytes(changed)
    listing = sources.scan(data)
    read = [reading.decoded(lambda row=row: reading.read(listing, row), lambda key: [], 8, "squash")
            for row in range(len(listing))]  # fmt: skip
    assert [bool(file.reason) for file in read].count(True) == 1


def test_a_folder_named_as_a_packed_file_is_a_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "photos.zip/cat/1.png", 1)
    write_image(tmp_path / "photos.zip/dog/1.png", 2)
    listing = sources.scan(tmp_path / "photos.zip")
    assert list(listing.labels) == ["cat", "dog"] and reading.is_there(listing, 0)
    assert packed.split(str(tmp_path / "photos.zip/cat/1.png")) is None
