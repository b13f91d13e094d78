"""Puts example-tied dropout into models, and switches it over.

No model that is passed in is changed: each function makes a new model that
shares its weights with the one it came from.

- `tie_dropout` puts tied layers into any functional model, `tie_plan` lists
  them; `tfmemloc.graph.untying` takes them out.
- `with_inference` makes tied layers behave differently at inference.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfmemloc.checks import check_choice, is_number
from tfmemloc.configs import Inference
from tfmemloc.graph.batch_norm import batch_norms, switchable
from tfmemloc.graph.nodes import (
    IDS,
    all_nodes,
    consumers,
    is_functional,
    nodes,
    outputs_of,
    replay,
)
from tfmemloc.graph.rebuild import cloned, flat_layers, fresh_inputs
from tfmemloc.graph.sites import (
    block_sites,
    is_activation,
    unit_axis,
    unit_sites,
)
from tfmemloc.graph.tied_model import TiedModel
from tfmemloc.layers import masks
from tfmemloc.layers.arguments import check_probability, check_seed
from tfmemloc.layers.memory_branch import MemoryBranch
from tfmemloc.layers.switchable_batch_norm import SwitchableBatchNormalization
from tfmemloc.layers.tied_dropout import ExampleTiedDropout

_P_GEN = 0.2
_MOST = 64


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
        if isinstance(layer, SwitchableBatchNormalization):
            return switchable(layer, inference)
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
    p_gen: float | None = None,
    p_mem: float = 0.1,
    expand: float | None = None,
    own_statistics: bool = False,
    seed: int = 0,
    rescale: str = "none",
) -> keras.Model:
    """Puts example-tied dropout into a functional model (paper, section 5).

    Either *carves* memorization units out of the units that there are, as the
    paper does, or *expands* each place by more units for memory, beside the
    given network: with the memorization units off it is then the given
    network, and pruning gives that back. See `tfmemloc.layers.memory_branch`.

    Args:
        model: functional or Sequential; pretrained or not. Layers inside of
            nested models can be tied too.
        after: `"blocks"`, the ends of residual, transformer and convolution
            blocks, found from the graph; `"layers"`, these and every hidden
            layer with a kernel, so that pruning narrows the inside of blocks
            too; or the names of layers; or a function that tells for each
            layer whether a tied layer follows it.
        p_gen: fraction of generalization units where they are carved; None
            is 0.2.
        p_mem: probability with which an example keeps a memorization unit.
        expand: the number of memorization units to add for each unit of a
            place; None adds none and carves.
        own_statistics: BatchNorm behind a tied place keeps statistics of its
            own for the drop, from the examples that pass with `MEMORY_OFF`
            (`tfmemloc.switch_memory_off`); so nothing is to be recalibrated.
        seed: of the masks and of new weights; each tied layer folds its own
            name into it.
        rescale: see `ExampleTiedDropout`.

    Returns:
        A new functional model for ordinary `compile`, `fit` and `save`. It
        shares all weights with `model`: training either trains both. Its
        inputs are those of `model` and `example_id`, int64 [batch] (Keras casts
        what else it is fed, and float32 ids above 2**24 are not apart): a list
        gets it as its last, a dict as `"example_id"`, and a single input
        becomes the dict `{<its name>: ..., "example_id": ...}`. The tied
        layers are in `drop` behaviour, so that ids are read in training only.

    Raises:
        ValueError: the graph is not known, a layer does not exist, nothing is
            to be tied, `expand` comes with `p_gen` or `rescale`, the model has
            tied layers already, or it has an input named `example_id` that is
            not one integer for each example.

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
    if expand is not None:
        _check_expand(expand, p_gen, rescale)
    elif p_gen is not None:
        check_probability("p_gen", p_gen)
    check_seed(seed)
    places = _tied_places(model, after)
    made: dict[int, Callable] = {}

    def tied_layer(operation, tensor):
        """What goes behind a place; one for all calls of a shared layer."""
        key = id(operation)
        if key not in made:
            name = f"{operation.name}_tied"
            common = {
                "p_mem": p_mem,
                "seed": masks.fold_seed(seed, name),
                "dtype": getattr(operation, "dtype_policy", None),
            }
            if expand is None:
                made[key] = ExampleTiedDropout(
                    _P_GEN if p_gen is None else p_gen,
                    axis=unit_axis(operation),
                    rescale=rescale,
                    name=name,
                    **common,
                )
            else:
                _check_last_axis(operation)
                made[key] = MemoryBranch(
                    expand=expand,
                    prefix=f"{operation.name}_",
                    tied_name=name,
                    batch_norm=_batch_norm_of(model),
                    **common,
                )
        return made[key](tensor, ids)

    inputs = fresh_inputs(model)
    ids, with_ids = _with_ids(model, inputs)
    outputs = _tied_outputs(
        model, inputs, places, tied_layer, ids if own_statistics else None
    )
    return TiedModel(with_ids, outputs, name=model.name)


def _check_expand(expand: float, p_gen: float | None, rescale: str) -> None:
    if not is_number(expand) or not 0 < expand <= _MOST:
        raise ValueError(
            f"`expand` must be above 0 and at most {_MOST}: how many "
            "memorization units are added for each unit. Received: "
            f"expand={expand!r}."
        )
    if p_gen is not None or rescale != "none":
        raise ValueError(
            "An expanded network keeps all of its units as generalization "
            "units. Expected `expand` without `p_gen` and `rescale`. Received: "
            f"expand={expand!r}, p_gen={p_gen!r}, rescale={rescale!r}."
        )


def _check_last_axis(operation) -> None:
    if unit_axis(operation) != -1:
        raise ValueError(
            f"Layer '{operation.name}' has its units on axis 1. Expected them "
            "on the last axis (channels last) where `expand` adds some."
        )


def _batch_norm_of(model: keras.Model) -> dict[str, Any] | None:
    """How a model's first BatchNorm is set; None where it has none."""
    norms = batch_norms(model)
    if not norms:
        return None
    return {
        name: getattr(norms[0], name)
        for name in ("momentum", "epsilon", "synchronized")
    }


def _tied_places(model, after) -> set[int]:
    """ids of the nodes after whose call a tied layer goes."""
    if after in ("blocks", "layers"):
        sites = block_sites(model)
        if after == "layers":
            sites += unit_sites(model)
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
    _refuse_outputs(model, places)
    return places


def _refuse_outputs(model, places: set[int]) -> None:
    """Refuses to tie what a model gives, activated or not: its classes."""
    found = nodes(model)
    readers = consumers(found)
    outputs = {id(t) for t in keras.tree.flatten(outputs_of(model))}

    def is_given(node) -> bool:
        tensor = node.output_tensors[0]
        return id(tensor) in outputs or any(
            is_activation(reader.operation) and is_given(reader)
            for reader in readers.get(id(tensor), ())
        )

    given = [n.operation.name for n in found if id(n) in places and is_given(n)]
    if given:
        raise ValueError(
            f"Layer '{given[0]}' of model '{model.name}' gives the model's "
            "output. Expected layers before it: the drop would switch off "
            "what is predicted."
        )


def _chooser(model, after) -> Callable[[Any], bool]:
    if callable(after):
        return lambda operation: bool(after(operation))
    if isinstance(after, str):
        raise ValueError(
            '`after` expected "blocks", "layers", a list of names of layers, '
            f"or a function of a layer. Received: after={after!r}."
        )
    known = {n.operation.name for n in all_nodes(model)}
    missing = [name for name in after if name not in known]
    if missing:
        raise ValueError(
            f"Model '{model.name}' has no layer {', '.join(missing)}. "
            f"Expected some of {', '.join(sorted(known))}."
        )
    return lambda operation: operation.name in after


def _tied_outputs(model, inputs, places, tied_layer, ids):
    """The outputs of a model with tied layers put in.

    Nested models that get some are laid out in the outer one. With `ids`,
    BatchNorm behind the first tied layer becomes switchable.
    """
    norms: dict[int, SwitchableBatchNormalization] = {}
    tied: set[int] = set()

    def call(node, args, kwargs):
        operation = node.operation
        if is_functional(operation) and (
            (ids is not None and batch_norms(operation))
            or any(id(inner) in places for inner in all_nodes(operation))
        ):
            output = replay(operation, args[0], call)
        elif (
            ids is not None
            and tied
            and isinstance(operation, keras.layers.BatchNormalization)
        ):
            if id(operation) not in norms:
                norms[id(operation)] = switchable(operation)
            output = norms[id(operation)](*args, ids)
        else:
            output = operation(*args, **kwargs)
        if id(node) in places:
            tied.add(id(node))
            output = tied_layer(operation, output)
        return output

    return replay(model, inputs, call)


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
            if len(tensor.shape) != 1 or tensor.dtype != "int64":
                raise ValueError(
                    f"Model '{model.name}' has an input named example_id of "
                    f"shape {tensor.shape} and dtype {tensor.dtype}. Expected "
                    "int64 of shape (None,), an id for each example, as "
                    'keras.Input((), dtype="int64", name="example_id") makes '
                    "it, or another name. Fewer bits would take different "
                    "ids for the same."
                )
            return tensor, inputs
    ids = keras.Input((), dtype="int64", name=IDS)
    if isinstance(inputs, dict):
        return ids, {**inputs, IDS: ids}
    if isinstance(inputs, list | tuple):
        return ids, [*inputs, ids]
    return ids, {inputs.name: inputs, IDS: ids}
