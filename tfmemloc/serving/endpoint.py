"""The signatures of a SavedModel, files in further formats, and their check."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph
from tfmemloc.data import rows as rows_
from tfmemloc.data.chunks import chunk_at
from tfmemloc.data.examples import Examples
from tfmemloc.data.kinds import scale_pixels
from tfmemloc.graph.inputs import arranged, input_names
from tfmemloc.models.generation import Continuation, is_decoder

FORMATS = ("keras", "litert", "onnx")


class ExportError(RuntimeError):
    """The outputs of an export differ from those of its model."""


_FILES = {
    "keras": "model.keras",
    "litert": "model.tflite",
    "onnx": "model.onnx",
}

# Graph optimizations reorder sums; measured: 2e-6 of the largest output in
# float32, 0.1 and 0.2 of the distance between two numbers in half precision.
_TOLERANCE = 1e-4
_HALF_TOLERANCES = {"float16": 4 * 2**-10, "bfloat16": 4 * 2**-7}

# How much more than its inputs' rounding the export's own may change.
_TIMES_ROUNDING, _ROUNDING = 20, 2**-22

CHECKED = 256


def write_files(folder, served, model, raw_pixels, with_memorization, formats):
    """The SavedModel, and the files in further formats."""
    archive = keras.export.ExportArchive()
    archive.track(served)
    _add_endpoint(archive, "serve", served, raw_pixels)
    if with_memorization:
        remembering = graph.with_inference(model, "expected")
        archive.track(remembering)
        _add_endpoint(archive, "with_memorization", remembering, raw_pixels)
    if is_decoder(served):
        archive.add_endpoint(
            name="generate",
            fn=Continuation(served, 1).generate,
            input_signature=[
                tf.TensorSpec([None, None], tf.int64, name="tokens"),
                tf.TensorSpec([], tf.int32, name="count"),
            ],
        )
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


def _given_inputs(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """The inputs that a caller gives, by name: all but the ids."""
    tensors = keras.tree.flatten(graph.inputs_of(model))
    return {
        name: tensor
        for name, tensor in zip(input_names(model), tensors, strict=True)
        if name != graph.IDS
    }


def examples_as_given(
    model: keras.Model, examples: Examples, places: np.ndarray, raw: bool
) -> dict[str, tf.Tensor]:
    """Examples as a caller of the endpoint gives them.

    Args:
        model: that is served.
        examples: any.
        places: which of them.
        raw: pictures are given as uint8 pixels.

    Returns:
        Name of the input -> [B, ...].
    """
    fed = chunk_at(examples, places).inputs
    values = {
        name: rows_.read(rows, places)
        if raw and rows.dtype == np.uint8
        else fed[name]
        for name, rows in examples.inputs.items()
    }
    wanted = _given_inputs(model)
    if len(wanted) == len(values) == 1:
        values = dict(zip(wanted, values.values(), strict=True))
    missing = sorted(set(wanted) - set(values))
    if missing:
        raise ValueError(
            f"Model '{model.name}' has the inputs {', '.join(wanted)}. "
            f"Expected examples with all of them. Received: "
            f"{', '.join(values)}; without {', '.join(missing)}."
        )
    return {
        name: tf.cast(values[name], _served_dtype(tensor, raw))
        for name, tensor in wanted.items()
    }


def _add_endpoint(archive, name, model, raw_pixels) -> None:
    signature = [
        tf.TensorSpec(
            [None, *tensor.shape[1:]],
            _served_dtype(tensor, raw_pixels),
            name=given,
        )
        for given, tensor in _given_inputs(model).items()
    ]
    archive.add_endpoint(
        name=name, fn=_endpoint(model), input_signature=signature
    )


def _served_dtype(tensor, raw_pixels: bool) -> str:
    """The dtype that a caller gives; only images are given as raw pixels."""
    is_image = len(tensor.shape) == 4 and "float" in tensor.dtype
    return "uint8" if raw_pixels and is_image else tensor.dtype


def _endpoint(model):
    wanted = _given_inputs(model)
    ends_in_softmax = graph.ends_in_softmax(model)

    def serve(*values):
        given = {
            name: _as_input(value, wanted[name].dtype)
            for name, value in zip(wanted, values, strict=True)
        }
        # Ids are read by no layer in this behaviour, but may be an input.
        given[graph.IDS] = tf.zeros([tf.shape(values[0])[0]], tf.int64)
        outputs = model(arranged(model, given), training=False)
        return _named_outputs(outputs, ends_in_softmax)

    return serve


def _as_input(given, dtype):
    if given.dtype == tf.uint8 and dtype != "uint8":
        return tf.cast(scale_pixels(given), dtype)
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


def check_export(serve, served, shown, examples, raw_pixels) -> dict:
    """Compares the loaded export with the network it came from."""
    given = _checked_inputs(served, examples, raw_pixels)
    found = serve(**given)

    def asked(inputs):
        return _endpoint(shown)(*(inputs[n] for n in _given_inputs(shown)))

    wanted = asked(given)
    largest = _largest_difference(found, wanted)
    allowed = _tolerance(shown)
    if not largest <= allowed:
        # Deep networks may make rounding large, above all of random numbers,
        # which are nothing like what BatchNorm's statistics are of.
        rounded = _largest_difference(asked(_rounded(given)), wanted)
        allowed = max(allowed, _TIMES_ROUNDING * rounded)
    if not largest <= allowed:
        advice = "; please report this with the model"
        if examples is None:
            advice = (
                ". It was asked about random numbers: pass `examples` that it "
                "is made for; if it differs on these, please report it"
            )
        raise ExportError(
            f"The export's outputs differ from its model's by {largest:.2g} "
            f"of the largest. Expected at most {allowed:.2g}. Nothing was "
            f"left at the path{advice}."
        )
    return {
        "examples": len(next(iter(given.values()))),
        "real": examples is not None,
        "largest_relative_difference": largest,
    }


def _largest_difference(found, wanted) -> float:
    """Of the outputs by name, relative to the largest of each."""
    largest = 0.0
    for name, expected in wanted.items():
        scale = max(1.0, float(tf.reduce_max(tf.abs(expected))))
        difference = float(tf.reduce_max(tf.abs(found[name] - expected)))
        # Unlike `max`, it keeps what is no number.
        largest = float(np.maximum(largest, difference / scale))
    return largest


def _rounded(given: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Inputs whose floats are rounded up or down, as is drawn."""
    rng = np.random.default_rng(0)

    def rounded(value):
        signs = tf.constant(rng.choice([-1, 1], value.shape), value.dtype)
        return value * (1 + _ROUNDING * signs)

    return {
        name: rounded(value) if value.dtype.is_floating else value
        for name, value in given.items()
    }


def _tolerance(model: keras.Model) -> float:
    """How far outputs may differ, by the coarsest type a layer computes in."""
    return max(
        _HALF_TOLERANCES.get(kind, _TOLERANCE)
        for kind in {"float32", *graph.compute_dtypes(model)}
    )


def _checked_inputs(served, examples, raw_pixels) -> dict[str, tf.Tensor]:
    """What the check feeds: real examples, or else random numbers."""
    if examples is not None:
        places = np.arange(min(CHECKED, len(examples)))
        return examples_as_given(served, examples, places, raw_pixels)
    rng = np.random.default_rng(0)

    def drawn(tensor):
        shape = (8, *(size or 8 for size in tensor.shape[1:]))
        dtype = _served_dtype(tensor, raw_pixels)
        if "int" in dtype:
            # Small numbers are indices in any table.
            high = 256 if dtype == "uint8" else 2
            return tf.constant(rng.integers(0, high, shape), dtype)
        return tf.constant(rng.uniform(-1, 1, shape), dtype)

    return {
        name: drawn(tensor) for name, tensor in _given_inputs(served).items()
    }
