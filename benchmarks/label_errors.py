"""Which score finds wrong labels, on four kinds of noise and three seeds.

  python -m benchmarks.label_errors --seeds=0,1,2 \\
    --json=docs/results/digits_label_errors.json

needs `pip install -e '.[benchmarks]'` and takes about an hour on 2 CPU cores;
killed, the same command goes on. For each kind of noise and seed the tied
network is trained and its scores are taken; `combined_of_3` is the ranking by
it and two more, of other seeds. Beside them stand confident learning (cleanlab,
5-fold predictions of the same network without tied layers), the loss of that
network trained on all examples, and the rivals of `benchmarks.label_rivals`.
`cost` is the time of all that must be run for a score, trainings included, as a
multiple of one ordinary training, without tied layers.

A cell's rows come in parts (`--parts`); those that the file of --json holds are
not made again. The trainings are kept in --run_dir, so that other scores of the
same trainings take minutes: delete the file of --json and give the same
command. Scores were designed on seed 0 of MNIST and CIFAR-10; their tables are
of others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from benchmarks import label_rivals, real_errors
from binaries import config_flags, flags
from tfmemloc import data, evaluation, losses, report, scores, storage
from tfmemloc.configs import DataConfig, ModelConfig
from tfmemloc.labels import score_by_removal
from tfmemloc.layers import masks
from tfmemloc.probes.critical_units import find_critical_units
from tfmemloc.runs import Run
from tfmemloc.scores import ScoreConfig, quality
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.training.loop import train
from tfmemloc.units import SearchConfig

KINDS = ("uniform", "confusable", "one_class", "instance", "real")
_WEAK = 60  # Examples that the weak classifier has seen.
_SUBSETS = 8
_NETWORKS = 3


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
        seed: int | None = None,
    ) -> Run:
        """A run in the cell's folder; the last weights alone are kept."""
        epochs = self.training.epochs
        seed = self.seed if seed is None else seed
        return train(
            self.folder / name,
            data=config or DataConfig(),
            examples=examples,
            model=dataclasses.replace(model, seed=seed),
            training=dataclasses.replace(
                self.training,
                save_every=save_every or epochs,
                evaluate_every=epochs,
                seed=seed,
            ),
            progress=False,
        )

    def note(self, name: str, runs: Sequence[Run]) -> None:
        """Notes how long runs took, now or when they were made."""
        self.seconds[name] = sum(
            line["seconds"] for run in runs for line in run.history
        )

    def tied(self, k: int = 0) -> Run:
        """The tied network, or another of another seed; all epochs kept."""
        run = self.train(
            f"tied{k}" if k else "tied",
            self.examples,
            self.model,
            save_every=1,
            seed=self.seed + 100 * k,
        )
        if not k:
            self.note("training", [run])
        return run

    def tied_rows(self) -> list[dict]:
        """A row for each score of the tied network, and of slow rivals."""
        run, *others = [self.tied(k) for k in range(_NETWORKS)]
        more = {"plain_loss": self.plain_loss(), "cleanlab": self.cleanlab()}
        if flags.FLAGS.all_scores:
            more |= self.slow_scores(run)
        with self.timed("dropped_margin"):
            found = scores.score_examples(run, self.examples, progress=False)
        with self.timed("tracin"):
            found = scores.score_examples(
                run,
                self.examples,
                _ALL_SCORES,
                extra_scores=more,
                progress=False,
            )
        return self.described(found) + self.together([run, *others])

    def together(self, runs: Sequence[Run]) -> list[dict]:
        """The row of the ranking by several networks."""
        name = f"combined_of_{len(runs)}"
        with self.timed("judging"):
            found = scores.score_examples(runs, self.examples, progress=False)
        # Each training counts as the first: they differ in their seed alone.
        trainings = len(runs) * self.seconds["training"]
        self.seconds[name] = trainings + self.seconds["judging"]
        found = dataclasses.replace(found, names=(name, *found.names[1:]))
        return self.described(found)[:1]

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

    def cleanlab(self) -> np.ndarray:
        """Confident learning on cross-validated predictions: 1 - quality."""
        from cleanlab.rank import get_label_quality_scores

        part, fold = self.examples.train, self.fold()
        chance = np.zeros((len(part), part.classes))
        for k, run in enumerate(self.fold_runs("cleanlab")):
            logits = evaluation.predict_logits(
                run.model(), part.take(fold == k)
            )
            chance[fold == k] = np.exp(losses.log_softmax(logits))
        return 1 - get_label_quality_scores(part.label, chance)

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
        """The edit of the network without tied layers."""
        run = self.ordinary()
        # A fresh folder: what was kept of a removal would not be timed.
        with tempfile.TemporaryDirectory() as work:
            with self.timed("edit"):
                found = score_by_removal(run, self.examples, directory=work)
            # A bare model has no recording: the edited network ranks alone.
            alone = score_by_removal(run.model(), self.examples, directory=work)
        seconds = self.seconds["plain_loss"] + self.seconds["edit"]
        return self.rival_rows(
            {
                "plain_csl": (found.of("csl"), self.seconds["plain_loss"]),
                "edited": (alone.of("combined"), seconds),
                "edited_and_csl": (found.of("combined"), seconds),
            }
        )

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
        values = {name: value for name, (value, _) in found.items()}
        measured = scores.evaluate_scores(
            scores.scores_of_logits(
                part,
                dropped=np.zeros((len(part), part.classes)),
                extra_scores=values,
            )
        )
        return [
            {
                "noise": self.kind,
                "seed": self.seed,
                **row,
                "cost": found[row["score"]][1] / self.seconds["plain_loss"],
            }
            for row in measured
            if row["score"] in found
        ]

    def described(self, found: ExampleScores) -> list[dict]:
        """What the scores found, and what they cost."""
        right, _, _ = scores.suggestions_right(found)
        likely = found.suspicion >= 0.5
        wrong = found.label != found.true_label
        training, judging = (
            self.seconds[name] for name in ("training", "dropped_margin")
        )
        costs = dict.fromkeys(found.names, training + judging)
        costs |= dict.fromkeys(_RECORDED, training)
        # The last call took the forward passes as well.
        gradients = training + self.seconds["tracin"] - judging
        costs |= self.seconds | {"grand": gradients, "tracin": gradients}
        if "critical_set" in costs:
            costs["critical_set"] += training
        return [
            {
                "noise": self.kind,
                "seed": self.seed,
                **row,
                "suggestion_right": right,
                "calibration_error": scores.calibration_error(found),
                "suspicion_sum": float(found.suspicion.sum() / wrong.sum()),
                "over_half": int(likely.sum()),
                "over_half_wrong": int((likely & wrong).sum()),
                "cost": costs[row["score"]] / self.seconds["plain_loss"],
            }
            for row in scores.evaluate_scores(found)
        ]


# Name of a part of a cell's rows -> how it is made, and a score of it.
PARTS: dict[str, tuple[Callable[[Cell], list[dict]], str]] = {
    "tied": (Cell.tied_rows, "combined"),
    "classical": (Cell.classical_rows, "cleanlab_svm"),
    "course": (Cell.course_rows, "dropped_sei"),
    "edited": (Cell.edited_rows, "edited_and_csl"),
    "networks": (Cell.network_rows, "cleanlab_early"),
}


def _total(key: str, rows: list[dict]) -> int:
    return sum(row[key] for row in rows)


def _table(rows: list[dict]) -> list[dict]:
    """Means over seeds."""
    table = []
    for kind in dict.fromkeys(row["noise"] for row in rows):
        for name in dict.fromkeys(row["score"] for row in rows):
            mine = [r for r in rows if (r["noise"], r["score"]) == (kind, name)]
            if not mine:
                continue
            table.append(
                {"noise": kind, "score": name}
                | {
                    measure: float(np.mean([row[measure] for row in mine]))
                    for measure in quality.MEASURES
                }
                | {
                    # Of the ranking that makes suggestions, and of no other.
                    key: f"{np.mean([row[key] for row in mine]):.1%}"
                    if name.startswith("combined") and key in mine[0]
                    else ""
                    for key in (
                        "suggestion_right",
                        "calibration_error",
                        "suspicion_sum",
                    )
                }
                | {
                    "over_half": f"{_total('over_half_wrong', mine)} of "
                    f"{_total('over_half', mine)}"
                    if name.startswith("combined") and "over_half" in mine[0]
                    else "",
                    "cost": f"{np.median([row['cost'] for row in mine]):.2f}",
                    "seeds": str(len(mine)),
                }
            )
    return table


def main() -> None:
    """Measures all cells; prints and writes the means over seeds."""
    options = flags.FLAGS
    rows: list[dict] = []
    if options.json and pathlib.Path(options.json).exists():
        rows = storage.read_json(options.json)["rows"]
    done = {(row["noise"], row["seed"], row["score"]) for row in rows}
    folder = flags.run_directory() / config_flags.data_config().dataset
    for seed in map(int, options.seeds):
        for kind in options.noise:
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
                    storage.write_json(
                        options.json, {"table": _table(rows), "rows": rows}
                    )
    print(report.text_table(_table(rows)))


if __name__ == "__main__":
    config_flags.define_run_configs(with_dropout=False)
    flags.define_training_options()
    flags.flags.DEFINE_string(
        "run_dir", "runs/label_errors", "Where the trainings are kept."
    )
    flags.flags.DEFINE_list("noise", list(KINDS), "Kinds of noise.")
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
