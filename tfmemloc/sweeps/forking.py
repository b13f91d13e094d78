"""Starts programs from a process that has imported TensorFlow already.

The import takes longer than a small cell of a sweep trains. One helper process
imports what all programs do, runs nothing, and forks itself for each command:
the child becomes `python -m <module> <flags>`. Where processes cannot be forked
safely (all but Linux), commands are started in the ordinary way.

    python -m tfmemloc.sweeps.forking <package>

reads a question a line, as JSON, and answers each with a line:

    {"run": [module, flags...], "cwd": ..., "log": ..., "env": {...}}  -> pid
    {"poll": pid}                                -> its exit status, or null
    {"stop": pid}                                -> null
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

_POLL_SECONDS = 0.1


def can_fork() -> bool:
    """Whether a process may fork after TensorFlow was imported."""
    return sys.platform == "linux"


@functools.cache
def forks_of(package: str, cwd: str) -> Forks:
    """The helper of a package's programs; it ends with this process."""
    forks = Forks(package, cwd)
    atexit.register(forks.close)
    return forks


class Forks:
    """The helper process; several threads may run commands at once.

    A program goes on if this process is killed, as any started one would.

    Args:
        package: whose `flags` the programs import.
        cwd: where to start, so that `package` is found.
    """

    def __init__(self, package: str, cwd: str):
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, package],
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(
        self,
        command: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        log: pathlib.Path,
        stop: threading.Event | None,
    ) -> int:
        """Runs a module with its flags to the end; returns the exit status."""
        pid = self._ask(
            {
                "run": list(command),
                "cwd": cwd,
                "env": dict(env),
                "log": str(log),
            }
        )
        while True:
            code = self._ask({"poll": pid})
            if code is not None:
                return code
            if stop and stop.is_set():
                self._ask({"stop": pid})
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Ends the helper; programs that it started go on."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, question: dict):
        with self._lock:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise OSError(
                "The process that starts the cells has ended. Expected it to "
                "live as long as the sweep; the same command goes on."
            )
        return json.loads(line)


def _serve(package: str) -> None:
    """Answers questions until the other side closes."""
    # What all programs import; nothing of it runs an operation yet.
    importlib.import_module(f"{package}.flags")
    gc.freeze()  # What is imported is no garbage; forks need not look there.
    ended: dict[int, int] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "run" in question:
            pid = os.fork()
            if not pid:
                _become(question)
            answer = pid
        elif "poll" in question:
            answer = _polled(question["poll"], ended)
        else:
            os.kill(question["stop"], signal.SIGTERM)
            answer = None
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _polled(pid: int, ended: dict[int, int]) -> int | None:
    """The exit status of a child that has ended; negative is a signal."""
    if pid not in ended:
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            return None
        ended[pid] = os.waitstatus_to_exitcode(status)
    return ended[pid]


def _become(question: Mapping) -> None:
    """Becomes the program; never returns."""
    os.chdir(question["cwd"])
    os.environ.update(question["env"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    log = os.open(question["log"], flags, 0o666)
    run_and_exit(question["run"], log, log)


def run_and_exit(command: Sequence[str], stdout: int, stderr: int) -> None:
    """Runs a module with its flags and ends the process, as a program does.

    Args:
        command: the module, and its flags.
        stdout: descriptor of a file for what it prints.
        stderr: likewise.
    """
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        module, *arguments = command
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else bool(stop.code)
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))


if __name__ == "__main__":
    _serve(sys.argv[1])
