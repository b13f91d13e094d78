"""Takes the memory out of a network that is already trained.

  python -m binaries.remove --run_dir=runs/demo/standard

takes about half a minute on 2 CPU cores for the digits demo: wrong labels that
are still predicted fall from 100 % to below 10 %, and the accuracy on test
examples rises. No example ids and no second training are needed. The network
may be of any origin:

  python -m binaries.remove --model=my.keras --dataset=mine.npz \\
    --out_dir=forgotten

How much of which layers is cut is chosen on the given labels of examples that
the network was not trained on: `binaries.train --heldout=0.1` keeps some aside,
and in an .npz file they are those whose `subset` is `heldout`. Without any, a
default strength is taken.

Writes into --out_dir (default: the folder `removed` in the run's) the new
network as a run that all programs take and as model.keras; summary.json,
removal.npz and .json, figures, report.html; suspects.csv and suspects.html,
the labels that the network no longer believes. The report shows every edit that
was tried; for another one of them, name --keep, --layers and a new --out_dir.
"""

import importlib
import pathlib

import keras

from binaries import config_flags, flags, output, removing
from tfmemloc import (
    CurvatureConfig,
    DataConfig,
    Run,
    configs,
    load,
    report,
    storage,
)
from tfmemloc.data import Examples
from tfmemloc.scores.suspects import PAGE

FLAGS = flags.FLAGS
flags.flags.DEFINE_string("run_dir", None, flags.RUN_HELP)
flags.flags.DEFINE_string(
    "model",
    None,
    "A .keras file of any functional model, in the place of --run_dir. "
    "--dataset and the other flags of the data say what it was trained on.",
)
flags.flags.DEFINE_list(
    "import_modules",
    [],
    "Python modules that register the layers of --model that are your own.",
)
flags.flags.DEFINE_string(
    "out_dir", None, "Default: the folder `removed` in that of --run_dir."
)
flags.flags.DEFINE_string(
    "work_dir",
    None,
    "Keeps factors and refits: a killed job goes on, and a job with another "
    "--keep needs no other pass over the data. Default: the folder `work` in "
    "--out_dir.",
)
config_flags.define(CurvatureConfig)
# A model of unknown training has no examples that the loader could keep aside.
_NO_FLAGS = (
    "heldout",
    "heldout_seed",
    "subset_ratio",
    "subset_seed",
    "score_file",
    "score_threshold",
)
config_flags.define(
    DataConfig,
    skip=_NO_FLAGS,
    unset=True,
    notes={"noise_rate": "0: labels stay as they are", "dataset": "digits"},
)
flags.define_download()


def main() -> None:
    """Edits, measures, writes, prints."""
    out = _out_directory()
    source, examples, data = _source()
    with storage.lock_directory(out):
        result = removing.edit_network(
            out,
            source,
            examples,
            config_flags.read(CurvatureConfig),
            data=data,
            work=FLAGS.work_dir,
        )
        facts = output.facts("binaries.remove")
        storage.write_json(
            out / "summary.json",
            {
                "dataset": examples.name,
                "facts": facts,
                "rows": result.rows(),
                "curve": result.curve_rows(),
                "layers": result.layer_rows(),
            },
        )
        suspects = removing.rank_labels(out, examples)
    section = report.section_of(result)
    page = output.write_report(
        out, f"What was taken out? {examples.name}", [section], facts
    )
    output.print_section(section)
    if suspects is not None:
        print(f"suspected labels: {suspects}, {out / PAGE}")
    print(f"network: {out / removing.MODEL}")
    print(f"report: {page}")


def _out_directory() -> pathlib.Path:
    if (FLAGS.run_dir is None) == (FLAGS.model is None):
        raise ValueError(
            "Expected --run_dir, or --model with --dataset. Received: "
            + ("both." if FLAGS.run_dir else "neither.")
        )
    if FLAGS.out_dir:
        return pathlib.Path(FLAGS.out_dir)
    if FLAGS.model:
        raise ValueError("--model expected an --out_dir. Received: none.")
    return pathlib.Path(FLAGS.run_dir) / "removed"


def _source() -> tuple[Run | keras.Model, Examples, DataConfig]:
    """The network, what it was trained on, and where that comes from."""
    if FLAGS.model is not None:
        model = _loaded(FLAGS.model)
        data = config_flags.read(DataConfig, skip=_NO_FLAGS, noise_rate=0.0)
        return model, load(data, download=FLAGS.download), data
    given = [
        f"--{name}"
        for name in configs.hints(DataConfig)
        if name not in _NO_FLAGS and FLAGS[name].value is not None
    ]
    if given:
        raise ValueError(
            "A run knows its own data. Expected no flags of data with "
            f"--run_dir. Received: {', '.join(given)}."
        )
    run = Run.open(FLAGS.run_dir)
    return run, run.examples(download=FLAGS.download), run.data


def _loaded(path: str) -> keras.Model:
    """The model of a .keras file, without running code that is in it."""
    for name in FLAGS.import_modules:
        importlib.import_module(name)
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f"--model: there is no file {path}.")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path} could not be loaded: {reason} Code inside of a file is "
            "never run. If the model has layers of your own, register them "
            "with keras.saving.register_keras_serializable in a module, and "
            "name it: --import_modules=my_layers. A model with lambdas: load "
            "it in Python and call tfmemloc.remove_memory."
        ) from error


if __name__ == "__main__":
    flags.run(main)
