"""A network that was not trained on these data as they are fed is noticed."""

import keras
import numpy as np
import pytest

from binaries import flags, output
from tfmemloc import from_arrays, predict_logits, remove_memory
from tfmemloc.fit import how_fed, measure_fit, warn_of_misfit


def test_the_share_is_that_of_a_loop(small_network, small_digits):
    fit = measure_fit(small_network, small_digits)
    train = small_digits.train
    said = predict_logits(small_network, train).argmax(axis=1)
    right = [p == label for p, label in zip(said, train.label, strict=True)]
    assert fit.right == pytest.approx(sum(right) / len(right))
    assert fit.count == len(train)
    assert fit.usual == max(
        (train.label == label).mean() for label in range(10)
    )


def test_a_network_that_knows_its_data_is_not_warned_of(
    small_network, small_digits
):
    warn_of_misfit(small_network, small_digits)


def test_pixels_that_were_fed_as_they_are(rng):
    """A Rescaling inside, and uint8 pictures that are scaled before it."""
    pictures = rng.integers(0, 256, (90, 8, 8, 1)).astype(np.uint8)
    pictures[:, 0] = (np.arange(90) % 3 * 100)[:, None, None]
    label = np.arange(90) % 3
    image = keras.Input((8, 8, 1))
    x = keras.layers.Rescaling(1 / 255, name="to_one")(image)
    x = keras.layers.Dense(16, activation="relu")(keras.layers.Flatten()(x))
    model = keras.Model(image, keras.layers.Dense(3)(x))
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    fed = pictures.astype(np.float32)
    model.fit(fed, label, epochs=40, batch_size=30, verbose=0)
    scaled = from_arrays(pictures, label, name="mine")
    assert how_fed(scaled) == "image, pixels scaled to [-1, 1]"
    with pytest.warns(UserWarning, match="mine") as caught:
        warn_of_misfit(model, scaled)
    text = str(caught[0].message)
    assert "the most frequent class alone has 33.3%" in text
    assert "Its layer to_one may expect 0 to 255" in text
    assert "x.astype('float32')" in text
    with pytest.warns(UserWarning, match="float pictures with values up to"):
        as_they_are = from_arrays(fed, label)
    assert how_fed(as_they_are) == "image, numbers as they are"
    warn_of_misfit(model, as_they_are)


def test_columns_that_are_taken_for_tokens(rng):
    columns = rng.integers(0, 17, (40, 6))
    examples = from_arrays(columns, np.arange(40) % 3)
    inputs = keras.Input((6,))
    model = keras.Model(
        inputs, keras.layers.Dense(3, kernel_initializer="zeros")(inputs)
    )
    with pytest.warns(UserWarning, match="tokens. If it was fed other numb"):
        warn_of_misfit(model, examples)


@pytest.mark.parametrize(
    ("of_model", "of_data"), [((8, 8), (8, 8, 1)), ((8, 8, 1), (8, 8))]
)
def test_grey_pictures_have_a_channel_or_none(of_model, of_data, rng):
    pixels = rng.normal(size=(20, *of_data)).astype(np.float32)
    inputs = keras.Input(of_model)
    x = keras.layers.Flatten()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    examples = from_arrays(pixels, np.arange(20) % 2)
    expected = model.predict(pixels.reshape(20, *of_model), verbose=0)
    found = predict_logits(model, examples)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_sigmoid_is_told_from_other_classes(rng):
    inputs = keras.Input((4,))
    model = keras.Model(
        inputs, keras.layers.Dense(1, activation="sigmoid")(inputs)
    )
    examples = from_arrays(
        rng.normal(size=(20, 4)).astype(np.float32), np.arange(20) % 2
    )
    with pytest.raises(ValueError, match="one output for two classes, as wi"):
        remove_memory(model, examples)


def test_pages_repeat_what_the_user_was_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(flags, "WARNED", ["fed wrongly", "fed wrongly"])
    page = output.write_report(tmp_path, "title", [], {"Command": "this"})
    for path in (page, page.with_suffix(".md")):
        assert path.read_text().count("fed wrongly") == 1
