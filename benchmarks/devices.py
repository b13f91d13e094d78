"""What training costs on this machine's first GPU, or on its CPU.

  python -m benchmarks.devices --json=docs/results/devices.json

prints images a second of ResNet-9 in its own width on 32x32 pictures, for each
dtype, with XLA and without, and what example-tied dropout and per-example
gradient norms cost beside that. Compilation takes most of a GPU's few minutes;
on a CPU say `--batch=4`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.harness import timed
from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import losses, report, storage
from tfmemloc.configs import ModelConfig, TrainConfig
from tfmemloc.gradients.engine import GradientEngine
from tfmemloc.models import build
from tfmemloc.training.optimizer import make_optimizer
from tfmemloc.training.step import make_train_step

FLAGS = flags.FLAGS
_STEPS = 10
_REPEATS = 5


def main() -> None:
    """Measures, prints a table, writes the rows."""
    rows = [
        {"device": _device(), "batch": FLAGS.batch, **line}
        for line in [*_steps(), *_gradients()]
    ]
    print(report.text_table(rows, percent=False))
    if FLAGS.json:
        storage.write_json(FLAGS.json, {"rows": rows})
    sys.stdout.flush()


def _device() -> str:
    for gpu in tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(gpu)["device_name"]
    return "CPU"


def _steps() -> list[dict[str, Any]]:
    """Training steps without dropout and with example-tied dropout."""
    found = []
    for dtype in ("float32", "mixed_bfloat16"):
        for jit in (False, True):
            sides = {
                dropout: _step(dropout, dtype, jit)
                for dropout in ("none", "example_tied")
            }
            name = dtype + (", XLA" if jit else "")
            found.append(_line(f"training step, {name}", sides))
    return found


def _step(dropout: str, dtype: str, jit: bool) -> Callable[[], float]:
    keras.utils.set_random_seed(0)
    model = build(ModelConfig(dropout=dropout), (32, 32, 3), 10, dtype=dtype)
    optimizer = make_optimizer(TrainConfig(), 1000)
    optimizer.build(model.trainable_variables)
    feed, label = _batch()
    batch = (feed, label)
    step = make_train_step(
        model,
        optimizer,
        jit_compile=jit,
        batch_spec=tf.nest.map_structure(tf.TensorSpec.from_tensor, batch),
    )

    def work() -> float:
        for _ in range(_STEPS):
            loss = step(batch)
        return float(loss)  # Waits for the last step.

    return work


def _gradients() -> list[dict[str, Any]]:
    """The norm of each example's gradient, beside one gradient of all."""
    model = build(ModelConfig(dropout="none"), (32, 32, 3), 10)
    engine = GradientEngine(model)
    feed, label = _batch()

    @tf.function
    def of_batch():
        with tf.GradientTape() as tape:
            loss = losses.cross_entropy(label, model(feed, training=False))
        return tape.gradient(loss, [v.value for v in engine.variables])

    def work(take: Callable[[], tf.Tensor]) -> Callable[[], np.ndarray]:
        def all_steps():
            for _ in range(_STEPS):
                found = take()
            return found.numpy()

        return all_steps

    sides = {
        "batch gradient": work(lambda: of_batch()[0]),
        "norms": work(lambda: engine.norms_squared(feed, label)),
    }
    return [_line("gradients, float32", sides)]


def _batch() -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (FLAGS.batch, 32, 32, 3))
    ids = tf.range(FLAGS.batch, dtype=tf.int64)
    feed = {"image": tf.constant(image, tf.float32), "example_id": ids}
    return feed, ids % 10


def _line(name: str, sides: Mapping[str, Callable]) -> dict[str, Any]:
    """Images a second of the first side, and what the second costs."""
    base, other = sides
    started = time.perf_counter()
    sides[base]()
    compiled = time.perf_counter() - started
    seconds = timed(sides, _REPEATS)
    cost = seconds[other] / seconds[base]
    images = FLAGS.batch * _STEPS
    return {
        "what": name,
        "images_per_second": float(images / np.median(seconds[base])),
        "beside": other,
        "value": float(np.median(cost)),
        "min": float(cost.min()),
        "max": float(cost.max()),
        "first_call_seconds": compiled,
    }


if __name__ == "__main__":
    flags.flags.DEFINE_integer("batch", 512, "Examples in a step.")
    flags.flags.DEFINE_string("json", None, "Also write the rows to this file.")
    flags.run(main)
