"""Copies of networks to be changed, and examples checked against them."""

from __future__ import annotations

import keras

from tfmemloc import graph
from tfmemloc.data.examples import Examples


def own_copy(model: keras.Model) -> keras.Model:
    """The same network with weights of its own."""
    if not graph.is_functional(model):
        raise ValueError(
            f"Model '{model.name}' is a subclassed {type(model).__name__}, "
            "whose graph is not known. Expected a functional or Sequential "
            "model, of which a copy can be made."
        )
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def check_examples(model: keras.Model, examples: Examples) -> None:
    """Refuses examples on which a model was not trained, as far as one sees.

    Raises:
        ValueError: there are none, or the model has other classes.
    """
    if not examples.is_trained_on.any():
        raise ValueError(
            f"{examples.name} has no training examples. Expected those that "
            "the network was trained on; received subsets: "
            f"{', '.join(examples.subsets) or 'none'}."
        )
    outputs = keras.tree.flatten(getattr(model, "output_shape", None) or ())
    if outputs and outputs[-1] is not None and examples.classes > outputs[-1]:
        raise ValueError(
            f"{examples.name} has {examples.classes} classes, but model "
            f"'{model.name}' has {outputs[-1]} outputs. Expected the examples "
            "that it was trained on, with labels from 0."
        )
