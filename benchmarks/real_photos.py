"""What defaults are worth on photos of one's own: accuracy by split seed, and the time to a head.

For each folder: stage 2 by split seed (mean and standard deviation), and against it, on the same
splits: fitting again on train and val, stored views, ways to resize, and fine-tuning, which is
compared in pairs on the test images (McNemar) with stage 2 and with the tutorial's recipe. The
headline is the time from photos to a scored head, and to a second one, against the tutorial's own
script on the same images, in one run; its weights are random, which costs the same time.

Usage: python benchmarks/real_photos.py DATA... [--seeds 5] [--parts heads finetune]
       [--work FOLDER] [--finetune-flags="--learning-rate 1e-4"] [--quick]
With --work, features and runs stay there, and what is there is not made again.
"""

import argparse
import shlex
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, command, note, ratio, report
from finetune_outcomes import SUFFIXES, paired, pipeline, scores, spread, training

from pipeline.runs.run import Run

PEER = ROOT / "benchmarks/tutorial_script.py"
VIEWS = ("flip", "crop1", "crop2")
# What train-head does otherwise, by part; nothing is the default.
VARIANTS = {
    "refit": {"refit": ["--refit"]},
    "views": {
        "augment": [part for view in VIEWS for part in ("--augment", view)],
        "average": [part for view in VIEWS for part in ("--average", view)],
    },
}
RESIZES = ("squash", "crop", "pad")
# Its runs are those of every other part by default too, and are made once.
DEFAULT = RESIZES[0]
PARTS = ("heads", "refit", "views", "resize", "finetune", "headline")


def main() -> None:
    """Run the parts that are asked for on every folder and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path, help="folders of class or split folders")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, default=5, help="of split and training")
    parser.add_argument("--heads", nargs="+", default=["dense", "linear", "logreg", "ridge", "knn"])
    parser.add_argument("--backbone", default="efficientnetlite0")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--finetune-flags", default="", help="more flags of our fine-tuning")
    parser.add_argument("--no-tutorial", action="store_true", help="of fine-tuning: only ours")
    parser.add_argument("--photos", type=int, default=1000, help="of the headline")
    parser.add_argument("--repeats", type=int, default=1, help="of the headline")
    parser.add_argument("--epochs", type=int, default=10, help="of the tutorial's script")
    parser.add_argument("--work", type=Path, help="where features and runs stay")
    parser.add_argument("--quick", action="store_true", help="one seed, an epoch, few photos")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.photos, options.epochs = 1, 40, 1
        options.finetune_flags = "--epochs 1"
    with tempfile.TemporaryDirectory() as temporary:
        found = {}
        for data in options.data:
            folder = Folder(data, (options.work or Path(temporary)) / data.name, options)
            found[data.name] = {part: getattr(folder, part)() for part in options.parts}
    given = {**vars(options), "data": [str(data) for data in options.data]}
    report("real_photos", given, {"data": found})


class Folder:
    """One folder of photos, where its features and runs are, and what is measured on it."""

    def __init__(self, data: Path, work: Path, options: argparse.Namespace) -> None:
        self.data, self.work, self.options = data, work, options

    def heads(self) -> dict[str, Any]:
        """Every head as it is by default."""
        return self._by_head(self._stage_two(self._store(), DEFAULT, []))

    def refit(self) -> dict[str, Any]:
        """Fit once more on train and val."""
        return self._variants("refit", self._store())

    def views(self) -> dict[str, Any]:
        """Stored views to train on, and to average over."""
        return self._variants("views", self._store(views=VIEWS))

    def resize(self) -> dict[str, Any]:
        """Ways to make a photo square."""
        return {
            rule: self._by_head(self._stage_two(self._store(rule), rule, [])) for rule in RESIZES
        }

    def finetune(self) -> dict[str, Any]:
        """Fine-tuning by default and by the tutorial's recipe, each from its own stage 2."""
        self._stage_two(self._store(), DEFAULT, [])
        found = [self._finetuned(seed) for seed in range(self.options.seeds)]
        names = [name for name in found[0] if name in ("default", "tutorial")]
        summary = {
            name: {
                f"{split}_{score}": spread([item[name][split][score] for item in found])
                for split in ("val", "test")
                for score in ("accuracy", "log_loss")
            }
            for name in ("stage_two", *names)
        }
        recommended = [item["default"]["against_stage_two"]["recommended"] for item in found]
        return {"by_seed": found, "summary": summary, "recommended": recommended}

    def headline(self) -> dict[str, Any]:
        """Seconds from photos to a scored head, and to a second, with ResNet50 at 224 pixels."""
        photos = self._some_photos()
        ways = {
            "first_head": partial(self._first_head, photos),
            "second_head": self._second_head,
            "tutorial": lambda: command(PEER, photos, "--epochs", self.options.epochs)[0],
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.options.repeats):
            for name, way in ways.items():
                seconds[name].append(round(way(), 2))
                note(f"{self.data.name}, {name}: {seconds[name][-1]:.1f} s")
        return {
            "photos": len(list(photos.rglob("*.*"))),
            "seconds": seconds,
            "tutorial_over_first_head": ratio(seconds["tutorial"], seconds["first_head"]),
            "tutorial_over_second_head": ratio(seconds["tutorial"], seconds["second_head"]),
        }

    def _store(self, rule: str = DEFAULT, views: Iterable[str] = ()) -> Path:
        store = self.work / f"store-{rule}"
        more = [part for view in views for part in ("--views", view)]
        chosen = self.options
        pipeline("extract", self.data, "--store", store, "--backbone", chosen.backbone, "--weights",
                 chosen.weights, "--image-size", chosen.image_size, "--resize", rule,
                 *more)  # fmt: skip
        return store

    def _stage_two(self, store: Path, name: str, flags: list[str]) -> list[dict[str, Any]]:
        more = [*(part for head in self.options.heads for part in ("--head", head)), *flags]
        found = []
        for seed in range(self.options.seeds):
            seeds = ("--split-seed", seed, "--seed", seed)
            train = ("train-head", "--store", store, "--run", self._run(name, seed))
            found.append(pipeline(*train, *seeds, *more))
        return found

    def _run(self, name: str, seed: int) -> Path:
        return self.work / f"run-{name}-{seed}"

    def _variants(self, part: str, store: Path) -> dict[str, Any]:
        return {
            name: self._by_head(self._stage_two(store, name, flags))
            for name, flags in VARIANTS[part].items()
        }

    def _by_head(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the spread of each head's scores over the seeds."""
        found: dict[str, Any] = {}
        for head in self.options.heads:
            records = [result["heads"][head] for result in results]
            found[head] = {
                f"test_{score}": spread([record["test"][score] for record in records])
                for score in ("accuracy", "log_loss")
            } | {"fit_seconds": round(float(np.median([r["fit_seconds"] for r in records])), 2)}
            note(f"{self.data.name}, {head}: {found[head]}")
        return found

    def _finetuned(self, seed: int) -> dict[str, Any]:
        run, flags = self._run(DEFAULT, seed), shlex.split(self.options.finetune_flags)
        ways: dict[str, list[str]] = {"default": flags}
        if not self.options.no_tutorial:
            ways["tutorial"] = ["--preset", "tutorial"]
        results = {
            name: pipeline("finetune", run, "--run", f"{run}-{name}", "--seed", seed, *more)
            for name, more in ways.items()
        }
        for name, result in results.items():
            note(f"{self.data.name}, seed {seed}, {name}: {result['finetune']['verdict']['text']}")
        (start,) = set(results["default"]["heads"]) - {"finetune"}
        found = {
            "starting_head": start,
            "stage_two": scores(results["default"]["heads"][start]),
            **{name: training(result) for name, result in results.items()},
        }
        if "tutorial" in results:
            runs = (Run.open(Path(f"{run}-{name}")) for name in ways)
            found["default_against_tutorial"] = paired(*runs)
        return found

    def _some_photos(self) -> Path:
        """Link as many photos as the headline takes, the same share of each class."""
        folder = self.work / f"photos-{self.options.photos}"
        paths = sorted(path for path in self.data.rglob("*") if path.suffix.lower() in SUFFIXES)
        step = max(1, len(paths) / self.options.photos)
        for place in range(min(len(paths), self.options.photos)):
            path = paths[int(place * step)]
            link = folder / path.parent.name / f"{place:05}-{path.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path.resolve())
        return folder

    def _first_head(self, photos: Path) -> float:
        self.headline_store = Path(tempfile.mkdtemp(dir=self.work)) / "store"
        extract = partial(command, "-m", "pipeline", "extract", photos, "--weights", "random")
        seconds = extract("--store", self.headline_store, "--json", "--quiet")[0]
        return seconds + self._head("dense")

    def _second_head(self) -> float:
        return self._head("logreg")

    def _head(self, head: str) -> float:
        run = self.headline_store.parent / head
        return command("-m", "pipeline", "train-head", "--store", self.headline_store, "--run", run,
                       "--head", head, "--json", "--quiet")[0]  # fmt: skip


if __name__ == "__main__":
    main()
