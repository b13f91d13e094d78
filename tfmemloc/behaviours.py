"""A network in several behaviours, measured together.

The behaviours of a network (`tied`, `drop`) differ from its first tied layer
on. What lies before it is the same for all of them, and runs once for a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmemloc import evaluation, graph
from tfmemloc.data.chunks import chunks
from tfmemloc.data.examples import IDS, TIE_IDS, Examples
from tfmemloc.evaluation import SubsetMetrics


class Behaviours:
    """The logits of a network in each behaviour; traced once each.

    Args:
        model: a network. Weights that are assigned to it later are seen.
        names: some of `tied`, `expected` and `drop`. A network without tied
            layers has one behaviour, `plain`.

    Attributes:
        has_front: whether a part of the network runs once for all.
    """

    def __init__(
        self, model: keras.Model, names: Sequence[str] = ("tied", "drop")
    ):
        if not graph.tied_layers(model):
            self._parts = {"plain": evaluation.Predictor(model)}
            self._front = None
        else:
            models = {name: graph.with_inference(model, name) for name in names}
            cuts = {name: _cut(each) for name, each in models.items()}
            self._front = _front(models[names[0]], cuts[names[0]])
            self._parts = {
                name: evaluation.Predictor(cut.suffix)
                for name, cut in cuts.items()
            }
        self.has_front = self._front is not None

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        """Name of a behaviour -> logits of inputs by name [B, ...]."""
        if self._front is not None:
            ids = {key: inputs[key] for key in (IDS, TIE_IDS) if key in inputs}
            inputs = {"x": self._front(inputs), **ids}
        return {name: part(inputs) for name, part in self._parts.items()}

    def evaluate(
        self, examples: Examples, *, batch_size: int = 512
    ) -> dict[str, SubsetMetrics]:
        """Accuracy and loss of each subset: `tfmemloc.evaluate` of each."""
        found: dict[str, list] = {name: [] for name in self._parts}
        for chunk in chunks(examples, batch_size):
            for name, logits in self(chunk.inputs).items():
                found[name].append(
                    evaluation.measured(logits.numpy(), examples, chunk.places)
                )
        return {
            name: evaluation.joined_metrics(parts, examples)
            for name, parts in found.items()
        }


def _cut(model: keras.Model) -> graph.Cut:
    """The last place before the layers in which behaviours differ."""
    own = graph.tied_layers(model)
    if graph.keeps_own_statistics(model):
        own = [*own, *graph.batch_norms(model)]
    return graph.cuts_before(model, {"own": own})["own"]


def _front(model: keras.Model, cut: graph.Cut) -> evaluation.Predictor | None:
    """What runs once; None where behaviours differ from the input on."""
    stages = graph.stages(model, [cut])
    return evaluation.Predictor(stages[0][1], raw=True) if stages else None
