"""Serving what is left: a network without its memory, as a SavedModel.

The folder that `export_saved_model` writes holds

    saved_model.pb, variables/   loads wherever TensorFlow is
    model.keras, .tflite, .onnx  by option
    model_card.json, MODEL_CARD.md
                                 what was exported, and how it measures

It is written beside its place, loaded again, compared with the network that
it came from, and only then renamed: a folder that exists is a checked one.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import pathlib
import platform
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import (
    configs,
    evaluation,
    graph,
    pruning,
    storage,
    surgery,
)
from tfmemloc.batches import scale_pixels
from tfmemloc.data import Examples
from tfmemloc.layers import check_choice
from tfmemloc.runs import Run

INFERENCES = ("drop", "expected", "plain")
FORMATS = ("keras", "litert", "onnx")
CARD = "model_card.json"

_FILES = {
    "keras": "model.keras",
    "litert": "model.tflite",
    "onnx": "model.onnx",
}
# Graph optimizations reorder sums; measured: 2e-6 of the largest output.
_TOLERANCE = 1e-4
_CHECKED = 256


class ExportError(RuntimeError):
    """The export does not say what its model says."""


def export_saved_model(
    source: Run | keras.Model,
    path: str | os.PathLike,
    *,
    examples: Examples | None = None,
    inference: str = "drop",
    prune: bool | None = None,
    fold: bool = True,
    recalibrate: bool = False,
    raw_pixels: bool = False,
    with_memorization: bool = False,
    formats: Sequence[str] = (),
    card: bool | None = None,
    overwrite: bool = False,
) -> pathlib.Path:
    """Exports a network for serving, checked against where it came from.

    The default signature takes the images alone (any number of them) and
    gives `logits` and `probabilities` (the latter alone where the model ends
    in a softmax). A model with several outputs gives them under their names.

    Args:
        source: a run, or any functional model.
        path: of the new folder.
        examples: real examples, for the check and the model card; None loads
            those of the run.
        inference: `drop` leaves the memorization units out, `expected` scales
            them by p_mem; `plain` exports a model without tied layers.
        prune: slice the memorization units out of the weights (see
            `prune_memorization`); None does where they are dropped.
        fold: put each BatchNorm into the layer before it (see
            `fold_batch_norm`).
        recalibrate: recompute BatchNorm statistics on the training examples
            first (see `recalibrate_batch_norm`).
        raw_pixels: take uint8 pixels and scale them as in training.
        with_memorization: add the signature `with_memorization`, in expected
            behaviour. The memorization units are then in the file.
        formats: further files: `keras`, `litert`, `onnx`.
        card: write the model card; None does where the source is a run.
        overwrite: replace an export that lies at `path`.

    Returns:
        `path`.

    Raises:
        ValueError: an option that does not go with the model or another.
        FileExistsError: `path` exists, and is not an export to be replaced.
        ExportError: the loaded export differs from its model.
        OSError: the disk is full, the folder is read-only, ...; nothing is
            left behind then, and what was at `path` is still there.

    Example:
        >>> export_saved_model(Run.open("runs/demo/example_tied"), "served")
        >>> served = tf.saved_model.load("served")
        >>> served.signatures["serving_default"](image=images)["probabilities"]
    """
    path = pathlib.Path(path)
    check_choice("inference", inference, INFERENCES)
    for name in formats:
        check_choice("formats", name, FORMATS)
    _check_free(path, overwrite)
    is_run = isinstance(source, Run)
    model = source.model() if is_run else source
    prune = inference == "drop" if prune is None else prune
    card = is_run if card is None else card
    if examples is None and is_run and source.data is not None:
        examples = source.examples()
    _check_model(model, inference)
    _check_options(inference, prune, recalibrate, raw_pixels, card, examples)
    shown = _behaviour(model, inference)
    if recalibrate:
        shown = evaluation.recalibrate_batch_norm(shown, examples.train)
    served = pruning.prune_memorization(shown) if prune else shown
    if fold:
        served = pruning.fold_batch_norm(served)
    with _beside(path, overwrite) as folder:
        _write(folder, served, model, raw_pixels, with_memorization, formats)
        loaded = tf.saved_model.load(str(folder))
        serve = loaded.signatures["serving_default"]
        checked = _check_export(serve, served, shown, examples, raw_pixels)
        if card:
            options = {
                "inference": inference,
                "pruned": prune,
                "folded": fold,
                "recalibrated": recalibrate,
                "raw_pixels": raw_pixels,
                "with_memorization": with_memorization,
            }
            _write_card(
                folder,
                source,
                models={"trained": model, "shown": shown, "served": served},
                accuracy=_accuracies(serve, model, examples, options),
                examples=examples,
                options=options,
                checked=checked,
            )
    return path


def _check_free(path: pathlib.Path, overwrite: bool) -> None:
    _clear_leftovers(path)
    if not path.exists():
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"The folder {path.parent}, where the export would lie, does "
                "not exist."
            )
        return
    if not overwrite:
        raise FileExistsError(
            f"{path} exists. Choose another path, or overwrite=True "
            "(--overwrite) to replace an export."
        )
    if not (path / "saved_model.pb").exists():
        raise FileExistsError(
            f"{path} is not an export: it has no saved_model.pb. Delete it "
            "yourself, or choose another path."
        )


def _check_model(model: keras.Model, inference: str) -> None:
    if not graph.is_functional(model):
        raise ValueError(
            f"Model '{model.name}' is a subclassed or unbuilt "
            f"{type(model).__name__}, whose graph is not known. Expected a "
            "built functional or Sequential model; a subclassed one can be "
            "exported by its own `model.export(path)`."
        )
    has_ties = bool(surgery.tied_layers(model))
    if inference == "plain" and has_ties:
        raise ValueError(
            f"Model '{model.name}' has tied layers. Expected inference="
            '"drop" or "expected"; received: inference="plain".'
        )
    if inference != "plain" and not has_ties:
        raise ValueError(
            f"Model '{model.name}' has no ExampleTiedDropout layer, so that "
            f'there is nothing to leave out. Received: inference="{inference}"'
            '. Expected a model trained with tied layers; inference="plain" '
            "exports this one as it is."
        )


def _check_options(
    inference, prune, recalibrate, raw_pixels, card, examples
) -> None:
    """Refuses options that do not go together."""
    if prune and inference != "drop":
        raise ValueError(
            f'prune=True needs inference="drop". Received: inference='
            f"{inference!r}, which uses the memorization units."
        )
    if (card or recalibrate) and examples is None:
        raise ValueError(
            f"{'The model card' if card else 'recalibrate=True'} needs the "
            "examples. Received: a model, or a run on data of your own, and "
            "examples=None. Pass `examples`, or "
            f"{'card' if card else 'recalibrate'}=False."
        )
    if raw_pixels and examples is not None and examples.image.dtype != np.uint8:
        raise ValueError(
            "raw_pixels=True takes uint8 pixels, but the examples have "
            f"{examples.image.dtype} ones, which were not scaled in training. "
            "Expected raw_pixels=False."
        )


def _behaviour(model: keras.Model, inference: str) -> keras.Model:
    if inference == "plain":
        return model
    return surgery.with_inference(model, inference)


@contextlib.contextmanager
def _beside(path: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """A new folder beside `path`; renamed to it when the body succeeds."""
    mark = uuid.uuid4().hex[:8]
    folder = path.with_name(f".{path.name}.{mark}.tmp")
    old = path.with_name(f".{path.name}.{mark}.old")
    lock = None
    try:
        folder.mkdir()
        # Goes away with the process: what has no lock is a leftover.
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
        if overwrite and path.exists():
            path.rename(old)
        folder.rename(path)
    except tf.errors.OpError as error:
        raise OSError(
            f"The export could not be written to {path}: {error.message} "
            "Nothing was left there."
        ) from error
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _clear_leftovers(path: pathlib.Path) -> None:
    """Removes what exports to `path` left that were killed.

    A folder that was to be overwritten comes back if nothing took its place.
    """
    name = glob.escape(path.name)
    for folder in path.parent.glob(f".{name}.????????.tmp"):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # Another export is at it.
        finally:
            os.close(lock)
    for old in path.parent.glob(f".{name}.????????.old"):
        if old.with_suffix(".tmp").exists():
            continue
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)


def _write(folder, served, model, raw_pixels, with_memorization, formats):
    """The SavedModel, and the files in further formats."""
    archive = keras.export.ExportArchive()
    archive.track(served)
    _add_endpoint(archive, "serve", served, raw_pixels)
    if with_memorization:
        remembering = surgery.with_inference(model, "expected")
        archive.track(remembering)
        _add_endpoint(archive, "with_memorization", remembering, raw_pixels)
    archive.write_out(str(folder), verbose=False)
    for name in formats:
        _write_format(folder / _FILES[name], served, name)


def _write_format(path: pathlib.Path, served: keras.Model, name: str) -> None:
    if name == "keras":
        served.save(path)
        return
    # Keras wants to have seen the model called.
    served(_zeros(served))
    try:
        with warnings.catch_warnings():
            # Of the converters' own making.
            warnings.simplefilter("ignore")
            served.export(str(path), format=name, verbose=False)
    except ImportError as error:
        raise ImportError(
            f"The format {name!r} needs a package that is not installed: "
            f"{error}. For ONNX: pip install 'tfmemloc[onnx]'."
        ) from error
    except ValueError as error:
        if "format" not in str(error):
            raise
        raise ValueError(
            f"The installed Keras {keras.__version__} cannot export "
            f"{name!r}: {error} Use a newer one, or leave it out of `formats`."
        ) from error


def _zeros(model):
    return keras.tree.map_structure(
        lambda t: np.zeros((1, *t.shape[1:]), t.dtype), graph.inputs_of(model)
    )


def _image_inputs(model: keras.Model) -> list[keras.KerasTensor]:
    """The inputs that a caller gives: all but the ids."""
    return [
        tensor
        for tensor in keras.tree.flatten(graph.inputs_of(model))
        if tensor.name != graph.IDS
    ]


def _add_endpoint(archive, name, model, raw_pixels) -> None:
    inputs = _image_inputs(model)
    signature = [
        tf.TensorSpec(
            [None, *tensor.shape[1:]],
            _served_dtype(tensor, raw_pixels),
            name=tensor.name,
        )
        for tensor in inputs
    ]
    archive.add_endpoint(
        name=name, fn=_endpoint(model, inputs), input_signature=signature
    )


def _served_dtype(tensor, raw_pixels: bool) -> str:
    """What a caller gives: raw pixels are for images alone."""
    is_image = len(tensor.shape) == 4 and "float" in tensor.dtype
    return "uint8" if raw_pixels and is_image else tensor.dtype


def _endpoint(model, inputs):
    names = [tensor.name for tensor in inputs]
    ends_in_softmax = graph.ends_in_softmax(model)

    def serve(*images):
        given = dict(zip(names, images, strict=True))
        # Ids are read by no layer in this behaviour, but may be an input.
        given[graph.IDS] = tf.zeros([tf.shape(images[0])[0]], tf.int64)
        feed = keras.tree.map_structure(
            lambda tensor: _as_input(given[tensor.name], tensor.dtype),
            graph.inputs_of(model),
        )
        return _named_outputs(model(feed, training=False), ends_in_softmax)

    return serve


def _as_input(given, dtype):
    if given.dtype == tf.uint8:
        return scale_pixels(given)
    return tf.cast(given, dtype)


def _named_outputs(outputs, are_probabilities: bool) -> dict[str, tf.Tensor]:
    """One output as logits and probabilities; several by their names."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, list | tuple):
        return {f"output_{n}": tensor for n, tensor in enumerate(outputs)}
    if are_probabilities:
        return {"probabilities": outputs}
    return {"logits": outputs, "probabilities": tf.nn.softmax(outputs)}


def _check_export(serve, served, shown, examples, raw_pixels) -> dict:
    """Compares the loaded export with the network it came from."""
    images = _check_images(served, examples, raw_pixels)
    found = serve(**images)
    wanted = _endpoint(shown, _image_inputs(shown))(*images.values())
    largest = 0.0
    for name, expected in wanted.items():
        scale = max(1.0, float(tf.reduce_max(tf.abs(expected))))
        difference = float(tf.reduce_max(tf.abs(found[name] - expected)))
        largest = max(largest, difference / scale)
    if not largest <= _TOLERANCE:
        raise ExportError(
            f"The export's outputs differ from its model's by {largest:.2g} "
            f"of the largest. Expected at most {_TOLERANCE:g}. Nothing was "
            "left at the path; please report this with the model."
        )
    return {
        "examples": len(next(iter(images.values()))),
        "real": examples is not None,
        "largest_relative_difference": largest,
    }


def _check_images(served, examples, raw_pixels) -> dict[str, tf.Tensor]:
    inputs = _image_inputs(served)
    if examples is not None and len(inputs) == 1:
        image = examples.image[:_CHECKED]
        if not raw_pixels:
            image = scale_pixels(image)
        return {inputs[0].name: tf.constant(image)}
    rng = np.random.default_rng(0)

    def drawn(tensor):
        shape = (8, *(size or 8 for size in tensor.shape[1:]))
        dtype = _served_dtype(tensor, raw_pixels)
        if "int" in dtype:
            # Small numbers are indices in any table.
            high = 256 if dtype == "uint8" else 2
            return tf.constant(rng.integers(0, high, shape), dtype)
        return tf.constant(rng.uniform(-1, 1, shape), dtype)

    return {tensor.name: drawn(tensor) for tensor in inputs}


def _write_card(
    folder, source, *, models, accuracy, examples, options, checked
) -> None:
    """The model card, of numbers measured on the files in the folder."""
    is_run = isinstance(source, Run)
    model, shown, served = (models[k] for k in ("trained", "shown", "served"))
    card = {
        "version": 1,
        "model": model.name,
        "options": options,
        "run": _run_facts(source) if is_run else None,
        "data": {
            "name": examples.name,
            "classes": examples.classes,
            "noise_rate": _noise_rate(examples),
            "fingerprint": examples.fingerprint(),
        },
        "accuracy": accuracy,
        "size": {
            "parameters_before": model.count_params(),
            "parameters_after": served.count_params(),
            "saved_model_bytes": sum(
                file.stat().st_size
                for file in folder.rglob("*")
                if file.is_file()
            ),
        },
        "milliseconds_for_64": {
            "before": _milliseconds(shown, examples),
            "after": _milliseconds(served, examples),
        },
        "check": checked,
        "layers": (
            pruning.pruning_plan(surgery.with_inference(model, "drop"))
            if options["pruned"]
            else []
        ),
        "versions": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "python": platform.python_version(),
        },
    }
    storage.write_json(folder / CARD, card)
    storage.write_text(folder / "MODEL_CARD.md", card_text(card))


def _run_facts(run: Run) -> dict[str, Any]:
    parts = {
        "data": run.data,
        "model": run.model_config,
        "training": run.training,
    }
    facts = {
        name: configs.to_json(part) if part is not None else None
        for name, part in parts.items()
    }
    if facts["data"] is not None:
        # Where the data lay is nobody's business.
        del facts["data"]["data_dir"]
    return {"epoch": max(run.epochs, default=None), **facts}


def _noise_rate(examples: Examples) -> float:
    """The share of training labels that are not the true ones."""
    train = examples.train
    return float(np.mean(train.label != train.true_label))


def _accuracies(serve, model, examples, options) -> list[dict[str, Any]]:
    """Accuracy of each subset, as trained and as it is served."""
    before = "tied" if surgery.tied_layers(model) else "plain"
    as_trained = evaluation.evaluate(
        evaluation.inference_models(model)[before], examples
    )
    outputs = _served_outputs(serve, examples, options["raw_pixels"])
    as_served = evaluation.metrics_of_logits(outputs, examples)
    return [
        {
            "subset": old["subset"],
            "examples": old["count"],
            "before": old["accuracy"],
            "after": new["accuracy"],
            "true_label_before": old["true_accuracy"],
            "true_label_after": new["true_accuracy"],
        }
        for old, new in zip(as_trained.rows(), as_served.rows(), strict=True)
    ]


def _served_outputs(serve, examples, raw_pixels: bool) -> np.ndarray:
    """What the SavedModel gives: [N, classes]."""
    (name,) = serve.structured_input_signature[1]
    parts = []
    for start in range(0, len(examples), _CHECKED):
        image = examples.image[start : start + _CHECKED]
        if not raw_pixels:
            image = scale_pixels(image)
        found = serve(**{name: tf.constant(image)})
        parts.append(found["probabilities"].numpy())
    return np.concatenate(parts)


def _milliseconds(model: keras.Model, examples: Examples) -> float:
    """Median time of a batch of 64 on this machine."""
    predict = evaluation.make_predictor(model)
    rows = np.resize(np.arange(len(examples)), 64)
    image = tf.constant(scale_pixels(examples.image[rows]))
    ids = tf.zeros([64], tf.int64)
    predict(image, ids)
    times = []
    for _ in range(9):
        started = time.perf_counter()
        predict(image, ids).numpy()
        times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times))


def card_text(card: Mapping[str, Any]) -> str:
    """A model card as Markdown."""
    options, size = card["options"], card["size"]
    speed, data = card["milliseconds_for_64"], card["data"]
    behaviour = {
        "drop": "memorization units left out",
        "expected": "memorization units scaled by their probability",
        "plain": "as trained, without tied layers",
    }[options["inference"]]
    done = [behaviour]
    if options["pruned"]:
        done.append("pruned")
    if options["folded"]:
        done.append("BatchNorm folded")
    if options["recalibrated"]:
        done.append("BatchNorm statistics recomputed")
    accuracy = "\n".join(
        f"| {row['subset']} | {row['examples']} | {row['before']:.1%} | "
        f"{row['after']:.1%} | {row['true_label_after']:.1%} |"
        for row in card["accuracy"]
    )
    wrong = (
        f"{data['noise_rate']:.1%} of the training labels are known wrong."
        if data["noise_rate"]
        else "No training label is known to be wrong; how many are, is not."
    )
    versions = ", ".join(f"{k} {v}" for k, v in card["versions"].items())
    pixels = (
        "uint8 pixels"
        if options["raw_pixels"]
        else "float32 pixels in [-1, 1] (uint8 / 127.5 - 1)"
    )
    return f"""# {card["model"]}: {", ".join(done)}

Trained on {data["name"]} ({data["classes"]} classes). {wrong}
It takes {pixels}.

| subset | examples | accuracy as trained | as served | true label, served |
|---|---|---|---|---|
{accuracy}

Accuracy is of the labels trained on; of wrong labels, less is better.

- Parameters: {size["parameters_before"]:,} before,
  {size["parameters_after"]:,} after; {size["saved_model_bytes"]:,} bytes.
- A batch of 64: {speed["before"]:.2f} ms before, {speed["after"]:.2f} ms after,
  on the machine that exported.
- Checked against the network it came from on {card["check"]["examples"]}
  {"real" if card["check"]["real"] else "random"} examples: outputs differ by
  {card["check"]["largest_relative_difference"]:.1e} of the largest.
- Made with {versions}.

`{CARD}` holds all numbers, the data's fingerprint, and what pruning did to
each layer.
"""
