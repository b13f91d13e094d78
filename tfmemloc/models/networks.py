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
from tfmemloc.models import lenet, resnet, transformer, vit
from tfmemloc.models.factory import LayerFactory, Logits

_NETWORKS = {
    "lenet": lenet.lenet,
    "resnet9": resnet.resnet9,
    "resnet18": resnet.resnet18,
    "resnet50": resnet.resnet50,
    "vit": vit.vit,
    "transformer": transformer.transformer,
}
TEXT = ("transformer",)  # Networks of tokens; all others see pictures.


def build(
    config: ModelConfig,
    input_shape: tuple[int, ...],
    classes: int,
    *,
    dtype: str = "float32",
    synchronized: bool = False,
) -> keras.Model:
    """Builds a network with the paper's initialization and dropout places.

    Args:
        config: which network.
        input_shape: (height, width, channels) of an image, from 8x8 up; or
            (time,), the number of tokens that a transformer sees.
        classes: number of logits.
        dtype: Keras dtype policy; logits are float32 always.
        synchronized: share BatchNorm statistics between replicas, so that
            several devices train as one would.

    Returns:
        A functional model of `{"image": float [batch, height, width,
        channels], "example_id": int64 [batch]}` with logits [batch, classes];
        or of `{"tokens": int64 [batch, time], ...}` with logits of the next
        token [batch, time, classes].

    Raises:
        ValueError: the inputs are too small for the network, or of another
            kind.

    Example:
        >>> model = build(ModelConfig(name="resnet9"), (32, 32, 3), 10)
        >>> model.count_params()
        2277568
    """
    _check_shape(config, input_shape)
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
    name = "tokens" if config.name in TEXT else "image"
    dtypes = {"tokens": "int64", "image": "float32"}
    given = keras.Input(input_shape, dtype=dtypes[name], name=name)
    example_id = keras.Input((), dtype="int64", name="example_id")
    factory = LayerFactory(config, example_id, dtype, synchronized)
    logits = _NETWORKS[config.name](given, classes, factory)
    logits = Logits(dtype="float32", name="head.logits")(logits, example_id)
    return graph.TiedModel(
        {name: given, "example_id": example_id}, logits, name=config.name
    )


def _check_shape(config: ModelConfig, shape) -> None:
    """Refuses inputs that the network cannot see."""
    is_shape = isinstance(shape, tuple | list) and all(
        is_integer(size) for size in shape
    )
    if config.name in TEXT:
        if not (is_shape and len(shape) == 1 and shape[0] >= 1):
            raise ValueError(
                f"The network {config.name!r} expected sequences of tokens: "
                f"(time,). Received: input_shape={shape!r}."
            )
        return
    if not (
        is_shape and len(shape) == 3 and min(shape[:2]) >= 8 and shape[2] >= 1
    ):
        raise ValueError(
            "Expected images of at least 8x8 pixels and 1 channel: (height, "
            f"width, channels). Received: input_shape={shape!r}."
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
        ValueError: the examples are no pictures, or for a transformer no
            tokens.
    """
    kinds = input_kinds(examples)
    wanted = "tokens" if model_config.name in TEXT else "picture"
    if list(kinds.values()) != [wanted]:
        raise ValueError(
            f"{examples.name} has the inputs "
            + ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            + ". Expected one "
            + _WANTED[wanted]
            + f" for the network {model_config.name!r}. Tokens are what "
            "'transformer' takes. For other inputs pass a Keras model of your "
            "own to `train`, or record your `fit` with `RecordRun`. Grey "
            "pictures need a last axis: x[..., np.newaxis]."
        )
    (rows,) = examples.inputs.values()
    return build(
        model_config,
        rows.shape[1:],
        examples.classes,
        dtype=training.dtype if training else "float32",
        synchronized=synchronized,
    )


_WANTED = {
    "tokens": "row of tokens [time]",
    "picture": "picture [height, width, channels]",
}
