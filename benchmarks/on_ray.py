"""How ``extract --executor ray`` scales, and what it costs on one machine against ``local``.

``--sleeping``: a network that sleeps, so that actors need no processor; with 1 to 8 of them, the
rate over that of the sleep alone. Actors are waited for before the first part is sent, and the
first 30 % and last 5 % of the images are left out, since starting 16 processes on two cores would
be measured instead.

``--real``: ResNet50 on photos in one actor on all cores, against the executor ``local`` on others,
both into a store that keeps the converted network. Start-up is left out of both: the rate of
``ray`` is its node's, from the first part that is encoded to the last shard.

Usage: python benchmarks/on_ray.py [--sleeping 1 8] [--real] [--images 256] [--work DIR] [--quick]
"""

import argparse
import importlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from common import command, note, photo_folder, report, tiny_folder

from pipeline.config.options import CommonOptions, ExtractOptions
from pipeline.engines.encoder import Encoder, Features, Images
from pipeline.extract.stage import extract
from pipeline.system.progress import Silence

NETWORK: Final = importlib.import_module("onnx_files")  # of the tests, as common finds them
BENCHMARKS: Final = Path(__file__).resolve().parent
BATCH: Final = 32
SIZE: Final = 32
# Of one image in the network that sleeps: about what a GPU of some years ago needs for two.
SECONDS: Final = 0.02
# Of the images, those that are timed: actors are waited for, decoding processes start meanwhile.
STEADY_FROM: Final = 0.3
STEADY_TO: Final = 0.95


class SleepingEncoder(Encoder):
    """The mean colour of images, after a sleep; one batch at a time, as a GPU has it."""

    engine = "sleeping"
    device = "none"
    batch_size = BATCH
    dim = NETWORK.DIM

    def __init__(self) -> None:
        self._turn = threading.Lock()

    def __call__(self, images: Images) -> Features:
        """Encode images; see ``Encoder``."""
        with self._turn:
            time.sleep(SECONDS * len(images))
        return np.repeat(images.mean(axis=(1, 2, 3), dtype=np.float32)[:, None], self.dim, axis=1)


class Watch(Silence):
    """Progress that is timed: images are counted when the answer of a node is there."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def advance(self, **shown: object) -> None:
        """Count one image."""
        self._times.append(time.monotonic())

    def rate(self) -> float:
        """Return images per second without the start of decoding processes and the end."""
        first, last = (int(share * len(self._times)) for share in (STEADY_FROM, STEADY_TO))
        times = self._times[first:last]
        # The slope through all of them, since images come a part at a time.
        return round(float(np.polyfit(times, np.arange(len(times)), 1)[0]), 2)


def sleep_in_actors() -> None:
    """Have actors sleep; Ray calls this when a worker starts."""
    from pipeline.extract import node

    node.encoder_of = lambda job: SleepingEncoder()


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sleeping", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--images", type=int, default=256, help="photos for each executor")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each actor that sleeps")
    parser.add_argument("--work", type=Path, help="where photos and the store of --real stay")
    parser.add_argument("--prepare", action="store_true", help="make them, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="one actor that sleeps, for a second")
    options = parser.parse_args()
    if options.quick:
        options.sleeping, options.real, options.seconds = [1], False, 1.0
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        if options.sleeping and not options.prepare:
            rates = {n: asleep(n, options.seconds, Path(temporary)) for n in options.sleeping}
            ideal = {n: n / SECONDS for n in rates}
            results["sleeping"] = {
                "images_per_second": rates,
                "of_ideal": {n: round(rates[n] / ideal[n], 3) for n in rates},
            }
        if options.real or options.prepare:
            work = options.work or Path(temporary)
            results["real"] = real(work, options.images, measured=not options.prepare)
    report("on_ray", {**vars(options), "work": str(options.work)}, results)


def asleep(actors: int, seconds: float, work: Path) -> float:
    """Return images per second of some actors whose network sleeps."""
    import ray

    count = int(actors * seconds / SECONDS)
    photos = tiny_folder(work / f"tiny-{actors}", count)
    # In whose place actors sleep; it is there without TensorFlow.
    network = NETWORK.Network().save(work / "network.onnx")
    store = work / f"store-{actors}"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent)])
    hook = {"worker_process_setup_hook": "on_ray.sleep_in_actors"}
    ray.init(
        num_cpus=actors, include_dashboard=False, log_to_driver=False, runtime_env=hook,
        object_store_memory=256 << 20, logging_level="ERROR",
    )  # fmt: skip
    try:
        ray.data.DataContext.get_current().wait_for_min_actors_s = 60
        asked = ExtractOptions(
            data=str(photos), store=str(store), backbone=str(network), preprocessing="unit",
            image_size=SIZE, batch_size=BATCH, executor="ray", actor_cores=1,
        )  # fmt: skip
        watch = Watch()
        result = extract(asked, CommonOptions(), watch, started=time.monotonic())
    finally:
        ray.shutdown()
    note(f"{actors} actors: {watch.rate():.1f} images/s; {result['nodes']}")
    return watch.rate()


def real(work: Path, count: int, *, measured: bool) -> dict[str, Any]:
    """Return rates of both executors on photos of their own."""
    folders = {
        name: photo_folder(work / name, number, seed)
        for seed, (name, number) in enumerate({"first": 8, "local": count, "ray": count}.items())
    }
    if not measured:
        _extract(folders["first"], work / "store")
        return {}
    local = _extract(folders["local"], work / "store")
    note(str(local["images_per_second"]))
    on_ray = _extract(folders["ray"], work / "store", "--executor", "ray")
    (node,) = on_ray["nodes"]
    return {
        "local": local["images_per_second"],
        "ray": node["images_per_second"],
        "ratio": round(node["images_per_second"] / local["images_per_second"], 3),
        "bottlenecks": {"local": local["bottleneck"], "ray": on_ray["bottleneck"]},
        "ray_with_start_of_actors": on_ray["images_per_second"],
        "startup_seconds": {"local": local["startup_seconds"], "ray": on_ray["startup_seconds"]},
        "seconds": {"local": local["seconds"], "ray": on_ray["seconds"]},
    }


def _extract(photos: Path, store: Path, *more: object) -> dict[str, Any]:
    _, result = command(
        "-m", "pipeline", "extract", photos, "--store", store, "--manifest",
        store.with_name("manifest.csv"), "--force", "--weights", "random", *more,
        "--json", "--quiet",
    )  # fmt: skip
    return result


if __name__ == "__main__":
    sys.exit(main())
