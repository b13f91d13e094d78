"""Gradients by example and by subset (paper, section 4.1).

For an example i with loss l_i and the trainable weights w, the per-example
gradient is  g_i = d l_i / d w  (+ weight_decay * w). Two engines give it:

- `layerwise`: one forward and one backward pass for the whole batch, then a
  closed form per layer (see `closed_forms`). Near the price of one ordinary
  batch gradient.
- `vectorized_map`: `tf.vectorized_map` around a `tf.GradientTape`. Any model,
  several times the price; the reference.

Per-example quantities use BatchNorm's *frozen* (moving) statistics: with batch
statistics the loss of one example depends on all others of its batch, so that
"the gradient of example i" is not defined. Aggregates may also be taken with
`batch_statistics=True`, which is the coupled gradient of training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from tqdm import auto as tqdm

from tfmemloc import closed_forms, surgery
from tfmemloc.batches import scale_pixels
from tfmemloc.closed_forms import Full, Term, dense_gradients
from tfmemloc.data import Examples
from tfmemloc.evaluation import as_logits, model_inputs

ENGINES = ("layerwise", "vectorized_map")
MEMORY_BUDGET = 2**30
_LARGEST_CHUNK = 512

# (labels [B], logits) -> loss of each example [B]
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def cross_entropy(label: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Softmax cross-entropy of each example, in nats: [B]."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
        label, tf.cast(logits, tf.float32)
    )


class GradientEngine:
    """Per-example gradients of one model; each function is traced once.

    Weights that are assigned to the model later are seen by it.

    Args:
        model: any Keras model; `layerwise` sees nested, shared and subclassed
            layers. Called with `training=False`, its tied layers in the
            behaviour that they have.
        loss: (labels [B], outputs of the model) -> [B]; None is softmax
            cross-entropy, of a model that makes logits or ends in a softmax.
        engine: `layerwise` or `vectorized_map`.
        weight_decay: adds weight_decay * w to every per-example gradient.

    Attributes:
        variables: the V trainable variables, in the order of all results.
        fallbacks: names of the layers that had no closed form, known after
            the first call.

    Raises:
        ValueError: the model has no trainable weight, or the engine is
            unknown.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        loss: Loss | None = None,
        engine: str = "layerwise",
        weight_decay: float = 0.0,
    ):
        if engine not in ENGINES:
            raise ValueError(
                f"`engine` must be one of {', '.join(map(repr, ENGINES))}. "
                f"Received: engine={engine!r}."
            )
        if not model.trainable_variables:
            raise ValueError(
                f"Model '{model.name}' has no trainable weights. Expected a "
                "built model with at least one."
            )
        self.model = model
        self.variables = list(model.trainable_variables)
        self.fallbacks: tuple[str, ...] = ()
        self._loss = loss or self._cross_entropy
        self._weight_decay = weight_decay
        self._make_terms = (
            self._layerwise if engine == "layerwise" else self._vectorized
        )
        self._functions: dict[tuple, Callable] = {}

    def norms_squared(self, image, example_id, label) -> tf.Tensor:
        """Squared norm of each example's gradient, by variable: [B, V]."""
        return self._call(self._norms_squared_of, image, example_id, label)

    def dots(self, image, example_id, label, direction) -> tf.Tensor:
        """Product of each example's gradient with a direction: [B, V].

        Args:
            image: [B, ...].
            example_id: [B].
            label: [B].
            direction: V tensors in the variables' shapes.
        """
        direction = [tf.convert_to_tensor(d, tf.float32) for d in direction]
        return self._call(
            self._dots_of, image, example_id, label, direction=direction
        )

    def gradients(self, image, example_id, label) -> list[tf.Tensor]:
        """Each example's gradient: V tensors [B, *shape of the variable]."""
        return self._call(self._gradients_of, image, example_id, label)

    def account(
        self, image, example_id, label
    ) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
        """Squared norms [B, V], summed gradients [V], logits; in one pass."""
        return self._call(self._account_of, image, example_id, label)

    def subset_sums(
        self, image, example_id, label, member
    ) -> list[list[tf.Tensor]]:
        """Gradients of each subset's summed loss, under batch statistics.

        The model is called with `training=True`, so that its moving
        statistics move.

        Args:
            image: [B, ...].
            example_id: [B].
            label: [B].
            member: [B, S] 1 where an example is in a subset, else 0.

        Returns:
            S lists of V tensors.
        """
        member = tf.convert_to_tensor(member, tf.float32)
        return self._call(
            self._subset_sums_of, image, example_id, label, member
        )

    def trace_count(self) -> int:
        """How often any of the functions was traced."""
        return sum(
            function.experimental_get_tracing_count()
            for function in self._functions.values()
        )

    def _call(self, function, image, example_id, label, *more, direction=None):
        """Calls a function, traced once for any number of such images."""
        batch = (*_batch(image, example_id, label), *more)
        key = (function.__name__, *(tuple(t.shape[1:]) for t in batch))
        if key not in self._functions:
            signature = [
                tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)
                for tensor in batch
            ]
            if direction is not None:
                signature.append(
                    [tf.TensorSpec.from_tensor(d) for d in direction]
                )
            self._functions[key] = tf.function(
                function, input_signature=signature
            )
        arguments = batch if direction is None else (*batch, direction)
        return self._functions[key](*arguments)

    def _norms_squared_of(self, image, example_id, label):
        terms, _, _ = self._make_terms(image, example_id, label)
        return tf.stack([term.norms_squared() for term in terms], axis=1)

    def _dots_of(self, image, example_id, label, direction):
        terms, _, _ = self._make_terms(image, example_id, label)
        return tf.stack(
            [term.dot(d) for term, d in zip(terms, direction, strict=True)],
            axis=1,
        )

    def _gradients_of(self, image, example_id, label):
        terms, _, _ = self._make_terms(image, example_id, label)
        return [term.full() for term in terms]

    def _account_of(self, image, example_id, label):
        terms, sums, logits = self._make_terms(image, example_id, label)
        norms = tf.stack([term.norms_squared() for term in terms], axis=1)
        return norms, sums, logits

    def _subset_sums_of(self, image, example_id, label, member):
        with tf.GradientTape(persistent=True) as tape:
            losses, _ = self._forward(image, example_id, label, training=True)
            members = tf.unstack(member, axis=1)
            sums = [tf.reduce_sum(losses * one) for one in members]
        return [dense_gradients(tape, total, self.variables) for total in sums]

    def _forward(self, image, example_id, label, training=False):
        """The losses [B], and the logits."""
        logits = self.model(
            model_inputs(self.model, image, example_id), training=training
        )
        losses = self._loss(label, logits)
        if losses.shape.rank != 1:
            raise ValueError(
                "Expected a loss of each example, of shape [batch]. Received: "
                f"shape {losses.shape}. Use reduction=None in a Keras loss."
            )
        return losses, logits

    def _cross_entropy(self, label, outputs):
        return cross_entropy(label, as_logits(self.model, outputs))

    def _layerwise(self, image, example_id, label):
        """The term of each variable, the summed gradients [V], the logits."""
        layers = closed_forms.weighted_layers(self.model)
        values = [variable.value for variable in self.variables]
        with (
            tf.GradientTape() as tape,
            closed_forms.recorded_calls(layers) as calls,
        ):
            losses, logits = self._forward(image, example_id, label)
            total = tf.reduce_sum(losses)
        gradients, sums = tape.gradient(
            total, ([call.output for call in calls], values)
        )
        terms: dict[int, list[Term]] = {id(v): [] for v in self.variables}
        fallbacks = []
        for call, gradient in zip(calls, gradients, strict=True):
            # No gradient: the layer's output does not reach the loss.
            if all(g is None for g in keras.tree.flatten(gradient)):
                continue
            found = closed_forms.terms_of_call(call, gradient)
            if found is None:
                fallbacks.append(call.layer.name)
                found = closed_forms.terms_by_vectorized_map(call, gradient)
            for variable, term in found:
                if id(variable) in terms:
                    terms[id(variable)].append(term)
        self.fallbacks = tuple(dict.fromkeys(fallbacks))
        self._check_covered(terms, sums)
        batch = tf.shape(label)[0]
        found = [
            closed_forms.add_terms(terms[id(v)])
            if terms[id(v)]
            else Full(tf.zeros([batch, *v.shape]))
            for v in self.variables
        ]
        sums = [
            tf.zeros(v.shape) if g is None else tf.convert_to_tensor(g)
            for v, g in zip(self.variables, sums, strict=True)
        ]
        return *self._decayed(found, sums, batch), logits

    def _check_covered(self, terms, sums) -> None:
        for variable, gradient in zip(self.variables, sums, strict=True):
            if gradient is not None and not terms[id(variable)]:
                raise ValueError(
                    f"The weight '{variable.path}' is used outside of its "
                    "layer's call, where the layerwise engine cannot see it. "
                    'Use engine="vectorized_map" for this model.'
                )

    def _vectorized(self, image, example_id, label):
        """The same by `tf.vectorized_map` over the whole network."""

        def one(example):
            single = [part[tf.newaxis] for part in example]
            with tf.GradientTape() as tape:
                loss, logits = self._forward(*single)
            return dense_gradients(tape, loss, self.variables), logits[0]

        gradients, logits = tf.vectorized_map(one, (image, example_id, label))
        found = [Full(tf.cast(g, tf.float32)) for g in gradients]
        sums = [tf.reduce_sum(term.value, axis=0) for term in found]
        return *self._decayed(found, sums, tf.shape(label)[0]), logits

    def _decayed(self, terms, sums, batch):
        """Adds the gradient of the weight decay to each term and sum."""
        if not self._weight_decay:
            return terms, sums
        decays = [
            self._weight_decay * tf.cast(v.value, tf.float32)
            for v in self.variables
        ]
        pairs = zip(terms, decays, strict=True)
        decayed = [_Shifted(term, decay) for term, decay in pairs]
        count = tf.cast(batch, tf.float32)
        return decayed, [
            total + count * decay
            for total, decay in zip(sums, decays, strict=True)
        ]


class _Shifted:
    """A term plus the same constant for every example."""

    def __init__(self, term: Term, shift: tf.Tensor):
        self._term, self._shift = term, shift

    def norms_squared(self) -> tf.Tensor:
        """|g + s|**2 = |g|**2 + 2 <g, s> + |s|**2, for each example."""
        mixed = 2 * self._term.dot(self._shift)
        return (
            self._term.norms_squared() + mixed + tf.reduce_sum(self._shift**2)
        )

    def dot(self, direction: tf.Tensor) -> tf.Tensor:
        """<g + s, d> for each example."""
        constant = tf.reduce_sum(self._shift * direction)
        return self._term.dot(direction) + constant

    def full(self) -> tf.Tensor:
        """g + s for each example."""
        return self._term.full() + self._shift


def _batch(image, example_id, label):
    return (
        tf.convert_to_tensor(image, tf.float32),
        tf.convert_to_tensor(example_id, tf.int64),
        tf.convert_to_tensor(label, tf.int64),
    )


def per_example_gradients(
    engine: GradientEngine,
    examples: Examples,
    *,
    memory_budget: int = MEMORY_BUDGET,
) -> list[np.ndarray]:
    """The gradient of each example: V arrays [N, *shape of the variable].

    For few examples: N gradients are as large as N copies of the weights.
    """
    chunks = [
        [part.numpy() for part in engine.gradients(*batch)]
        for _, batch in _stream(engine, examples, memory_budget, "gradients")
    ]
    return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]


def per_example_norms(
    engine: GradientEngine,
    examples: Examples,
    *,
    groups: surgery.Groups | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = False,
) -> np.ndarray:
    """The L2 norm of each example's gradient, by layer group or variable.

    Args:
        engine: of the model.
        examples: N examples, in any order.
        groups: from `layer_groups`; None gives a column for each of the
            engine's variables.
        memory_budget: bytes that a chunk of examples may take; chunks are as
            large as they can be below it.
        progress: show a progress bar.

    Returns:
        float32 [N, G] or [N, V].

    Raises:
        ValueError: a label is no class, or the budget is too small for one
            example.
        FloatingPointError: a gradient is NaN or infinite; names the examples.

    Example:
        >>> engine = GradientEngine(model)
        >>> norms = per_example_norms(engine, examples,
        ...                           groups=layer_groups(model))
    """
    matrix = group_matrix(engine, groups)
    parts = []
    for part, batch in _stream(
        engine, examples, memory_budget, "norms", progress
    ):
        squared = engine.norms_squared(*batch).numpy()
        _check_finite(squared, part, examples.name)
        parts.append(squared @ matrix)
    return np.sqrt(np.concatenate(parts))


def per_example_dots(
    engine: GradientEngine,
    examples: Examples,
    direction: Sequence[np.ndarray],
    *,
    groups: surgery.Groups | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = False,
) -> np.ndarray:
    """Inner product of each example's gradient with a direction.

    The gradients are not formed.

    Args:
        engine: of the model.
        examples: N examples.
        direction: V arrays in the shapes of the engine's variables.
        groups: see `per_example_norms`.
        memory_budget: see `per_example_norms`.
        progress: show a progress bar.

    Returns:
        float32 [N, G] or [N, V]; their sum over the last axis is the whole
        product.
    """
    expected = [tuple(v.shape) for v in engine.variables]
    received = [np.shape(d) for d in direction]
    if expected != received:
        raise ValueError(
            f"Expected a direction of shapes {expected}. Received: {received}."
        )
    matrix = group_matrix(engine, groups)
    parts = []
    for part, batch in _stream(
        engine, examples, memory_budget, "dots", progress
    ):
        dots = engine.dots(*batch, direction).numpy()
        _check_finite(dots, part, examples.name)
        parts.append(dots @ matrix)
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True, eq=False)
class SubsetAccount:
    """What one pass over the examples tells of their gradients."""

    subsets: tuple[str, ...]  # S.
    norms_squared: np.ndarray  # [N, V] of per-example gradients.
    aggregate: dict[str, list[np.ndarray]]  # Subset -> V weighted gradients.
    accuracy: np.ndarray  # [S] in [0, 1], of the labels trained on.


def account_subsets(
    engine: GradientEngine,
    examples: Examples,
    *,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = False,
) -> SubsetAccount:
    """Per-example norms and the aggregate gradient of each subset, in one pass.

    The weights are the paper's: the aggregate of a training subset is the sum
    over its examples divided by the number of *all* training examples, so that
    the training subsets add up to the gradient of the mean training loss. The
    test subset is divided by its own size. BatchNorm has frozen statistics.

    Args:
        engine: of the model.
        examples: N examples.
        memory_budget: see `per_example_norms`.
        progress: show a progress bar.
    """
    subsets = examples.subsets
    squared = np.zeros((len(examples), len(engine.variables)), np.float32)
    aggregate, accuracy = {}, []
    # A subset at a time: the sum over a chunk then belongs to one subset.
    for subset in subsets:
        places = np.flatnonzero(examples.subset == subset)
        total = [np.zeros(v.shape, np.float64) for v in engine.variables]
        done = right = 0
        for part, batch in _stream(
            engine, examples.take(places), memory_budget, subset, progress
        ):
            norms, gradients, logits = engine.account(*batch)
            norms = norms.numpy()
            _check_finite(norms, part, examples.name)
            squared[places[done : done + len(part)]] = norms
            done += len(part)
            right += np.sum(logits.numpy().argmax(-1) == part.label)
            for so_far, gradient in zip(total, gradients, strict=True):
                so_far += gradient.numpy()
        is_test = subset == "test"
        weight = done if is_test else np.sum(examples.subset != "test")
        aggregate[subset] = [gradient / weight for gradient in total]
        accuracy.append(right / done)
    return SubsetAccount(subsets, squared, aggregate, np.array(accuracy))


def subset_gradients(
    engine: GradientEngine,
    examples: Examples,
    *,
    batch_statistics: bool = False,
    batch_size: int = 512,
    seed: int = 0,
    memory_budget: int = MEMORY_BUDGET,
) -> dict[str, list[np.ndarray]]:
    """The aggregate gradient of each subset, weighted as in the paper.

    See `account_subsets` for the weights: training subsets add up to the
    gradient of the mean training loss.

    Args:
        engine: of the model; its loss and model are used.
        examples: N examples.
        batch_statistics: False freezes BatchNorm's statistics. True takes the
            coupled gradient of a training step: batches of all training
            subsets together, in a random order, each normalized by its own
            statistics; the moving statistics are left as they were. Weights
            of the mean over batches; the test subset has batches of its own.
        batch_size: of the coupled batches.
        seed: of their order.
        memory_budget: of the uncoupled ones.

    Returns:
        subset -> V arrays, one for each of the engine's variables.
    """
    if not batch_statistics:
        return account_subsets(
            engine, examples, memory_budget=memory_budget
        ).aggregate
    result: dict[str, list[np.ndarray]] = {}
    for part in (examples.train, examples.test):
        if len(part):
            result |= _coupled_gradients(engine, part, batch_size, seed)
    return result


def _coupled_gradients(engine, examples, batch_size, seed):
    """Aggregates under batch statistics, of the subsets of `examples`."""
    subsets = examples.subsets
    order = np.random.default_rng(seed).permutation(len(examples))
    totals = [[np.zeros(v.shape) for v in engine.variables] for _ in subsets]
    moving = engine.model.non_trainable_variables
    with surgery.swapped_weights(moving, [v.numpy() for v in moving]):
        for start in range(0, len(examples), batch_size):
            part = examples.take(order[start : start + batch_size])
            member = np.stack([part.subset == s for s in subsets], axis=1)
            sums = engine.subset_sums(
                scale_pixels(part.image), part.example_id, part.label, member
            )
            for total, found in zip(totals, sums, strict=True):
                for so_far, gradient in zip(total, found, strict=True):
                    so_far += gradient.numpy()
    return {
        subset: [gradient / len(examples) for gradient in total]
        for subset, total in zip(subsets, totals, strict=True)
    }


def bytes_per_example(engine: GradientEngine, examples: Examples) -> int:
    """An upper bound of the memory that an example takes in a chunk.

    The sizes of all tensors of the graph for a batch of one are added up, as
    if none were freed before the end.
    """
    shape = examples.image.shape[1:]
    function = tf.function(engine._account_of).get_concrete_function(
        tf.TensorSpec([1, *shape], tf.float32),
        tf.TensorSpec([1], tf.int64),
        tf.TensorSpec([1], tf.int64),
    )
    graph = function.graph
    nested = [graph.get_operations()]
    for definition in graph.as_graph_def().library.function:
        known = graph._functions.get(definition.signature.name)
        if known is not None and hasattr(known, "graph"):
            nested.append(known.graph.get_operations())
    weights = {tuple(v.shape) for v in engine.variables}
    return sum(
        tensor.dtype.size * math.prod(tensor.shape)
        for operations in nested
        for operation in operations
        if operation.type not in _FREE_OPERATIONS
        for tensor in operation.outputs
        if tensor.shape.is_fully_defined()
        and tuple(tensor.shape) not in weights
        and tensor.dtype.size
    )


# These give out what is there already.
_FREE_OPERATIONS = (
    "ReadVariableOp",
    "Const",
    "Placeholder",
    "Identity",
    "Reshape",
    "StopGradient",
)


def _stream(
    engine: GradientEngine,
    examples: Examples,
    memory_budget: int,
    words: str,
    progress: bool = False,
) -> Iterator[tuple[Examples, tuple]]:
    """Chunks of examples that fit the budget, and their tensors."""
    _check_labels(engine, examples)
    size = _chunk_size(engine, examples, memory_budget)
    # Chunks of nearly equal size, rather than a short one at the end.
    chunks = np.array_split(np.arange(len(examples)), -(-len(examples) // size))
    for chunk in tqdm.tqdm(
        chunks, desc=words, unit="chunk", disable=not progress, leave=False
    ):
        part = examples.take(chunk)
        image = scale_pixels(part.image)
        yield part, (image, part.example_id, part.label)


def _chunk_size(engine, examples: Examples, memory_budget: int) -> int:
    key = examples.image.shape[1:]
    cache: dict = engine.__dict__.setdefault("_bytes_per_example", {})
    if key not in cache:
        cache[key] = bytes_per_example(engine, examples)
    return min(_LARGEST_CHUNK, examples_that_fit(cache[key], memory_budget))


def examples_that_fit(each: int, memory_budget: int) -> int:
    """How many examples of `each` bytes fit a budget: at least one.

    Raises:
        ValueError: not even one does.
    """
    if each > memory_budget:
        raise ValueError(
            f"One example takes up to {each:,} bytes. Expected a memory "
            f"budget of at least that. Received: {memory_budget:,} bytes."
        )
    return memory_budget // each


def _check_labels(engine: GradientEngine, examples: Examples) -> None:
    shape = getattr(engine.model, "output_shape", None)
    classes = shape[-1] if isinstance(shape, tuple) else None
    if classes is None or not len(examples):
        return
    largest = examples.label.max()
    if largest >= classes:
        raise ValueError(
            f"{examples.name} has labels up to {largest}, but model "
            f"'{engine.model.name}' has {classes} outputs. Expected labels "
            f"from 0 to {classes - 1}."
        )


def _check_finite(values: np.ndarray, part: Examples, name: str) -> None:
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        ids = part.example_id[bad][:5].tolist()
        raise FloatingPointError(
            f"The gradients of {bad.sum()} examples of {name} are not finite, "
            f"among them ids {ids}. Look at their pixels and at the weights; "
            "in mixed_float16, use mixed_bfloat16 instead."
        )


def group_matrix(
    engine: GradientEngine, groups: surgery.Groups | None
) -> np.ndarray:
    """[V, G]: 1 where a variable is in a group."""
    if groups is None:
        return np.eye(len(engine.variables), dtype=np.float32)
    place = {id(v): n for n, v in enumerate(engine.variables)}
    matrix = np.zeros((len(engine.variables), len(groups)), np.float32)
    by_group = surgery.group_variables(groups, trainable_only=True)
    for g, variables in enumerate(by_group.values()):
        for variable in variables:
            matrix[place[id(variable)], g] = 1
    return matrix


def group_gradients(
    engine: GradientEngine,
    groups: surgery.Groups,
    gradient: Sequence[np.ndarray],
) -> Mapping[str, list[np.ndarray]]:
    """The parts of a gradient (V arrays) by layer group."""
    place = {id(v): n for n, v in enumerate(engine.variables)}
    by_group = surgery.group_variables(groups, trainable_only=True)
    return {
        name: [gradient[place[id(v)]] for v in variables]
        for name, variables in by_group.items()
    }
