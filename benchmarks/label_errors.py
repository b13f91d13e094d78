"""Which score finds wrong labels: ours and rivals on the same data.

  python -m benchmarks.label_errors --seeds=0,1,2 \\
    --json=docs/results/digits_label_errors.json

needs `pip install -e '.[benchmarks]'` and takes about half an hour on 2 CPU
cores; killed, the same command goes on. `left_out` is what all other examples
say, without a network; `ordinary_combined` the ranking by it, an ordinary
network, its course and its edit; `tied_combined` the ranking by it and by a
network with tied dropout. Beside them stand the scores of these networks alone
and the rivals of `benchmarks.label_rivals`. `cost` is the time of all that must
be run for a score, trainings included, as a multiple of one ordinary training.

A cell's rows come in parts (`--parts`); those that the file of --json holds are
not made again. The trainings are kept in --run_dir, so that other scores of the
same trainings take minutes: delete the file of --json and give the same
command. Scores were designed on seed 0 of MNIST and CIFAR-10 and on seeds 10
and 11 of the digits; the tables are of others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from benchmarks import label_rivals, label_tables, real_errors
from benchmarks.harness import chosen
from binaries import config_flags, flags
from tfmemloc import data, evaluation, losses, scores, storage
from tfmemloc.configs import DataConfig, ModelConfig
from tfmemloc.labels import score_by_removal, score_without_network
from tfmemloc.layers import masks
from tfmemloc.moved import predict_moved
from tfmemloc.probes.critical_units import find_critical_units
from tfmemloc.runs import Run
from tfmemloc.scores import ScoreConfig
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.training.loop import train
from tfmemloc.units import SearchConfig

KINDS = ("uniform", "confusable", "one_class", "instance", "real")
_WEAK = 60  # Examples that the weak classifier has seen.
_SUBSETS = 8
# Of the most suspicious labels, how many are wrong of so many.
_RANKS = (10, 20, 50, 100, 200, 500, 1000)


def noisy_labels(examples: data.Examples, kind: str, seed: int) -> np.ndarray:
    """The training labels with one kind of noise.

    `uniform`: 10 % get any other class. `confusable`: 20 % get the class that
    a linear classifier confuses theirs with most. `one_class`: 40 % of class
    3, and no others, get any other class. `instance`: those that a weak
    classifier is surest to be of another class get that class, at most 20 %.
    """
    label, ids = examples.label.copy(), examples.example_id
    hashes = masks.hash_bits_numpy(masks.fold_seed(seed, kind), ids, 2)
    rank = np.argsort(np.argsort(hashes[:, 0], kind="stable"))
    other = (label + 1 + hashes[:, 1] % 9) % 10
    if kind == "uniform":
        wrong = rank < 0.1 * len(label)
    elif kind == "confusable":
        wrong = rank < 0.2 * len(label)
        other = _confusable(examples)[label]
    elif kind == "instance":
        other, sureness = _weak(examples, hashes[:, 1])
        mistaken = np.where(other != label, sureness, -1.0)
        first = np.argsort(-mistaken, kind="stable")[: len(label) // 5]
        wrong = np.isin(np.arange(len(label)), first[mistaken[first] > 0])
    else:
        wrong = np.zeros(len(label), bool)
        mine = np.flatnonzero(label == 3)
        first = np.argsort(hashes[mine, 0])[: int(0.4 * len(mine))]
        wrong[mine[first]] = True
    label[wrong] = other[wrong]
    return label


def _pixels(examples: data.Examples) -> np.ndarray:
    """Some hundred pixels of each picture: [N, pixels] in [0, 1]."""
    pixels = np.asarray(examples.inputs["image"])
    pixels = pixels.reshape(len(examples), -1) / 255.0
    return pixels[:, :: max(1, pixels.shape[1] // 800)]


def _weak(
    examples: data.Examples, rank: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What a classifier of few examples, the first by `rank`, says of all.

    Returns:
        [N] its class; [N] how probable it finds that.
    """
    pixels = _pixels(examples)
    seen = np.argsort(rank, kind="stable")[:_WEAK]
    weak = LogisticRegression(max_iter=100)
    weak.fit(pixels[seen], examples.label[seen])
    chance = weak.predict_proba(pixels)
    return weak.classes_[chance.argmax(axis=1)], chance.max(axis=1)


def _confusable(examples: data.Examples) -> np.ndarray:
    """Class -> the one that a linear classifier takes it for most."""
    chance = cross_val_predict(
        LogisticRegression(max_iter=100),
        _pixels(examples),
        examples.label,
        cv=5,
        method="predict_proba",
    )
    confusion = np.stack(
        [chance[examples.label == c].mean(axis=0) for c in range(10)]
    )
    np.fill_diagonal(confusion, -1)
    return confusion.argmax(axis=1)


def _examples(kind: str, seed: int) -> data.Examples:
    """The data of --dataset with one kind of wrong labels."""
    config = config_flags.data_config()
    if kind == "real":
        return real_errors.load(config.dataset, config.test_examples)
    clean = data.load(dataclasses.replace(config, noise_rate=0.0))
    label = noisy_labels(clean.train, kind, seed).tolist()
    ids = clean.train.example_id.tolist()
    return data.set_labels(clean, dict(zip(ids, label, strict=True)))


_RECORDED = (
    "aum",
    "csl",
    "el2n",
    "first_learned",
    "forgetting",
    "wrong_event",
)
_ALL_SCORES = ScoreConfig(gradient_scores=True)


class Cell:
    """One kind of noise and seed: its data, trainings and times."""

    def __init__(self, kind: str, seed: int, folder: pathlib.Path):
        self.kind, self.seed, self.folder = kind, seed, folder
        self.examples = _examples(kind, seed)
        self.model = dataclasses.replace(
            config_flags.model_config("example_tied"), seed=seed
        )
        self.training = dataclasses.replace(
            config_flags.train_config(), seed=seed
        )
        self.seconds: dict[str, float] = {}

    @property
    def plain(self) -> ModelConfig:
        """The same network without tied layers."""
        return dataclasses.replace(
            self.model, dropout="none", p_gen=None, p_mem=None
        )

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Notes how long something takes."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def train(
        self,
        name: str,
        examples: data.Examples,
        model: ModelConfig,
        config: DataConfig | None = None,
        save_every: int | None = None,
    ) -> Run:
        """A run in the cell's folder; the last weights alone are kept."""
        epochs = self.training.epochs
        return train(
            self.folder / name,
            data=config or DataConfig(),
            examples=examples,
            model=dataclasses.replace(model, seed=self.seed),
            training=dataclasses.replace(
                self.training,
                save_every=save_every or epochs,
                evaluate_every=epochs,
                seed=self.seed,
            ),
            progress=False,
        )

    def note(self, name: str, runs: Sequence[Run]) -> None:
        """Notes how long runs took, now or when they were made."""
        self.seconds[name] = sum(
            line["seconds"] for run in runs for line in run.history
        )

    def tied(self) -> Run:
        """The tied network; all epochs kept."""
        run = self.train("tied", self.examples, self.model, save_every=1)
        self.note("training", [run])
        return run

    def tied_rows(self) -> list[dict]:
        """A row for each score of the tied network, and of slow rivals."""
        run, more = self.tied(), {"plain_loss": self.plain_loss()}
        if flags.FLAGS.all_scores:
            more |= self.slow_scores(run)
        with self.timed("judging"):
            found = scores.score_examples(run, self.examples, progress=False)
        with self.timed("tracin"):
            found = scores.score_examples(
                run,
                self.examples,
                _ALL_SCORES,
                extra_scores=more,
                progress=False,
            )
        training, judging = (
            self.seconds[name] for name in ("training", "judging")
        )
        costs = dict.fromkeys(found.names, training + judging)
        costs |= dict.fromkeys(_RECORDED, training)
        # The last call took the forward passes as well.
        gradients = training + self.seconds["tracin"] - judging
        costs |= self.seconds | {"grand": gradients, "tracin": gradients}
        if "critical_set" in costs:
            costs["critical_set"] += training
        costs.pop("left_out")  # It has a part of its own.
        return self.rows(found, costs, "tied_combined")

    def left_out_rows(self) -> list[dict]:
        """What all other examples say, without a network."""
        self.ordinary()
        with self.timed("left_out"):
            found = score_without_network(self.examples)
        costs = {"combined": self.seconds["left_out"]}
        return self.rows(found, costs, "left_out")

    def ordinary(self) -> Run:
        """The network without tied layers, trained on all examples."""
        run = self.train("plain", self.examples, self.plain, save_every=1)
        self.note("plain_loss", [run])
        return run

    def plain_loss(self) -> np.ndarray:
        """The loss of the network without tied layers."""
        part, run = self.examples.train, self.ordinary()
        logits = evaluation.predict_logits(run.model(), part)
        return losses.measured_losses(part.label, logits)

    def slow_scores(self, run: Run) -> dict[str, np.ndarray]:
        """The scores that take searches or trainings of their own."""
        part, more = self.examples.train, {}
        with self.timed("critical_set"):
            units = find_critical_units(
                run,
                self.examples,
                SearchConfig(
                    ids=tuple(part.example_id.tolist()), inference="tied"
                ),
                progress=False,
            )
            more["critical_set"] = scores.critical_set_score(units, part)
        folder = self.folder / "second_split"
        more["second_split"] = -scores.second_split_times(
            folder,
            self.examples,
            model=self.plain,
            training=dataclasses.replace(
                self.training, evaluate_every=self.training.epochs
            ),
            progress=False,
        )
        self.note(
            "second_split",
            [Run.open(path) for path in folder.glob("split_?/*")],
        )
        return more | {"memorization": self.memorization()}

    def memorization(self) -> np.ndarray:
        """Feldman and Zhang's estimates of the network without dropout."""
        runs = []
        for k in range(_SUBSETS):
            config = DataConfig(subset_ratio=0.7, subset_seed=k)
            subset = data.random_subset(self.examples, 0.7, seed=k)
            runs.append(self.train(f"subset{k}", subset, self.plain, config))
        self.note("memorization", runs)
        found = scores.estimate_memorization(
            runs, self.examples, progress=False
        )
        # The chance that all of 8 subsets hold an example is 6 %.
        return np.nan_to_num(found.memorization, nan=0.0)

    def fold(self) -> np.ndarray:
        """[N] to which fold each training example belongs."""
        return label_rivals.folds(self.examples.train.example_id)

    def fold_runs(self, name: str) -> list[Run]:
        """The network without tied layers on all folds but one; all epochs.

        Args:
            name: under which their seconds are noted.
        """
        part, fold = self.examples.train, self.fold()
        runs = [
            self.train(
                f"fold{k}",
                self.examples.trained_on(part.example_id[fold != k]),
                self.plain,
                save_every=1,
            )
            for k in range(label_rivals.FOLDS)
        ]
        self.note(name, runs)
        return runs

    def classical_rows(self) -> list[dict]:
        """Confident learning on ordinary classifiers of pixels."""
        part = self.examples.train
        found = label_rivals.classical(part, self.fold())
        return self.rival_rows(found)

    def course_rows(self) -> list[dict]:
        """Scores of the course of the training of the tied network."""
        part, run = self.examples.train, self.tied()
        with self.timed("course"):
            found = label_rivals.course(run, part)
        seconds = self.seconds["training"] + self.seconds["course"]
        return self.rival_rows(
            {name: (value, seconds) for name, value in found.items()}
        )

    def edited_rows(self) -> list[dict]:
        """The network without tied layers, its course and its edit."""
        run = self.ordinary()
        # A fresh folder: what was kept of a removal would not be timed.
        with tempfile.TemporaryDirectory() as work, self.timed("edit"):
            found = score_by_removal(run, self.examples, directory=work)
        plain = self.seconds["plain_loss"]
        costs = dict.fromkeys(found.names, plain + self.seconds["edit"])
        costs |= dict.fromkeys(_RECORDED, plain)
        with self.timed("moved"):
            predict_moved(run.model(), self.examples.train)
        costs["moved_margin"] = plain + self.seconds["moved"]
        rows = self.rows(found, costs, "ordinary_combined")
        names = {
            "dropped_margin": "edited",
            "csl": "ordinary_csl",
            "moved_margin": "moved",
        }
        return [
            row | {"score": names.get(row["score"], row["score"])}
            for row in rows
            if row["score"] in ("ordinary_combined", *names)
        ]

    def network_rows(self) -> list[dict]:
        """Confident learning on networks that were kept from memorizing."""
        runs = self.fold_runs("networks")
        found = label_rivals.networks(runs, self.examples.train, self.fold())
        seconds = self.seconds["networks"]
        return self.rival_rows(
            {name: (value, seconds) for name, value in found.items()}
        )

    def rival_rows(
        self, found: Mapping[str, tuple[np.ndarray, float]]
    ) -> list[dict]:
        """A row for each score that came with the seconds that it took."""
        self.ordinary()
        part = self.examples.train
        measured = scores.scores_of_logits(
            part,
            dropped=np.zeros((len(part), part.classes)),
            extra_scores={name: value for name, (value, _) in found.items()},
        )
        costs = {name: seconds for name, (_, seconds) in found.items()}
        return self.rows(measured, costs)

    def rows(
        self,
        found: ExampleScores,
        costs: Mapping[str, float],
        ranking: str = "",
    ) -> list[dict]:
        """A row for each score whose cost is known.

        Args:
            found: of the training examples.
            costs: seconds by name.
            ranking: how the combined ranking is called.
        """
        rows = []
        for row in found.quality:
            name = row["score"]
            if name not in costs:
                continue
            is_ranking = name == "combined"
            rows.append(
                {
                    "noise": self.kind,
                    "seed": self.seed,
                    **row,
                    "score": ranking if is_ranking else name,
                    "wrong_of_first": _wrong_of_first(found, name),
                    **(_of_ranking(found) if is_ranking else {}),
                    "cost": costs[name] / self.seconds["plain_loss"],
                }
            )
        return rows


def _wrong_of_first(found: ExampleScores, name: str) -> dict[str, int]:
    """How many of the most suspicious labels are wrong."""
    order = np.argsort(-found.of(name), kind="stable")
    wrong = (found.label != found.true_label)[order]
    return {str(k): int(wrong[:k].sum()) for k in _RANKS if k <= len(wrong)}


def _of_ranking(found: ExampleScores) -> dict[str, Any]:
    """What a ranking says beside the order."""
    wrong = found.label != found.true_label
    likely = found.suspicion >= 0.5
    right, _, _ = scores.suggestions_right(found)
    return {
        "suggestion_right": right,
        "calibration_error": scores.calibration_error(found),
        "suspicion_sum": float(found.suspicion.sum() / wrong.sum()),
        "over_half": int(likely.sum()),
        "over_half_wrong": int((likely & wrong).sum()),
        "noise_found": found.noise,
    }


# Name of a part of a cell's rows -> how it is made, and a score of it.
PARTS: dict[str, tuple[Callable[[Cell], list[dict]], str]] = {
    "left_out": (Cell.left_out_rows, "left_out"),
    "edited": (Cell.edited_rows, "ordinary_combined"),
    "tied": (Cell.tied_rows, "tied_combined"),
    "classical": (Cell.classical_rows, "cleanlab_mean"),
    "networks": (Cell.network_rows, "cleanlab_early"),
    "course": (Cell.course_rows, "dropped_sei"),
}


def main() -> None:
    """Measures all cells; prints and writes the means over seeds."""
    options = flags.FLAGS
    rows: list[dict] = []
    if options.json and pathlib.Path(options.json).exists():
        rows = storage.read_json(options.json)["rows"]
    done = {(row["noise"], row["seed"], row["score"]) for row in rows}
    folder = flags.run_directory() / config_flags.data_config().dataset
    for seed in map(int, options.seeds):
        for kind in chosen(options.noise, KINDS, "noise"):
            cell = Cell(kind, seed, folder / f"{kind}_{seed}")
            for part in options.parts:
                make, score = PARTS[part]
                if (kind, seed, score) in done:
                    continue
                made = make(cell)
                names = {row["score"] for row in made}
                rows = [
                    row
                    for row in rows
                    if (row["noise"], row["seed"]) != (kind, seed)
                    or row["score"] not in names
                ] + made
                rows.sort(
                    key=lambda row: (KINDS.index(row["noise"]), row["seed"])
                )
                if options.json:
                    storage.write_json(options.json, {"rows": rows})
    print(label_tables.of_rows(rows))


if __name__ == "__main__":
    config_flags.define_run_configs(with_dropout=False)
    flags.define_training_options()
    flags.flags.DEFINE_string(
        "run_dir", "runs/label_errors", "Where the trainings are kept."
    )
    flags.flags.DEFINE_list(
        "noise", list(KINDS), f"Some of {', '.join(KINDS)}."
    )
    flags.flags.DEFINE_list("seeds", ["1", "2", "3"], "Seeds.")
    flags.flags.DEFINE_multi_enum(
        "parts", list(PARTS), list(PARTS), "Parts of the rows."
    )
    flags.flags.DEFINE_bool(
        "all_scores",
        False,
        "Also critical sets, second-split forgetting and memorization "
        f"estimates of {_SUBSETS} subsets.",
    )
    flags.flags.DEFINE_string("json", None, "Also write the rows here.")
    flags.run(main)
