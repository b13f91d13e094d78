"""The only editor of models. Nothing given is changed: edits make new models.

- `tie_dropout` puts tied layers into any functional model, `untie` takes them
  out; `tie_plan` lists them.
- `with_inference` makes tied layers behave otherwise at inference.
- `layer_groups` names the parts that the probes rewind, retrain and account.
- `swapped_weights` lends other values to variables and gives them back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfmemloc import graph, masks
from tfmemloc.layers import ExampleTiedDropout

Groups = dict[str, tuple[keras.layers.Layer, ...]]


def tied_layers(model: keras.Model) -> list[ExampleTiedDropout]:
    """The example-tied layers of a model, input to output."""
    return [
        layer
        for layer in flat_layers(model)
        if isinstance(layer, ExampleTiedDropout)
    ]


def flat_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model and of the models nested in it, each once."""
    found: dict[int, keras.layers.Layer] = {}

    def visit(layers):
        for layer in layers:
            if isinstance(layer, keras.Model):
                visit(layer.layers)
            else:
                found.setdefault(id(layer), layer)

    visit(model.layers)
    return list(found.values())


def with_inference(model: keras.Model, inference: str) -> keras.Model:
    """The same network with another behaviour of its tied layers.

    Args:
        model: a functional model with `ExampleTiedDropout` layers.
        inference: `"drop"`, `"expected"` or `"tied"`.

    Returns:
        A new functional model that shares all weights with `model`: training
        either trains both.

    Raises:
        ValueError: the model is not functional, or has no tied layer.

    Example:
        >>> tied = with_inference(model, "tied")
        >>> tied.predict({"image": x, "example_id": ids})
    """
    if not tied_layers(model):
        raise ValueError(
            f"Model '{model.name}' has no ExampleTiedDropout layer, so that "
            f'its inference cannot become "{inference}". Expected a model '
            "with at least one tied layer."
        )

    def replace(layer):
        if isinstance(layer, ExampleTiedDropout):
            return ExampleTiedDropout.from_config(
                {**layer.get_config(), "inference": inference}
            )
        if isinstance(layer, keras.Model) and tied_layers(layer):
            return with_inference(layer, inference)
        return layer

    return _rebuild(model, replace)


def _rebuild(model, clone_function) -> keras.Model:
    """Clones the graph of a functional model, layer by layer."""
    if not graph.is_functional(model):
        raise ValueError(
            f"Model '{model.name}' is a subclassed {type(model).__name__}, "
            "whose graph is not known. Expected a functional or Sequential "
            "model. In a subclassed model make a second ExampleTiedDropout "
            "with the inference you want, and the same seed, and call that."
        )
    return keras.models.clone_model(model, clone_function=clone_function)


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
            function that says of each layer whether it gets a tied one.
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
            to be tied, the model has tied layers already, or an input named
            `example_id` that is no integer for each example.

    Example:
        >>> tied = tie_dropout(keras.applications.ResNet50(weights=None))
        >>> list(tied.input)
        ['keras_tensor', 'example_id']
        >>> tied.compile("sgd", "sparse_categorical_crossentropy")
        >>> tied.fit({"keras_tensor": x, "example_id": ids}, y)
    """
    if not graph.is_functional(model):
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
                axis=graph.unit_axis(operation),
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
        sites = graph.block_sites(model)
        if not sites:
            raise ValueError(
                f"Model '{model.name}' has no blocks: between input and "
                "output there is no place where one tensor alone comes out "
                "of a layer with a kernel. Name the layers to tie by `after`."
            )
        return {id(site.node) for site in sites}
    chosen = _chooser(model, after)
    places = {id(n) for n in graph.all_nodes(model) if chosen(n.operation)}
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
    known = {n.operation.name for n in graph.all_nodes(model)}
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
            id(inner) in places for inner in graph.all_nodes(operation)
        ):
            output = graph.replay(operation, args[0], call)
        else:
            output = operation(*args, **kwargs)
        if id(node) in places:
            output = tied_layer(operation, output)
        return output

    return graph.replay(model, inputs, call)


def untie(model: keras.Model) -> keras.Model:
    """Takes the tied layers out of a model; the inverse of `tie_dropout`.

    Returns:
        A new functional model that shares all weights with `model`, without
        the `example_id` input where nothing else uses it. It behaves as the
        tied one would with all units on.

    Raises:
        ValueError: the graph is not known, or there are no tied layers.
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
            return graph.replay(operation, args[0], call)
        return operation(*args, **kwargs)

    inputs = fresh_inputs(model)
    outputs = graph.replay(model, inputs, call)
    return keras.Model(used_inputs(inputs, outputs), outputs, name=model.name)


def tie_plan(model: keras.Model) -> list[dict[str, Any]]:
    """A row for each tied layer: its units of both kinds.

    `on` is how many units an example has on in training, on average.

    Example:
        >>> from tfmemloc.report import text_table
        >>> print(text_table(tie_plan(model), percent=False))
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


def inlined(model: keras.Model) -> keras.Model:
    """The same network with the graphs of nested models laid out in it."""

    def call(node, args, kwargs):
        if graph.is_functional(node.operation):
            return graph.replay(node.operation, args[0], call)
        return node.operation(*args, **kwargs)

    inputs = fresh_inputs(model)
    return keras.Model(
        inputs, graph.replay(model, inputs, call), name=model.name
    )


def fresh_inputs(model: keras.Model) -> Any:
    """New inputs like those of a model, in the same structure."""
    return keras.tree.map_structure(
        lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name),
        graph.inputs_of(model),
    )


def used_inputs(inputs: Any, outputs: Any) -> Any:
    """The inputs, without the example ids where no output depends on them.

    Where one input is left it stands alone.
    """
    needed = _ancestors(keras.tree.flatten(outputs))

    def is_used(tensor):
        return tensor.name != graph.IDS or id(tensor) in needed

    if isinstance(inputs, dict):
        left = {key: t for key, t in inputs.items() if is_used(t)}
        return next(iter(left.values())) if len(left) == 1 else left
    if isinstance(inputs, list | tuple):
        return [t for t in inputs if is_used(t)]
    return inputs


def _ancestors(tensors) -> set[int]:
    """ids of all tensors from which these were computed."""
    seen: set[int] = set()
    pending = list(tensors)
    while pending:
        tensor = pending.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        history = tensor._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        pending.extend(node.input_tensors)
    return seen


def _with_ids(model, inputs):
    """The `example_id` input, and all inputs with it among them."""
    for tensor in keras.tree.flatten(inputs):
        if tensor.name == graph.IDS:
            if len(tensor.shape) != 1 or "int" not in tensor.dtype:
                raise ValueError(
                    f"Model '{model.name}' has an input named example_id of "
                    f"shape {tensor.shape} and dtype {tensor.dtype}. Expected "
                    "an integer for each example, of shape (None,), or "
                    "another name."
                )
            return tensor, inputs
    ids = keras.Input((), dtype="int64", name=graph.IDS)
    if isinstance(inputs, dict):
        return ids, {**inputs, graph.IDS: ids}
    if isinstance(inputs, list | tuple):
        return ids, [*inputs, ids]
    return ids, {inputs.name: inputs, graph.IDS: ids}


def with_own_batch_norm(
    model: keras.Model, *, collect: bool = False
) -> keras.Model:
    """A model that shares all layers with `model` but the BatchNorm ones.

    Args:
        model: a functional model.
        collect: the copies normalize by batch statistics whatever `training`
            is, and keep those of the last batch (momentum 0).
    """

    def replace(layer):
        if not isinstance(layer, keras.layers.BatchNormalization):
            return layer
        if collect:
            config = {**layer.get_config(), "momentum": 0.0}
            return _BatchStatistics.from_config(config)
        return type(layer).from_config(layer.get_config())

    copy = _rebuild(model, replace)
    copy.set_weights(model.get_weights())
    return copy


class _BatchStatistics(keras.layers.BatchNormalization):
    """BatchNorm in training mode, whatever the model's mode is."""

    def call(self, inputs, training=None, mask=None):
        """Normalizes by the statistics of this batch, and keeps them."""
        del training
        return super().call(inputs, training=True, mask=mask)


def layer_groups(
    model: keras.Model, groups: Mapping[str, Sequence[str]] | None = None
) -> Groups:
    """The layer groups of a model, input to output (paper, section 4).

    A group is a layer with weights together with the normalization that
    follows it. In models whose layers are all named `<group>.<role>`, as
    tfmemloc's own are, the part before the dot is the group.

    Args:
        model: any built Keras model.
        groups: names of groups -> names of their layers, to choose otherwise.

    Returns:
        Ordered names -> layers. Every weight of the model is in one group.

    Raises:
        ValueError: the model has no weights; or `groups` names a layer that
            does not exist, names one twice, leaves one out, or has a group
            without weights.
    """
    layers = [layer for layer in flat_layers(model) if layer.weights]
    if not layers:
        raise ValueError(
            f"Model '{model.name}' has no layer with weights. Expected a "
            "built model with at least one."
        )
    if groups is not None:
        return _checked_groups(model, layers, groups)
    if all("." in layer.name for layer in layers):
        return _grouped(
            (layer.name.split(".", maxsplit=1)[0], layer) for layer in layers
        )
    return _grouped(_graph_groups(layers))


def _graph_groups(layers) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Pairs (group, layer): a normalization goes with what it normalizes."""
    group = None
    owner: dict[int, str] = {}
    for layer in layers:
        if graph.is_normalization(layer):
            source = _source_with_weights(layer, owner)
            group = source or group or layer.name
        else:
            group = layer.name
        owner[id(layer)] = group
        yield group, layer


def _source_with_weights(layer, owner: dict[int, str]) -> str | None:
    """The group of the nearest layer before `layer` that has one."""
    while layer is not None and layer._inbound_nodes:
        parents = layer._inbound_nodes[0].parent_nodes
        if len(parents) != 1:
            return None
        layer = parents[0].operation
        if id(layer) in owner:
            return owner[id(layer)]
    return None


def _grouped(pairs) -> Groups:
    groups: dict[str, list] = {}
    for name, layer in pairs:
        groups.setdefault(name, []).append(layer)
    return {name: tuple(layers) for name, layers in groups.items()}


def _checked_groups(model, layers, groups) -> Groups:
    by_name = {layer.name: layer for layer in layers}
    all_names = {layer.name for layer in flat_layers(model)}
    choices = f"Layers with weights: {', '.join(by_name)}."
    seen: dict[str, str] = {}
    for group, names in groups.items():
        for name in names:
            if name not in all_names:
                raise ValueError(
                    f"Group {group!r} names the layer {name!r}, which model "
                    f"'{model.name}' does not have. {choices}"
                )
            if name in seen:
                raise ValueError(
                    f"Layer {name!r} is in two groups, {seen[name]!r} and "
                    f"{group!r}. Expected each in one. {choices}"
                )
            seen[name] = group
        if not any(name in by_name for name in names):
            raise ValueError(
                f"Group {group!r} has no weights: it names "
                f"{', '.join(names) or 'no layer'}. {choices}"
            )
    left_out = [name for name in by_name if name not in seen]
    if left_out:
        raise ValueError(
            f"No group names the layers {', '.join(left_out)}. Expected each "
            "layer with weights in one group."
        )
    return {
        group: tuple(by_name[name] for name in names if name in by_name)
        for group, names in groups.items()
    }


def group_variables(
    groups: Groups, *, trainable_only: bool = False
) -> dict[str, list[keras.Variable]]:
    """The variables of each group, each once.

    Args:
        groups: from `layer_groups`.
        trainable_only: leave out the statistics of normalizations.
    """
    return {
        name: [
            variable
            for layer in layers
            for variable in (
                layer.trainable_variables if trainable_only else layer.weights
            )
        ]
        for name, layers in groups.items()
    }


@contextlib.contextmanager
def swapped_weights(
    variables: Sequence[keras.Variable], values: Sequence[np.ndarray]
) -> Iterator[None]:
    """Lends `values` to `variables`; the old values come back bit for bit.

    Also when the body raises. Functions that were traced before see the lent
    values.

    Raises:
        ValueError: the numbers or the shapes of variables and values differ;
            nothing is changed then.
    """
    shapes = [tuple(variable.shape) for variable in variables]
    given = [np.shape(value) for value in values]
    if shapes != given:
        raise ValueError(
            f"Expected values of shapes {shapes}. Received: {given}."
        )
    kept = [variable.numpy() for variable in variables]
    try:
        assign_weights(variables, values)
        yield
    finally:
        assign_weights(variables, kept)


def assign_weights(
    variables: Sequence[keras.Variable], values: Sequence[np.ndarray]
) -> None:
    """Sets variables, one by one; nothing is traced again."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
