"""transformers' auto classes know our checkpoints after `import mglmm`, which imports neither torch nor transformers.

`AutoConfig` (which `AutoModel` and `AutoModelForImageTextToText` ask) and `AutoProcessor` get stand-ins: at once where
transformers has loaded their tables, else when it does. A stand-in that is asked to open a folder imports `mglmm.model`
and `mglmm.processor`, which register the classes that they stand for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, cast

NAME = "mglmm"
"""`MglmmConfig.model_type`."""


class MglmmProcessor:
    """Stands for `mglmm.processor.MglmmProcessor`; found by its name, which `processor_config.json` gives."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        from mglmm.processor import MglmmProcessor

        return MglmmProcessor.from_pretrained(*args, **kwargs)


def put_config(table: ModuleType) -> None:
    """A stand-in for `MglmmConfig`, unless that is there."""
    from transformers import PreTrainedConfig

    class Config(PreTrainedConfig):
        model_type = NAME

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            from mglmm.model import Mglmm  # the model's room registers all classes
            from mglmm.model_config import MglmmConfig

            assert Mglmm.config_class is MglmmConfig
            return MglmmConfig.from_dict(config_dict, **kwargs)

    if NAME not in table.CONFIG_MAPPING:
        table.AutoConfig.register(NAME, Config)


def put_processor(table: ModuleType) -> None:
    table.AutoProcessor.register(MglmmProcessor, MglmmProcessor, exist_ok=True)  # by name, whatever the config


TABLES: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": put_config,
    "transformers.models.auto.processing_auto": put_processor,
}
"""Module of transformers -> what is to be done when it is loaded."""


def register() -> None:
    """Put the stand-ins where they belong now, or as soon as there is such a place."""
    later = {}
    for name, put in TABLES.items():
        if name in sys.modules:
            put(sys.modules[name])
        else:
            later[name] = put
    if later and not any(isinstance(finder, Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, Watch(later))


class Watch:
    """A finder that waits for imports and adds to each what is to be done afterwards; goes away with the last."""

    def __init__(self, later: dict[str, Callable[[ModuleType], None]]):
        self.later = later

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.later:
            return None
        put = self.later.pop(fullname)
        if not self.later:
            sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = cast(Any, Then(spec.loader, put))  # by shape: importing importlib.abc takes 20 ms
        return spec


class Then:
    """A loader that does what another does, and something more when the module is complete."""

    def __init__(self, loader: Any, put: Callable[[ModuleType], None]):
        self.loader, self.put = loader, put

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None, "the import system sets it"
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.put(module)
