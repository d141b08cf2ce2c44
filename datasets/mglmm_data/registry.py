"""From a line in a config to a source of samples: `make_source({"type": "coco", "json_path": ...})`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from mglmm_data.ade20k import Ade20kFullSource, Ade20kSource
from mglmm_data.camvid import CamVidSource
from mglmm_data.captions import CaptionSource
from mglmm_data.carparts import CarPartsSource
from mglmm_data.coco import CocoSource
from mglmm_data.coco_panoptic import CocoPanopticSource
from mglmm_data.cocostuff import CocoStuffSource
from mglmm_data.dci import DciSource
from mglmm_data.drop import Dropping
from mglmm_data.eval_inputs import Benchmark
from mglmm_data.fashionpedia import FashionpediaSource
from mglmm_data.flickr_entities import FlickrEntities
from mglmm_data.folder import FolderSource
from mglmm_data.grand import GranDSource
from mglmm_data.grandf import GranDfSource
from mglmm_data.grefcoco import gref_source
from mglmm_data.grit import GritSource
from mglmm_data.jsonl import JsonlSource
from mglmm_data.labelme import LabelmeSource
from mglmm_data.llava_instruct import LlavaInstruct
from mglmm_data.lvis import LvisSource
from mglmm_data.mapillary import MapillarySource
from mglmm_data.mgscdata import MgscSource
from mglmm_data.muse import MuseSource
from mglmm_data.osprey import OspreySource
from mglmm_data.paco import PacoSource
from mglmm_data.pascal_part import PascalPartSource
from mglmm_data.reading import Problems
from mglmm_data.reasonseg import ReasonSource
from mglmm_data.rec import RecSource
from mglmm_data.refer import ReferSource
from mglmm_data.region_captions import RegionCaptions
from mglmm_data.sa1b import Sa1bSource
from mglmm_data.sample import Sample
from mglmm_data.stream import ShardSource
from mglmm_data.telling import near
from mglmm_data.visual_genome import VisualGenome
from mglmm_data.voc import VocSource
from mglmm_data.world.source import World
from mglmm_data.yolo import YoloSource


@runtime_checkable
class Source(Protocol):
    """What training and evaluation read: a length, and the sample at an index, the same for the same (index, epoch).

    `id_of` is the sample's id, known without its picture.
    """

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int = 0) -> Sample: ...

    def id_of(self, index: int) -> str: ...


SOURCES: dict[str, Callable[..., Source]] = {
    "world": World,
    "coco": CocoSource,
    "folder": FolderSource,
    "ade20k": Ade20kSource,
    "ade20k_full": Ade20kFullSource,
    "cocostuff": CocoStuffSource,
    "mapillary": MapillarySource,
    "paco_lvis": PacoSource,
    "pascal_part": PascalPartSource,
    "camvid": CamVidSource,
    "carparts": CarPartsSource,
    "lvis": LvisSource,
    "fashionpedia": FashionpediaSource,
    "labelme": LabelmeSource,
    "voc": VocSource,
    "yolo": YoloSource,
    "coco_panoptic": CocoPanopticSource,
    "jsonl": JsonlSource,
    "shards": ShardSource,
    "captions": CaptionSource,
    "llava_instruct": LlavaInstruct,
    "flickr_entities": FlickrEntities,
    "visual_genome": VisualGenome,
    "region_captions": RegionCaptions,
    "benchmark": Benchmark,
    "grit": GritSource,
    "refer": ReferSource,
    "grefcoco": gref_source,
    "rec": RecSource,
    "reasonseg": ReasonSource,
    "muse": MuseSource,
    "grandf": GranDfSource,
    "grand": GranDSource,
    "mgscdata": MgscSource,
    "sa1b": Sa1bSource,
    "osprey": OspreySource,
    "dci": DciSource,
}
"""type -> class; its parameters are the keys of the config."""


def make_tolerant_source(spec: Mapping[str, Any], on_error: str, name: str = "") -> Source:
    """`make_source`, where a source that knows `on_error` gets this one unless the spec says another."""
    spec = resolved(spec)
    kind = SOURCES.get(str(spec.get("type")))
    if "drop" in spec or (kind is not None and "on_error" in inspect.signature(kind).parameters):
        spec = {"on_error": on_error, **spec}
    return make_source(spec, name)


def resolved(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """A data set that is named, as the spec of the files that were found."""
    if spec.get("type") != "dataset":
        return spec
    from mglmm_data.resolver import resolve

    if "name" not in spec:
        raise ValueError("a source of type 'dataset' needs a name, for example {type: dataset, name: refcoco}")
    return resolve(**{key: value for key, value in spec.items() if key != "type"})


def default_of(spec: Mapping[str, Any], key: str) -> Any:
    """What a source takes for a key that its spec does not name; None where it knows no such key."""
    kind = SOURCES.get(str(spec.get("type")))
    parameter = None if kind is None else inspect.signature(kind).parameters.get(key)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def make_source(spec: Mapping[str, Any], name: str = "") -> Source:
    """Build the source that `spec` describes: `type`, and the parameters of that type's class.

    With `drop`, a list of `mglmm check-data --fix-list`, what that names is left out (`drop.Dropping`); `name` is what
    the source is called, for lists of several.

    Raises:
        ValueError: the type or a key is unknown (the near miss is named), a required key is missing, a value is of
            another type than the parameter's hint, or the source's own checks fail.
    """
    if "type" not in spec:
        raise ValueError(f"a source needs a type; known: {', '.join(sorted(SOURCES))}")
    spec = resolved(spec)
    kind = spec["type"]
    if kind not in SOURCES:
        raise ValueError(f"no source of type {kind!r}{near(kind, SOURCES)}")
    if "drop" in spec:
        path, policy = spec["drop"], Problems(spec.get("on_error", "fail")).on_error
        if not isinstance(path, (str, Path)):
            raise ValueError(f"drop of a source of type {kind!r} is {path!r}; give the path of a list")
        knows = "on_error" in inspect.signature(SOURCES[kind]).parameters
        rest = {key: value for key, value in spec.items() if key not in ("drop", "on_error")}
        return Dropping(make_source(rest | ({"on_error": "count"} if knows else {})), path, name, policy)
    parameters = inspect.signature(SOURCES[kind], eval_str=True).parameters
    given = {key: value for key, value in spec.items() if key != "type"}
    for key in given:
        if key not in parameters:
            raise ValueError(f"unknown key {key!r} in a source of type {kind!r}{near(key, [*parameters, 'drop'])}")
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            raise ValueError(f"a source of type {kind!r} needs {key!r}; known: {', '.join(sorted(parameters))}")
    for key, value in given.items():
        hint = parameters[key].annotation
        if hint is inspect.Parameter.empty:
            continue
        try:
            TypeAdapter(hint).validate_python(value)
        except ValidationError as error:
            found = error.errors()[0]
            raise ValueError(f"{key} of a source of type {kind!r} is {value!r}: {found['msg']}") from None
    return SOURCES[kind](**given)
