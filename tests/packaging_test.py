"""What is installed: everything, under names that collide with nothing."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from binaries.__main__ import PROGRAMS
from tests.conftest import ROOT


def test_every_package_and_program_is_listed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "tfmemloc").rglob("__init__.py")
    }
    assert listed == found | {"tfmemloc_programs"}
    programs = {
        path.stem
        for path in (ROOT / "binaries").glob("*.py")
        if "flags.run(main)" in path.read_text()
    }
    assert set(PROGRAMS) == programs


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, unpacked into a folder outside of the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # A build leaves files behind.
    for name in ("tfmemloc", "binaries"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet"]
        + ["--no-build-isolation", f"--wheel-dir={folder}", str(source)],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_what_programs_need(installed):
    assert (installed / "tfmemloc" / "py.typed").exists()
    assert (installed / "tfmemloc/report/templates/review.html").exists()
    assert (installed / "tfmemloc_programs/flagfiles/digits.flags").exists()
    assert not (installed / "binaries").exists()
    assert not (installed / "tests").exists()


def _run(installed, *arguments):
    """A program of the wheel, started far from the clone."""
    environment = dict(os.environ)
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # As a user has it.
    return subprocess.run(
        [sys.executable, "-m", "tfmemloc_programs", *arguments],
        cwd=installed.parent,
        env={**environment, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_lists_and_starts_programs(installed):
    listed = _run(installed)
    assert listed.returncode == 0
    assert all(f"  {name}" in listed.stdout for name in PROGRAMS)
    wrong = _run(installed, "trian")
    assert wrong.returncode == 1
    assert "no program 'trian'. Expected one of localize, tr" in wrong.stderr
    done = _run(
        installed,
        "train",
        "--model=lenet",
        "--width=1",
        "--train_examples=64",
        "--test_examples=32",
        "--epochs=1",
        "--run_dir=run",
    )
    assert done.returncode == 0, done.stderr
    # TensorFlow's start says nothing where there is no GPU to speak of.
    assert "cuInit" not in done.stderr and "oneDNN" not in done.stderr
    assert (installed.parent / "run" / "config.json").exists()
    shown = _run(installed, "train", "--help")
    assert shown.returncode == 0 and "own_statistics" in shown.stdout
