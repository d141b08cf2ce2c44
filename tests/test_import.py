"""Starting is fast: what takes seconds to import is not imported before it is needed."""

import subprocess
import sys

import pytest

HEAVY = ("albumentations", "cv2", "gradio", "peft", "scipy", "supervision", "torch", "transformers", "wandb")


def loaded_by(statement: str) -> set[str]:
    """Which heavy modules a fresh interpreter holds after the statement."""
    code = f"import sys; {statement}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["mglmm", "mglmm.cli"])
def test_the_command_line_starts_without_the_model(module):
    # `mglmm --help` and every message about bad input should not wait for torch (1.6 s) or peft (5.7 s).
    assert not loaded_by(f"import {module}")


def test_data_does_not_wait_for_torch():
    assert not loaded_by("import mglmm_data.sample") & {"torch", "transformers", "albumentations"}
