import dataclasses

import numpy as np
import pytest

from tfmemloc import data
from tfmemloc.configs import DataConfig


def _plain(count=200, classes=10, seed=0):
    """Images without meaning, with labels 0 .. classes - 1 in turn."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count + 20, 8, 8, 1), np.uint8)
    label = np.arange(count + 20) % classes
    return data.from_arrays(
        pixels[:count], label[:count], pixels[count:], label[count:]
    )


def test_digits_are_split_alike_for_ever(digits):
    assert len(digits.train) == 1437
    assert len(digits.test) == 360
    assert digits.inputs["image"].dtype == np.uint8
    assert np.asarray(digits.inputs["image"]).max() == 255
    assert set(digits.example_id) == set(range(1797))
    # The first test ids of the fixed split.
    assert digits.test.example_id[:5].tolist() == [2, 12, 13, 20, 28]


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.2, 1.0])
def test_noise_is_exactly_int_rate_n(rate):
    examples = data.add_label_noise(_plain(), rate, seed=0)
    wrong = examples.label != examples.true_label
    assert wrong.sum() == int(rate * 200)
    np.testing.assert_array_equal(wrong, examples.subset == "noisy")
    assert not wrong[examples.subset == "test"].any()


def test_wrong_labels_are_uniform_over_all_other_classes():
    # The authors' draw never gives the last wrong class; this one must.
    examples = data.add_label_noise(_plain(9000), 1.0, seed=3).train
    step = (examples.label - examples.true_label) % 10
    counts = np.bincount(step, minlength=10)
    assert counts[0] == 0
    # 1,000 expected in each; the standard deviation is 30.
    assert np.abs(counts[1:] - 1000).max() < 150
    for true_label in range(10):
        given = set(examples.label[examples.true_label == true_label])
        assert given == set(range(10)) - {true_label}


def test_noise_depends_on_seed_and_id_alone():
    plain = _plain()
    noisy = data.add_label_noise(plain, 0.2, seed=1)
    shuffled = plain.take(np.random.default_rng(0).permutation(len(plain)))
    again = data.add_label_noise(shuffled, 0.2, seed=1)
    np.testing.assert_array_equal(
        again.of_ids(plain.example_id).label, noisy.label
    )
    other = data.add_label_noise(plain, 0.2, seed=2)
    assert (other.label != noisy.label).any()
    # A larger rate contains the smaller one.
    more = data.add_label_noise(plain, 0.4, seed=1)
    was_noisy = noisy.subset == "noisy"
    np.testing.assert_array_equal(more.label[was_noisy], noisy.label[was_noisy])


def test_ids_stay_through_slicing(digits):
    noisy = digits.of_subset("noisy")
    one = digits.of_ids(noisy.example_id[[7]])
    assert one.example_id[0] == noisy.example_id[7]
    np.testing.assert_array_equal(
        one.inputs["image"][0], noisy.inputs["image"][7]
    )
    few = digits.take(np.array([5, 3]))
    assert few.example_id.tolist() == digits.example_id[[5, 3]].tolist()


def test_examples_are_frozen(digits):
    with pytest.raises(dataclasses.FrozenInstanceError):
        digits.label = digits.true_label
    for array in (digits.inputs["image"], digits.label, digits.example_id):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_labels_given_by_the_user(tmp_path):
    plain = _plain()
    path = tmp_path / "noise.csv"
    path.write_text("example_id,label\n3,9\n7,0\n")
    labels = data.read_pairs(str(path), "label", int)
    examples = data.set_labels(plain, labels)
    assert examples.of_subset("noisy").example_id.tolist() == [3, 7]
    assert examples.of_subset("noisy").label.tolist() == [9, 0]


def test_split_by_score(tmp_path):
    plain = _plain()
    examples = data.split_by_score(
        plain, {i: i / 200 for i in range(200)}, threshold=0.25
    )
    assert examples.subsets == ("typical", "atypical", "test")
    assert examples.of_subset("atypical").example_id.tolist() == list(range(50))
    np.testing.assert_array_equal(examples.label, plain.true_label)


def test_npz_files_load_as_keras_ships_them(tmp_path):
    path = tmp_path / "set.npz"
    pixels = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8)
    np.savez(
        path,
        x_train=pixels[:4],
        y_train=np.array([[0], [1], [2], [3]]),
        x_test=pixels[4:],
        y_test=np.array([0, 1]),
    )
    examples = data.load(DataConfig(dataset=str(path), noise_rate=0.25))
    assert examples.inputs["image"].shape == (6, 8, 8, 1)
    assert examples.example_id.tolist() == list(range(6))
    assert len(examples.of_subset("noisy")) == 1
    assert examples.class_name(3) == "3"


def test_an_npz_file_may_name_its_classes_but_hold_no_pickles(tmp_path):
    path = tmp_path / "set.npz"
    arrays = {
        "x_train": np.zeros((3, 8, 8), np.uint8),
        "y_train": np.array([0, 1, 0]),
    }
    names = ["cat", "dog", "bird"]  # No bird is among the examples.
    np.savez(path, **arrays, class_names=names)
    examples = data.load(DataConfig(dataset=str(path), noise_rate=0.0))
    assert (examples.classes, examples.class_name(1)) == (3, "dog")
    arrays["y_train"] = np.array([0, 1, 0], dtype=object)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="holds an array of Python objects"):
        data.load(DataConfig(dataset=str(path)))


def test_tfds_sets_keep_their_order_and_ids(real_data):
    config = DataConfig("mnist", data_dir=real_data, noise_rate=0.0)
    few = data.load(
        dataclasses.replace(config, train_examples=50, test_examples=20)
    )
    more = data.load(
        dataclasses.replace(config, train_examples=80, test_examples=20)
    )
    assert few.inputs["image"].shape == (70, 28, 28, 1)
    # Test ids follow all 60,000 training ids, however few are used.
    assert few.test.example_id.tolist() == list(range(60_000, 60_020))
    np.testing.assert_array_equal(
        few.train.inputs["image"], more.train.inputs["image"][:50]
    )
    np.testing.assert_array_equal(
        few.test.inputs["image"], more.test.inputs["image"]
    )


def test_a_missing_set_is_not_downloaded(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        data.load(DataConfig("svhn_cropped", data_dir=str(tmp_path)))
    message = str(error.value)
    assert "Nothing was downloaded" in message
    assert "--download to fetch 1503 MiB" in message
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_says_which_set_and_what_differs(digits):
    expected = digits.fingerprint()
    shuffled = digits.take(np.random.default_rng(1).permutation(len(digits)))
    data.check_fingerprint(shuffled, expected)
    other = data.add_label_noise(digits, 0.1, seed=99)
    with pytest.raises(ValueError) as error:
        data.check_fingerprint(other, expected)
    assert "train label" in str(error.value)
    assert "test" not in str(error.value).replace("true_label", "")
    image = np.array(digits.inputs["image"])
    image[np.flatnonzero(digits.subset == "test")[0], 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match="test image"):
        data.check_fingerprint(
            dataclasses.replace(digits, inputs={"image": image}), expected
        )


def test_stable_ids():
    keys = [f"image_{i}.png" for i in range(1000)]
    ids = data.stable_ids(keys)
    assert ids.dtype == np.int64
    assert (ids >= 0).all()
    assert len(set(ids.tolist())) == 1000
    np.testing.assert_array_equal(data.stable_ids(keys[::-1])[::-1], ids)
    assert ids[0] == 767268705395013839
    with pytest.raises(ValueError, match="'b' and 'b' collide"):
        data.stable_ids(["a", "b", "b"])


def _fields(**changes):
    fields = {
        "inputs": {"image": np.zeros((3, 8, 8, 1), np.uint8)},
        "label": np.array([0, 1, 2]),
        "true_label": np.array([0, 1, 2]),
        "example_id": np.array([0, 1, 2]),
        "subset": np.array(["clean", "clean", "test"]),
        "classes": 3,
    }
    return {**fields, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": {}}, "expected inputs by name"),
        ({"inputs": {"x": np.zeros(3, "U2")}}, "numbers. Received: dtype <U2"),
        (
            {"inputs": {"a": np.zeros((3, 1)), "b": np.zeros((4, 1))}},
            "{'a': 3, 'b': 4}",
        ),
        ({"label": np.array([0, 1])}, "Received: shape (2,)"),
        ({"label": np.array([0, 1, 3])}, "from 0 to 2. Received: 3"),
        ({"label": np.array([0.0, 1.0, 2.0])}, "label to be integers"),
        ({"example_id": np.array([0, 5, 5])}, "more often: 5"),
        ({"example_id": np.array([0, -1, 2])}, "Received: -1"),
    ],
)
def test_bad_examples_are_refused(changes, words):
    with pytest.raises(ValueError) as error:
        data.Examples(**_fields(**changes))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"train_examples": 5000}, "digits has 1437 train examples"),
        ({"dataset": "no_such_set"}, "There is no data set 'no_such_set'"),
    ],
)
def test_impossible_requests_are_refused(config, words):
    with pytest.raises(ValueError) as error:
        data.load(DataConfig(**config))
    assert words in str(error.value)


def test_bad_files_are_refused(tmp_path, digits):
    path = tmp_path / "noise.csv"
    for text, words in (
        ("id,label\n1,2\n", "expected the header 'example_id,label'"),
        ("example_id,label\n1,cat\n", "line 2: expected an integer id"),
        ("example_id,label\n1,2\n1,3\n", "id 1 occurs twice"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError) as error:
            data.read_pairs(str(path), "label", int)
        assert words in str(error.value)
    with pytest.raises(ValueError, match="no example with id 5000"):
        data.set_labels(digits, {5000: 1})
    with pytest.raises(ValueError, match="from 0 to 9. Received: 12"):
        data.set_labels(digits, {int(digits.train.example_id[0]): 12})
    with pytest.raises(ValueError, match="1437 training examples of digits"):
        data.split_by_score(digits, {}, 0.5)
    with pytest.raises(ValueError, match="no subset 'typical'"):
        digits.of_subset("typical")


def test_arrays_without_test_examples_and_labels_that_are_names():
    images = np.zeros((4, 8, 8), np.uint8)
    found = data.from_arrays(images, np.array([[0], [2], [1], [0]]))
    assert len(found.test) == 0
    assert found.train.label.tolist() == [0, 2, 1, 0]
    with pytest.raises(ValueError, match="makes integers of names"):
        data.from_arrays(images, np.array(["a", "b", "a", "c"]))
    with pytest.raises(ValueError, match="x_test expected the test examples"):
        data.from_arrays(images, np.zeros(4, int), None, np.zeros(1, int))


def _own_file(path, **more):
    arrays = {
        "x_train": np.arange(10 * 64, dtype=np.uint8).reshape(10, 8, 8),
        "y_train": np.arange(10) % 2,
    }
    np.savez(path, **(arrays | more))
    return DataConfig(dataset=str(path))


def test_labels_of_ones_own_are_not_made_wrong_unasked(tmp_path):
    config = _own_file(tmp_path / "mine.npz")
    assert config.noise_rate == 0 and DataConfig().noise_rate == 0.1
    np.testing.assert_array_equal(data.load(config).label, np.arange(10) % 2)
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "x_train.npy", np.zeros((2, 3), np.float32))
    assert DataConfig(dataset=str(folder)).noise_rate == 0


def test_arrays_that_nothing_reads_are_named(tmp_path, recwarn):
    few = np.array(["heldout"] * 5 + ["clean"] * 5)
    with pytest.warns(UserWarning, match="subsets, .*meant to be subset?"):
        data.load(_own_file(tmp_path / "mine.npz", subsets=few))
    recwarn.clear()
    data.load(_own_file(tmp_path / "mine.npz", subset=few))
    several = {
        f"x_train_{name}": np.zeros((10, 3), np.float32) for name in "ab"
    }
    np.savez(tmp_path / "two.npz", **several, y_train=np.arange(10) % 2)
    data.load(DataConfig(dataset=str(tmp_path / "two.npz")))
    assert not recwarn.list


def test_too_few_names_of_classes(tmp_path):
    config = _own_file(tmp_path / "mine.npz", class_names=["cat"])
    with pytest.raises(ValueError, match="has 1 class_names, and labels up to"):
        data.load(config)


def test_a_name_is_no_config():
    with pytest.raises(ValueError, match="Expected a DataConfig, such as"):
        data.load("mine.npz")


@pytest.mark.parametrize(
    ("x", "y", "words"),
    (
        (np.zeros((4, 9, 9), np.int64), [0, 1, 0, 1], "taken for tokens"),
        (np.zeros((4, 3, 9, 9), np.uint8), [0, 1, 0, 1], "channels first"),
        (np.zeros((4, 2)), [0, 1, 0, 1000], "3 of 1001 classes"),
    ),
)
def test_odd_arrays_are_warned_of(x, y, words):
    with pytest.warns(UserWarning, match=words):
        data.from_arrays(x, y)


def test_test_labels_beyond_those_of_training_are_warned_of():
    x = np.zeros((2, 3))
    with pytest.warns(UserWarning, match="2 of 6 classes"):
        data.from_arrays(x, [0, 1], x, [1, 5])
