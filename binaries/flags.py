"""Flags that the programs share, and how they become configs."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Callable

# Before TensorFlow is loaded: keep its start-up messages to itself.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow leaves it off on CPUs without AVX-512, where it is faster, too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import tensorflow as tf  # noqa: E402

# Each new model is traced once; TensorFlow takes that for a mistake.
tf.get_logger().setLevel("ERROR")

from absl import app, flags, logging  # noqa: E402

from tfmemloc import configs, data, export, storage, sweeps  # noqa: E402

FLAGS = flags.FLAGS
# The flags belong to the program that asks for them, so that --help of each
# program lists its own.
flags.disclaim_key_flags()

RUN_HELP = (
    "Folder of one trained network (of binaries.train), or one of the four "
    "that binaries.localize writes, such as runs/demo/standard."
)
_QUICK_EPOCHS = 3
_QUICK_EXAMPLES = 512
_QUICK_BATCH = 128

# Errors that are the user's to mend; shown without a traceback.
_USER_ERRORS = (
    ValueError,
    OSError,
    ImportError,
    FloatingPointError,
    storage.DirectoryInUseError,
    export.ExportError,
    sweeps.SweepError,
)


def define_data_flags() -> None:
    """Which examples."""
    flags.DEFINE_string(
        "dataset",
        "digits",
        "digits (comes with scikit-learn), a TFDS image-classification set by "
        "name (mnist, cifar10, svhn_cropped, ...), or an .npz file with "
        "x_train, y_train and, if any, x_test, y_test: images "
        "[N, height, width(, channels)], uint8 or floats in [-1, 1]; labels "
        "[N], integers from 0; class_names, if any, for reports.",
    )
    flags.DEFINE_string(
        "data_dir", None, "TFDS folder; the default is TFDS's own."
    )
    flags.DEFINE_bool(
        "download", False, "Let TFDS download a data set that is missing."
    )
    flags.DEFINE_integer(
        "train_examples", None, "Use only the first so many training examples."
    )
    flags.DEFINE_integer(
        "test_examples", None, "Use only the first so many test examples."
    )
    flags.DEFINE_float(
        "noise_rate",
        None,
        "Fraction of training labels that are made wrong; default: 0.1, and 0 "
        "for an .npz file, whose labels stay as they are.",
    )
    flags.DEFINE_integer(
        "noise_seed",
        None,
        "Seed that chooses which labels are made wrong; default: --seed.",
    )
    flags.DEFINE_string(
        "noise_file",
        None,
        "CSV with header example_id,label: train on these labels instead of "
        "drawn noise.",
    )
    flags.DEFINE_string(
        "score_file",
        None,
        "CSV with header example_id,score: split into typical and atypical "
        "examples instead of making labels wrong.",
    )
    flags.DEFINE_float(
        "score_threshold", 0.5, "Examples with a lower score are atypical."
    )
    flags.DEFINE_float(
        "subset_ratio",
        1.0,
        "Train on this fraction of the training examples alone.",
    )
    flags.DEFINE_integer(
        "subset_seed", 0, "Seed that chooses the examples of --subset_ratio."
    )


def define_model_flags(*, with_dropout: bool) -> None:
    """Which network."""
    flags.DEFINE_enum("model", "resnet9", configs.MODELS, "Which network.")
    flags.DEFINE_float(
        "width",
        None,
        "Multiplies the units of every hidden layer; default: 0.5 for digits "
        "and mnist, else 1.",
    )
    if with_dropout:
        flags.DEFINE_enum(
            "dropout",
            "example_tied",
            configs.DROPOUTS,
            "Dropout after the layers where the paper has it; none is the "
            "network called standard in tables, standard is Keras's Dropout.",
        )
    flags.DEFINE_float(
        "p_gen",
        None,
        "Fraction of generalization units; default: 0.2 for lenet and "
        "resnet9, else 0.5.",
    )
    flags.DEFINE_float(
        "p_mem",
        None,
        "Probability that an example keeps a given memorization unit; "
        "default: 0.1 for lenet and resnet9, else 0.2.",
    )
    flags.DEFINE_enum(
        "rescale",
        "none",
        configs.RESCALES,
        "mass: scale the generalization units by (p_gen + p_mem) / p_gen "
        "after the drop, as the authors' code does.",
    )
    flags.DEFINE_enum(
        "stem", "small", configs.STEMS, "First layers of ResNet-18 and -50."
    )


def define_training_flags() -> None:
    """How to train; what is not given is the data set's preset."""
    flags.DEFINE_integer(
        "epochs",
        None,
        "Passes over the training examples; default: 30 for digits, 25 for "
        "mnist, else 50.",
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Examples in a step; default: 128 for digits, mnist and cifar10, else "
        "512.",
    )
    flags.DEFINE_enum(
        "optimizer",
        None,
        configs.OPTIMIZERS,
        "Default: sgd, which has momentum.",
    )
    flags.DEFINE_float(
        "learning_rate",
        None,
        "Peak of the schedule; default: 0.1 for digits, 0.05 for mnist and "
        "cifar10, 0.001 for svhn_cropped, else 0.01.",
    )
    flags.DEFINE_enum(
        "schedule",
        None,
        configs.SCHEDULES,
        "warmup_cosine (default): up over 10 % of the steps, then cosine to 0; "
        "triangle: up over 40 %, down to 0; constant.",
    )
    flags.DEFINE_float("momentum", None, "Of SGD; default: 0.9.")
    flags.DEFINE_float(
        "weight_decay",
        None,
        "Adds weight_decay * w to each gradient; default: 5e-4.",
    )
    flags.DEFINE_enum(
        "augment",
        None,
        configs.AUGMENTATIONS,
        "standard: pad 4, random crop, flip; strong: RandAugment as well.",
    )
    flags.DEFINE_enum("dtype", None, configs.DTYPES, "Precision.")
    flags.DEFINE_bool("jit_compile", None, "Compile the step with XLA.")
    flags.DEFINE_integer(
        "save_every",
        None,
        "Keep the weights of every n-th epoch, and of the first and the last; "
        "default: 1.",
    )
    flags.DEFINE_integer(
        "evaluate_every",
        None,
        "Measure the accuracies of every n-th epoch, and of the last; "
        "default: 1.",
    )
    flags.DEFINE_float(
        "stop_at",
        None,
        "Stop at this accuracy on all training examples, held for --patience "
        "epochs.",
    )
    flags.DEFINE_integer("patience", None, "See --stop_at.")
    flags.DEFINE_integer(
        "seed", 0, "Of noise, initialization, order and augmentation."
    )
    flags.DEFINE_bool(
        "mirrored", False, "Share each batch between all local GPUs."
    )
    flags.DEFINE_bool(
        "deterministic",
        False,
        "Make GPU kernels repeat bit for bit; slower. CPU runs repeat anyway.",
    )
    flags.DEFINE_bool("tensorboard", False, "Write TensorBoard logs.")


def define_run_flags(default_directory: str) -> None:
    """Where to, and from scratch or not."""
    flags.DEFINE_string("run_dir", default_directory, "Where results go.")
    flags.DEFINE_bool("fresh", False, "Delete what is in --run_dir first.")
    flags.DEFINE_bool(
        "quick",
        False,
        f"The same path, with at most {_QUICK_EPOCHS} epochs, "
        f"{_QUICK_EXAMPLES} training examples and {_QUICK_BATCH} in a batch.",
    )


def define_probe_flags() -> None:
    """Which run to probe, and where results go."""
    flags.DEFINE_string("run_dir", None, RUN_HELP, required=True)
    flags.DEFINE_string("out_dir", None, "Default: the run's folder.")
    flags.DEFINE_enum(
        "inference",
        None,
        configs.INFERENCES,
        "Behaviour of tied layers; default: as built (drop).",
    )
    flags.DEFINE_bool("download", False, "Let TFDS fetch missing data.")


def data_config() -> configs.DataConfig:
    """The data that the flags ask for."""
    fields = _given("data_dir", "train_examples", "test_examples")
    is_own = FLAGS.dataset.endswith(".npz")
    if FLAGS.quick:
        fields["train_examples"] = min(
            fields.get("train_examples", _QUICK_EXAMPLES),
            _QUICK_EXAMPLES,
            *([data.count_train(FLAGS.dataset)] if is_own else []),
        )
    rate = FLAGS.noise_rate
    if rate is None:
        rate = 0.0 if is_own else 0.1
    seed = FLAGS.seed if FLAGS.noise_seed is None else FLAGS.noise_seed
    return configs.DataConfig(
        dataset=FLAGS.dataset,
        noise_rate=rate,
        noise_seed=seed,
        noise_file=FLAGS.noise_file,
        score_file=FLAGS.score_file,
        score_threshold=FLAGS.score_threshold,
        subset_ratio=FLAGS.subset_ratio,
        subset_seed=FLAGS.subset_seed,
        **fields,
    )


def model_config(dropout: str = "example_tied") -> configs.ModelConfig:
    """The network that the flags ask for."""
    preset, _ = configs.PRESETS.get(FLAGS.dataset, ({}, {}))
    return configs.ModelConfig(
        **{
            **preset,
            **_given("width", "p_gen", "p_mem"),
            "name": FLAGS.model,
            "dropout": dropout,
            "rescale": FLAGS.rescale,
            "stem": FLAGS.stem,
            "seed": FLAGS.seed,
        }
    )


def train_config() -> configs.TrainConfig:
    """The training that the flags ask for."""
    _, preset = configs.PRESETS.get(FLAGS.dataset, ({}, {}))
    given = _given(
        "epochs",
        "batch_size",
        "optimizer",
        "learning_rate",
        "schedule",
        "momentum",
        "weight_decay",
        "augment",
        "dtype",
        "jit_compile",
        "save_every",
        "evaluate_every",
        "stop_at",
        "patience",
    )
    config = configs.TrainConfig(**{**preset, **given, "seed": FLAGS.seed})
    if FLAGS.quick:
        config = dataclasses.replace(
            config,
            epochs=min(config.epochs, _QUICK_EPOCHS),
            batch_size=min(config.batch_size, _QUICK_BATCH),
        )
    return config


def _given(*names: str) -> dict:
    """The flags that were set to something."""
    values = {name: FLAGS[name].value for name in names}
    return {name: value for name, value in values.items() if value is not None}


def strategy() -> tf.distribute.Strategy:
    """Where to train; also applies --deterministic."""
    if FLAGS.deterministic:
        tf.keras.utils.set_random_seed(FLAGS.seed)
        tf.config.experimental.enable_op_determinism()
    if FLAGS.mirrored:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def run_directory() -> pathlib.Path:
    """The folder of --run_dir.

    Raises:
        ValueError: it is empty, which would be the working directory.
    """
    if not FLAGS.run_dir:
        raise ValueError(
            "--run_dir expected a folder for the results. Received: nothing."
        )
    return pathlib.Path(FLAGS.run_dir)


def prepare_directory(marker: str) -> pathlib.Path:
    """The folder of --run_dir; emptied first with --fresh.

    Args:
        marker: a file that shows that the folder is the program's own.

    Raises:
        ValueError: --fresh on a folder that is not.
    """
    directory = run_directory()
    here = pathlib.Path.cwd()
    if FLAGS.fresh and directory.resolve() in (here, *here.parents):
        raise ValueError(
            f"--fresh would delete {directory.resolve()}, in which this "
            "program runs. Choose another --run_dir."
        )
    # A folder that holds nothing but a lock was left by an early error.
    has_files = directory.exists() and any(
        path.name != ".lock" for path in directory.iterdir()
    )
    if FLAGS.fresh and has_files:
        if not (directory / marker).exists():
            raise ValueError(
                f"--fresh would delete {directory}, but that is not the "
                f"folder of such a run: it has no {marker}. Delete it "
                "yourself, or choose another --run_dir."
            )
        with storage.lock_directory(directory):
            shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def integers(name: str) -> tuple[int, ...] | None:
    """The numbers of a list flag; None where it was not given."""
    if FLAGS[name].value is None:
        return None
    try:
        return tuple(int(item) for item in FLAGS[name].value)
    except ValueError:
        raise ValueError(
            f"--{name} expected numbers with commas between them. Received: "
            f"{','.join(FLAGS[name].value)!r}."
        ) from None


def command_line(module: str) -> str:
    """The command that runs this again."""
    return f"python -m {module} {shlex.join(sys.argv[1:])}".rstrip()


def run(main: Callable[[], None]) -> None:
    """Runs a program; errors that the user can mend are one line."""

    def guarded(arguments):
        if len(arguments) > 1:
            sys.exit(
                f"error: unexpected {' '.join(arguments[1:])}. Everything is "
                "given by flags; see --help."
            )
        if FLAGS.verbosity <= 0:
            logging.set_verbosity(logging.WARNING)
        try:
            main()
        except KeyboardInterrupt:
            sys.exit(
                "\nstopped; the same command, without --fresh, goes on with "
                "what was not finished."
            )
        except _USER_ERRORS as error:
            if FLAGS.verbosity > 0:
                raise
            sys.exit(f"error: {error}")

    app.run(guarded)
