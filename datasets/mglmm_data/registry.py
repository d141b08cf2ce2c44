"""From a line in a config to a source of samples: `make_source({"type": "coco", "json_path": ...})`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, get_type_hints, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from mglmm_data.coco import CocoSource
from mglmm_data.folder import FolderSource
from mglmm_data.sample import Sample
from mglmm_data.telling import near
from mglmm_data.world.source import World


@runtime_checkable
class Source(Protocol):
    """What training and evaluation read: a length, and the sample at an index, the same for the same (index, epoch)."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int = 0) -> Sample: ...


SOURCES: dict[str, Callable[..., Source]] = {"world": World, "coco": CocoSource, "folder": FolderSource}
"""type -> class; its parameters are the keys of the config."""


def make_source(spec: Mapping[str, Any]) -> Source:
    """Build the source that `spec` describes: `type`, and the parameters of that type's class.

    Raises:
        ValueError: the type or a key is unknown (the near miss is named), a required key is missing, or the
            source's own checks fail.
    """
    if "type" not in spec:
        raise ValueError(f"a source needs a type; known: {', '.join(sorted(SOURCES))}")
    kind = spec["type"]
    if kind not in SOURCES:
        raise ValueError(f"no source of type {kind!r}{near(kind, SOURCES)}")
    parameters = inspect.signature(SOURCES[kind]).parameters
    given = {key: value for key, value in spec.items() if key != "type"}
    for key in given:
        if key not in parameters:
            raise ValueError(f"unknown key {key!r} in a source of type {kind!r}{near(key, parameters)}")
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            raise ValueError(f"a source of type {kind!r} needs {key!r}; known: {', '.join(sorted(parameters))}")
    kinds = get_type_hints(SOURCES[kind].__init__)
    for key, value in given.items():
        try:
            TypeAdapter(kinds[key]).validate_python(value)
        except ValidationError as error:
            found = error.errors()[0]
            raise ValueError(f"{key} of a source of type {kind!r} is {value!r}: {found['msg']}") from None
    return SOURCES[kind](**given)
