"""Per-example gradients against ordinary batch gradients."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf

from benchmarks.harness import Row, ratios
from tfmemloc.configs import ModelConfig
from tfmemloc.gradients.engine import GradientEngine
from tfmemloc.losses import cross_entropy
from tfmemloc.models import build

_BATCH = 64
_BUDGET_MIB = 1024
# Of norms and dots over a batch gradient, and of vectorized_map over norms.
_REACHES = {
    "resnet9": (1.2, 1.5, 1.0),
    "half resnet9": (1.3, 1.5, 1.0),
    "vit": (1.1, 1.5, 1.0),
}


def run() -> list[Row]:
    """ResNet-9 at full and half width, a quarter ViT; 32x32, batch 64."""
    return [
        *_ratios("resnet9", ModelConfig("resnet9", dropout="none")),
        *_ratios("half resnet9", ModelConfig(dropout="none", width=0.5)),
        *_ratios("vit", ModelConfig("vit", dropout="none", width=0.25)),
        _peak_memory(),
    ]


def _ratios(name: str, config: ModelConfig) -> list[Row]:
    model = build(config, (32, 32, 3), 10)
    rng = np.random.default_rng(0)
    image = tf.constant(rng.uniform(-1, 1, (_BATCH, 32, 32, 3)), tf.float32)
    ids = tf.range(_BATCH, dtype=tf.int64)
    label = ids % 10
    feed = {"image": image, "example_id": ids}
    engine = GradientEngine(model)
    reference = GradientEngine(model, engine="vectorized_map")
    direction = [tf.constant(v.numpy()) for v in engine.variables]

    gradient = batch_gradient(model, feed, label)
    sides = {
        "batch": lambda: gradient()[0].numpy(),
        "norms": lambda: engine.norms_squared(feed, label).numpy(),
        "dots": lambda: engine.dots(feed, label, direction).numpy(),
        "vectorized": lambda: reference.norms_squared(feed, label).numpy(),
    }
    reach = _REACHES[name]
    return ratios(
        "gradients",
        sides,
        [
            (
                f"{name}: norms / batch gradient",
                "norms",
                "batch",
                reach[0],
                True,
            ),
            (f"{name}: dots / batch gradient", "dots", "batch", reach[1], True),
            (
                f"{name}: vectorized_map / layerwise",
                "vectorized",
                "norms",
                reach[2],
                False,
            ),
        ],
    )


def batch_gradient(model: keras.Model, feed, label):
    """A traced function that gives the gradient of a batch's mean loss."""

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            logits = model(feed, training=False)
            loss = tf.reduce_mean(cross_entropy(label, logits))
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    return gradient


def _peak_memory() -> Row:
    """Growth of a process's peak memory while norms stream, over the budget.

    In a process of its own, since the peak of this one is long past.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peak_memory", str(_BUDGET_MIB)],
        check=True,
        capture_output=True,
        text=True,
    )
    share = float(done.stdout.split()[-1])
    return Row(
        "gradients",
        f"resnet9: peak memory / budget of {_BUDGET_MIB} MiB",
        share,
        share,
        share,
        1,
        1.0,
        True,
    )
