"""Slicing memorization units out of a network, weights and all.

With the memorization units of its tied layers off (`drop`), most channels of
a tied network are zero. They, the weights that compute them and the weights
that read them can go, and the outputs stay the same. For each tensor of the
graph, along its last axis:

    zero    channels that are 0 whatever the input (forward pass)
    wanted  channels that something behind it reads (backward pass)
    kept    wanted and not zero

Then the layers are made anew with the kept channels alone. A layer that mixes
channels in a way that is not known here (layer normalization, softmax, an
unknown layer) is *whole*: it gets its input with the zeros put back, and all
of its output is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfmemloc import graph, surgery
from tfmemloc.layers import ExampleTiedDropout, SparseDropout
from tfmemloc.models.factory import Logits

Mask = np.ndarray  # bool [C].

_ZERO_AT_ZERO = (
    "relu",
    "relu6",
    "leaky_relu",
    "gelu",
    "silu",
    "swish",
    "elu",
    "selu",
    "tanh",
    "hard_swish",
    "hard_silu",
    "mish",
    "linear",
    "softsign",
)
_MIXING_ACTIVATIONS = ("softmax", "log_softmax", "glu", "sparsemax")


def prune_memorization(model: keras.Model) -> keras.Model:
    """An ordinary, smaller network without the memorization units.

    Args:
        model: functional, with tied layers in `drop` behaviour.

    Returns:
        A new functional model of Keras's own layers (and unknown ones of
        `model`), with weights of its own; it has no `example_id` input where
        no layer is left that takes it. Its outputs are those of
        `model(..., training=False)`, up to the order of sums.

    Raises:
        ValueError: the model has no tied layer, one that is not in drop
            behaviour, or its graph is not known.

    Example:
        >>> small = prune_memorization(run.model())
        >>> small.count_params()
    """
    return _Pruning(model).model()


def pruning_plan(model: keras.Model) -> list[dict[str, Any]]:
    """What pruning does to each layer that has units.

    Args:
        model: as for `prune_memorization`.

    Returns:
        A row for each layer: units and input channels, before and after; and
        whether it stays `whole` because pruning cannot see through it.
    """
    return _Pruning(model).rows()


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Puts each BatchNorm into the convolution or dense layer before it.

    For serving alone: training would have nothing to normalize with. With the
    moving statistics, a kernel w and a bias b become

        w * gamma / sqrt(variance + epsilon)
        (b - mean) * gamma / sqrt(variance + epsilon) + beta

    Args:
        model: functional.

    Returns:
        A new functional model with the same outputs, up to rounding. Layers
        that are not changed are shared with `model`.
    """
    model = surgery.inlined(model)
    pairs = _foldable(graph.nodes(model))
    norms = {id(norm) for _, norm in pairs.values()}

    def call(node, args, kwargs):
        if id(node.operation) in norms:
            return args[0]
        if id(node) not in pairs:
            return node.operation(*args, **kwargs)
        layer, weights = _folded(*pairs[id(node)])
        output = layer(*args, **kwargs)
        layer.set_weights(weights)
        return output

    inputs = surgery.fresh_inputs(model)
    outputs = graph.replay(model, inputs, call)
    return keras.Model(inputs, outputs, name=model.name)


def _foldable(found) -> dict[int, tuple]:
    """id of a layer's only call -> the layer, and the BatchNorm behind it."""
    takers = graph.consumers(found)
    count: dict[int, int] = {}
    for node in found:
        count[id(node.operation)] = count.get(id(node.operation), 0) + 1
    pairs = {}
    for node in found:
        layer = node.operation
        after = takers.get(id(node.output_tensors[0]), [])
        if len(after) != 1 or not isinstance(layer, _FOLDABLE):
            continue
        norm = after[0].operation
        rank = len(node.output_tensors[0].shape)
        if (
            isinstance(norm, keras.layers.BatchNormalization)
            and count[id(layer)] == count[id(norm)] == 1
            and norm.axis in (-1, rank - 1)
            and _last_axis(layer)
            and _activation_name(layer.activation) == "linear"
        ):
            pairs[id(node)] = layer, norm
    return pairs


def _folded(layer, norm) -> tuple[keras.layers.Layer, list[np.ndarray]]:
    """A layer like it, and weights that normalize its output."""
    scale = 1 / np.sqrt(
        norm.moving_variance.numpy().astype(np.float64) + norm.epsilon
    )
    if norm.scale:
        scale = scale * norm.gamma.numpy()
    *kernels, last = layer.get_weights()
    kernel, bias = last, 0.0
    if layer.use_bias:
        *kernels, kernel = kernels
        bias = last
    bias = (bias - norm.moving_mean.numpy()) * scale
    if norm.center:
        bias = bias + norm.beta.numpy()
    if isinstance(layer, _DEPTHWISE):
        kernel = kernel * scale.reshape(kernel.shape[-2:])
    elif isinstance(layer, _TRANSPOSED):
        kernel = kernel * scale[:, np.newaxis]
    else:
        kernel = kernel * scale
    config = {**layer.get_config(), "use_bias": True}
    return type(layer).from_config(config), [*kernels, kernel, bias]


_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_FOLDABLE = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
    *_DEPTHWISE,
    *_TRANSPOSED,
)


@dataclasses.dataclass
class _Plan:
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


class _Rule:
    """What is known of a call's channels; by itself nothing: it is whole."""

    whole = True

    def __init__(self, node):
        self.layer = node.operation
        self.inputs = [_channels(t) for t in node.input_tensors]
        outputs = [_channels(t) for t in node.output_tensors]
        self.channels = outputs[0] if outputs else 1

    def zero(self, zeros: list[Mask]) -> Mask:
        """Output channels that are 0 where these input channels are."""
        del zeros
        return np.zeros(self.channels, bool)

    def wanted(self, keep: Mask) -> list[Mask]:
        """Input channels that the kept output channels need."""
        del keep
        return [np.ones(count, bool) for count in self.inputs]

    def plan(self, have: list[Mask], keep: Mask) -> _Plan:
        """The call anew, on inputs that have these channels."""
        del have, keep
        full = [np.ones(count, bool) for count in self.inputs]
        return _Plan(full, np.ones(self.channels, bool), *_copy(self.layer))


class _Channelwise(_Rule):
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
        return _Plan([target], target, *self._sliced(target))

    def _sliced(self, target: Mask):
        del target
        return _copy(self.layer)


class _Shifting(_Channelwise):
    """Elementwise, but not 0 at 0."""

    keeps_zero = False


class _Parameters(_Channelwise):
    """With a parameter for each channel: normalization, scales, slopes."""

    keeps_zero = False

    def _sliced(self, target):
        config = self.layer.get_config()
        if "projection_dim" in config:  # LayerScale of ConvNeXt.
            config["projection_dim"] = int(target.sum())
        weights = [w[..., target] for w in self.layer.get_weights()]
        return type(self.layer).from_config(config), weights


class _Depthwise(_Parameters):
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
        return _Plan([target], outputs, layer, weights)


class _Kernel(_Rule):
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
        return _Plan(
            [have[0]],
            keep,
            type(self.layer).from_config(config),
            self._weights(have[0], keep),
        )

    def _kept(self, keep):
        name = _activation_name(self.layer.activation)
        return keep | (name in _MIXING_ACTIVATIONS)

    def _weights(self, have, keep):
        kernel, *bias = self.layer.get_weights()
        if self.transposed:
            kernel = kernel[..., keep, :][..., have]
        else:
            kernel = kernel[..., have, :][..., keep]
        return [kernel, *(b[keep] for b in bias)]


class _Dense(_Kernel):
    """Dense on the last axis."""

    units_key = "units"


class _Transposed(_Kernel):
    """Transposed convolution."""

    transposed = True


class _Separable(_Kernel):
    """Depthwise and then pointwise convolution."""

    def _weights(self, have, keep):
        depthwise, pointwise, *bias = self.layer.get_weights()
        rows = np.repeat(have, self.layer.depth_multiplier)
        return [
            depthwise[..., have, :],
            pointwise[..., rows, :][..., keep],
            *(b[keep] for b in bias),
        ]


class _Grouped(_Kernel):
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
        return _Plan(
            [inputs], outputs, type(self.layer).from_config(config), weights
        )


class _Embedding(_Kernel):
    """A table with a row for each index."""

    units_key = "output_dim"

    def wanted(self, keep):
        return [np.ones(count, bool) for count in self.inputs]

    def _kept(self, keep):
        return keep

    def _weights(self, have, keep):
        return [w[..., keep] for w in self.layer.get_weights()]


class _Attention(_Rule):
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
        return _Plan(list(have), keep, type(layer).from_config(config), weights)


class _Sum(_Rule):
    """Adds (or compares) tensors channel by channel."""

    whole = False

    def zero(self, zeros):
        return np.logical_and.reduce(zeros)

    def wanted(self, keep):
        return [keep for _ in self.inputs]

    def plan(self, have, keep):
        same = all(np.array_equal(have[0], mask) for mask in have)
        target = have[0] if same and not np.any(keep & ~have[0]) else keep
        return _Plan([target] * len(have), target, *_copy(self.layer))


class _Product(_Sum):
    """Multiplies tensors channel by channel."""

    def zero(self, zeros):
        return np.logical_or.reduce(zeros)


class _Concatenation(_Rule):
    """Puts channels side by side."""

    whole = False

    def zero(self, zeros):
        return np.concatenate(zeros)

    def wanted(self, keep):
        return np.split(keep, np.cumsum(self.inputs)[:-1])

    def plan(self, have, keep):
        return _Plan(list(have), np.concatenate(have), *_copy(self.layer))


class _Flattening(_Rule):
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
        return _Plan([target], outputs, *_copy(self.layer))


class _Reshaping(_Channelwise):
    """Moves positions; the channels stay the last axis."""

    def _sliced(self, target):
        config = self.layer.get_config()
        shape = [*config["target_shape"][:-1], int(target.sum())]
        config["target_shape"] = tuple(shape)
        return type(self.layer).from_config(config), []


class _Dropped(_Rule):
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
        return _Plan([target, *have[1:]], target, layer)


class _Sparse(_Dropped):
    """A sparse layer: the same units are off for all."""

    def _scale(self):
        return self.layer._scale


class _Named(_Channelwise):
    """The end of our networks: a cast to float32, under the same name."""

    def wanted(self, keep):
        return [keep, *(np.zeros(count, bool) for count in self.inputs[1:])]

    def plan(self, have, keep):
        target = have[0] | keep
        layer = keras.layers.Activation(
            "linear", dtype="float32", name=self.layer.name
        )
        return _Plan([target, *have[1:]], target, lambda x, *_, **__: layer(x))


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


def _channels(tensor) -> int:
    """The size of the last axis; 1 where there is none."""
    if len(tensor.shape) < 2 or tensor.shape[-1] is None:
        return 1
    return int(tensor.shape[-1])


_LAYER_RULES: Sequence[tuple[tuple[type, ...], type[_Rule]]] = (
    ((ExampleTiedDropout,), _Dropped),
    ((SparseDropout,), _Sparse),
    ((Logits,), _Named),
    ((keras.layers.Dense,), _Dense),
    (_TRANSPOSED, _Transposed),
    ((keras.layers.SeparableConv1D, keras.layers.SeparableConv2D), _Separable),
    (_DEPTHWISE, _Depthwise),
    (
        (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
        _Kernel,
    ),
    ((keras.layers.Embedding,), _Embedding),
    ((keras.layers.MultiHeadAttention,), _Attention),
    (
        (
            keras.layers.Add,
            keras.layers.Subtract,
            keras.layers.Average,
            keras.layers.Maximum,
            keras.layers.Minimum,
        ),
        _Sum,
    ),
    ((keras.layers.Multiply,), _Product),
    ((keras.layers.Concatenate,), _Concatenation),
    ((keras.layers.Flatten,), _Flattening),
    ((keras.layers.Reshape,), _Reshaping),
    ((keras.layers.BatchNormalization, keras.layers.PReLU), _Parameters),
    (
        (
            keras.layers.ReLU,
            keras.layers.LeakyReLU,
            keras.layers.ELU,
            keras.layers.Dropout,
            keras.layers.SpatialDropout1D,
            keras.layers.SpatialDropout2D,
            keras.layers.SpatialDropout3D,
            keras.layers.GaussianNoise,
            keras.layers.GaussianDropout,
            keras.layers.Identity,
            keras.layers.MaxPooling1D,
            keras.layers.MaxPooling2D,
            keras.layers.MaxPooling3D,
            keras.layers.AveragePooling1D,
            keras.layers.AveragePooling2D,
            keras.layers.AveragePooling3D,
            keras.layers.GlobalMaxPooling1D,
            keras.layers.GlobalMaxPooling2D,
            keras.layers.GlobalMaxPooling3D,
            keras.layers.GlobalAveragePooling1D,
            keras.layers.GlobalAveragePooling2D,
            keras.layers.GlobalAveragePooling3D,
            keras.layers.UpSampling1D,
            keras.layers.UpSampling2D,
            keras.layers.UpSampling3D,
            keras.layers.ZeroPadding1D,
            keras.layers.ZeroPadding2D,
            keras.layers.ZeroPadding3D,
            keras.layers.Cropping1D,
            keras.layers.Cropping2D,
            keras.layers.Cropping3D,
        ),
        _Channelwise,
    ),
)


def _rule(node, uses: int) -> _Rule:
    """The rule of a call; `uses` is how often its layer is called."""
    layer = node.operation
    is_layer = isinstance(layer, keras.layers.Layer)
    if uses > 1 and is_layer and layer.weights:
        return _Rule(node)  # Its calls would have to agree.
    if not _last_axis(layer) or len(node.output_tensors) != 1:
        return _Rule(node)
    if not is_layer:
        return _operation_rule(node)
    if isinstance(layer, keras.layers.Activation):
        return _activation_rule(layer.activation)(node)
    if isinstance(layer, keras.layers.Rescaling):
        return _rescaling_rule(layer)(node)
    if type(layer).__name__ == "LayerScale":
        return _Parameters(node)
    kind = next(
        (rule for types, rule in _LAYER_RULES if isinstance(layer, types)),
        _Rule,
    )
    if kind is _Kernel and layer.groups > 1:
        kind = _Grouped
    rule = kind(node)
    return rule if _fits(rule, node) else _Rule(node)


def _fits(rule: _Rule, node) -> bool:
    """Whether the shapes of a call are those that its rule expects."""
    layer, inputs = node.operation, node.input_tensors
    rank = len(inputs[0].shape)
    if isinstance(rule, _Dropped):
        return (
            layer.axis in (-1, rank - 1)
            and getattr(layer, "inference", "drop") == "drop"
        )
    if isinstance(rule, _Concatenation):
        return layer.axis in (-1, rank - 1)
    if isinstance(rule, _Sum):
        return len(set(rule.inputs)) == 1
    if isinstance(rule, _Flattening):
        return None not in inputs[0].shape[1:]
    if isinstance(rule, _Reshaping):
        return inputs[0].shape[-1] == node.output_tensors[0].shape[-1]
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.axis in (-1, rank - 1)
    if isinstance(layer, keras.layers.PReLU):
        return len(layer.alpha.shape) == rank - 1
    return True


def _last_axis(layer) -> bool:
    return getattr(layer, "data_format", None) != "channels_first"


def _activation_name(function) -> str:
    return getattr(function, "__name__", type(function).__name__).lower()


def _activation_rule(function) -> type[_Rule]:
    name = _activation_name(function)
    if name in _MIXING_ACTIVATIONS:
        return _Rule
    known = name in _ZERO_AT_ZERO
    return _Channelwise if known else _Shifting


def _rescaling_rule(layer) -> type[_Rule]:
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        return _Rule
    return _Shifting if layer.offset else _Channelwise


_SUM_OPERATIONS = ("Add", "Subtract", "Maximum", "Minimum")


def _operation_rule(node) -> _Rule:
    """keras.ops functions, and operators such as x + y."""
    name = type(node.operation).__name__
    tensors = node.input_tensors
    ranks = {len(t.shape) for t in tensors}
    same = len({_channels(t) for t in tensors}) == 1 and len(ranks) == 1
    if len(tensors) == 1:
        args, kwargs = node.arguments.args, node.arguments.kwargs
        plain = all(
            a is tensors[0] or isinstance(a, int | float | None)
            for a in (*args, *kwargs.values())
        )
        if graph.is_activation(node.operation):
            keeps = name in ("Relu", "Relu6", "Gelu", "Silu", "Tanh", "Elu")
            return (_Channelwise if keeps else _Shifting)(node)
        if plain and name in ("Multiply", "TrueDivide", "Negative"):
            return _Channelwise(node)
        if plain and name in _SUM_OPERATIONS:
            return _Shifting(node)
    elif same and name in _SUM_OPERATIONS:
        return _Sum(node)
    elif same and name == "Multiply":
        return _Product(node)
    return _Rule(node)


class _Pruning:
    """The analysis of one model, and the model that comes of it."""

    def __init__(self, model: keras.Model):
        _check(model)
        self._model = surgery.inlined(model)
        found = graph.nodes(self._model)
        uses: dict[int, int] = {}
        for node in found:
            key = id(node.operation)
            uses[key] = uses.get(key, 0) + 1
        self._calls = [
            (node, _rule(node, uses[id(node.operation)])) for node in found
        ]
        self._zero = self._find_zeros()
        self._keep = self._find_kept()
        self._have: dict[int, Mask] = {}
        self._made: dict[int, list[Callable]] = {}

    def _find_zeros(self) -> dict[int, Mask]:
        zero = {
            id(t): np.zeros(_channels(t), bool)
            for t in keras.tree.flatten(graph.inputs_of(self._model))
        }
        for node, rule in self._calls:
            inputs = [zero[id(t)] for t in node.input_tensors]
            for tensor in node.output_tensors:
                zero[id(tensor)] = np.zeros(_channels(tensor), bool)
            if not rule.whole:
                zero[id(node.output_tensors[0])] = rule.zero(inputs)
        return zero

    def _find_kept(self) -> dict[int, Mask]:
        wanted = {key: np.zeros(len(z), bool) for key, z in self._zero.items()}
        for tensor in keras.tree.flatten(graph.outputs_of(self._model)):
            wanted[id(tensor)][:] = True
        for node, rule in reversed(self._calls):
            keep = wanted[id(node.output_tensors[0])]
            if not rule.whole and not keep.any():
                keep = _one_of(keep)
            for tensor, want in zip(
                node.input_tensors, rule.wanted(keep), strict=True
            ):
                wanted[id(tensor)] |= want & ~self._zero[id(tensor)]
        return {
            key: mask if mask.any() else _one_of(mask)
            for key, mask in wanted.items()
        }

    def model(self) -> keras.Model:
        """The pruned model."""
        inputs = surgery.fresh_inputs(self._model)
        for tensor in keras.tree.flatten(graph.inputs_of(self._model)):
            self._have[id(tensor)] = np.ones(_channels(tensor), bool)
        rules = {id(node): rule for node, rule in self._calls}
        outputs = graph.replay(
            self._model,
            inputs,
            lambda node, args, kwargs: self._call(
                node, rules[id(node)], args, kwargs
            ),
        )
        used = surgery.used_inputs(inputs, outputs)
        return keras.Model(used, outputs, name=self._model.name)

    def _call(self, node, rule, args, kwargs):
        """One call anew, on inputs that have the channels it expects."""
        have = self._inputs_of(node)
        plan = self._plan(node, rule)
        pairs = iter(zip(have, plan.targets, strict=True))

        def aligned(value):
            if not isinstance(value, keras.KerasTensor):
                return value
            return _aligned(value, *next(pairs))

        # The tensors come in the order of node.input_tensors.
        args, kwargs = keras.tree.map_structure(aligned, (args, kwargs))
        layer, weights = self._made_once(node.operation, plan)
        output = layer(*args, **kwargs)
        if weights:
            layer.set_weights(weights)
        return output

    def _made_once(self, old, plan):
        """The layer of a plan, where the old one is called several times.

        With weights, its calls share one copy; without, each has its own,
        under a name of its own.
        """
        layer, weights = plan.layer, plan.weights
        calls = self._made.setdefault(id(old), [])
        if calls and isinstance(layer, keras.layers.Layer):
            if old.weights:
                return calls[0], None
            config = {**layer.get_config(), "name": f"{old.name}_{len(calls)}"}
            layer = type(layer).from_config(config)
        calls.append(layer)
        return layer, weights

    def _inputs_of(self, node) -> list[Mask]:
        return [self._have[id(tensor)] for tensor in node.input_tensors]

    def _plan(self, node, rule) -> _Plan:
        plan = rule.plan(
            self._inputs_of(node), self._keep[id(node.output_tensors[0])]
        )
        for tensor in node.output_tensors:
            self._have[id(tensor)] = np.ones(_channels(tensor), bool)
        self._have[id(node.output_tensors[0])] = plan.have
        return plan

    def rows(self) -> list[dict[str, Any]]:
        """A row for each layer with units, and for each one left whole."""
        for tensor in keras.tree.flatten(graph.inputs_of(self._model)):
            self._have[id(tensor)] = np.ones(_channels(tensor), bool)
        rows = []
        for node, rule in self._calls:
            before = self._inputs_of(node)
            plan = self._plan(node, rule)
            had_zeros = any(not mask.all() for mask in before)
            stays = rule.whole and had_zeros
            if graph.has_units(node.operation) or stays:
                rows.append(
                    {
                        "layer": node.operation.name,
                        "units": rule.channels,
                        "units_after": int(plan.have.sum()),
                        "inputs": rule.inputs[0],
                        "inputs_after": int(plan.targets[0].sum()),
                        "whole": stays,
                    }
                )
        return rows


def _one_of(mask: Mask) -> Mask:
    """A tensor needs a channel, if only to have a shape."""
    result = mask.copy()
    result[:1] = True
    return result


def _check(model: keras.Model) -> None:
    tied = surgery.tied_layers(model)
    if not tied:
        raise ValueError(
            f"Model '{model.name}' has no ExampleTiedDropout layer, so that "
            "there are no memorization units to prune. Expected a model that "
            "was trained with tied layers (see `tie_dropout`)."
        )
    wrong = [layer for layer in tied if layer.inference != "drop"]
    if wrong:
        raise ValueError(
            f"Layer '{wrong[0].name}' of model '{model.name}' has inference="
            f'"{wrong[0].inference}", which uses its memorization units. '
            'Expected "drop"; with_inference(model, "drop") makes it so.'
        )


def _aligned(x, have: Mask, target: Mask):
    """A tensor that has the target's channels: sliced, or zeros put back."""
    if np.array_equal(have, target):
        return x
    place = np.cumsum(have) - 1
    if not np.any(target & ~have):
        return _taken(x, place[target])
    # What is missing is zero; it is read from one channel of zeros.
    padding = [[0, 0]] * (len(x.shape) - 1)
    count, missing = int(have.sum()), int(np.sum(target & ~have))
    if np.array_equal(np.flatnonzero(target)[:count], np.flatnonzero(have)):
        return keras.ops.pad(x, [*padding, [0, missing]])
    x = keras.ops.pad(x, [*padding, [0, 1]])
    return _taken(x, np.where(have, place, count)[target])


def _taken(x, index: np.ndarray):
    return keras.ops.take(x, index.tolist(), axis=-1)
