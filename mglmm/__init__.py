"""Language models that ground what they say in pixels: `Grounder.load().ask(image, prompt)` answers with masks.

After `import mglmm`, transformers' `AutoModel`, `AutoModelForImageTextToText` and `AutoProcessor` open our folders.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mglmm import auto

if TYPE_CHECKING:
    from mglmm.answer import Answer, Instance, Phrase
    from mglmm.chat import Chat
    from mglmm.grounder import Grounder
    from mglmm.model import Mglmm
    from mglmm.model_config import MglmmConfig
    from mglmm.processor import MglmmProcessor

__version__ = "0.1.0"
__all__ = ["Answer", "Chat", "Grounder", "Instance", "Mglmm", "MglmmConfig", "MglmmProcessor", "Phrase"]

ROOMS = {
    "Answer": "answer", "Instance": "answer", "Phrase": "answer", "Grounder": "grounder", "Chat": "chat",
    "Mglmm": "model", "MglmmConfig": "model", "MglmmProcessor": "processor",
}  # fmt: skip

auto.register()


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for: `import mglmm` alone stays fast."""
    if name in ROOMS:
        return getattr(importlib.import_module(f"mglmm.{ROOMS[name]}"), name)
    raise AttributeError(f"module 'mglmm' has no attribute {name!r}")
