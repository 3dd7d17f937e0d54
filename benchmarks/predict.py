"""How fast ``pipeline predict`` classifies photos, against ``pipeline extract`` of the same.

Both are whole commands in new processes and take turns; extract fills a new store each time. Rates
are the commands' own: from the first read to the last result. Predict starts warm: the store of its
run keeps the network as the engine takes it, which extract has to build and convert first.

Usage: python benchmarks/predict.py [--images 1000] [--head logreg] [--engine auto] [--quick]
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from common import command, note, photo_folder, ratio, report

NAMES = ("images_per_second", "startup_seconds", "process_seconds")


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--head", default="logreg")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few small images, once")
    options = parser.parse_args()
    if options.quick:
        options.images, options.image_size, options.repeats = 24, 32, 1
    with tempfile.TemporaryDirectory() as temporary:
        commands = Commands(options, Path(temporary))
        commands.train()
        warm = commands.predict()
        found = measured(commands, options.repeats)
    rates = found["images_per_second"]
    results = {
        **found,
        "predict_over_extract": ratio(rates["predict"], rates["extract"]),
        "engine": warm["engine"],
        "device": warm["device"],
    }
    report("predict", vars(options), results)


class Commands:
    """The commands that are measured, on photos of their own."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options = options
        self.work = work
        self.photos = photo_folder(work, options.images, options.seed)

    def train(self) -> None:
        """Make the run that predicts; its store stays."""
        self._extract(self.work / "kept")
        command("-m", "pipeline", "train-head", "--store", self.work / "kept", "--run",
                self.work / "run", "--head", self.options.head, "--json", "--quiet")  # fmt: skip

    def extract(self) -> dict[str, Any]:
        """Run stage 1 into a new store."""
        shutil.rmtree(self.work / "store", ignore_errors=True)
        return self._extract(self.work / "store")

    def predict(self) -> dict[str, Any]:
        """Classify all photos."""
        return self._run("predict", self.work / "run", self.photos)

    def _extract(self, store: Path) -> dict[str, Any]:
        return self._run("extract", self.photos, "--store", store, "--weights", "random",
                         "--image-size", self.options.image_size)  # fmt: skip

    def _run(self, *arguments: object) -> dict[str, Any]:
        seconds, result = command(
            "-m", "pipeline", *arguments, "--engine", self.options.engine, "--json", "--quiet"
        )
        return {**result, "process_seconds": round(seconds, 3)}


def measured(commands: Commands, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Return what both commands say of themselves; the order changes with every repetition."""
    calls = {"extract": commands.extract, "predict": commands.predict}
    found: dict[str, dict[str, list[float]]] = {
        name: {peer: [] for peer in calls} for name in NAMES
    }
    order = list(calls)
    for _ in range(repeats):
        for peer in order:
            result = calls[peer]()
            for name in NAMES:
                found[name][peer].append(result[name])
            note(f"{peer}: {result['images_per_second']:.1f} images/s")
        order.reverse()
    return found


if __name__ == "__main__":
    main()
