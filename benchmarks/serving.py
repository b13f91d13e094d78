"""Pruned networks against the ones they came from."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
import tensorflow as tf

from benchmarks.harness import Row, ratios
from tfmemloc import evaluation
from tfmemloc.configs import ModelConfig
from tfmemloc.models import build
from tfmemloc.serving.export import export_saved_model
from tfmemloc.serving.folding import fold_batch_norm
from tfmemloc.serving.pruning import prune_memorization

_SHAPE = (32, 32, 3)


def run() -> list[Row]:
    """ResNet-9 at p_gen 0.2 and ResNet-50 as the paper tied them."""
    resnet9 = build(ModelConfig(p_gen=0.2), _SHAPE, 10)
    resnet50 = build(ModelConfig("resnet50"), _SHAPE, 10)
    return [
        *_speed("resnet9, batch 1", resnet9, 1, None),
        *_speed("resnet9, batch 64", resnet9, 64, 6),
        *_speed("resnet50, batch 64", resnet50, 64, None),
        _size("resnet9", resnet9, 10),
        _size("resnet50", resnet50, None),
    ]


def _speed(words, model, batch, reach) -> list[Row]:
    image = tf.constant(
        np.random.default_rng(0).uniform(-1, 1, (batch, *_SHAPE)), tf.float32
    )
    inputs = {"image": image, "example_id": tf.zeros([batch], tf.int64)}
    whole = evaluation.Predictor(model)
    pruned = evaluation.Predictor(fold_batch_norm(prune_memorization(model)))
    return ratios(
        "serving",
        {
            "whole": lambda: whole(inputs).numpy(),
            "pruned": lambda: pruned(inputs).numpy(),
        },
        [(f"{words}: time whole / pruned", "whole", "pruned", reach, False)],
    )


def _size(words, model, reach) -> Row:
    """Bytes of the SavedModels."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = [
            sum(
                file.stat().st_size
                for file in export_saved_model(
                    model, pathlib.Path(folder) / name, prune=prune, fold=prune
                ).rglob("*")
            )
            for name, prune in (("whole", False), ("pruned", True))
        ]
    value = sizes[0] / sizes[1]
    return Row(
        "serving",
        f"{words}: bytes whole / pruned",
        value,
        value,
        value,
        1,
        reach,
        lower_is_better=False,
    )
