"""A run goes on with the recipe it began with, as far as it has come; where two recipes differ is said by its key."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mglmm.config import TrainConfig

FREE_KEYS = {"output_dir", "logging_steps", "save_steps", "report_to", "num_threads", "dataloader_num_workers"}
"""What does not change the losses."""


def check_recipe(saved: dict[str, Any], given: TrainConfig, folder: Path, stage: int, step: int) -> str:
    """A run goes on with the recipe it began with; what does not change the losses so far may differ.

    That is whatever is said of stages that have not begun, more or fewer of them, and `max_steps` of the one under way,
    whose learning rates then follow the new length.

    Args:
        stage: index of the stage under way.
        step: steps of it that are done.

    Returns:
        What to tell about a new length; empty where there is none.

    Raises:
        ValueError: the first difference, by its key; or the new length is already passed.
    """
    with contextlib.suppress(ValidationError):  # a run of an older program gets the defaults of newer keys
        saved = json.loads(TrainConfig.model_validate(saved).model_dump_json())
    now = json.loads(given.model_dump_json())
    begun, told = stage + (step > 0), ""
    for recipe in (saved, now):
        recipe["stages"] = recipe["stages"][:begun]
    if step and len(now["stages"]) == begun:
        before, after = (recipe["stages"][stage].pop("max_steps") for recipe in (saved, now))
        name = now["stages"][stage]["name"]
        if after <= step:
            raise ValueError(
                f"{folder}: stage {name!r} has {step} steps behind it, max_steps is {after}; give more, or delete it"
            )
        told = f"stage {name} goes on at step {step} of {after}, no longer {before}" if before != after else ""
    found = difference(saved, now)
    if found is None:
        return told
    key, before, now = found
    raise ValueError(
        f"{folder} holds a run whose {key!r} is {json.dumps(before)}, this recipe has {json.dumps(now)}; "
        "give another output_dir, or delete that folder"
    )


def check_processes(saved: int | None, given: int, folder: Path) -> None:
    """A run goes on with as many processes as it began with: each draws its own share of the samples.

    Raises:
        ValueError: another number; None, of a run of an older program, fits all.
    """
    if saved is not None and saved != given:
        raise ValueError(
            f"{folder} holds a run of {saved} process{'es' * (saved != 1)}, this is one of {given}; "
            f"start it with torchrun --nproc_per_node {saved}, or give another output_dir"
        )


def difference(saved: Any, given: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two recipes differ, and what stands there; FREE_KEYS are passed over."""
    if isinstance(saved, dict) and isinstance(given, dict):
        keys = sorted(key for key in set(saved) | set(given) if path or key not in FREE_KEYS)
        pairs = [(key, saved.get(key), given.get(key)) for key in keys]
    elif isinstance(saved, list) and isinstance(given, list) and len(saved) == len(given):
        pairs = [(str(index), before, now) for index, (before, now) in enumerate(zip(saved, given, strict=True))]
    else:
        return None if saved == given else (path, saved, given)
    found = (difference(before, now, f"{path}.{key}" if path else key) for key, before, now in pairs)
    return next((each for each in found if each is not None), None)
