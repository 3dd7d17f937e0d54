"""Threads, forks and pickles: one classifier for all threads of a process, and for no other."""

import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_photos
from processes import WarmPython

import pipeline
from pipeline import heads
from pipeline.cli.main import main
from pipeline.engines import ENGINES
from pipeline.errors import PipelineError
from pipeline.serving.classifier import Classifier

THREADS = 8


def succeed(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments] + ["--quiet"]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: None) -> Path:
    folder = tmp_path_factory.mktemp("threads")
    write_photos(folder / "photos", 8)
    flags = ("--weights", "random", "--image-size", 32, "--store", folder / "store")
    succeed("extract", folder / "photos", *flags, "--views", "flip")
    names = ("logreg", "knn", "ridge")
    run = [flag for name in names for flag in ("--head", name)]
    succeed("train-head", "--store", folder / "store", "--run", folder / "run", *run)
    averaged = ("--run", folder / "averaged", "--head", "ridge", "--average", "flip")
    succeed("train-head", "--store", folder / "store", *averaged)
    return folder


def photos(made: Path) -> list[str]:
    return sorted(str(path) for path in (made / "photos").rglob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("run", ["run", "averaged"])
def test_one_classifier_gives_every_thread_its_own_answers(
    made: Path, engine: str, run: str
) -> None:
    classifier = Classifier.load(made / run, "ridge", engine=engine, batch_size=3, workers=1)
    paths = photos(made)
    expected = classifier.predict_proba(paths)
    assert len(np.unique(expected.round(4), axis=0)) > 5  # others' answers would show
    rng = np.random.default_rng(0)
    asked = [rng.permutation(len(paths))[: 1 + number % 7] for number in range(60)]

    def answers(order: np.ndarray) -> np.ndarray:
        return classifier.predict_proba([paths[place] for place in order])

    with ThreadPoolExecutor(THREADS) as pool:
        for order, found in zip(asked, pool.map(answers, asked), strict=True):
            np.testing.assert_allclose(found, expected[order], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(ENGINES))
def test_one_encoder_gives_every_thread_the_rows_of_its_own_images(made: Path, engine: str) -> None:
    encoder = Classifier.load(made / "run", engine=engine, batch_size=9).encoder
    images = np.random.default_rng(1).integers(0, 256, (9, 32, 32, 3), np.uint8)
    expected = np.stack([encoder(image[np.newaxis])[0] for image in images])
    scale = np.abs(expected).max()

    def encoded(seed: int) -> float:
        order = np.random.default_rng(seed).permutation(9)[: 1 + seed % 9]
        first, second = encoder.submit(images[order]), encoder.submit(images[order[::-1]])
        differences = (second() - expected[order[::-1]], first() - expected[order])
        return float(max(np.abs(difference).max() for difference in differences))

    with ThreadPoolExecutor(THREADS) as pool:
        assert max(pool.map(encoded, range(90))) < 1e-5 * scale


@pytest.mark.slow
@pytest.mark.parametrize("name", ["knn", "logreg", "ridge"])
def test_heads_and_load_may_be_shared(made: Path, name: str) -> None:
    X, y, _ = pipeline.load(made / "store")
    head = heads.load(made / "run" / "heads" / name)
    expected = head.predict_proba(X)

    def same(number: int) -> bool:
        again, labels, _ = pipeline.load(made / "store")
        rows = slice(number % 5, number % 5 + 7)
        np.testing.assert_allclose(head.predict_proba(X[rows]), expected[rows], rtol=1e-4)
        return bool(np.array_equal(again, X) and np.array_equal(labels, y))

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(same, range(24)))


FORKED = """
import os, sys, warnings
import pipeline, tiny_resnet
from pipeline.errors import PipelineError
warnings.simplefilter("ignore")
run, engine, photo = sys.argv[1:]
with tiny_resnet.in_place_of_resnet50():
    classifier = pipeline.Classifier.load(run, engine=engine)
classifier.predict(photo)
child = os.fork()
if child == 0:
    try:
        classifier.predict(photo)
    except PipelineError as error:
        os._exit(7 if "fork" in str(error) and "spawn" in error.hint else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(classifier.predict(photo).predictions[0].label)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_forked_process_gets_an_error_and_its_parent_goes_on(made: Path, engine: str) -> None:
    photo = photos(made)[0]
    process = WarmPython("-c", FORKED, made / "run", engine, photo)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert out.split() == [Classifier.load(made / "run").predict(photo).predictions[0].label]


@pytest.mark.slow
def test_a_pickled_classifier_is_loaded_again_from_its_run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    classifier = Classifier.load("run", "ridge", batch_size=5)
    data = pickle.dumps(classifier)
    assert len(data) < 2000
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(data)
    assert (again.name, again.encoder.batch_size) == ("ridge", 5)
    paths = photos(made)
    np.testing.assert_array_equal(again.predict_proba(paths), classifier.predict_proba(paths))
    assert copy.deepcopy(again).name == "ridge"


WORKERS = """
import sys
from concurrent.futures import ProcessPoolExecutor
import multiprocessing, pipeline
if __name__ == "__main__":
    run, *paths = sys.argv[1:]
    classifier = pipeline.Classifier.load(run)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        (row,) = pool.map(classifier.predict_proba, [paths])
    assert (abs(row - classifier.predict_proba(paths)) < 1e-6).all()
    print("equal")
"""


@pytest.mark.slow
def test_a_worker_process_can_be_given_a_classifier(made: Path, tmp_path: Path) -> None:
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    # The worker is a new process all the same.
    out, said = WarmPython(script, made / "run", *photos(made)[:4]).communicate(timeout=120)
    assert out == "equal\n", said


def test_one_made_by_hand_cannot_be_pickled() -> None:
    anything: Any = None
    made = Classifier(encoder=anything, head=anything, name="x", classes=("a",), image_size=32,
                      resize="squash")  # fmt: skip
    with pytest.raises(TypeError, match="load"):
        pickle.dumps(made)


def test_the_process_is_looked_at_before_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.engines.base import EngineEncoder

    class Engine(EngineEncoder):
        engine = "none"

    loaded: Any = type("Loaded", (), {"dim": 3, "image_size": 32})
    encoder = Engine(loaded, batch_size=2)
    encoder.check(np.zeros((1, 32, 32, 3), np.uint8))
    here = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    with pytest.raises(PipelineError, match="forked"):
        encoder.check(np.zeros((1, 32, 32, 3), np.uint8))
