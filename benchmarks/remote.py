"""Images per second from a slow server, by the number of reading threads.

A server in a process of its own waits before each answer, as a storage far away does. Images are
listed by a CSV of addresses, read, hashed and decoded; an encoder then computes on every processor
for some milliseconds per image, or not at all.

Usage: python benchmarks/remote.py [--images 400] [--latency 0.05] [--encoder 0 0.01]
       [--threads 2 8 16 32 64 128]
"""

import argparse
import asyncio
import io
import multiprocessing
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from common import note, report
from PIL import Image

from pipeline.images import reading, sources
from pipeline.images.manifest import Manifest
from pipeline.images.views import PLAIN

SIZE = 224
BATCH = 32


def main() -> None:
    """Serve, read with each number of threads, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--encoder", type=float, nargs="+", default=[0.0, 0.01],
                        help="seconds per image that one processor computes")  # fmt: skip
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 8, 16, 32, 64, 128])
    options = parser.parse_args()
    mine, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs, options.latency), daemon=True
    )
    server.start()
    port = mine.recv()
    with tempfile.TemporaryDirectory() as work:
        table = Path(work, "photos.csv")
        lines = [f"http://127.0.0.1:{port}/{row}.jpg,a" for row in range(options.images)]
        table.write_text("\n".join(["path,label", *lines]))
        began = time.monotonic()
        listing = sources.scan(table)
        rates: dict[str, Any] = {"listed_per_second": len(listing) / (time.monotonic() - began)}
        for cost in options.encoder:
            rates[f"encoder of {1000 * cost:g} ms"] = {
                threads: rate(listing, threads, cost) for threads in options.threads
            }
    server.terminate()
    report("remote", vars(options), {**rates, "default_threads": reading.num_threads(listing)})


def rate(listing: Manifest, threads: int, cost: float) -> float:
    """Return images per second."""
    began = time.monotonic()
    files = reading.in_threads(partial(pixels, listing), range(len(listing)), threads)
    for place, (_, future) in enumerate(files, start=1):
        future.result()
        if place % BATCH == 0:
            compute(BATCH * cost)
    found = len(listing) / (time.monotonic() - began)
    note(f"{threads} threads, {1000 * cost:g} ms: {found:.0f} images/s")
    return round(found, 1)


def pixels(listing: Manifest, row: int) -> object:
    """Read and decode one image."""
    file = reading.decoded(partial(reading.read, listing, row), lambda key: [PLAIN], SIZE, "squash")
    return file.pixels[PLAIN]


def compute(seconds: float) -> None:
    """Keep one processor busy, without the lock of Python, as an engine does."""
    matrix = np.ones((256, 256), np.float32)
    ended = time.thread_time() + seconds
    while time.thread_time() < ended:
        matrix @ matrix


def serve(pipe: Connection, latency: float) -> None:
    """Answer every request with a photo of noise, 500 by 375 pixels, after a while."""
    from aiohttp import web

    noise = np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG")
    data = file.getvalue()

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(latency)
        return web.Response(body=data, headers={"ETag": f'"{request.path}"'})

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{name}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
