"""Rules about the source that the linters cannot express."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "headrace"
MODULES = sorted(SOURCE.rglob("*.py"))
PYTHON = sorted(path for folder in ("src", "tests", "topologies", "bench") for path in (ROOT / folder).rglob("*.py"))
TEXTS = sorted(
    path
    for pattern in ("*.*", ".*", ".ci/*", "bench/*", "docker/*", "docs/**/*.md", "src/**/*.py", "tests/**/*.py")
    for path in ROOT.glob(pattern)
    if path.is_file() and path.suffix != ".lock" and path != Path(__file__)
)

MODULE_LINES = 500
FUNCTION_LINES = 70
VAGUE = {"utils", "util", "common", "helpers", "misc", "manager"}

LOGIC = [
    "operators", "topology", "dsl", "record.py", "errors.py", "checkpoint/decide.py", "runtime/tasks",
]  # fmt: skip
"""What computes and has no effects."""

EFFECTS = {
    "asyncio", "concurrent", "fcntl", "http", "io", "multiprocessing", "os", "pathlib", "pickle", "random", "secrets",
    "select", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib",
    "uuid",
}  # fmt: skip
"""Modules that read a clock, draw a number, or touch a file, a thread or the network."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[name_of(path) for path in paths])


@each(PYTHON)
def test_a_module_fits_in_the_head(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MODULE_LINES, f"{name_of(path)} has {lines} lines: divide it"


@each(PYTHON)
def test_a_function_fits_on_a_page(path: Path) -> None:
    long = {
        f.name: (f.end_lineno or 0) - f.lineno + 1
        for f in functions(tree_of(path))
        if (f.end_lineno or 0) - f.lineno + 1 > FUNCTION_LINES
    }
    assert not long, f"{name_of(path)}: divide {long}"


@each(MODULES)
def test_a_name_says_what_it_is(path: Path) -> None:
    words = set(path.stem.split("_")) | {path.parent.name}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ClassDef):
            words |= {word.lower() for word in re.findall(r"[A-Z][a-z]+", node.name)}
    assert not words & VAGUE, f"{name_of(path)}: {words & VAGUE} says nothing"


LAZY = [SOURCE / "__init__.py", SOURCE / "testing" / "__init__.py"]
"""Packages with public names; all but the first import them when they are first used."""


@each([path for path in MODULES if path.name == "__init__.py" and path not in LAZY])
def test_a_package_holds_no_imports(path: Path) -> None:
    found = list(imports(tree_of(path)))
    assert not found, f"{name_of(path)} imports {found}: import from the module that defines the name"


def test_what_tests_use_is_imported_when_it_is_first_used() -> None:
    at_once = [node for node in tree_of(LAZY[1]).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [getattr(node, "module", None) for node in at_once] == ["typing"]


@each(MODULES)
def test_no_public_function_is_empty(path: Path) -> None:
    empty = [
        function.name
        for function in functions(tree_of(path))
        if not function.name.startswith("_") and any(isinstance(node, ast.Pass) for node in function.body)
    ]
    assert not empty, f"{name_of(path)}: {empty} do nothing"


@each([path for entry in LOGIC for path in ([SOURCE / entry] if entry.endswith(".py") else (SOURCE / entry).rglob("*"))
       if path.suffix == ".py"])  # fmt: skip
def test_logic_imports_no_effects(path: Path) -> None:
    tree = tree_of(path)
    found = {name for name in imports(tree) if name.split(".")[0] in EFFECTS}
    assert not found, f"{name_of(path)} imports {found}: take what it needs as an argument"
    calls = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"open", "input", "print"}
    }
    assert not calls, f"{name_of(path)} calls {calls}"


def test_logic_is_found() -> None:
    for entry in LOGIC:
        assert (SOURCE / entry).exists(), entry


@each([path for path in MODULES if path.name != "card_spend.py"])
def test_importing_a_module_does_nothing(path: Path) -> None:
    calls = [
        ast.unparse(node)
        for node in tree_of(path).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]
    assert not calls, f"{name_of(path)} runs {calls} when it is imported"


@each([path for layer in ("checkpoint", "log", "runtime") for path in (SOURCE / layer).rglob("*.py")])
def test_what_threads_decode_is_known_before(path: Path) -> None:
    """See ``serde.converting``."""
    tree = tree_of(path)
    plain = {ast.unparse(node.targets[0]) for node in tree.body if isinstance(node, ast.Assign)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    decodes = [call for call in calls if re.match(r"msgspec\.(\w+\.)?(convert|decode)$", ast.unparse(call.func))]
    kinds = {ast.unparse(kind) for call in decodes for kind in [*call.args[1:], *(k.value for k in call.keywords)]}
    assert kinds <= plain, f"{name_of(path)} decodes {kinds - plain}: use a decoder or converter that it makes at once"


@each(TEXTS)
def test_nothing_names_the_place_where_it_was_made(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"(?<![\w.])/(?:work|home|root)/\w+|design\.md", text)
    assert not found, f"{name_of(path)} names {found}"


def test_the_public_names_are_sorted_and_complete() -> None:
    tree = tree_of(SOURCE / "__init__.py")
    public: list[str] = []
    defined: set[str] = set()
    lazy = [inner for node in tree.body if isinstance(node, ast.If) for inner in node.body]
    for node in [*tree.body, *lazy]:
        if isinstance(node, ast.ImportFrom | ast.Import):
            if getattr(node, "module", "") not in ("__future__", "typing"):
                defined |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            if "__all__" in names:
                assert node.value is not None
                public = ast.literal_eval(node.value)
            defined |= names - {"__all__"}
    assert public == sorted(set(public)), "__all__ is sorted, without repetition"
    assert set(public) - {"__version__"} == {name for name in defined if not name.startswith("_")}
