"""Membership inference against one network, without shadows.

How sure a network is of an example that it never saw depends on the example. So
on examples that were not trained on, the 1 - f quantile of phi (see `attacks`)
is learned as a function of what the network says of the *other* classes and of
the label; whoever lies above it is taken for a member. If the regression is
right, a share f of non-members is accused, whatever they look like (Bertran et
al., "Scalable Membership Inference Attacks via Quantile Regression", 2023).

Non-members are needed for learning and for measuring; each half judges the
other. The `loss` attack, one threshold for all, is measured beside it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from tfmemloc import losses
from tfmemloc.audits.of_runs import phi_of
from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.data.labels import drawn_ids
from tfmemloc.evaluation import inference_models, predict_logits
from tfmemloc.fields import check_fields
from tfmemloc.layers import masks
from tfmemloc.result import Result, Table
from tfmemloc.snapshots import Source, model_of
from tfmemloc.statistics import share_interval

_FEWEST = 40  # Non-members, for a quantile.


@dataclasses.dataclass(frozen=True)
class SingleModelConfig:
    """At which rates.

    Attributes:
        rates: false-positive rates that the quantiles aim at.
        seed: of the halves of the non-members, and of the regression.
    """

    rates: tuple[float, ...] = (0.1, 0.05, 0.01)
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        for rate in self.rates:
            check_range("rates", rate, 1e-6, 0.5)


@dataclasses.dataclass(frozen=True, eq=False)
class SingleModelAudit(Result):
    """Who is told to be a member, of one network in each behaviour.

    Axes: R networks and behaviours, A attacks, F rates.
    """

    title: ClassVar[str] = "One network: who was in its training set?"

    networks: tuple[str, ...]  # R names.
    attacks: tuple[str, ...]  # A: quantile, loss.
    rates: np.ndarray  # [F] aimed at.
    fpr: np.ndarray  # [R, A, F] of non-members.
    tpr: np.ndarray  # [R, A, F] of members.
    low: np.ndarray  # [R, A, F] of the 95 % interval of `tpr`.
    high: np.ndarray  # [R, A, F].
    members: int
    others: int

    def rows(self) -> list[dict[str, Any]]:
        """A row for each network, attack and rate."""
        return [
            {
                "network": network,
                "attack": attack,
                "fpr": float(rate),
                "measured_fpr": float(self.fpr[r, a, f]),
                "tpr": float(self.tpr[r, a, f]),
                "low": float(self.low[r, a, f]),
                "high": float(self.high[r, a, f]),
            }
            for r, network in enumerate(self.networks)
            for a, attack in enumerate(self.attacks)
            for f, rate in enumerate(self.rates)
        ]

    def table(self) -> Table:
        """The rows, in percent."""
        return Table(self.rows())

    def sentence(self) -> str:
        """The stronger attack at the first rate, and how many decide."""
        best = self.tpr[:, :, 0].argmax(axis=1)
        found = [
            f"{network} {self.tpr[r, a, 0]:.1%} of the members at "
            f"{self.fpr[r, a, 0]:.1%} of the others ({self.attacks[a]})"
            for r, (network, a) in enumerate(
                zip(self.networks, best, strict=True)
            )
        ]
        return (
            f"Without any shadow network: {'; '.join(found)}. {self.others} "
            "non-members; attacks with shadows find more."
        )

    def key_numbers(self) -> dict[str, float]:
        """What the quantiles find, by network and rate."""
        return {
            f"{row['network']}: {row['attack']} TPR at {row['fpr']:.1%}": row[
                "tpr"
            ]
            for row in self.rows()
        }


def audit_single_model(
    source: Source,
    examples: Examples,
    config: SingleModelConfig = SingleModelConfig(),
    *,
    network: str = "network",
) -> SingleModelAudit:
    """Attacks one network by quantiles that non-members teach.

    Args:
        source: a run or a functional model, which is not changed; one with
            tied layers is attacked in each behaviour.
        examples: those it was trained on, and others (`test`, `heldout`) from
            the same source, with labels as they were given.
        config: at which rates.
        network: its name in the result.

    Raises:
        ValueError: labels are no classes, or there are too few non-members.

    Example:
        >>> found = audit_single_model(model, examples)
        >>> sorted({row["attack"] for row in found.rows()})
        ['loss', 'quantile']
    """
    model = model_of(source, examples)
    outside = ~examples.is_trained_on
    if examples.label.ndim != 1 or outside.sum() < _FEWEST:
        raise ValueError(
            f"{examples.name} expected labels of classes, and {_FEWEST} or "
            "more examples that were not trained on. Received: "
            f"{examples!r}."
        )
    found = {}
    for how, behaving in inference_models(model).items():
        name = network if how == "plain" else f"{network} {how}"
        found[name] = _attacked(behaving, examples, outside, config)
    return SingleModelAudit(
        networks=tuple(found),
        attacks=("quantile", "loss"),
        rates=np.array(config.rates),
        members=int((~outside).sum()),
        others=int(outside.sum()),
        **{
            key: np.stack([each[key] for each in found.values()])
            for key in ("fpr", "tpr", "low", "high")
        },
    )


def _attacked(
    model: keras.Model, examples: Examples, outside: np.ndarray, config
) -> dict[str, np.ndarray]:
    """Both attacks on one network: [A, F] each."""
    logits = predict_logits(model, examples)
    phi = phi_of(examples.label, logits)
    seen = features(logits, examples.label)
    ids = examples.example_id[outside]
    seed = masks.fold_seed(config.seed, "halves")
    half = np.isin(examples.example_id, drawn_ids(ids, len(ids) // 2, seed))
    accused = np.zeros((2, len(config.rates), len(phi)))
    for f, rate in enumerate(config.rates):
        # Members are judged by both halves, a non-member by the other one.
        for teachers, judged in (
            (half, ~half & outside),
            (outside & ~half, half),
        ):
            regression = HistGradientBoostingRegressor(
                loss="quantile",
                quantile=1 - rate,
                max_iter=50,
                min_samples_leaf=max(20, int(teachers.sum() / 16)),
                early_stopping=False,
                random_state=config.seed,
            ).fit(seen[teachers], phi[teachers])
            threshold = np.quantile(phi[teachers], 1 - rate)
            where = judged | ~outside
            share = np.where(outside[where], 1.0, 0.5)
            above = regression.predict(seen[where])
            accused[0, f, where] += share * (phi[where] > above)
            accused[1, f, where] += share * (phi[where] > threshold)
    tpr = accused[..., ~outside].mean(axis=-1)
    members = int((~outside).sum())
    interval = np.array(
        [share_interval(round(v * members), members) for v in tpr.ravel()]
    ).reshape(*tpr.shape, 2)
    return {
        "fpr": accused[..., outside].mean(axis=-1),
        "tpr": tpr,
        "low": interval[..., 0],
        "high": interval[..., 1],
    }


def features(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """What the network says of the other classes: [N, 2 classes - 1].

    Their log-probabilities among themselves, largest first, and the label. The
    label's own logit, which is what is judged, is not in it.
    """
    count, classes = logits.shape
    is_other = np.ones((count, classes), bool)
    is_other[np.arange(count), label] = False
    others = logits[is_other].reshape(count, classes - 1)
    among = np.sort(losses.log_softmax(others), axis=1)[:, ::-1]
    return np.concatenate([among, np.eye(classes)[label]], axis=1)
