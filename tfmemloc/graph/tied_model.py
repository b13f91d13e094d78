"""A functional model that asks for example ids only where they count."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmemloc.data.examples import IDS
from tfmemloc.graph.inputs import input_names
from tfmemloc.graph.rebuild import flat_layers
from tfmemloc.layers.tied_dropout import ExampleTiedDropout


@keras.saving.register_keras_serializable(package="tfmemloc")
class TiedModel(keras.Model):
    """What `tie_dropout` makes: a functional model with an input for ids.

    In `drop` and `expected` no prediction depends on an id, so that
    `predict(x)`, `evaluate(x, y)` and `validation_data=(x, y)` need none. Where
    ids count, in training and in `tied`, to leave them out is an error. Its
    `repr` says how many places are tied; `tie_plan` lists them.
    """

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the model; puts in ids that do not count and were left out."""
        self._check_ids(inputs)
        without = self._inputs_without_ids(inputs)
        if without is None:
            return super().__call__(inputs, *args, **kwargs)
        if self._ids_count(kwargs.get("training")):
            raise ValueError(self._what_to_pass(kwargs.get("training")))
        given = {k: tf.convert_to_tensor(v) for k, v in without.items()}
        some = next(iter(given.values()))
        given[IDS] = tf.zeros(tf.shape(some)[:1], tf.int64)
        return super().__call__(given, *args, **kwargs)

    def _check_ids(self, inputs) -> None:
        """Refuses ids before Keras casts them: floats, or not one each."""
        names = input_names(self)
        ids = inputs.get(IDS) if isinstance(inputs, dict) else None
        if isinstance(inputs, list | tuple) and len(inputs) == len(names):
            ids = dict(zip(names, inputs, strict=True)).get(IDS)
        if not hasattr(ids, "dtype"):
            return
        dtype, shape = tf.as_dtype(ids.dtype), tf.TensorShape(ids.shape)
        if not dtype.is_integer or shape.rank not in (None, 1):
            raise ValueError(
                f"Model '{self.name}' expected example ids that are integers "
                "of shape [batch], one for each example. Received: dtype "
                f"{dtype.name}, shape {shape}. Floats cannot tell large "
                "ids apart; ids.astype('int64') makes whole ones integers, "
                "ids.reshape(-1) makes them one for each."
            )

    def __repr__(self) -> str:
        """Says in how many places it is tied, and where."""
        places = [
            layer.name.removesuffix("_tied")
            for layer in flat_layers(self)
            if isinstance(layer, ExampleTiedDropout)
        ]
        shown = ", ".join(places[:4]) + (", ..." if len(places) > 4 else "")
        return (
            f"<TiedModel name={self.name}, places tied: {len(places)} "
            f"(after {shown})>"
        )

    def _inputs_without_ids(self, inputs) -> dict[str, Any] | None:
        """The inputs by name, if only the ids are missing; else None."""
        names = input_names(self)
        if IDS not in names:
            return None
        others = [name for name in names if name != IDS]
        if isinstance(inputs, dict):
            given = inputs if set(inputs) == set(others) else None
        elif isinstance(inputs, list | tuple):
            same = len(inputs) == len(others) and len(others) > 1
            given = dict(zip(others, inputs, strict=True)) if same else None
        else:
            given = {others[0]: inputs} if len(others) == 1 else None
        # Of a graph that is being made Keras itself says what is missing.
        concrete = (np.ndarray, tf.Tensor, keras.Variable)
        if given and all(isinstance(v, concrete) for v in given.values()):
            return given
        return None

    def _ids_count(self, training: bool | None) -> bool:
        return any(
            isinstance(layer, ExampleTiedDropout)
            and (training or layer.inference == "tied")
            for layer in flat_layers(self)
        )

    def _what_to_pass(self, training: bool | None) -> str:
        shown = ", ".join(f"'{name}': ..." for name in input_names(self))
        why = (
            "in training they say which memorization units an example keeps"
            if training
            else 'its tied layers have the inference "tied"'
        )
        return (
            f"Model '{self.name}' was called without example ids, and {why}. "
            f"Expected {{{shown}}} with int64 ids [batch], one for each "
            "example and the same at every epoch (`tfmemloc.attach_ids` adds "
            "them to a dataset); for predictions without memory use "
            '`tfmemloc.with_inference(model, "drop")`, which needs none.'
        )
