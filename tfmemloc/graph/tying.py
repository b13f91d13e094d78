"""Puts example-tied dropout into models, takes it out, and switches it over.

No model that is passed in is changed: each function makes a new model that
shares its weights with the one it came from.

- `tie_dropout` puts tied layers into any functional model, `untie` takes them
  out, `tie_plan` lists them.
- `with_inference` makes tied layers behave differently at inference.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfmemloc.configs import Inference, check_choice
from tfmemloc.graph.nodes import IDS, all_nodes, is_functional, replay
from tfmemloc.graph.rebuild import (
    cloned,
    flat_layers,
    fresh_inputs,
    used_inputs,
)
from tfmemloc.graph.sites import block_sites, unit_axis
from tfmemloc.layers import masks
from tfmemloc.layers.tied_dropout import ExampleTiedDropout


def tied_layers(model: keras.Model) -> list[ExampleTiedDropout]:
    """The example-tied layers of a model, input to output."""
    return [
        layer
        for layer in flat_layers(model)
        if isinstance(layer, ExampleTiedDropout)
    ]


def with_inference(model: keras.Model, inference: str) -> keras.Model:
    """The same network with another behaviour of its tied layers.

    Args:
        model: a functional model with `ExampleTiedDropout` layers.
        inference: `"drop"`, `"expected"` or `"tied"`.

    Returns:
        A new functional model that shares all weights with `model`: training
        either trains both.

    Raises:
        ValueError: the model is not functional, has no tied layer, or there
            is no such behaviour.

    Example:
        >>> tied = with_inference(model, "tied")
        >>> tied.predict({"image": x, "example_id": ids}, verbose=0).shape
        (80, 10)
    """
    if not tied_layers(model):
        raise ValueError(
            f"Model '{model.name}' has no ExampleTiedDropout layer, so that "
            f'its inference cannot become "{inference}". Expected a model '
            "with at least one tied layer."
        )

    check_choice("inference", inference, typing.get_args(Inference))

    def replace(layer):
        if isinstance(layer, ExampleTiedDropout):
            return ExampleTiedDropout.from_config(
                {**layer.get_config(), "inference": inference}
            )
        if isinstance(layer, keras.Model) and tied_layers(layer):
            return with_inference(layer, inference)
        return layer

    return cloned(model, replace)


def tie_dropout(
    model: keras.Model,
    after: str | Sequence[str] | Callable[[keras.layers.Layer], bool] = (
        "blocks"
    ),
    *,
    p_gen: float = 0.2,
    p_mem: float = 0.1,
    seed: int = 0,
    rescale: str = "none",
) -> keras.Model:
    """Puts example-tied dropout into a functional model (paper, section 5).

    Args:
        model: functional or Sequential; pretrained or not. Layers inside of
            nested models can be tied too.
        after: `"blocks"`, the ends of residual, transformer and convolution
            blocks, found from the graph; or the names of layers; or a
            function that tells for each layer whether a tied layer follows it.
        p_gen: fraction of generalization units.
        p_mem: probability with which an example keeps a memorization unit.
        seed: of the masks; each tied layer folds its own name into it.
        rescale: see `ExampleTiedDropout`.

    Returns:
        A new functional model for ordinary `compile`, `fit` and `save`. It
        shares all weights with `model`: training either trains both. Its
        inputs are those of `model` and `example_id`, int64 [batch]: a list
        gets it as its last, a dict as `"example_id"`, and a single input
        becomes the dict `{<its name>: ..., "example_id": ...}`. The tied
        layers are in `drop` behaviour, so that ids are read in training only.

    Raises:
        ValueError: the graph is not known, a layer does not exist, nothing is
            to be tied, or the model has tied layers already, or has an input
            named `example_id` that is not one integer for each example.

    Example:
        >>> image = keras.Input((8, 8, 1), name="image")
        >>> hidden = keras.layers.Flatten()(image)
        >>> hidden = keras.layers.Dense(32, activation="relu")(hidden)
        >>> network = keras.Model(image, keras.layers.Dense(10)(hidden))
        >>> tied = tie_dropout(network)
        >>> sorted(tied.input)
        ['example_id', 'image']
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> tied.compile("sgd", loss)
        >>> _ = tied.fit({"image": x, "example_id": ids}, y, verbose=0)
    """
    if not is_functional(model):
        raise ValueError(
            f"Model '{model.name}' is a subclassed or unbuilt "
            f"{type(model).__name__}, whose graph is not known, so that no "
            "layer can be put in. Expected a built functional or Sequential "
            "model. In a subclassed model, create ExampleTiedDropout layers "
            "in __init__ and call them in `call` with the example ids; the "
            "README shows how."
        )
    if tied_layers(model):
        raise ValueError(
            f"Model '{model.name}' has tied layers already: "
            f"{', '.join(layer.name for layer in tied_layers(model))}. "
            "Expected none; `untie(model)` takes them out."
        )
    places = _tied_places(model, after)
    made: dict[int, ExampleTiedDropout] = {}

    def tied_layer(operation, tensor):
        key = id(operation)
        if key not in made:
            name = f"{operation.name}_tied"
            made[key] = ExampleTiedDropout(
                p_gen,
                p_mem,
                seed=masks.fold_seed(seed, name),
                axis=unit_axis(operation),
                rescale=rescale,
                dtype=getattr(operation, "dtype_policy", None),
                name=name,
            )
        return made[key](tensor, ids)

    inputs = fresh_inputs(model)
    ids, with_ids = _with_ids(model, inputs)
    outputs = _tied_outputs(model, inputs, places, tied_layer)
    return keras.Model(with_ids, outputs, name=model.name)


def _tied_places(model, after) -> set[int]:
    """ids of the nodes after whose call a tied layer goes."""
    if after == "blocks":
        sites = block_sites(model)
        if not sites:
            raise ValueError(
                f"Model '{model.name}' has no blocks: between input and "
                "output there is no place where one tensor alone comes out "
                "of a layer with a kernel. Name the layers to tie by `after`."
            )
        return {id(site.node) for site in sites}
    chosen = _chooser(model, after)
    places = {id(n) for n in all_nodes(model) if chosen(n.operation)}
    if not places:
        raise ValueError(
            f"`after` chooses no layer of model '{model.name}'. Expected at "
            f"least one of {', '.join(x.name for x in flat_layers(model))}."
        )
    return places


def _chooser(model, after) -> Callable[[Any], bool]:
    if callable(after):
        return lambda operation: bool(after(operation))
    if isinstance(after, str):
        raise ValueError(
            '`after` expected "blocks", a list of names of layers, or a '
            f"function of a layer. Received: after={after!r}."
        )
    known = {n.operation.name for n in all_nodes(model)}
    missing = [name for name in after if name not in known]
    if missing:
        raise ValueError(
            f"Model '{model.name}' has no layer {', '.join(missing)}. "
            f"Expected some of {', '.join(sorted(known))}."
        )
    return lambda operation: operation.name in after


def _tied_outputs(model, inputs, places, tied_layer):
    """The outputs of a model with tied layers put in.

    Nested models that get some are laid out in the outer one.
    """

    def call(node, args, kwargs):
        operation = node.operation
        if isinstance(operation, keras.Model) and any(
            id(inner) in places for inner in all_nodes(operation)
        ):
            output = replay(operation, args[0], call)
        else:
            output = operation(*args, **kwargs)
        if id(node) in places:
            output = tied_layer(operation, output)
        return output

    return replay(model, inputs, call)


def untie(model: keras.Model) -> keras.Model:
    """Takes the tied layers out of a model; the inverse of `tie_dropout`.

    Returns:
        A new functional model that shares all weights with `model`, without
        the `example_id` input where nothing else uses it. It behaves as the
        tied one would with all units on.

    Raises:
        ValueError: the graph is not known, or there are no tied layers.

    Example:
        >>> plain = untie(with_inference(model, "drop"))
        >>> plain.count_params() == model.count_params()
        True
    """
    if not tied_layers(model):
        raise ValueError(
            f"Model '{model.name}' has no ExampleTiedDropout layer to take "
            "out. Expected a model from `tie_dropout`."
        )

    def call(node, args, kwargs):
        operation = node.operation
        if isinstance(operation, ExampleTiedDropout):
            return args[0]
        if isinstance(operation, keras.Model) and tied_layers(operation):
            return replay(operation, args[0], call)
        return operation(*args, **kwargs)

    inputs = fresh_inputs(model)
    outputs = replay(model, inputs, call)
    return keras.Model(used_inputs(inputs, outputs), outputs, name=model.name)


def tie_plan(model: keras.Model) -> list[dict[str, Any]]:
    """A row for each tied layer, with its numbers of units of both kinds.

    `on` is the average number of units that are on for an example in training.

    Example:
        >>> plan = tie_plan(model)
        >>> plan[0]["layer"], plan[0]["units"], plan[0]["generalization"]
        ('conv1.dropout', 6, 1)
    """
    rows = []
    for layer in tied_layers(model):
        memorization = layer.units - layer.generalization_units
        rows.append(
            {
                "layer": layer.name,
                "units": layer.units,
                "generalization": layer.generalization_units,
                "memorization": memorization,
                "on": layer.generalization_units + layer.p_mem * memorization,
            }
        )
    return rows


def _with_ids(model, inputs):
    """The `example_id` input, and all inputs with it among them."""
    for tensor in keras.tree.flatten(inputs):
        if tensor.name == IDS:
            if len(tensor.shape) != 1 or "int" not in tensor.dtype:
                raise ValueError(
                    f"Model '{model.name}' has an input named example_id of "
                    f"shape {tensor.shape} and dtype {tensor.dtype}. Expected "
                    "an integer for each example, of shape (None,), or "
                    "another name."
                )
            return tensor, inputs
    ids = keras.Input((), dtype="int64", name=IDS)
    if isinstance(inputs, dict):
        return ids, {**inputs, IDS: ids}
    if isinstance(inputs, list | tuple):
        return ids, [*inputs, ids]
    return ids, {inputs.name: inputs, IDS: ids}
