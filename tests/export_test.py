"""What is served: checked, pruned, alone in a fresh process, and atomic."""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from packaging.version import Version

from tests.tying_test import _nested_and_shared, _two_in_two_out
from tfmemloc import (
    ComparisonConfig,
    audit_membership,
    compare_networks,
    evaluation,
    graph,
    serving,
)
from tfmemloc.configs import ModelConfig
from tfmemloc.data.kinds import scale_pixels
from tfmemloc.graph.tying import tie_dropout
from tfmemloc.models import build
from tfmemloc.serving import endpoint
from tfmemloc.serving.endpoint import ExportError
from tfmemloc.serving.export import export_saved_model

HAS_LITERT = Version(keras.__version__) >= Version("3.13")


@pytest.fixture(scope="module")
def audit():
    """Of six networks of which everything is remembered."""
    rng = np.random.default_rng(0)
    member = rng.random((3, 300)) < 0.5
    member = np.concatenate([member, ~member])
    phi = rng.normal(size=member.shape) + 5 * member
    return audit_membership({"tied dropped": phi}, member)


@pytest.fixture(scope="module")
def served(tied_run, audit, tmp_path_factory):
    """Its export, from raw pixels, in all formats."""
    return export_saved_model(
        tied_run,
        tmp_path_factory.mktemp("served") / "export",
        raw_pixels=True,
        audit=audit,
        formats=("keras", "onnx", *(["litert"] if HAS_LITERT else [])),
    )


_ALONE = """
import json, sys
import numpy as np
import tensorflow as tf

path, images = sys.argv[1:]
serve = tf.saved_model.load(path).signatures["serving_default"]
images = np.load(images)
found = serve(image=tf.constant(images))
assert not any(name.startswith("tfmemloc") for name in sys.modules)
one = serve(image=tf.constant(images[:1]))["logits"]
np.testing.assert_allclose(one[0], found["logits"][0], atol=1e-4)
np.testing.assert_allclose(np.sum(found["probabilities"], 1), 1, atol=1e-5)
print(json.dumps(np.argmax(found["logits"], 1).tolist()))
"""


def test_a_fresh_process_with_tensorflow_alone(
    served, tied_run, digits, tmp_path
):
    np.save(tmp_path / "images.npy", digits.inputs["image"])
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, served, tmp_path / "images.npy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    classes = np.array(json.loads(done.stdout.splitlines()[-1]))
    model = tied_run.model(inference="drop")
    expected = evaluation.predict_logits(model, digits).argmax(axis=1)
    np.testing.assert_array_equal(classes, expected)
    noisy = digits.subset == "noisy"
    card = json.loads((served / "model_card.json").read_text())
    rows = {row["subset"]: row for row in card["accuracy"]}
    for subset in digits.subsets:
        mine = digits.subset == subset
        found = np.mean(classes[mine] == digits.label[mine])
        assert rows[subset]["after"] == pytest.approx(found)
    found = np.mean(classes[noisy] == digits.true_label[noisy])
    assert rows["noisy"]["true_label_after"] == pytest.approx(found)
    assert rows["noisy"]["after"] < 0.1 < 0.8 < rows["test"]["after"]


def test_the_card_says_what_was_done(served, tied_run, digits):
    card = json.loads((served / "model_card.json").read_text())
    assert card["options"]["pruned"] and card["options"]["raw_pixels"]
    assert card["data"]["noise_rate"] == pytest.approx(143 / 1437)
    assert card["data"]["fingerprint"] == digits.fingerprint()
    assert "data_dir" not in card["run"]["data"]
    size = card["size"]
    assert size["parameters_before"] == tied_run.model().count_params()
    assert size["parameters_after"] < size["parameters_before"] / 3
    text = (served / "MODEL_CARD.md").read_text()
    assert "memorization units left out, pruned, BatchNorm folded" in text
    assert f"{size['parameters_after']:,} after" in text


def test_the_card_says_what_attackers_find(served, audit):
    card = json.loads((served / "model_card.json").read_text())
    assert card["audit"] == audit.rows()
    found = audit.tpr[0, :, 0, 0]
    name, best = audit.attacks[found.argmax()], found.max()
    text = (served / "MODEL_CARD.md").read_text()
    assert f"| tied dropped | {name} | 1.0% | {best:.1%} [" in text
    assert "too few others for this rate" in text  # 0.1 % of 900.


def _bytes_of(folder):
    return [p.read_bytes() for p in pathlib.Path(folder).rglob("*")
            if p.is_file()]  # fmt: skip


def test_no_memorization_unit_is_in_the_files(tied_run, tmp_path):
    pruned, whole = (
        export_saved_model(
            tied_run, tmp_path / str(prune), prune=prune, fold=False
        )
        for prune in (True, False)
    )
    model = tied_run.model()
    layer = model.get_layer("conv1.dropout")
    kernel = model.get_layer("conv1.conv").get_weights()[0]
    kernel = kernel.reshape(-1, layer.units)
    first = layer.generalization_units
    for row in kernel:
        general, memory = row[:first].tobytes(), row[first:].tobytes()
        assert any(general in file for file in _bytes_of(pruned))
        assert not any(memory in file for file in _bytes_of(pruned))
        assert not any(
            row[k : k + 2].tobytes() in file
            for k in range(first, layer.units - 1)
            for file in _bytes_of(pruned)
        )
        assert any(memory in file for file in _bytes_of(whole))


def test_the_keras_file_holds_keras_alone(served, digits):
    model = keras.models.load_model(served / "model.keras", safe_mode=True)
    assert all(
        type(layer).__module__.startswith("keras")
        for layer in graph.flat_layers(model)
    )
    logits = model(scale_pixels(digits.inputs["image"][:20]))
    serve = tf.saved_model.load(str(served)).signatures["serving_default"]
    found = serve(image=tf.constant(digits.inputs["image"][:20]))["logits"]
    np.testing.assert_allclose(logits, found, atol=1e-4)


@pytest.mark.skipif(not HAS_LITERT, reason="needs Keras 3.13 or newer")
def test_the_litert_file_says_the_same(served, digits):
    images = scale_pixels(digits.inputs["image"][:4])
    model = keras.models.load_model(served / "model.keras")
    with pytest.warns(UserWarning, match="deprecated"):
        interpreter = tf.lite.Interpreter(str(served / "model.tflite"))
    (taken,) = interpreter.get_input_details()
    (given,) = interpreter.get_output_details()
    interpreter.resize_tensor_input(taken["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(taken["index"], images)
    interpreter.invoke()
    np.testing.assert_allclose(
        interpreter.get_tensor(given["index"]), model(images), atol=1e-3
    )


def test_the_onnx_file_says_the_same(served, digits):
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    images = scale_pixels(digits.inputs["image"][:4])
    model = keras.models.load_model(served / "model.keras")
    session = ReferenceEvaluator(onnx.load(served / "model.onnx"))
    (name,) = session.input_names
    (found,) = session.run(None, {name: images})
    np.testing.assert_allclose(found, model(images), atol=1e-3)


def test_a_format_that_keras_cannot_write(tied, tmp_path, monkeypatch):
    def export(self, path, format, **options):
        raise ValueError(f"Unrecognized format={format}.")

    monkeypatch.setattr(keras.Model, "export", export)
    with pytest.raises(ValueError, match="cannot export 'litert'"):
        export_saved_model(tied, tmp_path / "export", formats=["litert"])
    assert not list(tmp_path.iterdir())


def test_a_comparison_recalibrates(tied_run, digits):
    found = compare_networks(
        {"example_tied": tied_run}, digits, ComparisonConfig(recalibrate=True)
    )
    rows = {row["inference"]: row for row in found.rows()}
    assert set(rows) == {"tied", "expected", "drop", "drop_recalibrated"}
    drop = graph.with_inference(tied_run.model(), "drop")
    again = evaluation.recalibrate_batch_norm(drop, digits.train)
    accuracy = evaluation.evaluate(again, digits).of("test")["accuracy"]
    assert rows["drop_recalibrated"]["test"] == pytest.approx(accuracy)


def test_recalibrated_and_remembering(tied_run, digits, tmp_path):
    path = export_saved_model(
        tied_run,
        tmp_path / "export",
        recalibrate=True,
        with_memorization=True,
    )
    loaded = tf.saved_model.load(str(path))
    image = tf.constant(scale_pixels(digits.inputs["image"][:16]))
    drop = tied_run.model(inference="drop")
    recalibrated = evaluation.recalibrate_batch_norm(drop, digits.train)
    for signature, model in (
        ("serving_default", recalibrated),
        ("with_memorization", tied_run.model(inference="expected")),
    ):
        ids = tf.zeros([16], tf.int64)
        expected = model({"image": image, "example_id": ids})
        found = loaded.signatures[signature](image=image)["logits"]
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "after"),
    [(_nested_and_shared, ["inner"]), (_two_in_two_out, ["both"])],
)
def test_other_peoples_models(make, after, tmp_path):
    tied = tie_dropout(make(), after, p_gen=0.5)
    path = export_saved_model(tied, tmp_path / "export")
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    names = set(serve.structured_input_signature[1])
    assert names == ({"image"} if after == ["inner"] else {"a", "b"})
    expected = {"logits", "probabilities"}
    if after == ["both"]:
        expected = {"first", "second"}
    assert set(serve.structured_outputs) == expected
    assert not (path / "model_card.json").exists()


def test_raw_pixels_are_for_images_alone(tmp_path):
    image = keras.Input((8, 8, 1), name="image")
    words = keras.Input((3,), dtype="int32", name="words")
    x = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    y = keras.layers.Embedding(9, 4)(words)
    x = keras.layers.Concatenate()([x, keras.layers.Flatten()(y)])
    model = keras.Model([image, words], keras.layers.Dense(3)(x))
    tied = tie_dropout(model, ["conv"], p_gen=0.5)
    path = export_saved_model(tied, tmp_path / "export", raw_pixels=True)
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    specs = serve.structured_input_signature[1]
    assert specs["image"].dtype == tf.uint8
    assert specs["words"].dtype == tf.int32


def test_a_softmax_at_the_end_gives_probabilities(tmp_path):
    inputs = keras.Input((6,), name="features")
    x = keras.layers.Dense(8, "relu", name="hidden")(inputs)
    x = keras.layers.Dense(3, activation="softmax")(x)
    tied = tie_dropout(keras.Model(inputs, x), p_gen=0.5)
    path = export_saved_model(tied, tmp_path / "export")
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    assert set(serve.structured_outputs) == {"probabilities"}
    found = serve(features=tf.ones([2, 6]))["probabilities"]
    np.testing.assert_allclose(np.sum(found, axis=1), 1, atol=1e-6)


@pytest.fixture
def tied():
    return build(ModelConfig(width=0.25), (8, 8, 1), 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"card": True}, "The model card needs the examples"),
        ({"recalibrate": True}, "recalibrate=True needs the examples"),
        ({"prune": True, "inference": "expected"}, 'needs inference="drop"'),
        ({"inference": "plain"}, "has tied layers"),
        ({"inference": "tied"}, "Received: inference='tied'"),
        ({"formats": ["h5"]}, "Received: formats='h5'"),
        ({"audit": object()}, "Expected card=True with it"),
    ],
)
def test_options_that_do_not_go_together(tied, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        export_saved_model(tied, tmp_path / "export", **options)
    assert not list(tmp_path.iterdir())


def test_a_model_without_tied_layers(tmp_path):
    plain = build(ModelConfig(width=0.25, dropout="none"), (8, 8, 1), 10)
    with pytest.raises(ValueError, match='inference="plain" exports this one'):
        export_saved_model(plain, tmp_path / "export")
    path = export_saved_model(plain, tmp_path / "export", inference="plain")
    assert (path / "saved_model.pb").exists()


def test_raw_pixels_need_such_examples(tied, small_digits, tmp_path):
    scaled = dataclasses.replace(
        small_digits,
        inputs={"image": scale_pixels(small_digits.inputs["image"])},
    )
    with pytest.raises(ValueError, match="the examples have float32 inputs"):
        export_saved_model(
            tied, tmp_path / "export", examples=scaled, raw_pixels=True
        )


def test_nothing_is_overwritten_unless_told(tied, tmp_path):
    path = export_saved_model(tied, tmp_path / "export")
    before = _bytes_of(path)
    with pytest.raises(FileExistsError, match="or overwrite=True"):
        export_saved_model(tied, path)
    assert _bytes_of(path) == before
    export_saved_model(tied, path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.tex").write_text("x")
    with pytest.raises(FileExistsError, match="is not an export"):
        export_saved_model(tied, precious, overwrite=True)
    assert (precious / "chapter.tex").exists()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        export_saved_model(tied, tmp_path / "no" / "such")


def test_an_export_that_differs_is_refused(tied, tmp_path, monkeypatch):

    real = serving.prune_memorization

    def damaged(model):
        small = real(model)
        kernel = small.get_layer("head.dense").weights[0]
        kernel.assign(kernel + 0.1)
        return small

    monkeypatch.setattr(serving.export, "prune_memorization", damaged)
    before = export_saved_model(tied, tmp_path / "export", prune=False)
    files = _bytes_of(before)
    with pytest.raises(ExportError, match="differ from its model's by"):
        export_saved_model(tied, tmp_path / "export", overwrite=True)
    assert _bytes_of(before) == files
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize(
    ("dtype", "allowed"),
    [("float32", 1e-4), ("mixed_bfloat16", 2**-5), ("float16", 2**-8)],
)
def test_half_precision_is_exported(tmp_path, dtype, allowed):
    config = ModelConfig("lenet", width=0.5, p_gen=0.5)
    model = build(config, (16, 16, 3), 10, dtype=dtype)
    folder = export_saved_model(model, tmp_path / "export")
    assert (folder / "saved_model.pb").exists()
    assert endpoint._tolerance(model) == allowed


_FULL = """
import sys
from tfmemloc.configs import ModelConfig
from tfmemloc.serving.export import export_saved_model
from tfmemloc.models import build

tied = build(ModelConfig(), (8, 8, 1), 10)
try:
    export_saved_model(tied, sys.argv[1])
except OSError as error:
    print("refused:", error)
"""


def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _FULL, disk / "export"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "refused: " in done.stdout, done.stderr
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_leftovers_of_killed_exports_go(tmp_path):
    path = tmp_path / "model[1]"
    dead, live = (tmp_path / f".model[1].{c * 8}.tmp" for c in "ab")
    other = tmp_path / ".model2.cccccccc.tmp"
    old = tmp_path / ".model[1].dddddddd.old"
    for folder in (dead, live, other, old):
        folder.mkdir()
        (folder / "file").write_text("x")
    with open_locked(live):
        serving.folder._clear_leftovers(path)
        # The killed one had moved the old export out of the way.
        assert (path / "file").read_text() == "x"
        with serving.folder.beside(path, overwrite=True) as folder:
            (folder / "new").write_text("y")
        assert live.exists() and other.exists()
    assert not dead.exists() and not old.exists()
    assert [file.name for file in path.iterdir()] == ["new"]


@contextlib.contextmanager
def open_locked(folder):
    """The folder as an export of another process holds it."""
    path = folder.with_suffix(".lock")
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    path.unlink()


def test_rounding_that_a_network_makes_large_is_no_difference():
    """Measured by rounding the inputs as well."""
    row = keras.Input((4,), name="row")
    deep = keras.layers.Rescaling(1e4)(row)
    model = keras.Model(row, keras.ops.sin(deep))

    def serve(shift):
        # As a graph that rounds otherwise, and one that is another.
        served = endpoint._endpoint(model)
        return lambda row: served(row * (1 + shift))

    given = endpoint._checked_inputs(model, None, False)
    assert endpoint._tolerance(model) < 1e-3
    endpoint.check_export(serve(2.0**-22), model, model, None, False)
    with pytest.raises(ExportError, match="asked about random numbers: pass"):
        endpoint.check_export(serve(1e-4), model, model, None, False)
    assert set(given) == {"row"}
