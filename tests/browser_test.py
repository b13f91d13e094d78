"""The pages, in a real browser: nothing overflows, nothing is missing.

Needs Chromium; skips where there is none.
"""

import dataclasses
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.image import imread

from tfmemloc import report
from tfmemloc.labels import find_label_errors
from tfmemloc.removal.drop import NetworkComparison
from tfmemloc.scores.of_predictions import scores_of_logits
from tfmemloc.training import TrainingHistory

BROWSER = next(
    filter(
        None,
        map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    ),
    None,
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="needs Chromium or Chrome on the path"
)
WIDTHS = {"desktop": 1280, "phone": 390}
# Inside of the page: what sticks out of the window, and which pictures did
# not load. Tables and charts may be wide: they scroll by themselves.
_PROBE = """
<script>
addEventListener("load", () => {
  const wide = [...document.body.querySelectorAll("*")].filter(e =>
    !e.closest(".table, .chart") &&
    e.getBoundingClientRect().right > innerWidth + 1);
  const broken = [...document.images].filter(i => !i.naturalWidth);
  parent.postMessage(`width=${innerWidth} scroll=` +
    document.documentElement.scrollWidth +
    ` wide=${wide.length} broken=${broken.length}` +
    ` images=${document.images.length}`, "*");
});
</script>
"""
_FRAME = """<!doctype html><body style="margin:0">
<iframe src="{page}" style="border:0;width:{width}px;height:4000px"></iframe>
<script>
addEventListener("message", m => {{
  document.body.appendChild(document.createElement("pre")).id = "found";
  document.getElementById("found").textContent = m.data;
}});
</script>
"""


def _browse(*arguments):
    done = subprocess.run(
        [
            BROWSER,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--virtual-time-budget=5000",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


def _measured(page, width):
    """What the page says of itself in a window of some width."""
    probed = page.with_name(f"probed_{page.name}")
    probed.write_text(page.read_text() + _PROBE)
    frame = page.with_name(f"frame_{width}.html")
    frame.write_text(_FRAME.format(page=probed.name, width=width))
    dom = _browse(
        "--window-size=1400,1000", "--dump-dom", frame.resolve().as_uri()
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', dom)
    assert found, dom[-500:]
    return {
        name: int(value)
        for name, value in (part.split("=") for part in found[1].split())
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory, digits):
    """A report and a page of suspects, with awkward names."""
    directory = tmp_path_factory.mktemp("pages")
    named = dataclasses.replace(
        digits, name="<b>digits</b> of a_very_long_name" + 40 * "_x"
    )
    part = named.train
    scores = scores_of_logits(part, dropped=4 * np.eye(10)[part.true_label])
    find_label_errors(scores, named, directory)
    table = np.linspace(0, 1, 24).reshape(6, 4)
    result = NetworkComparison(
        dataset=named.name,
        models=(
            "standard",
            "standard_dropout",
            "sparse",
            *["example_tied"] * 3,
        ),
        inferences=("plain", "plain", "plain", "tied", "expected", "drop"),
        subsets=("clean", "noisy", "typical", "test"),
        count=np.full(4, 10),
        accuracy=table,
        true_accuracy=table,
        loss=table,
    )
    history = [
        {"epoch": e, "accuracy": {"plain": {"clean": e / 5, "noisy": 0.1}}}
        for e in range(5)
    ]
    histories = dict.fromkeys(("standard", "example_tied"), history)
    report.write_html(
        directory / "report.html",
        f"Where is the memory? {named.name}",
        [
            report.section_of(result),
            report.section_of(TrainingHistory.of(histories)),
        ],
        {"Command": "python -m binaries.localize " + 9 * "--run_dir=runs/x "},
    )
    return directory


@pytest.mark.parametrize("name", ["report.html", "suspects.html"])
@pytest.mark.parametrize("screen", WIDTHS)
def test_nothing_overflows_or_is_missing(pages, name, screen):
    width = WIDTHS[screen]
    found = _measured(pages / name, width)
    assert found["width"] == width
    assert found["scroll"] <= width
    assert found["wide"] == found["broken"] == 0
    expected = (pages / name).read_text().count("data:image/png")
    assert found["images"] == expected > 0


def test_a_screenshot_has_something_on_it(pages):
    path = pages / "report.png"
    _browse(
        "--window-size=1280,2000",
        f"--screenshot={path}",
        (pages / "report.html").resolve().as_uri(),
    )
    image = imread(path)[..., :3]
    assert image.shape[1] == 1280
    # Text and both figures: the page is neither blank nor one colour.
    dark = (image.mean(axis=-1) < 0.5).mean(axis=1)
    assert (dark > 0).mean() > 0.1
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
