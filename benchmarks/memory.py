"""Peak memory of stage 1: whether it grows with the data set, and what the real network takes.

Usage: python benchmarks/memory.py [--real]
"""

import argparse
import tempfile
from pathlib import Path

from common import ROOT, command, note, photo_folder, report, tiny_folder

FAKE = ROOT / "benchmarks" / "fake_network.py"


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--real", action="store_true", help="also ResNet50 on 200 photos")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = work / "images"
        peaks = {}
        for count in (options.small, options.large):
            have = sum(1 for _ in folder.rglob("*.png")) if folder.exists() else 0
            tiny_folder(folder, count - have, first=have)
            arguments = ("extract", folder, "--weights", "random", "--image-size", 32)
            seconds, result = command(FAKE, *arguments, "--store", work / f"store-{count}")
            peaks[count] = result["peak_bytes"] / 1e6
            note(f"{count:,} images: {peaks[count]:.0f} MB, {seconds:.0f} s")
        results = {
            "peak_mb": {str(count): round(peak, 1) for count, peak in peaks.items()},
            "growth_mb": round(peaks[options.large] - peaks[options.small], 1),
        }
        if options.real:
            results["real_peak_mb"] = real(work)
    report("memory", vars(options), results)


def real(work: Path) -> dict[str, float]:
    """Return the peak of a real extraction at batch 32, by engine."""
    photos = photo_folder(work / "photos", 200, 0)
    peaks = {}
    for engine in ("keras", "openvino"):
        arguments = ("extract", photos, "--weights", "random", "--engine", engine)
        _, result = command(
            ROOT / "benchmarks" / "peak.py", *arguments, "--store", work / f"real-{engine}"
        )
        peaks[engine] = round(result["peak_bytes"] / 1e6, 1)
        note(f"{engine}: {peaks[engine]:.0f} MB")
    return peaks


if __name__ == "__main__":
    main()
