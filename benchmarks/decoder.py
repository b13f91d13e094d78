"""What the small decoder costs: gradients, training, generation.

The decoder has 128 units, two blocks and 128 tokens of context; batches of 32.
`plain Keras` is the same network out of Keras's own layers (whose attention has
biases, too), trained by `fit` with the same optimizer.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from benchmarks.gradients import batch_gradient
from benchmarks.harness import Row, ratios
from tfmemloc import data
from tfmemloc.configs import ModelConfig, TrainConfig
from tfmemloc.gradients.engine import GradientEngine
from tfmemloc.models import build
from tfmemloc.models.generation import Continuation
from tfmemloc.training.optimizer import make_optimizer
from tfmemloc.training.step import make_train_step

_CONTEXT, _VOCABULARY, _UNITS, _HEADS, _BLOCKS = 128, 256, 128, 4, 2
_BATCH, _STEPS = 32, 8
_NETWORK = ModelConfig("transformer", dropout="none", depth=_BLOCKS)
_TRAINING = TrainConfig(
    batch_size=_BATCH, optimizer="adam", learning_rate=0.002, weight_decay=0.0
)
_PROMPTS, _SHOWN, _SAID = 16, 40, 40


def run() -> list[Row]:
    """Norms, an epoch of eight steps, and 40 new tokens of 16 sequences."""
    tokens = np.random.default_rng(0).integers(
        1, _VOCABULARY, (_BATCH * _STEPS, _CONTEXT)
    )
    model = build(_NETWORK, (_CONTEXT,), _VOCABULARY)
    return [*_norms(model, tokens), *_epochs(tokens), *_said(model, tokens)]


def _norms(model: keras.Model, tokens: np.ndarray) -> list[Row]:
    engine = GradientEngine(model)
    reference = GradientEngine(model, engine="vectorized_map")
    feed = {
        "tokens": tf.constant(tokens[:_BATCH]),
        "example_id": tf.range(_BATCH, dtype=tf.int64),
    }
    label = tf.roll(feed["tokens"], -1, axis=1)

    gradient = batch_gradient(model, feed, label)
    return ratios(
        "decoder",
        {
            "batch": lambda: tf.nest.map_structure(
                tf.convert_to_tensor, gradient()
            ),
            "norms": lambda: engine.norms_squared(feed, label).numpy(),
            "vectorized": lambda: reference.norms_squared(feed, label).numpy(),
        },
        [
            ("decoder: norms / batch gradient", "norms", "batch", 1.5, True),
            (
                "decoder: vectorized_map / layerwise",
                "vectorized",
                "norms",
                1.0,
                False,
            ),
        ],
    )


def _epochs(tokens: np.ndarray) -> list[Row]:
    return ratios(
        "decoder",
        {"ours": _ours(tokens), "fit": _fit(tokens)},
        [("decoder: training / plain Keras fit", "ours", "fit", 1.0, True)],
    )


def _ours(tokens: np.ndarray):
    """An epoch of our training, its data pipeline included."""
    model = build(_NETWORK, (_CONTEXT,), _VOCABULARY)
    examples = data.from_arrays(tokens, classes=_VOCABULARY).train
    optimizer = make_optimizer(_TRAINING, 1000)
    optimizer.build(model.trainable_variables)
    batches = data.make_batches(examples, _BATCH, seed=0, stop_step=_STEPS)
    step = make_train_step(model, optimizer, batch_spec=batches.element_spec)

    def epoch():
        for batch in batches:
            loss = step(batch)
        return float(loss)

    return epoch


def _fit(tokens: np.ndarray):
    """An epoch of `fit` of the same network."""
    model = plain_decoder()
    optimizer = make_optimizer(_TRAINING, 1000)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,  # Slower on a CPU.
    )
    inputs, label = tokens, np.roll(tokens, -1, axis=1)
    return lambda: model.fit(inputs, label, batch_size=_BATCH, verbose=0)


def plain_decoder() -> keras.Model:
    """The decoder out of Keras's own layers."""
    layers = keras.layers
    tokens = keras.Input((_CONTEXT,), dtype="int64")
    places = keras.ops.zeros_like(tokens) + keras.ops.arange(
        _CONTEXT, dtype="int64"
    )
    x = layers.Embedding(_VOCABULARY, _UNITS)(tokens)
    x = x + layers.Embedding(_CONTEXT, _UNITS)(places)
    for _ in range(_BLOCKS):
        inner = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.MultiHeadAttention(_HEADS, _UNITS // _HEADS)(
            inner, inner, use_causal_mask=True
        )
        inner = layers.LayerNormalization(epsilon=1e-5)(x)
        inner = layers.Dense(4 * _UNITS, activation=_gelu)(inner)
        x = x + layers.Dense(_UNITS)(inner)
    x = layers.LayerNormalization(epsilon=1e-5)(x)
    return keras.Model(tokens, layers.Dense(_VOCABULARY)(x))


def _gelu(x):
    return keras.ops.gelu(x, approximate=True)


def _said(model: keras.Model, tokens: np.ndarray) -> list[Row]:
    prompts = tokens[:_PROMPTS, :_SHOWN]
    sides = {
        name: Continuation(model, _SAID, cached=cached)
        for name, cached in (("cached", True), ("whole", False))
    }
    return ratios(
        "decoder",
        {
            name: lambda continued=continued: continued(prompts)
            for name, continued in sides.items()
        },
        [
            (
                "decoder: generation without a cache / with one",
                "whole",
                "cached",
                1.0,
                False,
            )
        ],
        repeats=5,
    )
