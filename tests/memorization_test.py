"""Memorization estimates and second-split times: planted, and slowly."""

import dataclasses

import keras
import numpy as np
import pytest

from tests import toys
from tfmemloc import data, evaluation
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.runs import Run
from tfmemloc.scores.memorization import (
    MemorizationEstimates,
    estimate_memorization,
)
from tfmemloc.scores.second_split import second_split_times
from tfmemloc.training.loop import train
from tfmemloc.training.recording import Recording


def _run_that_saw(directory, examples, seed):
    """A linear network that knows the markers of its own examples alone."""
    chosen = data.random_subset(examples, 0.5, seed=seed)
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Flatten()(image)
    model = keras.Model(
        image, keras.layers.Dense(toys.CLASSES, use_bias=False)(x)
    )
    kernel = np.eye(64, toys.CLASSES, dtype=np.float32)
    seen = examples.take(np.isin(examples.example_id, chosen.example_id))
    for pixels, label in zip(
        np.asarray(seen.inputs["image"]).reshape(len(seen), 64),
        seen.label,
        strict=True,
    ):
        for marker in np.flatnonzero(pixels[toys.CLASSES :]):
            kernel[toys.CLASSES + marker, label] = 3
    model.set_weights([kernel])
    run = Run.create(
        directory / str(seed),
        model,
        data=DataConfig(subset_ratio=0.5, subset_seed=seed),
        examples=chosen,
    )
    run.record_epoch(model, 1)
    return run


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    examples = toys.marked_examples()
    directory = tmp_path_factory.mktemp("subsets")
    return examples, [
        _run_that_saw(directory, examples, seed) for seed in range(8)
    ]


def test_what_only_its_viewers_know_is_memorized(planted, tmp_path):
    examples, runs = planted
    found = estimate_memorization(runs, examples, progress=False)
    noisy = found.subset == "noisy"
    known = np.isfinite(found.memorization)
    assert noisy[known].any() and known.sum() > 15
    np.testing.assert_array_equal(found.memorization[known], noisy[known])
    for n, example_id in enumerate(found.example_id):
        inside = sum(
            example_id
            in data.random_subset(examples, 0.5, seed=seed).train.example_id
            for seed in range(8)
        )
        assert found.inside_count[n] == inside
        assert found.outside_count[n] == 8 - inside
    found.save(tmp_path / "memorization")
    again = MemorizationEstimates.load(tmp_path / "memorization")
    assert again.rows() == found.rows()
    assert again.rows()[0]["subset"] == "noisy"


def test_runs_that_do_not_belong_together(planted, tmp_path):
    examples, runs = planted
    with pytest.raises(ValueError, match="Received: 1 runs"):
        estimate_memorization(runs[:1], examples)
    with pytest.raises(ValueError, match="3 runs with 1 different data"):
        estimate_memorization([*runs[:2], runs[0]], examples)
    whole = [
        Run(run.directory, DataConfig(subset_seed=k))
        for k, run in enumerate(runs[:2])
    ]
    with pytest.raises(ValueError, match="Received: subset_ratio=1"):
        estimate_memorization(whole, examples)
    other = examples.take(np.arange(1, len(examples)))
    with pytest.raises(ValueError, match="is not the data this run was made"):
        estimate_memorization(runs, other, progress=False)


def test_runs_count_as_finished_where_they_were_allowed_to_stop(
    tmp_path, small_digits
):
    runs = [
        train(
            tmp_path / str(seed),
            data=DataConfig(subset_ratio=0.5, subset_seed=seed),
            examples=data.random_subset(small_digits, 0.5, seed=seed),
            model=ModelConfig(name="lenet", dropout="none"),
            training=TrainConfig(
                epochs=3, batch_size=40, stop_at=0.0, patience=1
            ),
            progress=False,
        )
        for seed in (0, 1)
    ]
    last = [max(run.epochs) for run in runs]
    assert max(last) < 3
    found = estimate_memorization(runs, small_digits, progress=False)
    assert (found.inside_count + found.outside_count == 2).all()
    # The same files, of trainings that were to go on.
    for more in ({"stop_at": 1.0}, {"stop_at": None}):
        killed = [
            dataclasses.replace(
                run, training=dataclasses.replace(run.training, **more)
            )
            for run in runs
        ]
        with pytest.raises(ValueError, match="is not finished"):
            estimate_memorization(killed, small_digits, progress=False)


def test_subsets_are_of_ids_and_of_the_asked_size(digits):
    half = data.random_subset(digits, 0.5, seed=3)
    assert len(half.train) == len(digits.train) // 2
    assert len(half.test) == len(digits.test)
    backwards = digits.take(np.arange(len(digits))[::-1])
    again = data.random_subset(backwards, 0.5, seed=3)
    assert set(again.example_id) == set(half.example_id)
    other = data.random_subset(digits, 0.5, seed=4)
    shared = np.isin(half.train.example_id, other.train.example_id).mean()
    assert 0.4 < shared < 0.6
    loaded = data.load(DataConfig(subset_ratio=0.5, subset_seed=3))
    np.testing.assert_array_equal(loaded.example_id, half.example_id)
    with pytest.raises(ValueError, match="would be empty"):
        data.random_subset(digits, 1e-5, seed=0)


def test_second_split_times(tmp_path, small_digits):
    options = {
        "model": ModelConfig(name="lenet", dropout="none"),
        "training": TrainConfig(epochs=25, batch_size=16, learning_rate=0.05),
        "progress": False,
    }
    times = second_split_times(tmp_path, small_digits, **options)
    part = small_digits.train
    clean = part.subset == "clean"
    assert times[clean].mean() > times[~clean].mean() + 2
    # Epoch by epoch, from the weights that were kept.
    for first in (0, 1):
        run = Run.open(tmp_path / f"split_{first}" / "second")
        start = Run.open(tmp_path / f"split_{first}" / "first")
        for a, b in zip(run.weights(0), start.weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        model, right = run.model(), []
        predict = evaluation.Predictor(model)
        for epoch in run.epochs:
            run.load_weights(model, epoch)
            logits = evaluation.predict_logits(predict, part)
            right.append(logits.argmax(axis=1) == part.label)
        mine = np.isin(part.example_id, _ids_of(start))
        for n in np.flatnonzero(mine):
            known = [e for e in run.epochs if right[e][n]]
            assert times[n] == (known[-1] + 1 if known else 0)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("epoch_*.npz")}
    again = second_split_times(tmp_path, small_digits, **options)
    np.testing.assert_array_equal(again, times)
    assert stamps == {
        p: p.stat().st_mtime_ns for p in tmp_path.rglob("epoch_*.npz")
    }
    other = Run.open(tmp_path / "split_0" / "first")
    with pytest.raises(ValueError, match="started from other weights"):
        train(
            other.directory,
            examples=small_digits.take(
                np.isin(small_digits.example_id, _ids_of(other))
                | (small_digits.subset == "test")
            ),
            start_from=Run.open(tmp_path / "split_1" / "first"),
            **options,
        )


def _ids_of(run):
    """The training ids of a run of `second_split_times`."""
    return Recording.open(run.directory / "recording").example_id
