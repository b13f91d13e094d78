"""The curvature of the loss at each kernel, as two small factors.

For a kernel W [I, O] that maps x to x W at each position, K-FAC's factors are

    A = sum over examples and positions of  x x'    [I, I]
    B = sum over examples and positions of  g g'    [O, O]

with g the gradient of a scalar of the example with respect to x W. The
curvature along  u v'  is then proportional to  (u' A u) (v' B v). For
convolutions x are the patches; grouped kernels have a pair for each group.

Which scalar is a choice:

- `logits`: the sum of the logits, each with a random sign. The curvature is
  that of the squared change of the logits (Gauss-Newton with the identity), to
  which all examples add alike, whether their loss is large or not.
- `labels`: the loss of the labels as they are given (empirical Fisher).
- `sampled`: the loss of labels that the network itself draws (Fisher).

BatchNorm uses its moving statistics, as for all per-example gradients. The
sums of all chunks are taken in float64.

Reference: Martens and Grosse 2015 (1503.05671); Grosse and Martens 2016
(1602.01407) for convolutions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph, shares, storage, tracing
from tfmemloc.data.chunks import chunk_at, chunks, even_count
from tfmemloc.data.examples import IDS, Examples, require_examples
from tfmemloc.evaluation import as_logits
from tfmemloc.gradients.calls import (
    recorded_calls,
    terms_of_call,
    weighted_layers,
)
from tfmemloc.gradients.streaming import (
    LARGEST_CHUNK,
    MEMORY_BUDGET,
    bytes_of,
    examples_that_fit,
)
from tfmemloc.gradients.terms import Factored, add_terms, rows_at
from tfmemloc.graph.inputs import arranged
from tfmemloc.layers import masks
from tfmemloc.losses import cross_entropy

Scalar = Literal["logits", "labels", "sampled"]
# Kernels with a longer side have factors that no machine takes apart: the
# outputs of a language model for its vocabulary.
LARGEST_SIDE = 16384
# A is taken over no more rows (an example at a position) than this, or than so
# many for each of its columns: sums over more differ by less than the choice of
# a cut can tell, and for wide kernels take most of the time.
_ROWS, _ROWS_EACH = 640_000, 100
_LEAST_POSITIONS = 4
_SIDES = ("inputs", "outputs")


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel, and how it is a matrix.

    Attributes:
        variable: the kernel.
        name: of its layer; `name#1`, `name#2`, ... where layers share it.
        as_matrices: kernel -> [groups, I, O].
        as_kernel: [1, groups, I, O] -> [1, *shape of the kernel].
    """

    variable: keras.Variable
    name: str
    as_matrices: Callable[[tf.Tensor], tf.Tensor]
    as_kernel: Callable[[tf.Tensor], tf.Tensor]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, I, O)."""
        return tuple(self.as_matrices(self.variable.value).shape)


@dataclasses.dataclass(frozen=True, eq=False)
class KernelFactors:
    """The two factors of one kernel.

    Attributes:
        kernel: whose they are.
        inputs: A, float64 [groups, I, I].
        outputs: B, float64 [groups, O, O].
    """

    kernel: Kernel
    inputs: np.ndarray
    outputs: np.ndarray


def kernels_of(model: keras.Model, examples: Examples) -> list[Kernel]:
    """The kernels of `curvature_factors`, without a pass over the examples.

    Args:
        model: any Keras model.
        examples: of which the first one shows the shapes.

    Raises:
        ValueError: there is no such kernel.
    """
    layers = weighted_layers(model)
    inputs = arranged(model, chunk_at(examples, np.arange(1)).inputs)
    found: list[Kernel] = []

    def forward(inputs):
        with recorded_calls(layers) as calls:
            outputs = model(inputs, training=False)
        found.extend(
            kernel
            for kernel, _ in _kernel_terms(calls, [c.output for c in calls])
        )
        return outputs

    tracing.function(forward).get_concrete_function(
        tf.nest.map_structure(tf.convert_to_tensor, inputs)
    )
    if not found:
        raise ValueError(_no_kernel(model, layers))
    return found


def _kernel_terms(calls, gradients) -> list[tuple[Kernel, Factored]]:
    """The trainable kernels among the weights of these calls, and terms."""
    terms: dict[int, list[Factored]] = {}
    owners: dict[int, tuple[keras.Variable, str]] = {}
    for call, gradient in zip(calls, gradients, strict=True):
        if any(g is None for g in keras.tree.flatten(gradient)):
            continue  # The layer's output does not reach the loss.
        for variable, term in terms_of_call(call, gradient) or ():
            if not (isinstance(term, Factored) and variable.trainable):
                continue
            sides = term.from_weight(variable.value).shape[1:]
            if max(sides) <= LARGEST_SIDE:
                terms.setdefault(id(variable), []).append(term)
                owners[id(variable)] = variable, call.layer.name
    return [
        (
            Kernel(
                variable,
                name,
                terms[key][0].from_weight,
                terms[key][0].to_weight,
            ),
            add_terms(terms[key]),
        )
        for (key, (variable, _)), name in zip(
            owners.items(), _distinct(owners.values()), strict=True
        )
    ]


def _distinct(owners) -> list[str]:
    """The names of layers; with a number where two share a name."""
    names = [name for _, name in owners]
    return [
        name
        if names.count(name) == 1
        else f"{name}#{names[:place].count(name) + 1}"
        for place, name in enumerate(names)
    ]


def _no_kernel(model, layers) -> str:
    found = ", ".join(
        f"{layer.name} ({type(layer).__name__})" for layer in layers
    )
    return (
        f"Model '{model.name}' has no kernel whose curvature is known. "
        "Expected a trainable Dense, EinsumDense, Conv1D, Conv2D, "
        "DepthwiseConv1D or DepthwiseConv2D layer on the way to the output. "
        f"Received layers with trainable weights: {found or 'none'}. Make "
        "frozen layers trainable, if it is their memory that is to go."
    )


def curvature_factors(
    model: keras.Model,
    examples: Examples,
    *,
    scalar: Scalar = "logits",
    positions: int | None = None,
    seed: int = 0,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = False,
) -> list[KernelFactors]:
    """The factors of each kernel, in one pass over the examples.

    Args:
        model: any Keras model; nested and shared layers are seen. Kernels are
            those of Dense, EinsumDense (so of MultiHeadAttention), Conv1D,
            Conv2D, DepthwiseConv1D and DepthwiseConv2D that are trainable.
        examples: N examples.
        scalar: whose gradient is taken; see the head of this module.
        positions: A is taken over at most so many positions of each example,
            the same of all, drawn by the seed, and scaled to all of them; None
            takes them all. Where examples are many, fewer are taken: there are
            far more than a matrix of this size needs.
        seed: of the signs, the labels and the positions that are drawn; signs
            and labels are a function of the seed and the example id.
        memory_budget: bytes that a chunk of examples may take.
        progress: show a progress bar.

    Returns:
        One for each kernel that the loss depends on, in the order of the
        first calls.

    Raises:
        ValueError: there is no such kernel, or no example.

    Example:
        >>> first = curvature_factors(model, examples.train)[0]
        >>> first.inputs.shape, first.outputs.shape  # 5 x 5 x 1 -> 6
        ((1, 25, 25), (1, 6, 6))
    """
    require_examples(examples)
    if not len(examples):
        raise ValueError(
            f"{examples.name} has no examples. Expected some, over which the "
            "curvature is summed."
        )
    pass_ = _Pass(model, examples, scalar, positions, seed)
    size = min(
        LARGEST_CHUNK, examples_that_fit(pass_.bytes_each, memory_budget)
    )

    def sums(only) -> dict[str, np.ndarray]:
        words = {"words": "curvature", "progress": progress}
        for chunk in chunks(examples, size, even=True, only=only, **words):
            pass_.add(chunk)
        return pass_.sums()

    def key() -> list:
        weights = storage.digest(model.get_weights())
        return [weights, examples.digest(), scalar, positions, seed, size]

    count = even_count(len(examples), size)
    return pass_.factors(
        shares.together("curvature", key, count, sums, shares.added)
    )


class _Pass:
    """Sums of one pass over the data, held on the device."""

    def __init__(self, model, examples, scalar, positions, seed):
        self._model = model
        self._positions = positions
        self._examples = len(examples)
        self._scalar = scalar
        self._seed = masks.fold_seed(seed, "curvature")
        self._layers = weighted_layers(model)
        self._kernels: list[Kernel] = []
        self._sums: list[tuple[tf.Variable, tf.Variable]] = []
        batch = self._as_batch(chunk_at(examples, np.arange(1)))
        self._function = tracing.function(
            self._products,
            input_signature=tf.nest.map_structure(
                lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), batch
            ),
        ).get_concrete_function()
        self._sums = [
            tuple(
                tf.Variable(tf.zeros(product.shape, tf.float64))
                for product in pair
            )
            for pair in self._function.structured_outputs
        ]
        if not self._sums:
            raise ValueError(_no_kernel(model, self._layers))
        self.bytes_each = bytes_of(
            self._function.graph,
            without={
                *(tuple(v.shape) for v in model.variables),
                *(tuple(s.shape) for pair in self._sums for s in pair),
            },
        )

    def add(self, chunk) -> None:
        """Adds the products of a chunk of examples."""
        batch = tf.nest.flatten(self._as_batch(chunk))
        products = self._function(*batch)
        for sums, pair in zip(self._sums, products, strict=True):
            for total, product in zip(sums, pair, strict=True):
                total.assign_add(tf.cast(product, tf.float64))

    def sums(self) -> dict[str, np.ndarray]:
        """What was summed, by kernel and side."""
        return {
            f"{k}/{side}": total.numpy()
            for k, pair in enumerate(self._sums)
            for side, total in zip(_SIDES, pair, strict=True)
        }

    def factors(self, sums) -> list[KernelFactors]:
        """The factors of all kernels, of sums."""
        return [
            KernelFactors(kernel, *(sums[f"{k}/{side}"] for side in _SIDES))
            for k, kernel in enumerate(self._kernels)
        ]

    def _as_batch(self, chunk) -> tuple:
        inputs = tf.nest.map_structure(
            tf.convert_to_tensor, arranged(self._model, chunk.inputs)
        )
        ids = tf.convert_to_tensor(chunk.inputs[IDS], tf.int64)
        return inputs, ids, tf.convert_to_tensor(chunk.label, tf.int64)

    def _products(self, inputs, ids, label):
        """A and B of each kernel for one chunk."""
        with (
            tf.GradientTape() as tape,
            recorded_calls(self._layers) as calls,
        ):
            outputs = self._model(inputs, training=False)
            logits = as_logits(self._model, outputs)
            total = tf.reduce_sum(self._scalars(logits, ids, label))
        gradients = tape.gradient(total, [call.output for call in calls])
        found = _kernel_terms(calls, gradients)
        self._kernels = [kernel for kernel, _ in found]
        return [
            (
                self._inputs_of(kernel, term, label),
                _second_moments(term.right),
            )
            for kernel, term in found
        ]

    def _inputs_of(self, kernel, term, label):
        """A, over all positions or those that are drawn."""
        count = term.right.shape[1]
        wanted = self._positions_of(count, kernel.shape[1])
        if wanted == count:
            return _second_moments(_counted(term, label))
        drawn = np.random.default_rng(self._seed).permutation(count)
        places = np.sort(drawn[:wanted])
        scale = count / wanted
        return scale * _second_moments(_counted(term, label, places))

    def _positions_of(self, count: int, size: int) -> int:
        """How many of `count` positions are enough for `size` columns."""
        if self._positions is None:
            return count
        rows = max(_ROWS, _ROWS_EACH * size)
        enough = max(_LEAST_POSITIONS, -(-rows // self._examples))
        return min(count, self._positions, enough)

    def _scalars(self, logits, ids, label):
        """The scalar of each example whose gradient is taken: [B]."""
        logits = tf.cast(logits, tf.float32)
        if self._scalar == "labels":
            return cross_entropy(label, logits)
        shape = tf.shape(logits)
        bits = masks.hash_bits(
            self._seed, ids, int(np.prod(logits.shape[1:], dtype=np.int64))
        )
        bits = tf.reshape(bits, shape)
        if self._scalar == "sampled":
            # As many bits as a float32 below 1 has.
            uniform = (tf.cast(bits // 256, tf.float32) + 0.5) / 2.0**24
            drawn = tf.argmax(logits - tf.math.log(-tf.math.log(uniform)), -1)
            return cross_entropy(tf.where(label < 0, label, drawn), logits)
        if graph.ends_in_softmax(self._model):
            # Log-probabilities are logits up to a constant, which goes.
            logits -= tf.reduce_mean(logits, axis=-1, keepdims=True)
        sign = tf.where(bits < 2**31, 1.0, -1.0)
        counts = tf.cast(label >= 0, tf.float32)[..., tf.newaxis]
        axes = list(range(1, logits.shape.rank))
        return tf.reduce_sum(sign * counts * logits, axes)


def _counted(term: Factored, label, places=None) -> tf.Tensor:
    """The inputs at some positions or (None) at all of them.

    They are 0 where a position of a text does not count (padding).
    """
    left = term.left_at(places)
    if label.shape.rank == 1:
        return left
    reached = tf.reduce_any(term.right != 0, axis=-1, keepdims=True)
    return tf.where(rows_at(reached)(places), left, 0.0)


def _second_moments(x: tf.Tensor) -> tf.Tensor:
    """[B, T, groups, I] -> sum over examples and positions [groups, I, I]."""
    _, _, groups, size = x.shape
    if groups == 1:
        flat = tf.reshape(x, [1, -1, size])
    else:
        flat = tf.reshape(tf.transpose(x, [2, 0, 1, 3]), [groups, -1, size])
    return tf.matmul(flat, flat, transpose_a=True)
