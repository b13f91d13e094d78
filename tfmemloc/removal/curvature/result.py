"""What a removal by curvature did, round by round."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmemloc.removal.curvature import drawings
from tfmemloc.removal.curvature.choice import Choice
from tfmemloc.removal.outcome import Removal
from tfmemloc.result import Figure

_JUDGES = {
    "heldout": "on the given labels of held-out examples",
    "others": "by what all other examples say of training examples, as none "
    "were held out",
}

_BELIEVED = {
    "network": "Refitted on the labels that the edited network believes. ",
    "all": "Refitted on the labels that the edited network and all other "
    "examples believe together. ",
}


@dataclasses.dataclass(frozen=True)
class EditRound:
    """One edit and refit of L kernels.

    Attributes:
        names: L names of layers.
        keep: L shares of the curvature that were kept; 1 is whole.
        energy: L shares of the squared kernel that are left.
        choice: what was tried; None where nothing was chosen.
        believed: training examples of the refit; 0 without one.
    """

    names: tuple[str, ...]
    keep: tuple[float, ...]
    energy: tuple[float, ...]
    choice: Choice | None
    believed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class CurvatureEdit(Removal):
    """What the removal by curvature did; L kernels, K points, R rounds."""

    layers: tuple[str, ...]  # L names.
    keep: np.ndarray  # [R, L] share of the curvature kept; 1 is whole.
    energy: np.ndarray  # [R, L] share of the squared kernel that is left.
    believed: np.ndarray  # [R] training examples that a refit used.
    point_round: np.ndarray  # [K] from 0; K is 0 where nothing was chosen.
    point_whole: np.ndarray  # [K] kernels left whole.
    point_keep: np.ndarray  # [K] share of the curvature kept of the others.
    point_energy: np.ndarray  # [K] share of all squared kernels left.
    point_heldout: np.ndarray  # [K] accuracy by the judge.
    point_train: np.ndarray  # [K] the same of a sample trained on.
    point_noisy: np.ndarray  # [K] of its noisy examples; NaN if unknown.
    point_chosen: np.ndarray  # [K] bool.
    error: np.ndarray  # [R] standard error of the best held-out accuracy.
    # Who chose: `heldout`, the labels of held-out examples; `others`, what all
    # other examples say; empty where nothing was chosen.
    judge: str = "heldout"
    # By whom the examples of the refits were believed: `network`, or `all`.
    believe: str = "network"

    def curve_rows(self) -> list[dict[str, Any]]:
        """A row for each point that was tried, so that one may choose another.

        `keep` and `whole` say what was cut; see `tfmemloc.removal.curvature`.
        `noisy` is None where no label is known to be wrong.
        """
        return [
            {
                "round": int(self.point_round[k]) + 1,
                "whole": int(self.point_whole[k]),
                "keep": float(self.point_keep[k]),
                "energy": float(self.point_energy[k]),
                "heldout": float(self.point_heldout[k]),
                "train": float(self.point_train[k]),
                "noisy": _known(self.point_noisy[k]),
                "chosen": bool(self.point_chosen[k]),
            }
            for k in range(len(self.point_keep))
        ]

    def layer_rows(self) -> list[dict[str, Any]]:
        """A row for each kernel in each round: what is left of it."""
        return [
            {
                "round": r + 1,
                "layer": name,
                "keep": float(self.keep[r, i]),
                "energy": float(self.energy[r, i]),
            }
            for r in range(len(self.keep))
            for i, name in enumerate(self.layers)
        ]

    def sentence(self) -> str:
        """What was forgotten, what it cost, and how it was chosen."""
        text = f"{super().sentence()} "
        if not (self.keep < 1).any():
            text = f"{text}No kernel was edited. "
            return f"{text}{_BELIEVED.get(self.believe, '')}".rstrip()
        for number, keep in enumerate(self.keep, start=1):
            pairs = zip(self.layers, keep, strict=True)
            whole = [name for name, share in pairs if share == 1]
            cut = len(self.layers) - len(whole)
            if not cut:
                continue
            text += (
                f"Edit {number}: {cut} of {len(self.layers)} kernels, of which "
                f"{keep.min():.1%} of the curvature is kept"
            )
            text += f"; whole: {_few(whole)}. " if whole else ". "
        text += _BELIEVED.get(self.believe, "")
        if not len(self.point_keep):
            return (
                f"{text}Nothing was chosen: the strength was given; or no "
                "examples were held out, and all others cannot judge, as they "
                "know too little or labels are next tokens."
            )
        return (
            f"{text}Chosen {_JUDGES[self.judge]}: within one standard error "
            f"({self.error[0]:.1%}) of the best accuracy there, the smallest "
            "gap between it and the accuracy on examples that were trained on."
        )

    def figures(self) -> dict[str, Figure]:
        """Before and after, the points that were tried, and the kernels."""
        return {
            **super().figures(),
            **drawings.curve(self),
            **drawings.kernels(self),
        }


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _known(value) -> float | None:
    return float(value) if np.isfinite(value) else None


def details(done: Sequence[EditRound]) -> dict[str, Any]:
    """The fields of `CurvatureEdit` beyond those of `Removal`."""
    points = [
        (number, k == part.choice.chosen, point)
        for number, part in enumerate(done)
        if part.choice is not None
        for k, point in enumerate(part.choice.points)
    ]

    def column(name):
        return np.array([getattr(point, name) for _, _, point in points], float)

    return {
        "layers": done[0].names,
        "keep": np.array([part.keep for part in done]),
        "energy": np.array([part.energy for part in done]),
        "believed": np.array([part.believed for part in done]),
        "point_round": np.array([number for number, _, _ in points], int),
        "point_whole": column("whole").astype(int),
        "point_keep": np.array([p.plan.keep for _, _, p in points], float),
        "point_energy": column("energy"),
        "point_heldout": column("heldout"),
        "point_train": column("train"),
        "point_noisy": column("noisy"),
        "point_chosen": np.array([chosen for _, chosen, _ in points], bool),
        "error": np.array(
            [
                float("nan") if part.choice is None else part.choice.error
                for part in done
            ]
        ),
    }
