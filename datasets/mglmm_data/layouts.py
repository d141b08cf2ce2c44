"""Where data sets lie below a root: in the directory layouts of LISA, GLaMM and MGLMM, and in their own archives.

Sources of the layouts: LISA's README, `docs/datasets.md` of groundingLMM, the dataset classes of mglmm; for evaluation
inputs, the repositories of ml-ferret, LLaVA (`playground/data/eval`), POPE (`output/coco`), shikra and MiniGPT-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRAIN2017 = ("coco/train2017", "coco_2017/train2017", "coco2017/train2017", "train2017")
TRAIN2014 = ("coco/train2014", "coco_2014/train2014", "coco2014/train2014", "train2014")
VAL2014 = ("coco/val2014", "coco_2014/val2014", "coco2014/val2014", "eval/pope/val2014", "val2014", "coco/val2017",
           "coco_2017/val2017", "coco2017/val2017", "val2017")  # fmt: skip
VAL2017 = ("coco/val2017", "coco_2017/val2017", "coco2017/val2017", "val2017")
COCO = ("coco", "coco_2017", "coco2017", ".")
FLICKR = ("flickr_30k/images", "flikcr_30k/train", "flickr_30k/train", "flickr30k/images", "flickr_30k")
VG = ("visual_genome/images", "visual_genome/VG_100K", "visual_genome")
BENCH = ("", "eval/", "vlm_bench/", "benchmarks/")
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
    several: tuple[str, ...] = ()  # parameters that take all of the places that are there


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


def _rec(name: str, split: str) -> Entry:
    """MDETR's form (GLaMM, Ferret), or MiniGPT-v2's."""
    folders = (*(f"{folder}/images/mscoco/images/train2014" for folder in REFER[:2]), "images/mscoco/images/train2014")
    return Entry("rec", {
        "path": (f"RefCoco_Reg/mdetr_annotations/finetune_{name}_{split}.json",
                 f"mdetr_annotations/finetune_{name}_{split}.json", f"{name}/{name}_{split}.json",
                 f"refcoco_eval/{name}_{split}.json"),
        "image_root": ("coco/train2014", "coco_2014/train2014", "coco2014/train2014", *folders)})  # fmt: skip


def _asked(name: str, images: tuple[str, ...], *files: str, **options: str) -> Entry:
    """A benchmark of `benchmarks.py`, in a folder of its own below a root, `eval/`, `vlm_bench/` or `benchmarks/`."""
    fixed = {"name": name, **({"options": options} if options else {})}
    places = tuple(f"{at}{file}" for at in BENCH for file in files)
    return Entry("benchmark", {"path": places, "image_root": images}, fixed, several=("image_root",))


ABC = ("train", "val", "testA", "testB")
ENTRIES: dict[str, Entry] = {
    # semantic, parts, panoptic
    "ade20k": Entry("ade20k", {"root": ("ade20k", "Semantic_Segm/ade20k", "ADEChallengeData2016")}, {},
                    ("training", "validation")),
    "ade20k_sample": Entry("ade20k", {"root": ("ade20k_sceneparsing/sampleData", "sampleData")}),
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
    "camvid": Entry("camvid", {"root": ("camvid/train.txt", "CamVid/train.txt", "trainannot")}, {},
                    ("train", "val", "test")),
    "carparts": Entry("carparts", {
        "json_path": ("carparts/trainingset/annotations.json", "trainingset/annotations.json")}),
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
    **{f"rec_{name}_{split}": _rec(name, split) for name in ("refcoco", "refcoco+") for split in ABC},
    **{f"rec_refcocog_{split}": _rec("refcocog", split) for split in ("train", "val", "test")},
    "reasonseg": Entry("reasonseg", {"root": ("reason_seg/ReasonSeg", "ReasonSeg")}, {}, ("train", "val", "test")),
    "muse_train": Entry("muse", {"root": ("reason_seg/MUSE/MUSE_train.json", "MUSE/MUSE_train.json")},
                        {"split": "train"}),
    "muse_val": Entry("muse", {"root": ("reason_seg/MUSE/MUSE_val.json", "MUSE/MUSE_val.json")}, {"split": "val"}),
    "muse_test": Entry("muse", {"root": ("reason_seg/MUSE/MUSE_test.json", "MUSE/MUSE_test.json")}, {"split": "test"}),
    # grounded conversation
    "grandf_ha": _gcg("ha", "train", "GranDf_HA_GCG_train.json"),
    "openpsg_gcg": _gcg("psg", "train", "OpenPsgGCG_train.json"),
    "openpsg_gcg_val": _gcg("psg", "val", "OpenPsgGCG_val.json"),
    "refcocog_gcg": _gcg("refcocog", "train", "RefCOCOg_GCG_train.json"),
    "refcocog_gcg_val": _gcg("refcocog", "val", "RefCOCOg_GCG_val.json"),
    "flickr_gcg": _gcg("flickr", "train", "flickr_mergedGT_GCG_train.json"),
    "flickr_gcg_val": _gcg("flickr", "val", "flickr_mergedGT_GCG_val.json"),
    **{f"gcg_{split}": Entry("grandf", {"root": tuple(
        f"{folder}/annotations/val_test/{split}_gcg_coco_caption_gt.json" for folder in GRANDF)},
        {"form": "eval", "split": split}) for split in ("val", "test")},
    "mgscdata": Entry("mgscdata", {"root": ("MGLMM_gcg_new/annotations", "MGSCData/annotations")}, {},
                      ("train", "val")),
    "grand_referring": Entry("grand", {"root": ("GranD/referring_expression",)}, {"form": "referring"}),
    "grand_caption": Entry("grand", {"root": ("GranD/caption_grounding",)}, {"form": "caption"}),
    "sa1b": Entry("sa1b", {"root": ("SA-1B", "sa1b")}),
    "osprey": Entry("osprey", {"path": ("osprey/osprey_conversation.json", "Osprey-724K/osprey_conversation.json"),
                               "image_root": TRAIN2017}),
    **{f"osprey_{name}": Entry("osprey", {
        "path": (f"osprey/osprey_{name}.json", f"Osprey-724K/osprey_{name}.json"), "image_root": TRAIN2017})
        for name in ("detail_description", "part_level", "lvis_positive_negative", "short_form")},
    "osprey_bench": Entry("osprey", {"path": tuple(f"{at}osprey_description/questions.json" for at in BENCH),
                                     "image_root": VAL2017}),
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
    "flickr30k_captions": Entry("captions", {
        "path": ("flickr30k/results_20130124.token", "flickr_30k/results_20130124.token"), "image_root": FLICKR}),
    **{f"flickr30k_{subset}": Entry("captions", {
        "path": ("flickr30k/dataset_flickr30k.json", "flickr_30k/dataset_flickr30k.json"), "image_root": FLICKR},
        {"subset": subset}) for subset in ("train", "val", "test")},
    "nocaps_val": Entry("captions", {"path": ("nocaps/nocaps_val_4500_captions.json",),
                                     "image_root": ("nocaps/images", "nocaps/val", "nocaps")}),
    "grit": Entry("grit", {"path": ("grit/grit.jsonl", "GRIT/grit.jsonl", "grit.jsonl"),
                           "image_root": (*TRAIN2017, *TRAIN2014, *VAL2014, *VG, *FLICKR)}, several=("image_root",)),
    # evaluation inputs
    **{f"pope_{kind}": _asked("pope", VAL2014, f"pope/coco_pope_{kind}.json", f"pope/coco/coco_pope_{kind}.json",
                              f"POPE/output/coco/coco_pope_{kind}.json")
       for kind in ("random", "popular", "adversarial")},
    **{f"ferret_bench_{part}": _asked("ferret_bench", (*VAL2017, *VAL2014), f"ferret_bench/{part}",
                                      f"ferret_gpt4_data/{part}", f"ferret/eval/ferret_gpt4_data/{part}")
       for part in ("refer_caption", "refer_reason", "ground_conv")},
    **{f"lvis_referring_{shape}": _asked("lvis_referring", VAL2017, "lvis_referring/lvis_eval.jsonl",
                                         "lvis/lvis_eval.jsonl", "lvis_eval.jsonl", shape=shape)
       for shape in ("point", "box", "free")},
    "llava_bench": _asked("llava_bench", VAL2014, "llava_bench_coco/coco2014_val_gpt4_qa_30x3.jsonl",
                          "coco2014_val_gpt4_qa_30x3.jsonl"),
    **{f"pointqa_{kind}": _asked("pointqa", VG, f"pointingqa/{kind}_dataset.json", f"pointqa/{kind}_dataset.json")
       for kind in ("spatial", "verbal")},
    "pointqa_local": _asked("pointqa_lines", VG, "pointqa/pointQA_local_test.jsonl", "pointQA_local_test.jsonl"),
    "pointqa_twice": _asked("pointqa_lines", VG, "pointqa/pointQA_twice_test.jsonl", "pointQA_twice_test.jsonl",
                            field="obj_question"),
    **{f"visual7w_{kind}": _asked("visual7w", ("visual7w/images", "v7w/images", *VG),
                                  f"visual7w/dataset_v7w_{kind}.json", f"v7w/dataset_v7w_{kind}.json",
                                  f"dataset_v7w_{kind}.json")
       for kind in ("pointing", "telling")},
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
