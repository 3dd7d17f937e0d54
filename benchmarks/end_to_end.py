"""Photos to stored features: against the engine alone, against Keras, against OpenVINO's tool.

Usage: python benchmarks/end_to_end.py [--quick]
Every end-to-end rate is (large - small folder) / (difference of wall-clock times), so that
start-up cancels. All peers are measured in turns, in one run. Keras' own way is also given without
the time that it waits after its last batch (see ``keras_idiom.py``), which is the fair peer.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, command, note, photo_folder, ratio, report

from pipeline import engines
from pipeline.system import machine

HERE = ROOT / "benchmarks"


def main() -> None:
    """Measure every peer in turns and print rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="where photos are kept (default: temporary)")
    parser.add_argument("--small", type=int, default=64)
    parser.add_argument("--large", type=int, default=704)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", nargs="+", default=["keras", "openvino"])
    parser.add_argument("--tool-seconds", type=int, default=8, help="of each benchmark_app")
    parser.add_argument("--tool-requests", type=int, nargs="+", default=[1, 2, 4, 8],
                        help="sizes of its requests, of which the best counts")  # fmt: skip
    parser.add_argument(
        "--pairs", action="store_true", help="only end to end against Keras' own way"
    )
    parser.add_argument("--quick", action="store_true", help="a minute, for trying it out")
    options = parser.parse_args()
    if options.quick:
        options.small, options.large, options.repeats = 16, 80, 1
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        peers = Peers(work, options)
        cases = [(engine, "float32") for engine in options.engines]
        if "openvino" in options.engines and machine.computes_in("bfloat16"):
            cases.append(("openvino", "bfloat16"))
        rates = measured(peers, cases, options.repeats, pairs=options.pairs)
    report("end_to_end", vars(options), {"rates": rates, "ratios": ratios(rates, cases)})


class Peers:
    """The ways to encode, each returning images a second."""

    def __init__(self, work: Path, options: argparse.Namespace) -> None:
        self.work = work
        self.counts = (options.small, options.large)
        self.tool_seconds, self.tool_requests = options.tool_seconds, options.tool_requests
        self.folders = [
            photo_folder(work / f"photos-{count}-{options.seed}", count, options.seed)
            for count in self.counts
        ]
        self.graph = work / "backbone.pb"

    def end_to_end(self, engine: str, precision: str) -> float:
        """Rate of ``pipeline extract`` into a new store."""
        return self._difference(lambda folder: self._extract(folder, engine, precision))

    def keras_idiom(self) -> tuple[float, float]:
        """Rate of Keras' own way: as it is, and without its wait after the last batch."""
        runs = [command(HERE / "keras_idiom.py", folder) for folder in self.folders]
        note(json.dumps({"waited": [round(result["waited"], 2) for _, result in runs]}))
        whole = dict(zip(self.folders, (seconds for seconds, _ in runs), strict=True))
        waited = dict(zip(self.folders, (result["waited"] for _, result in runs), strict=True))
        return (
            self._difference(whole.__getitem__),
            self._difference(lambda folder: whole[folder] - waited[folder]),
        )

    def bare(self, engine: str, precision: str) -> float:
        """Rate of an engine on preloaded batches."""
        images = max(160, self.counts[1])
        more = () if self.graph.exists() else ("--save-graph", self.graph)
        _, result = command(
            HERE / "bare_rate.py", "--engine", engine, "--precision", precision, "--images",
            images, *more,
        )  # fmt: skip
        return float(result["images_per_second"])

    def benchmark_app(self, precision: str) -> float:
        """Best rate of OpenVINO's own tool over some sizes of request, in throughput mode."""
        best = 0.0
        for images in self.tool_requests:
            done = subprocess.run(
                ["benchmark_app", "-m", str(self.graph), "-d", "CPU", "-hint", "throughput",
                 "-infer_precision", {"float32": "f32", "bfloat16": "bf16"}[precision],
                 "-shape", f"[{images},224,224,3]", "-t", str(self.tool_seconds)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            found = re.search(r"Throughput:\s+([0-9.]+) FPS", done.stdout)
            best = max(best, float(found.group(1)) if found else 0.0)
        return best

    def _extract(self, folder: Path, engine: str, precision: str) -> float:
        store = self.work / "store"
        shutil.rmtree(store, ignore_errors=True)
        seconds, result = command(
            "-m", "pipeline", "extract", folder, "--weights", "random", "--engine", engine,
            "--precision", precision, "--store", store, "--json", "--quiet",
        )  # fmt: skip
        note(json.dumps({key: result[key] for key in ("encoded", "seconds", "bottleneck")}))
        return seconds

    def _difference(self, seconds_of: Any) -> float:
        small, large = (seconds_of(folder) for folder in self.folders)
        return (self.counts[1] - self.counts[0]) / (large - small)


def measured(
    peers: Peers, cases: list[tuple[str, str]], repeats: int, *, pairs: bool
) -> dict[str, list[float]]:
    """Return the rates of all peers, measured in turns."""
    rates: dict[str, list[float]] = defaultdict(list)
    has_tool = shutil.which("benchmark_app") and find_spec("openvino")
    for _ in range(repeats):
        for engine, precision in cases:
            if not pairs:
                _add(rates, f"bare {engine} {precision}", peers.bare(engine, precision))
            _add(rates, f"end to end {engine} {precision}", peers.end_to_end(engine, precision))
            if engine == "openvino" and has_tool and not pairs:
                _add(rates, f"benchmark_app {precision}", peers.benchmark_app(precision))
        whole, computing = peers.keras_idiom()
        _add(rates, "keras idiom", computing)
        _add(rates, "keras idiom, with its wait", whole)
    return dict(rates)


def ratios(rates: dict[str, list[float]], cases: list[tuple[str, str]]) -> dict[str, Any]:
    """Return every ratio that the documentation quotes."""
    found = {}
    for engine, precision in cases:
        case = f"{engine} {precision}"
        whole, bare = rates[f"end to end {case}"], rates.get(f"bare {case}")
        for peer in ("keras idiom", "keras idiom, with its wait"):
            found[f"end to end / {peer}, {case}"] = ratio(whole, rates[peer])
        if bare:
            found[f"end to end / bare, {case}"] = ratio(whole, bare)
        tool = rates.get(f"benchmark_app {precision}")
        if engine == "openvino" and tool and bare:
            found[f"bare / benchmark_app, {case}"] = ratio(bare, tool)
    found["auto"] = engines.resolve("auto")
    return found


def _add(rates: dict[str, list[float]], name: str, rate: float) -> None:
    rates[name].append(round(rate, 2))
    note(f"{name}: {rate:.1f} images/s (median {np.median(rates[name]):.1f})")


if __name__ == "__main__":
    main()
