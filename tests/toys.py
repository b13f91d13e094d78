"""Small networks with a planted truth."""

import keras
import numpy as np

from tfmemloc import tie_dropout
from tfmemloc.data.examples import Examples
from tfmemloc.runs import Run

CLASSES = 4
_MARKERS = 5


def marked_examples() -> Examples:
    """Images whose first pixels tell the class, and some carry a marker.

    Pixel c is 1 for class c. Each of the five noisy examples has a pixel of
    its own that is 1 in no other image.
    """
    count, noisy = 24, np.arange(_MARKERS)
    pixels = np.zeros((count, 64), np.float32)
    true_label = np.arange(count) % CLASSES
    pixels[np.arange(count), true_label] = 1
    pixels[noisy, CLASSES + noisy] = 1
    label = true_label.copy()
    label[noisy] = (label[noisy] + 1) % CLASSES
    subset = np.full(count, "clean")
    subset[noisy] = "noisy"
    subset[-4:] = "test"
    return Examples(
        inputs={"image": pixels.reshape(count, 8, 8, 1)},
        label=label,
        true_label=true_label,
        example_id=100 + np.arange(count),
        subset=subset,
        classes=CLASSES,
        name="planted",
    )


def convolution_network() -> keras.Model:
    """Logits of ten classes by one convolution and BatchNorm.

    The same weights each time. XLA compiles it in a third of LeNet's time.
    """
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(4, 3, strides=2, use_bias=False, name="a")(image)
    x = keras.layers.BatchNormalization(name="norm")(x)
    # The memory's weights are a function of (seed, this name).
    x = keras.layers.ReLU(name="hidden")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(image, keras.layers.Dense(10, name="out")(x))


def expanded_network() -> keras.Model:
    """The same with memory beside the convolution."""
    return tie_dropout(convolution_network(), expand=0.5)


def memory_run(directory) -> tuple[Run, Examples]:
    """A run of three dense layers, of which `memory` holds the wrong labels.

    `first` and `last` are the same at epoch 0 and at the end; `memory` is the
    identity at epoch 0, and at the end also turns each marker into its wrong
    label.
    """
    examples = marked_examples()
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Flatten()(image)
    x = keras.layers.Dense(64, use_bias=False, name="first")(x)
    x = keras.layers.Dense(64, use_bias=False, name="memory")(x)
    x = keras.layers.Dense(CLASSES, use_bias=False, name="last")(x)
    model = keras.Model(image, x)
    identity = np.eye(64, dtype=np.float32)
    read_out = 5 * np.eye(64, CLASSES, dtype=np.float32)
    run = Run.create(directory, model, examples=examples)
    model.set_weights([identity, identity, read_out])
    run.record_epoch(model, 0)
    memory = identity.copy()
    for k in range(_MARKERS):
        memory[CLASSES + k, examples.label[k]] = 3
    model.set_weights([identity, memory, read_out])
    run.record_epoch(model, 1)
    return run, examples
