"""The paper's networks as Keras functional models.

Each takes `{"image", "example_id"}` and gives logits. A layer is named
`<group>.<role>`, for instance `conv1.norm`: the part before the dot is its
*layer group*, the unit in which the probes rewind, retrain and account.
"""

from __future__ import annotations

import dataclasses

import keras

from tfmemloc import graph
from tfmemloc.checks import check_range, is_integer
from tfmemloc.configs import ModelConfig, TrainConfig
from tfmemloc.data.examples import Examples, input_kinds
from tfmemloc.models import lenet, resnet, vit
from tfmemloc.models.factory import LayerFactory, Logits

_NETWORKS = {
    "lenet": lenet.lenet,
    "resnet9": resnet.resnet9,
    "resnet18": resnet.resnet18,
    "resnet50": resnet.resnet50,
    "vit": vit.vit,
}


def build(
    config: ModelConfig,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    dtype: str = "float32",
    synchronized: bool = False,
) -> keras.Model:
    """Builds a network with the paper's initialization and dropout places.

    Args:
        config: which network.
        input_shape: (height, width, channels) of an image; from 8x8 up.
        classes: number of logits.
        dtype: Keras dtype policy; logits are float32 always.
        synchronized: share BatchNorm statistics between replicas, so that
            several devices train as one would.

    Returns:
        A functional model of `{"image": float [batch, height, width,
        channels], "example_id": int64 [batch]}` with logits [batch, classes].

    Raises:
        ValueError: the images are too small for the network.

    Example:
        >>> model = build(ModelConfig(name="resnet9"), (32, 32, 3), 10)
        >>> model.count_params()
        2277568
    """
    is_shape = isinstance(input_shape, tuple | list) and len(input_shape) == 3
    if not (
        is_shape
        and all(is_integer(size) for size in input_shape)
        and min(input_shape[:2]) >= 8
        and input_shape[2] >= 1
    ):
        raise ValueError(
            "Expected images of at least 8x8 pixels and 1 channel: (height, "
            f"width, channels). Received: input_shape={input_shape!r}."
        )
    check_range("classes", classes, 1, None)
    if config.places == "layers":
        plain = dataclasses.replace(
            config, places="paper", dropout="none", own_statistics=False
        )
        network = build(
            plain, input_shape, classes, dtype=dtype, synchronized=synchronized
        )
        carved = {"p_gen": config.p_gen, "rescale": config.rescale}
        return graph.tie_dropout(
            network,
            "layers",
            p_mem=config.p_mem,
            own_statistics=config.own_statistics,
            seed=config.seed,
            **({"expand": config.expand} if config.expand else carved),
        )
    image = keras.Input(input_shape, name="image")
    example_id = keras.Input((), dtype="int64", name="example_id")
    factory = LayerFactory(config, example_id, dtype, synchronized)
    logits = _NETWORKS[config.name](image, classes, factory)
    logits = Logits(dtype="float32", name="head.logits")(logits, example_id)
    return keras.Model(
        {"image": image, "example_id": example_id}, logits, name=config.name
    )


def build_network(
    model_config: ModelConfig,
    examples: Examples,
    training: TrainConfig | None = None,
    *,
    synchronized: bool = False,
) -> keras.Model:
    """Builds the network of a config for these examples, freshly initialized.

    Raises:
        ValueError: the examples are no pictures.
    """
    kinds = input_kinds(examples)
    if list(kinds.values()) != ["picture"]:
        raise ValueError(
            f"{examples.name} has the inputs "
            + ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            + f". Expected one picture [height, width, channels] for the "
            f"network {model_config.name!r}. For other inputs pass a Keras "
            "model of your own to `train`, or record your `fit` with "
            "`RecordRun`. Grey pictures need a last axis: x[..., np.newaxis]."
        )
    (rows,) = examples.inputs.values()
    return build(
        model_config,
        rows.shape[1:],
        examples.classes,
        dtype=training.dtype if training else "float32",
        synchronized=synchronized,
    )
