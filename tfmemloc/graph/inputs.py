"""Which input of a model gets which array.

An input named `example_id` gets the ids, or the tie ids where examples share
their memorization units. A model with one other input gets the
examples' one input, whatever both are called; with several, each gets the
array of its name. A channel axis of one is added or taken away as it is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfmemloc.data.examples import IDS, TIE_IDS
from tfmemloc.graph.nodes import inputs_of, is_functional


def arranged(model: keras.Model, inputs: Mapping[str, Any]) -> Any:
    """Arranges inputs by name as a model takes them, in its dtypes.

    Args:
        model: any Keras model. A subclassed one, whose inputs are not known,
            gets the mapping itself.
        inputs: name -> [B, ...]; the ids under `example_id`, and `tie_id`.

    Returns:
        In the structure of the model's inputs.

    Raises:
        ValueError: an input of the model has no array, or one of another
            shape.
    """
    if not is_functional(model):
        return dict(inputs)
    given = {
        name: x for name, x in inputs.items() if name not in (IDS, TIE_IDS)
    }
    structure = inputs_of(model)
    tensors = keras.tree.flatten(structure)
    names = input_names(model)
    wanted = [name for name in names if name != IDS]
    if len(wanted) == len(given) == 1:
        given = {wanted[0]: next(iter(given.values()))}
    missing = [name for name in wanted if name not in given]
    if missing:
        raise ValueError(
            f"Model '{model.name}' has the inputs {', '.join(wanted)}. "
            f"Expected an array for each, by name. Received: "
            f"{', '.join(map(str, given)) or 'none'}; without "
            f"{', '.join(missing)}."
        )
    given[IDS] = inputs.get(TIE_IDS, inputs.get(IDS))
    found = [
        _as_input(model, name, tensor, given[name])
        for name, tensor in zip(names, tensors, strict=True)
    ]
    return keras.tree.pack_sequence_as(structure, found)


def input_names(model: keras.Model) -> list[str]:
    """The name of each input of a functional model, flattened.

    The key of a dict is the name; elsewhere it is the tensor's own. The ids
    are called `example_id` in either case.
    """
    structure = inputs_of(model)
    if not isinstance(structure, dict):
        return [tensor.name for tensor in keras.tree.flatten(structure)]
    keyed = {key: key for key in structure}
    keys = keras.tree.flatten(keyed)
    tensors = keras.tree.flatten(structure)
    return [
        IDS if tensor.name == IDS else key
        for key, tensor in zip(keys, tensors, strict=True)
    ]


def _with_channel_of(tensor, value: tf.Tensor) -> tf.Tensor:
    """A last axis of one added, or taken away, where that is all that differs.

    Grey pictures come with and without it.
    """
    more = len(tensor.shape) - value.shape.rank
    if more == 1 and tensor.shape[-1] == 1:
        return value[..., tf.newaxis]
    if more == -1 and value.shape[-1] == 1:
        return tf.squeeze(value, axis=-1)
    return value


def _as_input(model, name: str, tensor, value):
    """An array as a tensor of the input's dtype; its shape is checked."""
    if value is None:
        raise ValueError(
            f"Model '{model.name}' takes the example ids as its input "
            f'"{IDS}". Received: none.'
        )
    value = _with_channel_of(tensor, tf.convert_to_tensor(value))
    if not value.shape.is_compatible_with([None, *tensor.shape[1:]]):
        raise ValueError(
            f"Model '{model.name}' expected {name} of shape "
            f"{[None, *tensor.shape[1:]]}. Received: {value.shape.as_list()}."
        )
    if value.dtype == tensor.dtype:
        return value
    if name == IDS:
        raise ValueError(
            f"Model '{model.name}' takes the example ids as {tensor.dtype}, "
            f"which would take different ids for the same. Expected the input "
            '`keras.Input((), dtype="int64", name="example_id")`, and ids of '
            f"int64. Received: {value.dtype.name}."
        )
    if value.dtype.is_floating and tf.as_dtype(tensor.dtype).is_integer:
        raise ValueError(
            f"Model '{model.name}' takes {name} as {tensor.dtype}. Received: "
            f"{value.dtype.name}, which would lose its fractions. Pictures are "
            "fed as floats in [-1, 1]: make the input float32, and where the "
            "network wants 0 to 255 begin with Rescaling(127.5, offset=127.5)."
        )
    return tf.cast(value, tensor.dtype)
