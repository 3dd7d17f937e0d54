"""Features the way Keras' documentation does it; the peer in ``end_to_end.py``.

Usage: python benchmarks/keras_idiom.py FOLDER
``waited`` is how long ``predict`` went on after its last batch. tf.data tunes itself in a thread
that sleeps 10, 20, 40 ms and so on, and mostly is not woken at the end: ``predict`` then returns
5.1, 10.2, 20.5 or 41 seconds after it began, whatever the network took.
"""

import json
import sys
import time

import keras

SIDE = 224


def main() -> None:
    """Encode a folder; print the shape of the features."""
    network = keras.applications.ResNet50(weights=None, include_top=False, pooling="avg")
    dataset = keras.utils.image_dataset_from_directory(
        sys.argv[1], image_size=(SIDE, SIDE), batch_size=32, shuffle=False, verbose=False
    )
    preprocess = keras.applications.resnet50.preprocess_input
    ends: list[float] = []
    note = keras.callbacks.LambdaCallback(
        on_predict_batch_end=lambda batch, logs: ends.append(time.perf_counter())
    )
    features = network.predict(dataset.map(lambda x, y: preprocess(x)), verbose=0, callbacks=[note])
    print(json.dumps({"shape": features.shape, "waited": time.perf_counter() - ends[-1]}))


if __name__ == "__main__":
    main()
