"""How many images a second one ``Classifier`` classifies for one thread and for several.

Every thread calls ``predict`` with one image at a time, as a web server does; all numbers of
threads take turns in one process. The peer is one thread.

Usage: python benchmarks/threads.py [--images 96] [--engine auto] [--quick]
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import command, note, photo_folder, ratio, report

import pipeline

THREADS = (1, 2, 4, 8)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few small images, once")
    options = parser.parse_args()
    if options.quick:
        options.images, options.image_size, options.repeats = 24, 32, 1
    with tempfile.TemporaryDirectory() as temporary:
        classifier, paths = prepared(options, Path(temporary))
        rates: dict[int, list[float]] = {count: [] for count in THREADS}
        for turn in range(options.repeats):
            for count in THREADS:
                rates[count].append(images_per_second(classifier, paths, count))
            note(f"turn {turn + 1} of {options.repeats}")
    results = {
        "images_per_second": {str(count): found for count, found in rates.items()},
        "over_one_thread": {str(count): ratio(rates[count], rates[1]) for count in THREADS[1:]},
        "engine": classifier.encoder.engine,
        "device": classifier.encoder.device,
    }
    report("threads", vars(options), results)


def prepared(options: argparse.Namespace, work: Path) -> tuple[pipeline.Classifier, list[str]]:
    """Return a classifier of photos and the photos."""
    photos = photo_folder(work, options.images, options.seed)
    store, run = work / "store", work / "run"
    flags = ("--weights", "random", "--image-size", options.image_size, "--store", store)
    command("-m", "pipeline", "extract", photos, *flags, "--json", "--quiet")
    heads = ("--run", run, "--head", "logreg", "--json", "--quiet")
    command("-m", "pipeline", "train-head", "--store", store, *heads)
    classifier = pipeline.Classifier.load(run, engine=options.engine)
    paths = sorted(str(path) for path in photos.rglob("*.jpg"))
    classifier.predict(paths[:4])
    return classifier, paths


def images_per_second(classifier: pipeline.Classifier, paths: list[str], threads: int) -> float:
    """Classify every image in a call of its own, over some threads."""
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(classifier.predict, paths))
    assert all(len(item.predictions) == 1 for item in found)
    return len(paths) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
