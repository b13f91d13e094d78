"""How much of which kernels to cut, chosen by a judge.

No true label is used. The judge is the given labels, wrong ones among them, of
examples that were *held out*, on which the network was not trained. Where there
are none, it is what all other examples say of a sample of the training examples
(`others`): a network is right there as far as they find the class probable that
it predicts. They never saw the example's label, so that memory of it is of no
use. In what follows, held-out accuracy is the judge's, either way.

1. Each kernel is cut alone. The more the predictions on the held-out inputs
   move (Kullback-Leibler divergence), the more *sensitive* the kernel.
2. A path for each number of the most sensitive kernels that are left whole: all
   others are cut alike, from mild to strong, until the held-out accuracy is one
   standard error below that of the network as it was; then half steps around
   the chosen point.
3. Of all points whose held-out accuracy is within one standard error of the
   best one, the point with the smallest *gap* is chosen: how much higher the
   accuracy on training examples is than on held-out ones. The gap is what the
   network knows of its training labels beyond what they have in common, in
   other words what it memorized. Where gaps are equal, or none is left, the
   held-out accuracy decides. After the first round only the examples that the
   network believes are trained on: the smallest gap is then simply the
   strongest cut.

While points are compared, BatchNorm takes its statistics from the inputs on
which they are compared; after the choice they are recomputed over all training
examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from tqdm import auto as tqdm

from tfmemloc import graph, losses, storage
from tfmemloc.data.chunks import chunks
from tfmemloc.data.examples import Examples, places_of
from tfmemloc.data.labels import drawn_ids
from tfmemloc.evaluation import Predictor, shuffled
from tfmemloc.layers import masks
from tfmemloc.removal.curvature.bases import KernelBasis

# Shares of the curvature that are kept, from mild to strong.
PATH = (0.995, 0.985, 0.97, 0.94, 0.91, 0.88, 0.85, 0.8, 0.7, 0.5)
# Where there is nothing to choose on.
DEFAULT_KEEP = 0.9
_ALONE = 0.85
_SAMPLE, _JUDGED = 512, 2048
_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which kernels are cut, and how much of their curvature is kept."""

    layers: tuple[str, ...]
    keep: float

    def keep_of(self, name: str) -> float:
        """The share that is kept of a layer's curvature."""
        return self.keep if name in self.layers else 1.0


@dataclasses.dataclass(frozen=True)
class Judge:
    """Examples on which cuts are compared, and what is right there.

    Attributes:
        examples: N that the network was not trained on, or that others judge.
        chance: [N, classes] how probable each class is; None: the labels are
            right as they are given.
    """

    examples: Examples
    chance: np.ndarray | None = None

    @classmethod
    def held_out(cls, examples: Examples) -> Judge:
        """The labels of examples that were held out."""
        return cls(shuffled(_counted(examples)))

    @classmethod
    def others(cls, train: Examples, chance: np.ndarray, seed: int) -> Judge:
        """What all others find probable of a sample of training examples.

        Args:
            train: N training examples.
            chance: [N, classes].
            seed: of the sample.
        """
        asked = shuffled(_sample_of(train, _JUDGED, seed))
        places, _ = places_of(train.example_id, asked.example_id)
        return cls(asked, chance[places])

    def fingerprint(self) -> dict[str, Any]:
        """What tells it from other judges, as json."""
        chance = [] if self.chance is None else [self.chance]
        return {
            "judge": self.examples.fingerprint(),
            "chance": storage.digest(chance),
        }

    def right(self, logits: np.ndarray) -> np.ndarray:
        """How right predictions are: [N] from 0 to 1."""
        if self.chance is None:
            return losses.correct(self.examples.label, logits)
        return self.chance[np.arange(len(logits)), logits.argmax(axis=-1)]


@dataclasses.dataclass(frozen=True)
class Point:
    """A plan that was tried, and what was measured.

    Attributes:
        plan: what was tried.
        whole: how many of the most sensitive kernels were left whole.
        energy: share of the squared coefficients of all kernels that is left.
        heldout: accuracy by the judge.
        error: one standard error of that accuracy.
        train: the same accuracy on a sample of the examples trained on.
        noisy: on the noisy ones of the sample; None where none is known, and
            after the first round, when only believed ones are left in it.
    """

    plan: Plan
    whole: int
    energy: float
    heldout: float
    error: float
    train: float
    noisy: float | None

    @property
    def gap(self) -> float:
        """What is left of the memory; not below 0."""
        return max(0.0, self.train - self.heldout)


@dataclasses.dataclass(frozen=True)
class Choice:
    """All points, and the one that was chosen.

    Attributes:
        points: in the order in which they were tried; the first is the
            network as it was.
        chosen: index of the point.
        error: one standard error of the best held-out accuracy.
        sensitivity: name of a layer -> mean divergence in nats.
    """

    points: tuple[Point, ...]
    chosen: int
    error: float
    sensitivity: Mapping[str, float]

    @property
    def plan(self) -> Plan:
        """The plan that was chosen."""
        return self.points[self.chosen].plan

    @classmethod
    def from_json(cls, fields: Mapping) -> Choice:
        """Reads back what `dataclasses.asdict` gave."""
        points = []
        for point in fields["points"]:
            layers, keep = point["plan"]["layers"], point["plan"]["keep"]
            points.append(Point(**{**point, "plan": Plan(tuple(layers), keep)}))
        return cls(**{**fields, "points": tuple(points)})


def choose(
    model: keras.Model,
    bases: Sequence[KernelBasis],
    train: Examples,
    judge: Judge,
    *,
    layers: Sequence[str] | None = None,
    keep: float | None = None,
    first: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Choice:
    """Tries cuts of a model's kernels and chooses one.

    Args:
        model: of the bases; its weights are as before at the end.
        bases: of its kernels.
        train: the training examples, of which a sample is measured.
        judge: says how right a cut network is.
        layers: names of the layers to cut; None chooses.
        keep: share of the curvature that is kept; None chooses.
        first: whether `train` are all training examples, and not only those
            that the network believes.
        seed: of the sample.
        progress: show a progress bar.
    """
    trial = _Trial(model, bases, train, judge, seed, first)
    names = [basis.name for basis in bases]
    sensitivity = {}
    if layers is None:
        sensitivity = trial.sensitivities(progress)
        ordered = sorted(names, key=lambda name: -sensitivity[name])
        sets = [
            (whole, tuple(n for n in names if n not in ordered[:whole]))
            for whole in _numbers_left_whole(len(names))
        ]
    else:
        sets = [(len(names) - len(layers), tuple(layers))]
    points = [trial.point(Plan((), 1.0), len(names))]
    grid = PATH if keep is None else (keep,)
    bar = tqdm.tqdm(
        total=len(sets) * len(grid),
        desc="choosing",
        unit="edit",
        disable=not progress,
        leave=False,
    )
    with bar:
        for whole, part in sets:
            for share in grid:
                points.append(trial.point(Plan(part, share), whole))
                bar.update()
                # Mild cuts lie near the network as it was, not near the best.
                if points[-1].heldout < points[0].heldout - points[0].error:
                    break
        chosen = points[_chosen(points, _floor(points)[0])]
        if keep is None:
            points += [
                trial.point(Plan(chosen.plan.layers, share), chosen.whole)
                for share in _between(chosen.plan.keep)
            ]
    floor, error = _floor(points)
    return Choice(tuple(points), _chosen(points, floor), error, sensitivity)


def judged_count(trained: int, held_out: int) -> int:
    """How many examples go through the network for each cut that is tried."""
    return min(trained, _SAMPLE) + (held_out or min(trained, _JUDGED))


def _floor(points: Sequence[Point]) -> tuple[float, float]:
    """One standard error below the best held-out accuracy, and that error."""
    best = max(points, key=lambda point: point.heldout)
    return best.heldout - best.error, best.error


def _between(keep: float) -> list[float]:
    """Half way to the neighbours of a share on the path."""
    if keep not in PATH:
        return []
    place = PATH.index(keep)
    neighbours = (1.0, *PATH)[place : place + 1] + PATH[place + 1 : place + 2]
    return [round((keep + other) / 2, 4) for other in neighbours]


def _numbers_left_whole(count: int) -> list[int]:
    """0, 1, 2, 4, 8, ... of the kernels, at most half of them."""
    numbers, whole = [0], 1
    while whole <= count // 2:
        numbers.append(whole)
        whole *= 2
    return numbers


def _chosen(points: Sequence[Point], floor: float) -> int:
    """The index of the smallest gap among the points above a floor."""
    allowed = [i for i, point in enumerate(points) if point.heldout >= floor]
    return min(allowed, key=lambda i: (points[i].gap, -points[i].heldout))


class _Trial:
    """Measures a model with cut kernels; one function, traced once."""

    def __init__(self, model, bases, train, judge, seed, first=True):
        self._bases = bases
        self._judge = judge
        self._sample = shuffled(_sample_of(_counted(train), _SAMPLE, seed))
        self._knows_noisy = first
        self._energies = [_energy(basis) for basis in bases]
        # Shares all kernels with the model.
        self._predict = Predictor(
            graph.with_own_batch_norm(model, collect=True)
            if graph.batch_norms(model)
            else model
        )

    def sensitivities(self, progress: bool) -> dict[str, float]:
        """How far the predictions move when a kernel alone is cut."""
        asked = self._judge.examples
        before = losses.log_softmax(self._logits(asked))
        result = {}
        for basis in tqdm.tqdm(
            self._bases,
            desc="sensitivity",
            unit="kernel",
            disable=not progress,
            leave=False,
        ):
            with _assigned([(basis, basis.cut(_ALONE).kernel)]):
                after = losses.log_softmax(self._logits(asked))
            divergence = (np.exp(before) * (before - after)).sum(axis=-1)
            counts = asked.label >= 0
            result[basis.name] = float(divergence[counts].mean())
        return result

    def point(self, plan: Plan, whole: int) -> Point:
        """What a plan comes to."""
        cuts = [basis.cut(plan.keep_of(basis.name)) for basis in self._bases]
        kernels = [cut.kernel for cut in cuts]
        with _assigned(list(zip(self._bases, kernels, strict=True))):
            heldout = self._judge.right(self._logits(self._judge.examples))
            sample = self._logits(self._sample)
        train = losses.correct(self._sample.label, sample)
        left = np.dot([cut.energy for cut in cuts], self._energies)
        is_noisy = self._sample.subset == (self._sample.memorized or "")
        is_noisy &= self._knows_noisy
        return Point(
            plan,
            whole,
            float(left / max(sum(self._energies), 1e-30)),
            float(heldout.mean()),
            _standard_error(heldout),
            float(train.mean()),
            float(train[is_noisy].mean()) if is_noisy.any() else None,
        )

    def _logits(self, examples: Examples) -> np.ndarray:
        # Chunks of one size, so that BatchNorm's statistics are as good in
        # the last one.
        return np.concatenate(
            [
                self._predict(chunk.inputs).numpy()
                for chunk in chunks(examples, _CHUNK, even=True)
            ]
        ).astype(np.float32)


def _standard_error(right: np.ndarray) -> float:
    """Of the share of right ones: at least one mistake more or less.

    Where all are right, the sample's own deviation is 0, and a single mistake
    would look like a loss.
    """
    error = float(right.std() / np.sqrt(len(right)))
    counts_mistakes = np.isin(right, (0, 1)).all()
    return max(error, 1 / len(right)) if counts_mistakes else error


def _energy(basis: KernelBasis) -> float:
    return float(np.sum(np.square(basis.value, dtype=np.float64)))


def _counted(examples: Examples) -> Examples:
    """Without texts of which no position counts."""
    if examples.label.ndim == 1:
        return examples
    return examples.take((examples.label >= 0).any(axis=1))


def _sample_of(train: Examples, most: int, seed: int) -> Examples:
    """At most so many training examples; a function of seed and ids."""
    if len(train) <= most:
        return train
    ids = drawn_ids(train.example_id, most, masks.fold_seed(seed, "sample"))
    return train.of_ids(ids)


def _assigned(pairs):
    """Lends kernels to their variables."""
    return graph.swapped_weights(
        [basis.kernel.variable for basis, _ in pairs],
        [kernel for _, kernel in pairs],
    )
