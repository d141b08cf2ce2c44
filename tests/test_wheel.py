"""What a wheel holds: the three packages, the bundled model and the configs, so that no checkout is needed."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WheelBuilder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder

READ = """
import sys
from mglmm import config
from mglmm.cli import run
print(config.CONFIGS)
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder as pip leaves it from the wheel, without the weights and whatever was not built into it."""
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith(".safetensors")]
        archive.extractall(folder / "site", names)
    return folder / "site"


def run(installed, cwd, *arguments):
    own = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "COVERAGE_"))}
    environment = {**own, "PYTHONPATH": str(installed)}  # measured, the wheel's files would count as untested ones
    command = [sys.executable, "-P", "-c", READ, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_wheel_holds_the_packages_and_the_configs(installed):
    rooms = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert rooms == {"mglmm", "sam_bridge", "mglmm_data"}
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert (installed / "mglmm" / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    for name in ("mglmm", "sam_bridge", "datasets/mglmm_data"):
        package = ROOT / name
        wanted = {file.relative_to(package) for file in package.rglob("*.py")}
        found = {file.relative_to(installed / package.name) for file in (installed / package.name).rglob("*.py")}
        assert found == wanted
    assert (installed / "mglmm" / "bundled" / "config.json").is_file()


def test_an_editable_install_copies_nothing():
    # A file below site-packages/mglmm would make a second `mglmm` there, which hides the checkout's.
    builder = WheelBuilder(str(ROOT))
    assert not builder.config.get_force_include()
    moved = {file.path: file.distribution_path for file in builder.recurse_selected_project_files()}
    assert all(file.endswith(to) for file, to in moved.items() if file.endswith(".py"))


def test_configs_are_found_outside_a_checkout(installed, tmp_path):
    for name in ("configs/train/world.yaml", "train/world", "carparts"):
        done = run(installed, tmp_path, "cfg", name)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{installed / 'mglmm' / 'configs'}\n") and "stages:" in done.stdout
    done = run(installed, tmp_path, "cfg", "train/wrold")
    assert done.returncode == 2 and "did you mean configs/train/world.yaml?" in done.stderr
