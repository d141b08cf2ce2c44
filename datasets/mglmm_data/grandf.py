"""GranDf, the four sets of grounded conversation generation (GCG), and its evaluation pair.

    ROOT/annotations/train/GranDf_HA_GCG_train.json         form `ha`       images GranDf_HA_images/train
    ROOT/annotations/train/OpenPsgGCG_{train,val}.json      form `psg`      images coco (train2017, val2017)
    ROOT/annotations/train/RefCOCOg_GCG_{train,val}.json    form `refcocog` images coco train2014
    ROOT/annotations/train/flickr_mergedGT_GCG_*.json       form `flickr`   images flickr_30k
    ROOT/annotations/val_test/{val,test}_gcg_coco_{caption,mask}_gt.json    form `eval`   GranDf_HA_images/val_test

`ROOT` is `GranDf` or the folder above it. A phrase is found by the characters that the file records; RefCOCOg's file
has none, there it is looked for as whole words and in any case (MGLMM looks for `Brown dog` in a caption that it put in
lower case, drops the phrase but not its mask, and so shifts all masks behind it).
The evaluation's captions do not say all of their labels; all count (`meta["gcg_labels"]`).
Source: mbzuai-oryx/groundingLMM, `dataset/gcg_datasets/GranDf_gcg_ds.py`, `eval/gcg/evaluate.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mglmm_data import masks, wording
from mglmm_data.annotation import Grounded, Span, asked, check_segmentation, ground, locate, own_size, rle_of
from mglmm_data.grandf_forms import FORMS, NOWHERE, Told, masks_of_pair
from mglmm_data.index import Records
from mglmm_data.reading import Packed, Pictures, Problems, load_picture, named
from mglmm_data.sample import Conversation, Region, Sample, Turn
from mglmm_data.telling import near

FILES = {
    "ha": "GranDf_HA_GCG_{split}.json",
    "psg": "OpenPsgGCG_{split}.json",
    "refcocog": "RefCOCOg_GCG_{split}.json",
    "flickr": "flickr_mergedGT_GCG_{split}.json",
}
COCO = ("../coco", "../coco_2017", "coco", "coco_2017")
FOLDERS = {
    "ha": ("GranDf_HA_images/train", "GranDf/GranDf_HA_images/train"),
    "eval": ("GranDf_HA_images/val_test", "GranDf/GranDf_HA_images/val_test"),
    "psg": (*COCO, *(f"{folder}/{part}" for folder in COCO for part in ("train2017", "val2017"))),
    "refcocog": tuple(f"{folder}/train2014" for folder in (*COCO, "../coco_2014", "coco_2014")),
    "flickr": tuple(
        f"{up}{folder}"
        for up in ("../", "")
        for folder in ("flickr_30k/images", "flikcr_30k/train", "flickr_30k/train", "flickr30k/images")
    ),
}


class GranDfSource:
    """One GCG set; a sample is an image with one grounded caption.

    Args:
        root: the folder above.
        form: ha, psg, refcocog, flickr or eval.
        split: train or val; for eval, val or test.
        path: the json itself (for eval, the one of the captions), where it is not found below `root`.
        image_root: folder of the photographs.
        apart: an entry with several `rle_masks` has a region for each; by default they are joined into one, as the
            benchmark counts one mask for each phrase. Entries that share their characters share a phrase.

    Raises:
        ValueError: a file is missing or damaged, or (with on_error: fail) a record is malformed.
    """

    def __init__(
        self,
        root: str | Path = ".",
        *,
        form: str,
        split: str = "train",
        path: str | Path | None = None,
        image_root: str | Path | None = None,
        apart: bool = False,
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"form is {form!r}{near(form, FORMS)}")
        self.form, self.split, self.seed, self.mirror, self.apart = form, split, seed, mirror, apart
        self.problems, self.skipped = Problems(on_error), Counter[str]()
        if path is None:
            name = "{split}_gcg_coco_caption_gt.json" if form == "eval" else FILES[form]
            part = "val_test" if form == "eval" else "train"
            ways = [f"{up}annotations/{part}/{name.format(split=split)}" for up in ("", "GranDf/")]
            path = locate(root, ways, f"GCG annotations ({form}, {split})")
        self.path = Path(path)
        places = [Path(root) / way for way in FOLDERS[form] if (Path(root) / way).is_dir()]
        if image_root is None and not places:
            raise ValueError(f"no images of GCG's {form} set below {root}; tried {', '.join(FOLDERS[form])}")
        self.pictures = Pictures(image_root if image_root is not None else places)
        self._store = Records(masks_of_pair(self.path) if form == "eval" else self.path)
        entries: list[list[Any]] = []
        for told in FORMS[form](self.path, self._store, self.problems, self.skipped):
            with self.problems.at(f"{self.path}: {told.name}"):
                self._check(told)
                if told.marks:
                    marks = [[start, end, way, phrase] for phrase, start, end, _, way in told.marks]
                    marks.sort(key=lambda mark: (mark[:2] == NOWHERE, mark))
                    entries.append([told.name, told.file, told.size, told.caption, marks])
                else:
                    self.skipped["image without a phrase"] += 1
        if not entries and not self.problems.found:
            raise ValueError(f"{self.path} holds no caption with a phrase; give a GCG file of form {form}")
        self._entries = Packed(entries)

    def _check(self, told: Told) -> None:
        self.pictures.find(told.file)
        size = told.size
        for phrase, start, end, segmentations, _ in told.marks:
            if not segmentations:
                raise ValueError(f"its phrase {phrase!r} has no mask")
            for segmentation in segmentations:
                if size is None and isinstance(segmentation, dict):
                    size = own_size(segmentation)
                if not check_segmentation(segmentation, size):
                    raise ValueError(f"its phrase {phrase!r} has an empty segmentation")
            if self.form == "eval" and [start, end] == NOWHERE:
                continue
            if not 0 <= start < end <= len(told.caption):
                raise ValueError(
                    f"its phrase {phrase!r} is at characters {start}:{end} of a caption of {len(told.caption)}"
                )

    def __len__(self) -> int:
        return len(self._entries)

    def id_of(self, index: int) -> str:
        return f"GCG-{self.form}/{self.split}/{self._entries[index][0]}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index` with its caption; the question is drawn by (seed, index, epoch).

        Of the evaluation pair `meta["gcg_labels"]` has every label with the index of its region, in the file's order:
        also those that the caption does not say, and two of one mask.

        Raises:
            ValueError: the image is damaged or of another size, or a mask does not decode.
        """
        name, file, size, caption, marks = self._entries[index]
        where = f"{self.path}: {name}"
        path = self.pictures.find(file)
        loaded = load_picture(path, None if size is None else (size[0], size[1]), where)
        regions: list[Region] = []
        spans: list[Span] = []
        labels: list[tuple[int, str, int]] = []
        for start, end, way, phrase in marks:
            words = phrase if [start, end] == NOWHERE else caption[start:end]
            with named(f"{where}: phrase {words!r}"):
                found = [rle_of(segmentation, loaded.size) for segmentation in self._segmentations(way)]
                found = [rle for rle in found if masks.area_of(rle)]
                if not found:
                    raise ValueError("its mask covers no pixel")
            new = found if self.apart else [masks.merged(found, loaded.size)]
            places = self._place(regions, [Region(loaded.size, rle=rle, label=words) for rle in new])
            labels += [(way[0], phrase, region) for region in places]
            if [start, end] != NOWHERE:
                spans.append(Span(start, end, places))
        with named(where):
            grounded = ground(caption, spans)
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=tuple(regions),
            conversations=(self._tell(grounded, np.random.default_rng([self.seed, index, epoch])),),
            id=self.id_of(index),
            meta={
                "source": f"gcg-{self.form}",
                "image_id": Path(file).stem,
                "file": path,
                "notes": (*loaded.notes, *grounded.notes),
                "mirror": self.mirror,
                "names": (),
                "crowd_regions": (),
            }
            | ({"gcg_labels": tuple(label[1:] for label in sorted(labels))} if self.form == "eval" else {}),
        )

    def _segmentations(self, way: Sequence[Any]) -> list[Any]:
        found = self._store[way[0]]
        for key in way[1:]:
            found = found[key]
        return found if way[-1] == "rle_masks" else [found]

    def _place(self, regions: list[Region], new: Sequence[Region]) -> tuple[int, ...]:
        """Indices of regions, of those that are there already for the same mask (nested phrases of one object)."""
        places: list[int] = []
        for region in new:
            same = [at for at, known in enumerate(regions) if known.rle == region.rle]
            places.append(same[0] if same else len(regions))
            regions += [] if same else [region]
        return tuple(dict.fromkeys(places))

    def _tell(self, grounded: Grounded, rng: np.random.Generator) -> Conversation:
        question = asked(wording.QUESTIONS["grounded"], rng)
        turns = (Turn("user", question), Turn("assistant", grounded.text, grounded.phrases))
        return Conversation(turns, task="caption", kind="grounded")
