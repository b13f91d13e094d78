"""The command `tfmemloc`: each program as a sub-command.

  tfmemloc train --dataset=digits --run_dir=runs/mine

is `python -m binaries.train --dataset=digits --run_dir=runs/mine` where the
package is installed.
"""

from __future__ import annotations

import ast
import pathlib
import runpy
import sys

# In the order in which a newcomer meets them.
PROGRAMS = (
    "localize",
    "train",
    "remove",
    "score_examples",
    "ablate",
    "ablate_groups",
    "rewind",
    "retrain",
    "account_gradients",
    "audit",
    "inject",
    "export",
    "sweep",
    "tune",
    "report",
)


def main() -> None:
    """Runs a program, or lists them."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_listing())
        return
    if name not in PROGRAMS:
        sys.exit(
            f"error: tfmemloc has no program {name!r}. Expected one of "
            f"{', '.join(PROGRAMS)}; see tfmemloc --help."
        )
    sys.argv = [f"tfmemloc {name}", *arguments]
    runpy.run_module(
        f"{__package__}.{name}", run_name="__main__", alter_sys=True
    )


def _listing() -> str:
    """What there is, without starting TensorFlow."""
    lines = [
        "tfmemloc PROGRAM [--flags]: find what a network memorized, and take "
        "it out.",
        "",
        *(f"  {name:18s} {_first_line(name)}" for name in PROGRAMS),
        "",
        "tfmemloc PROGRAM --help lists the flags of a program. In a clone the "
        "same programs\nare started by python -m binaries.PROGRAM.",
    ]
    return "\n".join(lines)


def _first_line(name: str) -> str:
    path = pathlib.Path(__file__).with_name(f"{name}.py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (text or "").splitlines()[0].rstrip(".")


if __name__ == "__main__":
    main()
