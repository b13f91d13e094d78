"""What gradient accounting measures of one model, epoch after epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np

from tfmemloc import configs, gradients, graph
from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.fields import check_fields
from tfmemloc.gradients import GradientEngine
from tfmemloc.subsets import MEMORIZED, ORDINARY

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

GroupNames = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class AccountingConfig:
    """Which gradients are accounted, and how.

    Attributes:
        epochs: saved epochs; None takes all.
        batch_statistics: take the aggregate gradients with BatchNorm on batch
            statistics, as in training; otherwise its statistics are frozen.
        batch_size: examples in a batch, with batch statistics; None is the
            run's batch size.
        engine: how to compute the gradients of single examples.
        weight_decay: adds weight_decay * w to each gradient.
        inference: behaviour of tied layers; None leaves it as built (drop).
        memory_budget_mib: MiB for a chunk of examples.
    """

    epochs: tuple[int, ...] | None = None
    batch_statistics: bool = True
    batch_size: int | None = None
    engine: Literal["layerwise", "vectorized_map"] = "layerwise"
    weight_decay: float = 0.0
    inference: configs.Inference | None = None
    memory_budget_mib: int = 1024

    def __post_init__(self):
        check_fields(self)
        if self.batch_size is not None:
            check_range("batch_size", self.batch_size, 1, None)
        check_range("weight_decay", self.weight_decay, 0.0, None)
        check_range("memory_budget_mib", self.memory_budget_mib, 1, None)


class Accountant:
    """Accounts the gradients of one model at many epochs, with one trace.

    Args:
        model: any Keras model.
        examples: what to take gradients of.
        config: how.
        groups: see `account_gradients`.
    """

    def __init__(
        self,
        model: keras.Model,
        examples: Examples,
        config: AccountingConfig = AccountingConfig(),
        *,
        groups: GroupNames | None = None,
    ):
        self._engine = GradientEngine(
            model, engine=config.engine, weight_decay=config.weight_decay
        )
        self._examples = examples
        self._groups = {
            name: layers
            for name, layers in graph.layer_groups(model, groups).items()
            if any(layer.trainable_variables for layer in layers)
        }
        self._memory_budget = config.memory_budget_mib * 2**20
        self._batch_size = config.batch_size or 512
        # Without BatchNorm both kinds of statistics are the same.
        self._batch_statistics = config.batch_statistics and any(
            isinstance(layer, keras.layers.BatchNormalization)
            for layer in graph.flat_layers(model)
        )
        self._epochs: list[int] = []
        self._parts: list[dict[str, np.ndarray]] = []

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Names of the layers without a closed form, after the first call."""
        return self._engine.fallbacks

    def account(self, epoch: int) -> None:
        """Accounts the model with the weights that it has now."""
        account = gradients.account_subsets(
            self._engine, self._examples, memory_budget=self._memory_budget
        )
        squared = account.norms_squared @ gradients.group_matrix(
            self._engine, self._groups
        )
        by_subset = account.aggregate
        if self._batch_statistics:
            by_subset = gradients.subset_gradients(
                self._engine,
                self._examples,
                batch_statistics=True,
                batch_size=self._batch_size,
            )
        aggregate = {
            subset: gradients.group_gradients(self._engine, self._groups, g)
            for subset, g in by_subset.items()
        }
        self._epochs.append(epoch)
        self._parts.append(
            {
                "norm": _by_group(aggregate, _norm),
                "authors_norm": _by_group(aggregate, _authors_norm),
                "cosine": _cosines(aggregate, list(self._groups)),
                "share": _shares(squared, self._examples),
                "norm_quantiles": _quantiles(squared, self._examples),
                "accuracy": account.accuracy,
            }
        )

    def fields(self) -> dict[str, Any]:
        """What has been accounted so far: the fields of the result."""
        return dict(
            groups=tuple(self._groups),
            epochs=tuple(self._epochs),
            subsets=self._examples.subsets,
            quantiles=QUANTILES,
            batch_statistics=self._batch_statistics,
            **{
                name: np.stack([part[name] for part in self._parts])
                for name in self._parts[0]
            },
        )


def _norm(variables: Sequence[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(g**2) for g in variables)))


def _authors_norm(variables: Sequence[np.ndarray]) -> float:
    return float(sum(np.sqrt(np.mean(g**2)) for g in variables))


def _by_group(aggregate, measure) -> np.ndarray:
    """[G, S]: a measure of each subset's aggregate, group by group."""
    return np.array(
        [
            [measure(variables) for variables in by_group.values()]
            for by_group in aggregate.values()
        ]
    ).T


def _cosines(aggregate, groups: list[str]) -> np.ndarray:
    """[G]: between the two training subsets; NaN if there is only one."""
    training = [aggregate[s] for s in aggregate if s in MEMORIZED + ORDINARY]
    if len(training) != 2:
        return np.full(len(groups), np.nan)
    first, second = training
    return np.array([_cosine(first[g], second[g]) for g in groups])


def _cosine(first, second) -> float:
    product = sum(np.sum(a * b) for a, b in zip(first, second, strict=True))
    norms = _norm(first) * _norm(second)
    return float(product / norms) if norms > 0 else np.nan


def _shares(squared: np.ndarray, examples: Examples) -> np.ndarray:
    """[G]: the memorized subset's share; NaN where there is none."""
    is_memorized = np.isin(examples.subset, MEMORIZED)
    total = squared[examples.is_trained_on].sum(axis=0)
    if not is_memorized.any():
        return np.full(squared.shape[1], np.nan)
    return squared[is_memorized].sum(axis=0) / np.where(
        total > 0, total, np.nan
    )


def _quantiles(squared: np.ndarray, examples: Examples) -> np.ndarray:
    """[G, S, Q] of per-example norms."""
    return np.stack(
        [
            np.quantile(
                np.sqrt(squared[examples.subset == subset]), QUANTILES, axis=0
            ).T
            for subset in examples.subsets
        ],
        axis=1,
    )
