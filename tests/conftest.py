"""What all tests share: an offline environment, and the fixtures that lie beside the project."""

import os
from collections.abc import Callable
from pathlib import Path

# Before any library reads them. One thread: the models of these tests are too small for two to help.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import hypothesis
import pytest

CI = os.environ.get("CI", "").lower() not in ("", "0", "false")

# Machines differ in speed, so no deadline; in CI the same examples every time, so that red means a change.
hypothesis.settings.register_profile("mglmm", deadline=None, derandomize=CI, print_blob=True)
hypothesis.settings.load_profile("mglmm")


@pytest.fixture(scope="session")
def shared() -> Callable[..., Path]:
    """A function from path parts to a fixture beside the project: `shared("golden", "sam")`.

    Fixtures lie in `$MGLMM_SHARED`, by default in `../shared`. Where one is absent the test is skipped; with `CI` set
    it fails, since there the fixtures are promised.
    """
    root = Path(os.environ.get("MGLMM_SHARED") or Path(__file__).resolve().parents[2] / "shared")

    def find(*parts: str) -> Path:
        path = root.joinpath(*parts)
        if path.exists():
            return path
        message = f"fixture {path} is missing; set MGLMM_SHARED to the folder that holds {'/'.join(parts) or 'it'}"
        if CI:
            pytest.fail(message)
        pytest.skip(message)

    return find
