"""Gradient accounting: whose gradients move which layers?

Claim (paper, section 4.1): with 10 % of the labels wrong, the aggregate
gradient of the few noisy examples is comparable in norm to that of all clean
ones, and points in the opposite direction. This holds in every layer, not only
in the last ones.

For each epoch and layer group, with g_S the sum of the gradients of subset S
divided by the number of training examples:

    norm          = || g_S ||
    authors_norm  = sum over the group's variables v of ||g_S,v|| / sqrt(|v|)
    cosine        = < g_noisy, g_clean > / (||g_noisy|| ||g_clean||)
    share         = sum over noisy i of ||g_i||^2 / sum over training i

By default the aggregates (norm, cosine) are taken as in training: BatchNorm
uses batch statistics, in batches that mix the subsets. With
`batch_statistics=False`, and always for the per-example norms, the statistics
are frozen. The difference is large while the moving statistics lag behind the
weights: the frozen gradients then share a component that comes from this lag
alone, and their cosine turns positive. The authors' code overwrites gradients
by their norms before it takes the cosine; here all numbers come from the same
unchanged gradients.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
import numpy as np
from tqdm import auto as tqdm

from tfmemloc import graph
from tfmemloc.data.examples import Examples
from tfmemloc.probes.accountant import Accountant, AccountingConfig, GroupNames
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Table, or_none
from tfmemloc.snapshots import Source, as_source
from tfmemloc.subsets import OfSubsets


@dataclasses.dataclass(frozen=True, eq=False)
class GradientAccounting(OfSubsets, Result):
    """Whose gradients move which layers, epoch by epoch (paper, section 4.1).

    The aggregates are weighted so that the training subsets add up to the
    gradient of the mean training loss.
    """

    title: ClassVar[str] = "Whose gradients move which layers"

    groups: tuple[str, ...]  # G layer groups, input to output.
    epochs: tuple[int, ...]  # E epochs after which gradients were taken.
    subsets: tuple[str, ...]  # S names.
    quantiles: tuple[float, ...]  # Q in [0, 1].
    batch_statistics: bool  # Of the aggregates' BatchNorm; else frozen.
    norm: np.ndarray  # [E, G, S] L2 norm of the aggregate gradient.
    # [E, G, S] sum over a group's variables of ||g|| / sqrt(entries).
    authors_norm: np.ndarray
    # [E, G] between the aggregates of the two training subsets; NaN without.
    cosine: np.ndarray
    # [E, G] of the training examples' summed squared norms, in [0, 1], that
    # comes from the noisy (or atypical) ones.
    share: np.ndarray
    norm_quantiles: np.ndarray  # [E, G, S, Q] of per-example norms.
    accuracy: np.ndarray  # [E, S] in [0, 1], of the labels trained on.

    def rows(self) -> list[dict[str, Any]]:
        """A row for each epoch, group and subset."""
        return [
            {
                "epoch": epoch,
                "group": group,
                "subset": subset,
                "norm": float(self.norm[e, g, s]),
                "authors_norm": float(self.authors_norm[e, g, s]),
                "cosine": or_none(self.cosine[e, g]),
                "share": or_none(self.share[e, g]),
                "accuracy": float(self.accuracy[e, s]),
                **{
                    f"norm_q{100 * q:g}": float(self.norm_quantiles[e, g, s, k])
                    for k, q in enumerate(self.quantiles)
                },
            }
            for e, epoch in enumerate(self.epochs)
            for g, group in enumerate(self.groups)
            for s, subset in enumerate(self.subsets)
        ]

    def while_memorizing(
        self, low: float = 0.2, high: float = 0.9
    ) -> list[dict[str, Any]]:
        """What the gradients were like while the wrong labels were learned.

        Args:
            low: lowest accuracy on the noisy (atypical) examples with which an
                epoch counts.
            high: highest accuracy with which an epoch counts.

        Returns:
            A row for each group: over those epochs the median ratio of the
            aggregate norms, noisy to clean; the mean cosine; the mean share.
            Empty where no epoch counts.
        """
        if self.memorized is None or self.ordinary is None:
            return []
        noisy = self.subsets.index(self.memorized)
        clean = self.subsets.index(self.ordinary)
        learned = self.accuracy[:, noisy]
        during = (learned >= low) & (learned <= high)
        if not during.any():
            return []
        ratio = self.norm[during][:, :, noisy] / self.norm[during][:, :, clean]
        return [
            {
                "group": group,
                "norm_ratio": float(np.median(ratio[:, g])),
                "cosine": float(np.mean(self.cosine[during][:, g])),
                "share": float(np.mean(self.share[during][:, g])),
                "epochs": int(during.sum()),
            }
            for g, group in enumerate(self.groups)
        ]

    def table(self) -> Table:
        """What the gradients were like while wrong labels were learned."""
        return Table(self.while_memorizing(), default=".3g")

    def sentence(self) -> str:
        """The norm ratio and the cosine while wrong labels were learned."""
        rows = self.while_memorizing()
        if not rows:
            return (
                "No accounted epoch has between 20% and 90% of the noisy "
                "examples learned, so there is nothing to say of their "
                "memorization."
            )
        ratios = [row["norm_ratio"] for row in rows]
        cosines = [row["cosine"] for row in rows]
        statistics = "batch" if self.batch_statistics else "frozen"
        return (
            f"While between 20% and 90% of the {self.memorized} examples were "
            f"learned ({rows[0]['epochs']} accounted epochs), the norm of "
            f"their aggregate gradient was {min(ratios):.2f} to "
            f"{max(ratios):.2f} times that of the {self.ordinary} ones, group "
            f"by group, and the mean cosine between the two {min(cosines):.2f} "
            f"to {max(cosines):.2f} (BatchNorm on {statistics} statistics)."
        )

    def figures(self) -> dict[str, Figure]:
        """Norms by epoch; of two training subsets, cosine and share too."""
        found = {
            "gradient_norms": Figure(
                "L2 norm of the aggregate gradient of each subset, by layer "
                "group and epoch.",
                _norm_curves(self),
            )
        }
        if self.memorized is not None and self.ordinary is not None:
            found["gradient_cosines"] = Figure(
                "Cosine between the aggregate gradients of the two training "
                "subsets.",
                figures.heat_map(
                    self.cosine,
                    self.groups,
                    self.epochs,
                    f"cosine, {self.memorized} and {self.ordinary}",
                    cmap="RdBu_r",
                    vmin=-1,
                    vmax=1,
                ),
            )
            found["gradient_shares"] = Figure(
                "Share of the summed squared per-example gradient norms.",
                figures.heat_map(
                    100 * self.share,
                    self.groups,
                    self.epochs,
                    f"share of the {self.memorized} examples (%)",
                    cmap="cividis",
                    vmin=0,
                    vmax=100,
                ),
            )
        return found

    def key_numbers(self) -> dict[str, float]:
        """Norm ratio and cosine while wrong labels were learned."""
        rows = self.while_memorizing()
        if not rows:
            return {}
        return {
            "gradient norm, memorized / ordinary (median group)": float(
                np.median([row["norm_ratio"] for row in rows])
            ),
            "gradient cosine (mean of groups)": float(
                np.mean([row["cosine"] for row in rows])
            ),
        }


def _norm_curves(result: GradientAccounting):
    """Norm of each subset's aggregate gradient, a panel for each group."""
    figure, panels = figures.panels(result.groups)
    for g, panel in enumerate(panels):
        for s, subset in enumerate(result.subsets):
            panel.plot(
                result.epochs,
                result.norm[:, g, s],
                color=figures.color_of(subset, result.subsets),
                label=subset,
            )
        panel.set_yscale("log")
    figure.axes[0].legend(fontsize=7)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("norm of the aggregate gradient", fontsize=9)
    return figure


def account_gradients(
    source: Source,
    examples: Examples,
    config: AccountingConfig = AccountingConfig(),
    *,
    groups: GroupNames | None = None,
    progress: bool = True,
) -> GradientAccounting:
    """Accounts the gradients at saved epochs of a network.

    Args:
        source: a run whose model can be rebuilt, or `Snapshots` of any model,
            which comes back with the weights that it had.
        examples: what to take gradients of; of a run, its data.
        config: which epochs, and how.
        groups: names of groups -> names of layers; None is `layer_groups`.
        progress: show a progress bar.

    Returns:
        Arrays with axes [epochs, groups, subsets].

    Raises:
        ValueError: an epoch was not saved, or the data are not the run's.
        FloatingPointError: a gradient is not finite.

    Example:
        >>> run = Run.open("runs/demo/standard")
        >>> config = AccountingConfig(epochs=(0, 1))
        >>> account_gradients(run, run.examples(), config).norm.shape[0]
        2
    """
    source = as_source(source)
    source.check(examples)
    epochs = source.epochs if config.epochs is None else config.epochs
    source.check_epochs(epochs)
    if config.batch_size is None and source.training is not None:
        config = dataclasses.replace(
            config, batch_size=source.training.batch_size
        )
    model = source.model(inference=config.inference)
    accountant = Accountant(model, examples, config, groups=groups)
    with graph.swapped_weights(model.weights, model.get_weights()):
        for epoch in tqdm.tqdm(
            epochs,
            desc="gradient accounting",
            unit="epoch",
            disable=not progress,
        ):
            model.set_weights(source.weights(epoch))
            accountant.account(epoch)
    return GradientAccounting(**accountant.fields())


class AccountGradients(keras.callbacks.Callback):
    """Accounts gradients during any `model.fit`.

    Args:
        examples: what to take gradients of.
        config: how.
        every: account after every n-th epoch, and at the beginning.
        groups: names of groups -> names of layers; None is `layer_groups`.

    Example:
        >>> account = AccountGradients(examples, every=2)
        >>> _ = model.fit(inputs, labels, epochs=2, verbose=0,
        ...               callbacks=[account])
        >>> account.result().epochs
        (0, 2)
    """

    def __init__(
        self,
        examples: Examples,
        config: AccountingConfig = AccountingConfig(),
        *,
        every: int = 1,
        groups: GroupNames | None = None,
    ):
        super().__init__()
        self.examples = examples
        self.config = config
        self.every = every
        self.groups = groups

    def on_train_begin(self, logs=None):
        """Accounts the initialization."""
        self._accountant = Accountant(
            self.model, self.examples, self.config, groups=self.groups
        )
        self._accountant.account(0)

    def on_epoch_end(self, epoch, logs=None):
        """Accounts an epoch; Keras counts from 0."""
        if (epoch + 1) % self.every == 0:
            self._accountant.account(epoch + 1)

    def result(self) -> GradientAccounting:
        """What has been accounted so far."""
        return GradientAccounting(**self._accountant.fields())
