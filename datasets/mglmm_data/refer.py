"""RefCLEF, RefCOCO, RefCOCO+ and RefCOCOg: expressions of objects in photographs, each with its mask.

    ROOT/refcoco/refs(unc).p  refcoco+/refs(unc).p  refcocog/refs(umd).p (or google)  refclef/refs(unc).p
    ROOT/<name>/instances.json

`ROOT` is the folder of these, or the one above it in LISA's, MGLMM's (`refer_seg`) or GLaMM's (`Refer_Segm`) layout. A
json with the same list is read as well as the pickle. Source of the formats and of what a split's name means:
lichengunc/refer, `refer.py`.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mglmm_data.annotation import check_segmentation, check_turns, choose, folders, locate, region_of
from mglmm_data.annotation import refer as ask
from mglmm_data.coco import undisturbed
from mglmm_data.index import Records, walk
from mglmm_data.masks import Size
from mglmm_data.reading import (
    WRONG_TYPE,
    Packed,
    Pictures,
    Problems,
    load_picture,
    read_json,
    shown,
    take,
    take_id,
    take_size,
)
from mglmm_data.sample import Region, Sample
from mglmm_data.telling import near, reading_order

SPLIT_BY = {"refclef": "unc", "refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
"""Name -> the partition that papers report."""
COCO_FOLDERS = (
    "refer_seg/images/mscoco/images/train2014",
    "images/mscoco/images/train2014",
    "coco/train2014",
    "coco_2014/train2014",
    "../coco/train2014",
    "../coco_2014/train2014",
)
CLEF_FOLDERS = (
    "refer_seg/images/saiapr_tc-12",
    "Refer_Segm/images/saiapr_tc-12",
    "images/saiapr_tc-12",
)


class ReferSource:
    """One split of a referring data set; a sample is an image with up to `turns` of its expressions.

    Args:
        root: the folder above; what is not found below it is given by `refs`, `instances` and `image_root`.
        dataset: refclef, refcoco, refcoco+ or refcocog.
        split: train, val, test, testA, testB or testC; `testA` takes what is marked `testAB` too, `test` every test
            part, as the set's own code has it.
        split_by: unc, umd or google; by default the one that papers report.
        turns: expressions drawn for each image; null asks all of them, in the file's order.
        wordings: key of `wording.QUESTIONS`.
        on_error: `fail`, or `count` to leave wrong records out and list them in `problems.found`.

    Raises:
        ValueError: a file is missing or damaged, the split is empty, or (with `fail`) a record is malformed.
    """

    def __init__(
        self,
        root: str | Path = ".",
        *,
        dataset: str = "refcoco",
        split: str = "train",
        split_by: str | None = None,
        refs: str | Path | None = None,
        instances: str | Path | None = None,
        image_root: str | Path | None = None,
        turns: int | None = 3,
        wordings: str = "one",
        seed: int = 0,
        mirror: str = "swap",
        on_error: str = "fail",
    ) -> None:
        self.dataset, self.split, self.seed, self.mirror, self.wordings = dataset, split, seed, mirror, wordings
        self.turns, self.problems = check_turns(turns), Problems(on_error)
        self.skipped: Counter[str] = Counter()
        """What is no target, counted: objects without a mask, and the expressions of nothing else."""
        if refs is None or instances is None:
            if dataset not in SPLIT_BY:
                raise ValueError(f"no referring data set {dataset!r}{near(dataset, SPLIT_BY)}")
            name = f"refs({split_by or SPLIT_BY[dataset]})"
            ways = [f"{folder}{dataset}" for folder in ("", "refer_seg/", "Refer_Segm/")] + ["."]
            folder = locate(root, ways, f"folder of {dataset}", lambda path: (path / "instances.json").is_file())
            refs = refs or locate(folder, (f"{name}.p", f"{name}.json"), f"{name}.p or .json")
            instances = instances or folder / "instances.json"
        ways = CLEF_FOLDERS if dataset == "refclef" else COCO_FOLDERS
        pictures = Pictures(image_root or folders(root, ways, f"folder of {dataset}'s images"))
        self.refs_path, self.instances_path = Path(refs), Path(instances)
        with undisturbed():
            self._build(load_refs(self.refs_path), pictures)

    def _build(self, refs: list[Any], pictures: Pictures) -> None:
        """Group the split's expressions by image and check everything that they point at."""
        chosen: list[dict[str, Any]] = []
        splits: set[str] = set()
        for number, ref in enumerate(refs):
            try:
                splits.add(take(ref, "split", str))
                if in_split(ref["split"], self.split):
                    chosen.append(read_ref(ref, self.dataset == "grefcoco"))
            except (ValueError, *WRONG_TYPE) as error:  # named only where it is needed: there are many records
                self.problems.take(f"{self.refs_path}: ref {named(ref, 'ref_id', f'number {number}')}", error)
        if not chosen and not self.problems.found:
            raise ValueError(f"{self.refs_path} has nothing in split {self.split!r}{near(self.split, splits)}")
        self._read_instances({ann for ref in chosen for ann in ref["anns"]}, {ref["image"] for ref in chosen})
        grouped: dict[Any, list[Any]] = {}
        files: dict[Any, str] = {}
        for ref in chosen:
            with self.problems.at(f"{self.refs_path}: ref {ref['id']}"):
                if (image := ref["image"]) not in self._images:
                    raise ValueError(f"is on image id {image}, which {self.instances_path} does not have")
                if image not in files:
                    files[image] = pictures.find(self._images[image][0])
                if (rows := self._rows(ref)) is not None:
                    grouped.setdefault(image, []).append([ref["id"], rows, ref["sents"]])
        self._entries = Packed([[key, files[key], *self._images[key][1]], items] for key, items in grouped.items())
        del self._images, self._found
        if not grouped and not self.problems.found:
            raise ValueError(f"{self.refs_path}: no object of split {self.split!r} has a mask; take another split")

    def _read_instances(self, anns: set[Any], images: set[Any]) -> None:
        """Find the images and annotations that are spoken of; of the annotations only their place in the file stays."""
        self._store = Records(self.instances_path)
        self._images: dict[Any, tuple[str, Size]] = {}
        self._found: dict[Any, tuple[int, Any, bool, Any]] = {}
        self._names: dict[Any, str] = {}
        later: list[tuple[int, Any, Any]] = []
        wanted = {"images": images, "annotations": anns}
        for key, start, end, record in walk(self.instances_path, self.problems):
            number = record.get("id") if key in wanted and type(record) is dict else None
            if type(number) in (int, str) and number not in wanted[key]:
                continue
            try:
                if key == "images":
                    name, size = take_id(record, "id"), take_size(record)
                    self._images[name] = (take(record, "file_name", str), size)
                elif key == "categories":
                    self._names[take_id(record, "id")] = take(record, "name", str)
                elif key == "annotations":
                    ann, image = take_id(record, "id"), take_id(record, "image_id")
                    if image in self._images:
                        self._found[ann] = (len(self._store), image, *self._check(record, self._images[image][1]))
                    else:
                        later.append((len(self._store), image, ann))
                    self._store.append(start, end)
            except (ValueError, *WRONG_TYPE) as error:
                where = f"{key.rstrip('s')} {named(record, 'id', f'at byte {start}')}"
                self.problems.take(f"{self.instances_path}: {where}", error)
        for row, image, ann in later:  # a json may hold its images last
            with self.problems.at(f"{self.instances_path}: annotation {ann}"):
                if image not in self._images:
                    raise ValueError(f"is on image id {image}, which is not among the images")
                self._found[ann] = (row, image, *self._check(self._store[row], self._images[image][1]))

    def _check(self, record: Mapping[str, Any], size: Size) -> tuple[bool, Any]:
        """Whether there is anything to draw, and the category (None where none is said)."""
        category = take_id(record, "category_id") if "category_id" in record else None
        return check_segmentation(take(record, "segmentation", object), size), category

    def _rows(self, ref: Mapping[str, Any]) -> list[int] | None:
        """The places of a ref's annotations, [] for no target; None where its objects have no mask."""
        rows: list[int] = []
        for ann in ref["anns"]:
            if ann not in self._found:
                raise ValueError(
                    f"speaks of annotation id {ann}, which {self.instances_path} does not have (or is bad)"
                )
            row, image, drawn, category = self._found[ann]
            if category is not None and category not in self._names:
                raise ValueError(f"speaks of annotation {ann} with category id {category}, which is not a category")
            if image != ref["image"]:
                raise ValueError(f"is on image id {ref['image']}, its annotation {ann} on image id {image}")
            if drawn:
                rows.append(row)
            else:
                self.skipped["object without a mask"] += 1
        if ref["anns"] and not rows:
            self.skipped["expression of an object without a mask"] += len(ref["sents"])
            return None
        return rows

    def __len__(self) -> int:
        return len(self._entries)

    def id_of(self, index: int) -> str:
        return f"{self.dataset}/{self.split}/{self._entries[index][0][0]}"

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The image at `index`, with expressions drawn by (seed, index, epoch).

        Each object is one region, its parts joined; `Region.label` is its category. `meta["refs"]` are the ref ids of
        the conversations.

        Raises:
            ValueError: the image is damaged or of another size, or a mask does not decode or covers no pixel.
        """
        (image_id, path, *size), refs = self._entries[index]
        loaded = load_picture(path, (size[0], size[1]), f"{self.instances_path}: image {image_id}")
        rows = sorted({row for _, rows, _ in refs for row in rows})
        regions = [self._region(record, loaded.size) for record in self._store.many(rows)]
        order = reading_order(regions)
        place = {rows[old]: new for new, old in enumerate(order)}
        rng = np.random.default_rng([self.seed, index, epoch])
        told = choose([(ref, rows, text) for ref, rows, texts in refs for text in texts], self.turns, rng)
        return Sample(
            image=loaded.pixels,
            full_size=loaded.full_size,
            regions=tuple(regions[old] for old in order),
            conversations=tuple(
                ask(text, tuple(sorted(place[row] for row in rows)), rng, wordings=self.wordings)
                for _, rows, text in told
            ),
            id=self.id_of(index),
            meta={
                "source": self.dataset,
                "image_id": image_id,
                "file": path,
                "notes": loaded.notes,
                "mirror": self.mirror,
                "names": (),
                "crowd_regions": (),
                "refs": tuple(ref for ref, _, _ in told),
            },
        )

    def _region(self, annotation: Mapping[str, Any], size: Size) -> Region:
        where = f"{self.instances_path}: annotation {annotation['id']}"
        try:
            category = take_id(annotation, "category_id") if "category_id" in annotation else None
            return region_of(annotation["segmentation"], size, self._names.get(category, ""))
        except ValueError as error:
            raise ValueError(f"{where}: {error}; correct or remove it") from error


def named(record: Any, key: str, place: str) -> Any:
    """What a record is called in an error: its id, or its place where it has none."""
    return record[key] if isinstance(record, dict) and key in record else place


def read_ref(ref: Any, no_target: bool) -> dict[str, Any]:
    """A ref's id, image, annotations and sentences, checked.

    Args:
        no_target: there may be none ([-1], or [] with `no_target`), as in gRefCOCO; then the annotations are [].
    """
    anns = ref.get("ann_id")
    anns = list(anns) if isinstance(anns, (list, tuple)) else [take_id(ref, "ann_id")]
    if no_target and (ref["ann_id"] == [-1] or (not anns and ref.get("no_target"))):
        anns = []
    elif not anns:
        way = "; expected ids of annotations, or [-1] for no target" if no_target else ""
        raise ValueError(f"its 'ann_id' is {shown(ref['ann_id'])}, so that it speaks of no object{way}")
    for ann in anns:
        if isinstance(ann, bool) or not isinstance(ann, (int, str)) or ann == -1:
            raise ValueError(f"its 'ann_id' holds {shown(ann)}; expected ids of annotations, or [-1] for no target")
    if "no_target" in ref and bool(ref["no_target"]) == bool(anns):
        raise ValueError(f"its 'no_target' is {ref['no_target']}, but its 'ann_id' is {ref['ann_id']}")
    sents = [
        " ".join(
            take(sentence, "raw" if isinstance(sentence, dict) and "sent" not in sentence else "sent", str).split()
        )
        for sentence in take(ref, "sentences", list)
    ]
    if not sents or not all(sents):
        raise ValueError(f"its 'sentences' are {shown(sents)}; expected at least one, none of them empty")
    return {"id": take_id(ref, "ref_id"), "image": take_id(ref, "image_id"), "anns": anns, "sents": sents}


def in_split(marked: str, wanted: str) -> bool:
    """Whether a ref marked `testAB` belongs to `testA`, `testB` and `test`; as lichengunc/refer's `getRefIds`."""
    if wanted == "test":
        return "test" in marked
    if wanted in ("testA", "testB", "testC"):
        return marked.startswith("test") and wanted[-1] in marked[len("test") :]
    return marked == wanted


class _Plain(pickle.Unpickler):
    """Loads lists, dicts, text and numbers; refuses whatever names a class or a function, before it is looked up."""

    path: Path

    def find_class(self, module: str, name: str) -> NoReturn:
        raise ValueError(
            f"{self.path} holds {module}.{name}, which a file of expressions has no use for and which may run code; "
            "it was not loaded, download the file again from its own page"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ValueError(f"{self.path} points outside of itself ({shown(pid)}); download it again")


def load_refs(path: str | Path) -> list[Any]:
    """The list of refs in a pickle (`refs(unc).p`) or json; a pickle may hold plain containers only.

    Raises:
        ValueError: the file is missing or damaged, no list, or a pickle with anything but plain containers.
    """
    path = Path(path)
    if path.suffix == ".json":
        return read_json(path, list)
    try:
        with path.open("rb") as file:
            unpickler = _Plain(file, encoding="utf-8")
            unpickler.path = path
            data = unpickler.load()
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; check the path of the expressions") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} holds text that is not UTF-8 ({error}); save it anew as json") from error
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle: UnpicklingError, EOFError, KeyError, IndexError, TypeError ...
        raise ValueError(f"{path} cannot be read as a pickle ({error!r}); download it again") from error
    if not isinstance(data, list):
        raise ValueError(f"{path} holds {type(data).__name__} at its top; expected a list of refs")
    return data
