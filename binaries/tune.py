"""Searches settings for two goals: forget wrong labels, know held-out ones.

  python -m binaries.tune --space=expand=0.5,1,2 --space=memory_off=0.2..0.8 \\
    --space=p_mem=0.03..0.3:log --trials=20 --processes=2 \\
    --base="--dataset=digits --heldout=0.1 --rule=drop_pass_gate" \\
    --run_dir=runs/tune

takes about ten minutes on 2 CPU cores. Each trial is an ordinary run directory
in --run_dir; Optuna chooses its settings by what the finished ones gave. If the
search is killed, the same command goes on, and more --trials may be asked for
later. Writes tuning_results.npz and .json (a row for each trial), the front of
settings that no other surpasses as table and figure, and report.html. Needs
Optuna: pip install 'tfmemloc[sweep]'.

The numbers of the front are chosen among many, and so too good: measure the
setting that you take on another --noise_seed and --seed.
"""

import shlex

from . import flags, output

from tfmemloc.sweeps import tuning

FLAGS = flags.FLAGS
flags.flags.DEFINE_multi_string(
    "space",
    None,
    "A flag of the program and its choices or limits: expand=0.5,1 or "
    "p_mem=0.02..0.3:log; given once for each flag.",
    required=True,
)
flags.flags.DEFINE_integer(
    "trials", 20, "How many trials there are in the end.", lower_bound=1
)
flags.flags.DEFINE_string("base", "", "Flags that all trials share.")
flags.flags.DEFINE_string("run_dir", "runs/tune", "Where results go.")
flags.flags.DEFINE_string(
    "forget", "drop_noisy", "The accuracy that is wanted small."
)
flags.flags.DEFINE_string(
    "keep", "drop_heldout", "The accuracy that is wanted large."
)
flags.flags.DEFINE_integer("seed", 0, "Of the choice of settings.")
flags.flags.DEFINE_integer(
    "processes", 1, "Trials that run at once.", lower_bound=1
)


def main() -> None:
    """Runs the trials, reports the front."""
    directory = flags.run_directory()
    result = tuning.tune_settings(
        directory,
        "train",
        tuning.parse_space(FLAGS.space),
        trials=FLAGS.trials,
        base=shlex.split(FLAGS.base),
        package=__package__,
        forget=FLAGS.forget,
        keep=FLAGS.keep,
        seed=FLAGS.seed,
        processes=FLAGS.processes,
    )
    output.write_result(result, "tuning_results", "binaries.tune", directory)


if __name__ == "__main__":
    flags.run(main)
