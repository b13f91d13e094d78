import keras
import numpy as np
import pytest

from tests import oracles
from tfmemloc import data, evaluation, graph, models
from tfmemloc.configs import ModelConfig
from tfmemloc.data.kinds import scale_pixels
from tfmemloc.evaluation import SubsetMetrics
from tfmemloc.models.factory import Logits


@pytest.fixture(scope="module")
def model():
    return models.build(ModelConfig(width=0.25), (8, 8, 1), 10)


def test_metrics_equal_a_count_one_by_one(model, small_digits):
    metrics = evaluation.evaluate(model, small_digits, batch_size=50)
    for subset in ("clean", "noisy", "test"):
        part = small_digits.of_subset(subset)
        logits = []
        for i in range(len(part)):
            image = scale_pixels(part.inputs["image"][i : i + 1])
            feed = {"image": image, "example_id": part.example_id[i : i + 1]}
            logits.append(model(feed, training=False).numpy()[0])
        logits = np.array(logits)
        found = metrics.of(subset)
        predicted = logits.argmax(axis=1)
        assert found["accuracy"] == np.mean(predicted == part.label)
        assert found["true_accuracy"] == np.mean(predicted == part.true_label)
        # float32 convolutions of one image and of fifty differ by 1e-6.
        np.testing.assert_allclose(
            found["loss"],
            oracles.cross_entropy(logits, part.label).mean(),
            rtol=1e-5,
        )


def test_one_trace_however_many_batches(model, small_digits):
    predict = evaluation.Predictor(model)
    for batch_size in (7, 16, 120):
        evaluation.predict_logits(predict, small_digits, batch_size=batch_size)
    assert predict.trace_count() == 1


def test_evaluation_leaves_batch_norm_alone(model, small_digits):
    before = model.get_weights()
    evaluation.evaluate(model, small_digits)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_models_of_other_shapes_of_input(small_digits):
    image = keras.Input((8, 8, 1), name="pixels")
    out = keras.layers.Dense(10)(keras.layers.Flatten()(image))
    images_only = keras.Model(image, out)
    ids = keras.Input((), dtype="int64", name="example_id")
    as_list = keras.Model([ids, image], Logits()(out, ids))
    expected = evaluation.predict_logits(images_only, small_digits)
    np.testing.assert_array_equal(
        evaluation.predict_logits(as_list, small_digits), expected
    )


def test_inference_models(model):
    assert list(evaluation.inference_models(model)) == [
        "tied",
        "expected",
        "drop",
    ]
    plain = models.build(ModelConfig(width=0.25, dropout="none"), (8, 8, 1), 10)
    assert evaluation.inference_models(plain) == {"plain": plain}


def test_recalibration_gives_the_statistics_of_the_dropped_network(
    model, small_digits
):
    before = model.get_weights()
    dropped = graph.with_inference(model, "drop")
    train = small_digits.train
    result = evaluation.recalibrate_batch_norm(
        dropped, train, batch_size=len(train)
    )
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # Of the first normalization, whose input no other one changes: ...
    image = data.scale_pixels(train.inputs["image"])
    x = model.get_layer("conv1.conv")(image).numpy()
    norm = result.get_layer("conv1.norm")
    np.testing.assert_allclose(
        norm.moving_mean, x.mean(axis=(0, 1, 2)), atol=1e-5
    )
    np.testing.assert_allclose(
        norm.moving_variance, x.var(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6
    )
    # ... and of the second, behind the dropped units of the first.
    scale = model.get_layer("conv1.dropout").inference_scale()
    x = (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-5)
    x = np.maximum(x, 0) * scale
    x = model.get_layer("conv2.conv")(x).numpy()
    np.testing.assert_allclose(
        result.get_layer("conv2.norm").moving_mean,
        x.mean(axis=(0, 1, 2)),
        atol=1e-4,
    )
    assert evaluation.evaluate(result, small_digits).subsets == (
        "clean",
        "noisy",
        "test",
    )


def test_recalibration_needs_batch_norm(small_digits):
    model = models.build(ModelConfig("lenet", p_gen=0.5), (8, 8, 1), 10)
    with pytest.raises(ValueError, match="no BatchNormalization layer"):
        evaluation.recalibrate_batch_norm(model, small_digits)


def test_atypical_subsets_are_measured_too(model, digits):
    scores = dict.fromkeys(digits.train.example_id.tolist(), 1.0)
    scores[int(digits.train.example_id[0])] = 0.0
    split = data.split_by_score(digits, scores, 0.5)
    metrics = evaluation.evaluate(model, split)
    assert metrics.subsets == ("typical", "atypical", "test")
    assert metrics.count.tolist() == [1436, 1, 360]


def test_metrics_save_and_load(model, small_digits, tmp_path):
    metrics = evaluation.evaluate(model, small_digits)
    metrics.save(tmp_path / "metrics")
    loaded = SubsetMetrics.load(tmp_path / "metrics")
    assert loaded.rows() == metrics.rows()
    assert loaded.subsets == metrics.subsets
