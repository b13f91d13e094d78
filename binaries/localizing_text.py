"""What `binaries.localize` does with text: secrets, and who still says them."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

from . import config_flags, flags, output, removing

import keras

from tfmemloc import (
    CurvatureConfig,
    DataConfig,
    Examples,
    ExtractionConfig,
    ModelConfig,
    RecitationConfig,
    Run,
    TrainConfig,
    audit_extraction,
    audit_recitation,
    configs,
    report,
    storage,
    train,
)
from tfmemloc.audits.recitation import wrong_sequences
from tfmemloc.data import tinymem

EXTRACTION, RECITATION = "extraction", "recitation"
TIED, EDITED = "example_tied", "standard_edited"
# Network -> its dropout; the last two are controls.
_DROPOUTS = {
    "standard": "none",
    TIED: "example_tied",
    "standard_dropout": "standard",
    "sparse": "sparse",
}
_MAIN = ("standard", TIED)


def localize_text(
    directory: pathlib.Path,
    examples: Examples,
    data: DataConfig,
    model: ModelConfig,
    training: TrainConfig,
    *,
    controls: bool = False,
) -> None:
    """Trains, drops, edits, asks for the secrets, and writes it all down.

    Args:
        directory: locked by the caller.
        examples: windows of text with secrets.
        data: where they come from.
        model: the tied network; the standard one is as wide as it is served.
        training: of the tied network. The others learn by cross-entropy.
        controls: also train networks with standard and with sparse dropout,
            and one that sees each repeated window and each secret once.
    """
    name, ask = _audit(examples, data)
    runs: dict[str, Run | keras.Model] = {
        kind: _trained(directory / kind, kind, examples, data, model, training)
        for kind in (_DROPOUTS if controls else _MAIN)
    }
    if controls:
        # A model, as a run knows that it was trained on fewer examples.
        runs["deduplicated"] = _trained(
            directory / "deduplicated",
            "standard",
            examples.take(_first_of_each(examples)),
            None,
            model,
            training,
        ).model()
    runs[EDITED] = _edited(directory / EDITED, runs["standard"], examples, data)
    result = output.reuse(directory / name, lambda: ask(runs, examples))
    facts = output.facts("binaries.localize")
    storage.write_json(
        directory / "summary.json",
        {
            "dataset": data.dataset,
            "config": {
                "data": configs.to_json(data),
                "model": configs.to_json(model),
                "training": configs.to_json(training),
            },
            "facts": facts,
            "rows": result.rows(),
        },
    )
    sections = [report.section_of(result)]
    if name == EXTRACTION:
        sections.append(_said(result))
    removed = removing.Result.load(directory / EDITED / removing.RESULT)
    sections.append(report.section_of(removed))
    page = output.write_report(
        directory, f"What was learned by heart? {data.dataset}", sections, facts
    )
    output.print_section(sections[0])
    print(f"report: {page}")


def _audit(examples: Examples, data: DataConfig):
    """(name, how the networks are asked what they know by heart).

    Of arithmetic that is the wrong sequences, of text its secrets.

    Raises:
        ValueError: the settings do not fit the sequences, before any training.
    """
    if data.dataset != tinymem.NAME:
        settings = config_flags.read(ExtractionConfig, skip=("seed",))
        return EXTRACTION, functools.partial(audit_extraction, config=settings)
    shown = min(RecitationConfig().prompt, data.context // 3)
    settings = RecitationConfig(shown, shown)
    wrong_sequences(examples, settings)
    return RECITATION, functools.partial(audit_recitation, config=settings)


def _trained(path, name, examples, data, model, training) -> Run:
    """One of the networks; only the tied one has memory, and its rule."""
    if name != TIED:
        training = dataclasses.replace(training, rule="cross_entropy")
    run = train(
        path,
        data=data,
        examples=examples,
        model=dataclasses.replace(model, dropout=_DROPOUTS[name]),
        training=training,
        strategy=flags.strategy(),
        tensorboard=flags.FLAGS.tensorboard,
        on_epoch_end=flags.after_each_epoch(),
    )
    return flags.show_the_end(run)


def _first_of_each(examples: Examples):
    """Indices of one row of each tie id, and of all that is not trained on."""
    seen, kept = set(), []
    for place, tie in enumerate(examples.tie_id.tolist()):
        if not examples.is_trained_on[place] or tie not in seen:
            kept.append(place)
            seen.add(tie)
    return kept


def _edited(out, run: Run, examples: Examples, data: DataConfig) -> Run:
    """The standard network with memory taken out of it, as a run."""
    settings, remove = removing.by_curvature(
        run, examples, CurvatureConfig(refit_epochs=0), out / removing.WORK
    )
    with storage.lock_directory(out):
        removing.keep_removal(
            out, run, examples, remove, settings=settings, data=data
        )
    return Run.open(out)


def _said(result) -> report.Section:
    """The secrets that come often, and what each network says instead."""
    return report.Section(
        "What the networks say",
        "After the words before each secret that comes often, each network "
        "continues greedily with as many characters as the secret has.",
        result.said(),
    )
