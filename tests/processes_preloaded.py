"""What the process that ``processes`` forks from has imported; computed it has nothing."""

import h5py  # noqa: F401
import openvino  # noqa: F401
import PIL.Image
import sklearn.linear_model
import sklearn.metrics  # noqa: F401
import tqdm  # noqa: F401

import pipeline.cli.main
import pipeline.extract.stage
import pipeline.finetune.stage
import pipeline.serving.predict
import pipeline.train.sweep
import pipeline.train.train_head  # noqa: F401
from pipeline.system.keras_setup import import_keras

PIL.Image.init()
import_keras()
