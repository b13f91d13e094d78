"""Makes the layers of one network: seeded, named, and with its dropout."""

from __future__ import annotations

import keras

from tfmemloc.configs import ModelConfig
from tfmemloc.layers import masks
from tfmemloc.layers.memory_branch import MemoryBranch
from tfmemloc.layers.sparse_dropout import SparseDropout
from tfmemloc.layers.switchable_batch_norm import SwitchableBatchNormalization
from tfmemloc.layers.tied_dropout import ExampleTiedDropout, dropped_fraction


@keras.saving.register_keras_serializable(package="tfmemloc")
class Logits(keras.layers.Layer):
    """Casts a network's logits to float32, whatever dtype came before.

    A loss in half precision would lose accuracy. Takes the example ids too,
    and does nothing with them: every network has the same inputs, and Keras
    wants each of them to be connected.
    """

    def call(self, inputs, example_ids=None):
        """The inputs, which Keras has cast to the layer's dtype."""
        del example_ids
        return inputs

    def compute_output_shape(self, inputs_shape, example_ids_shape=None):
        """The shape of the inputs."""
        return inputs_shape


class LayerFactory:
    """Applies layers to tensors, each with its own stream of randomness.

    Initialization is PyTorch's, which the paper used: uniform in
    +-1 / sqrt(fan in). BatchNorm likewise: momentum 0.9, epsilon 1e-5.
    """

    def __init__(
        self,
        config: ModelConfig,
        example_id: keras.KerasTensor,
        dtype: str,
        synchronized: bool,
    ):
        self.config = config
        self._example_id = example_id
        self.dtype = dtype
        self._batch_norm = {
            "momentum": 0.9,
            "epsilon": 1e-5,
            "synchronized": synchronized,
        }
        self._normalizes = False
        self._is_tied = False
        self._layers = 0

    def width(self, units: int) -> int:
        """`units` times the width factor, at least 1."""
        return max(1, round(units * self.config.width))

    def conv(self, x, group, units, kernel=3, stride=1, padding="same"):
        """Convolution without bias, BatchNorm and ReLU; one layer group."""
        return self.relu(
            self.conv_norm(x, group, units, kernel, stride, padding), group
        )

    def conv_norm(
        self, x, group, units, kernel=3, stride=1, padding="same", role=""
    ):
        """Convolution without bias, and BatchNorm."""
        if padding == "valid" and min(x.shape[1:3]) < kernel:
            padding = "same"  # So that 8x8 digits get through.
        x = keras.layers.Conv2D(
            units,
            kernel,
            strides=stride,
            padding=padding,
            use_bias=False,
            kernel_initializer=self.initializer(),
            dtype=self.dtype,
            name=f"{group}.{role}conv",
        )(x)
        self._normalizes = True
        settings = {
            **self._batch_norm,
            "dtype": self.dtype,
            "name": f"{group}.{role}norm",
        }
        if self.config.own_statistics and self._is_tied:
            return SwitchableBatchNormalization(**settings)(x, self._example_id)
        return keras.layers.BatchNormalization(**settings)(x)

    def relu(self, x, group, role="relu"):
        """ReLU, named after its group."""
        return self.apply(keras.layers.ReLU, x, f"{group}.{role}")

    def dense(self, x, name, units, use_bias=True):
        """Dense layer on the last axis."""
        limit = x.shape[-1] ** -0.5
        bias = keras.initializers.RandomUniform(
            -limit, limit, seed=self.next_seed()
        )
        return keras.layers.Dense(
            units,
            use_bias=use_bias,
            kernel_initializer=self.initializer(),
            bias_initializer=bias,
            dtype=self.dtype,
            name=name,
        )(x)

    def apply(self, layer_class, x, name, **kwargs):
        """Applies a layer without randomness."""
        return layer_class(dtype=self.dtype, name=name, **kwargs)(x)

    def tie(self, x, group):
        """The configured dropout, at one of the paper's places."""
        config = self.config
        self._is_tied = config.dropout == "example_tied"
        if self._is_tied and config.expand:
            return MemoryBranch(
                expand=config.expand,
                p_mem=config.p_mem,
                seed=self._dropout_seed(group),
                prefix=f"{group}.",
                tied_name=f"{group}.dropout",
                batch_norm=self._batch_norm if self._normalizes else None,
                dtype=self.dtype,
            )(x, self._example_id)
        return self._carved(x, group, config.p_gen)

    def hidden_units(self, units: int) -> int:
        """The width of a hidden layer whose memory is added to it."""
        if self.config.dropout != "example_tied":
            return units
        return units + round(self.config.expand * units)

    def tie_hidden(self, x, group, units: int):
        """The configured dropout of a layer of `hidden_units(units)`.

        What an expanded network has more is its memory, so that it needs no
        layers beside the given ones.
        """
        # Half a unit more, so that rounding down gives all of them.
        added = (units + 0.5) / x.shape[-1]
        return self._carved(
            x, group, added if self.config.expand else self.config.p_gen
        )

    def _carved(self, x, group, p_gen: float):
        """The configured dropout, of the units that a layer has."""
        config, name = self.config, f"{group}.dropout"
        seed = self._dropout_seed(group)
        rate = dropped_fraction(config.p_gen, config.p_mem)
        if config.dropout == "example_tied":
            return ExampleTiedDropout(
                p_gen,
                config.p_mem,
                seed=seed,
                rescale=config.rescale,
                dtype=self.dtype,
                name=name,
            )(x, self._example_id)
        if config.dropout == "sparse":
            return self.apply(SparseDropout, x, name, rate=rate, seed=seed)
        if config.dropout == "standard":
            return self.plain_dropout(x, name, rate)
        return x

    def _dropout_seed(self, group: str) -> int:
        return masks.fold_seed(self.config.seed, "dropout", group)

    def plain_dropout(self, x, name, rate):
        """Keras dropout with a seed of its own."""
        return self.apply(
            keras.layers.Dropout, x, name, rate=rate, seed=self.next_seed()
        )

    def initializer(self) -> keras.initializers.Initializer:
        """Uniform in +-1 / sqrt(fan in), with a seed of its own."""
        return keras.initializers.VarianceScaling(
            1 / 3, "fan_in", "uniform", seed=self.next_seed()
        )

    def next_seed(self) -> int:
        """A seed for the next layer that draws."""
        self._layers += 1
        return masks.fold_seed(self.config.seed, "layer", self._layers) % 2**31
