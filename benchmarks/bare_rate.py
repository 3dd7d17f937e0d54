"""Images a second of one engine on preloaded batches; a part of ``end_to_end.py``.

Usage: python benchmarks/bare_rate.py --engine openvino [--precision bfloat16] [--backbone NAME]
The rate is the difference of a long and a short loop, two batches under way at a time.
"""

import argparse
import json
import time
from collections import deque

import numpy as np

from pipeline import engines
from pipeline.backbones import frozen
from pipeline.engines.encoder import Encoder, Images


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--save-graph", help="also write the network as a TensorFlow graph")
    options = parser.parse_args()
    engine, _ = engines.resolve(options.engine)
    side, batch = options.image_size, options.batch_size
    name = options.backbone
    loaded = frozen.load(name, weights="random", seed=0, image_size=side, pooling="avg")
    if options.save_graph:
        from pipeline.engines.graph import frozen_graph

        with open(options.save_graph, "wb") as file:  # noqa: PTH123
            file.write(frozen_graph(loaded)[0].SerializeToString())
    encoder = engines.create(engine, loaded, batch_size=batch, precision=options.precision)
    images = np.random.default_rng(0).integers(0, 256, (4 * batch, side, side, 3), dtype=np.uint8)
    short = max(1, options.images // (4 * batch))
    long = max(short + 1, options.images // batch)
    loop(encoder, images, short)
    seconds = loop(encoder, images, long) - loop(encoder, images, short)
    rate = (long - short) * batch / seconds
    result = {"backbone": name, "engine": engine, "images_per_second": rate}
    print(json.dumps({**result, "device": encoder.device}))


def loop(encoder: Encoder, images: Images, batches: int) -> float:
    """Encode some batches; return the seconds."""
    size = encoder.batch_size
    began = time.perf_counter()
    under_way = deque()
    for number in range(batches):
        first = number * size % len(images)
        under_way.append(encoder.submit(images[first : first + size]))
        if len(under_way) >= 2:
            under_way.popleft()()
    for collect in under_way:
        collect()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
