"""The tutorial's own way, a frozen ResNet50 inside the model; the peer in ``real_photos.py``.

Every epoch runs every image through the frozen network again.

Usage: python benchmarks/tutorial_script.py FOLDER [--epochs 10]
"""

import argparse
import json

import keras

SIDE = 224


def main() -> None:
    """Train on four fifths of a folder of class folders; print the accuracy on the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    train, val = keras.utils.image_dataset_from_directory(
        options.folder, label_mode="categorical", image_size=(SIDE, SIDE), batch_size=32,
        validation_split=0.2, subset="both", seed=0, verbose=False,
    )  # fmt: skip
    classes = len(train.class_names)
    network = keras.applications.ResNet50(
        weights=None, include_top=False, pooling="avg", input_shape=(SIDE, SIDE, 3)
    )
    network.trainable = False
    layers = [keras.layers.Dense(1024, "relu"), keras.layers.Dense(classes, "softmax")]
    model = keras.Sequential([network, *layers])
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])

    def prepared(dataset: object) -> object:
        preprocess = keras.applications.resnet50.preprocess_input
        return dataset.map(lambda x, y: (preprocess(x), y))

    history = model.fit(
        prepared(train), validation_data=prepared(val), epochs=options.epochs, verbose=0
    )
    print(json.dumps({"val_accuracy": history.history["val_accuracy"][-1]}))


if __name__ == "__main__":
    main()
