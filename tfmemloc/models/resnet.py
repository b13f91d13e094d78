"""ResNet-9, ResNet-18 and ResNet-50 (He et al., 2016) as the paper used them.

Strided convolutions use Keras's "same" padding, which for even sizes starts
one pixel later than PyTorch's symmetric one.
"""

from __future__ import annotations

import keras

from tfmemloc.models.factory import LayerFactory


def resnet9(image, classes: int, make: LayerFactory):
    """Logits of ResNet-9; 9 layer groups, tied after six blocks (paper, 5)."""
    wide = make.width
    x = make.tie(make.conv(image, "conv1", wide(64)), "conv1")
    x = make.conv(x, "conv2", wide(128), kernel=5, stride=2)
    x = make.tie(x, "conv2")
    x = make.tie(_residual(x, "res1", make), "res1")
    x = make.tie(make.conv(x, "conv3", wide(256)), "conv3")
    x = make.apply(keras.layers.MaxPooling2D, x, "conv3.pool", padding="same")
    x = make.tie(_residual(x, "res2", make), "res2")
    x = make.conv(x, "conv4", wide(128), padding="valid")
    x = make.tie(x, "conv4")
    x = make.apply(keras.layers.GlobalMaxPooling2D, x, "head.pool")
    x = make.dense(x, "head.dense", classes, use_bias=False)
    return make.apply(keras.layers.Rescaling, x, "head.scale", scale=0.2)


def _residual(x, name: str, make: LayerFactory):
    """Two convolutions, `<name>a` and `<name>b`, beside the identity."""
    units = x.shape[-1]
    inner = make.conv(x, f"{name}a", units)
    inner = make.conv(inner, f"{name}b", units)
    return keras.layers.Add(dtype=inner.dtype, name=f"{name}b.add")([x, inner])


def resnet18(image, classes: int, make: LayerFactory):
    """Logits of ResNet-18; 6 layer groups, tied after stages 2 and 3."""
    return _resnet(image, classes, make, (2, 2, 2, 2), _basic_block)


def resnet50(image, classes: int, make: LayerFactory):
    """Logits of ResNet-50; 6 layer groups, tied after stages 2 and 3."""
    return _resnet(image, classes, make, (3, 4, 6, 3), _bottleneck_block)


def _resnet(image, classes, make, depths, block):
    x = _stem(image, make)
    for stage, depth in enumerate(depths, start=1):
        group = f"stage{stage}"
        units = make.width(64 * 2 ** (stage - 1))
        for index in range(depth):
            stride = 2 if stage > 1 and index == 0 else 1
            x = block(x, group, f"block{index + 1}_", units, stride, make)
        if stage in (2, 3):
            x = make.tie(x, group)
    x = make.apply(keras.layers.GlobalAveragePooling2D, x, "head.pool")
    return make.dense(x, "head.dense", classes)


def _stem(image, make: LayerFactory):
    """ImageNet: 7x7 convolution and pooling, both stride 2; small: 3x3."""
    if make.config.stem == "small":
        return make.conv(image, "stem", make.width(64))
    x = make.conv(image, "stem", make.width(64), kernel=7, stride=2)
    return make.apply(
        keras.layers.MaxPooling2D,
        x,
        "stem.pool",
        pool_size=3,
        strides=2,
        padding="same",
    )


def _basic_block(x, group, role, units, stride, make):
    inner = make.conv_norm(x, group, units, 3, stride, role=f"{role}a_")
    inner = make.relu(inner, group, f"{role}a_relu")
    inner = make.conv_norm(inner, group, units, role=f"{role}b_")
    return _join(x, inner, group, role, stride, make)


def _bottleneck_block(x, group, role, units, stride, make):
    inner = make.conv_norm(x, group, units, 1, role=f"{role}a_")
    inner = make.relu(inner, group, f"{role}a_relu")
    inner = make.conv_norm(inner, group, units, 3, stride, role=f"{role}b_")
    inner = make.relu(inner, group, f"{role}b_relu")
    inner = make.conv_norm(inner, group, 4 * units, 1, role=f"{role}c_")
    return _join(x, inner, group, role, stride, make)


def _join(x, inner, group, role, stride, make):
    """Adds the shortcut, projected where the shapes differ."""
    if stride > 1 or x.shape[-1] != inner.shape[-1]:
        x = make.conv_norm(
            x, group, inner.shape[-1], 1, stride, role=f"{role}shortcut_"
        )
    total = keras.layers.Add(dtype=inner.dtype, name=f"{group}.{role}add")(
        [x, inner]
    )
    return make.relu(total, group, f"{role}relu")
