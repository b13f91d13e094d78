"""A sweep on a Ray cluster of two nodes, one of which dies in the middle.

  python -m benchmarks.lost_node --run_dir=runs/lost_node
  python -m benchmarks.lost_node --run_dir=runs/lost_half --halves

takes about ten minutes on 2 CPU cores. Both nodes are on this machine, with
one CPU each; the second is killed when a third of the runs is finished, and
binaries.sweep goes on with the first. Prints what the sweep prints, and how
many runs were finished when the node was killed.

With --halves the runs are networks on random halves of the digits. They are
trained once more without Ray, both sets are audited, and it is an error if any
number of the two audits differs.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

_SWEEP = (
    "--grid=p_gen=0.1,0.2,0.4",
    "--grid=p_mem=0.05,0.2",
    "--grid=seed=0..3",
    "--base=--dataset=digits --epochs=20 --save_every=20",
)
_HALVES = (
    "--grid=subset_seed=0..7",
    "--grid=subset_complement=false,true",
    "--over=subset_seed",
    "--base=--dataset=digits --subset_ratio=0.5 --heldout=0.1 --dropout=none "
    "--width=0.25 --epochs=15 --save_every=15 --evaluate_every=15",
)


def main() -> None:
    """Starts the cluster and the sweep, kills a node, waits; audits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run_dir", required=True)
    parser.add_argument("--halves", action="store_true")
    arguments = parser.parse_args()
    directory = pathlib.Path(arguments.run_dir)
    if not arguments.halves:
        sys.exit(_with_a_lost_node(_SWEEP, directory, 24))
    if code := _with_a_lost_node(_HALVES, directory / "ray" / "standard", 16):
        sys.exit(code)
    _run("sweep", *_HALVES, f"--run_dir={directory / 'here' / 'standard'}")
    audits = []
    for backend in ("ray", "here"):
        _run("audit", f"--run_dir={directory / backend}")
        audits.append(_rows_of(directory / backend))
    if audits[0] != audits[1]:
        sys.exit("the two audits differ")
    print(f"the two audits agree in each of {len(audits[0])} rows")


def _with_a_lost_node(
    settings: Sequence[str], directory: pathlib.Path, runs: int
) -> int:
    """The exit status of a sweep that loses one of two nodes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    try:
        sweep = subprocess.Popen(
            [
                *_program("sweep"),
                *settings,
                "--backend=ray",
                f"--ray_address={cluster.address}",
                "--retries=3",
                f"--run_dir={directory}",
            ]
        )
        finished = 0
        while finished < runs // 3 and sweep.poll() is None:
            time.sleep(1)
            finished = len(list(directory.glob("*/done.json")))
        cluster.remove_node(node, allow_graceful=False)
        print(f"killed one of two nodes; {finished} of {runs} were finished")
        return sweep.wait()
    finally:
        cluster.shutdown()


def _program(name: str) -> list[str]:
    return [sys.executable, "-m", f"binaries.{name}"]


def _run(name: str, *flags: str) -> None:
    subprocess.run([*_program(name), *flags], check=True)


def _rows_of(directory: pathlib.Path) -> list[dict]:
    # Starts TensorFlow, which a process that starts a cluster should not.
    from tfmemloc import storage

    return storage.read_json(directory / "audit.json")["parts"]


if __name__ == "__main__":
    main()
