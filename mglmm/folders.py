"""Folders of checkpoints: found by what a user calls them, and replaced in one step.

A folder is filled under another name and renamed, so that a full disk leaves the old one as it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mglmm.config import BUNDLED


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` when the block ends well.

    Raises:
        OSError: writing failed (a full disk, say); `target` is as before, and the message says so.
    """
    target = Path(os.path.abspath(target))
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(target)
        shutil.rmtree(old, ignore_errors=True)  # of a save that was cut after its second rename
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        yield fresh
        if target.exists():
            os.replace(target, old)
        os.replace(fresh, target)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # torch and safetensors report a full disk as RuntimeError or their own
        recover_folder(target)
        if isinstance(error, OSError) or "write" in str(error).lower() or "space" in str(error).lower():
            kept = "; the checkpoint that was there is intact" if target.exists() else ""
            raise OSError(
                f"could not save {target}: {error}{kept}; free some space or choose another folder"
            ) from error
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Bring back the old folder of a save that was cut between its two renames."""
    target = Path(os.path.abspath(target))  # "." has no name to put another beside
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        os.replace(old, target)


def checkpoint_folder(path: str | Path) -> Path | None:
    """The folder meant by `path`, `bundled` being the one in the package; None for what may be a name on the hub.

    Raises:
        ValueError: it is neither.
    """
    folder = BUNDLED if str(path) == "bundled" else Path(path)
    recover_folder(folder)
    if folder.exists():
        return folder
    if str(path).startswith((".", "/")) or str(path).count("/") != 1:
        raise ValueError(f"no checkpoint at {path}; give a folder, a hub name (owner/name) or bundled")
    return None
