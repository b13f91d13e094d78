"""Who was in the training set? The accepted measure of what a model remembers.

Each network in turn is the target, and all others are shadows of it (see
`tfmemloc.audits.attacks`). An attack is as good as the members that it finds
while it accuses few others: the true-positive rate at a false-positive rate of
1 % and of 0.1 %, never its accuracy. Intervals are Clopper and Pearson's, of
the true-positive rate; a rate below 10 / (number of non-members) rests on fewer
than ten of them, which the result says.

Scores of one attack on all targets are put together before they are sorted.

The same networks give Feldman and Zhang's estimate of how much each example is
memorized (how much likelier its label is to those that were trained on it). How
well it agrees with the attacks is the rank correlation over examples of the
estimate and of how much higher an attack ranks members than non-members.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfmemloc.audits.attacks import ATTACKS, Shadows
from tfmemloc.audits.rates import agreement, curve_of, measure
from tfmemloc.checks import as_array, check_choice, check_range
from tfmemloc.fields import check_fields
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Row, Table

ALL, MOST = "all", "most memorized tenth"
# Non-members that should lie above a threshold, for a rate to be believed.
_ENOUGH = 10


@dataclasses.dataclass(frozen=True)
class MembershipConfig:
    """Which attacks, at which rates.

    Attributes:
        attacks: names of attacks: `loss`, `lira`, `lira_offline`, `rmia`,
            `rmia_offline`, `bavaria`.
        rates: false-positive rates.
    """

    attacks: tuple[str, ...] = ("loss", "lira", "rmia", "bavaria")
    rates: tuple[float, ...] = (0.01, 0.001)

    def __post_init__(self):
        check_fields(self)
        for attack in self.attacks:
            check_choice("attacks", attack, tuple(ATTACKS))
        for rate in self.rates:
            check_range("rates", rate, 0.0, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Membership(Result):
    """How well attacks tell members from others, for each of some networks.

    Axes: K networks, A attacks, P parts (all examples, then some of them),
    F false-positive rates.
    """

    title: ClassVar[str] = "Can it be told who was in the training set?"

    networks: tuple[str, ...]  # K names.
    attacks: tuple[str, ...]  # A names.
    parts: tuple[str, ...]  # P names; the first is all examples.
    rates: np.ndarray  # [F].
    tpr: np.ndarray  # [K, A, P, F] in [0, 1].
    low: np.ndarray  # [K, A, P, F] of the 95 % interval.
    high: np.ndarray  # [K, A, P, F].
    auc: np.ndarray  # [K, A, P].
    members: np.ndarray  # [K, P] pairs of a target and a member of it.
    others: np.ndarray  # [K, P] pairs of a target and a non-member.
    shadows: np.ndarray  # [K] networks, the target among them.
    curve: np.ndarray  # [K, A, 2, points]: false- and true-positive rates.
    agreement: np.ndarray  # [K, A] with the memorization estimate, in [-1, 1].

    def rows(self) -> list[dict[str, Any]]:
        """A row for each network, attack and rate, over all examples."""
        return [row for row in self.all_rows() if row["examples"] == ALL]

    def all_rows(self) -> list[dict[str, Any]]:
        """The same for each part of the examples as well."""
        return [
            {
                "network": network,
                "attack": attack,
                "examples": part,
                "fpr": float(rate),
                "tpr": float(self.tpr[k, a, p, f]),
                "low": float(self.low[k, a, p, f]),
                "high": float(self.high[k, a, p, f]),
                "auc": float(self.auc[k, a, p]),
                "members": int(self.members[k, p]),
                "others": int(self.others[k, p]),
                "enough": bool(rate * self.others[k, p] >= _ENOUGH),
            }
            for k, network in enumerate(self.networks)
            for p, part in enumerate(self.parts)
            for a, attack in enumerate(self.attacks)
            for f, rate in enumerate(self.rates)
        ]

    def table(self) -> Table:
        """The strongest attack on each network, by part of the examples."""
        rows = []
        for k, network in enumerate(self.networks):
            for p, part in enumerate(self.parts):
                a = int(np.argmax(self.tpr[k, :, p, 0]))
                row: dict[str, Any] = {
                    "network": network,
                    "examples": part,
                    "strongest": self.attacks[a],
                }
                for f, rate in enumerate(self.rates):
                    row[f"TPR at {rate:.1%}"] = (
                        f"{self.tpr[k, a, p, f]:.1%} ["
                        f"{self.low[k, a, p, f]:.1%}, "
                        f"{self.high[k, a, p, f]:.1%}]"
                    )
                row["AUC"] = float(self.auc[k, a, p])
                rows.append(row)
        return Table(rows, formats={"AUC": ".3f"})

    def sentence(self) -> str:
        """The strongest attack on each network, and what is too few."""
        rate = self.rates[0]
        found = []
        for k, network in enumerate(self.networks):
            a = int(np.argmax(self.tpr[k, :, 0, 0]))
            found.append(
                f"{network} {self.tpr[k, a, 0, 0]:.1%} ({self.attacks[a]})"
            )
        text = (
            f"Members that the strongest attack finds while it accuses "
            f"{rate:.1%} of the others: {', '.join(found)}; an attack that "
            f"knows nothing finds {rate:.1%}. "
            f"{int(self.shadows.min())} networks for each."
        )
        agreement = self.agreement[np.isfinite(self.agreement)]
        if len(agreement):
            text += (
                " How well an example is found goes with how much it is "
                "memorized by Feldman and Zhang's estimate: rank correlation "
                f"{agreement.min():.2f} to {agreement.max():.2f}, by network "
                "and attack."
            )
        few = [
            f"{rate:.2%}"
            for rate in self.rates
            if rate * self.others[:, 0].min() < _ENOUGH
        ]
        if few:
            text += (
                f" There are {self.others[:, 0].min()} non-members, too few "
                f"for a rate of {' and '.join(few)}: fewer than {_ENOUGH} of "
                "them decide."
            )
        return text

    def figures(self) -> dict[str, Figure]:
        """Curves of the strongest attack on each network, in logarithms."""
        drawing, (axes,) = figures.side_by_side(
            "false-positive rate", ["true-positive rate"]
        )
        for k, network in enumerate(self.networks):
            a = int(np.argmax(self.tpr[k, :, 0, 0]))
            false, true = self.curve[k, a]
            axes.plot(
                false,
                true,
                label=f"{network} ({self.attacks[a]})",
                color=figures.SERIES[k % len(figures.SERIES)],
                linestyle=("-", "--", "-.", ":")[k % 4],
            )
        low = 0.5 / max(self.others[:, 0].max(), 1)
        axes.plot([low, 1], [low, 1], color="0.6", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlim=(low, 1), ylim=(low, 1))
        axes.legend(fontsize=7)
        return {
            "membership": Figure(
                "The strongest attack on each network; grey is an attack that "
                "knows nothing.",
                drawing,
            )
        }

    def key_numbers(self) -> dict[str, float]:
        """The strongest attack at the first rate, by network."""
        return {
            f"{network}: TPR at {self.rates[0]:.1%} FPR": float(
                self.tpr[k, :, 0, 0].max()
            )
            for k, network in enumerate(self.networks)
        }


def strongest(rows: Iterable[Row]) -> dict[tuple[str, str, float], Row]:
    """The attack that finds most, by network, part and false-positive rate.

    Args:
        rows: as `Membership.all_rows` gives them.
    """
    found: dict[tuple[str, str, float], Row] = {}
    for row in rows:
        key = row["network"], row["examples"], row["fpr"]
        if key not in found or row["tpr"] > found[key]["tpr"]:
            found[key] = row
    return found


def audit_membership(
    confidences: Mapping[str, np.ndarray],
    member: np.ndarray,
    config: MembershipConfig = MembershipConfig(),
    *,
    subset: Sequence[str] | None = None,
) -> Membership:
    """Attacks networks of one or several kinds, each in turn the target.

    Args:
        confidences: name of a kind of network -> phi [M, N], the logit of the
            probability of each example's given label, of M networks of it.
        member: bool [M, N], or name -> that: on what each was trained.
        config: attacks and rates.
        subset: [N] names; each subset is a part of its own in the result.

    Returns:
        Over all examples; by subset; and for the tenth of the examples with
        the largest memorization estimate, which the same networks give.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite,
            probabilities instead of logits, fewer than three networks, most
            examples members of all networks or of none, or members that
            networks know less than others.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> member = rng.random((8, 500)) < 0.5
        >>> phi = rng.normal(size=(8, 500)) + 4 * member
        >>> bool(audit_membership({"mine": phi}, member).auc.min() > 0.9)
        True
    """
    found = []
    parts: tuple[str, ...] = ()
    for name, phi in confidences.items():
        phi = _numbers(name, phi)
        inside = as_array(
            member[name] if isinstance(member, Mapping) else member
        )
        _check(name, phi, inside, subset)
        shadows = Shadows(phi, inside)
        estimate = shadows.memorization()
        groups = _parts(estimate, subset)
        parts = tuple(groups)
        found.append(_attacked(shadows, groups, estimate, config))
    if not found:
        raise ValueError("Expected confidences of a network. Received: none.")
    return Membership(
        networks=tuple(confidences),
        attacks=tuple(config.attacks),
        parts=parts,
        rates=np.array(config.rates),
        **{key: np.stack([each[key] for each in found]) for key in found[0]},
    )


def _numbers(name: str, phi: Any) -> np.ndarray:
    array = as_array(phi)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name}: expected confidences that are numbers, [models, "
            f"examples]. Received: shape {array.shape}, dtype {array.dtype}."
        )
    return array.astype(np.float64)


def _parts(estimate: np.ndarray, subset) -> dict[str, np.ndarray]:
    """Name -> bool [N]: all examples, each subset, the most memorized."""
    count = len(estimate)
    groups = {ALL: np.ones(count, bool)}
    if subset is not None:
        subset = as_array(subset)
        names = np.unique(subset)
        groups |= {str(n): subset == n for n in names if len(names) > 1}
    # Nothing is known of an example that is on one side alone.
    known = np.nan_to_num(estimate, nan=-np.inf)
    most = np.argsort(-known, kind="stable")[: -(-count // 10)]
    groups[MOST] = np.isin(np.arange(count), most)
    return groups


def _attacked(
    shadows: Shadows, groups, estimate: np.ndarray, config
) -> dict[str, np.ndarray]:
    """All attacks on one kind of network."""
    member = shadows.member
    targets = range(len(member))
    measured: dict[str, list] = {"tpr": [], "low": [], "high": [], "auc": []}
    curves, agreements = [], []
    for attack in config.attacks:
        scores = np.stack([ATTACKS[attack](shadows, t) for t in targets])
        of_parts = [
            measure(scores[:, which], member[:, which], config.rates)
            for which in groups.values()
        ]
        for key, values in measured.items():
            values.append(np.stack([part[key] for part in of_parts]))
        curves.append(curve_of(scores, member))
        agreements.append(agreement(scores, member, estimate))
    sizes = [
        (member[:, which].sum(), (~member[:, which]).sum())
        for which in groups.values()
    ]
    members, others = np.array(sizes).T
    return {
        **{key: np.stack(values) for key, values in measured.items()},
        "members": members,
        "others": others,
        "shadows": np.array(len(member)),
        "curve": np.stack(curves),
        "agreement": np.array(agreements),
    }


def _check(name: str, phi: np.ndarray, member: np.ndarray, subset) -> None:
    """Refuses what no audit can be made of."""
    if phi.ndim != 2 or phi.shape != member.shape or member.dtype != bool:
        raise ValueError(
            f"{name}: expected confidences [models, examples] and, of the same "
            f"shape, booleans of membership. Received: shape {phi.shape}, and "
            f"shape {member.shape} of dtype {member.dtype}."
        )
    if subset is not None and len(subset) != phi.shape[1]:
        raise ValueError(
            f"{name}: expected a subset for each of {phi.shape[1]} examples. "
            f"Received: {len(subset)}."
        )
    if not np.isfinite(phi).all():
        raise ValueError(
            f"{name}: expected finite confidences. Received: NaN or infinity "
            f"in {int((~np.isfinite(phi)).sum())}; clip the probability to "
            "[1e-7, 1 - 1e-7] before its logit is taken."
        )
    if len(phi) < 3:
        raise ValueError(
            f"{name}: expected three networks or more: a target, and shadows "
            f"on both sides. Received: {len(phi)}. With one network alone, "
            "only the loss attack is possible, and nothing to compare it with."
        )
    if phi.min() >= 0 and phi.max() <= 1:
        raise ValueError(
            f"{name}: expected logits log(p / (1 - p)) of the given label's "
            "probability, of any sign. Received: numbers from "
            f"{phi.min():.3g} to {phi.max():.3g}, which look like "
            "probabilities; np.log(p) - np.log1p(-p) makes logits of them."
        )
    in_all = member.all(axis=0) | ~member.any(axis=0)
    if 2 * in_all.sum() > len(in_all):
        raise ValueError(
            f"{name}: expected most examples to be members of some networks "
            f"and not of others. Received: {int(in_all.sum())} of "
            f"{len(in_all)} that are members of all or of none, such as number "
            f"{int(np.argmax(in_all))}. Train on random halves."
        )
    gap = phi[member].mean() - phi[~member].mean()
    error = phi.std() * np.sqrt(1 / member.sum() + 1 / (~member).sum())
    if gap < -5 * error:
        raise ValueError(
            f"{name}: networks are less sure of their members than of others, "
            f"by {-gap:.3g} on the mean. Expected `member` to be True where a "
            "network was trained on an example; it seems to be swapped."
        )
