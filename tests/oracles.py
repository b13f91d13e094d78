"""Slow, obviously right twins of what the library computes fast."""

import math

import keras
import numpy as np
import tensorflow as tf


def cross_entropy(logits, label):
    """-log softmax, one example at a time."""
    losses = []
    for row, y in zip(logits.astype(float), label, strict=True):
        total = sum(math.exp(value) for value in row)
        losses.append(-math.log(math.exp(row[y]) / total))
    return np.array(losses)


def warmup_cosine(peak, step, total):
    """Linear over the first tenth, then half a cosine to 0."""
    done = (step + 0.5) / total
    if done < 0.1:
        return peak * done / 0.1
    return peak * (1 + math.cos(math.pi * (done - 0.1) / 0.9)) / 2


def triangle(peak, step, total):
    """Up to the peak at 40 %, down to 0 at the end."""
    return peak * float(np.interp((step + 0.5) / total, [0, 0.4, 1], [0, 1, 0]))


def momentum_sgd(weight, gradients, rates, momentum, decay):
    """SGD as PyTorch's documentation writes it, with Keras's velocity."""
    velocity = np.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        total = gradient(weight) + decay * weight
        velocity = momentum * velocity - rate * total
        weight = weight + velocity
    return weight


class Gate(keras.layers.Layer):
    """Multiplies each channel by a variable, 1 at first."""

    def build(self, shape):
        self.gate = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gate


def gated_copy(model, names):
    """The model with a `Gate` after each named layer, and the variables."""
    found = {name: Gate() for name in names}

    def call(layer, *args, **kwargs):
        output = layer(*args, **kwargs)
        return found[layer.name](output) if layer.name in found else output

    copy = keras.models.clone_model(
        model, clone_function=lambda layer: layer, call_function=call
    )
    return copy, [found[name].gate for name in names]


def gate_gradients(copy, gates):
    """(inputs, labels) -> logits and the gradient of each gate, in a graph."""

    @tf.function(autograph=False, reduce_retracing=True)
    def logits_and_gradients(inputs, labels):
        with tf.GradientTape() as tape:
            logits = copy(inputs, training=False)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            )
        return logits, tape.gradient(loss, [gate.value for gate in gates])

    return logits_and_gradients


def one_example_units(
    logits_and_gradients,
    gates,
    example,
    population,
    *,
    objective="zero",
    term="exact",
    limit,
):
    """The greedy search for one example, step by step, as it is defined.

    Args:
        logits_and_gradients: of `gate_gradients`.
        gates: of `gated_copy`.
        example: (inputs of a batch of one, label).
        population: (inputs, labels).
        objective: `zero` or `step`.
        term: `exact`, `frozen` or `none`.
        limit: on the number of units.

    Returns:
        [(unit, new gate)], and whether the prediction flipped.
    """

    def loss_gradient(inputs, labels):
        _, found = logits_and_gradients(inputs, labels)
        return np.concatenate([g.numpy() for g in found])

    inputs, label = example
    sizes = [gate.shape[0] for gate in gates]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for gate, size in zip(gates, sizes, strict=True):
        gate.assign(np.ones(size))
    frozen = loss_gradient(*population) if term == "frozen" else 0
    removed = []
    while True:
        logits, _ = logits_and_gradients(inputs, np.array([label]))
        if int(np.argmax(logits[0])) != label:
            return removed, True
        if len(removed) == limit:
            return removed, False
        others = loss_gradient(*population) if term == "exact" else frozen
        score = others - loss_gradient(inputs, np.array([label]))
        size = np.abs(score) if objective == "step" else score.copy()
        size[[unit for unit, _ in removed]] = -np.inf
        unit = int(np.argmax(size))
        up = objective == "step" and score[unit] <= 0
        removed.append((unit, 2.0 if up else 0.0))
        layer = int(np.searchsorted(starts, unit, side="right")) - 1
        value = gates[layer].numpy()
        value[unit - starts[layer]] = removed[-1][1]
        gates[layer].assign(value)


def assert_close(found, expected, rtol=1e-5, least=1e-30):
    """Within `rtol` of the largest entry, or of `least`."""
    scale = max(np.abs(expected).max(), least)
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * scale)


def randomize(model, seed=1):
    """Weights without special values, so that nothing cancels."""
    rng = np.random.default_rng(seed)
    model.set_weights(
        [
            np.abs(rng.normal(size=w.shape)) + 0.1
            if "variance" in v.path
            else w + 0.1 * rng.normal(size=w.shape)
            for v, w in zip(model.weights, model.get_weights(), strict=True)
        ]
    )


def slow_factors(model, kernel, x, label):
    """K-FAC's A and B of a kernel, from what its layer does to its input.

    A layer is linear in its kernel: with a kernel that is 1 at (group, i, o)
    and else 0, its output in channel (group, o) *is* input i, position by
    position. The gradients are those of a zero that is added to the output.
    """
    layer = next(
        layer
        for layer in model._flatten_layers(recursive=True)
        if getattr(layer, "kernel", None) is kernel.variable
    )
    linear, calls = _linear_call(layer), []
    activation = getattr(layer, "activation", None) or (lambda z: z)
    with tf.GradientTape() as tape:

        def call(inputs, *args, **kwargs):
            z = linear(inputs)
            zero = tf.zeros_like(z)
            tape.watch(zero)
            calls.append((inputs, zero))
            return activation(z + zero)

        vars(layer)["call"] = call
        logits = model(x, training=False)
        del vars(layer)["call"]
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)
    gradients = tape.gradient(loss, [zero for _, zero in calls])
    groups, rows, columns = kernel.as_matrices(kernel.variable.value).shape
    inputs = np.zeros((groups, rows, rows))
    outputs = np.zeros((groups, columns, columns))
    value = kernel.variable.numpy()
    for (given, _), gradient in zip(calls, gradients, strict=True):

        def response(matrices, given=given):
            kernel.variable.assign(kernel.as_kernel(matrices[np.newaxis])[0])
            flat = linear(given).numpy().reshape(len(x), -1)
            kernel.variable.assign(np.zeros_like(value))
            return flat - linear(given).numpy().reshape(len(x), -1)

        g = gradient.numpy().reshape(len(x), -1)
        for group in range(groups):
            one = np.zeros((groups, rows, columns), np.float32)
            places = []
            for o in range(columns):
                one[:] = 0
                one[group, :, o] = 1
                places.append(np.flatnonzero(response(one).any(axis=0)))
            patch = []
            for i in range(rows):
                one[:] = 0
                one[group, i, 0] = 1
                patch.append(response(one)[:, places[0]].ravel())
            inputs[group] += np.array(patch) @ np.array(patch).T
            rights = np.array([g[:, place].ravel() for place in places])
            outputs[group] += rights @ rights.T
    kernel.variable.assign(value)
    return inputs, outputs


def _linear_call(layer):
    """What a layer does before its activation."""

    def call(inputs):
        own = vars(layer).get("activation")
        vars(layer)["activation"] = keras.activations.linear
        try:
            return type(layer).call(layer, inputs)
        finally:
            vars(layer)["activation"] = own

    return call
