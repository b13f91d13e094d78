import dataclasses

import numpy as np
import pytest

from binaries import config_flags
from tfmemloc import configs, data, presets
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig


@pytest.mark.parametrize("config", [DataConfig, ModelConfig, TrainConfig])
def test_json_round_trip(config):
    assert configs.from_json(config, configs.to_json(config())) == config()


def test_paper_defaults():
    training = TrainConfig()
    assert (training.batch_size, training.learning_rate) == (512, 0.01)
    assert (training.momentum, training.weight_decay) == (0.9, 5e-4)
    assert (training.epochs, training.schedule) == (50, "warmup_cosine")
    assert DataConfig().noise_rate == 0.1
    nine, fifty = ModelConfig("resnet9"), ModelConfig("resnet50")
    assert (nine.p_gen, nine.p_mem) == (0.2, 0.1)
    assert (fifty.p_gen, fifty.p_mem) == (0.5, 0.2)


@pytest.mark.parametrize(
    ("config", "fields", "words"),
    [
        (DataConfig, {"noise_rate": 1.5}, "at most 1.0. Received: noise_rat"),
        (DataConfig, {"noise_rate": float("nan")}, "Received: noise_rate=nan"),
        (DataConfig, {"train_examples": 0}, "at least 1"),
        (DataConfig, {"noise_file": "a", "score_file": "b"}, "not both"),
        (ModelConfig, {"name": "alexnet"}, "one of 'lenet', 'resnet9'"),
        (ModelConfig, {"p_gen": 0.0}, "Received: p_gen=0.0"),
        (ModelConfig, {"width": -1.0}, "Received: width=-1.0"),
        (TrainConfig, {"epochs": 0}, "Received: epochs=0"),
        (TrainConfig, {"learning_rate": float("nan")}, "learning_rate=nan"),
        (TrainConfig, {"dtype": "int8"}, "'mixed_bfloat16'"),
        (TrainConfig, {"stop_at": 2.0}, "Received: stop_at=2.0"),
        (
            TrainConfig,
            {"stop_at": 1.0, "evaluate_every": 2},
            "Expected evaluate_every=1 with it. Received: evaluate_every=2",
        ),
    ],
)
def test_bad_values_are_refused(config, fields, words):
    with pytest.raises(ValueError) as error:
        config(**fields)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epoch": 3}, "has no field 'epoch'. Expected some of: epochs"),
        (
            {"epochs": "3"},
            "must be an integer. Received: epochs='3' of type str",
        ),
        ({"epochs": True}, "must be an integer. Received: epochs=True"),
        ({"jit_compile": 1}, "`jit_compile` must be True or False"),
        ({"stop_at": [1]}, "`stop_at` must be a number or None"),
        ([1, 2], "Received: list"),
    ],
)
def test_bad_json_is_refused(fields, words):
    with pytest.raises(ValueError) as error:
        configs.from_json(TrainConfig, fields)
    assert words in str(error.value)


def test_differences_name_field_and_both_values():
    old, new = TrainConfig(), dataclasses.replace(TrainConfig(), epochs=3)
    assert configs.differences(old, new) == [
        "TrainConfig.epochs: 50 there, 3 here"
    ]
    assert configs.differences(old, new, ignore=("epochs",)) == []


def test_settings_for_data_of_ones_own_go_by_their_number(tmp_path):
    width = {}
    for count in (3_000, 20_000, 60_000):
        path = tmp_path / f"{count}.npz"
        np.savez(path, y_train=np.zeros(count, int))
        assert data.count_labels(str(path)) == count
        model, training = presets.preset(str(path), count)
        width[count] = ModelConfig(**model).width
        assert training["batch_size"] == 128
    assert width == {3_000: 0.25, 20_000: 0.5, 60_000: 1.0}
    folder = tmp_path / "folder"
    folder.mkdir()
    assert data.count_labels(str(folder)) is None
    np.save(folder / "y_train.npy", np.zeros(7, int))
    assert data.count_labels(str(folder)) == 7
    (tmp_path / "broken.npz").write_bytes(b"PK")
    assert data.count_labels(str(tmp_path / "broken.npz")) is None


@pytest.mark.parametrize(
    ("dataset", "model", "training", "line"),
    (
        # As the preset of the digits has it.
        (
            "digits",
            {"width": 0.5},
            {"epochs": 30, "batch_size": 128, "learning_rate": 0.1},
            "--model=resnet9",
        ),
        (
            "mine.npz",
            {"name": "lenet", "width": 0.5, "dropout": "none", "seed": 3},
            {"epochs": 2, "seed": 3},
            "--model=lenet --width=0.5 --dropout=none --epochs=2 --seed=3",
        ),
    ),
)
def test_a_training_is_said_in_flags(dataset, model, training, line):
    found = config_flags.training_line(
        dataset, ModelConfig(**model), TrainConfig(**training)
    )
    assert found == line


def test_the_rate_of_wrong_labels_is_said_where_it_is_not_the_usual_one():
    assert config_flags.line(DataConfig()) == ""
    assert config_flags.line(DataConfig("mine.npz")) == "--dataset=mine.npz"
    other = DataConfig("mine.npz", noise_rate=0.2, heldout=0.1)
    line = "--dataset=mine.npz --noise_rate=0.2 --heldout=0.1"
    assert config_flags.line(other) == line
