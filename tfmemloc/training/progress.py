"""What is measured and shown after each epoch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmemloc.behaviours import Behaviours
from tfmemloc.data.examples import Examples
from tfmemloc.data.labels import drawn_ids
from tfmemloc.layers import masks
from tfmemloc.runs import Run


def sampled(
    examples: Examples, most: int | None
) -> tuple[Examples, dict[str, int]]:
    """At most so many examples of each subset, drawn by their ids.

    Returns:
        The examples; name of a subset that is not whole -> how many are left.
    """
    counts = {
        name: np.sum(examples.subset == name) for name in examples.subsets
    }
    large = [name for name in counts if most and counts[name] > most]
    if not large:
        return examples, {}
    kept = ~np.isin(examples.subset, large)
    for name in large:
        ids = examples.example_id[examples.subset == name]
        drawn = drawn_ids(ids, most, masks.fold_seed(0, "measured"))
        kept |= np.isin(examples.example_id, drawn)
    return examples.take(kept), dict.fromkeys(large, most)


def accuracies(
    behaviours: Behaviours, examples: Examples
) -> dict[str, dict[str, float]]:
    """Accuracy of each subset, in each behaviour, now."""
    return {
        name: dict(zip(metrics.subsets, metrics.accuracy.tolist(), strict=True))
        for name, metrics in behaviours.evaluate(examples).items()
    }


def progress_words(line: Mapping[str, Any]) -> str:
    """The progress bar's words: epoch, loss, accuracies."""
    parts = [f"epoch {line['epoch']}", f"loss {line['loss']:.3f}"]
    for inference, accuracy in line.get("accuracy", {}).items():
        numbers = " ".join(
            f"{subset} {100 * value:.0f}%" for subset, value in accuracy.items()
        )
        parts.append(f"{inference}: {numbers}")
    if line.get("early_part_ended"):
        parts.append("early part over")
    return ", ".join(parts)


def summary_writer(run: Run, enabled: bool):
    """A writer of TensorBoard logs; None where they are not wanted.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """
    if not enabled:
        return None
    if importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "TensorBoard logs were asked for, but TensorBoard is not "
            "installed. Run: pip install 'tfmemloc[tensorboard]'"
        )
    return tf.summary.create_file_writer(str(run.directory / "tensorboard"))


def write_summary(writer, line: Mapping[str, Any]) -> None:
    """Writes a line of the history to TensorBoard."""
    if writer is None:
        return
    with writer.as_default(step=line["epoch"]):
        for name in ("loss", "learning_rate"):
            tf.summary.scalar(name, line[name])
        for inference, accuracy in line.get("accuracy", {}).items():
            for subset, value in accuracy.items():
                tf.summary.scalar(f"accuracy/{inference}/{subset}", value)
    writer.flush()
