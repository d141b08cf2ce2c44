"""Reading data: samples a second of our readers, against a straightforward reading as the published codes do it.

`python tools/bench_data.py [--photos FOLDER_OF_COCO] [--samples 40]` writes three sets in the original formats
(RefCOCO, COCO panoptic, GranDf) from COCO photographs and their instances, and reads each both ways in one process.

* decoded: the picture and the masks of what is asked about;
* encoded: also the inputs of CLIP (336 px) and SAM (1024 px).

The straightforward reading is written here from `segmentation_peers.md`, section 2.3 and 7.1: annotations as
dictionaries, the picture opened twice, each polygon drawn and summed, and normalised float32 for CLIP and SAM. Ours is
`MglmmProcessor.pixels`: bytes in their frames, which become floats on the device. `kept` is the same sample where what
frozen encoders see of its photograph is kept (`mglmm cache`, here of SAM's and CLIP's published sizes, with random
values), against encoded: no picture is made at all. Then sources of 100,000 annotations are opened: seconds, bytes kept
a sample.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pickle
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPVisionConfig, LlavaConfig, SamConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mglmm.build import ModelConfig, model_config
from mglmm.config import BUNDLED
from mglmm.inputs import Seen
from mglmm.processor import MglmmProcessor
from mglmm.tokens import special_ids
from mglmm.train.features import FeatureFolder, name_in
from mglmm_data import masks
from mglmm_data.coco import CocoSource
from mglmm_data.images import KnownPhotos, known
from mglmm_data.registry import make_source
from mglmm_data.sample import Sample
from sam_bridge.bridge import Features
from sam_bridge.sam import HfSam

CLIP, SAM = 336, 1024
MEAN, STD = np.array([123.7, 116.3, 103.5], np.float32), np.array([58.4, 57.1, 57.4], np.float32)


# ---- the sets


def write_sets(photos: Path, out: Path, count: int) -> None:
    """RefCOCO, panoptic and GranDf files about the first `count` photographs that have objects."""
    source = CocoSource(photos / "annotations" / "instances_val2017.json", photos / "val2017", tasks={"panoptic": 1})
    data = json.loads(source.json_path.read_text(encoding="utf-8"))
    polygons: dict[Any, list[dict[str, Any]]] = {}
    for annotation in data["annotations"]:
        if isinstance(annotation["segmentation"], list) and annotation["area"] > 400:
            polygons.setdefault(annotation["image_id"], []).append(annotation)
    images = [image for image in data["images"] if image["id"] in polygons][:count]
    names = {category["id"]: category["name"] for category in data["categories"]}
    folder = out / "refer_seg" / "images" / "mscoco" / "images" / "train2014"
    for path in (folder, out / "refer_seg" / "refcoco", out / "png", out / "GranDf" / "annotations" / "train",
                 out / "GranDf" / "GranDf_HA_images"):  # fmt: skip
        path.mkdir(parents=True, exist_ok=True)
    os.symlink(folder, out / "GranDf" / "GranDf_HA_images" / "train")
    refs, panoptic, grounded = [], [], []
    for image in images:
        os.symlink((photos / "val2017" / image["file_name"]).resolve(), folder / image["file_name"])
        size, found = (image["height"], image["width"]), polygons[image["id"]]
        for annotation in found[:3]:
            words = f"the {names[annotation['category_id']]}"
            sentence = {"sent": words, "raw": words, "tokens": words.split(), "sent_id": len(refs)}
            refs.append({"ref_id": len(refs), "ann_id": annotation["id"], "category_id": annotation["category_id"],
                         "image_id": image["id"], "split": "train", "file_name": image["file_name"],
                         "sent_ids": [len(refs)], "sentences": [sentence]})  # fmt: skip
        labels, segments, groundings, caption = np.zeros(size, np.int64), [], {}, ""
        for annotation in found[:10]:
            mask = masks.from_polygons(annotation["segmentation"], size)
            labels[mask] = annotation["id"] % (1 << 24)
            name = f"{names[annotation['category_id']]} {len(groundings)}"
            begin = len(caption)
            caption += f"{name}, "
            groundings[name] = {"token_positives": [begin, begin + len(name)], "rle_masks": [masks.encode(mask)]}
        for annotation in found[:10]:
            here = labels == annotation["id"] % (1 << 24)
            if here.any():
                segments.append({"id": annotation["id"] % (1 << 24), "category_id": annotation["category_id"],
                                 "iscrowd": 0, "area": int(here.sum()), "bbox": [0, 0, 1, 1]})  # fmt: skip
        colors = np.stack([labels % 256, labels // 256 % 256, labels // 65536], -1).astype(np.uint8)
        Image.fromarray(colors).save(out / "png" / f"{Path(image['file_name']).stem}.png")
        panoptic.append({"image_id": image["id"], "file_name": f"{Path(image['file_name']).stem}.png",
                         "segments_info": segments})  # fmt: skip
        grounded.append({"file_name": image["file_name"], "caption": caption.strip(", "), "groundings": groundings})
    annotations = [annotation for image in images for annotation in polygons[image["id"]]]
    instances = {"images": images, "categories": data["categories"], "annotations": annotations}
    (out / "refer_seg" / "refcoco" / "instances.json").write_text(json.dumps(instances))
    (out / "refer_seg" / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    categories = [{**category, "isthing": 1} for category in data["categories"]]
    (out / "panoptic.json").write_text(
        json.dumps({"images": images, "annotations": panoptic, "categories": categories})
    )
    (out / "GranDf" / "annotations" / "train" / "GranDf_HA_GCG_train.json").write_text(json.dumps(grounded))


# ---- the straightforward reading


class Plain:
    """One of the sets as the published classes read it; `item(i)` gives the picture and its masks, float32."""

    def __init__(self, kind: str, out: Path) -> None:
        self.kind, self.out = kind, out
        self.photos = out / "refer_seg" / "images" / "mscoco" / "images" / "train2014"
        if kind == "refcoco":
            self.refs = pickle.loads((out / "refer_seg" / "refcoco" / "refs(unc).p").read_bytes())
            self.data = json.loads((out / "refer_seg" / "refcoco" / "instances.json").read_text())
            self.by_id = {annotation["id"]: annotation for annotation in self.data["annotations"]}
            self.rows: list[Any] = self.data["images"]
        elif kind == "panoptic":
            self.data = json.loads((out / "panoptic.json").read_text())
            self.rows = self.data["annotations"]
        else:
            self.rows = json.loads((out / "GranDf" / "annotations" / "train" / "GranDf_HA_GCG_train.json").read_text())

    def item(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        row = self.rows[index]
        name = str(Path(row["file_name"]).with_suffix(".jpg"))
        width, height = Image.open(self.photos / name).convert("RGB").size  # opened once for its size (P15)
        picture: Any = cv2.imread(str(self.photos / name))
        picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        found = []
        if self.kind == "refcoco":
            for ref in [ref for ref in self.refs if ref["image_id"] == row["id"]][:3]:
                rles = coco_mask.frPyObjects(self.by_id[ref["ann_id"]]["segmentation"], height, width)
                found.append(np.sum(coco_mask.decode(rles), axis=2))
        elif self.kind == "panoptic":
            colors = np.asarray(Image.open(self.out / "png" / row["file_name"])).astype(np.uint32)
            labels = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
            found = [labels == segment["id"] for segment in row["segments_info"]]
        else:
            for value in row["groundings"].values():
                mask = np.zeros((height, width), np.uint8)
                for rle in value["rle_masks"]:
                    mask += coco_mask.decode(rle)
                found.append(mask)
        return picture, np.stack(found).astype(np.float32)

    @staticmethod
    def encode(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """CLIP's and SAM's inputs, float32[3, S, S], normalised and padded."""
        image = Image.fromarray(picture)
        scale = CLIP / min(image.size)
        middle = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (middle.width - CLIP) // 2, (middle.height - CLIP) // 2
        cut = np.asarray(middle.crop((left, top, left + CLIP, top + CLIP)), np.float32)
        scale = SAM / max(image.size)
        large = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        square = np.zeros((SAM, SAM, 3), np.float32)
        square[: large.height, : large.width] = (np.asarray(large, np.float32) - MEAN) / STD
        return ((cut - MEAN) / STD).transpose(2, 0, 1).copy(), square.transpose(2, 0, 1).copy()


# ---- ours


def specs(out: Path) -> dict[str, dict[str, Any]]:
    photos = str(out / "refer_seg" / "images" / "mscoco" / "images" / "train2014")
    return {
        "refcoco": {"type": "refer", "root": str(out / "refer_seg"), "dataset": "refcoco", "image_root": photos},
        "panoptic": {
            "type": "coco_panoptic",
            "json_path": str(out / "panoptic.json"),
            "image_root": photos,
            "png_root": str(out / "png"),
            "tasks": {"panoptic": 1},
        },
        "gcg": {"type": "grandf", "root": str(out / "GranDf"), "form": "ha", "image_root": photos},
    }


def used_masks(sample: Sample) -> list[np.ndarray]:
    return [region.mask for region in sample.regions]


def published_sizes() -> MglmmProcessor:
    """The processor of LLaVA-1.5 and SAM; it needs no weights."""
    tokenizer = AutoTokenizer.from_pretrained(str(BUNDLED))
    config = ModelConfig(llava="-", sam="-", vision="clip", prompt_format="vicuna_v1", region_grid=24)
    with torch.device("meta"):
        sam = HfSam.from_config(SamConfig())
    tower = CLIPVisionConfig(image_size=CLIP, patch_size=14)
    llava = LlavaConfig(vision_config=tower.to_dict(), image_token_index=special_ids(tokenizer).image)
    clip = CLIPImageProcessorPil(size={"shortest_edge": CLIP}, crop_size={"height": CLIP, "width": CLIP})
    return MglmmProcessor(tokenizer, model_config(config, tokenizer, sam, llava), clip)


def keep_all(spec: dict[str, Any], folder: FeatureFolder) -> int:
    """Features of the published sizes for every photograph of a source; returns the bytes that one takes."""
    source, values = make_source(spec), torch.Generator().manual_seed(0)
    for index in range(len(source)):
        photos = KnownPhotos(folder.size_of)
        with known(photos):
            sample = source.sample(index)
        name = name_in(sample, photos)
        if name not in folder:
            features = Features(embedding=torch.randn(1, 256, SAM // 16, SAM // 16, generator=values))
            tower = torch.randn(1, 1 + (CLIP // 14) ** 2, 1024, generator=values)
            folder.write([name], [sample.size], Seen(features, {-2: tower}))
    return folder.path(name).stat().st_size


def rate(work: Callable[[int], object], count: int, rounds: int) -> float:
    """Samples a second: the best of several rounds, since other programs share the machine."""
    best = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        for index in range(count):
            work(index)
        best = min(best, time.process_time() - started)
    return count / best


def write_many(out: Path, count: int) -> dict[str, dict[str, Any]]:
    """Sources of `count` annotations, of which only the names of the pictures exist: name -> spec."""
    square = [10.0, 10.0, 50.0, 10.0, 50.0, 50.0, 10.0, 50.0]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in range(count // 5)]
    (out / "many").mkdir()
    for image in images:
        (out / "many" / image["file_name"]).touch()
    same = {"iscrowd": 0, "bbox": [10, 10, 40, 40], "segmentation": [square], "area": 1600}
    annotations = [{"id": i, "image_id": i % len(images), "category_id": i % 80 + 1, **same} for i in range(count)]
    categories = [{"id": i, "name": f"thing {i}"} for i in range(1, 81)]
    json_path, refs, chat = out / "many.json", out / "many.p", out / "chat.json"
    json_path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    said = [{"sent": words, "raw": words, "tokens": words.split()} for words in ("the dog on the left", "a big dog")]
    refs.write_bytes(pickle.dumps([{"ref_id": i, "ann_id": i, "image_id": i % len(images), "split": "train",
                                    "sentences": said} for i in range(count)], protocol=2))  # fmt: skip
    told = [("human", "<image>\nWhat is it?"), ("gpt", "It is a dog. " * 40), ("human", "And?"), ("gpt", "Yes. " * 60)]
    turns = [{"from": speaker, "value": text} for speaker, text in told]
    chat.write_text(json.dumps([{"image": f"{i % len(images)}.jpg", "conversations": turns} for i in range(count)]))
    root = out / "many"
    return {
        "coco": {"type": "coco", "json_path": json_path, "image_root": root, "tasks": {"panoptic": 1}},
        "refer": {"type": "refer", "refs": refs, "instances": json_path, "image_root": root},
        "llava_instruct": {"type": "llava_instruct", "path": chat, "image_root": root},
    }


def start_up(spec: dict[str, Any]) -> tuple[float, float, int]:
    """Seconds to open a source, bytes kept for each sample, and the samples."""
    gc.collect()
    started = time.process_time()
    source: Any = make_source(spec)
    seconds = time.process_time() - started
    del source
    gc.collect()
    tracemalloc.start()
    source = make_source(spec)
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return seconds, kept / len(source), len(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("MGLMM_SHARED") or "../shared")
    parser.add_argument("--photos", type=Path, default=shared / "data" / "coco_mini", help="COCO: val2017, annotations")
    parser.add_argument("--samples", type=int, default=30, help="photographs in each set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--annotations", type=int, default=100_000, help="in the source that is only opened; 0: none")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    processor = published_sizes()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        write_sets(arguments.photos, out, arguments.samples)
        print(f"samples/s of one core, {arguments.samples} photographs, best of {arguments.rounds}; ratio in brackets")
        print(f"{'':10}{'decoded':>8}{'ours':>16}{'encoded':>10}{'ours':>16}{'kept':>16}")
        folder, size = FeatureFolder(out / "features"), 0
        for kind, spec in specs(out).items():
            plain, source = Plain(kind, out), make_source(spec)
            count = min(len(plain.rows), len(source))
            size = keep_all(spec, folder)

            def ours(index: int, source: Any = source) -> Sample:
                sample = source.sample(index)
                used_masks(sample)
                return sample

            def encoded(index: int, ours: Any = ours) -> None:
                processor.pixels([ours(index).image])

            def read_back(index: int, source: Any = source) -> None:
                photos = KnownPhotos(folder.size_of)
                with known(photos):
                    sample = source.sample(index)
                used_masks(sample)
                folder.load([name_in(sample, photos)])

            def theirs(index: int, plain: Plain = plain) -> None:
                plain.encode(plain.item(index)[0])

            rates = [
                rate(plain.item, count, arguments.rounds),
                rate(ours, count, arguments.rounds),
                rate(theirs, count, arguments.rounds),
                rate(encoded, count, arguments.rounds),
                rate(read_back, count, arguments.rounds),
            ]
            bases = (rates[0], rates[0], rates[2], rates[2], rates[2])
            cells = [f"{value:.0f} ({value / base:.1f} x)" for value, base in zip(rates, bases, strict=True)]
            print(f"{kind:10}{rates[0]:8.0f}{cells[1]:>16}{rates[2]:10.0f}{cells[3]:>16}{cells[4]:>16}")
        print(f"kept: {size / 2**20:.1f} MiB for each photograph")
        if arguments.annotations:
            for kind, spec in write_many(out, arguments.annotations).items():
                seconds, kept, samples = start_up(spec)
                print(f"{kind} of {arguments.annotations:,} annotations, {samples:,} samples: {seconds:.1f} s to open, "
                      f"{kept:.0f} bytes kept for each sample")  # fmt: skip


if __name__ == "__main__":
    main()
