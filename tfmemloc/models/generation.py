"""Continues sequences of tokens greedily, many at a time.

Each step takes the token with the largest logit. Where all layers of a network
but its attention act on each position by itself, as in the transformer of this
library, the keys and values of earlier positions are kept, so that a step costs
one position (`Continuation(model).is_cached`). Any other functional model is
called on the whole sequence in each step.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph
from tfmemloc.checks import check_range
from tfmemloc.data.examples import IDS
from tfmemloc.layers.decoding import AddPositions, CausalAttention
from tfmemloc.layers.tied_dropout import ExampleTiedDropout
from tfmemloc.models.factory import Logits

_BY_POSITION = (
    keras.layers.Activation,
    keras.layers.Add,
    keras.layers.Dense,
    keras.layers.Dropout,
    keras.layers.Embedding,
    keras.layers.LayerNormalization,
    ExampleTiedDropout,
    Logits,
)


class Continuation:
    """Continues sequences with a network of next tokens; traced once.

    Args:
        model: functional; one input of tokens [batch, T], and perhaps
            `example_id`; outputs logits [batch, T, vocabulary].
        count: tokens that are added to each sequence.
        cached: keep keys and values; None does where it can.

    Raises:
        ValueError: the model is another one, or cannot be cached.

    Example:
        >>> network = build(ModelConfig("transformer", width=0.25), (16,), 256)
        >>> prompts = np.frombuffer(b"if x if x", np.uint8).reshape(1, -1)
        >>> Continuation(network, 4)(prompts).shape
        (1, 4)
    """

    def __init__(
        self, model: keras.Model, count: int, *, cached: bool | None = None
    ):
        check_range("count", count, 1, None)
        names = graph.input_names(model) if graph.is_functional(model) else []
        tokens = [name for name in names if name != IDS]
        if not is_decoder(model):
            raise ValueError(
                f"Model '{model.name}' expected to give the next token of one "
                "input: integers [batch, time] -> logits [batch, time, "
                f"vocabulary]. Received: {_described(model, names)}."
            )
        self._tokens = tokens[0]
        self._model, self._count = model, count
        places = keras.tree.flatten(graph.inputs_of(model))
        self.context = places[names.index(self._tokens)].shape[1]
        attention = [
            node.operation
            for node in graph.nodes(model)
            if isinstance(node.operation, CausalAttention)
        ]
        can_cache = attention and all(
            isinstance(
                node.operation, (*_BY_POSITION, CausalAttention, AddPositions)
            )
            for node in graph.nodes(model)
        )
        if cached and not can_cache:
            raise ValueError(
                f"Model '{model.name}' has layers of which it is not known how "
                "to keep what they computed of earlier positions. Expected "
                "cached=False, or a transformer of this library."
            )
        self.is_cached = bool(can_cache) if cached is None else cached
        self._attention = attention
        self._function = tf.function(
            self._continued,
            input_signature=[
                tf.TensorSpec([None, None], tf.int64),
                tf.TensorSpec([None], tf.int64),
                tf.TensorSpec([], tf.int32),
            ],
        )

    def __call__(
        self, prompts: np.ndarray, ids: Sequence[int] | None = None
    ) -> np.ndarray:
        """The tokens that follow each prompt: int64 [N, count].

        Args:
            prompts: integers [N, P].
            ids: [N], whose memorization units are on, where the behaviour of
                the network is `tied`.

        Raises:
            ValueError: prompts and what follows are longer than the context.
        """
        prompts = np.asarray(prompts)
        if prompts.ndim != 2 or prompts.dtype.kind not in "iu":
            raise ValueError(
                "prompts expected integers [N, time]. Received: shape "
                f"{prompts.shape}, dtype {prompts.dtype}."
            )
        wanted = prompts.shape[1] + self._count
        if not prompts.shape[1] > 0 or wanted > self.context:
            raise ValueError(
                f"The network sees {self.context} tokens. Expected a prompt "
                f"of 1 to {self.context - self._count} tokens before "
                f"{self._count} new ones. Received: {prompts.shape[1]}."
            )
        ids = np.zeros(len(prompts)) if ids is None else np.asarray(ids)
        return self._function(
            prompts.astype(np.int64), ids.astype(np.int64), self._count
        ).numpy()

    def generate(self, tokens: tf.Tensor, count: tf.Tensor) -> dict:
        """The signature of a served decoder: what follows each prompt.

        Args:
            tokens: int64 [batch, time].
            count: int32 [], how many to add.

        Returns:
            `tokens` int64 [batch, count].
        """
        wanted = tf.shape(tokens)[1] + count
        with tf.control_dependencies(
            [
                tf.debugging.assert_less_equal(
                    wanted,
                    self.context,
                    f"Prompt and new tokens are more than {self.context}.",
                )
            ]
        ):
            ids = tf.zeros([tf.shape(tokens)[0]], tf.int64)
        return {"tokens": self._function(tokens, ids, count)}

    def trace_count(self) -> int:
        """How often it was traced."""
        return self._function.experimental_get_tracing_count()

    def _continued(self, prompts, ids, count):
        size, start = tf.shape(prompts)[0], tf.shape(prompts)[1]
        room = tf.zeros([size, self.context - start], tf.int64)
        tokens = tf.concat([prompts, room], axis=1)
        tokens = tf.ensure_shape(tokens, [None, self.context])
        if not self.is_cached:
            for step in tf.range(start, start + count):
                logits = self._model(self._given(tokens, ids), training=False)
                tokens = _with_token(tokens, step, logits[:, step - 1])
            return tokens[:, start : start + count]
        caches = self._empty(size)
        logits, caches = self._step(prompts, ids, 0, caches)
        tokens = _with_token(tokens, start, logits[:, -1])
        for step in tf.range(start, start + count - 1):
            last = tokens[:, step : step + 1]
            logits, caches = self._step(last, ids, step, caches)
            tokens = _with_token(tokens, step + 1, logits[:, -1])
        return tokens[:, start : start + count]

    def _given(self, tokens, ids):
        return graph.arranged(self._model, {self._tokens: tokens, IDS: ids})

    def _empty(self, size) -> list[tf.Tensor]:
        """For each attention its keys and values, all positions empty."""
        caches = []
        for layer in self._attention:
            qkv = layer._inbound_nodes[0].input_tensors[0].shape[-1]
            per_head = qkv // (3 * layer.heads)
            shape = [size, layer.heads, self.context, per_head]
            dtype = layer.compute_dtype
            caches += [tf.zeros(shape, dtype), tf.zeros(shape, dtype)]
        return caches

    def _step(self, tokens, ids, start, caches):
        """Logits of some tokens, the first of which is at `start`."""
        caches, left = list(caches), iter(range(0, len(caches), 2))

        def call(node, args, kwargs):
            layer = node.operation
            if isinstance(layer, AddPositions):
                return layer.call(args[0], start)
            if not isinstance(layer, CausalAttention):
                return layer(*args, **kwargs)
            k = next(left)
            query, key, value = layer.split(args[0])
            caches[k] = _written(caches[k], key, start)
            caches[k + 1] = _written(caches[k + 1], value, start)
            place = start + tf.range(tf.shape(tokens)[1])
            seen = tf.range(self.context) <= place[:, tf.newaxis]
            return layer.attended(query, caches[k], caches[k + 1], seen)

        structure = graph.inputs_of(self._model)
        given = {self._tokens: tokens, IDS: ids}
        names = graph.input_names(self._model)
        inputs = keras.tree.pack_sequence_as(
            structure, [given[name] for name in names]
        )
        return graph.replay(self._model, inputs, call), caches


def _described(model: keras.Model, names: Sequence[str]) -> str:
    """Inputs and outputs of a model, for messages."""
    if not names:
        return "inputs that are not known"
    tensors = keras.tree.flatten(graph.inputs_of(model))
    inputs = ", ".join(
        f"{name} {tensor.dtype} {list(tensor.shape)}"
        for name, tensor in zip(names, tensors, strict=True)
    )
    outputs = keras.tree.flatten(graph.outputs_of(model))
    return f"{inputs} -> {', '.join(str(list(o.shape)) for o in outputs)}"


def is_decoder(model: keras.Model) -> bool:
    """Whether it gives the next token of one sequence of tokens."""
    if not graph.is_functional(model):
        return False
    tensors = [
        tensor
        for name, tensor in zip(
            graph.input_names(model),
            keras.tree.flatten(graph.inputs_of(model)),
            strict=True,
        )
        if name != IDS
    ]
    outputs = keras.tree.flatten(graph.outputs_of(model))
    return (
        len(tensors) == len(outputs) == 1
        and "int" in tensors[0].dtype
        and len(tensors[0].shape) == 2
        and len(outputs[0].shape) == 3
        and outputs[0].shape[1] == tensors[0].shape[1]
    )


def _with_token(tokens, place, logits):
    """The tokens with the likeliest one at a place."""
    best = tf.argmax(logits, axis=-1)[:, tf.newaxis]
    here = tf.range(tf.shape(tokens)[1]) == place
    return tf.where(here, best, tokens)


def _written(cache, values, start):
    """A cache with new positions from `start` on."""
    stop = start + tf.shape(values)[2]
    parts = [cache[:, :, :start], values, cache[:, :, stop:]]
    return tf.ensure_shape(tf.concat(parts, axis=2), cache.shape)
