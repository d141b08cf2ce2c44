"""Data sets by name, wherever they lie: the directory layouts of LISA, GLaMM and MGLMM work as they are.

`resolve("refcocog")` looks below `MGLMM_DATA` (or the roots given) for the places at which the three systems, and the
data sets' own archives, put the files, and gives the spec of a source. In a config: `{type: dataset, name: refcocog,
split: val}`; all other keys go to the source. What is not there is said with every place that was tried.
Sources of the layouts: LISA's README, `docs/datasets.md` of groundingLMM, the dataset classes of mglmm.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mglmm_data.shards import is_pattern
from mglmm_data.telling import near

VARIABLE = "MGLMM_DATA"
Roots = str | Path | Sequence[str | Path]

TRAIN2017 = ("coco/train2017", "coco_2017/train2017", "coco2017/train2017", "train2017")
VAL2017 = ("coco/val2017", "coco_2017/val2017", "coco2017/val2017", "val2017")
COCO = ("coco", "coco_2017", "coco2017", ".")
FLICKR = ("flickr_30k/images", "flikcr_30k/train", "flickr_30k/train", "flickr30k/images", "flickr_30k")
VG = ("visual_genome/images", "visual_genome/VG_100K", "visual_genome")
REFER = ("refer_seg", "Refer_Segm", "RefCOCO", ".")
GRANDF = ("GranDf", ".")


@dataclass(frozen=True)
class Entry:
    """Where a data set lies: the source's type, the places to try for each path that it takes, and its splits."""

    type: str
    paths: Mapping[str, tuple[str, ...]]  # parameter -> places below a root
    fixed: Mapping[str, Any] = field(default_factory=dict)
    splits: tuple[str, ...] = ()  # values of `split` that one set of files holds
    optional: tuple[str, ...] = ()  # parameters that the source finds by itself where none of the places is there


def _instances(split: str, images: tuple[str, ...]) -> Entry:
    names = tuple(f"{folder}/annotations/instances_{split}.json" for folder in COCO)
    return Entry("coco", {"json_path": names, "image_root": images})


def _captions(file: str, images: tuple[str, ...]) -> Entry:
    return Entry("captions", {"path": tuple(f"{folder}/annotations/{file}" for folder in COCO), "image_root": images})


def _panoptic(split: str, form: str, images: tuple[str, ...]) -> Entry:
    names = tuple(f"{folder}/annotations/panoptic_{split}{form}.json" for folder in ("cocopanoptic", *COCO))
    return Entry("coco_panoptic", {"json_path": names, "image_root": images})


def _refer(name: str, split_by: str, splits: tuple[str, ...]) -> Entry:
    file = f"refs({split_by})"
    found = tuple(f"{folder}/{name}/{file}.{suffix}" for folder in REFER for suffix in ("p", "json"))
    return Entry("refer", {"root": found}, {"dataset": name, "split_by": split_by}, splits)


def _gcg(form: str, split: str, file: str) -> Entry:
    return Entry("grandf", {"root": tuple(f"{folder}/annotations/train/{file}" for folder in GRANDF)},
                 {"form": form, "split": split})  # fmt: skip


ABC = ("train", "val", "testA", "testB")
ENTRIES: dict[str, Entry] = {
    # semantic, parts, panoptic
    "ade20k": Entry("ade20k", {"root": ("ade20k", "Semantic_Segm/ade20k", "ADEChallengeData2016")}, {},
                    ("training", "validation")),
    "ade20k_full": Entry("ade20k_full", {"root": ("ADE20K_2021_17_01", "ade20k_full/ADE20K_2021_17_01")}),
    "cocostuff": Entry("cocostuff", {"root": ("cocostuff", "Semantic_Segm/coco_stuff", "coco_stuff"),
                                     "image_root": TRAIN2017}, {"split": "train"}),
    "mapillary": Entry("mapillary", {"root": ("mapillary", "Semantic_Segm/mapillary")}, {}, ("training", "validation")),
    "paco_lvis": Entry("paco_lvis", {"json_path": (
        "vlpart/paco/annotations/paco_lvis_v1_train.json",
        "Semantic_Segm/paco_lvis/annotations/paco_lvis_v1_train.json"),
        "image_root": COCO}),
    "pascal_part": Entry("pascal_part", {
        "json_path": ("vlpart/pascal_part/train.json", "Semantic_Segm/pascal_part/train.json"),
        "image_root": ("vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages",
                       "Semantic_Segm/pascal_part/VOCdevkit/VOC2010/JPEGImages")}),
    "camvid": Entry("camvid", {"root": ("camvid/train.txt", "CamVid/train.txt")}, {}, ("train", "val", "test")),
    "carparts": Entry("carparts", {"json_path": ("carparts/trainingset/annotations.json",)}),
    "voc": Entry("voc", {"root": ("VOCdevkit/VOC2012/SegmentationClass", "VOC2012/SegmentationClass")}, {},
                 ("train", "val")),
    "coco_train": _instances("train2017", TRAIN2017),
    "coco_val": _instances("val2017", VAL2017),
    "lvis_train": Entry("lvis", {"json_path": ("lvis/lvis_v1_train.json", "lvis_v1_train.json"), "image_root": COCO}),
    "lvis_val": Entry("lvis", {"json_path": ("lvis/lvis_v1_val.json", "lvis_v1_val.json"), "image_root": COCO}),
    "coco_panoptic_train": _panoptic("train2017", "", TRAIN2017),
    "coco_panoptic_val": _panoptic("val2017", "", VAL2017),
    "coco_panoptic_train_detection": _panoptic("train2017", "_detection_format", TRAIN2017),
    "coco_panoptic_val_detection": _panoptic("val2017", "_detection_format", VAL2017),
    # referring and reasoning
    "refclef": _refer("refclef", "unc", ("train", "val", "testA", "testB", "testC")),
    "refcoco": _refer("refcoco", "unc", ABC),
    "refcoco+": _refer("refcoco+", "unc", ABC),
    "refcocog": _refer("refcocog", "umd", ("train", "val", "test")),
    "refcocog_google": _refer("refcocog", "google", ("train", "val")),
    "grefcoco": Entry("grefcoco", {"root": tuple(
        f"{folder}/grefcoco/grefs(unc).{suffix}" for folder in REFER for suffix in ("json", "p"))}, {}, ABC),
    **{
        f"rec_{name}_{split}": Entry("rec", {
            "path": (f"RefCoco_Reg/mdetr_annotations/finetune_{name}_{split}.json",
                     f"mdetr_annotations/finetune_{name}_{split}.json"),
            "image_root": ("coco/train2014", "coco_2014/train2014", "refer_seg/images/mscoco/images/train2014",
                           "Refer_Segm/images/mscoco/images/train2014")})
        for name in ("refcoco", "refcoco+", "refcocog") for split in ("train", "val")
    },
    "reasonseg": Entry("reasonseg", {"root": ("reason_seg/ReasonSeg", "ReasonSeg")}, {}, ("train", "val", "test")),
    "muse_train": Entry("muse", {"root": ("reason_seg/MUSE/MUSE_train.json", "MUSE/MUSE_train.json")},
                        {"split": "train"}),
    "muse_val": Entry("muse", {"root": ("reason_seg/MUSE/MUSE_val.json", "MUSE/MUSE_val.json")}, {"split": "val"}),
    # grounded conversation
    "grandf_ha": _gcg("ha", "train", "GranDf_HA_GCG_train.json"),
    "openpsg_gcg": _gcg("psg", "train", "OpenPsgGCG_train.json"),
    "openpsg_gcg_val": _gcg("psg", "val", "OpenPsgGCG_val.json"),
    "refcocog_gcg": _gcg("refcocog", "train", "RefCOCOg_GCG_train.json"),
    "refcocog_gcg_val": _gcg("refcocog", "val", "RefCOCOg_GCG_val.json"),
    "flickr_gcg": _gcg("flickr", "train", "flickr_mergedGT_GCG_train.json"),
    "flickr_gcg_val": _gcg("flickr", "val", "flickr_mergedGT_GCG_val.json"),
    "mgscdata": Entry("mgscdata", {"root": ("MGLMM_gcg_new/annotations", "MGSCData/annotations")}, {},
                      ("train", "val")),
    "grand_referring": Entry("grand", {"root": ("GranD/referring_expression",)}, {"form": "referring"}),
    "grand_caption": Entry("grand", {"root": ("GranD/caption_grounding",)}, {"form": "caption"}),
    "sa1b": Entry("sa1b", {"root": ("SA-1B", "sa1b")}),
    "osprey": Entry("osprey", {"path": ("osprey/osprey_conversation.json", "Osprey-724K/osprey_conversation.json"),
                               "image_root": TRAIN2017}),
    "dci": Entry("dci", {"root": ("DCI", "densely_captioned_images")}),
    # text
    "coco_captions_train": _captions("captions_train2017.json", TRAIN2017),
    "coco_captions_val": _captions("captions_val2017.json", VAL2017),
    "llava_instruct": Entry("llava_instruct", {
        "path": ("llava_dataset/llava_instruct_150k.json", "llava_instruct_150k.json"), "image_root": TRAIN2017}),
    "visual_genome": Entry("visual_genome", {"root": ("visual_genome/region_descriptions.json",), "image_root": VG},
                           {"clip_boxes": True}),
    "vg_regions": Entry("region_captions", {"path": ("visual_genome/train.json",), "image_root": VG},
                        {"clip_boxes": True}),
    "vg_regions_test": Entry("region_captions", {"path": ("visual_genome/test_caption.json",), "image_root": VG},
                             {"clip_boxes": True}),
    "flickr_entities": Entry("flickr_entities", {"root": ("flickr30k_entities/Sentences", "flickr_30k/Sentences"),
                                                 "image_root": FLICKR}, {}, ("train", "val", "test")),
    "nocaps_val": Entry("captions", {"path": ("nocaps/nocaps_val_4500_captions.json",),
                                     "image_root": ("nocaps/images", "nocaps/val", "nocaps")}),
}  # fmt: skip
"""name -> where it lies. GLaMM writes `flikcr_30k`; MGLMM's README lists `data/refcoco`, its code reads `refer_seg`."""

ABOVE = {
    "refer": 2,
    "grefcoco": 2,
    "grandf": 4,
    "muse": 1,
    "mgscdata": 1,
    "grand": 1,
    "camvid": 1,
    "voc": 1,
    "visual_genome": 1,
    "flickr_entities": 1,
}
"""Types whose `root` is so many folders above the file or folder that proves that the data set is there."""


def roots_of(roots: Roots | None = None) -> list[Path]:
    """The folders data sets lie below: those given, else those of `MGLMM_DATA` (several with `:` between).

    Raises:
        ValueError: none is given, or one is no folder.
    """
    if roots is None:
        text = os.environ.get(VARIABLE, "")
        if not text:
            raise ValueError(f"where the data sets lie is not said; give root, or export {VARIABLE}=/path/to/data")
        roots = text.split(os.pathsep)
    found = [Path(roots)] if isinstance(roots, (str, Path)) else [Path(root) for root in roots]
    for root in found:
        if not root.is_dir():
            raise ValueError(f"data folder {root} does not exist; correct root or {VARIABLE}")
    return found


def resolve(name: str, root: Roots | None = None, **keys: Any) -> dict[str, Any]:
    """The spec of a source: its type, the paths that were found, and `keys` as they are.

    Args:
        name: of `ENTRIES`; or `NAME/SPLIT`, as `mglmm check-data` lists them.
        root: one or several folders; by default those of `MGLMM_DATA`.
        keys: of the source, such as `split` or `turns`; they win over what the name stands for.

    Raises:
        ValueError: no such data set (the near miss is named), or files of it are missing (every place is named).
    """
    base, slash, split = name.partition("/")
    if base not in ENTRIES:
        raise ValueError(f"no data set {base!r}{near(base, ENTRIES)}")
    entry = ENTRIES[base]
    if slash:
        if split not in entry.splits:
            raise ValueError(f"data set {base!r} has no split {split!r}{near(split, entry.splits)}")
        keys = {"split": split, **keys}
    found = roots_of(root)
    missing = [
        f"{parameter} (tried {', '.join(str(each / place) for each in found for place in places)})"
        for parameter, places in entry.paths.items()
        if parameter not in keys and parameter not in entry.optional and _find(entry, parameter, found) is None
    ]
    if missing:
        raise ValueError(
            f"data set {name!r} is not complete: no {'; no '.join(missing)}; download it or give its paths"
        )
    paths = {parameter: str(path) for parameter in entry.paths if (path := _find(entry, parameter, found)) is not None}
    return {"type": entry.type, **paths, **entry.fixed, **keys}


def _find(entry: Entry, parameter: str, roots: Iterable[Path]) -> Path | None:
    for root in roots:
        for place in entry.paths[parameter]:
            if (path := root / place).exists():
                levels = ABOVE.get(entry.type, 0) if parameter == "root" else 0
                return path.parents[levels - 1] if levels else path
    return None


def discover(root: Roots | None = None) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Every data set below the roots: name or `name/split` -> spec; and what is there in part, a sentence each."""
    found, partly = roots_of(root), []
    specs: dict[str, dict[str, Any]] = {}
    for name, entry in ENTRIES.items():
        main = next(iter(entry.paths))
        if _find(entry, main, found) is None:
            continue
        try:
            for split in entry.splits or ("",):
                spec = resolve(f"{name}/{split}" if split else name, found)
                if not split or split == entry.splits[0] or _has_split(spec):
                    specs[f"{name}/{split}" if split else name] = spec
        except ValueError as error:
            partly.append(str(error))
    return specs, partly


def _has_split(spec: Mapping[str, Any]) -> bool:
    """Whether a further split is there at all: sources say so when they are made; other mistakes are told later."""
    from mglmm_data.registry import make_source

    try:
        make_source(spec)
    except ValueError as error:
        text = str(error)
        return not any(words in text for words in ("in split", "split", "no folder", "no label map", "does not exist"))
    return True


def specs_at(text: str, root: Roots | None = None) -> dict[str, dict[str, Any]]:
    """name -> spec of each source at a path, or of the data set of that name.

    A folder may hold data sets in a known layout, `samples.jsonl`, `images/` with `masks/`, shards (`*.tar`), or
    labelme's json; a file may be a JSONL, a COCO-style json, or a shard; shards may also be a URL or a pattern
    (`shards/{000000..000009}.tar`). `world` is the procedural world.

    Raises:
        ValueError: there is nothing of the kind; what was looked for is said.
    """
    path = Path(text)
    name = path.stem or "data"
    if text == "world":
        return {"world": {"type": "world"}}
    if is_pattern(text):
        return {path.parent.name or "shards": {"type": "shards", "path": text}}
    if path.is_file() or "://" in text:
        kinds = {".jsonl": ("jsonl", "path"), ".json": ("coco", "json_path"), ".tar": ("shards", "path")}
        kind, parameter = kinds.get(path.suffix.lower(), ("shards" if "://" in text else "", "path"))
        if not kind:
            raise ValueError(f"{text} is no data; give a .jsonl, a COCO-style .json, a .tar, a folder, or a config")
        return {name: {"type": kind, parameter: text}}
    if not path.exists():
        base = text.partition("/")[0]
        if base in ENTRIES:
            if "/" in text or not ENTRIES[base].splits:
                return {text: resolve(text, root)}
            return {f"{text}/{split}": resolve(f"{text}/{split}", root) for split in ENTRIES[base].splits[:1]}
        raise ValueError(f"{text} is neither a file or folder nor a data set{near(text, [*ENTRIES, 'world'])}")
    if (path / "samples.jsonl").is_file():
        return {name: {"type": "jsonl", "path": text}}
    if (path / "images").is_dir() and (path / "masks").is_dir():
        return {name: {"type": "folder", "root": text}}
    if any(path.glob("*.tar")):
        return {name: {"type": "shards", "path": text}}
    found, partly = discover(path)
    if found:
        return found
    loose = {file.stem: {"type": "jsonl", "path": str(file)} for file in sorted(path.glob("*.jsonl"))}
    if loose:
        return loose
    if (path / "annotations.json").is_file():
        return {name: {"type": "coco", "json_path": str(path / "annotations.json")}}
    if any(path.glob("*.json")) and "labelme" in _types():
        return {name: {"type": "labelme", "root": text}}
    gaps = f" (in part: {'; '.join(partly)})" if partly else ""
    raise ValueError(
        f"{text} holds no data that is known here: no samples.jsonl, no images/ with masks/, no *.tar, and no data set "
        f"in the layout of LISA, GLaMM or MGLMM{gaps}; see datasets/README.md"
    )


def _types() -> Iterable[str]:
    from mglmm_data.registry import SOURCES

    return SOURCES
