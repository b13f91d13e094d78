"""The documentation site: built strictly, with every public name in it."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import tfmemloc

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_the_site_holds_every_public_name(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    # Strict, as mkdocs.yml has it: a dead link is an error.
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = [path.read_text() for path in tmp_path.rglob("*.html")]
    anchors = set(re.findall(r'id="(tfmemloc[\w.]*)"', "".join(pages)))
    names = {anchor.rpartition(".")[2] for anchor in anchors}
    assert not set(tfmemloc.__all__) - names
