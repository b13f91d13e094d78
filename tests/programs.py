"""Runs the programs as a person would, in fresh processes that start at once.

Importing TensorFlow takes longer than most of what the tests ask of a program.
One process imports it and then forks itself for each command; the child runs
`python -m <module>` with a clean set of flags and ends like any program.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

from tests.conftest import ROOT
from tfmemloc.sweeps import forking


@dataclasses.dataclass
class Done:
    """A program that has ended."""

    returncode: int
    stdout: str
    stderr: str


class Program:
    """A program that was started."""

    def __init__(self, launcher: Launcher, pid: int, stdout: str, stderr: str):
        self._launcher = launcher
        self._paths = stdout, stderr
        self.pid = pid

    def kill(self) -> None:
        """SIGKILL: nothing of the program runs after this."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Done:
        """Waits for the end; negative codes are signals."""
        code = self._launcher.ask({"wait": self.pid})["code"]
        texts = []
        for path in self._paths:
            with open(path, encoding="utf-8", errors="replace") as file:
                texts.append(file.read())
            os.unlink(path)
        return Done(code, *texts)


class Launcher:
    """The process that has imported TensorFlow."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.programs"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, question: dict) -> dict:
        """One line there, one line back."""
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        *arguments: str,
        clock_jump: float = 0,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Program:
        """Starts `python -m <arguments>`.

        Args:
            *arguments: module and flags.
            clock_jump: seconds by which every second look at the clock is
                off.
            threads: that TensorFlow uses in an operation; None: as it likes.
            environment: variables that the program sees as well.
        """
        paths = [tempfile.mkstemp()[1] for _ in range(2)]
        answer = self.ask(
            {
                "run": [str(argument) for argument in arguments],
                "to": paths,
                "clock_jump": clock_jump,
                "threads": threads,
                "environment": dict(environment or {}),
            }
        )
        return Program(self, answer["pid"], *paths)

    def run(self, *arguments: str, check: bool = True, **options) -> Done:
        """Runs `python -m <arguments>` to its end."""
        done = self.start(*arguments, **options).wait()
        assert not check or done.returncode == 0, done.stderr
        return done

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@functools.cache
def launcher() -> Launcher:
    """The launcher of this test process; it ends with it."""
    result = Launcher()
    atexit.register(result.close)
    return result


def _child(question: dict) -> None:
    """Becomes the program; never returns."""
    out, err = (
        os.open(path, os.O_WRONLY | os.O_APPEND) for path in question["to"]
    )
    os.environ.update(question["environment"])
    if question["threads"]:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(
            question["threads"]
        )
    if question["clock_jump"]:
        _let_the_clock_jump(question["clock_jump"])
    forking.run_and_exit(question["run"], out, err)


def _let_the_clock_jump(seconds: float) -> None:
    for name in ("time", "perf_counter", "monotonic"):
        setattr(time, name, _jumping(getattr(time, name), seconds))


def _jumping(clock, seconds: float):
    calls = itertools.count()
    return lambda: clock() + seconds * (next(calls) % 2)


def _serve() -> None:
    """Answers questions until the other side closes."""
    # What the programs import; nothing of it runs an operation yet.
    import binaries.flags  # noqa: F401
    import binaries.gathering
    import binaries.output  # noqa: F401

    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            _, status = os.waitpid(question["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if not pid:
                _child(question)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
