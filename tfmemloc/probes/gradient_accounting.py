"""Gradient accounting: whose gradients move which layers?

Claim (paper, section 4.1): with 10 % of the labels wrong, the aggregate
gradient of the few noisy examples is comparable in norm to that of all clean
ones, and points against it; in every layer, not in the last ones.

For each epoch and layer group, with g_S the sum of the gradients of subset S
divided by the number of training examples:

    norm          = || g_S ||
    authors_norm  = sum over the group's variables v of ||g_S,v|| / sqrt(|v|)
    cosine        = < g_noisy, g_clean > / (||g_noisy|| ||g_clean||)
    share         = sum over noisy i of ||g_i||^2 / sum over training i

The aggregates (norm, cosine) are by default those that training took, with
BatchNorm on batch statistics in batches that mix the subsets; with
`batch_statistics=False`, and for the per-example norms always, the statistics
are frozen. The difference is large while the moving statistics lag behind the
weights: the frozen gradients then share a part that only says so, and their
cosine turns positive. The authors' code overwrites gradients by their norms
before it takes the cosine; here all comes from the same untouched gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np
from tqdm import auto as tqdm

from tfmemloc import gradients, surgery
from tfmemloc.data import Examples
from tfmemloc.gradients import GradientEngine
from tfmemloc.results import GradientAccounting
from tfmemloc.runs import Run

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

GroupNames = Mapping[str, Sequence[str]]


def account_gradients(
    run: Run,
    examples: Examples,
    *,
    epochs: Sequence[int] | None = None,
    inference: str | None = None,
    groups: GroupNames | None = None,
    progress: bool = True,
    **options,
) -> GradientAccounting:
    """Accounts the gradients at saved epochs of a run.

    Args:
        run: any run whose model can be rebuilt.
        examples: the data of the run.
        epochs: saved epochs; None takes all.
        inference: behaviour of tied layers; None leaves the model's.
        groups: names of groups -> names of layers; None is `layer_groups`.
        progress: show a progress bar.
        **options: of `Accountant`.

    Returns:
        Arrays with axes [epochs, groups, subsets].

    Raises:
        ValueError: an epoch was not saved, or the data are not the run's.
        FloatingPointError: a gradient is not finite.

    Example:
        >>> result = account_gradients(Run.open("runs/demo/standard"), examples)
        >>> result.while_memorizing()[0]["norm_ratio"]
    """
    run.check(examples)
    epochs = run.epochs if epochs is None else tuple(epochs)
    run.check_epochs(epochs)
    return account_weights(
        run.model(epochs[0], inference),
        ((epoch, run.weights(epoch)) for epoch in epochs),
        examples,
        count=len(epochs),
        groups=groups,
        progress=progress,
        **({"batch_size": run.training.batch_size} if run.training else {}),
        **options,
    )


def account_weights(
    model: keras.Model,
    weights: Iterable[tuple[int, Sequence[np.ndarray]]],
    examples: Examples,
    *,
    count: int | None = None,
    groups: GroupNames | None = None,
    progress: bool = True,
    **options,
) -> GradientAccounting:
    """The same for any Keras model and any list of weights.

    Args:
        model: comes back with the weights that it had.
        weights: pairs (epoch, values in the order of `model.weights`).
        examples: what to take gradients of.
        count: number of pairs, for the progress bar.
        groups: as in `account_gradients`.
        progress: show a progress bar.
        **options: of `Accountant`.
    """
    accountant = Accountant(model, examples, groups=groups, **options)
    bar = tqdm.tqdm(
        weights,
        total=count,
        desc="gradient accounting",
        unit="epoch",
        disable=not progress,
    )
    with surgery.swapped_weights(model.weights, model.get_weights()):
        for epoch, values in bar:
            model.set_weights(list(values))
            accountant.account(epoch)
    return accountant.result()


class Accountant:
    """Accounts one model again and again, with one trace.

    Args:
        model: any Keras model.
        examples: what to take gradients of.
        groups: see `account_gradients`.
        batch_statistics: see the head of this module.
        batch_size: of the batches under batch statistics.
        engine: see `GradientEngine`.
        weight_decay: see `GradientEngine`.
        memory_budget: bytes for a chunk of examples.
    """

    def __init__(
        self,
        model: keras.Model,
        examples: Examples,
        *,
        groups: GroupNames | None = None,
        batch_statistics: bool = True,
        batch_size: int = 512,
        engine: str = "layerwise",
        weight_decay: float = 0.0,
        memory_budget: int = gradients.MEMORY_BUDGET,
    ):
        self._engine = GradientEngine(
            model, engine=engine, weight_decay=weight_decay
        )
        self._examples = examples
        self._groups = {
            name: layers
            for name, layers in surgery.layer_groups(model, groups).items()
            if any(layer.trainable_variables for layer in layers)
        }
        self._memory_budget = memory_budget
        self._batch_size = batch_size
        # Without BatchNorm both kinds of statistics are the same.
        self._batch_statistics = batch_statistics and any(
            isinstance(layer, keras.layers.BatchNormalization)
            for layer in surgery.flat_layers(model)
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

    def result(self) -> GradientAccounting:
        """What has been accounted so far."""
        return GradientAccounting(
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


class AccountGradients(keras.callbacks.Callback):
    """Accounts gradients during anybody's `model.fit`.

    Args:
        examples: what to take gradients of.
        every: account after every so-manieth epoch, and at the beginning.
        **options: of `Accountant`.

    Example:
        >>> account = AccountGradients(examples)
        >>> model.fit(batches, epochs=20, callbacks=[account])
        >>> account.result().save("gradient_accounting")
    """

    def __init__(self, examples: Examples, *, every: int = 1, **options):
        super().__init__()
        self.examples = examples
        self.every = every
        self.options = options

    def on_train_begin(self, logs=None):
        """Accounts the initialization."""
        self._accountant = Accountant(self.model, self.examples, **self.options)
        self._accountant.account(0)

    def on_epoch_end(self, epoch, logs=None):
        """Accounts an epoch; Keras counts from 0."""
        if (epoch + 1) % self.every == 0:
            self._accountant.account(epoch + 1)

    def result(self) -> GradientAccounting:
        """What has been accounted so far."""
        return self._accountant.result()


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
    """[G]: between the two training subsets; NaN where there is one."""
    training = [aggregate[s] for s in aggregate if s != "test"]
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
    is_memorized = np.isin(examples.subset, ("noisy", "atypical"))
    total = squared[examples.subset != "test"].sum(axis=0)
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
