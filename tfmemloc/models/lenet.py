"""LeNet: two convolutions and three dense layers (LeCun et al., 1998)."""

from __future__ import annotations

import keras

from tfmemloc.models.factory import LayerFactory


def lenet(image, classes: int, make: LayerFactory):
    """Logits of LeNet-5 with ReLU and max pooling; 5 layer groups.

    Tied after both convolution blocks and the first dense layer.
    """
    x = image
    for group, units in (("conv1", 6), ("conv2", 16)):
        x = _conv(x, group, make.width(units), make)
        x = make.apply(
            keras.layers.MaxPooling2D,
            x,
            f"{group}.pool",
            padding="same",
        )
        x = make.tie(x, group)
    x = make.apply(keras.layers.Flatten, x, "dense1.flatten")
    x = make.relu(make.dense(x, "dense1.dense", make.width(120)), "dense1")
    x = make.tie(x, "dense1")
    x = make.relu(make.dense(x, "dense2.dense", make.width(84)), "dense2")
    return make.dense(x, "head.dense", classes)


def _conv(x, group: str, units: int, make: LayerFactory):
    """A 5x5 convolution with bias; pads only the first, or small, images."""
    pads = group == "conv1" or min(x.shape[1:3]) < 5
    x = make.apply(
        keras.layers.Conv2D,
        x,
        f"{group}.conv",
        filters=units,
        kernel_size=5,
        padding="same" if pads else "valid",
        kernel_initializer=make.initializer(),
    )
    return make.relu(x, group)
