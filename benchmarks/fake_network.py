"""The command line with a network that costs nothing; a part of ``rerun.py`` and other scripts.

Usage: python benchmarks/fake_network.py [--trace FOLDER | --dim N] COMMAND ...
With ``--trace`` the result has ``opened``: how many files below FOLDER were opened. The result
also has ``peak_bytes``, the most memory that the process held. A feature row has 2,048 numbers,
or as many as ``--dim`` says.
"""

import contextlib
import io
import json
import os
import resource
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import engines
from pipeline.backbones import frozen, weights
from pipeline.cli.main import main as command_line
from pipeline.engines.encoder import Encoder, Features, Images

DIM = 2048


@dataclass
class FakeBackbone:
    """What extraction looks at of a backbone."""

    dim: int = DIM

    @property
    def weights_sha256(self) -> str:
        """Digest of the weights."""
        return weights.digest(self.arrays())

    def arrays(self) -> dict[str, Any]:
        """Return weights that nothing computes with."""
        return {"kernel": np.zeros(1, np.float32)}


class FakeEncoder(Encoder):
    """The first values of an image, padded to the features' length."""

    engine = "fake"
    device = "CPU (fake)"

    def __init__(self, batch_size: int, dim: int) -> None:
        self.batch_size = batch_size
        self.dim = dim

    def __call__(self, images: Images) -> Features:
        """Encode images."""
        features = np.zeros((len(images), self.dim), np.float32)
        values = images.reshape(len(images), -1)[:, : self.dim]
        features[:, : values.shape[1]] = values
        return features


def main() -> int:
    """Run one command and print its result with what was traced."""
    arguments = sys.argv[1:]
    traced = arguments[1] if arguments[:1] == ["--trace"] else ""
    opened: set[str] = set()
    if traced:
        del arguments[:2]
        _trace(os.path.realpath(traced) + os.sep, opened)
    dim = DIM
    if arguments[:1] == ["--dim"]:
        dim = int(arguments[1])
        del arguments[:2]
    frozen.load = lambda *_, **__: FakeBackbone(dim)
    engines.create = lambda *_, batch_size, **__: FakeEncoder(batch_size, dim)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = command_line([*arguments, "--json", "--quiet"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**json.loads(out.getvalue()), "opened": len(opened), "peak_bytes": peak}))
    return status


def _trace(folder: str, opened: set[str]) -> None:
    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(details[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(details[0]))
            if path.startswith(folder):
                opened.add(path)

    sys.addaudithook(hook)


if __name__ == "__main__":
    sys.exit(main())
