"""More units for memory, beside a network that is left as it is.

The paper *carves* memorization units out of a layer's own: what is left after
the drop is narrower. Here a place of C units is *expanded* by r C memorization
units m, which read the place's tensor x and write back to it:

    m = relu(norm(W x + b)),    y = x + V (mask(id) * m)

`mask` is `ExampleTiedDropout` without generalization units, and V begins at
zero. So the expanded network computes at first what the given one does, and
with its memorization units off it *is* the given one, bit for bit, all its
layers and weights: the drop costs no width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfmemloc.layers import masks
from tfmemloc.layers.tied_dropout import ExampleTiedDropout


class MemoryBranch:
    """The layers that expand one place; called with its tensor and the ids.

    Ordinary layers, so that every probe sees their units; this class only
    makes them, and is no part of the model.

    Args:
        expand: how many memorization units there are for each of the C.
        p_mem: probability with which an example keeps one.
        seed: of masks and initialization.
        prefix: of the names of the new layers.
        tied_name: name of the `ExampleTiedDropout` layer.
        batch_norm: arguments of a BatchNorm before the ReLU; None puts none.
        dtype: dtype policy of the new layers.
    """

    def __init__(
        self,
        *,
        expand: float,
        p_mem: float,
        seed: int,
        prefix: str,
        tied_name: str,
        batch_norm: Mapping[str, Any] | None,
        dtype: Any = None,
    ):
        self._expand = expand
        self._seed = seed
        self._batch_norm = batch_norm
        self._named = lambda role: {"dtype": dtype, "name": f"{prefix}{role}"}
        self._tied = ExampleTiedDropout(
            0.0, p_mem, seed=seed, dtype=dtype, name=tied_name
        )
        self._layers: tuple | None = None

    def __call__(
        self, x: keras.KerasTensor, example_ids: keras.KerasTensor
    ) -> keras.KerasTensor:
        """The expanded tensor, like `x`: [batch, ..., C]."""
        if self._layers is None:
            self._layers = self._made(x.shape[-1])
        units, recall, add = self._layers
        memory = x
        for layer in units:
            memory = layer(memory)
        return add([x, recall(self._tied(memory, example_ids))])

    def _made(self, units: int) -> tuple:
        """The layers for a place of so many units."""
        initializer = keras.initializers.VarianceScaling(
            1 / 3,
            "fan_in",
            "uniform",
            seed=masks.fold_seed(self._seed, "memory") % 2**31,
        )
        memory = keras.layers.Dense(
            max(1, round(self._expand * units)),
            use_bias=self._batch_norm is None,
            kernel_initializer=initializer,
            **self._named("memory"),
        )
        norms = []
        if self._batch_norm is not None:
            norms = [
                keras.layers.BatchNormalization(
                    **self._batch_norm, **self._named("memory_norm")
                )
            ]
        relu = keras.layers.ReLU(**self._named("memory_relu"))
        recall = keras.layers.Dense(
            units,
            use_bias=False,
            kernel_initializer="zeros",
            **self._named("recall"),
        )
        add = keras.layers.Add(**self._named("expanded"))
        return (memory, *norms, relu), recall, add
