"""The plan of the house: imports go down, files are short, names are kept."""

import ast
import importlib
import importlib.util
import pathlib
import re
import statistics

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tfmemloc"

# Packages and modules from the ground up. Each may import from those that
# stand before it; within a package, modules must not import in a circle.
ORDER = [
    "checks",
    "fields",
    "portability",
    "storage",
    "shares",
    "subsets",
    "statistics",
    "configs",
    "presets",
    "result",
    "report",
    "tracing",
    "layers",
    "data",
    "losses",
    "graph",
    "models",
    "evaluation",
    "fit",
    "moved",
    "behaviours",
    "runs",
    "snapshots",
    "gradients",
    "training",
    "units",
    "probes",
    "scores",
    "removal",
    "labels",
    "audits",
    "serving",
    "sweeps",
]
# What must work where TensorFlow is not installed.
PLAIN = (
    "checks",
    "fields",
    "portability",
    "storage",
    "subsets",
    "statistics",
    "configs",
    "presets",
    "result",
    "report",
)
LONGEST, MEDIAN = 410, 200
# Names that version 1 had and that misled; none of them comes back.
MISLEADING = re.compile(
    r"\b(localize\(|places_that|_Feed|Learner\(|def mine|"
    r"so-manieth|settings of then)"
)


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
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
    assert name in ORDER, f"give {name} a place"
    for imported in _imports(path):
        parts = imported.split(".")
        if parts[0] != "tfmemloc" or parts[1] == name:
            continue
        assert parts[1] in ORDER, f"{name} <- {imported}"
        assert ORDER.index(parts[1]) < ORDER.index(name), f"{name} <- {parts}"


def _inner_imports(package):
    """Module of a package -> the modules of it that it imports."""
    start = f"tfmemloc.{package.name}."
    names = {
        ".".join(path.relative_to(package).with_suffix("").parts): path
        for path in package.rglob("*.py")
        if path != package / "__init__.py"
    }
    names = {name.removesuffix(".__init__"): p for name, p in names.items()}
    found = {}
    for name, path in names.items():
        found[name] = set()
        for imported in _imports(path):
            inner = imported.removeprefix(start)
            if inner == imported or _type_checked(path):
                continue  # From elsewhere, or for type checkers alone.
            known = [n for n in names if f"{inner}.".startswith(f"{n}.")]
            if known and max(known, key=len) != name:
                found[name].add(max(known, key=len))
    return found


def _type_checked(path):
    """Whether names are imported for type checkers alone."""
    return "TYPE_CHECKING" in path.read_text()


@pytest.mark.parametrize(
    "package",
    [path for path in sorted(PACKAGE.iterdir()) if path.is_dir()],
    ids=lambda path: path.name,
)
def test_no_package_imports_in_a_circle(package):
    if package.name == "__pycache__":
        return
    inner = _inner_imports(package)
    done: set[str] = set()

    def visit(name, above):
        assert name not in above, f"circle: {[*above, name]}"
        if name in done:
            return
        for other in inner.get(name, ()):
            visit(other, [*above, name])
        done.add(name)

    for name in inner:
        visit(name, [])


@pytest.mark.parametrize("name", PLAIN)
def test_plain_modules_do_not_need_tensorflow(name):
    place = PACKAGE / name
    paths = place.rglob("*.py") if place.is_dir() else [PACKAGE / f"{name}.py"]
    for path in paths:
        roots = {imported.split(".")[0] for imported in _imports(path)}
        assert not roots & {"tensorflow", "keras"}, path


def test_the_search_imports_no_ranking():
    for name in ("search", "gated_model", "gates"):
        for imported in _imports(PACKAGE / "units" / f"{name}.py"):
            assert not imported.startswith("tfmemloc.units.rankings"), name


def test_files_are_short():
    lengths = {
        path: len(path.read_text().splitlines())
        for path in [*PACKAGE.rglob("*.py"), *(ROOT / "binaries").glob("*.py")]
        if path.name != "__init__.py"
    }
    longest = max(lengths, key=lengths.get)
    assert lengths[longest] <= LONGEST, (longest, lengths[longest])
    assert statistics.median(lengths.values()) <= MEDIAN


def test_functions_are_short():
    counts = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                counts.append(body[-1].end_lineno - body[0].lineno + 1)
    assert statistics.median(counts) <= 10
    assert max(counts) <= 80


def test_no_hall_and_no_misleading_name_comes_back():
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    halls = {"results", "plots", "surgery", "utils", "helpers", "common"}
    assert names & halls <= {"results"}  # Those of a sweep.
    assert (PACKAGE / "sweeps" / "results.py").exists()
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "binaries").glob("*.py")]:
        assert not MISLEADING.search(path.read_text()), path


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


def _used_of_modules(path):
    """(module of the library, name) for each `module.name` in a file."""
    tree = ast.parse(path.read_text())
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole.startswith("tfmemloc.") and _is_module(whole):
                    modules[alias.asname or alias.name] = whole
    for node in ast.walk(tree):
        owner = getattr(node, "value", None)
        if isinstance(node, ast.Attribute) and isinstance(owner, ast.Name):
            module = modules.get(owner.id)
            if module is not None:
                yield module, node.attr


def _is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # The name above is no package.
        return False


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in ("benchmarks", "binaries", "examples")
        for path in sorted((ROOT / folder).glob("*.py"))
    ],
    ids=lambda path: f"{path.parent.name}.{path.stem}",
)
def test_what_programs_use_of_the_library_is_there(path):
    """A benchmark that nobody runs would not say that a name has moved."""
    for module, name in _used_of_modules(path):
        found = importlib.import_module(module)
        assert hasattr(found, name) or _is_module(f"{module}.{name}"), (
            f"{module}.{name}"
        )


def test_all_names_are_public_and_exist():
    import tfmemloc

    assert len(set(tfmemloc.__all__)) == len(tfmemloc.__all__)
    for name in tfmemloc.__all__:
        assert getattr(tfmemloc, name).__doc__, name


def test_the_table_of_contents_is_complete():
    import tfmemloc

    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == set(tfmemloc.__all__)


def test_all_packages_are_in_the_distribution():
    text = (ROOT / "setup.cfg").read_text()
    for path in PACKAGE.rglob("__init__.py"):
        name = ".".join(path.parent.relative_to(ROOT).parts)
        assert f"    {name}\n" in text, name
    for path in (PACKAGE / "report" / "templates").iterdir():
        assert path.suffix in (".html", ".css")
    assert "templates/*" in text
