"""Published checkpoints in: `convert(path, out)`, and from then on a checkpoint of ours with the same numbers."""

from mglmm.importers.merging import merge
from mglmm.importers.registry import FAMILIES, convert, detect, family_of

__all__ = ["FAMILIES", "convert", "detect", "family_of", "merge"]
