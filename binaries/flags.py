"""Flags that the programs share, and how they become configs."""

from __future__ import annotations

import pathlib
import re
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable

from . import start  # noqa: F401  First: it starts TensorFlow quietly.

import tensorflow as tf
from absl import app, flags, logging

from tfmemloc import Run, serving, storage, sweeps, write_live_page

FLAGS = flags.FLAGS
# The flags belong to the program that asks for them, so that --help of each
# program lists its own.
flags.disclaim_key_flags()

RUN_HELP = (
    "Folder of one trained network: one that binaries.train wrote, or one of "
    "the four that binaries.localize writes, such as runs/demo/standard."
)

# Errors that the user can fix; shown without a traceback.
_USER_ERRORS = (
    ValueError,
    OSError,
    ImportError,
    FloatingPointError,
    storage.DirectoryInUseError,
    serving.ExportError,
    sweeps.SweepError,
)


def define_training_options() -> None:
    """Defines flags of how the training runs; they change only rounding."""
    flags.DEFINE_bool(
        "mirrored", False, "Share each batch between all local GPUs."
    )
    flags.DEFINE_bool(
        "deterministic",
        False,
        "Make GPU kernels repeat bit for bit; slower. CPU runs repeat anyway.",
    )
    flags.DEFINE_bool("tensorboard", False, "Write TensorBoard logs.")
    flags.DEFINE_bool(
        "live",
        False,
        "Write live.html into the folder of each run: its curves, while it "
        "trains. Open it in a browser; it reloads itself.",
    )
    define_download()


def define_download() -> None:
    """Defines the flag that lets TFDS download."""
    flags.DEFINE_bool(
        "download", False, "Let TFDS download a data set that is missing."
    )


def define_run_flags(default_directory: str) -> None:
    """Defines the flags of the results' folder, and of starting afresh."""
    flags.DEFINE_string("run_dir", default_directory, "Where results go.")
    flags.DEFINE_bool("fresh", False, "Delete what is in --run_dir first.")


def define_probe_flags() -> None:
    """Defines the flags of the run to probe, and of the results' folder."""
    flags.DEFINE_string("run_dir", None, RUN_HELP, required=True)
    flags.DEFINE_string("out_dir", None, "Default: the run's folder.")
    define_download()


def apply_determinism() -> None:
    """Does what --deterministic says."""
    if FLAGS.deterministic:
        tf.keras.utils.set_random_seed(FLAGS.seed)
        tf.config.experimental.enable_op_determinism()


def strategy() -> tf.distribute.Strategy:
    """The distribution strategy to train with; also applies --deterministic."""
    apply_determinism()
    if FLAGS.mirrored:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def after_each_epoch() -> Callable[[Run, int], None] | None:
    """What --live does after each epoch of a training."""
    return write_live_page if FLAGS.live else None


def show_the_end(run: Run) -> Run:
    """What --live does once a training has ended; gives the run back."""
    if FLAGS.live:
        write_live_page(run)
    return run


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
        ValueError: --fresh would delete a folder of another origin.
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


def command_line(module: str) -> str:
    """The command that runs a program, `binaries.<name>`, again."""
    return f"{start_of(module)} {shlex.join(sys.argv[1:])}".rstrip()


def start_of(module: str) -> str:
    """How a program is started: in a clone as a module, else by `tfmemloc`."""
    if __package__ == "binaries":
        return f"python -m {module}"
    return f"tfmemloc {module.removeprefix('binaries.')}"


# What users were warned of; reports repeat it, and so do programs at their end
# that took longer than so many seconds.
WARNED: list[str] = []
_LONG = 60


def _shown(message, category, filename, lineno, file=None, line=None) -> None:
    """A warning for the user as one line, any other where it was raised."""
    text = warnings.formatwarning(message, category, filename, lineno, line)
    if issubclass(category, UserWarning):
        text = f"warning: {message}\n"
        WARNED.append(str(message))
    (file or sys.stderr).write(text)


def run(main: Callable[[], None]) -> None:
    """Runs a program; shows errors and warnings of the user's as one line."""
    warnings.showwarning = _shown
    began = time.monotonic()

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
        if time.monotonic() - began > _LONG:  # They stand far above by now.
            for text in dict.fromkeys(WARNED):
                print(f"warning, once more: {text}", file=sys.stderr)

    app.run(guarded, flags_parser=_parsed)


def _parsed(arguments: list[str]) -> list[str]:
    """Parses the flags; says plainly which one is missing."""
    app.define_help_flags()
    asks_for_help = any(
        argument.lstrip("-") in ("help", "helpshort", "helpfull", "h", "?")
        for argument in arguments[1:]
        if argument.startswith("-")
    )
    try:
        return FLAGS(arguments)
    except SystemExit as stop:  # absl ends with 1 where somebody asks for help.
        sys.exit(0 if asks_for_help else stop.code)
    except flags.Error as error:
        missing = re.match(r"flag --(\w+)=None: Flag .* must have", str(error))
        if missing is None:
            sys.exit(f"error: {error}. See --help.")
        name = missing[1]
        sys.exit(f"error: --{name} is missing. Expected: {FLAGS[name].help}")
