"""Imports go down only, and nothing in the package prints or pickles."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Level of each module; a module may import from lower levels, and from its
# own level only what stands before it.
LEVELS = [
    ["configs", "storage", "results"],
    ["masks", "layers", "data", "augmentation", "batches"],
    [
        "models",
        "graph",
        "surgery",
        "pruning",
        "cuts",
        "gates",
        "evaluation",
        "closed_forms",
        "gradients",
    ],
    ["recording", "runs", "training"],
    ["probes", "memorization", "scores", "localization", "sweeps"],
    ["plots", "report", "export", "label_errors"],
]
ORDER = [name for level in LEVELS for name in level]
LEVEL = {name: i for i, level in enumerate(LEVELS) for name in level}
PLAIN = ("configs", "storage", "results", "plots", "report")


def _modules():
    for path in sorted((ROOT / "tfmemloc").rglob("*.py")):
        parts = path.relative_to(ROOT / "tfmemloc").with_suffix("").parts
        if parts != ("__init__",):
            yield path, parts[0]


def _imports(path):
    """The dotted names that a module imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{a.name}" for a in node.names)


@pytest.mark.parametrize(
    ("path", "name"), _modules(), ids=lambda value: getattr(value, "stem", None)
)
def test_imports_go_down(path, name):
    assert name in LEVEL, f"give {name} a level"
    for imported in _imports(path):
        parts = imported.split(".")
        if parts[0] != "tfmemloc" or parts[1] == name:
            continue
        other = parts[1]
        assert ORDER.index(other) < ORDER.index(name), f"{name} <- {other}"
        if name in ("plots", "report"):
            assert LEVEL[other] == 0 or other == "plots"


@pytest.mark.parametrize("name", PLAIN)
def test_plain_modules_do_not_need_tensorflow(name):
    path = ROOT / "tfmemloc" / f"{name}.py"
    roots = {imported.split(".")[0] for imported in _imports(path)}
    assert not roots & {"tensorflow", "keras"}


def test_the_package_neither_prints_nor_pickles_nor_asserts():
    for path, _ in _modules():
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", path
        assert "pickle" not in " ".join(_imports(path)), path


def test_nothing_imports_the_programs():
    for path, _ in _modules():
        roots = {imported.split(".")[0] for imported in _imports(path)}
        assert not roots & {"binaries", "benchmarks", "tests"}, path


def test_all_names_are_public_and_exist():
    import tfmemloc

    assert len(set(tfmemloc.__all__)) == len(tfmemloc.__all__)
    for name in tfmemloc.__all__:
        assert getattr(tfmemloc, name).__doc__, name


def test_the_table_of_contents_is_complete():
    import tfmemloc

    tree = ast.parse((ROOT / "tfmemloc" / "__init__.py").read_text())
    imported = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == set(tfmemloc.__all__)
