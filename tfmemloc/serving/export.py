"""Serving what is left: a network without its memory, as a SavedModel.

The folder that `export_saved_model` writes holds

    saved_model.pb, variables/   loads wherever TensorFlow is
    model.keras, .tflite, .onnx  by option
    model_card.json, MODEL_CARD.md
                                 what was exported, and how it measures

It is written under a temporary name, the SavedModel is loaded again, compared
with the network that it came from, and only then renamed: one that exists was
checked. Files of other formats are as their converters made them.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import keras
import tensorflow as tf

from tfmemloc import evaluation, graph
from tfmemloc.audits.membership import Membership
from tfmemloc.checks import check_choice
from tfmemloc.data.examples import Examples, input_kinds
from tfmemloc.runs import Run
from tfmemloc.serving.card import accuracies, write_card
from tfmemloc.serving.endpoint import FORMATS, check_export, write_files
from tfmemloc.serving.folder import beside, check_free
from tfmemloc.serving.folding import fold_batch_norm
from tfmemloc.serving.pruning import prune_memorization

INFERENCES = ("drop", "expected", "plain")


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
    audit: Membership | None = None,
    overwrite: bool = False,
) -> pathlib.Path:
    """Exports a network for serving, checked against where it came from.

    The default signature takes the model's inputs without the example ids, for
    any number of examples, and gives `logits` and `probabilities` (only the
    latter if the model ends in a softmax). A model with several outputs gives
    them under their names.

    Args:
        source: a run, or any functional model.
        path: of the new folder.
        examples: real examples, for the check and the model card; None loads
            those of the run.
        inference: `drop` leaves the memorization units out, `expected` scales
            them by p_mem; `plain` exports a model without tied layers.
        prune: slice the memorization units out of the weights (see
            `prune_memorization`); None does so if they are dropped.
        fold: fold each BatchNorm into the layer before it (see
            `fold_batch_norm`).
        recalibrate: recompute BatchNorm statistics on the training examples
            first (see `recalibrate_batch_norm`).
        raw_pixels: take uint8 pixels and scale them as in training.
        with_memorization: add the signature `with_memorization`, in expected
            behaviour. The memorization units are then in the file.
        formats: further files: `keras`, `litert`, `onnx`.
        card: write the model card; None does so if the source is a run.
        audit: for the card, what attackers find in networks that were made in
            the same way (see `audit_membership`).
        overwrite: replace an export that exists at `path`.

    Returns:
        `path`.

    Raises:
        ValueError: an option does not fit the model, or another option.
        FileExistsError: `path` exists, and is not an export to be replaced.
        ExportError: the loaded export differs from its model.
        OSError: the disk is full, the folder is read-only, ...; nothing is
            left behind then, and what was at `path` is still there.

    Example:
        >>> run = Run.open("runs/demo/example_tied")
        >>> path = export_saved_model(run, "served")
        >>> served = tf.saved_model.load(path).signatures["serving_default"]
        >>> served(image=tf.constant(x[:3]))["probabilities"].shape
        TensorShape([3, 10])
    """
    path = pathlib.Path(path)
    check_choice("inference", inference, INFERENCES)
    if isinstance(formats, str):
        raise ValueError(
            "`formats` expected a list of names, such as ['onnx']. Received: "
            f"{formats!r}."
        )
    for name in formats:
        check_choice("formats", name, FORMATS)
    check_free(path, overwrite)
    is_run = isinstance(source, Run)
    model = source.model() if is_run else source
    prune = inference == "drop" if prune is None else prune
    card = is_run if card is None else card
    if examples is None and is_run and source.data is not None:
        examples = source.examples()
    _check_model(model, inference)
    _check_options(inference, prune, recalibrate, raw_pixels, card, examples)
    if audit is not None and not card:
        raise ValueError(
            "An audit is written into the model card. Expected card=True with "
            "it. Received: card=False, or a model and card=None."
        )
    shown = _behaviour(model, inference)
    if recalibrate:
        shown = evaluation.recalibrate_batch_norm(shown, examples.train)
    served = prune_memorization(shown) if prune else shown
    if fold:
        served = fold_batch_norm(served)
    with beside(path, overwrite) as folder:
        write_files(
            folder, served, model, raw_pixels, with_memorization, formats
        )
        loaded = tf.saved_model.load(str(folder))
        serve = loaded.signatures["serving_default"]
        checked = check_export(serve, served, shown, examples, raw_pixels)
        if with_memorization:
            memory = graph.with_inference(model, "expected")
            check_export(
                loaded.signatures["with_memorization"],
                memory,
                memory,
                examples,
                raw_pixels,
            )
        if card:
            options = {
                "inference": inference,
                "pruned": prune,
                "folded": fold,
                "recalibrated": recalibrate,
                "raw_pixels": raw_pixels,
                "with_memorization": with_memorization,
            }
            write_card(
                folder,
                source,
                models={"trained": model, "shown": shown, "served": served},
                accuracy=accuracies(serve, served, model, examples, raw_pixels),
                examples=examples,
                options=options,
                checked=checked,
                audit=audit,
            )
    return path


def _check_model(model: keras.Model, inference: str) -> None:
    if not graph.is_functional(model):
        raise ValueError(
            f"Model '{model.name}' is a subclassed or unbuilt "
            f"{type(model).__name__}, whose graph is not known. Expected a "
            "built functional or Sequential model; a subclassed one can be "
            "exported by its own `model.export(path)`."
        )
    has_ties = bool(graph.tied_layers(model))
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
    if raw_pixels and examples is not None:
        kinds = input_kinds(examples)
        found = {str(examples.inputs[name].dtype) for name in kinds}
        if set(kinds.values()) != {"picture"} or found != {"uint8"}:
            raise ValueError(
                "raw_pixels=True takes uint8 pixels, but the examples have "
                f"{', '.join(sorted(found))} inputs, which were not scaled in "
                "training. Expected raw_pixels=False."
            )


def _behaviour(model: keras.Model, inference: str) -> keras.Model:
    if inference == "plain":
        return model
    return graph.with_inference(model, inference)
