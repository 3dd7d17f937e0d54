"""Features the way PyTorch's documentation does it; the peer in ``gpu.py``.

ImageFolder, a DataLoader with a process for each processor, torchvision's ResNet50 without its
classifier, channels last; written as one ``.npy`` file.

Usage: python benchmarks/torch_idiom.py FOLDER FEATURES.npy [--precision bfloat16]
"""

import argparse
import json
import os
from contextlib import nullcontext

import numpy as np
import torch
from torchvision import datasets, models, transforms

SIDE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Encode a folder; print the shape of the features."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("features")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    takes_tf32 = options.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = takes_tf32
    network = models.resnet50(weights=None)
    network.fc = torch.nn.Identity()
    network = network.eval().cuda().to(memory_format=torch.channels_last)
    prepare = transforms.Compose(
        [
            transforms.Resize((SIDE, SIDE)),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, DEVIATION),
        ]
    )
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(options.folder, prepare), batch_size=options.batch_size,
        num_workers=len(os.sched_getaffinity(0)), pin_memory=True,
    )  # fmt: skip
    halves = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    half = halves.get(options.precision)
    context = torch.autocast("cuda", half) if half else nullcontext()
    features = []
    with torch.inference_mode(), context:
        for images, _ in loader:
            batch = images.cuda(non_blocking=True).to(memory_format=torch.channels_last)
            features.append(network(batch).float().cpu().numpy())
    stacked = np.concatenate(features)
    np.save(options.features, stacked)
    print(json.dumps({"shape": stacked.shape}))


if __name__ == "__main__":
    main()
