"""Gradients by example and by subset (paper, section 4.1).

For an example i with loss l_i and the trainable weights w, the per-example
gradient is  g_i = d l_i / d w  (+ weight_decay * w). Two engines give it:

- `layerwise`: one forward and one backward pass for the whole batch, then a
  closed form per layer (see `closed_forms`). It costs little more than one
  ordinary batch gradient.
- `vectorized_map`: `tf.vectorized_map` around a `tf.GradientTape`. It works for
  any model, costs several times as much, and serves as the reference.

Per-example quantities use BatchNorm's *frozen* (moving) statistics: with batch
statistics the loss of one example depends on all others of its batch, so that
"the gradient of example i" is not defined. Aggregates may also be taken with
`batch_statistics=True`, which is the coupled gradient of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmemloc import tracing
from tfmemloc.evaluation import as_logits
from tfmemloc.gradients.calls import (
    dense_gradients,
    recorded_calls,
    terms_by_vectorized_map,
    terms_of_call,
    weighted_layers,
)
from tfmemloc.gradients.terms import Full, Term, add_terms
from tfmemloc.graph.inputs import arranged
from tfmemloc.losses import Array, Loss, cross_entropy

ENGINES = ("layerwise", "vectorized_map")

# Inputs by name [B, ...]; the ids are under `example_id`.
Inputs = Mapping[str, Any]


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

    Example:
        >>> engine = GradientEngine(model)
        >>> engine.norms_squared(inputs, labels).shape[0]  # By variable.
        80
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

    def norms_squared(self, inputs: Inputs, label: Array) -> tf.Tensor:
        """Squared norm of each example's gradient, by variable: [B, V]."""
        return self._call(self._norms_squared_of, inputs, label)

    def dots(
        self, inputs: Inputs, label: Array, direction: Sequence[Array]
    ) -> tf.Tensor:
        """Product of each example's gradient with a direction: [B, V].

        Args:
            inputs: by name, [B, ...], with the ids.
            label: [B].
            direction: V tensors in the variables' shapes.
        """
        direction = [tf.convert_to_tensor(d, tf.float32) for d in direction]
        return self._call(self._dots_of, inputs, label, direction=direction)

    def gradients(self, inputs: Inputs, label: Array) -> list[tf.Tensor]:
        """Each example's gradient: V tensors [B, *shape of the variable]."""
        return self._call(self._gradients_of, inputs, label)

    def squares(self, inputs: Inputs, label: Array) -> list[tf.Tensor]:
        """Squared per-example gradients, summed: V tensors like the weights."""
        return self._call(self._squares_of, inputs, label)

    def account(
        self, inputs: Inputs, label: Array
    ) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
        """Squared norms [B, V], summed gradients [V], logits; in one pass."""
        return self._call(self._account_of, inputs, label)

    def subset_sums(
        self, inputs: Inputs, label: Array, member: Array
    ) -> list[list[tf.Tensor]]:
        """Gradients of each subset's summed loss, under batch statistics.

        The model is called with `training=True`, so that its moving
        statistics move.

        Args:
            inputs: by name, [B, ...], with the ids.
            label: [B].
            member: [B, S] 1 where an example is in a subset, else 0.

        Returns:
            S lists of V tensors.
        """
        member = tf.convert_to_tensor(member, tf.float32)
        return self._call(self._subset_sums_of, inputs, label, member)

    def trace_count(self) -> int:
        """How often any of the functions was traced."""
        return sum(
            function.experimental_get_tracing_count()
            for function in self._functions.values()
        )

    def as_batch(self, inputs: Inputs, label: Array) -> tuple[Any, tf.Tensor]:
        """Inputs as the model takes them, and labels as integers."""
        label = tf.convert_to_tensor(label)
        if not label.dtype.is_integer:
            raise ValueError(
                "Expected labels that are integers. Received: dtype "
                f"{label.dtype.name}."
            )
        return arranged(self.model, inputs), tf.cast(label, tf.int64)

    def _call(self, function, inputs, label, *more, direction=None):
        """Calls a function, traced once for any number of such examples."""
        batch = (*self.as_batch(inputs, label), *more)
        batch = tf.nest.map_structure(tf.convert_to_tensor, batch)
        shapes = [tuple(t.shape[1:]) for t in tf.nest.flatten(batch)]
        key = (function.__name__, *shapes)
        if key not in self._functions:
            signature = [
                *tf.nest.map_structure(
                    lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype),
                    batch,
                )
            ]
            if direction is not None:
                signature.append(
                    [tf.TensorSpec.from_tensor(d) for d in direction]
                )
            self._functions[key] = tracing.function(
                function, input_signature=signature
            )
        arguments = batch if direction is None else (*batch, direction)
        return self._functions[key](*arguments)

    def _norms_squared_of(self, x, label):
        terms, _, _ = self._make_terms(x, label)
        return tf.stack([term.norms_squared() for term in terms], axis=1)

    def _dots_of(self, x, label, direction):
        terms, _, _ = self._make_terms(x, label)
        return tf.stack(
            [term.dot(d) for term, d in zip(terms, direction, strict=True)],
            axis=1,
        )

    def _gradients_of(self, x, label):
        terms, _, _ = self._make_terms(x, label)
        return [term.full() for term in terms]

    def _squares_of(self, x, label):
        terms, _, _ = self._make_terms(x, label)
        return [tf.reduce_sum(term.full() ** 2, axis=0) for term in terms]

    def _account_of(self, x, label):
        terms, sums, logits = self._make_terms(x, label)
        norms = tf.stack([term.norms_squared() for term in terms], axis=1)
        return norms, sums, logits

    def _subset_sums_of(self, x, label, member):
        with tf.GradientTape(persistent=True) as tape:
            losses, _ = self._forward(x, label, training=True)
            members = tf.unstack(member, axis=1)
            sums = [tf.reduce_sum(losses * one) for one in members]
        return [dense_gradients(tape, total, self.variables) for total in sums]

    def _forward(self, x, label, training=False):
        """The losses [B], and the logits."""
        logits = self.model(x, training=training)
        losses = self._loss(label, logits)
        if losses.shape.rank != 1:
            raise ValueError(
                "Expected a loss of each example, of shape [batch]. Received: "
                f"shape {losses.shape}. Use reduction=None in a Keras loss."
            )
        return losses, logits

    def _cross_entropy(self, label, outputs):
        return cross_entropy(label, as_logits(self.model, outputs))

    def _layerwise(self, x, label):
        """The term of each variable, the summed gradients [V], the logits."""
        layers = weighted_layers(self.model)
        values = [variable.value for variable in self.variables]
        with (
            tf.GradientTape() as tape,
            recorded_calls(layers) as calls,
        ):
            losses, logits = self._forward(x, label)
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
            found = terms_of_call(call, gradient)
            if found is None:
                fallbacks.append(call.layer.name)
                found = terms_by_vectorized_map(call, gradient)
            for variable, term in found:
                if id(variable) in terms:
                    terms[id(variable)].append(term)
        self.fallbacks = tuple(dict.fromkeys(fallbacks))
        self._check_covered(terms, sums)
        batch = tf.shape(label)[0]
        found = [
            add_terms(terms[id(v)])
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

    def _vectorized(self, x, label):
        """As `_layerwise`, by `tf.vectorized_map` over the whole network."""

        def one(example):
            single = tf.nest.map_structure(lambda t: t[tf.newaxis], example)
            with tf.GradientTape() as tape:
                loss, logits = self._forward(*single)
            return dense_gradients(tape, loss, self.variables), logits[0]

        gradients, logits = tf.vectorized_map(one, (x, label))
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
