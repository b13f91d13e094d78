"""Predictions, and accuracy and loss by subset.

Everything here runs with `training=False`: BatchNorm uses its moving
statistics, and tied layers do what their `inference` says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph, losses, shares, storage, subsets, tracing
from tfmemloc.data.chunks import chunks, even_count
from tfmemloc.data.examples import Examples, require_some
from tfmemloc.graph.inputs import arranged
from tfmemloc.layers import masks
from tfmemloc.result import Result

BY = ("subset", "group")


@dataclasses.dataclass(frozen=True, eq=False)
class SubsetMetrics(Result):
    """How well a network does on each subset, or each group."""

    title: ClassVar[str] = "Accuracy and loss"

    subsets: tuple[str, ...]  # S names.
    count: np.ndarray  # [S] examples.
    accuracy: np.ndarray  # [S] in [0, 1], of the labels trained on.
    true_accuracy: np.ndarray  # [S] in [0, 1], of the true labels.
    loss: np.ndarray  # [S] mean cross-entropy in nats, labels trained on.

    def of(self, subset: str) -> dict[str, float]:
        """The numbers of one subset."""
        s = self.subsets.index(subset)
        return {
            name: float(getattr(self, name)[s])
            for name in ("accuracy", "true_accuracy", "loss")
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row for each subset."""
        return [
            {"subset": subset, "count": int(self.count[s]), **self.of(subset)}
            for s, subset in enumerate(self.subsets)
        ]


class Predictor:
    """A function from inputs to logits, traced once.

    Weights that are assigned to the model later are seen by it.

    Args:
        model: any Keras model.
        raw: give the outputs as they are, as of a part of a network.
    """

    def __init__(self, model: keras.Model, *, raw: bool = False):
        self.model = model
        signature = _input_signature(model)

        def outputs_of(outputs):
            return outputs if raw else as_logits(model, outputs)

        self._function = tracing.function(
            lambda inputs: outputs_of(model(inputs, training=False)),
            input_signature=signature,
            reduce_retracing=signature is None,
        )

    def __call__(self, inputs: Mapping[str, Any]) -> tf.Tensor:
        """The logits of inputs by name [B, ...]; ids under `example_id`."""
        return self._function(arranged(self.model, inputs))

    def trace_count(self) -> int:
        """How often it was traced."""
        return self._function.experimental_get_tracing_count()


def as_logits(model: keras.Model, outputs: tf.Tensor) -> tf.Tensor:
    """The outputs of a model as logits.

    If a functional model ends in a softmax, they are the logarithms of its
    probabilities, which are logits of the same softmax.
    """
    if not graph.ends_in_softmax(model):
        return outputs
    # The logarithm of 0, and its gradient, would not be finite.
    chance = tf.maximum(tf.cast(outputs, tf.float32), np.finfo(np.float32).tiny)
    return tf.math.log(chance)


def _input_signature(model: keras.Model) -> list[Any] | None:
    """The signature of the inputs, for any batch size; None if not known."""
    if not graph.is_functional(model):
        return None
    return [
        keras.tree.map_structure(
            lambda tensor: tf.TensorSpec(
                [None, *tensor.shape[1:]], tensor.dtype
            ),
            graph.inputs_of(model),
        )
    ]


def _as_predictor(model: keras.Model | Predictor) -> Predictor:
    if isinstance(model, Predictor):
        return model
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Expected a Keras model, or the Predictor of one. Received: "
            f"{type(model).__name__}."
        )
    return Predictor(model)


def predict_logits(
    model: keras.Model | Predictor,
    examples: Examples,
    *,
    batch_size: int = 512,
) -> np.ndarray:
    """The logits of all examples: float32 [N, classes] or [N, T, tokens].

    Args:
        model: a model, or the predictor of one (which saves a trace where
            this is called often).
        examples: N examples.
        batch_size: how many go through the network at once.

    Example:
        >>> predict_logits(model, examples.test).shape
        (40, 10)
    """
    predict = _as_predictor(model)
    require_some(examples)
    logits = [
        predict(chunk.inputs).numpy() for chunk in chunks(examples, batch_size)
    ]
    return np.concatenate(logits).astype(np.float32)


def evaluate(
    model: keras.Model | Predictor,
    examples: Examples,
    *,
    by: str = "subset",
    count: str = "share",
    batch_size: int = 512,
) -> SubsetMetrics:
    """Accuracy and loss of each subset, also against the true labels.

    A model does not know which ids it was trained with: in `tied`, ids that
    were shuffled since give each example the units of another, and nothing
    tells. A run knows them, and its probes refuse other ones; in `drop` and
    `expected` ids do not count.

    Args:
        model: a model with its tied layers in the behaviour to be measured
            (see `tfmemloc.with_inference`), or its predictor.
        examples: any mixture of subsets.
        by: `subset`, or `group`.
        count: for next tokens: `share` counts the share of an example's
            positions that are right, `all` counts 1 if all of them are, else 0.
        batch_size: how many go through the network at once.

    Raises:
        ValueError: there are no examples, they have no groups, or the outputs
            are no logits for their labels.

    Example:
        >>> metrics = evaluate(with_inference(model, "tied"), examples)
        >>> sorted(metrics.of("noisy"))
        ['accuracy', 'loss', 'true_accuracy']
    """
    predict = _as_predictor(model)
    require_some(examples)
    parts = [
        measured(predict(chunk.inputs).numpy(), examples, chunk.places, count)
        for chunk in chunks(examples, batch_size)
    ]
    return joined_metrics(parts, examples, by=by)


def measured(
    logits: np.ndarray,
    examples: Examples,
    places: np.ndarray,
    count: str = "share",
) -> dict[str, np.ndarray]:
    """What logits say of the examples at these places: [B] each."""
    logits = logits.astype(np.float32)
    label, true = examples.label[places], examples.true_label[places]
    return {
        "accuracy": losses.correct(label, logits, count=count),
        "true_accuracy": losses.correct(true, logits, count=count),
        "loss": losses.measured_losses(label, logits),
    }


def joined_metrics(
    parts: Sequence[Mapping[str, np.ndarray]],
    examples: Examples,
    *,
    by: str = "subset",
) -> SubsetMetrics:
    """Metrics from the values that `measured` gave for all chunks, in order."""
    values = {
        name: np.concatenate([part[name] for part in parts])
        for name in parts[0]
    }
    if by not in BY:
        raise ValueError(
            f"`by` must be one of {', '.join(map(repr, BY))}. Received: "
            f"by={by!r}."
        )
    column = getattr(examples, by)
    if column is None:
        raise ValueError(
            f"{examples.name} has no groups. Expected examples made with "
            "from_arrays(..., group=...)."
        )
    names = subsets.ordered(np.unique(column).tolist())
    members = [column == name for name in names]
    return SubsetMetrics(
        subsets=names,
        count=np.array([member.sum() for member in members]),
        **{
            name: np.array([value[member].mean() for member in members])
            for name, value in values.items()
        },
    )


def inference_models(model: keras.Model) -> dict[str, keras.Model]:
    """The behaviours in which a network is measured: name -> model.

    `tied`, `expected` and `drop` of a network with tied layers; `plain` of
    any other.
    """
    if not graph.tied_layers(model):
        return {"plain": model}
    return {
        name: graph.with_inference(model, name)
        for name in ("tied", "expected", "drop")
    }


def recalibrate_batch_norm(
    model: keras.Model, examples: Examples, *, batch_size: int = 512
) -> keras.Model:
    """Recomputes BatchNorm statistics for the behaviour that `model` has.

    The statistics that a tied network collected in training include its
    memorization units. Here all examples pass once, tied layers in their
    inference behaviour and BatchNorm on batch statistics, in an order by a hash
    of the ids; the mean and the variance over all examples, as these batches
    give them, become the new moving statistics.

    Args:
        model: a functional model; it is not changed.
        examples: usually the training examples.
        batch_size: examples that make one batch's statistics.

    Returns:
        A new model that shares all weights but BatchNorm's.

    Raises:
        ValueError: the model has no BatchNorm layer, or there are no examples.

    Example:
        >>> network = build(ModelConfig("resnet9"), (8, 8, 1), 10)
        >>> dropped = with_inference(network, "drop")
        >>> recalibrated = recalibrate_batch_norm(dropped, examples.train)
    """
    require_some(examples)
    if graph.keeps_own_statistics(model):
        raise ValueError(
            f"Model '{model.name}' keeps BatchNorm statistics of its own for "
            "the drop. There is nothing to recalibrate."
        )
    result = graph.with_own_batch_norm(model)
    norms = graph.batch_norms(result)
    if not norms:
        raise ValueError(
            f"Model '{model.name}' has no BatchNormalization layer. Expected "
            "one whose statistics can be recomputed."
        )
    count = even_count(len(examples), batch_size)
    found = shares.together(
        "batch_norm",
        lambda: [
            storage.digest(model.get_weights()),
            examples.digest(),
            batch_size,
        ],
        count,
        lambda only: _batch_statistics(model, examples, batch_size, only),
    )
    sizes = [found[f"{chunk}/size"] for chunk in range(count)]
    for k, layer in enumerate(norms):
        of_chunks, within = (
            np.stack([found[f"{chunk}/{k}/{name}"] for chunk in range(count)])
            for name in ("mean", "variance")
        )
        of_chunks = of_chunks.astype(np.float64)
        mean = np.average(of_chunks, axis=0, weights=sizes)
        between = np.average((of_chunks - mean) ** 2, axis=0, weights=sizes)
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(
            np.average(within, axis=0, weights=sizes) + between
        )
    return result


def _batch_statistics(
    model, examples, batch_size, only
) -> dict[str, np.ndarray]:
    """Mean and variance of some chunks at each BatchNorm, and their sizes."""
    collector = graph.with_own_batch_norm(model, collect=True)
    predict = Predictor(collector)
    norms = graph.batch_norms(collector)
    rows = {}
    chosen = chunks(shuffled(examples), batch_size, even=True, only=only)
    for number, chunk in zip(only, chosen, strict=True):
        predict(chunk.inputs)
        rows[f"{number}/size"] = np.array(len(chunk.places))
        for k, layer in enumerate(norms):
            rows[f"{number}/{k}/mean"] = layer.moving_mean.numpy()
            rows[f"{number}/{k}/variance"] = layer.moving_variance.numpy()
    return rows


def shuffled(examples: Examples) -> Examples:
    """The examples in an order that is a function of their ids alone.

    Chunks of a data set that is sorted by class would hold one class each.
    """
    seed = masks.fold_seed(0, "chunks")
    rank = masks.hash_bits_numpy(seed, examples.example_id, 1)[:, 0]
    return examples.take(np.lexsort((examples.example_id, rank)))
