"""Results: frozen dataclasses of named arrays, saved as npz + json.

Every probe returns one. The axes of an array are named in the field's comment:
N examples, G layer groups, E epochs, S subsets, U units.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np

from tfmemloc import storage

AnyResult = TypeVar("AnyResult", bound="Result")


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What all results can do: be saved, loaded and listed."""

    def save(self, path: str | os.PathLike) -> None:
        """Writes `<path>.npz` (arrays) and `<path>.json` (the rest, and rows).

        Args:
            path: without ending; its folder must exist.
        """
        path = pathlib.Path(path)
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
        }
        arrays = {
            name: value
            for name, value in fields.items()
            if isinstance(value, np.ndarray)
        }
        storage.write_arrays(path.with_name(path.name + ".npz"), arrays)
        storage.write_json(
            path.with_name(path.name + ".json"),
            {
                "type": type(self).__name__,
                "fields": {
                    name: value
                    for name, value in fields.items()
                    if name not in arrays
                },
                "rows": self.rows(),
            },
        )

    @classmethod
    def load(cls: type[AnyResult], path: str | os.PathLike) -> AnyResult:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: one of the two files is missing.
            ValueError: the files hold another type of result, or are damaged.
        """
        path = pathlib.Path(path)
        header = storage.read_json(path.with_name(path.name + ".json"))
        if not isinstance(header, dict) or header.get("type") != cls.__name__:
            found = header.get("type") if isinstance(header, dict) else header
            raise ValueError(
                f"{path}.json expected a result of type {cls.__name__}. "
                f"Received: {found!r}."
            )
        fields = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in header["fields"].items()
        }
        arrays = storage.read_arrays(path.with_name(path.name + ".npz"))
        try:
            return cls(**fields, **arrays)
        except TypeError as error:
            raise storage.DamagedFileError(
                f"{path} does not hold the fields of {cls.__name__}: {error}. "
                "It is damaged or of another version; delete its .json and "
                ".npz, and the same command makes them anew."
            ) from error

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict per cell of the arrays; pandas takes the list."""
        raise TypeError(f"{type(self).__name__} defines no rows.")


class OfSubsets:
    """What anything with subsets says of them: results, and examples."""

    subsets: tuple[str, ...]

    @property
    def memorized(self) -> str | None:
        """The subset that has to be memorized: noisy or atypical."""
        return _first_of(("noisy", "atypical"), self.subsets)

    @property
    def ordinary(self) -> str | None:
        """The rest of the training examples: clean or typical."""
        return _first_of(("clean", "typical"), self.subsets)


@dataclasses.dataclass(frozen=True, eq=False)
class SubsetMetrics(Result):
    """How well a network does on each subset."""

    subsets: tuple[str, ...]  # S of clean, noisy, typical, atypical, test.
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


@dataclasses.dataclass(frozen=True, eq=False)
class Localization(Result):
    """Networks with different dropout, before and after the drop (paper, 5).

    A row is a network in one behaviour: `plain` where it has no tied layer,
    else `tied` (memorization units on), `expected` or `drop` (off).
    """

    dataset: str
    models: tuple[str, ...]  # R rows: which network.
    inferences: tuple[str, ...]  # R rows: in which behaviour.
    subsets: tuple[str, ...]  # S of clean, noisy, typical, atypical, test.
    count: np.ndarray  # [S] examples.
    accuracy: np.ndarray  # [R, S] in [0, 1], of the labels trained on.
    true_accuracy: np.ndarray  # [R, S] in [0, 1], of the true labels.
    loss: np.ndarray  # [R, S] mean cross-entropy in nats.

    def rows(self) -> list[dict[str, Any]]:
        """A row for each network and behaviour: accuracy by subset.

        `noisy_true_label` is the accuracy on the noisy examples against the
        labels that they had before they were made wrong.
        """
        return [self._row(r) for r in range(len(self.models))]

    def _row(self, r: int) -> dict[str, Any]:
        row: dict[str, Any] = {
            "model": self.models[r],
            "inference": self.inferences[r],
        }
        for s, subset in enumerate(self.subsets):
            row[subset] = float(self.accuracy[r, s])
            if subset == "noisy":
                row["noisy_true_label"] = float(self.true_accuracy[r, s])
        return row

    def row(self, model: str, inference: str) -> dict[str, Any]:
        """The row of one network in one behaviour."""
        pairs = list(zip(self.models, self.inferences, strict=True))
        return self._row(pairs.index((model, inference)))


@dataclasses.dataclass(frozen=True, eq=False)
class GradientAccounting(OfSubsets, Result):
    """Whose gradients move which layers, epoch by epoch (paper, section 4.1).

    The aggregates are weighted so that the training subsets add up to the
    gradient of the mean training loss.
    """

    groups: tuple[str, ...]  # G layer groups, input to output.
    epochs: tuple[int, ...]  # E epochs after which gradients were taken.
    subsets: tuple[str, ...]  # S of clean, noisy, typical, atypical, test.
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
                "cosine": _or_none(self.cosine[e, g]),
                "share": _or_none(self.share[e, g]),
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
            low: the accuracy on the noisy (atypical) examples from which,
            high: and up to which, epochs count.

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


@dataclasses.dataclass(frozen=True, eq=False)
class LayerRewinding(OfSubsets, Result):
    """Accuracy after layers are set back to an earlier epoch (paper, 4.2)."""

    # What was set back: `single` groups, or all groups `up_to` or `from` one.
    mode: str
    groups: tuple[str, ...]  # G names, input to output.
    epochs: tuple[int, ...]  # E epochs rewound to; 0 is initialization.
    subsets: tuple[str, ...]  # S of clean, noisy, typical, atypical, test.
    accuracy: np.ndarray  # [E, G, S] in [0, 1], of the labels trained on.
    loss: np.ndarray  # [E, G, S] mean cross-entropy in nats.
    fresh_accuracy: np.ndarray  # [G, S] of another initialization; or [0, S].
    fresh_loss: np.ndarray  # [G, S], or [0, S] where there is none.
    baseline: np.ndarray  # [S] accuracy of the trained model, unchanged.
    baseline_loss: np.ndarray  # [S].

    def rows(self) -> list[dict[str, Any]]:
        """A row for each epoch, group and subset; `fresh` is an epoch too."""
        pairs = [
            (epoch, self.accuracy[e], self.loss[e])
            for e, epoch in enumerate(self.epochs)
        ]
        if len(self.fresh_accuracy):
            pairs.append(("fresh", self.fresh_accuracy, self.fresh_loss))
        return [
            {
                "epoch": epoch,
                "group": group,
                "subset": subset,
                "accuracy": float(accuracy[g, s]),
                "loss": float(loss[g, s]),
                "baseline": float(self.baseline[s]),
            }
            for epoch, accuracy, loss in pairs
            for g, group in enumerate(self.groups)
            for s, subset in enumerate(self.subsets)
        ]

    def robust_share(self, epoch: int, at_least: float = 0.9) -> float:
        """Share of groups whose rewinding leaves the memory at `at_least`."""
        s = self.subsets.index(self.memorized)
        return float(np.mean(self.accuracy[self._at(epoch), :, s] >= at_least))

    def most_sensitive(self, epoch: int) -> str:
        """The group whose rewinding costs the memorized examples the most."""
        s = self.subsets.index(self.memorized)
        accuracy = self.accuracy[self._at(epoch), :, s]
        # Where several are equal, the one that costs the most loss.
        loss = self.loss[self._at(epoch), :, s]
        return self.groups[int(np.lexsort((-loss, accuracy))[0])]

    def _at(self, epoch: int) -> int:
        return self.epochs.index(epoch)


@dataclasses.dataclass(frozen=True, eq=False)
class LayerRetraining(OfSubsets, Result):
    """Accuracy while one group learns anew from one subset (paper, 4.3)."""

    groups: tuple[str, ...]  # G names, input to output.
    subsets: tuple[str, ...]  # S of clean, noisy, typical, atypical, test.
    trained_on: str  # The only subset that the group saw.
    reset_to: int  # The epoch that the group was set back to.
    # [G, E + 1, S] in [0, 1] after 0, 1, ... epochs; NaN after the stop.
    accuracy: np.ndarray
    epochs: np.ndarray  # [G] epochs that were trained.
    baseline: np.ndarray  # [S] accuracy of the trained model, unchanged.

    @property
    def final(self) -> np.ndarray:
        """[G, S] accuracy after the last epoch of each group."""
        return self.accuracy[np.arange(len(self.groups)), self.epochs]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each group, epoch and subset."""
        return [
            {
                "group": group,
                "epoch": epoch,
                "subset": subset,
                "accuracy": float(self.accuracy[g, epoch, s]),
                "baseline": float(self.baseline[s]),
            }
            for g, group in enumerate(self.groups)
            for epoch in range(int(self.epochs[g]) + 1)
            for s, subset in enumerate(self.subsets)
        ]

    def table(self) -> list[dict[str, Any]]:
        """A row for each group: accuracies after the reset, and at the end."""
        return [
            {
                "group": group,
                "epochs": int(self.epochs[g]),
                **{
                    f"{subset}_reset": float(self.accuracy[g, 0, s])
                    for s, subset in enumerate(self.subsets)
                },
                **{
                    subset: float(self.final[g, s])
                    for s, subset in enumerate(self.subsets)
                },
            }
            for g, group in enumerate(self.groups)
        ]

    def robust_share(self, at_least: float = 0.9) -> float:
        """Share of groups whose retraining leaves the memory at `at_least`."""
        s = self.subsets.index(self.memorized)
        return float(np.mean(self.final[:, s] >= at_least))

    def most_sensitive(self) -> str:
        """The group whose retraining costs the memorized examples the most."""
        s = self.subsets.index(self.memorized)
        return self.groups[int(np.argmin(self.final[:, s]))]


@dataclasses.dataclass(frozen=True, eq=False)
class CriticalUnits(OfSubsets, Result):
    """The few units that hold one example, for many examples (paper, 4.4).

    Units are numbered through all gated layers, input to output; `label`
    names one. K is the length of the longest greedy set.
    """

    layers: tuple[str, ...]  # L names of the gated layers, input to output.
    subsets: tuple[str, ...]  # S of clean, noisy, typical, atypical, test.
    place: str  # Where units were gated: unit, block or weights.
    objective: str  # zero or step.
    population_term: str  # exact, frozen or none.
    limit: int  # No more units than this were removed.
    sizes: np.ndarray  # [L] units of each layer.
    example_id: np.ndarray  # [N] examples that were searched.
    subset: np.ndarray  # [N] the subset of each.
    label: np.ndarray  # [N] that was trained on.
    true_label: np.ndarray  # [N].
    skipped: np.ndarray  # ids of examples that were misclassified before.
    units: np.ndarray  # [N, K] in the order of removal; -1 is padding.
    # [N, K] what the gate became: 0 removed, 2 doubled (objective `step`).
    gate: np.ndarray
    # [N, K] whether the unit stayed removed when putting it back was tried.
    kept: np.ndarray
    flipped: np.ndarray  # [N] whether the prediction changed; else: limit.
    prediction: np.ndarray  # [N] the class after the kept units were removed.
    # [N] units in a random order, and by falling activation, that it takes
    # to change the prediction; NaN where all do not.
    random_size: np.ndarray
    activation_size: np.ndarray
    # [N, S] accuracy on other examples with the kept units removed.
    accuracy_after: np.ndarray
    baseline: np.ndarray  # [S] accuracy on the same others, nothing removed.
    others: np.ndarray  # [S] how many they are.
    # [N, K] whether the unit is one of the example's own memorization units.
    own: np.ndarray
    # [N] their share among all units that are on for it; NaN: no tied layer.
    own_chance: np.ndarray
    # [N] whether the prediction changes when all of its own memorization
    # units are removed, or as many others that are on, drawn at random.
    own_flips: np.ndarray
    others_flip: np.ndarray

    @property
    def greedy_size(self) -> np.ndarray:
        """[N] units that the greedy search removed."""
        return (self.units >= 0).sum(axis=1)

    @property
    def size(self) -> np.ndarray:
        """[N] units of the reported set: the greedy ones that were kept."""
        return self.kept.sum(axis=1)

    def searched(self) -> tuple[str, ...]:
        """The subsets of the searched examples."""
        return tuple(s for s in self.subsets if np.any(self.subset == s))

    def label_of(self, unit: int) -> str:
        """`<layer>[<channel>]` of a unit."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        layer = int(np.searchsorted(starts, unit, side="right")) - 1
        return f"{self.layers[layer]}[{unit - starts[layer]}]"

    def layer_of(self, units: np.ndarray) -> np.ndarray:
        """The place of units' layers in `layers`."""
        return np.searchsorted(np.cumsum(self.sizes), units, side="right")

    def rows(self) -> list[dict[str, Any]]:
        """A row for each example that was searched."""
        greedy, size = self.greedy_size, self.size
        return [
            {
                "example_id": int(self.example_id[n]),
                "subset": str(self.subset[n]),
                "label": int(self.label[n]),
                "true_label": int(self.true_label[n]),
                "prediction": int(self.prediction[n]),
                "flipped": bool(self.flipped[n]),
                "greedy_size": int(greedy[n]),
                "size": int(size[n]),
                "random_size": _or_none(self.random_size[n]),
                "activation_size": _or_none(self.activation_size[n]),
                "units": " ".join(
                    self.label_of(unit) for unit in self.units[n, self.kept[n]]
                ),
                **{
                    f"{subset}_after": float(self.accuracy_after[n, s])
                    for s, subset in enumerate(self.subsets)
                },
            }
            for n in range(len(self.example_id))
        ]

    def table(self) -> list[dict[str, Any]]:
        """A row for each subset: how many units, and what they cost."""
        return [self._summary(subset) for subset in self.searched()]

    def _summary(self, subset: str) -> dict[str, Any]:
        mine = self.subset == subset
        size = self.size[mine]
        low, high = bootstrap_interval(size, np.median)
        to_true = self.prediction[mine] == self.true_label[mine]
        return {
            "subset": subset,
            "examples": int(mine.sum()),
            "flipped": int(self.flipped[mine].sum()),
            "median": float(np.median(size)),
            "median_low": low,
            "median_high": high,
            "mean": float(size.mean()),
            "q25": float(np.quantile(size, 0.25)),
            "q75": float(np.quantile(size, 0.75)),
            "q95": float(np.quantile(size, 0.95)),
            "greedy": float(np.median(self.greedy_size[mine])),
            "random": _median(self.random_size[mine]),
            "by_activation": _median(self.activation_size[mine]),
            "to_true_label": float(to_true.mean()),
            **{
                f"{name}_after": float(self.accuracy_after[mine, s].mean())
                for s, name in enumerate(self.subsets)
            },
        }

    def layer_shares(self) -> dict[str, np.ndarray]:
        """Subset -> [L] share of its critical units in each layer."""
        shares = {}
        for subset in self.searched():
            mine = self.subset == subset
            units = self.units[mine][self.kept[mine]]
            count = np.bincount(
                self.layer_of(units), minlength=len(self.layers)
            )
            shares[subset] = count / max(1, len(units))
        return shares

    def sharing(self) -> list[dict[str, Any]]:
        """A row for each subset: are the sets the same units again and again?

        `distinct` units occur in any set, `shared` of them in more than one;
        `top_unit` occurs in the share `top_share` of the sets.
        """
        rows = []
        for subset in self.searched():
            mine = self.subset == subset
            count = np.bincount(
                self.units[mine][self.kept[mine]], minlength=self.sizes.sum()
            )
            rows.append(
                {
                    "subset": subset,
                    "units": int(count.sum()),
                    "distinct": int((count > 0).sum()),
                    "shared": int((count > 1).sum()),
                    "top_unit": self.label_of(int(count.argmax())),
                    "top_share": float(count.max() / mine.sum()),
                }
            )
        return rows

    def own_shares(self) -> list[dict[str, Any]]:
        """A row for each subset: are critical units the example's own?

        `own` is the share of critical units that lie among their example's
        designated memorization units, `chance` the same share of all units
        that are on for it; both are means over examples. `own_flips` is how
        often the prediction changes when all its own units are removed,
        `others_flip`, when as many other ones are.
        """
        rows = []
        for subset in self.searched():
            mine = (self.subset == subset) & (self.size > 0)
            mine &= np.isfinite(self.own_chance)
            if not mine.any():
                continue
            own = (self.own & self.kept)[mine].sum(axis=1) / self.size[mine]
            low, high = bootstrap_interval(own, np.mean)
            rows.append(
                {
                    "subset": subset,
                    "examples": int(mine.sum()),
                    "own": float(own.mean()),
                    "own_low": low,
                    "own_high": high,
                    "chance": float(self.own_chance[mine].mean()),
                    "own_flips": float(self.own_flips[mine].mean()),
                    "others_flip": float(self.others_flip[mine].mean()),
                    "median_size": float(np.median(self.size[mine])),
                }
            )
        return rows


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleScores(Result):
    """How suspicious the label of each training example is, score by score.

    A *suspect* is an example for which another label than its own is the most
    probable one.
    """

    # Of `rows`; scores have other names.
    COLUMNS: ClassVar[tuple[str, ...]] = (
        "combined",
        "example_id",
        "label",
        "suggested",
        "suspect",
        "suspicion",
        "subset",
        "true_label",
    )

    names: tuple[str, ...]  # K scores; the first, `combined`, ranks.
    example_id: np.ndarray  # [N].
    subset: np.ndarray  # [N] clean, noisy, typical or atypical.
    label: np.ndarray  # [N] that was trained on.
    true_label: np.ndarray  # [N] that the data set gives.
    # [N] the class that the dropped network predicts, after the adjustment to
    # the class shares.
    suggested: np.ndarray
    values: np.ndarray  # [N, K] more is more suspicious.
    suspicion: np.ndarray  # [N] the probability that the label is wrong.
    pixels: str = ""  # Checksum of the images; empty where it was not kept.

    def of(self, name: str) -> np.ndarray:
        """The values of one score: [N]."""
        return self.values[:, self.names.index(name)]

    def order(self) -> np.ndarray:
        """The places of the examples, the most suspicious first."""
        return np.argsort(-self.of("combined"), kind="stable")

    @property
    def is_suspect(self) -> np.ndarray:
        """[N] bool, whether another label is suggested."""
        return self.suggested != self.label

    def rows(self, count: int | None = None) -> list[dict[str, Any]]:
        """A row for each example, or the first ones, most suspicious first.

        Where no label is known to be wrong, true labels are unknown: they, and
        the subset if it is the same for all, are left out.
        """
        return [self._row(n) for n in self.order()[:count]]

    def suspects(self, at_least: float = 0.0) -> list[dict[str, Any]]:
        """The rows of the suspects of at least this suspicion, in order."""
        chosen = self.is_suspect & (self.suspicion >= at_least)
        return [self._row(n) for n in self.order() if chosen[n]]

    def _row(self, n: int) -> dict[str, Any]:
        row = {
            "example_id": int(self.example_id[n]),
            "label": int(self.label[n]),
            "suggested": int(self.suggested[n]),
            "suspect": int(self.suggested[n] != self.label[n]),
            "suspicion": float(self.suspicion[n]),
        }
        knows_truth, has_subsets = self._known
        if has_subsets:
            row["subset"] = str(self.subset[n])
        if knows_truth:
            row["true_label"] = int(self.true_label[n])
        return row | {
            name: float(self.values[n, k]) for k, name in enumerate(self.names)
        }

    @functools.cached_property
    def _known(self) -> tuple[bool, bool]:
        """Whether a label is known to be wrong, and whether subsets differ."""
        knows_truth = bool((self.label != self.true_label).any())
        return knows_truth, knows_truth or len(np.unique(self.subset)) > 1


@dataclasses.dataclass(frozen=True, eq=False)
class MemorizationEstimates(Result):
    """How much each label depends on being seen (Feldman and Zhang, 2020)."""

    example_id: np.ndarray  # [N].
    subset: np.ndarray  # [N] clean, noisy, typical or atypical.
    label: np.ndarray  # [N] that was trained on.
    inside: np.ndarray  # [N] accuracy of networks that saw it; or NaN.
    outside: np.ndarray  # [N] accuracy of networks that did not; or NaN.
    inside_count: np.ndarray  # [N] networks that saw it.
    outside_count: np.ndarray  # [N] networks that did not.

    @property
    def memorization(self) -> np.ndarray:
        """[N] in [-1, 1]: `inside` less `outside`."""
        return self.inside - self.outside

    def rows(self) -> list[dict[str, Any]]:
        """A row for each example, the most memorized first."""
        order = np.argsort(-self.memorization, kind="stable")
        return [
            {
                "example_id": int(self.example_id[n]),
                "subset": str(self.subset[n]),
                "label": int(self.label[n]),
                "memorization": _or_none(self.memorization[n]),
                "inside": _or_none(self.inside[n]),
                "outside": _or_none(self.outside[n]),
                "inside_count": int(self.inside_count[n]),
                "outside_count": int(self.outside_count[n]),
            }
            for n in order
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class SweepResults(Result):
    """The numbers at the end of many runs that differ in some flags."""

    flags: tuple[str, ...]  # F that differ.
    settings: np.ndarray  # [R, F] strings: the flags of each run.
    names: tuple[str, ...]  # K numbers, such as `drop_noisy`.
    values: np.ndarray  # [R, K] accuracies in [0, 1].

    def rows(self) -> list[dict[str, Any]]:
        """A row for each run: its flags, its numbers."""
        return [
            dict(zip(self.flags, map(str, setting), strict=True))
            | dict(zip(self.names, map(float, value), strict=True))
            for setting, value in zip(self.settings, self.values, strict=True)
        ]

    def groups(
        self, over: str = "seed"
    ) -> dict[tuple[str, ...], tuple[np.ndarray, np.ndarray, int]]:
        """Runs that differ in `over` alone, together.

        Returns:
            The other flags' values -> (mean [K], standard deviation [K] with
            one degree of freedom less than runs, number of runs).
        """
        others = [f for f, flag in enumerate(self.flags) if flag != over]
        keys = [tuple(map(str, row[others])) for row in self.settings]
        found = {}
        for key in dict.fromkeys(keys):
            mine = self.values[[k == key for k in keys]]
            spread = np.zeros(len(self.names))
            if len(mine) > 1:
                spread = mine.std(axis=0, ddof=1)
            found[key] = mine.mean(axis=0), spread, len(mine)
        return found

    def other_flags(self, over: str = "seed") -> tuple[str, ...]:
        """The flags but `over`: names of the keys of `groups`."""
        return tuple(flag for flag in self.flags if flag != over)


def bootstrap_interval(
    values: np.ndarray,
    statistic: Callable[..., np.ndarray],
    *,
    level: float = 0.95,
    samples: int = 1000,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic; always the same.

    Args:
        values: [N].
        statistic: takes `axis`, as np.median does.
        level: of confidence.
        samples: number of resamples.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(values), (samples, len(values)))
    found = statistic(np.asarray(values)[drawn], axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def _median(values: np.ndarray) -> float | None:
    """NaN counts as larger than all; None where the median is NaN."""
    value = np.median(np.where(np.isfinite(values), values, np.inf))
    return _or_none(value)


def _first_of(names: tuple[str, ...], found: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in found), None)


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None
