"""Which score finds wrong labels, on three kinds of noise and three seeds.

  python -m benchmarks.label_errors --json=docs/results/digits_label_errors.json

needs `pip install -e '.[benchmarks]'` and takes about 25 minutes on 2 CPU
cores. For each kind of noise and seed the tied network is trained and its
scores are taken; beside them stand confident learning (cleanlab, 5-fold
predictions of the same network without tied layers) and the loss of that
network trained on all examples.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from binaries import flags
from tfmemloc import configs, data, evaluation, masks, report, storage
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.results import ExampleScores
from tfmemloc.scores import (
    evaluate_scores,
    score_examples,
    suggestions_right,
)
from tfmemloc.training import train

_SEEDS = (0, 1, 2)
_FOLDS = 5


def noisy_labels(examples: data.Examples, kind: str, seed: int) -> np.ndarray:
    """The training labels with one kind of noise.

    `uniform`: 10 % get any other class. `confusable`: 20 % get the class that
    a linear classifier confuses theirs with most. `one_class`: 40 % of class
    3, and no others, get any other class.
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
    else:
        wrong = np.zeros(len(label), bool)
        mine = np.flatnonzero(label == 3)
        first = np.argsort(hashes[mine, 0])[: int(0.4 * len(mine))]
        wrong[mine[first]] = True
    label[wrong] = other[wrong]
    return label


def _confusable(examples: data.Examples) -> np.ndarray:
    """Class -> the one that a linear classifier takes it for most."""
    pixels = examples.image.reshape(len(examples), -1) / 255.0
    chance = cross_val_predict(
        LogisticRegression(max_iter=1000),
        pixels,
        examples.label,
        cv=5,
        method="predict_proba",
    )
    confusion = np.stack(
        [chance[examples.label == c].mean(axis=0) for c in range(10)]
    )
    np.fill_diagonal(confusion, -1)
    return confusion.argmax(axis=1)


def cell(kind: str, seed: int) -> list[dict]:
    """The rows of one kind of noise and seed."""
    clean = data.load(DataConfig(noise_rate=0.0))
    label = noisy_labels(clean.train, kind, seed).tolist()
    ids = clean.train.example_id.tolist()
    examples = data.set_labels(clean, dict(zip(ids, label, strict=True)))
    _, preset = configs.PRESETS["digits"]
    training = TrainConfig(**preset, seed=seed)
    model = ModelConfig(width=0.5, seed=seed)
    plain = dataclasses.replace(model, dropout="none")
    with tempfile.TemporaryDirectory() as folder:
        run = _train(folder, "tied", examples, model, training)
        scores = score_examples(run, examples, progress=False)
        whole = _train(folder, "plain", examples, plain, training)
        last = evaluation.predict_logits(whole.model(), examples.train)
        scores = _with(
            scores,
            plain_loss=evaluation.cross_entropy(last, examples.train.label),
            cleanlab=_cleanlab(folder, examples, plain, training),
        )
    right, _, _ = suggestions_right(scores)
    return [
        {"noise": kind, "seed": seed, **row, "suggestion_right": right}
        for row in evaluate_scores(scores)
    ]


def _train(folder, name, examples, model, training):
    return train(
        pathlib.Path(folder) / name,
        data=DataConfig(),
        examples=examples,
        model=model,
        training=dataclasses.replace(training, save_every=3),
        progress=False,
    )


def _with(scores: ExampleScores, **more: np.ndarray) -> ExampleScores:
    return dataclasses.replace(
        scores,
        names=(*scores.names, *more),
        values=np.column_stack([scores.values, *more.values()]),
    )


def _cleanlab(folder, examples, model, training) -> np.ndarray:
    """Confident learning on cross-validated predictions: 1 - quality."""
    from cleanlab.rank import get_label_quality_scores

    part = examples.train
    fold = masks.hash_bits_numpy(7, part.example_id, 1)[:, 0] % _FOLDS
    chance = np.zeros((len(part), part.classes))
    for k in range(_FOLDS):
        kept = np.isin(examples.example_id, part.example_id[fold != k])
        run = _train(
            folder,
            f"fold{k}",
            examples.take(kept | (examples.subset == "test")),
            model,
            training,
        )
        logits = evaluation.predict_logits(run.model(), part.take(fold == k))
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        chance[fold == k] = shifted / shifted.sum(axis=1, keepdims=True)
    return 1 - get_label_quality_scores(part.label, chance)


def main() -> None:
    """Measures all cells; prints and writes the means over seeds."""
    rows = [
        row
        for kind in flags.FLAGS.noise
        for seed in _SEEDS
        for row in cell(kind, seed)
    ]
    table = []
    for kind in flags.FLAGS.noise:
        for name in dict.fromkeys(row["score"] for row in rows):
            mine = [r for r in rows if (r["noise"], r["score"]) == (kind, name)]
            table.append(
                {"noise": kind, "score": name}
                | {
                    key: float(np.mean([row[key] for row in mine]))
                    for key in (
                        "auroc",
                        "average_precision",
                        "precision_at_n",
                        "suggestion_right",
                    )
                }
            )
    print(report.text_table(table))
    if flags.FLAGS.json:
        storage.write_json(flags.FLAGS.json, {"table": table, "rows": rows})


if __name__ == "__main__":
    flags.flags.DEFINE_list(
        "noise", ["uniform", "confusable", "one_class"], "Kinds of noise."
    )
    flags.flags.DEFINE_string("json", None, "Also write the rows here.")
    flags.run(main)
