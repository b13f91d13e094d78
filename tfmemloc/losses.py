"""Loss and correctness of a task, one number for each example.

    classes      label [B], logits [B, classes]:
                 loss = -log softmax(logits)[label]; right or wrong
    next token   label [B, T], logits [B, T, vocabulary]; a position with a
                 label below 0 does not count:
                 loss = mean over positions of the same; the share of positions
                 that are right, or whether all are

The rank of the labels decides between the two. Losses are in nats. A custom
loss is a function (label, outputs) -> [B].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

Array = np.ndarray | tf.Tensor
# (labels, outputs) -> loss of each example [B]
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

COUNTS = ("share", "all")
# Examples whose next tokens are measured at a time.
_BLOCK = 16


def cross_entropy(label: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Softmax cross-entropy of each example, in nats: float32 [B].

    Args:
        label: [B], or [B, T] next tokens.
        logits: [B, classes], or [B, T, vocabulary].

    Raises:
        ValueError: labels and logits are of different tasks.
    """
    check_task(label.shape, logits.shape)
    logits = tf.cast(logits, tf.float32)
    if label.shape.rank == 1:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)
    counts = label >= 0
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.where(counts, label, 0), logits
    )
    weight = tf.cast(counts, tf.float32)
    total = tf.reduce_sum(weight, axis=1)
    return tf.reduce_sum(entropy * weight, axis=1) / tf.maximum(total, 1.0)


def measured_losses(label: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """`cross_entropy` of each example in NumPy, for reports: float64 [B]."""
    check_task(label.shape, logits.shape)
    check_label_range(label, logits.shape[-1])
    if label.ndim == 1:
        return -log_softmax(logits)[np.arange(len(label)), label]
    losses = np.empty(len(label))
    for start in range(0, len(label), _BLOCK):
        part = slice(start, start + _BLOCK)
        counts = label[part] >= 0
        token = np.where(counts, label[part], 0)[..., np.newaxis]
        log_p = np.take_along_axis(log_softmax(logits[part]), token, axis=-1)
        total = np.maximum(1, counts.sum(axis=1))
        losses[part] = -(log_p[..., 0] * counts).sum(axis=1) / total
    return losses


def correct(
    label: np.ndarray, logits: np.ndarray, *, count: str = "share"
) -> np.ndarray:
    """How right each prediction is: float64 [B] in [0, 1].

    Args:
        label: [B], or [B, T] next tokens.
        logits: [B, classes], or [B, T, vocabulary].
        count: of next tokens: the `share` of positions, or 1 where `all` are
            right and else 0.
    """
    check_task(label.shape, logits.shape)
    check_label_range(label, logits.shape[-1])
    right = logits.argmax(axis=-1) == label
    if label.ndim == 1:
        return right.astype(np.float64)
    counts = label >= 0
    if count == "all":
        return (right | ~counts).all(axis=1).astype(np.float64)
    return (right & counts).sum(axis=1) / np.maximum(1, counts.sum(axis=1))


def check_task(label_shape, output_shape) -> None:
    """Refuses outputs that are no logits for such labels.

    Raises:
        ValueError: says what a network for these labels has to give.
    """
    rank, found = len(label_shape), len(output_shape)
    wanted = "[batch, classes]" if rank == 1 else "[batch, time, vocabulary]"
    if rank not in (1, 2) or found != rank + 1:
        raise ValueError(
            f"Labels of shape {tuple(label_shape)} expected outputs {wanted}. "
            f"Received: outputs of shape {tuple(output_shape)}."
        )
    if output_shape[-1] == 1:
        raise ValueError(
            f"Expected outputs {wanted}, one for each of two or more classes. "
            "Received: one output. For two classes let the network end in two "
            "outputs, such as keras.layers.Dense(2)."
        )


def check_label_range(label: np.ndarray, outputs: int) -> None:
    """Refuses labels for which a network has no output.

    Raises:
        ValueError: says the largest label and the number of outputs.
    """
    if label.size and label.max() >= outputs:
        raise ValueError(
            f"Expected labels from 0 to {outputs - 1}, for {outputs} outputs "
            f"of the network. Received: labels up to {label.max()}."
        )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities in nats: float64 [..., classes]."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
