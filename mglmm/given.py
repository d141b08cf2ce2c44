"""What a user gives on the command line, read: a picture, regions of it, a model, a config, files to write.

What can be checked without the model is checked before anything heavy is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mglmm.answer import PAGES, PICTURES
from mglmm.config import TrainConfig, load_config, parse, read_yaml
from mglmm.folders import checkpoint_folder
from mglmm_data.images import LoadedImage, load_image
from mglmm_data.masks import Size
from mglmm_data.sample import Region

if TYPE_CHECKING:
    from mglmm.eval.report import Detail
    from mglmm.grounder import Grounder

WORLD = "world:"
WORLD_SIZE = 384
"""Side of a scene when none is asked for, px: the bundled model reads 192, a person likes to see more."""
WORLD_SIZES = (64, 4096)
REGION_FORMS = "box:x1,y1,x2,y2  point:x,y  scribble:x,y;x,y;...  mask:FILE.png (pixels of the image)"
ANSWER_FILES = (*PICTURES, *PAGES, ".json")


def picture(text: str) -> LoadedImage:
    """The image at a path, or `world:SEED[@SIZE]`: a scene of the world that training never sees.

    Raises:
        ValueError: the image cannot be read, or the seed or the size is not one.
    """
    return world_picture(text) if text.startswith(WORLD) else load_image(text)


def world_picture(text: str) -> LoadedImage:
    """`world:7` and `world:7@192`; seeds count from the first of evaluation."""
    from mglmm_data.world.scene import make_scene
    from mglmm_data.world.source import EVAL_SEED_START

    seed, _, size = text.removeprefix(WORLD).partition("@")
    side = size or str(WORLD_SIZE)
    if (
        not seed.isdecimal()
        or not side.isdecimal()
        or int(seed) >= 2 * EVAL_SEED_START
        or not WORLD_SIZES[0] <= int(side) <= WORLD_SIZES[1]
    ):
        raise ValueError(
            f"{text!r} is no scene; write world:SEED or world:SEED@SIZE, for example world:7@384 "
            f"(seed from 0 to {2 * EVAL_SEED_START - 1}, size {WORLD_SIZES[0]} to {WORLD_SIZES[1]} px)"
        )
    return LoadedImage(make_scene(EVAL_SEED_START + int(seed) % EVAL_SEED_START, int(side), held_out="allow").image)


def region(text: str, size: Size) -> Region:
    """A region from its form on the command line, see `REGION_FORMS`.

    Args:
        size: (H, W) of the image, px.

    Raises:
        ValueError: it is of none of the forms, lies outside the image, or its mask cannot be used.
    """
    kind, _, rest = text.partition(":")
    if kind == "mask" and rest:
        from mglmm_data.folder import read_mask

        return Region.of_mask(read_mask(Path(rest), size))
    points = [numbers(piece) for piece in rest.split(";")]
    widths = {len(point) for point in points}
    try:
        if kind == "box" and len(points) == 1 and widths == {4}:
            return Region(size, box=(points[0][0], points[0][1], points[0][2], points[0][3]))
        if kind == "point" and len(points) == 1 and widths == {2}:
            return Region(size, point=(points[0][0], points[0][1]))
        if kind == "scribble" and widths == {2}:
            return Region(size, scribble=tuple((point[0], point[1]) for point in points))
    except ValueError as error:
        raise ValueError(f"--region {text}: {error}") from None
    raise ValueError(f"--region {text!r} is no region; write one of {REGION_FORMS}")


def numbers(text: str) -> tuple[float, ...]:
    """Comma-separated numbers; empty where one is not a number."""
    try:
        return tuple(float(value) for value in text.split(","))
    except ValueError:
        return ()


def checkpoint(text: str) -> str:
    """A folder of a checkpoint, a hub name or `bundled` as given; for the folder of a run, its last checkpoint."""
    last = Path(text) / "last" / "model"
    return str(last) if (last / "config.json").is_file() else text


def grounder(path: str, generation: Mapping[str, Any] | None = None, quant: str = "none") -> Grounder:
    """A `Grounder` from whatever a user calls a model.

    Args:
        generation: fields of `GenerationOptions`.
        quant: see `mglmm.quant`.

    Raises:
        ValueError: the checkpoint cannot be read, or an option is unknown or out of range.
    """
    where = checkpoint(path)
    checkpoint_folder(where)  # what is not there is said before anything heavy is imported
    quiet()
    from mglmm.generate import GenerationOptions
    from mglmm.grounder import Grounder
    from mglmm.quant import check_quant

    options = parse(GenerationOptions, dict(generation or {}), "how to answer")
    return Grounder.load(where, quant=check_quant(quant), **options.model_dump())


def quiet() -> None:
    """Keep other libraries' bars and warnings off the terminal; what matters is said in our own words."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import logging

    for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):  # they warn of every kernel a machine cannot load
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as own

    own.disable_progress_bar()
    own.set_verbosity_error()


def config_of(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Any config, filled in, as plain values; its keys tell whether it is of training, an evaluation or a model.

    Raises:
        ValueError: see `mglmm.config`.
    """
    data = read_yaml(path)
    if "kind" in data:
        from mglmm.evaluate import read_eval

        return read_eval(path, overrides).model_dump(mode="json")
    if data.keys() & TrainConfig.model_fields.keys():
        return load_config(TrainConfig, path, overrides).model_dump(mode="json")
    from mglmm.build import ModelConfig

    return load_config(ModelConfig, path, overrides).model_dump(mode="json")


def detail(text: str) -> Detail:
    """How much of a report is printed.

    Raises:
        ValueError: it is none of the words for it.
    """
    from mglmm.eval.report import Detail

    for known in get_args(Detail):
        if text == known:
            return known
    raise ValueError(f"--detail is {text!r}; choose one of {', '.join(get_args(Detail))}")


def check_files(paths: Sequence[Path], suffixes: Sequence[str]) -> None:
    """Files that will be written, checked before the work begins.

    Raises:
        ValueError: a suffix is none of `suffixes`, or a file's place is taken by a folder.
    """
    for path in paths:
        if path.suffix.lower() not in suffixes:
            raise ValueError(f"cannot write {path}: its suffix is {path.suffix!r}; use one of {', '.join(suffixes)}")
        if path.is_dir():
            raise ValueError(f"cannot write {path}: it is a folder; give the name of a file in it")
