"""What pruning knows of each kind of layer.

A *rule* says of one call which of its output channels are zero, which input
channels the kept ones need, and how to make the layer anew with these alone.
The base class knows nothing: such a layer stays whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

Mask = np.ndarray  # bool [C].


@dataclasses.dataclass
class Plan:
    """How a call is made anew.

    Attributes:
        targets: for each input, the channels that it must have.
        have: the channels of the output.
        layer: what to call.
        weights: of the layer, once it is built; None keeps them.
    """

    targets: list[Mask]
    have: Mask
    layer: Callable
    weights: list[np.ndarray] | None = None


class Rule:
    """What is known of a call's channels; by itself nothing: it is whole."""

    whole = True

    def __init__(self, node):
        self.layer = node.operation
        self.inputs = [channels_of(t) for t in node.input_tensors]
        outputs = [channels_of(t) for t in node.output_tensors]
        self.channels = outputs[0] if outputs else 1

    def zero(self, zeros: list[Mask]) -> Mask:
        """Output channels that are 0 where these input channels are."""
        del zeros
        return np.zeros(self.channels, bool)

    def wanted(self, keep: Mask) -> list[Mask]:
        """Input channels that the kept output channels need."""
        del keep
        return [np.ones(count, bool) for count in self.inputs]

    def plan(self, have: list[Mask], keep: Mask) -> Plan:
        """The call anew, on inputs that have these channels."""
        del have, keep
        full = [np.ones(count, bool) for count in self.inputs]
        return Plan(full, np.ones(self.channels, bool), *_copy(self.layer))


class Channelwise(Rule):
    """Treats each channel by itself, the same way or by its own parameters."""

    whole = False
    keeps_zero = True

    def zero(self, zeros):
        if self.keeps_zero:
            return zeros[0].copy()
        return np.zeros(self.channels, bool)

    def wanted(self, keep):
        return [keep]

    def plan(self, have, keep):
        target = have[0] | keep
        return Plan([target], target, *self._sliced(target))

    def _sliced(self, target: Mask):
        del target
        return _copy(self.layer)


class Shifting(Channelwise):
    """Elementwise, but not 0 at 0."""

    keeps_zero = False


class Parameters(Channelwise):
    """With a parameter for each channel: normalization, scales, slopes."""

    keeps_zero = False

    def _sliced(self, target):
        config = self.layer.get_config()
        if "projection_dim" in config:  # LayerScale of ConvNeXt.
            config["projection_dim"] = int(target.sum())
        weights = [w[..., target] for w in self.layer.get_weights()]
        return type(self.layer).from_config(config), weights


class Depthwise(Parameters):
    """Depthwise convolution: m outputs for each input channel."""

    def __init__(self, node):
        super().__init__(node)
        self.multiplier = self.layer.depth_multiplier

    def zero(self, zeros):
        if self.layer.use_bias:
            return np.zeros(self.channels, bool)
        return np.repeat(zeros[0], self.multiplier)

    def wanted(self, keep):
        return [keep.reshape(-1, self.multiplier).any(axis=1)]

    def plan(self, have, keep):
        target = have[0] | self.wanted(keep)[0]
        layer = type(self.layer).from_config(self.layer.get_config())
        kernel, *bias = self.layer.get_weights()
        outputs = np.repeat(target, self.multiplier)
        weights = [kernel[..., target, :], *(b[outputs] for b in bias)]
        return Plan([target], outputs, layer, weights)


class Kernel(Rule):
    """Dense and convolution: every output reads every input."""

    whole = False
    units_key = "filters"
    transposed = False

    def wanted(self, keep):
        return [np.ones(self.inputs[0], bool)]

    def plan(self, have, keep):
        keep = self._kept(keep)
        config = self.layer.get_config()
        config[self.units_key] = int(keep.sum())
        return Plan(
            [have[0]],
            keep,
            type(self.layer).from_config(config),
            self._weights(have[0], keep),
        )

    def _kept(self, keep):
        name = activation_name(self.layer.activation)
        return keep | (name in MIXING_ACTIVATIONS)

    def _weights(self, have, keep):
        kernel, *bias = self.layer.get_weights()
        if self.transposed:
            kernel = kernel[..., keep, :][..., have]
        else:
            kernel = kernel[..., have, :][..., keep]
        return [kernel, *(b[keep] for b in bias)]


class Dense(Kernel):
    """Dense on the last axis."""

    units_key = "units"


class Transposed(Kernel):
    """Transposed convolution."""

    transposed = True


class Separable(Kernel):
    """Depthwise and then pointwise convolution."""

    def _weights(self, have, keep):
        depthwise, pointwise, *bias = self.layer.get_weights()
        rows = np.repeat(have, self.layer.depth_multiplier)
        return [
            depthwise[..., have, :],
            pointwise[..., rows, :][..., keep],
            *(b[keep] for b in bias),
        ]


class Grouped(Kernel):
    """Grouped convolution: whole groups stay or go."""

    def _groups(self, keep: Mask) -> Mask:
        return keep.reshape(self.layer.groups, -1).any(axis=1)

    def wanted(self, keep):
        size = self.inputs[0] // self.layer.groups
        return [np.repeat(self._groups(keep), size)]

    def plan(self, have, keep):
        groups = self._groups(self._kept(keep))
        inputs = np.repeat(groups, self.inputs[0] // len(groups))
        outputs = np.repeat(groups, self.channels // len(groups))
        config = self.layer.get_config()
        config |= {"filters": int(outputs.sum()), "groups": int(groups.sum())}
        kernel, *bias = self.layer.get_weights()
        weights = [kernel[..., outputs], *(b[outputs] for b in bias)]
        return Plan(
            [inputs], outputs, type(self.layer).from_config(config), weights
        )


class Embedding(Kernel):
    """A table with a row for each index."""

    units_key = "output_dim"

    def wanted(self, keep):
        return [np.ones(count, bool) for count in self.inputs]

    def _kept(self, keep):
        return keep

    def _weights(self, have, keep):
        return [w[..., keep] for w in self.layer.get_weights()]


class Attention(Rule):
    """Multi-head attention: inputs and output are projected."""

    whole = False

    def plan(self, have, keep):
        layer = self.layer
        config = {**layer.get_config(), "output_shape": (int(keep.sum()),)}
        query, value = have[0], have[1]
        key = have[2] if len(have) > 2 else value
        pieces = iter(layer.get_weights())
        weights = []
        for rows in (query, key, value):
            weights.append(next(pieces)[rows])
            if layer._use_bias:
                weights.append(next(pieces))
        weights.append(next(pieces)[..., keep])
        if layer._use_bias:
            weights.append(next(pieces)[keep])
        return Plan(list(have), keep, type(layer).from_config(config), weights)


class Sum(Rule):
    """Adds (or compares) tensors channel by channel."""

    whole = False

    def zero(self, zeros):
        return np.logical_and.reduce(zeros)

    def wanted(self, keep):
        return [keep for _ in self.inputs]

    def plan(self, have, keep):
        same = all(np.array_equal(have[0], mask) for mask in have)
        target = have[0] if same and not np.any(keep & ~have[0]) else keep
        return Plan([target] * len(have), target, *_copy(self.layer))


class Product(Sum):
    """Multiplies tensors channel by channel."""

    def zero(self, zeros):
        return np.logical_or.reduce(zeros)


class Concatenation(Rule):
    """Puts channels side by side."""

    whole = False

    def zero(self, zeros):
        return np.concatenate(zeros)

    def wanted(self, keep):
        return np.split(keep, np.cumsum(self.inputs)[:-1])

    def plan(self, have, keep):
        return Plan(list(have), np.concatenate(have), *_copy(self.layer))


class Flattening(Rule):
    """Puts positions side by side, each with all its channels."""

    whole = False

    def zero(self, zeros):
        return np.tile(zeros[0], self.channels // self.inputs[0])

    def wanted(self, keep):
        return [keep.reshape(-1, self.inputs[0]).any(axis=0)]

    def plan(self, have, keep):
        # The channels of a position stay together.
        target = have[0] | self.wanted(keep)[0]
        outputs = np.tile(target, self.channels // self.inputs[0])
        return Plan([target], outputs, *_copy(self.layer))


class Reshaping(Channelwise):
    """Moves positions; the channels stay the last axis."""

    def _sliced(self, target):
        config = self.layer.get_config()
        shape = [*config["target_shape"][:-1], int(target.sum())]
        config["target_shape"] = tuple(shape)
        return type(self.layer).from_config(config), []


class Dropped(Rule):
    """A tied layer in drop behaviour: generalization units go through."""

    whole = False

    def _scale(self) -> np.ndarray:
        return self.layer.inference_scale()

    def zero(self, zeros):
        return zeros[0] | (self._scale() == 0)

    def wanted(self, keep):
        # The ids, where they are an input, are not read.
        rest = [np.zeros(count, bool) for count in self.inputs[1:]]
        return [keep & (self._scale() != 0), *rest]

    def plan(self, have, keep):
        target = have[0] & (self._scale() != 0)
        factor = float(self._scale().max())
        layer = _first if factor == 1 else _rescaled(self.layer, factor)
        return Plan([target, *have[1:]], target, layer)


class Sparse(Dropped):
    """A sparse layer: the same units are off for all."""

    def _scale(self):
        return self.layer._scale


class Named(Channelwise):
    """The end of our networks: a cast to float32, under the same name."""

    def wanted(self, keep):
        return [keep, *(np.zeros(count, bool) for count in self.inputs[1:])]

    def plan(self, have, keep):
        target = have[0] | keep
        layer = keras.layers.Activation(
            "linear", dtype="float32", name=self.layer.name
        )
        return Plan([target, *have[1:]], target, lambda x, *_, **__: layer(x))


def _first(x, *args, **kwargs):
    """The tensor itself; ids and the like are not used."""
    del args, kwargs
    return x


def _rescaled(layer, factor: float):
    rescaling = keras.layers.Rescaling(
        factor, name=layer.name, dtype=layer.dtype_policy
    )
    return lambda x, *args, **kwargs: rescaling(x)


def _copy(operation) -> tuple[Callable, list[np.ndarray] | None]:
    """A layer like it, and its weights; operations have none."""
    if not isinstance(operation, keras.layers.Layer):
        return operation, None
    return (
        type(operation).from_config(operation.get_config()),
        operation.get_weights(),
    )


def channels_of(tensor) -> int:
    """The size of the last axis; 1 where there is none."""
    if len(tensor.shape) < 2 or tensor.shape[-1] is None:
        return 1
    return int(tensor.shape[-1])


MIXING_ACTIVATIONS = ("softmax", "log_softmax", "glu", "sparsemax")


def activation_name(function) -> str:
    """The name of an activation, in small letters."""
    return getattr(function, "__name__", type(function).__name__).lower()
