"""The CLIP that a published checkpoint names but does not hold: where it lies, and whether it is the one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mglmm.importers.families import TOWER
from mglmm.importers.keys import Store, described, open_store, read_json

TOWER_KEYS = ("vision_tower", "mm_vision_tower", "vision_module", "mm_vision_module")
PROJECTORS = ("model.mm_projector.weight", "model.mm_projector.0.weight")


@dataclass(frozen=True)
class Tower:
    """The CLIP that a published checkpoint names but does not hold."""

    where: str
    config: CLIPVisionConfig
    image_processor: CLIPImageProcessorPil
    store: Store


def find_tower(given: str | None, config: Mapping[str, Any], folder: Path) -> Tower:
    """The vision tower: as given, else where the checkpoint's config says, read from that folder.

    Raises:
        ValueError: none was given and the one named is not on this machine, or the folder is no CLIP.
    """
    named = named_tower(config)
    for name in (given,) if given else (named,):
        where = tower_folder(name, folder)
        if where is not None:
            return read_tower(where)
    if given:
        raise ValueError(
            f"--vision-tower {given} is no folder and not in the Hugging Face cache; download it "
            f"(hf download {given if given.count('/') == 1 else 'openai/clip-vit-large-patch14'}) and give its folder"
        )
    if named is None:
        raise ValueError(f"{folder / 'config.json'} names no vision tower; give the folder of its CLIP: --vision-tower")
    raise ValueError(
        f"{folder} was trained with the vision tower {named}, which is not on this machine; download it and give its "
        "folder: --vision-tower FOLDER"
    )


def named_tower(config: Mapping[str, Any]) -> str | None:
    """The CLIP that a published config.json names."""
    return next((str(config[key]) for key in TOWER_KEYS if config.get(key)), None)


def tower_folder(name: str | None, folder: Path) -> Path | None:
    """A tower's folder: a path as it is, or relative to the checkpoint; a hub name if it is in the local cache."""
    if not name:
        return None
    for path in (Path(name).expanduser(), folder / name):
        if path.is_dir():
            return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(name, "config.json", local_files_only=True)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found).parent


def read_tower(where: Path) -> Tower:
    """Sizes, preprocessing and weights of a CLIP (the whole or its vision half) in transformers' layout."""
    content = read_json(where / "config.json")
    sizes = content.get("vision_config") if content.get("model_type") == "clip" else content
    if not isinstance(sizes, dict) or not str(content.get("model_type", "")).startswith("clip"):
        raise ValueError(
            f"the vision tower {where} is a {content.get('model_type')!r}, not a CLIP; "
            "give the CLIP that the checkpoint was trained with: --vision-tower FOLDER"
        )
    if not (where / "preprocessor_config.json").exists():
        raise ValueError(f"the vision tower {where} has no preprocessor_config.json; copy the whole folder")
    sizes = {key: value for key, value in sizes.items() if key not in ("model_type", "architectures", "torch_dtype")}
    with described(where / "config.json", "CLIP"):
        config = CLIPVisionConfig(**sizes)
    return Tower(str(where), config, CLIPImageProcessorPil.from_pretrained(where), open_store(where))


def check_tower(where: Path, shapes: Mapping[str, tuple[int, ...]], tower: Tower) -> None:
    """Raise ValueError where the projector was trained on a CLIP of another width."""
    reads = next((shapes[key][1] for key in PROJECTORS if len(shapes.get(key, ())) == 2), None)
    if reads not in (None, tower.config.hidden_size):
        raise ValueError(
            f"the vision tower {tower.where} is {tower.config.hidden_size} wide, the projector of {where} reads "
            f"{reads}; give the CLIP that it was trained with: --vision-tower FOLDER"
        )


def tower_note(tower: Tower, config: Mapping[str, Any], given: str | None) -> tuple[str, ...]:
    """What to say where another tower was given than the one that config.json names."""
    named = named_tower(config)
    if given is None or named is None or Path(named).name == Path(given).name:
        return ()
    return (f"the vision tower is {given}, {tower.config.image_size} px; config.json names {named}",)


def with_tower(store: Store, tower: Tower) -> Store:
    """The checkpoint's tensors and the tower's, each under its own key."""
    return Store(store.path, {**store.entries, **{TOWER + key: e for key, e in tower.store.entries.items()}})
