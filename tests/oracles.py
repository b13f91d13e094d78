"""Slow, obviously right twins of what the library computes fast."""

import math

import numpy as np


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
