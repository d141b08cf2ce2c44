"""gRefCOCO: expressions of several objects, of one, and of none.

    ROOT/grefcoco/grefs(unc).json (or .p), instances.json

The form is that of `refer`, with a list as `ann_id`; [-1] means that nothing in the image is meant, and `no_target`
says so too. Source: henghuiding/gRefCOCO, `grefer.py`.
"""

from __future__ import annotations

from pathlib import Path

from mglmm_data.annotation import locate
from mglmm_data.refer import ReferSource

NAME = "grefs(unc)"


def gref_source(
    root: str | Path = ".",
    *,
    split: str = "train",
    refs: str | Path | None = None,
    instances: str | Path | None = None,
    image_root: str | Path | None = None,
    turns: int | None = 3,
    seed: int = 0,
    mirror: str = "swap",
    on_error: str = "fail",
) -> ReferSource:
    """A split (train, val, testA, testB) of gRefCOCO; options as in `ReferSource`.

    Every object is a region of its own, so a phrase of several has several; where none is meant, the answer says so.
    Questions do not tell which it is: all come from one list.
    """
    if refs is None or instances is None:
        ways = [f"{folder}grefcoco" for folder in ("", "refer_seg/", "Refer_Segm/")] + ["."]
        folder = locate(root, ways, "folder of gRefCOCO", lambda path: (path / "instances.json").is_file())
        refs = refs or locate(folder, (f"{NAME}.json", f"{NAME}.p"), f"{NAME}.json or .p")
        instances = instances or folder / "instances.json"
    return ReferSource(
        root,
        dataset="grefcoco",
        split=split,
        refs=refs,
        instances=instances,
        image_root=image_root,
        turns=turns,
        wordings="any",
        seed=seed,
        mirror=mirror,
        on_error=on_error,
    )
