"""Runs a program over a grid of flags, and averages over seeds.

  python -m binaries.sweep --grid=p_gen=0.1,0.2,0.4 --grid=p_mem=0.05,0.1 \\
    --grid=seed=0..3 --base="--dataset=digits" --processes=2 \\
    --run_dir=runs/sweep

takes about ten minutes on 2 CPU cores. Each cell is an ordinary run directory
in --run_dir. If the sweep is killed, the same command repeats nothing that is
finished; values may also be added to the grid later. Writes sweep_results.npz
and .json (a row for each run), figures and report.html. --program=localize
repeats the main job over seeds. This command makes the runs for memorization
estimates (binaries.score_examples --subset_runs='runs/subsets/*'):

  python -m binaries.sweep --grid=subset_seed=0..19 --over=subset_seed \\
    --base="--dataset=digits --subset_ratio=0.7 --dropout=none" \\
    --run_dir=runs/subsets

With --backend=ray the cells run on a Ray cluster, whose machines must see
--run_dir under the same path; cells of a lost machine are run elsewhere.
"""

import shlex

from . import flags, output

from tfmemloc import sweeps

FLAGS = flags.FLAGS
# Flags that would undo what a sweep keeps.
_OWN = ("--run_dir", "--fresh")
flags.flags.DEFINE_multi_string(
    "grid",
    None,
    "A flag of the program and its values: p_gen=0.1,0.2 or seed=0..4; given "
    "once for each axis.",
    required=True,
)
flags.flags.DEFINE_enum(
    "program", "train", ["train", "localize"], "What each cell runs."
)
flags.flags.DEFINE_string("base", "", "Flags that all cells share.")
flags.flags.DEFINE_string("run_dir", "runs/sweep", "Where results go.")
flags.flags.DEFINE_string(
    "over", "seed", "The flag whose values are averaged over."
)
flags.flags.DEFINE_integer(
    "processes", 1, "Cells that run at once (local).", lower_bound=1
)
flags.flags.DEFINE_enum(
    "backend", "local", sweeps.BACKENDS, "This machine, or a Ray cluster."
)
flags.flags.DEFINE_string(
    "ray_address",
    None,
    "Address of a running cluster, or auto; if not given, one is started on "
    "this machine.",
)
flags.flags.DEFINE_float(
    "cpus_per_run", 1.0, "CPUs that Ray sets aside for a cell."
)
flags.flags.DEFINE_float("gpus_per_run", 0.0, "GPUs for a cell; may be 0.5.")
flags.flags.DEFINE_integer(
    "retries", 1, "How often a failed or lost cell is tried again."
)


def main() -> None:
    """Runs the cells, gathers their numbers, reports."""
    directory = flags.run_directory()
    cells = sweeps.parse_grid(FLAGS.grid)
    base = shlex.split(FLAGS.base)
    for flag in base:
        if not flag.startswith("--") or flag.startswith(_OWN):
            raise ValueError(
                "--base expected flags of the program other than --run_dir "
                'and --fresh, each as --name=value, such as "--dataset=digits '
                f'--epochs=10". Received: {flag!r}.'
            )
    result = sweeps.run_sweep(
        directory,
        FLAGS.program,
        cells,
        base=base,
        package=__package__,
        backend=FLAGS.backend,
        processes=FLAGS.processes,
        retries=FLAGS.retries,
        ray_address=FLAGS.ray_address,
        cpus_per_run=FLAGS.cpus_per_run,
        gpus_per_run=FLAGS.gpus_per_run,
        over=FLAGS.over,
    )
    output.write_result(result, "sweep_results", "binaries.sweep", directory)


if __name__ == "__main__":
    flags.run(main)
