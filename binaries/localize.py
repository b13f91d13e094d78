"""Trains four networks on partly wrong labels and shows what each kept.

  python -m binaries.localize --dataset=digits --run_dir=runs/demo

takes about two minutes on 2 CPU cores. Trains the network without dropout,
with standard dropout, sparse, and example-tied; drops the memorization units
of the last; probes the first; ranks the labels; writes summary.json, figures
and a self-contained report.html into --run_dir. Run again, it reuses what is
finished.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from binaries import flags, gathering, output
from tfmemloc import configs, label_errors, storage
from tfmemloc.data import Examples, load
from tfmemloc.label_errors import find_label_errors
from tfmemloc.localization import localize, train_networks
from tfmemloc.probes.critical_units import choose_ids, find_critical_units
from tfmemloc.probes.gradient_accounting import account_gradients
from tfmemloc.probes.layer_retraining import (
    AUTHORS_TRAINING,
    retrain_layers,
)
from tfmemloc.probes.layer_rewinding import rewind_layers
from tfmemloc.results import (
    CriticalUnits,
    ExampleScores,
    Localization,
)
from tfmemloc.runs import Run
from tfmemloc.surgery import tied_layers

FLAGS = flags.FLAGS
ASKED = (*gathering.PROBES, "own_units")

flags.flags.DEFINE_bool(
    "recalibrate",
    False,
    "Also show the drop after BatchNorm statistics were recomputed with the "
    "memorization units off.",
)
flags.flags.DEFINE_list(
    "probes", list(ASKED), "What to ask of the networks; may be empty."
)
flags.flags.DEFINE_integer(
    "own_units_examples", 64, "Examples of each subset that own_units searches."
)
flags.flags.DEFINE_integer(
    "probe_epochs", 16, "Account gradients at so many epochs, evenly spread."
)


def main() -> None:
    """Trains, measures, probes, and writes summary, figures and report."""
    unknown = set(FLAGS.probes) - set(ASKED)
    if unknown:
        raise ValueError(
            f"--probes must be among {', '.join(ASKED)}. Received: "
            f"{', '.join(sorted(unknown))}."
        )
    directory = flags.prepare_directory("settings.json")
    data, model, training = (
        flags.data_config(),
        flags.model_config(),
        flags.train_config(),
    )
    settings = {
        "data": configs.to_json(data),
        "model": configs.to_json(model),
        "training": configs.to_json(training),
        "recalibrate": FLAGS.recalibrate,
        "probe_epochs": FLAGS.probe_epochs,
        "own_units_examples": FLAGS.own_units_examples,
    }
    examples = load(data, download=FLAGS.download)
    with storage.lock_directory(directory):
        _keep_settings(directory / "settings.json", settings)
        runs = train_networks(
            directory,
            examples,
            data=data,
            model=model,
            training=training,
            strategy=flags.strategy(),
            tensorboard=FLAGS.tensorboard,
        )
        result = output.reuse(
            directory / "localization",
            Localization,
            lambda: localize(runs, examples, recalibrate=FLAGS.recalibrate),
        )
        storage.write_json(
            directory / "summary.json",
            {
                "dataset": data.dataset,
                "config": settings,
                "facts": output.facts("binaries.localize"),
                "rows": result.rows(),
            },
        )
        _probe(directory, runs, examples)
        suspects = _suspects(directory, runs["example_tied"], examples)
    sections = gathering.sections_of(directory)
    page = output.write_report(
        directory,
        f"Where is the memory? {data.dataset}",
        sections,
        gathering.facts_of(directory),
    )
    for section in sections[1:]:
        output.print_section(section)
    output.print_section(sections[0])
    print(f"suspected labels: {suspects}, {directory / label_errors.PAGE}")
    print(f"report: {page}")


def _suspects(directory: pathlib.Path, run: Run, examples: Examples) -> int:
    """Ranks the labels; the number of suspects."""
    scores = output.reuse(
        directory / "example_scores",
        ExampleScores,
        lambda: find_label_errors(
            run, examples, directory, gradient_scores=False
        ),
    )
    return len(scores.suspects())


def _keep_settings(path: pathlib.Path, settings: dict) -> None:
    """Refuses to mix results of different settings in one folder."""
    if not path.exists():
        storage.write_json(path, settings)
        return
    there = storage.read_json(path)
    wrong = []
    for part in sorted(settings.keys() | there.keys()):
        old, new = (_ours(side.get(part)) for side in (there, settings))
        wrong += [
            f"{part}.{name}: {old.get(name)!r} there, {new.get(name)!r} here"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name) and name != "data_dir"
        ]
    if wrong:
        raise ValueError(
            f"{path.parent} holds results of other settings: "
            f"{'; '.join(wrong)}. Use the settings of then, another "
            "--run_dir, or start over with --fresh."
        )


def _ours(part) -> dict:
    """A part of the settings as a dict."""
    return part if isinstance(part, dict) else {"value": part}


def _probe(
    directory: pathlib.Path, runs: Mapping[str, Run], examples: Examples
) -> None:
    """Asks what was asked for and is not answered yet."""
    run = runs["standard"]
    makers = {
        "gradient_accounting": lambda: account_gradients(
            run, examples, epochs=_spread(run.epochs, FLAGS.probe_epochs)
        ),
        "layer_rewinding": lambda: rewind_layers(run, examples),
        "layer_retraining": lambda: retrain_layers(
            run,
            examples,
            training=dataclasses.replace(
                AUTHORS_TRAINING, batch_size=run.training.batch_size
            ),
            train_on=examples.ordinary,
            directory=directory / "retraining",
        ),
        "critical_units": lambda: find_critical_units(
            run, examples, directory=directory / "search"
        ),
    }
    has_memorized = examples.memorized is not None
    for name, make in makers.items():
        # Without wrong labels there is no memory to rewind or retrain.
        if name in FLAGS.probes and (
            has_memorized or name == "gradient_accounting"
        ):
            output.reuse(directory / name, gathering.PROBES[name][0], make)
    if "own_units" in FLAGS.probes and has_memorized:
        _own_units(directory, runs, examples)


def _own_units(directory, runs, examples) -> None:
    """Do the memorization units hold the memory, beside plain dropout's."""
    tied_model = runs["example_tied"].model()
    places = [layer.name for layer in tied_layers(tied_model)]
    ids = choose_ids(examples, count=FLAGS.own_units_examples)
    for name in gathering.OWN_UNITS:

        def search(name=name):
            return find_critical_units(
                runs[name],
                examples,
                ids=ids,
                layers=places,
                inference="tied" if name == "example_tied" else None,
                masks_of=tied_model,
                directory=directory / f"search_{name}",
            )

        output.reuse(directory / f"own_units_{name}", CriticalUnits, search)


def _spread(epochs: tuple[int, ...], count: int) -> tuple[int, ...]:
    """At most `count` of the epochs, first and last among them."""
    if len(epochs) <= count:
        return epochs
    step = (len(epochs) - 1) / (count - 1)
    return tuple(epochs[round(i * step)] for i in range(count))


if __name__ == "__main__":
    flags.define_data_flags()
    flags.define_model_flags(with_dropout=False)
    flags.define_training_flags()
    flags.define_run_flags("runs/localize")
    flags.run(main)
