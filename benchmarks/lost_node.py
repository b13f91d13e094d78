"""A sweep on a Ray cluster of two nodes, one of which dies in the middle.

  python -m benchmarks.lost_node --run_dir=runs/lost_node

takes about ten minutes on 2 CPU cores. Both nodes are on this machine, with
one CPU each; the second is killed when a third of the 24 runs is finished, and
binaries.sweep goes on with the first. Prints what the sweep prints, and how
many runs were finished when the node was killed.
"""

import argparse
import pathlib
import subprocess
import sys
import time

_GRID = (
    "--grid=p_gen=0.1,0.2,0.4",
    "--grid=p_mem=0.05,0.2",
    "--grid=seed=0..3",
)
_RUNS = 24
_BASE = "--dataset=digits --epochs=20 --save_every=20"


def main() -> None:
    """Starts the cluster and the sweep, kills a node, waits."""
    from ray.cluster_utils import Cluster

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run_dir", required=True)
    directory = pathlib.Path(parser.parse_args().run_dir)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    try:
        sweep = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "binaries.sweep",
                *_GRID,
                f"--base={_BASE}",
                "--backend=ray",
                f"--ray_address={cluster.address}",
                "--retries=3",
                f"--run_dir={directory}",
            ]
        )
        finished = 0
        while finished < _RUNS // 3 and sweep.poll() is None:
            time.sleep(1)
            finished = len(list(directory.glob("*/done.json")))
        cluster.remove_node(node, allow_graceful=False)
        print(f"killed one of two nodes; {finished} of {_RUNS} were finished")
        code = sweep.wait()
    finally:
        cluster.shutdown()
    sys.exit(code)


if __name__ == "__main__":
    main()
