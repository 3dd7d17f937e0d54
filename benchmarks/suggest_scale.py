"""How long suggest takes over many unlabelled images, and how much memory.

Features like pooled ones are drawn into a store, once; the whole command is timed, with its start.

Usage: python benchmarks/suggest_scale.py [--unlabelled 100000] [--labelled 2000] [--dim 1280]
       [--n 50] [--work DIR]
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from common import ROOT, command, feature_store, note, pooled_features, report

from pipeline.store.store import Store

CLASSES = 10


def main() -> None:
    """Write a store, ask once with labels and once without, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unlabelled", type=int, default=100_000)
    parser.add_argument("--labelled", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--work", type=Path, help="keep the store here")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        if not (folder / "bare.csv").exists():
            write(folder, options)
        note("written")
        asked = ("suggest", folder / "store", "--n", options.n, "--out", folder / "out.csv",
                 "--force")  # fmt: skip
        results = {}
        for name, more in (("with_labels", ()), ("cold", ("--manifest", folder / "bare.csv"))):
            seconds, found = command(ROOT / "benchmarks/peak.py", *asked, *more)
            results[name] = {
                "seconds": round(seconds, 2),
                "peak_mb": round(found["peak_bytes"] / 1e6),
                "suggested": len(found["suggestions"]),
            }
    report("suggest_scale", vars(options), results)


def write(folder: Path, options: argparse.Namespace) -> None:
    """Write a store of which some are labelled, and beside it the manifest without any label."""
    manifest = feature_store(
        folder / "store",
        options.labelled + options.unlabelled,
        options.dim,
        lambda rows, first: pooled_features(rows, options.dim, CLASSES, first),
    )
    store = Store.open(folder / "store")
    for path, labelled in ((store.manifest_path, options.labelled), (folder / "bare.csv", 0)):
        labels = [*manifest.labels[:labelled], *[""] * (len(manifest) - labelled)]
        store.save_manifest(path, replace(manifest, labels=labels))


if __name__ == "__main__":
    main()
