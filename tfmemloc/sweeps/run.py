"""Many runs that differ in some flags: a grid, its cells, and their table.

A cell is an ordinary run directory, made by an ordinary command in a process
of its own. A finished cell has a `done.json`; a sweep that is killed and
started again begins with the first cell that has none, and that cell's own
command goes on where it was stopped.

    <directory>/sweep.json                   program, common flags
    <directory>/p_gen=0.2,seed=0/            a cell: run directory
                                 /log.txt    what the command printed
                                 /done.json  the numbers at the end
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from tqdm import auto as tqdm

from tfmemloc import storage
from tfmemloc.sweeps import forking
from tfmemloc.sweeps.grid import Cell
from tfmemloc.sweeps.results import SweepResults, gather_sweep, numbers_of

BACKENDS = ("local", "ray")
_SHOWN_FAILURES = 3
_POLL_SECONDS = 0.5
_IN_USE = "is in use by another process"
# Of a failed command's log, for the message.
_LOG_LINES = 2


class SweepError(RuntimeError):
    """Some cells of a sweep failed; the others are finished and kept."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The command of a cell, as plain data that another machine can take."""

    directory: str
    command: tuple[str, ...]
    cwd: str  # Relative paths in the flags are from here.
    threads: int | None = None  # Of TensorFlow; None leaves it to itself.
    retries: int = 0


def run_sweep(
    directory: str | os.PathLike,
    program: str,
    cells: Sequence[Cell],
    *,
    base: Sequence[str] = (),
    package: str = "binaries",
    backend: str = "local",
    processes: int = 1,
    retries: int = 1,
    over: str = "seed",
    ray_address: str | None = None,
    cpus_per_run: float = 1,
    gpus_per_run: float = 0,
    progress: bool = True,
) -> SweepResults:
    """Runs the cells that are not finished, and gathers the results of all.

    Args:
        directory: of the sweep. With Ray on several machines it must be on a
            file system that all of them share.
        program: `train` or `localize`.
        cells: from `parse_grid`; more of them may be added later.
        base: flags that all cells share.
        package: where the programs are, `binaries` in a clone.
        backend: `local` or `ray`.
        processes: how many commands run at once (`local`).
        retries: how often a cell that failed or was lost is tried again.
        ray_address: of a running cluster; None starts one on this machine.
        cpus_per_run: that Ray sets aside for a cell.
        gpus_per_run: likewise; may be a fraction.
        over: the flag whose values are averaged over.
        progress: show a progress bar.

    Returns:
        A row for each cell, in the order of `cells`.

    Raises:
        ValueError: the directory holds a sweep of another program or base, or
            there is no such backend.
        DirectoryInUseError: another sweep runs there.
        SweepError: cells failed; says which, and how.
        ModuleNotFoundError: Ray was asked for and is not installed.
    """
    # Other machines' processes have other working directories.
    directory = pathlib.Path(directory).resolve()
    if backend not in BACKENDS:
        raise ValueError(
            f"`backend` must be one of {', '.join(map(repr, BACKENDS))}. "
            f"Received: backend={backend!r}."
        )
    with storage.lock_directory(directory):
        _keep_settings(directory, program, base)
        threads = None
        if backend == "ray":
            threads = max(1, int(cpus_per_run))
        elif processes > 1:
            threads = max(1, (os.cpu_count() or 1) // processes)
        jobs = [
            Job(
                str(directory / cell.name),
                (
                    sys.executable,
                    "-m",
                    f"{package}.{program}",
                    *base,
                    *cell.flags,
                    f"--run_dir={directory / cell.name}",
                ),
                os.getcwd(),
                threads,
                retries,
            )
            for cell in cells
        ]
        todo = [
            job
            for job, cell in zip(jobs, cells, strict=True)
            if not is_done(directory, cell)
        ]
        if backend == "ray":
            finished = _on_ray(todo, ray_address, cpus_per_run, gpus_per_run)
        else:
            finished = _in_processes(todo, processes, package)
        failures = _watch(finished, len(jobs), len(todo), progress)
    if failures:
        raise SweepError(
            f"{len(failures)} of {len(cells)} cells failed; the others are "
            "kept, and the same command tries these again.\n"
            + "\n".join(failures[:_SHOWN_FAILURES])
            + ("\n..." if len(failures) > _SHOWN_FAILURES else "")
        )
    return gather_sweep(directory, cells, over)


def is_done(directory: str | os.PathLike, cell: Cell) -> bool:
    """Whether a cell of the sweep in a directory is finished."""
    return (pathlib.Path(directory) / cell.name / "done.json").exists()


def _keep_settings(directory, program, base) -> None:
    """Refuses to mix cells of different programs or common flags."""
    settings = {"program": program, "base": list(base)}
    path = directory / "sweep.json"
    if not path.exists():
        storage.write_json(path, settings)
        return
    there = storage.read_json(path)
    if there != settings:
        raise ValueError(
            f"{directory} holds a sweep with other settings: {there} there, "
            f"{settings} here. Use the original ones, or another --run_dir."
        )


def _watch(finished, total, todo, progress) -> list[str]:
    """Shows each cell that ends; returns the errors of those that failed."""
    failures = []
    with tqdm.tqdm(
        total=total,
        initial=total - todo,
        desc="sweep",
        unit="run",
        disable=not progress,
    ) as bar:
        for job, problem in finished:
            bar.update()
            bar.set_postfix_str(pathlib.Path(job.directory).name)
            if problem:
                failures.append(problem)
    return failures


def _in_processes(
    jobs: Sequence[Job], processes: int, package: str
) -> Iterator[tuple[Job, str | None]]:
    stop = threading.Event()
    forks = None
    if jobs and forking.can_fork():
        forks = forking.forks_of(package, os.getcwd())
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        futures = {pool.submit(run_cell, job, stop, forks): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _on_ray(
    jobs: Sequence[Job], address, cpus, gpus
) -> Iterator[tuple[Job, str | None]]:
    """Runs jobs on a Ray cluster; Ray restarts the jobs of a lost worker."""
    if importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError(
            "--backend=ray needs Ray, which is not installed. Run: pip install "
            "'tfmemloc[sweep]'"
        )
    import ray

    if not jobs:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(
            address=address,
            log_to_driver=False,
            include_dashboard=None if address else False,
        )
    try:
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus)(run_cell)
        pending = {
            remote.options(max_retries=job.retries).remote(job): job
            for job in jobs
        }
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            job = pending.pop(done)
            try:
                yield job, ray.get(done)
            except ray.exceptions.RayError as error:
                yield job, f"{pathlib.Path(job.directory).name}: {error}"
    finally:
        if started:
            ray.shutdown()


def run_cell(
    job: Job,
    stop: threading.Event | None = None,
    forks: forking.Forks | None = None,
) -> str | None:
    """Runs the command of a cell, with retries; returns an error or None.

    If the cell's process has outlived a killed sweep, waits for its end first.

    Args:
        job: the cell.
        stop: once it is set, the command is ended and not tried again.
        forks: starts the command; None starts a fresh Python.
    """
    directory = pathlib.Path(job.directory)
    environment = dict(os.environ)
    if job.threads is not None:
        for kind in ("INTRAOP", "INTEROP"):
            environment.setdefault(f"TF_NUM_{kind}_THREADS", str(job.threads))
    log, attempts, code = directory / "log.txt", 0, None
    while attempts <= job.retries and not (stop and stop.is_set()):
        _wait_until_free(directory)
        if forks is None:
            code = _run_command(job, environment, log, stop)
        else:
            code = forks.run(
                job.command[2:],  # Without `python -m`.
                cwd=job.cwd,
                env=environment,
                log=log,
                stop=stop,
            )
        if code == 0:
            storage.write_json(directory / "done.json", numbers_of(directory))
            return None
        # Another process may have taken the folder since: that is no failure.
        attempts += _IN_USE not in _end_of(log)
    return (
        f"{directory.name}: exit status {code}, {log} ends with\n  "
        + "\n  ".join(_end_of(log).splitlines())
    )


def _run_command(job, environment, log, stop) -> int:
    """Runs the command, its output into the log; returns the exit status."""
    with (
        open(log, "a", encoding="utf-8") as file,
        subprocess.Popen(
            job.command,
            cwd=job.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        while True:
            try:
                return process.wait(timeout=_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if stop and stop.is_set():
                    process.terminate()


def _end_of(log: pathlib.Path) -> str:
    """The last lines of a log."""
    if not log.exists():
        return ""
    lines = log.read_text("utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES:])


def _wait_until_free(directory: pathlib.Path) -> None:
    while True:
        try:
            with storage.lock_directory(directory):
                return
        except storage.DirectoryInUseError:
            time.sleep(_POLL_SECONDS)
