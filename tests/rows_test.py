"""Inputs of any kind, in memory and on disk, by id."""

import copy
import dataclasses

import keras
import numpy as np
import pytest

from tfmemloc import data, evaluation, training
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.data import rows as rows_


@pytest.fixture
def on_disk(tmp_path, rng):
    values = rng.integers(0, 256, (50, 8, 8, 1), np.uint8)
    np.save(tmp_path / "x.npy", values)
    return tmp_path / "x.npy", values


def test_views_read_what_indexing_reads(on_disk):
    path, values = on_disk
    for base in (values, np.load(path, mmap_mode="r")):
        view = rows_.View(rows_.View(base, np.arange(49, -1, -1)), [4, 4, 40])
        np.testing.assert_array_equal(view[:], values[[45, 45, 9]])
        np.testing.assert_array_equal(view[1], values[45])
        np.testing.assert_array_equal(view[[2], 3], values[[9], 3])
        np.testing.assert_array_equal(np.asarray(view), values[[45, 45, 9]])
        assert view.shape == (3, 8, 8, 1) and len(view) == 3
        assert view.dtype == np.uint8 and view.ndim == 4
    both = rows_.Stacked(values[:20], np.load(path, mmap_mode="r")[20:])
    places = np.array([30, 2, 19, 20])
    np.testing.assert_array_equal(both[places], values[places])
    np.testing.assert_array_equal(np.asarray(both), values)


def test_selecting_copies_no_input(on_disk):
    _, values = on_disk
    examples = data.from_arrays(values, np.arange(50) % 3)
    part = examples.take(np.arange(50) % 2 == 0).take(np.arange(5))
    assert isinstance(part.inputs["image"], rows_.View)
    base = part.inputs["image"]._base
    assert np.shares_memory(base, values)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_digest_is_that_of_the_whole_array(on_disk, seed):
    path, values = on_disk
    order = np.random.default_rng(seed).permutation(50)
    expected = rows_.digest(values[order], np.arange(50))
    assert rows_.digest(np.load(path, mmap_mode="r"), order) == expected


def test_the_same_weights_from_disk_and_from_memory(on_disk, tmp_path):
    path, values = on_disk
    label = np.arange(50) % 4
    weights = []
    for name, x in (("memory", values), ("disk", path)):
        examples = data.add_label_noise(
            data.from_arrays(x, label, values[:10], label[:10]), 0.2, seed=0
        )
        run = training.train(
            tmp_path / name,
            examples=examples,
            model=ModelConfig(width=0.125),
            training=TrainConfig(epochs=2, batch_size=16),
            progress=False,
        )
        weights.append(run.weights())
        found = evaluation.evaluate(run.model(), examples)
        assert found.subsets == ("clean", "noisy", "test")
    for a, b in zip(*weights, strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_folder_of_arrays_is_a_data_set(on_disk, tmp_path):
    _, values = on_disk
    folder = tmp_path / "mine"
    folder.mkdir()
    np.save(folder / "x_train.npy", values[:40])
    np.save(folder / "y_train.npy", np.arange(40) % 4)
    np.save(folder / "x_test.npy", values[40:])
    np.save(folder / "y_test.npy", np.arange(10) % 4)
    examples = data.load(DataConfig(dataset=str(folder), noise_rate=0.0))
    assert len(examples.train) == 40 and len(examples.test) == 10
    np.testing.assert_array_equal(examples.test.inputs["image"], values[40:])
    (folder / "y_train.npy").unlink()
    with pytest.raises(ValueError, match="lacks y_train"):
        data.load(DataConfig(dataset=str(folder)))


def test_random_access_sets_of_tfds_stay_on_disk(tmp_path):
    pytest.importorskip("array_record")
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(8, 8, 1)),
                        "label": tfds.features.ClassLabel(num_classes=3),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._made(12), "test": self._made(5)}

        def _generate_examples(self):
            raise AssertionError("each split has its own")

        def _made(self, count):
            for i in range(count):
                image = np.full((8, 8, 1), 10 * i, np.uint8)
                yield i, {"image": image, "label": i % 3}

    builder = TinyPictures(
        data_dir=tmp_path, file_format=tfds.core.FileFormat.ARRAY_RECORD
    )
    builder.download_and_prepare()
    examples = data.load(
        DataConfig(
            "tiny_pictures",
            data_dir=str(tmp_path),
            noise_rate=0.0,
            train_examples=10,
        )
    )
    assert len(examples.train) == 10 and len(examples.test) == 5
    rows = examples.inputs["image"]
    assert not isinstance(rows, np.ndarray)
    assert examples.test.example_id.tolist() == [12, 13, 14, 15, 16]
    chunk = data.chunk_at(examples, np.array([3, 0, 11]))
    value = chunk.inputs["image"][:, 0, 0, 0]
    # The order on disk is TFDS's; image and label belong together.
    tens = np.round((value + 1) * 127.5) / 10
    np.testing.assert_array_equal(tens % 3, chunk.label)


@pytest.mark.parametrize(
    ("x", "kind", "name"),
    [
        (np.zeros((4, 8, 8), np.uint8), "picture", "image"),
        (np.zeros((4, 8, 8, 3), np.float32), "picture", "image"),
        (np.zeros((4, 9), np.int32), "tokens", "tokens"),
        (np.zeros((4, 9), np.uint8), "tokens", "tokens"),
        (np.zeros((4, 9), ">f4"), "features", "features"),
        (np.zeros((4, 5, 9), np.float16), "features", "features"),
        (np.zeros((4, 9), bool), "features", "features"),
        ([[0.5, 1.0]] * 4, "features", "features"),
    ],
)
def test_what_an_array_is(x, kind, name):
    examples = data.from_arrays(x, [0, 1, 0, 1])
    assert data.input_kinds(examples) == {name: kind}
    fed = data.as_arrays(examples)[name]
    assert fed.dtype == ("int64" if kind == "tokens" else "float32")


def test_pictures_are_scaled_and_floats_are_not():
    pixels = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    found = data.as_arrays(data.from_arrays(pixels, [0, 1]))["image"]
    assert found.reshape(-1).tolist() == [-1, 1]
    table = np.array([[200.0], [3.0]])
    found = data.as_arrays(data.from_arrays(table, [0, 1]))["features"]
    assert found.reshape(-1).tolist() == [200, 3]
    with pytest.warns(UserWarning, match="values up to 200"):
        data.from_arrays(np.full((2, 4, 4, 1), 200.0), [0, 1])


def test_subsets_groups_and_ids_of_any_name(tmp_path):
    names = ["crowd-sourced labels", "expert labels"] * 10
    examples = data.from_arrays(
        np.random.default_rng(0).normal(size=(22, 3)),
        np.arange(22) % 2,
        ids=np.arange(22) * 10,
        subset=[*names, "heldout", "test"],
        group=["ward A", "ward Ä"] * 11,
    )
    assert examples.subsets == (
        "crowd-sourced labels",
        "expert labels",
        "heldout",
        "test",
    )
    assert len(examples.train) == 20
    features = keras.Input((3,))
    model = keras.Model(features, keras.layers.Dense(2)(features))
    metrics = evaluation.evaluate(model, examples)
    assert metrics.subsets == examples.subsets
    assert metrics.count.sum() == 22
    groups = evaluation.evaluate(model, examples, by="group")
    assert groups.subsets == ("ward A", "ward Ä")
    assert examples.of_ids([210]).subset.tolist() == ["test"]
    with pytest.raises(ValueError, match="has no groups"):
        evaluation.evaluate(
            model, dataclasses.replace(examples, group=None), by="group"
        )
    assert "10 crowd-sourced labels" in repr(examples)
    assert "\n" not in repr(examples)


def test_labels_known_to_be_wrong_are_noisy():
    examples = data.from_arrays(
        np.zeros((4, 2)), [0, 1, 0, 1], true_label=[0, 1, 1, 1]
    )
    assert examples.of_subset("noisy").example_id.tolist() == [2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"y": np.eye(4)}, "np.argmax"),
        ({"y": np.ones((4, 3), int)}, "Several labels of one example"),
        ({"y": [0.0, 1.0, 0.0, 1.0]}, "y.astype"),
        ({"y": ["a", "b", "a", "b"]}, "makes integers of names"),
        ({"y": [0, 1]}, "expected 4 integers"),
        ({"y": None}, "stands for the next token"),
        ({"ids": [1, 2, 3, 3]}, "each example id once"),
        ({"ids": [0.0, 1.0, 2.0, 3.0]}, "stable_ids"),
        ({"ids": np.array([0, 1, 2, 2**63], np.uint64)}, "below 2"),
        ({"subset": [1, 2, 3, 4]}, "subset expected 4 names"),
        ({"x": np.full((4, 2), np.nan)}, "in 4 rows"),
        ({"x": np.zeros((4, 2), complex)}, "dtype complex128"),
        ({"x": np.zeros((4, 8, 8, 1), int)}, "expected pictures of uint8"),
        ({"x": {"a": np.zeros((4, 2)), "b": np.zeros(3)}}, "'b': 3"),
        ({"x_test": np.zeros((2, 3)), "y_test": [0, 1]}, "of the same names"),
    ],
)
def test_bad_arrays_are_refused(arguments, words):
    given = {"x": np.zeros((4, 2)), "y": [0, 1, 0, 1], **arguments}
    with pytest.raises(ValueError, match=words):
        data.from_arrays(**given)


def test_places_from_the_end_and_places_that_are_not_there(on_disk):
    path, values = on_disk
    for x in (values, path):
        examples = data.from_arrays(x, np.arange(50) % 3)
        part = examples.take(np.array([-1, -2]))
        assert part.example_id.tolist() == [49, 48]
        np.testing.assert_array_equal(part.inputs["image"][:], values[[49, 48]])
        with pytest.raises(IndexError):
            examples.take(np.array([50]))
    view = examples.take(np.array([3, 4])).inputs["image"]
    np.testing.assert_array_equal(view[..., 0], values[[3, 4], ..., 0])


def test_other_byte_orders_and_slices_of_files(tmp_path, rng):
    values = rng.normal(size=(20, 6)).astype(">f4")
    np.save(tmp_path / "x.npy", values)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for x, expected in (
        (tmp_path / "x.npy", values),
        (mapped[5:], values[5:]),
        (mapped[::2], values[::2]),
        (mapped[:, :3], values[:, :3]),
    ):
        examples = data.from_arrays(x, np.zeros(len(expected), int), classes=2)
        batches = data.make_batches(examples, 4, seed=0, stop_step=1)
        for inputs, _ in batches:
            np.testing.assert_allclose(
                inputs["features"], expected[inputs["example_id"]], rtol=1e-6
            )
        found = data.as_arrays(examples)["features"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_grey_pictures_on_disk_get_their_channel(tmp_path, rng):
    values = rng.integers(0, 256, (6, 8, 8), np.uint8)
    np.save(tmp_path / "x.npy", values)
    examples = data.from_arrays(tmp_path / "x.npy", np.arange(6) % 2)
    assert examples.inputs["image"].shape == (6, 8, 8, 1)
    np.testing.assert_array_equal(
        np.asarray(examples.inputs["image"])[..., 0], values
    )
    rows = rows_.FileRows(tmp_path / "x.npy", 128, (6, 8, 8), np.uint8)
    again = copy.deepcopy(rows)
    del rows  # Closes its file.
    np.testing.assert_array_equal(again[[2, 0]], values[[2, 0]])


def test_own_labels_and_subsets_stay_as_they_are(tmp_path):
    np.savez(
        tmp_path / "mine.npz",
        x_train=np.zeros((4, 3), np.float32),
        y_train=np.array([0, 1, 0, 1]),
        true_label=np.array([0, 1, 1, 1]),
        subset=np.array(["clean", "clean", "noisy", "heldout"]),
    )
    config = DataConfig(dataset=str(tmp_path / "mine.npz"), noise_rate=0.0)
    examples = data.load(config)
    assert examples.subset.tolist() == ["clean", "clean", "noisy", "heldout"]
    assert examples.label.tolist() == [0, 1, 0, 1]
    assert examples.true_label.tolist() == [0, 1, 1, 1]
    np.savez(tmp_path / "text.npz", x_train=np.arange(12).reshape(3, 4))
    config = DataConfig(dataset=str(tmp_path / "text.npz"), noise_rate=0.0)
    assert data.load(config).task == "next_token"


@pytest.mark.parametrize("name", ["example_id", "label"])
def test_reserved_names_of_inputs_are_refused(name):
    with pytest.raises(ValueError, match=f"cannot be called {name}"):
        data.from_arrays({name: np.zeros((4, 2))}, [0, 1, 0, 1])


def test_floats_do_not_become_integers_silently():
    pixels = keras.Input((4, 4, 1), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255)(pixels)
    model = keras.Model(
        pixels, keras.layers.Dense(2)(keras.layers.Flatten()(x))
    )
    examples = data.from_arrays(np.zeros((4, 4, 4, 1), np.uint8), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="which would lose its fractions"):
        evaluation.predict_logits(model, examples)


def test_networks_of_the_paper_say_that_they_take_pictures(tmp_path):
    table = data.from_arrays(np.zeros((4, 2)), [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"inputs features \(features\). Exp"):
        training.train(tmp_path / "run", examples=table)
