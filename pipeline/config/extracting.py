"""Options of stage 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pipeline.config import fields, spreading

# What a network of one's own may expect of pixels.
PREPROCESSINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "caffe": "BGR minus the channel means of ImageNet",
        "clip": "RGB from 0 to 1, minus CLIP's means, over its standard deviations",
        "none": "RGB from 0 to 255, as decoded",
        "tf": "RGB from -1 to 1",
        "torch": "RGB from 0 to 1, minus ImageNet's means, over its standard deviations",
        "unit": "RGB from 0 to 1",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions:
    """Options of ``extract``."""

    data: str = fields.path(
        "",
        "folder with one sub-folder per class, split folders above it, a CSV "
        "path,label[,split][,group], tar or zip files of these, WebDataset shards, Parquet or "
        "Arrow files, or a folder of Hugging Face or TensorFlow Datasets; on this machine or at an "
        "address such as s3://bucket/photos",
        "DATA",
        positional=True,
        required=True,
    )
    store: str | None = fields.path(
        None,
        "feature store to write or add to: a folder, or an address such as s3://bucket/store "
        "(default: stores/<base name of DATA>)",
        "DIR",
    )
    manifest: str | None = fields.path(
        None, "write the manifest here instead of STORE/manifest.csv", "FILE"
    )
    layout: str = fields.choice(
        "auto",
        ("auto", "classes", "splits"),
        "what the top folders of DATA are; 'auto' goes by their names, and refuses a mixture",
    )
    unlabelled: tuple[str, ...] = fields.texts(
        (),
        "folder, beside those of the classes, whose images have no label: they are extracted, "
        "never trained on, and may be suggested; repeat the flag for several",
        "NAME",
    )
    image_column: str | None = fields.text(
        None,
        "column of a Parquet or Arrow table that the images are in, or what their names end in in "
        "tar shards, such as jpg, where several may be",
        "NAME",
    )
    label_column: str | None = fields.text(
        None,
        "column of a Parquet or Arrow table that the labels are in, or where tar shards have them "
        "(cls, or a key of their .json), where several may be",
        "NAME",
    )
    merge_labels: bool = fields.switch(
        "merge labels that differ only in blanks, capitals, encoding or how a number is written"
    )
    backbone: str = fields.path(
        "resnet50", "pretrained network without its top, or a .keras or .onnx file", "NAME|PATH"
    )
    preprocessing: str | None = fields.choice(
        None, tuple(PREPROCESSINGS), "what the network of a .keras or .onnx file expects of pixels"
    )
    output: str | None = fields.text(
        None, "output of an .onnx file that holds the features, where it has several", "NAME"
    )
    weights: str = fields.path(
        "imagenet",
        "'imagenet' (downloaded once; those of efficientnetlite0 to 2 come with the extra 'lite'), "
        "'random' (untrained, drawn from --seed) or a weights file",
        "imagenet|random|PATH",
    )
    image_size: int = fields.integer(224, "side of the square given to the backbone, in pixels", 32)
    resize: str = fields.choice(
        "squash",
        ("squash", "crop", "pad"),
        "how an image becomes a square: squash it, crop its middle (at 8/7 of the size), or pad it "
        "with white; part of the identity",
    )
    pooling: str = fields.choice("avg", ("avg", "max"), "pooling over the last feature map")
    engine: str = fields.text(
        "auto", "what runs the backbone: keras, openvino or onnx; 'auto' takes the fastest", "NAME"
    )
    precision: str = fields.choice(
        "float32",
        ("float32", "tf32", "bfloat16", "float16", "int8"),
        "arithmetic of the backbone; refused where the device does not have it; int8 is calibrated "
        "on the data's own images and needs openvino, and the extra 'int8' for a new store",
    )
    views: tuple[str, ...] = fields.texts(
        (),
        "augmented view to store beside the image as it is (flip, crop1 to crop8); repeat the flag "
        "for several",
        "NAME",
    )
    batch_size: int = fields.integer(32, "images per call of the backbone", 1)
    workers: int | None = fields.integer(
        None,
        "reading threads (default: one per processor; of images at addresses 16, or 128; with "
        "--executor ray, 2 in every decoding task)",
        1,
    )
    executor: str = spreading.executor("what encodes: this process, or the nodes of a Ray cluster")
    address: str | None = spreading.address()
    actor_cores: int | None = spreading.actor_cores()
    on_error: str = fields.choice("skip", ("skip", "raise"), "what to do with an image that is bad")
    max_errors: int | None = fields.integer(None, "stop when more images than this are bad", 0)
    seed: int = fields.integer(0, "seed of random weights", 0)
    rehash: bool = fields.switch("read and hash every file again, also those that look unchanged")
    dry_run: bool = fields.switch("show what would be done, with time and disk, and write nothing")
