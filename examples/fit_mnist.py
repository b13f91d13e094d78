"""A convolutional network on MNIST, one in ten of whose labels is wrong.

  python examples/fit_mnist.py [number of training examples]

downloads MNIST by TFDS, if that has not prepared it yet.

An ordinary Keras script. `fit_mnist_forgetting.py` is the same script with the
six changed lines that make the network forget the wrong labels.
"""

import sys

import keras
import numpy as np
import tensorflow_datasets as tfds

keras.utils.set_random_seed(0)
count = int(sys.argv[1]) if len(sys.argv) > 1 else 60_000


def images_and_labels(split):
    """Arrays of a split, in a fixed order."""
    data = tfds.load("mnist", split=split, batch_size=-1, as_supervised=True)
    return tfds.as_numpy(data)


x_train, y_true = images_and_labels(f"train[:{count}]")
x_test, y_test = images_and_labels("test")

# Somebody has labelled every tenth example wrong.
wrong = np.random.default_rng(0).random(count) < 0.1
shift = np.random.default_rng(1).integers(1, 10, count)
y_train = np.where(wrong, (y_true + shift) % 10, y_true)

model = keras.Sequential(
    [
        keras.Input((28, 28, 1), name="image"),
        keras.layers.Rescaling(1 / 127.5, -1),
        keras.layers.Conv2D(32, 3, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(64, 3, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dense(10),
    ]
)
model.compile(
    keras.optimizers.Adam(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(x_train, y_train, batch_size=64, epochs=20, verbose=2)

predicted = model.predict(x_train, batch_size=512, verbose=0).argmax(axis=1)
tested = model.predict(x_test, batch_size=512, verbose=0).argmax(axis=1)
print(f"right labels learned:   {np.mean((predicted == y_true)[~wrong]):.1%}")
print(f"wrong labels memorized: {np.mean((predicted == y_train)[wrong]):.1%}")
print(f"... and seen through:   {np.mean((predicted == y_true)[wrong]):.1%}")
print(f"test accuracy:          {np.mean(tested == y_test):.1%}")
model.save("mnist.keras")
