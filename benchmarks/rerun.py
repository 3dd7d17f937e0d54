"""What a rerun costs: nothing new, and a hundred new images among many.

Usage: python benchmarks/rerun.py [--images 50000]
The network costs nothing here, so that only the pipeline's own work counts; the unchanged rerun
is the real command line. Opened files are traced by the interpreter's audit hook.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, command, note, report, tiny_folder

FAKE = ROOT / "benchmarks" / "fake_network.py"
NEW = 100
OLD = 1_600_000_000


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        note(f"Writing {options.images:,} files")
        many = aged(tiny_folder(work / "many", options.images))
        store = extract(work, many, "store")
        first, _ = command(FAKE, *store)
        note(f"First extract: {first:.1f} s")
        rerun = ("-m", "pipeline", *store, "--json", "--quiet")
        again = [command(*rerun) for _ in range(options.repeats)]
        _, traced = command(FAKE, "--trace", many, *store)
        few = aged(tiny_folder(work / "few", NEW, first=options.images))
        alone = command(FAKE, *extract(work, few, "alone"))[0]
        aged(tiny_folder(many, NEW, first=options.images))
        added, counts = command(FAKE, *store)
        start = [interpreter_start() for _ in range(options.repeats)]
    results = {
        "first_extract_seconds": round(first, 2),
        "interpreter_start_seconds": round(min(start), 3),
        "rerun_seconds": [round(seconds, 3) for seconds, _ in again],
        "rerun_beyond_start_seconds": round(min(s for s, _ in again) - min(start), 3),
        "rerun_reused": again[0][1]["reused"],
        "image_files_opened": traced["opened"],
        "fresh_extract_of_new_seconds": round(alone, 3),
        "extract_with_new_seconds": round(added, 3),
        "beyond_fresh_seconds": round(added - alone, 3),
        "encoded_of_new": counts["encoded"],
    }
    report("rerun", vars(options), results)


def extract(work: Path, data: Path, store: str) -> list[object]:
    """Return the arguments of an extract."""
    return ["extract", data, "--weights", "random", "--image-size", 32, "--store", work / store]


def aged(folder: Path) -> Path:
    """Make every file old enough to be trusted by its times, as files of users are.

    Files that are so already are not touched: that would change them.
    """
    for path in folder.rglob("*.png"):
        if path.stat().st_mtime != OLD:
            os.utime(path, (OLD, OLD))
    # Change times cannot be set; they must be two seconds old.
    time.sleep(2.1)
    return folder


def interpreter_start() -> float:
    """Return the seconds that Python needs to start and stop."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
