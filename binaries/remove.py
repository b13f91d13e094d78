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
the labels that the network no longer believes. The folder `work` keeps factors
and refits: a killed job goes on, and another --keep needs no other pass.
"""

import importlib
import pathlib

import keras

from binaries import config_flags, flags, output
from tfmemloc import (
    CurvatureConfig,
    DataConfig,
    Run,
    configs,
    find_label_errors,
    load,
    predict_logits,
    remove_memory,
    report,
    scores_of_logits,
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

RESULT = "removal"


def main() -> None:
    """Edits, measures, writes, prints."""
    out = _out_directory()
    source, examples, run = _source()
    config = config_flags.read(CurvatureConfig)
    with storage.lock_directory(out):
        _refuse_foreign(out)
        edited, result = remove_memory(
            source,
            examples,
            config,
            directory=out / "work",
            progress=True,
        )
        original = source.model() if run else source
        _write_run(out, run, original, edited, examples)
        result.save(out / RESULT)
        storage.write_json(
            out / "summary.json",
            {
                "dataset": examples.name,
                "config": configs.to_json(config),
                "facts": output.facts("binaries.remove"),
                "rows": result.rows(),
                "curve": result.curve_rows(),
                "layers": result.layer_rows(),
            },
        )
        suspects = _suspects(out, edited, examples)
    section = report.section_of(result)
    page = output.write_report(
        out,
        f"What was taken out? {examples.name}",
        [section],
        output.facts("binaries.remove"),
    )
    output.print_section(section)
    if suspects is not None:
        print(f"suspected labels: {suspects}, {out / PAGE}")
    print(f"network: {out / 'model.keras'}")
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


def _source() -> tuple[Run | keras.Model, Examples, Run | None]:
    """The network, what it was trained on, and its run, if it has one."""
    if FLAGS.model is not None:
        model = _loaded(FLAGS.model)
        return model, load(_data_config(), download=FLAGS.download), None
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
    return run, run.examples(download=FLAGS.download), run


def _data_config() -> DataConfig:
    return config_flags.read(DataConfig, skip=_NO_FLAGS, noise_rate=0.0)


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


def _refuse_foreign(out: pathlib.Path) -> None:
    """Refuses a folder in which something else lies."""
    found = {path.name for path in out.iterdir()} - {".lock"}
    if found and "work" not in found:
        raise ValueError(
            f"{out} is not the folder of such a job, and nothing in it is "
            "overwritten. Expected a new folder, or one that binaries.remove "
            f"wrote. Received one with {', '.join(sorted(found)[:5])}."
        )


def _write_run(out, run, original, edited, examples) -> None:
    """The networks before (epoch 0) and after (epoch 1) as a run."""
    new = Run.create(
        out,
        edited,
        data=run.data if run else _data_config(),
        model_config=run.model_config if run else None,
        examples=examples,
    )
    new.record_epoch(original, 0)
    new.record_epoch(edited, 1)
    storage.write_atomically(
        out / "model.keras", lambda file: _save_keras(edited, file)
    )


def _save_keras(model: keras.Model, file) -> None:
    """Keras wants a path that ends in .keras."""
    path = pathlib.Path(file.name).with_suffix(".keras")
    model.save(path)
    file.write(path.read_bytes())
    path.unlink()


def _suspects(
    out: pathlib.Path, edited: keras.Model, examples: Examples
) -> int | None:
    """Ranks the labels by the edited network; how many it does not believe."""
    train = examples.train
    if train.label.ndim > 1:
        return None
    others = examples.take(~examples.is_trained_on)
    held_out = (
        (predict_logits(edited, others), others.label) if len(others) else None
    )
    scores = scores_of_logits(
        train, dropped=predict_logits(edited, train), held_out=held_out
    )
    return len(find_label_errors(scores, examples, out).suspects())


if __name__ == "__main__":
    flags.run(main)
