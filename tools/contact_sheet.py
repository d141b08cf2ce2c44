"""Draw many scenes of the world on one sheet: `python tools/contact_sheet.py --seed 0 --count 24 --out sheet.png`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "datasets"))

from mglmm_data.world.scene import Scene, make_scene, statistics


def colored(scene: Scene) -> np.ndarray:
    """uint8[H, W, 3]: every leaf in a colour of its own over a dimmed picture, with the boxes of the things."""
    table = np.zeros((256, 3), np.uint8)
    hues = (np.arange(256) * 67 % 180).astype(np.uint8)
    hsv = np.stack([hues, np.full(256, 200, np.uint8), np.full(256, 240, np.uint8)], -1)[None]
    table[:] = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]
    out = cv2.addWeighted(scene.image, 0.25, table[scene.leaves], 0.75, 0)
    for thing in scene.things:
        x1, y1, x2, y2 = (int(v) for v in thing.box)
        cv2.rectangle(out, (x1, y1), (x2 - 1, y2 - 1), (255, 255, 255), 1)
    return out


def sheet(scenes: list[Scene], columns: int, masks: bool) -> np.ndarray:
    """uint8: the scenes in rows, the coloured masks below each picture if asked for."""
    gap = 4
    cells = [np.vstack([scene.image, colored(scene)]) if masks else scene.image for scene in scenes]
    height, width = cells[0].shape[:2]
    rows = -(-len(cells) // columns)
    out = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for index, cell in enumerate(cells):
        y, x = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        out[y : y + height, x : x + width] = cell
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene")
    parser.add_argument("--count", type=int, default=24, help="number of scenes")
    parser.add_argument("--size", type=int, default=192, help="side of a scene, px")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--masks", action="store_true", help="show the leaf masks below the pictures")
    parser.add_argument("--held-out", choices=("avoid", "allow", "require"), default="allow")
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    args = parser.parse_args()
    scenes = [make_scene(args.seed + k, args.size, held_out=args.held_out) for k in range(args.count)]
    Image.fromarray(sheet(scenes, args.columns, args.masks)).save(args.out)
    for name, value in statistics(scenes).items():
        print(f"{name:24s}{value:.3f}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
