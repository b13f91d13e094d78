import json

import keras
import pytest
import tensorflow as tf

from tfmemloc import models, storage
from tfmemloc.configs import ModelConfig
from tfmemloc.runs import Run


@pytest.fixture
def run(tmp_path):
    model = models.build(ModelConfig("lenet", p_gen=0.5), (8, 8, 1), 10)
    run = Run.create(tmp_path / "run", model)
    run.record_epoch(model, 0)
    return run


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"version": 99}',
        '{"version": 1}',
        '{"version": 1, "data": {"noise": 2}, "model": null, "training": null}',
        '{"version": 1, "data": 3, "model": null, "training": null}',
    ],
)
def test_a_damaged_config_is_refused(run, content):
    (run.directory / "config.json").write_text(content)
    with pytest.raises(storage.DamagedFileError, match="config.json"):
        Run.open(run.directory)


@pytest.mark.parametrize("content", ["{", '{"lines": []}', "[1]"])
def test_a_damaged_history_is_refused(run, content):
    (run.directory / "history.json").write_text(content)
    with pytest.raises(storage.DamagedFileError, match="history.json"):
        _ = run.history


def test_a_damaged_model_is_refused(run):
    path = run.directory / "model.json"
    for content in ("{", json.dumps({"class_name": "Nope", "config": {}})):
        path.write_text(content)
        with pytest.raises(storage.DamagedFileError, match="model.json"):
            run.model()


def test_a_model_file_cannot_run_code(run):
    image = keras.Input((2,))
    model = keras.Model(image, keras.layers.Lambda(lambda x: x)(image))
    (run.directory / "model.json").write_text(model.to_json())
    with pytest.raises(storage.DamagedFileError, match="unsafe|safe"):
        run.model()


def test_weights_of_another_model_are_refused(run):
    other = models.build(ModelConfig(width=0.25), (8, 8, 1), 10)
    with pytest.raises(ValueError, match="is of another model than 'resnet9'"):
        run.load_weights(other, 0)


def test_a_missing_epoch_lists_those_there_are(run):
    with pytest.raises(ValueError, match="epoch 7. Saved epochs: 0"):
        run.weights(7)


def test_subclassed_models_are_recorded_but_not_rebuilt(tmp_path):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Subclassed()
    model(tf.ones([1, 3]))
    run = Run.create(tmp_path / "run", model)
    run.record_epoch(model, 0)
    with pytest.raises(ValueError, match="Make the model yourself"):
        run.model()
    run.load_weights(model, 0)
