"""Accuracy, loss and predictions per subset.

Everything here runs with `training=False`: BatchNorm uses its moving
statistics, and tied layers do what their `inference` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph, surgery
from tfmemloc.batches import scale_pixels
from tfmemloc.data import Examples
from tfmemloc.results import SubsetMetrics

# (images [B, H, W, C], ids [B]) -> logits [B, classes]
Predictor = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def model_inputs(model: keras.Model, image, example_id):
    """Arranges images and ids as the model's inputs.

    An input named `example_id` gets the ids; each other one, the images. A
    subclassed model, whose inputs are not known, gets
    `{"image", "example_id"}`.
    """
    if not graph.is_functional(model):
        return {"image": image, "example_id": example_id}
    return keras.tree.map_structure(
        lambda tensor: example_id if tensor.name == graph.IDS else image,
        graph.inputs_of(model),
    )


def as_logits(model: keras.Model, outputs: tf.Tensor) -> tf.Tensor:
    """The outputs of a model as logits.

    Of a functional model that ends in a softmax: the logarithm of its
    probabilities, which are logits of the same softmax.
    """
    if not graph.ends_in_softmax(model):
        return outputs
    # The logarithm of 0, and its gradient, would not be finite.
    chance = tf.maximum(tf.cast(outputs, tf.float32), np.finfo(np.float32).tiny)
    return tf.math.log(chance)


def make_predictor(model: keras.Model) -> Predictor:
    """A function from images and ids to logits, traced once.

    Weights that are assigned later are seen by it.
    """

    def predict(image, example_id):
        outputs = model(model_inputs(model, image, example_id), training=False)
        return as_logits(model, outputs)

    signature = _input_signature(model)
    return tf.function(
        predict,
        input_signature=signature,
        reduce_retracing=signature is None,
    )


def _input_signature(model: keras.Model) -> list[tf.TensorSpec] | None:
    """Any number of images of the model's size, and their ids.

    None where the model does not tell, or takes several kinds of images.
    """
    if not graph.is_functional(model):
        return None
    specs = {
        tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)
        for tensor in keras.tree.flatten(graph.inputs_of(model))
        if tensor.name != graph.IDS
    }
    if len(specs) != 1:
        return None
    return [specs.pop(), tf.TensorSpec([None], tf.int64)]


def predict_logits(
    model: keras.Model | Predictor,
    examples: Examples,
    *,
    batch_size: int = 512,
) -> np.ndarray:
    """The logits of all examples: float32 [N, classes].

    Args:
        model: a model, or the predictor of one (which saves a trace where
            this is called often).
        examples: N examples.
        batch_size: how many go through the network at once.
    """
    is_model = isinstance(model, keras.Model)
    predict = make_predictor(model) if is_model else model
    logits = [
        predict(image, example_id).numpy()
        for image, example_id in _slices(examples, batch_size)
    ]
    return np.concatenate(logits).astype(np.float32)


def _slices(
    examples: Examples, batch_size: int
) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """The examples in order, a batch at a time."""
    for start in range(0, len(examples), batch_size):
        part = slice(start, start + batch_size)
        yield (
            tf.constant(scale_pixels(examples.image[part])),
            tf.constant(examples.example_id[part]),
        )


def evaluate(
    model: keras.Model | Predictor,
    examples: Examples,
    *,
    batch_size: int = 512,
) -> SubsetMetrics:
    """Accuracy and loss of each subset, also against the true labels.

    Args:
        model: a model with its tied layers in the behaviour to be measured
            (see `tfmemloc.with_inference`), or its predictor.
        examples: any mixture of subsets.
        batch_size: how many go through the network at once.

    Example:
        >>> evaluate(with_inference(model, "tied"), examples).of("noisy")
        {'accuracy': 1.0, 'true_accuracy': 0.0, 'loss': 0.01}
    """
    logits = predict_logits(model, examples, batch_size=batch_size)
    return metrics_of_logits(logits, examples)


def metrics_of_logits(logits: np.ndarray, examples: Examples) -> SubsetMetrics:
    """The metrics of logits [N, classes] that were computed before."""
    predicted = logits.argmax(axis=1)
    loss = cross_entropy(logits, examples.label)
    subsets = examples.subsets
    members = [examples.subset == subset for subset in subsets]

    def mean(values):
        return np.array([values[member].mean() for member in members])

    return SubsetMetrics(
        subsets=subsets,
        count=np.array([member.sum() for member in members]),
        accuracy=mean(predicted == examples.label),
        true_accuracy=mean(predicted == examples.true_label),
        loss=mean(loss),
    )


def cross_entropy(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """-log softmax(logits)[label] in nats: float64 [N]."""
    return -log_softmax(logits)[np.arange(len(label)), label]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities in nats: float64 [N, classes]."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def inference_models(model: keras.Model) -> dict[str, keras.Model]:
    """The behaviours in which a network is measured: name -> model.

    `tied`, `expected` and `drop` of a network with tied layers; `plain` of
    any other.
    """
    if not surgery.tied_layers(model):
        return {"plain": model}
    return {
        name: surgery.with_inference(model, name)
        for name in ("tied", "expected", "drop")
    }


def recalibrate_batch_norm(
    model: keras.Model, examples: Examples, *, batch_size: int = 512
) -> keras.Model:
    """Recomputes BatchNorm statistics for the behaviour that `model` has.

    The statistics that a tied network collected in training include its
    memorization units. Here all examples pass once, tied layers in their
    inference behaviour and BatchNorm on batch statistics; the means of the
    batch means and variances, weighted by batch size, become the new moving
    statistics.

    Args:
        model: a functional model; it is not changed.
        examples: usually the training examples.
        batch_size: examples that make one batch's statistics.

    Returns:
        A new model that shares all weights but BatchNorm's.

    Raises:
        ValueError: the model has no BatchNorm layer.
    """
    result = surgery.with_own_batch_norm(model)
    norms = _batch_norms(result)
    if not norms:
        raise ValueError(
            f"Model '{model.name}' has no BatchNormalization layer. Expected "
            "one whose statistics can be recomputed."
        )
    collector = surgery.with_own_batch_norm(model, collect=True)
    predict = make_predictor(collector)
    totals = None
    for image, example_id in _slices(examples, batch_size):
        predict(image, example_id)
        share = len(example_id) / len(examples)
        statistics = [
            share * value.numpy()
            for layer in _batch_norms(collector)
            for value in (layer.moving_mean, layer.moving_variance)
        ]
        totals = (
            statistics
            if totals is None
            else [a + b for a, b in zip(totals, statistics, strict=True)]
        )
    variables = [
        value
        for layer in norms
        for value in (layer.moving_mean, layer.moving_variance)
    ]
    for variable, value in zip(variables, totals, strict=True):
        variable.assign(value)
    return result


def _batch_norms(model: keras.Model) -> list[keras.layers.Layer]:
    return [
        layer
        for layer in surgery.flat_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
