import dataclasses

import pytest

from tfmemloc import configs
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
