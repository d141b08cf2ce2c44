"""The house keeps its order: which way imports point, what is heavy comes late, nothing lies where it should not.

Why each rule holds is said in the test; the rooms are described in the README.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"mglmm": ROOT / "mglmm", "sam_bridge": ROOT / "sam_bridge", "mglmm_data": ROOT / "datasets" / "mglmm_data"}

ALLOWED = {
    "sam_bridge": {"sam_bridge", "torch", "transformers", "numpy", "PIL"},
    "mglmm_data": {"mglmm_data", "numpy", "PIL", "cv2", "pycocotools", "pydantic", "fsspec", "yaml"},
}
# Takes seconds to import; like everything that only an extra brings, it is imported inside functions, never at the top.
LATE = {"peft"}
FOR_USERS = ("train", "eval", "demo", "serve", "quant", "sam-official")
FOR_DEVELOPERS = ("test", "dev")
# Modules whose name is not that of their distribution.
MODULE = {"opencv-python-headless": "cv2", "pillow": "PIL", "protobuf": "google", "pyyaml": "yaml"}

TOP_LEVEL = {
    *(".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml"),
    *("configs", "datasets", "mglmm", "sam_bridge", "tests", "tools"),
}


@cache
def project_files() -> tuple[Path, ...]:
    """Relative paths of all files of the project: what git tracks, and what it would on `git add .`"""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone, so there is no list of the project's files")
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return tuple(Path(name) for name in listed if name and (ROOT / name).is_file())


@cache
def modules(package: str) -> dict[str, ast.Module]:
    """Syntax trees of a package's modules by their path in the project."""
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert files, f"{PACKAGES[package]} holds no module"
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def imported(node: ast.AST) -> Iterator[str]:
    """Top-level names of what one statement imports; relative imports stay inside the package."""
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        yield node.module.partition(".")[0]


def foreign(names: Iterator[str]) -> set[str]:
    return {name for name in names if name not in sys.stdlib_module_names}


def imports(tree: ast.Module) -> set[str]:
    """Everything that is not in the standard library, wherever the import stands."""
    return foreign(name for node in ast.walk(tree) for name in imported(node))


def imports_at_load(tree: ast.Module) -> set[str]:
    """What importing the module imports: all but function bodies and `if TYPE_CHECKING:`."""

    def visit(node: ast.AST) -> Iterator[str]:
        yield from imported(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield from visit(child)

    return foreign(visit(tree))


def distributions(*extras: str) -> set[str]:
    """Names of the project's dependencies, and of those of the given extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for group in groups for line in group}


def declared(*extras: str) -> set[str]:
    """Modules that the project's dependencies, and those of the given extras, bring along."""
    return {MODULE.get(name, name.replace("-", "_")) for name in distributions(*extras)}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_lower_room_imports_only_what_it_may(package):
    # sam_bridge and mglmm_data can be taken out and used alone; mglmm_data never waits for torch.
    wrong = {file: sorted(imports(tree) - ALLOWED[package]) for file, tree in modules(package).items()}
    assert not {file: names for file, names in wrong.items() if names}


def test_mglmm_imports_only_what_it_declares():
    known = declared(*FOR_USERS) | set(PACKAGES)
    wrong = {file: sorted(imports(tree) - known) for file, tree in modules("mglmm").items()}
    assert not {file: names for file, names in wrong.items() if names}, "add it to pyproject.toml and constraints.txt"


def test_every_dependency_is_pinned_for_the_tests():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    assert distributions(*FOR_USERS, *FOR_DEVELOPERS) - {"mglmm"} == pinned


def test_heavy_and_optional_packages_are_imported_late():
    late = LATE | (declared(*FOR_USERS) - declared())
    wrong = {file: sorted(imports_at_load(tree) & late) for file, tree in modules("mglmm").items()}
    assert not {file: names for file, names in wrong.items() if names}, "import it inside the function that needs it"


def test_nothing_imports_tools_or_tests():
    wrong = [
        file
        for package in PACKAGES
        for file, tree in modules(package).items()
        if {"tools", "tests", "configs"} & imports(tree)
    ]
    assert not wrong


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_the_library_never_prints(package):
    wrong = [
        f"{file}:{node.lineno}"
        for file, tree in modules(package).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong, "return it, raise it, log it, or hand it to the command line's console"


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_every_folder_of_a_package_is_a_package(package):
    # Without __init__.py it still imports, but coverage and pyright pass it over.
    folders = {file.parent for file in PACKAGES[package].rglob("*.py")}
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]


def test_datasets_stays_a_folder():
    # A module or __init__.py here would shadow Hugging Face's `datasets`; the package is datasets/mglmm_data.
    assert not list((ROOT / "datasets").glob("*.py"))
    assert (ROOT / "datasets" / "mglmm_data" / "__init__.py").is_file()


def test_tests_are_no_packages():
    # With --import-mode=importlib, tests/mglmm/__init__.py would shadow the package it tests.
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_tool_shadows_a_module():
    # A launched file's folder comes first on sys.path: tools/profile.py would be everybody's `profile`.
    taken = set(sys.stdlib_module_names) | declared(*FOR_USERS, *FOR_DEVELOPERS)
    assert not [file.name for file in (ROOT / "tools").glob("*.py") if file.stem in taken]


def test_the_top_level_holds_what_it_should():
    extra = {path.parts[0] for path in project_files()} - TOP_LEVEL
    assert not extra, "move it into a room, or ignore it"


def test_ignored_names_are_anchored():
    # An unanchored `datasets/` or `data/` silently drops the package from the wheel.
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    unanchored = {line.strip("/") for line in lines if line and not line.startswith(("#", "/"))}
    assert not unanchored & {"bundled", "data", "datasets", "runs", "train"}


def test_no_text_names_one_machine_or_a_package_index():
    machine = re.compile(r"(?:^|[^a-zA-Z0-9_.:/])/(?:home|root|Users|mnt|opt|work)/[a-z]")
    index = re.compile(
        r"pypi\.org|pythonhosted\.org|registry\.npmjs|deb\.debian|https?://\S*/simple|--(?:extra-)?index-url"
    )
    wrong = []
    for path in project_files():
        content = (ROOT / path).read_bytes()
        if b"\0" in content[:8192]:
            continue
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
            if machine.search(line) or index.search(line):
                wrong.append(f"{path}:{number}: {line.strip()[:80]}")
    assert not wrong
