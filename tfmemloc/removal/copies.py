"""Copies of networks to be changed, and examples checked against them."""

from __future__ import annotations

import warnings

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
    made: dict[int, tuple[keras.layers.Layer, keras.layers.Layer]] = {}

    def clone(layer):
        # A lambda has no weights, and its code is not made anew from a file.
        if isinstance(layer, keras.layers.Lambda):
            return layer
        if id(layer) not in made:
            new = type(layer).from_config(layer.get_config())
            made[id(layer)] = layer, new
        return made[id(layer)][1]

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    # Layer by layer: the order of all weights may differ.
    for old, new in made.values():
        if isinstance(old, keras.layers.Layer):  # And no operation.
            new.set_weights(old.get_weights())
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
    if outputs and outputs[-1] == 1 and examples.classes == 2:
        raise ValueError(
            f"Model '{model.name}' has one output for two classes, as with a "
            "sigmoid. Expected an output for each class, as Dense(2) gives. "
            f"Received: output shape {model.output_shape}."
        )
    if outputs and outputs[-1] not in (None, examples.classes):
        raise ValueError(
            f"{examples.name} has {examples.classes} classes, but model "
            f"'{model.name}' has {outputs[-1]} outputs. Expected the examples "
            "that it was trained on, with labels from 0; where a class has no "
            "example, say how many there are (`classes` of `from_arrays`, "
            "`class_names` in a file)."
        )


def has_batch_norm(model: keras.Model) -> bool:
    """Whether there are BatchNorm statistics that can be computed anew.

    Warns of those inside of layers of one's own, which are out of reach.
    """
    kind = keras.layers.BatchNormalization
    known = graph.batch_norms(model)
    inside = [
        layer.name
        for layer in model._flatten_layers(include_self=False, recursive=True)
        if isinstance(layer, kind) and all(layer is not x for x in known)
    ]
    if inside:
        warnings.warn(
            f"Model '{model.name}' has BatchNormalization inside of other "
            f"layers ({', '.join(inside[:5])}), whose statistics stay those of "
            "the network before the removal.",
            stacklevel=2,
        )
    return bool(known)


def is_half(model: keras.Model) -> bool:
    """Whether a layer computes in float16, so that a loss must be scaled."""
    return "float16" in graph.compute_dtypes(model)


def make_adam(model: keras.Model, rate: float) -> keras.optimizers.Optimizer:
    """Adam for a model's trainable weights; scales the loss of float16."""
    optimizer = keras.optimizers.Adam(rate)
    if is_half(model):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer
