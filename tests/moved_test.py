"""Predictions over pictures that are moved by a little."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from tfmemloc import as_arrays, from_arrays, losses, predict_logits
from tfmemloc.moved import MovedPredictor, moved, predict_moved

CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (32, 20), (3, 70)])
@pytest.mark.parametrize("move", [(0, 0), *CORNERS])
def test_pictures_move_as_scipy_moves_them(shape, move, rng):
    image = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    by = [0, move[0] * shape[0] / 28, move[1] * shape[1] / 28, 0]
    expected = ndimage.shift(image, by, order=1, mode="nearest")
    found = moved(tf.constant(image), *move)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_mean_is_that_of_five_pictures(small_network, small_digits):
    """One picture and one move at a time."""
    train = small_digits.train
    image = np.asarray(train.inputs["image"]).astype(np.float32)[:7]
    expected = []
    for picture in image / 127.5 - 1:
        said = []
        for down, right in ((0, 0), *CORNERS):
            by = [down * 8 / 28, right * 8 / 28, 0]
            one = ndimage.shift(picture, by, order=1, mode="nearest")
            logits = small_network(one[np.newaxis], training=False).numpy()
            said.append(losses.log_softmax(logits)[0])
        expected.append(losses.log_softmax(np.mean(said, axis=0)))
    few = train.take(np.arange(7))
    found = predict_moved(small_network, few)
    np.testing.assert_allclose(found.mean, expected, atol=1e-4)
    np.testing.assert_allclose(
        found.still,
        losses.log_softmax(predict_logits(small_network, few)),
        atol=1e-5,
    )


def test_one_trace(small_network, small_digits):
    predict = MovedPredictor(small_network, small_digits)
    for count in (3, 5, 3):
        inputs = as_arrays(small_digits.take(np.arange(count)))
        assert predict(inputs).mean.shape == (count, 10)
    assert predict.trace_count() == 1


def test_what_is_no_picture_stays(rng):
    examples = from_arrays(
        rng.normal(size=(30, 6)).astype(np.float32), np.arange(30) % 3
    )
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    expected = losses.log_softmax(predict_logits(model, examples))
    np.testing.assert_allclose(predict_moved(model, examples).mean, expected)


def test_memory_of_single_pictures_fades(overfitted, held_out_digits):
    """The network knows each wrong label by heart, and not where it moved."""
    noisy = held_out_digits.of_subset("noisy")
    still, mean = predict_moved(overfitted, noisy)
    assert (still.argmax(axis=1) == noisy.label).all()
    assert (mean.argmax(axis=1) == noisy.label).mean() < 0.9
    test = held_out_digits.test
    still, mean = (
        (said.argmax(axis=1) == test.label).mean()
        for said in predict_moved(overfitted, test)
    )
    assert mean >= still - 0.03
