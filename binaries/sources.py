"""Flags that say which network, and what it was trained on.

Either --run_dir, a run that knows its data; or --model, any `.keras` file, with
the flags of the data.
"""

from __future__ import annotations

import importlib
import pathlib

from . import config_flags, flags

import keras

from tfmemloc import DataConfig, Run, load
from tfmemloc.data import Examples
from tfmemloc.fields import hints
from tfmemloc.fit import how_fed, measure_fit
from tfmemloc.removal.copies import check_examples

FLAGS = flags.FLAGS
# They belong to the program that asks for them, and are in its --help.
flags.flags.disclaim_key_flags()
# A model of unknown training has no examples that the loader could keep aside.
_NO_FLAGS = (
    "heldout",
    "heldout_seed",
    "subset_ratio",
    "subset_seed",
    "score_file",
    "score_threshold",
)


def define(run_help: str = flags.RUN_HELP) -> None:
    """Defines --run_dir, --model, --import_modules and the flags of data."""
    flags.flags.DEFINE_string("run_dir", None, run_help)
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
    config_flags.define(
        DataConfig,
        skip=_NO_FLAGS,
        unset=True,
        notes={"noise_rate": "0: labels stay as they are"},
    )
    flags.define_download()


def check(*, without_network: bool = False) -> None:
    """Refuses both --run_dir and --model, neither, and data of a run.

    Args:
        without_network: --dataset alone will do.

    Raises:
        ValueError: says what was expected.
    """
    has_run, has_model = (
        name is not None for name in (FLAGS.run_dir, FLAGS.model)
    )
    is_alone = without_network and FLAGS.dataset and not has_run
    if has_run and has_model or not (has_run or has_model or is_alone):
        also = ", or --dataset alone" if without_network else ""
        raise ValueError(
            f"Expected --run_dir, or --model with --dataset{also}. Received: "
            + ("both." if has_run else "neither.")
        )
    if has_model and FLAGS.dataset is None:
        raise ValueError(
            "--model expected the --dataset that it was trained on, such as "
            "mine.npz. Received: none."
        )
    if not has_run and not FLAGS.out_dir:
        given = "--model" if has_model else "--dataset"
        raise ValueError(f"{given} expected an --out_dir. Received: none.")
    given = [
        f"--{name}"
        for name in hints(DataConfig)
        if name not in _NO_FLAGS and FLAGS[name].value is not None
    ]
    if FLAGS.run_dir and given:
        raise ValueError(
            "A run knows its own data. Expected no flags of data with "
            f"--run_dir. Received: {', '.join(given)}."
        )


def read(
    *, without_network: bool = False
) -> tuple[Run | keras.Model | None, Examples, DataConfig | None]:
    """The network, what it was trained on, and where that comes from."""
    check(without_network=without_network)
    if FLAGS.run_dir is None:
        model = _loaded(FLAGS.model) if FLAGS.model is not None else None
        data = config_flags.read(DataConfig, skip=_NO_FLAGS, noise_rate=0.0)
        return model, load(data, download=FLAGS.download), data
    run = Run.open(FLAGS.run_dir)
    return run, run.examples(download=FLAGS.download), run.data


def describe(source: Run | keras.Model | None, examples: Examples) -> None:
    """Prints what was read, and how much of it a network of a file knows."""
    print(f"data: {examples}")
    if not isinstance(source, keras.Model) or examples.label.ndim > 1:
        return
    check_examples(source, examples)
    fit = measure_fit(source, examples)
    print(
        f"network: {FLAGS.model} predicts {fit.right:.1%} of {fit.count} "
        f"training labels as given (inputs: {how_fed(examples)})"
    )


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
