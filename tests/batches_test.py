import numpy as np
import pytest
import tensorflow as tf

from tfmemloc import data
from tfmemloc.layers.tied_dropout import MEMORY_OFF


def _colour(count=20):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count + 1, 12, 12, 3), np.uint8)
    label = np.arange(count + 1) % 3
    examples = data.from_arrays(
        pixels[:count], label[:count], pixels[count:], label[count:]
    )
    return examples.train


def _numpy(dataset):
    return [
        (x["image"].numpy(), x["example_id"].numpy(), y.numpy())
        for x, y in dataset
    ]


@pytest.mark.parametrize("batch_size", [1, 7, 20, 50])
def test_an_epoch_holds_every_example_once(batch_size):
    examples = _colour()
    steps = data.steps_per_epoch(20, batch_size)
    epochs = [
        _numpy(
            data.make_batches(
                examples,
                batch_size,
                seed=1,
                start_step=epoch * steps,
                stop_step=(epoch + 1) * steps,
            )
        )
        for epoch in range(2)
    ]
    orders = [np.concatenate([b[1] for b in epoch]) for epoch in epochs]
    for order in orders:
        assert sorted(order) == sorted(examples.example_id)
    assert (orders[0] != orders[1]).any()
    for image, ids, label in epochs[0]:
        mine = examples.of_ids(ids)
        np.testing.assert_array_equal(
            image, data.scale_pixels(mine.inputs["image"])
        )
        np.testing.assert_array_equal(label, mine.label)


@pytest.mark.parametrize("shares", [1, 2, 3])
def test_the_shares_of_a_batch_are_the_batch(shares):
    # Two whole batches and one of two examples, fewer than shares.
    arguments = {"batch_size": 9, "seed": 1, "stop_step": 3}
    whole = _numpy(data.make_batches(_colour(), **arguments))
    parts = [
        _numpy(data.make_batches(_colour(), share=(k, shares), **arguments))
        for k in range(shares)
    ]
    for step, (images, ids, labels) in enumerate(whole):
        of_step = [part[step] for part in parts]
        found = np.concatenate([part[1] for part in of_step])
        order = np.argsort(found)
        np.testing.assert_array_equal(found[order], np.sort(ids))
        for k, values in ((0, images), (2, labels)):
            joined = np.concatenate([part[k] for part in of_step])
            np.testing.assert_array_equal(
                joined[order], values[np.argsort(ids)]
            )


def test_a_batch_of_more_than_there_are_holds_all():
    ((_, ids, _),) = _numpy(
        data.make_batches(_colour(), 2**70, seed=1, stop_step=1)
    )
    np.testing.assert_array_equal(np.sort(ids), np.arange(20))
    for step in ("start_step", "stop_step"):
        with pytest.raises(ValueError, match=f"`{step}` must be"):
            data.make_batches(_colour(), 4, seed=1, **{step: 2**63})


@pytest.mark.parametrize("share", [(2, 2), (-1, 2), (0, 0)])
def test_a_share_that_is_none(share):
    with pytest.raises(ValueError, match="Expected|must"):
        data.make_batches(_colour(), 4, seed=0, share=share)


@pytest.mark.parametrize("augment", ["none", "crop", "standard", "strong"])
def test_a_batch_is_a_function_of_seed_and_step(augment):
    examples = _colour()

    def make(seed, start, stop):
        return _numpy(
            data.make_batches(
                examples,
                6,
                seed=seed,
                augment=augment,
                start_step=start,
                stop_step=stop,
            )
        )

    whole, tail = make(5, 0, 8), make(5, 5, 8)
    for one, other in zip(whole[5:], tail, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    other = make(6, 0, 8)
    assert any((a[1] != b[1]).any() for a, b in zip(whole, other, strict=True))


def _windows(image, by):
    """All crops of a padded image."""
    padded = np.pad(image, ((by, by), (by, by), (0, 0)), constant_values=-1.0)
    places = range(2 * by + 1)
    crops = [padded[y : y + 12, x : x + 12] for y in places for x in places]
    return np.stack(crops)


def _places(augment, windows_of):
    """Which windows the pictures of thirty steps are: [600]."""
    examples, places = _colour(), []
    dataset = data.make_batches(
        examples, 20, seed=0, augment=augment, stop_step=30
    )
    for image, ids, _ in _numpy(dataset):
        for one, example_id in zip(image, ids, strict=True):
            original = examples.of_ids([example_id]).inputs["image"]
            windows = windows_of(data.scale_pixels(original)[0])
            match = (windows == one).all(axis=(1, 2, 3))
            assert match.sum() >= 1
            places.append(match.argmax())
    return np.array(places)


def test_standard_augmentation_is_a_crop_and_a_flip_by_example():
    def windows_of(image):
        crops = _windows(image, 4)
        return np.concatenate([crops, crops[:, :, ::-1]])

    places = _places("standard", windows_of)
    # 600 draws of 162 windows: nearly all occur, flips are half.
    assert len(set(places)) > 140
    assert 0.4 < np.mean(places >= 81) < 0.6


def test_a_crop_flips_nothing():
    """An eighth of twelve pixels is one: nine windows, equally often."""
    places = _places("crop", lambda image: _windows(image, 1))
    counts = np.bincount(places, minlength=9)
    assert len(counts) == 9 and counts.min() > 40


def test_augmentation_follows_the_id_not_the_place():
    examples = _colour()
    shuffled = examples.take(np.arange(20)[::-1])
    one, other = (
        _numpy(data.make_batches(e, 20, seed=0, augment="strong", stop_step=1))[
            0
        ]
        for e in (examples, shuffled)
    )
    order, other_order = np.argsort(one[1]), np.argsort(other[1])
    np.testing.assert_array_equal(one[0][order], other[0][other_order])


def test_strong_augmentation_changes_colours_and_differs_by_example():
    images = np.repeat(_colour().inputs["image"][:1], 20, axis=0)
    examples = data.from_arrays(
        images, np.zeros(20, int), images[:1], np.array([0])
    ).train
    batch = _numpy(
        data.make_batches(examples, 20, seed=0, augment="strong", stop_step=1)
    )[0][0]
    assert len(np.unique(batch.reshape(20, -1), axis=0)) > 15
    assert np.abs(batch).max() <= 1


def test_strong_augmentation_refuses_grey_images(digits):
    with pytest.raises(ValueError, match="Expected 3 channels. Received: 1"):
        data.make_batches(digits.train, 8, seed=0, augment="strong")


@pytest.mark.parametrize("batched", [False, True])
def test_attach_ids_to_any_dataset(batched):
    x, y = np.arange(10.0), np.arange(10) % 3
    pairs = tf.data.Dataset.from_tensor_slices((x, y))
    if batched:
        dataset = data.attach_ids(pairs.batch(4), batched=True)
    else:
        dataset = data.attach_ids(pairs).batch(4)
    for inputs, label in dataset:
        ids = inputs["example_id"].numpy()
        assert inputs["example_id"].dtype == tf.int64
        np.testing.assert_array_equal(inputs["image"], x[ids])
        np.testing.assert_array_equal(label, y[ids])


def test_attach_ids_streams():
    def endless():
        while True:
            yield 1.0, 0

    signature = (tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.int32))
    stream = tf.data.Dataset.from_generator(endless, output_signature=signature)
    inputs, _ = next(iter(data.attach_ids(stream).skip(5)))
    assert inputs["example_id"] == 5


def test_attach_ids_refuses_other_elements():
    with pytest.raises(ValueError, match="Expected a dataset of"):
        data.attach_ids(tf.data.Dataset.range(3))


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="at least one example"):
        data.make_batches(_colour().take(np.arange(0)), 4, seed=0)


def _off(batches):
    return np.concatenate(
        [inputs["example_id"] == MEMORY_OFF for inputs, *_ in batches]
    )


def test_memory_is_switched_off_anew_in_each_epoch():
    pairs = tf.data.Dataset.from_tensor_slices((np.zeros(400), np.zeros(400)))
    batches = data.attach_ids(pairs).batch(50)
    switched = data.switch_memory_off(batches, 0.3, seed=1)
    first, second = _off(switched), _off(switched)
    # Four standard deviations of a share of 400.
    assert abs(first.mean() - 0.3) < 0.1 and abs(second.mean() - 0.3) < 0.1
    assert 0.2 < (first != second).mean() < 0.65
    again = data.switch_memory_off(batches, 0.3, seed=1)
    np.testing.assert_array_equal(first, _off(again))
    assert (first != _off(data.switch_memory_off(batches, 0.3, seed=2))).any()
    kept = np.concatenate([x["example_id"] for x, _ in switched])
    assert set(kept) - {MEMORY_OFF} <= set(range(400))


def test_switching_keeps_weights_and_refuses_what_has_no_ids():
    rows = (np.zeros((8, 2)), np.zeros(8), np.arange(8.0))
    weighted = data.attach_ids(tf.data.Dataset.from_tensor_slices(rows))
    (batch,) = data.switch_memory_off(weighted.batch(8), 1.0)
    np.testing.assert_array_equal(batch[2], np.arange(8))
    plain = tf.data.Dataset.from_tensor_slices(rows[:2]).batch(8)
    with pytest.raises(ValueError, match="as `attach_ids` makes them"):
        data.switch_memory_off(plain)
    with pytest.raises(ValueError, match="`share` must be at least 0"):
        data.switch_memory_off(weighted.batch(8), 1.5)


def test_ids_are_attached_beside_the_name_of_an_input():
    pairs = tf.data.Dataset.from_tensor_slices((np.zeros(4), np.zeros(4)))
    for batched in (False, True):
        given = pairs.batch(2) if batched else pairs
        named = data.attach_ids(given, batched=batched, name="pixels")
        assert set(named.element_spec[0]) == {"pixels", "example_id"}


def test_what_is_switched_off_is_a_function_of_seed_epoch_step_and_id():
    pairs = tf.data.Dataset.from_tensor_slices((np.zeros(400), np.zeros(400)))
    batches = data.attach_ids(pairs).batch(50)
    epochs = []
    for seed in (1, 2):
        tf.random.set_seed(seed)  # Keras's, of other things.
        switched = data.switch_memory_off(batches, 0.3, seed=1)
        assert switched.cardinality() == 8
        epochs.append([_off(switched) for _ in range(3)])
    np.testing.assert_array_equal(epochs[0], epochs[1])
    # A training that was stopped goes on in another process.
    later = data.switch_memory_off(batches, 0.3, seed=1, first_epoch=2)
    np.testing.assert_array_equal(_off(later), epochs[0][2])
    repeated = data.switch_memory_off(batches, 0.3, seed=1).repeat(3)
    np.testing.assert_array_equal(_off(repeated), np.concatenate(epochs[0]))


def test_replicas_share_what_is_switched_off(two_devices):
    pairs = tf.data.Dataset.from_tensor_slices((np.zeros(40), np.zeros(40)))
    batches = data.attach_ids(pairs).batch(10)
    wanted = _off(data.switch_memory_off(batches, 0.5, seed=1))
    with two_devices.scope():
        switched = data.switch_memory_off(batches, 0.5, seed=1)
    found = [
        part["example_id"].numpy() == MEMORY_OFF
        for inputs, _ in two_devices.experimental_distribute_dataset(switched)
        for part in [
            dict(zip(inputs, parts, strict=True))
            for parts in zip(
                *map(two_devices.experimental_local_results, inputs.values()),
                strict=True,
            )
        ]
    ]
    np.testing.assert_array_equal(np.concatenate(found), wanted)
