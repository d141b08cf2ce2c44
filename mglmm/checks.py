"""What is installed and where things are: the facts behind `mglmm checks`, and behind a bug report."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import mglmm
from mglmm.config import BUNDLED, runs_dir

CORE = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "peft",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "pillow",
    "pycocotools",
    "pydantic",
)
EXTRAS = {
    "train": {
        "albumentations": "augmentation",
        "wandb": "logging with report_to: wandb",
        "datasets": "Hugging Face data sets",
        "deepspeed": "reading ZeRO shards",
    },
    "eval": {
        "matplotlib": "the reliability plot of mglmm eval",
        "pycocoevalcap": "caption scores",
        "sentence-transformers": "similarity of texts",
        "torchmetrics": "text scores",
    },
    "demo": {"gradio": "the web page", "supervision": "Answer.to_supervision"},
    "serve": {"fastapi": "the server", "uvicorn": "the server", "python-multipart": "uploads"},
    "quant": {"torchao": "ask --quant int8", "bitsandbytes": "ask --quant int4"},
    "sam-official": {"segment-anything": "Meta's own SAM, for comparison", "torchvision": "what it needs"},
}
"""Extra of pyproject.toml -> its distributions and what each is for."""


def facts() -> Iterator[tuple[str, str, str]]:
    """(group, name, what was found), ready to be printed."""
    yield "mglmm", "mglmm", f"{mglmm.__version__} in {Path(mglmm.__file__).parent}"
    yield "mglmm", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in CORE:
        yield "libraries", name, version(name) or "missing; install mglmm again"
    yield from devices()
    for extra, packages in EXTRAS.items():
        for name, purpose in packages.items():
            found = version(name)
            yield f"extra {extra}", name, f"{found} ({purpose})" if found else f"absent ({purpose})"
    yield "bundled model", "files", bundled()
    yield "places", "MGLMM_RUNS", place(runs_dir(), "MGLMM_RUNS")
    yield "places", "MGLMM_SHARED", place(Path(os.environ.get("MGLMM_SHARED") or "../shared"), "MGLMM_SHARED")


def version(name: str) -> str:
    """Version of an installed distribution; empty where it is absent."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def devices() -> Iterator[tuple[str, str, str]]:
    """The processor and the GPUs as torch sees them."""
    import torch

    yield "device", "cpu", f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        yield "device", f"cuda:{index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        yield "device", "cuda", "none; everything runs on the processor"


def bundled(folder: Path = BUNDLED) -> str:
    """Parameters, size and version of the model in the package."""
    import json
    from math import prod

    from safetensors import safe_open

    weights = folder / "model.safetensors"
    if not weights.is_file():
        return f"absent: {weights} is not there; train it with mglmm train configs/train/world.yaml"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with safe_open(weights, framework="numpy") as tensors:
        count = sum(prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    world = config.get("world_version") or "no world version"
    return f"{count / 1e6:.2f} M parameters, {size / 1e6:.1f} MB on disk, {world}"


def place(folder: Path, variable: str) -> str:
    """A folder, whether it is there, and whether its variable is set."""
    there = "" if folder.is_dir() else ", not there"
    return f"{folder.resolve()}{there} ({'set' if os.environ.get(variable) else f'default; {variable} is not set'})"
