"""Trains four networks on partly wrong labels and shows what each kept.

  python -m binaries.localize --dataset=digits --run_dir=runs/demo

takes about two minutes on 2 CPU cores. Trains the same network four times:
without dropout, with standard, with sparse and with example-tied dropout. Then
it drops the memorization units of the last network, probes the first, ranks the
labels, and writes summary.json, figures and a self-contained report.html into
--run_dir. A second run reuses the parts that are finished.

  python -m binaries.localize --dataset=stdlib --run_dir=runs/text

does the same with a language model and secrets planted in its text: it trains a
standard and a tied decoder on Python's own modules, drops the memory of one,
edits the other, and asks each for the secrets.
"""

import pathlib
from collections.abc import Mapping

from . import (
    config_flags,
    flags,
    gathering,
    localizing_text,
    output,
    protocol,
    removing,
)

from tfmemloc import (
    AccountingConfig,
    ComparisonConfig,
    CurvatureConfig,
    ExtractionConfig,
    OwnUnitsConfig,
    RetrainConfig,
    RewindConfig,
    Run,
    ScoreConfig,
    SearchConfig,
    account_gradients,
    compare_networks,
    configs,
    find_critical_units,
    find_label_errors,
    find_own_units,
    load,
    retrain_layers,
    rewind_layers,
    storage,
    train_networks,
)
from tfmemloc.data import Examples
from tfmemloc.data.examples import NEXT_TOKEN
from tfmemloc.scores.suspects import PAGE

FLAGS = flags.FLAGS
PROBES = (
    "gradient_accounting",
    "layer_rewinding",
    "layer_retraining",
    "critical_units",
    "own_units",
)
# The standard network after the removal by curvature.
EDITED = "standard_edited"
# Networks whose critical units are compared with the tied network's masks.
_OWN_UNITS = ("example_tied", "standard_dropout")

protocol.define(*protocol.PAPER)
config_flags.define(ComparisonConfig)
config_flags.define(ExtractionConfig, skip=("seed",))
flags.flags.DEFINE_bool(
    "controls",
    False,
    "Of text: also train networks with standard and sparse dropout, and one "
    "that sees what repeats once.",
)
flags.flags.DEFINE_list(
    "probes", list(PROBES), "Which probes to run; may be empty."
)
flags.flags.DEFINE_integer(
    "own_units_examples", 64, "Examples of each subset that own_units searches."
)
flags.flags.DEFINE_integer(
    "probe_epochs", 16, "Account gradients at this many evenly spread epochs."
)


def main() -> None:
    """Trains, measures, probes, and writes summary, figures and report."""
    unknown = set(FLAGS.probes) - set(PROBES)
    if unknown:
        raise ValueError(
            f"--probes must be among {', '.join(PROBES)}. Received: "
            f"{', '.join(sorted(unknown))}."
        )
    directory = flags.prepare_directory("settings.json")
    data = config_flags.data_config()
    model = protocol.applied(config_flags.model_config("example_tied"))
    training = config_flags.train_config()
    comparison = config_flags.read(ComparisonConfig)
    settings = {
        "data": configs.to_json(data),
        "model": configs.to_json(model),
        "training": configs.to_json(training),
        **configs.to_json(comparison),
        "probe_epochs": FLAGS.probe_epochs,
        "own_units_examples": FLAGS.own_units_examples,
        "protocol": FLAGS.protocol,
    }
    examples = load(data, download=FLAGS.download)
    with storage.lock_directory(directory):
        _keep_settings(directory / "settings.json", settings)
        if examples.task == NEXT_TOKEN:
            localizing_text.localize_text(
                directory,
                examples,
                data,
                model,
                training,
                controls=FLAGS.controls,
            )
            return
        runs = train_networks(
            directory,
            examples,
            data=data,
            model=model,
            training=training,
            strategy=flags.strategy(),
            tensorboard=FLAGS.tensorboard,
            on_epoch_end=flags.after_each_epoch(),
        )
        for run in runs.values():
            flags.show_the_end(run)
        runs |= {EDITED: _edited(directory / EDITED, runs, examples, data)}
        result = output.reuse(
            gathering.main_path(directory),
            lambda: compare_networks(runs, examples, comparison),
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
    for section in sections[2:]:
        output.print_section(section)
    output.print_section(sections[0])
    print(f"suspected labels: {suspects}, {directory / PAGE}")
    print(f"report: {page}")


def _edited(
    out: pathlib.Path, runs: Mapping[str, Run], examples: Examples, data
) -> Run:
    """The standard network with the memory taken out of it, as a run."""
    settings, remove = removing.by_curvature(
        runs["standard"],
        examples,
        CurvatureConfig(seed=data.noise_seed),
        out / removing.WORK,
    )
    with storage.lock_directory(out):
        result = removing.keep_removal(
            out,
            runs["standard"],
            examples,
            remove,
            settings=settings,
            data=data,
        )
    result.save(out.parent / removing.RESULT)
    return Run.open(out)


def _suspects(directory: pathlib.Path, run: Run, examples: Examples) -> int:
    """Ranks the labels; returns the number of suspects."""
    scores = output.reuse(
        directory / "example_scores",
        lambda: find_label_errors(run, examples, directory, ScoreConfig()),
    )
    return int(scores.is_suspect.sum())


def _keep_settings(path: pathlib.Path, settings: dict) -> None:
    """Refuses to mix results of different settings in one folder."""
    if not path.exists():
        storage.write_json(path, settings)
        return
    there = _completed(storage.read_json(path))
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
            f"{'; '.join(wrong)}. Use the original settings, another "
            "--run_dir, or start over with --fresh."
        )


def _completed(settings: dict) -> dict:
    """Settings of an older version, with the fields that are new since."""
    classes = {
        "data": configs.DataConfig,
        "model": configs.ModelConfig,
        "training": configs.TrainConfig,
    }
    return {"protocol": "ours", **settings} | {
        name: configs.to_json(configs.from_json(kind, settings[name]))
        for name, kind in classes.items()
        if name in settings
    }


def _ours(part) -> dict:
    """A part of the settings as a dict."""
    return part if isinstance(part, dict) else {"value": part}


def _probe(
    directory: pathlib.Path, runs: Mapping[str, Run], examples: Examples
) -> None:
    """Runs the requested probes that have no result yet."""
    run = runs["standard"]
    makers = {
        "gradient_accounting": lambda: account_gradients(
            run,
            examples,
            AccountingConfig(epochs=_spread(run.epochs, FLAGS.probe_epochs)),
        ),
        "layer_rewinding": lambda: rewind_layers(
            run, examples, protocol.applied(RewindConfig())
        ),
        "layer_retraining": lambda: retrain_layers(
            run,
            examples,
            protocol.applied(RetrainConfig()),
            directory=directory / "retraining",
        ),
        "critical_units": lambda: find_critical_units(
            run,
            examples,
            protocol.applied(SearchConfig()),
            directory=directory / "search",
        ),
    }
    has_memorized = examples.memorized is not None
    for name, make in makers.items():
        # Without wrong labels there is no memory to rewind or retrain.
        if name in FLAGS.probes and (
            has_memorized or name == "gradient_accounting"
        ):
            output.reuse(directory / name, make)
    if "own_units" in FLAGS.probes and has_memorized:
        for name in _OWN_UNITS:
            output.reuse(
                directory / f"own_units_{name}",
                lambda name=name: _own_units(directory, runs, examples, name),
            )


def _own_units(directory, runs, examples, name: str):
    """Tests, in one network, whether an example's own units hold its memory."""
    return find_own_units(
        runs[name],
        examples,
        OwnUnitsConfig(
            count=FLAGS.own_units_examples,
            inference="tied" if name == "example_tied" else None,
        ),
        tied=runs["example_tied"].model(),
        network=name,
        directory=directory / f"search_{name}",
    )


def _spread(epochs: tuple[int, ...], count: int) -> tuple[int, ...]:
    """At most `count` of the epochs, first and last among them."""
    if len(epochs) <= count:
        return epochs
    step = (len(epochs) - 1) / (count - 1)
    return tuple(epochs[round(i * step)] for i in range(count))


if __name__ == "__main__":
    config_flags.define_run_configs(with_dropout=False)
    flags.define_training_options()
    flags.define_run_flags("runs/localize")
    flags.run(main)
