"""Several processes of one program that work together (`--workers`).

To train they share each batch (`tfmemloc.training.workers`), to measure they
share passes over the data (`tfmemloc.sharing`).

Each is told its place by TF_CONFIG, as TensorFlow has it. Engines that start a
program on several machines set that variable themselves; then nothing is
started here.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from .flags import FLAGS, apply_determinism, flags

import tensorflow as tf

from tfmemloc import Run, sharing
from tfmemloc.training.workers import number_of

flags.disclaim_key_flags()

# How often all begin again without an epoch between.
_TRIES = 3
_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 10


def define_workers(
    what: str = "Train in so many processes on this machine, each with its "
    "share of every batch",
) -> None:
    """Defines the flag of how many processes do what."""
    flags.DEFINE_integer(
        "workers",
        1,
        f"{what}, and a GPU each where there are some. On several machines set "
        "TF_CONFIG in each instead; the folder of the results must be one that "
        "all of them see.",
        lower_bound=1,
    )


def are_used() -> bool:
    """Whether --workers or TF_CONFIG asks for more than one process."""
    return FLAGS.workers > 1 or is_one()


def is_parent() -> bool:
    """Whether this process is to start the --workers, and only that."""
    return FLAGS.workers > 1 and not is_one()


def begins(module: str, directory: pathlib.Path) -> bool:
    """Runs this command in --workers processes; False if it is to go on itself.

    Args:
        module: the program's, such as `remove`.
        directory: of its results.
    """
    if not is_parent():
        return False
    directory.mkdir(parents=True, exist_ok=True)
    start(module, directory)
    return True


@contextlib.contextmanager
def shared(directory: pathlib.Path) -> Iterator[None]:
    """Within it, the workers share passes over the data."""
    if not is_one():
        yield
        return
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    with sharing(number_of(resolver), _count(), directory):
        yield


def is_one() -> bool:
    """Whether TF_CONFIG makes this process one of several workers."""
    return _count() > 1


def is_first() -> bool:
    """Whether this process is the worker that writes; also without workers."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver
    return not is_one() or number_of(resolver()) == 0


def strategy() -> tf.distribute.Strategy:
    """The workers' strategy; to be made before TensorFlow does any work."""
    if FLAGS.mirrored:
        raise ValueError(
            "--mirrored shares a batch between the GPUs of one process. "
            "Expected it or workers. Received: both. Start a worker for each "
            "GPU."
        )
    apply_determinism()
    return tf.distribute.MultiWorkerMirroredStrategy()


def _count() -> int:
    """How many workers TF_CONFIG names."""
    text = os.environ.get("TF_CONFIG", "{}")
    try:
        config = json.loads(text)
        cluster = config.get("cluster", {})
        if cluster:
            config["task"]["type"], int(config["task"]["index"])
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            "TF_CONFIG expected JSON with a cluster and this worker's task, "
            'such as {"cluster": {"worker": ["a:2222", "b:2222"]}, "task": '
            f'{{"type": "worker", "index": 0}}}}. Received: {text[:200]!r}.'
        ) from error
    return sum(len(cluster.get(kind, [])) for kind in ("chief", "worker"))


def start(module: str, directory: pathlib.Path) -> None:
    """Runs this command in --workers processes, to the end.

    The first one writes to this process's output, the others into
    `worker_<k>.log` in the run's folder. If one is killed, all begin again
    after the last epoch that was saved.

    Args:
        module: the program's, such as `train`.
        directory: of the run, which exists.

    Raises:
        ValueError: there are too few GPUs.
        ChildProcessError: a worker ended with an error, or was killed again
            and again.
    """
    epochs, tries = _epochs(directory), 0
    while True:
        failed, code = _run_all(module, directory)
        if code == 0:
            return
        if code > 0:
            # The first worker has said what was wrong itself.
            raise ChildProcessError(
                f"Worker {failed} of {FLAGS.workers} ended with an error"
                f"{_end_of_log(directory, failed)}"
            )
        tries = tries + 1 if _epochs(directory) == epochs else 1
        epochs = _epochs(directory)
        if tries > _TRIES:
            raise ChildProcessError(
                f"Worker {failed} of {FLAGS.workers} was killed {tries} times "
                f"(now by {signal.Signals(-code).name}) without an epoch "
                "between. If memory is short, take fewer workers or a smaller "
                "--batch_size. The same command goes on."
            )
        print(
            f"Worker {failed} was killed ({signal.Signals(-code).name}); all "
            f"begin again after epoch {epochs}.",
            flush=True,
        )


def _epochs(directory: pathlib.Path) -> int:
    """How many epochs a run has behind it."""
    try:
        return len(Run.open(directory).history)
    except FileNotFoundError:
        return 0


def _end_of_log(directory: pathlib.Path, failed: int) -> str:
    if failed == 0:
        return "."
    path = directory / f"worker_{failed}.log"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"; the end of {path}:\n" + "\n".join(lines[-5:])


def _run_all(module: str, directory: pathlib.Path) -> tuple[int, int]:
    """(the worker that failed, its exit status); status 0 if none did."""
    with contextlib.ExitStack() as stack:
        processes = []
        addresses = [f"localhost:{port}" for port in _free_ports(FLAGS.workers)]
        for k in range(FLAGS.workers):
            output = None
            if k:
                path = directory / f"worker_{k}.log"
                output = stack.enter_context(open(path, "w", encoding="utf-8"))
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    f"{__package__}.{module}",
                    *sys.argv[1:],
                    *(["--nofresh"] if "fresh" in FLAGS else []),
                ],
                env={**os.environ, **_environment(k, addresses)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            processes.append(process)
            stack.callback(_stop, process)
        with _interrupted_by_sigterm():
            return _first_failure(processes)


def _first_failure(processes: list[subprocess.Popen]) -> tuple[int, int]:
    while True:
        codes = [process.poll() for process in processes]
        # Of several, a killed one is the cause and the others its victims.
        for k in sorted(range(len(codes)), key=lambda k: codes[k] or 0):
            if codes[k]:
                return k, codes[k]
        if all(code == 0 for code in codes):
            return 0, 0
        time.sleep(_POLL_SECONDS)


def _environment(k: int, addresses: list[str]) -> dict[str, str]:
    """What makes a process worker k."""
    task = {"type": "worker", "index": k}
    found = {
        "TF_CONFIG": json.dumps(
            {"cluster": {"worker": addresses}, "task": task}
        )
    }
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        threads = max(1, (os.cpu_count() or 1) // len(addresses))
        return {"TF_NUM_INTRAOP_THREADS": str(threads), **found}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (
        visible.split(",") if visible else [str(g) for g in range(len(gpus))]
    )
    if len(names) < len(addresses):
        raise ValueError(
            f"--workers={len(addresses)} expected a GPU for each worker. "
            f"Received: {len(names)}. Say --workers={len(names)}, or "
            "CUDA_VISIBLE_DEVICES='' to train on the CPU."
        )
    return {"CUDA_VISIBLE_DEVICES": names[k], **found}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


def _stop(process: subprocess.Popen) -> None:
    """Ends a worker, at once if it does not listen."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does: with its workers."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
