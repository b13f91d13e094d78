"""The same methods on four kinds of data: pictures, a table, text, two inputs.

  python -m benchmarks.kinds

takes about four minutes on 2 CPU cores. For each kind: an ordinary Keras model
is tied, recorded while it is fit on labels of which 10 % were made wrong, and
then probed, scored, reported and exported. Prints one row for each kind and
writes docs/results/kinds.json.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from sklearn import datasets

from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import (
    AccountingConfig,
    DataConfig,
    Examples,
    OwnUnitsConfig,
    RecordExamples,
    RecordRun,
    RetrainConfig,
    RewindConfig,
    Run,
    ScoreConfig,
    SearchConfig,
    account_gradients,
    add_label_noise,
    as_arrays,
    evaluate,
    export_saved_model,
    find_critical_units,
    find_label_errors,
    find_own_units,
    from_arrays,
    load,
    report,
    retrain_layers,
    rewind_layers,
    storage,
    tie_dropout,
)

# Modules of the standard library whose windows of text are told apart.
_MODULES = ("argparse", "tarfile", "unittest.mock", "zipfile")
_WINDOW, _STRIDE = 48, 160
_TEST_SHARE = 0.25
_QUICK_EXAMPLES = 300
RESULTS = pathlib.Path("docs") / "results" / "kinds.json"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of data, a network for it, and how long that learns."""

    examples: Callable[[], Examples]
    network: Callable[[], keras.Model]
    epochs: int


def _split(count: int) -> np.ndarray:
    """Names of subsets: a quarter is for testing, always the same."""
    is_test = np.random.default_rng(0).random(count) < _TEST_SHARE
    return np.where(is_test, "test", "clean")


def _noisy(examples: Examples) -> Examples:
    return add_label_noise(examples, 0.1, seed=0)


def digits() -> Examples:
    """scikit-learn's digits as pictures."""
    return load(DataConfig())


def digits_network() -> keras.Model:
    """Two convolutions."""
    image = keras.Input((8, 8, 1), name="image")
    x = image
    for units in (64, 128):
        x = keras.layers.Conv2D(units, 3, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(256, activation="relu")(x)
    return keras.Model(image, keras.layers.Dense(10)(x))


def table() -> Examples:
    """scikit-learn's breast-cancer table: 30 numbers, two classes."""
    bunch = datasets.load_breast_cancer()
    x = (bunch.data - bunch.data.mean(axis=0)) / bunch.data.std(axis=0)
    return _noisy(
        from_arrays(
            x.astype(np.float32),
            bunch.target,
            subset=_split(len(x)),
            name="breast cancer",
            class_names=[str(name) for name in bunch.target_names],
            words={"features": [str(name) for name in bunch.feature_names]},
        )
    )


def table_network() -> keras.Model:
    """Two hidden layers."""
    features = keras.Input((30,), name="features")
    x = features
    for units in (512, 512):
        x = keras.layers.Dense(units, activation="relu")(x)
    return keras.Model(features, keras.layers.Dense(2)(x))


def text() -> Examples:
    """Windows of the standard library's source: which module is it from?"""
    windows, labels = [], []
    for label, name in enumerate(_MODULES):
        source = inspect.getsource(importlib.import_module(name))
        data = np.frombuffer(source.encode("utf-8"), np.uint8)
        for start in range(0, len(data) - _WINDOW, _STRIDE):
            windows.append(data[start : start + _WINDOW])
            labels.append(label)
    return _noisy(
        from_arrays(
            np.stack(windows).astype(np.int32),
            np.array(labels),
            subset=_split(len(labels)),
            name="standard library",
            classes=len(_MODULES),
            class_names=_MODULES,
            words={"tokens": [chr(byte) for byte in range(256)]},
        )
    )


def text_network() -> keras.Model:
    """A block of attention and a hidden layer over bytes."""
    tokens = keras.Input((_WINDOW,), dtype="int64", name="tokens")
    x = keras.layers.Embedding(256, 48)(tokens)
    x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(4, 12)(x, x)])
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Dense(256, activation="relu")(x)
    x = keras.layers.GlobalMaxPooling1D()(x)
    x = keras.layers.Dense(512, activation="relu")(x)
    return keras.Model(tokens, keras.layers.Dense(len(_MODULES))(x))


def two_inputs() -> Examples:
    """The digits' left halves as pictures, their right halves as a table."""
    whole = load(DataConfig(noise_rate=0.0))
    image = np.asarray(whole.inputs["image"])
    right = image[:, :, 4:, 0].reshape(len(image), -1) / 255.0
    return _noisy(
        from_arrays(
            {"left": image[:, :, :4], "right": right.astype(np.float32)},
            whole.label,
            ids=whole.example_id,
            subset=whole.subset,
            name="halved digits",
        )
    )


def two_inputs_network() -> keras.Model:
    """A convolution for the one, a layer for the other, joined."""
    left = keras.Input((8, 4, 1), name="left")
    right = keras.Input((32,), name="right")
    x = keras.layers.Conv2D(64, 3, activation="relu", padding="same")(left)
    x = keras.layers.Flatten()(x)
    y = keras.layers.Dense(128, activation="relu")(right)
    x = keras.layers.Concatenate()([x, y])
    x = keras.layers.Dense(512, activation="relu")(x)
    return keras.Model([left, right], keras.layers.Dense(10)(x))


KINDS = {
    "pictures (digits)": Kind(digits, digits_network, 40),
    "table (breast cancer)": Kind(table, table_network, 60),
    "text (standard library)": Kind(text, text_network, 60),
    "two inputs (halved digits)": Kind(two_inputs, two_inputs_network, 60),
}


def fitted(
    directory: str | os.PathLike, kind: Kind, *, quick: bool = False
) -> tuple[Run, Examples]:
    """An ordinary `fit` of a tied model, recorded.

    Args:
        directory: of the run.
        kind: of the data.
        quick: the same path with a fifth of the epochs and few examples.
    """
    keras.utils.set_random_seed(0)
    examples = kind.examples()
    epochs = kind.epochs
    if quick:
        # Evenly spread, so that all subsets are among them.
        rows = np.linspace(0, len(examples) - 1, _QUICK_EXAMPLES, dtype=int)
        examples, epochs = examples.take(rows), epochs // 5
    model = kind.network()
    named = [
        layer.name
        for layer in model.layers[1:-1]
        if isinstance(layer, keras.layers.ReLU)
        or getattr(layer, "activation", None) is keras.activations.relu
    ]
    model = tie_dropout(model, after=named, p_gen=0.25, p_mem=0.1)
    model.compile(
        keras.optimizers.Adam(2e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    directory = pathlib.Path(directory)
    train = examples.train
    inputs = as_arrays(train)
    if isinstance(model.input, list):
        names = [tensor.name for tensor in model.inputs]
        inputs = {name: inputs[name] for name in names}
        model = _by_name(model)
    model.fit(
        inputs,
        train.label,
        batch_size=64,
        epochs=epochs,
        verbose=0,
        callbacks=[
            RecordRun(directory, examples),
            RecordExamples(directory / "recording", train),
        ],
    )
    return Run.open(directory), examples


def _by_name(model: keras.Model) -> keras.Model:
    """The same network, which takes its inputs as a dict."""
    by_name = {tensor.name: tensor for tensor in model.inputs}
    named = keras.Model(by_name, model.outputs[0], name=model.name)
    named.compile(model.optimizer, model.loss)
    return named


def measured(
    name: str, run: Run, examples: Examples, directory: pathlib.Path
) -> dict[str, Any]:
    """Every method once; a row of the table."""
    quiet = {"progress": False}
    last = max(run.epochs)
    results = [
        account_gradients(
            run, examples, AccountingConfig(epochs=(0, last)), **quiet
        ),
        rewind_layers(
            run, examples, RewindConfig(epochs=(0,), inference="tied"), **quiet
        ),
        retrain_layers(
            run, examples, RetrainConfig(epochs=2, inference="tied"), **quiet
        ),
    ]
    search = SearchConfig(count=20, bystanders=50, inference="tied")
    critical = find_critical_units(run, examples, search, **quiet)
    own = find_own_units(
        run,
        examples,
        OwnUnitsConfig(count=20, bystanders=50, inference="tied"),
        **quiet,
    )
    every = ScoreConfig(gradient_scores=True)
    scores = find_label_errors(run, examples, directory, every, **quiet)
    results += [critical, own, scores]
    report.write_html(
        directory / "report.html",
        name,
        [report.section_of(result) for result in results],
        {},
    )
    export_saved_model(run, directory / "served", examples=examples)
    tied = evaluate(run.model(inference="tied"), examples)
    drop = evaluate(run.model(inference="drop"), examples)
    quality = scores.quality[0]
    return {
        "kind": name,
        "examples": len(examples.train),
        "inputs": ", ".join(
            f"{key} {list(rows.shape[1:])}"
            for key, rows in examples.inputs.items()
        ),
        "noisy_tied": tied.of("noisy")["accuracy"],
        "noisy_drop": drop.of("noisy")["accuracy"],
        "test_tied": tied.of("test")["accuracy"],
        "test_drop": drop.of("test")["accuracy"],
        "own_flips": own.rows()[-1]["own_flips"],
        "average_precision": quality["average_precision"],
    }


def main() -> None:
    """Measures all kinds, prints and writes the table."""
    rows = []
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            directory = pathlib.Path(folder)
            run, examples = fitted(directory / "run", kind)
            rows.append(measured(name, run, examples, directory))
    storage.write_json(RESULTS, {"rows": rows})
    print(report.text_table(rows))


if __name__ == "__main__":
    flags.run(main)
