"""Peak memory of a conversion: a checkpoint of 2 GB with every key of LISA-7B, converted by a process of its own.

The language model is narrower than the real one (its SAM ViT-H is whole), so that it fits a laptop; numbers are noise.

    python tools/bench_convert.py [--shards 2] [--keys ../shared/golden/lisa]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

WIDTH, INNER, LAYERS = 1024, 2752, 32
REAL = {4096: WIDTH, 11008: INNER}  # sizes of the 7B and what stands for them here
LIMIT = 1.2


def shape_of(key: str, real: list[int], rows: int) -> list[int]:
    """The narrower shape of a tensor: SAM keeps its own."""
    if "visual_model" in key:
        return real
    if key in ("model.embed_tokens.weight", "lm_head.weight"):
        return [rows, WIDTH]
    if key.endswith("inv_freq"):
        return [WIDTH // LAYERS // 2]
    return [REAL.get(size, size) for size in real]


def write_checkpoint(keys: Path, folder: Path, num_shards: int) -> int:
    """Write the synthetic checkpoint and its vision tower; returns its size in bytes."""
    (manifest,) = keys.glob("*_key_manifest.json.gz")
    real = json.loads(gzip.decompress(manifest.read_bytes()))
    shutil.copytree(keys / "checkpoint", folder, ignore=shutil.ignore_patterns("*.bin"), copy_function=shutil.copyfile)
    folder.chmod(0o755)
    config = json.loads((folder / "config.json").read_text())
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 32}
    content = {**config, **sizes, "num_key_value_heads": 32, "mm_hidden_size": 1024}
    (folder / "config.json").write_text(json.dumps(content))
    shapes = {key: shape_of(key, shape, config["vocab_size"]) for key, shape in real.items()}
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    names, group, done = [], {}, 0
    for key, shape in shapes.items():
        group[key] = torch.randn(shape, dtype=torch.float16)
        done += group[key].numel()
        if done * num_shards >= total * (len(names) + 1) or key == list(shapes)[-1]:
            names.append(f"pytorch_model-{len(names) + 1:05}-of-{num_shards:05}.bin")
            torch.save(group, folder / names[-1])
            group = {}
    write_tower(keys, folder.parent / Path(config["vision_tower"]).name)
    return 2 * total


def write_tower(keys: Path, folder: Path) -> None:
    """A CLIP of one layer that is as wide as the real one."""
    (beside,) = keys.glob("clip-*")
    config = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=1, num_attention_heads=16,
                              image_size=224, patch_size=14)  # fmt: skip
    CLIPVisionModel(config).save_pretrained(folder)
    shutil.copyfile(beside / "preprocessor_config.json", folder / "preprocessor_config.json")


def peak_of(command: list[str]) -> int:
    """Run a command; returns the most memory it held, bytes, mapped files included."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return 1024 * usage.ru_maxrss


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "golden" / "lisa")
    parser.add_argument("--shards", type=int, default=2)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mglmm-bench-") as scratch:
        folder, out = Path(scratch, "checkpoint"), Path(scratch, "out")
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # a child's peak begins at its parent's size
            size = pool.submit(write_checkpoint, settings.keys, folder, settings.shards).result()
        started = time.monotonic()
        peak = peak_of([sys.executable, "-m", "mglmm.cli", "convert", str(folder), str(out)])
        seconds = time.monotonic() - started
        written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"checkpoint {size / 1e9:.2f} GB in {settings.shards} file(s), written {written / 1e9:.2f} GB")
    print(f"peak memory {peak / 1e9:.2f} GB = {peak / size:.2f} x the checkpoint, {seconds:.0f} s")
    return int(peak > LIMIT * size)


if __name__ == "__main__":
    sys.exit(main())
