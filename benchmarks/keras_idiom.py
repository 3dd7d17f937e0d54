"""Features the way Keras' documentation does it; the peer in ``end_to_end.py``.

Usage: python benchmarks/keras_idiom.py FOLDER
"""

import json
import sys

import keras

SIDE = 224


def main() -> None:
    """Encode a folder; print the shape of the features."""
    network = keras.applications.ResNet50(weights=None, include_top=False, pooling="avg")
    dataset = keras.utils.image_dataset_from_directory(
        sys.argv[1], image_size=(SIDE, SIDE), batch_size=32, shuffle=False, verbose=False
    )
    preprocess = keras.applications.resnet50.preprocess_input
    features = network.predict(dataset.map(lambda x, y: preprocess(x)), verbose=0)
    print(json.dumps({"shape": features.shape}))


if __name__ == "__main__":
    main()
