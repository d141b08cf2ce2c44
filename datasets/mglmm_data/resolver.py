"""Data sets by name, wherever they lie: the directory layouts of LISA, GLaMM and MGLMM work as they are.

`resolve("refcocog")` looks below `MGLMM_DATA` (or the roots given) for the places at which the three systems, and the
data sets' own archives, put the files, and gives the spec of a source. In a config: `{type: dataset, name: refcocog,
split: val}`; all other keys go to the source. What is not there is said with every place that was tried.
Which places these are stands in `layouts.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mglmm_data.layouts import ABOVE, ENTRIES, Entry
from mglmm_data.shards import is_pattern
from mglmm_data.telling import near

VARIABLE = "MGLMM_DATA"
Roots = str | Path | Sequence[str | Path]
FOLDERS = {"folder": ("images", "masks"), "yolo": ("images", "labels"), "voc": ("JPEGImages", "SegmentationClass")}
"""Type -> the folders that prove it."""
KEYS = {
    b'"imagePath"': ("labelme", "root"),
    b'"predicted_iou"': ("sa1b", "root"),
    b'"segments_info"': ("coco_panoptic", "json_path"),
    b'"obj_ann_id"': ("paco_lvis", "json_path"),
    b'"attribute_ids"': ("fashionpedia", "json_path"),
    b'"neg_category_ids"': ("lvis", "json_path"),
    b'"img_id"': ("rec", "path"),
    b'"segmentation"': ("coco", "json_path"),
}
"""A key that only jsons of a type have, the rarer first -> type and parameter; COCO's is checked for categories."""
UNKNOWN = "whose keys do not tell its type; write a config, such as `sources: {mine: {type: coco, json_path: FILE}}`"
JSONS = ("*.json", "annotations/*.json", "data/*.json")


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
        if parameter not in keys and parameter not in entry.optional and not _there(entry, parameter, found)
    ]
    if missing:
        raise ValueError(
            f"data set {name!r} is not complete: no {'; no '.join(missing)}; download it or give its paths"
        )
    paths: dict[str, Any] = {}
    for parameter in entry.paths:
        if there := _there(entry, parameter, found):
            several = parameter in entry.several and len(there) > 1
            paths[parameter] = [str(path) for path in there] if several else str(there[0])
    return {"type": entry.type, **paths, **entry.fixed, **keys}


def _there(entry: Entry, parameter: str, roots: Iterable[Path]) -> list[Path]:
    """Every place of a parameter that is there, the first that is looked for first."""
    levels = ABOVE.get(entry.type, 0) if parameter == "root" else 0
    found = [path for root in roots for place in entry.paths[parameter] if (path := root / place).exists()]
    return [path.parents[levels - 1] if levels else path for path in found]


def discover(root: Roots | None = None) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Every data set below the roots: name or `name/split` -> spec; and what is there in part, a sentence each."""
    found, partly = roots_of(root), []
    specs: dict[str, dict[str, Any]] = {}
    for name, entry in ENTRIES.items():
        main = next(iter(entry.paths))
        if not _there(entry, main, found):
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

    A folder may hold data sets in a known layout, `samples.jsonl`, the folders of `FOLDERS`, shards (`*.tar`), or jsons
    of `KEYS`; a file may be a JSONL, such a json, or a shard; shards may also be a URL or a pattern
    (`shards/{000000..000009}.tar`). `world` is the procedural world.

    Raises:
        ValueError: there is nothing of the kind, or the keys of a json do not tell its type; what was tried is said.
    """
    path = Path(text)
    name = path.stem or "data"
    if text == "world":
        return {"world": {"type": "world"}}
    if is_pattern(text):
        return {path.parent.name or "shards": {"type": "shards", "path": text}}
    if path.is_file() and path.suffix.lower() == ".json":
        if spec := _spec_of_json(path):
            return {Path(spec.get("root", name)).name or name: spec}
        raise ValueError(f"{text} is a json {UNKNOWN}; see datasets/README.md")
    if path.is_file() or "://" in text:
        kind = {".jsonl": "jsonl", ".tar": "shards"}.get(path.suffix.lower(), "shards" if "://" in text else "")
        if not kind:
            raise ValueError(f"{text} is no data; give a .jsonl, a COCO-style .json, a .tar, a folder, or a config")
        return {name: {"type": kind, "path": text}}
    if not path.exists():
        base = text.partition("/")[0]
        if base in ENTRIES:
            if "/" in text or not ENTRIES[base].splits:
                return {text: resolve(text, root)}
            return {f"{text}/{split}": resolve(f"{text}/{split}", root) for split in ENTRIES[base].splits[:1]}
        raise ValueError(f"{text} is neither a file or folder nor a data set{near(text, [*ENTRIES, 'world'])}")
    if (path / "samples.jsonl").is_file():
        return {name: {"type": "jsonl", "path": text}}
    for kind, needed in FOLDERS.items():
        if all((path / folder).is_dir() for folder in needed):
            return {name: {"type": kind, "root": text}}
    if any(path.glob("*.tar")):
        return {name: {"type": "shards", "path": text}}
    found, partly = discover(path)
    if found:
        return found
    loose = {file.stem: {"type": "jsonl", "path": str(file)} for file in sorted(path.glob("*.jsonl"))}
    if loose:
        return loose
    unknown = []
    for file in sorted(file for pattern in JSONS for file in path.glob(pattern)):
        spec = _spec_of_json(file)
        if spec is None:
            unknown.append(file.name)
        elif "root" in spec:
            return {name: spec}
        else:
            images = {} if file.parent == path else {"image_root": text}
            found[name if file.stem == "annotations" else file.stem] = {**spec, **images}
    if found:
        return found
    gaps = f" (in part: {'; '.join(partly)})" if partly else ""
    odd = f"; {', '.join(unknown[:3])}: a json {UNKNOWN}" if unknown else ""
    raise ValueError(
        f"{text} holds no data that is known here: no samples.jsonl, no images/ with masks/ or labels/, no *.tar, "
        f"and no data set in the layout of LISA, GLaMM or MGLMM{gaps}{odd}; see datasets/README.md"
    )


def _spec_of_json(path: Path) -> dict[str, Any] | None:
    """What a json is by its keys; None where they do not say it."""
    content = path.read_bytes()
    for key, (kind, parameter) in KEYS.items():
        if key in content and (kind != "coco" or b'"categories"' in content):
            return {"type": kind, parameter: str(path.parent if parameter == "root" else path)}
    return None
