"""`mglmm export`: the formats of `mglmm_data.export`, and those of labelling tools, which an `Answer` can write."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from copy import copy
from pathlib import Path

import numpy as np

from mglmm.answer import Answer, Instance, Phrase
from mglmm.export import label_studio_config, to_label_studio
from mglmm.export import to_labelme as labelme_of
from mglmm_data.annotated import Annotated
from mglmm_data.drop import Dropping
from mglmm_data.export import WRITERS, Exported, Pictures, Progress, Writer, label_of, no_objects, read_all
from mglmm_data.reading import OnError
from mglmm_data.registry import Source
from mglmm_data.sample import Sample, compose
from mglmm_data.telling import near


def export(
    source: Source,
    out: Path,
    form: str,
    *,
    limit: int | None = None,
    epoch: int = 0,
    on_error: OnError = "fail",
    on_progress: Progress | None = None,
) -> Exported:
    """Write a source into the folder `out`.

    Formats of annotations get every instance on its own; our own (`SAMPLES`) get the samples as they are, and what
    `max_regions` joined in them is counted.

    Raises:
        ValueError: the format is unknown, the folder is not empty, or a sample cannot be read (`on_error: fail`).
    """
    if form not in FORMATS:
        raise ValueError(f"--format is {form!r}{near(form, FORMATS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there and not empty; give a new folder, nothing is overwritten")
    out.mkdir(parents=True, exist_ok=True)
    done = Exported(out)
    source = source if form in SAMPLES else unjoined(source)
    FORMATS[form](
        read_all(source, done, limit=limit, epoch=epoch, on_error=on_error, on_progress=on_progress), out, done
    )
    return done


def unjoined(source: Source) -> Source:
    """The same source without `max_regions`, which keeps answers short: no instances are joined into one region."""
    whole = copy(source)
    if isinstance(whole, Dropping):
        whole.inner = unjoined(whole.inner)
    elif isinstance(whole, Annotated):
        whole.max_regions = sys.maxsize
    return whole


def regions_as_answer(sample: Sample, done: Exported) -> Answer:
    """The regions of a sample as phrases of an answer: what labelling tools show; equal labels are one phrase.

    Points and scribbles mark no area and are counted in `done.left_out`, as are `no_objects` and conversations.
    """
    named: dict[str, list[Instance]] = {}
    aside = no_objects(sample)
    for number, region in enumerate(sample.regions):
        if number in aside:
            done.left_out[aside[number]] += 1
            continue
        if region.kind not in ("mask", "box"):
            done.left_out[f"{region.kind} regions"] += 1
            continue
        mask = region.mask if region.kind == "mask" else None
        named.setdefault(label_of(sample, number), []).append(Instance(mask, region.bounds, 1.0))
    done.left_out["conversations"] += len(sample.conversations)
    pieces: list[str | tuple[str, tuple[int, ...]]] = []
    for number, name in enumerate(named):
        pieces += [", "] * (number > 0) + [(name, (number,))]
    text, spans = compose(*pieces)
    phrases = tuple(
        Phrase(name, (span.start, span.end), tuple(found))
        for (name, found), span in zip(named.items(), spans, strict=True)
    )
    return Answer(text, phrases, sample.image, score_kind="annotation")


def to_labelme(samples: Iterable[Sample], out: Path, done: Exported) -> None:
    """`NAME.jpg` and `NAME.json` side by side; polygons, or labelme's bitmaps for a picture whose masks have holes."""
    pictures = Pictures(out, "")
    written: set[str] = set()
    for sample in samples:
        path = pictures.save(sample)
        if path in written:
            done.left_out["further samples of a picture"] += 1
            continue
        written.add(path)
        answer = regions_as_answer(sample, done)
        masks = [instance.mask for phrase in answer.phrases for instance in phrase.instances]
        has_holes = any(mask is not None and _has_hole(mask) for mask in masks)
        data = labelme_of(answer, image_path=path, shapes="mask" if has_holes else "polygon")
        _write(out / f"{Path(path).stem}.json", data)


def _has_hole(mask: np.ndarray) -> bool:
    from scipy.ndimage import binary_fill_holes

    return bool((np.asarray(binary_fill_holes(mask)) != mask).any())


def to_studio(samples: Iterable[Sample], out: Path, done: Exported) -> None:
    """`tasks.json`, `config.xml` and `images/`, to be served as Label Studio's local files below `out`."""
    pictures = Pictures(out)
    tasks, answers = [], []
    for sample in samples:
        answer = regions_as_answer(sample, done)
        url = f"/data/local-files/?d={pictures.save(sample)}"
        tasks.append(to_label_studio(answer, image_url=url, model_version="mglmm export"))
        names = tuple(Phrase(phrase.text, phrase.span, ()) for phrase in answer.phrases)
        answers.append(Answer(answer.text, names, answer.image[:1, :1]))
    _write(out / "tasks.json", tasks)
    (out / "config.xml").write_text(label_studio_config(answers) + "\n", encoding="utf-8")


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


SAMPLES = ("jsonl", "webdataset")
"""Formats that hold questions and answers, too."""

FORMATS: dict[str, Writer] = {**WRITERS, "labelme": to_labelme, "label-studio": to_studio}
"""Name on the command line -> what writes it into a folder."""
