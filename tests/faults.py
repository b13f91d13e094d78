"""Faults, really injected, and what becomes of the results.

  python -m tests.faults --tries=50 --json=docs/results/faults.json

takes about six minutes on 2 CPU cores and prints the table of
docs/paper_map.md. The tests take the same faults, with fewer tries.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from tests.programs import Launcher
from tfmemloc import report, storage

SMALL = (
    "--model=lenet",
    "--p_gen=0.5",
    "--train_examples=96",
    "--test_examples=32",
    "--batch_size=32",
    "--epochs=4",
    "--learning_rate=0.05",
    "--noise_rate=0.2",
)


def train_command(out: pathlib.Path) -> list[str]:
    """A small training."""
    return ["binaries.train", *SMALL, f"--run_dir={out}"]


def commands(run: pathlib.Path) -> Mapping[str, Callable[..., list[str]]]:
    """Program -> its command, for the folder that it writes to."""

    def probe(name, *more):
        return lambda out: [
            f"binaries.{name}",
            f"--run_dir={run}",
            f"--out_dir={out}",
            *more,
        ]

    return {
        "train": train_command,
        "account_gradients": probe("account_gradients"),
        "rewind": probe("rewind"),
        "retrain": probe("retrain", "--epochs=2"),
        "ablate": probe("ablate", "--count=8"),
        "score_examples": probe("score_examples", "--critical_set"),
        "remove": probe("remove", "--refit_epochs=1"),
        "export": lambda out: [
            "binaries.export",
            f"--run_dir={run}",
            f"--out_dir={out}_served",
        ],
        "sweep": lambda out: [
            "binaries.sweep",
            "--grid=seed=0..1",
            f"--base={' '.join(SMALL)}",
            f"--run_dir={out}",
        ],
    }


def results_of(directory: pathlib.Path) -> dict[str, str]:
    """The results in a folder: name -> checksum of what they say.

    Arrays and tables; not times, and not the bytes of a zip file.
    """
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.suffix == ".npz":
            arrays = storage.read_arrays(path)
            found[name] = storage.digest(arrays.values())
        elif path.suffix == ".csv":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "variables.index":
            weights = tf.train.load_checkpoint(str(path.with_suffix("")))
            found[name] = storage.digest(
                weights.get_tensor(key)
                for key in sorted(weights.get_variable_to_shape_map())
                # The rest is their places in a set, and no weight.
                if key.startswith("variables/")
            )
    return found


def leftovers(directory: pathlib.Path) -> list[pathlib.Path]:
    """Temporary files that nobody removed."""
    return [path for path in directory.rglob("*") if ".tmp" in path.name]


class Faults:
    """The faults of one launcher, in one folder, on one small run."""

    def __init__(self, launcher: Launcher, directory: pathlib.Path):
        self.launcher = launcher
        self.directory = directory
        self.run = directory / "base"
        launcher.run(*train_command(self.run))
        self.undisturbed: dict[str, tuple[dict[str, str], float]] = {}

    def expected(self, program: str) -> tuple[dict[str, str], float]:
        """Results and seconds of an undisturbed run of a program."""
        if program not in self.undisturbed:
            out = self.directory / f"{program}_whole"
            started = time.monotonic()
            self.launcher.run(*commands(self.run)[program](out))
            self.undisturbed[program] = (
                results_of(self.output(program, out)),
                time.monotonic() - started,
            )
        return self.undisturbed[program]

    def output(self, program: str, out: pathlib.Path) -> pathlib.Path:
        """Where a program writes: an export, beside its folder."""
        return pathlib.Path(f"{out}_served") if program == "export" else out

    def kill(self, program: str, rng: np.random.Generator, name: str) -> str:
        """SIGKILL at a random moment, then the same command again.

        A program that had ended before the signal came is tried anew.
        """
        outcome, attempt = None, 0
        while outcome is None:
            outcome = self._kill_once(program, rng, f"{name}_{attempt}")
            attempt += 1
        return outcome

    def _kill_once(self, program: str, rng, name: str) -> str | None:
        """The outcome; None where the program had ended before."""
        whole, seconds = self.expected(program)
        out = self.directory / f"{program}_{name}"
        command = commands(self.run)[program](out)
        started = self.launcher.start(*command)
        time.sleep(rng.uniform(0.05, 1) * seconds)
        started.kill()
        if started.wait().returncode != -signal.SIGKILL:
            return None
        again = self.launcher.run(*command, check=False)
        # An export that was finished before the signal is not overwritten.
        was_finished = "exists. Choose another path" in again.stderr
        if again.returncode and not was_finished:
            return f"failed: {again.stderr.splitlines()[-1]}"
        same = results_of(self.output(program, out)) == whole
        return "same results" if same else "other results"

    def damage(self, flip: bool, rng: np.random.Generator) -> str:
        """A weight file truncated, or with one bit flipped."""
        run = self.directory / "damaged"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.run, run)
        path = run / "weights" / "epoch_0004.npz"
        data = bytearray(path.read_bytes())
        if flip:
            # Anywhere: pixels of arrays, names, checksums, the directory.
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        else:
            data = data[: rng.integers(1, len(data))]
        path.write_bytes(data)
        done = self.launcher.run(
            "binaries.rewind",
            f"--run_dir={run}",
            f"--out_dir={self.directory / 'rewound'}",
            check=False,
        )
        if done.returncode == 0:
            # A bit that nobody reads, such as a time stamp.
            whole, _ = self.expected("rewind")
            same = results_of(self.directory / "rewound") == whole
            return "same results" if same else "WRONG RESULTS"
        last = done.stderr.splitlines()[-1]
        clear = last.startswith("error: ") and str(path) in last
        return "clear error" if clear else f"unclear: {last}"

    def full_disk(self, kilobytes: int) -> str:
        """A training on a disk with too little space, and then with enough."""
        disk = self.directory / "disk"
        disk.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs"]
        if subprocess.run([*mount, disk], check=False).returncode:
            return "not tried: no right to mount"
        try:
            run = disk / "run"
            done = self.launcher.run(*train_command(run), check=False)
            if done.returncode == 0:
                return "it fitted"
            last = done.stderr.splitlines()[-1]
            if "No space left" not in last or "Traceback" in done.stderr:
                return f"unclear: {last}"
            if leftovers(disk):
                return "left temporary files"
            subprocess.run(
                ["mount", "-o", "remount,size=100m", disk], check=True
            )
            self.launcher.run(*train_command(run))
            whole, _ = self.expected("train")
            same = results_of(run) == whole
            return "clear error, then same results" if same else "other results"
        finally:
            subprocess.run(["umount", disk], check=True)

    def read_only(self) -> str:
        """A folder on a file system that cannot be written to."""
        disk = self.directory / "read_only"
        disk.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk]
        if subprocess.run(mount, check=False).returncode:
            return "not tried: no right to mount"
        try:
            done = self.launcher.run(*train_command(disk / "run"), check=False)
            last = done.stderr.splitlines()[-1]
            clear = done.returncode and "Read-only file system" in last
            return "clear error" if clear else f"unclear: {last}"
        finally:
            subprocess.run(["umount", disk], check=True)

    def clock(self, hours: float) -> str:
        """The clock jumps in the middle of a training."""
        out = self.directory / f"clock_{hours}"
        self.launcher.run(*train_command(out), clock_jump=3600 * hours)
        whole, _ = self.expected("train")
        return "same results" if results_of(out) == whole else "other results"

    def two_writers(self) -> str:
        """The same command twice at once."""
        out = self.directory / "two"
        first = self.launcher.start(*train_command(out))
        deadline = time.monotonic() + 60
        while not (out / ".lock").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        second = self.launcher.run(*train_command(out), check=False)
        done = first.wait()
        whole, _ = self.expected("train")
        same = done.returncode == 0 and results_of(out) == whole
        refused = "is in use by another process" in second.stderr
        shutil.rmtree(out)
        if same and refused:
            return "second refused, same results"
        return f"unclear: {second.stderr.splitlines()[-1]}"

    def interrupted_download(self, cut: str) -> str:
        """A TFDS folder whose preparation was stopped, or lost its end."""
        from tests.conftest import REAL_DATA

        if not REAL_DATA.exists():
            return "not tried: no prepared data"
        folder = self.directory / f"tfds_{cut}"
        source = next((REAL_DATA / "mnist").iterdir())
        target = folder / "mnist" / source.name
        if cut == "incomplete":
            target = target.with_name(f"{source.name}.incompleteXYZ")
        shutil.copytree(source, target)
        if cut == "truncated":
            (records,) = target.glob("*train*record*")
            data = records.read_bytes()
            records.write_bytes(data[: len(data) // 2])
        done = self.launcher.run(
            "binaries.train",
            *SMALL,
            "--dataset=mnist",
            "--train_examples=60000",
            f"--data_dir={folder}",
            f"--run_dir={self.directory / 'never'}",
            check=False,
        )
        last = (done.stderr.splitlines() or [""])[-1]
        clear = done.returncode and last.startswith("error: ")
        clear = clear and "mnist" in last and "Traceback" not in done.stderr
        return "clear error" if clear else f"unclear: {last}"


def table(tries: int, seed: int = 0) -> list[dict[str, str | int]]:
    """All faults: fault, tries, outcomes with their counts."""
    rng = np.random.default_rng(seed)
    launcher = Launcher()
    outcomes: dict[str, list[str]] = {}

    def note(fault: str, outcome: str) -> None:
        outcomes.setdefault(fault, []).append(outcome)

    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(launcher, pathlib.Path(folder))
        programs = list(commands(faults.run))
        for k in range(tries):
            program = programs[k % len(programs)]
            note(f"SIGKILL: {program}", faults.kill(program, rng, str(k)))
        for _ in range(max(1, tries // 5)):
            note("weight file truncated", faults.damage(False, rng))
            note("weight file, one bit flipped", faults.damage(True, rng))
        for kilobytes in (20, 200, 400)[: max(1, tries // 10)]:
            note("disk full", faults.full_disk(kilobytes))
        note("read-only file system", faults.read_only())
        for hours in (-30, 1000):
            note("clock jumps", faults.clock(hours))
        note("two writers", faults.two_writers())
        for cut in ("incomplete", "truncated"):
            note("interrupted download", faults.interrupted_download(cut))
    launcher.close()
    return [
        {
            "fault": fault,
            "tries": len(found),
            "outcome": ", ".join(
                f"{found.count(outcome)} {outcome}"
                for outcome in dict.fromkeys(found)
            ),
        }
        for fault, found in outcomes.items()
    ]


def main() -> None:
    """Prints the table, and keeps it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=50)
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = table(options.tries)
    print(report.text_table(rows))
    if options.json:
        pathlib.Path(options.json).write_text(
            json.dumps({"rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
