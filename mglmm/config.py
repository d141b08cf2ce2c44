"""Typed configuration: frozen pydantic models, read from YAML, overridden by `key.sub=value`.

Key names follow `transformers.TrainingArguments` where the meaning is the same. An unknown key is an error that names
the nearest known one; this is the only validator of YAML.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

PACKAGE = Path(__file__).resolve().parent
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"
"""Folder of the configs that ship: inside the package where it was installed from a wheel, else at the top level."""
BUNDLED = PACKAGE / "bundled"
"""Folder of the model that ships in the package."""


class Strict(BaseModel):
    """Base of every config: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    room: ClassVar[str] = ""
    """Folder under `configs/` where configs of this kind ship; a bare name is looked for there."""


class LoraConfig(Strict):
    """Low-rank adapters on the language model (through peft); `lora: null` trains without them.

    They train as the group `lora`, the rows of the markers as `token_rows`; the rest of the language model is frozen.
    Checkpoints hold them merged.
    """

    rank: int = 8
    alpha: int = 16  # the update is scaled by alpha / rank
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "v_proj")  # names inside one decoder layer

    @field_validator("rank")
    @classmethod
    def at_least_one(cls, rank: int) -> int:
        if rank < 1:
            raise ValueError(f"rank is {rank}; to train without adapters set lora: null")
        return rank


class LossConfig(Strict):
    """Weights of the sum; the defaults are the published ones (LISA, MGLMM)."""

    ce: float = Field(default=1.0, ge=0)
    bce: float = Field(default=2.0, ge=0)
    dice: float = Field(default=0.5, ge=0)
    where: float = Field(default=0.0, ge=0)  # L1 + GIoU on the boxes that the small backbone looks in
    quality: float = Field(default=0.0, ge=0)  # squared error of the predicted IoU: a score that means something
    distill: float = Field(default=0.0, ge=0)  # draws [SEG] prompts to the semantic prompt of their region (world only)
    kin: float = Field(default=0.0, ge=0)  # what things are among their kind, read off the image tokens (world only)
    named: float = Field(default=0.0, ge=0)  # where the things are that questions name: world with `named: true`
    mask_size: Literal["decoder", "original"] = "decoder"  # where mask losses are computed
    # what a token weighs in ce: every one alike; "square": 1 / sqrt(length of its answer), so that "yes" is not drowned
    # by a panoptic answer (InternVL 2.5, arXiv:2412.05271, "square averaging"); "answer": every answer alike
    token_weight: Literal["token", "square", "answer"] = "token"

    @model_validator(mode="after")
    def quality_is_of_the_decoder(self) -> LossConfig:
        if self.quality and self.mask_size == "original":
            raise ValueError("quality is measured at the decoder's size; set quality: 0 or mask_size: decoder")
        return self


class StageConfig(Strict):
    """One stage of a recipe: what it sees, what trains, for how long."""

    name: str
    kind: Literal["pixels", "kin", "grounding"] = "grounding"
    max_steps: int = Field(gt=0)
    per_device_train_batch_size: int = Field(default=4, gt=0)
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    optim: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    lr_end: float = Field(default=0.02, ge=0, le=1)  # the cosine ends at this share of learning_rate
    weight_decay: float = Field(default=0.05, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.98, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    # group of parameters -> factor on learning_rate; groups not named stay frozen
    train: dict[str, Annotated[float, Field(gt=0)]] = {}
    losses: LossConfig = LossConfig()
    sources: dict[str, dict[str, Any]] = {}  # name -> spec of a source, see mglmm_data.registry
    weights: dict[str, float] = {}  # name -> weight in the mixture; 1 where not named
    multiplicities: dict[str, float] = {}  # instead: name -> how often it is seen whole in an epoch; 1 where not named
    temperature: float = Field(default=1.0, gt=0)  # shares of the draws are raised to 1 / temperature
    batch_window: int = Field(default=1, gt=0)  # batches of like length are cut from so many batches' samples
    on_error: Literal["fail", "count"] = "fail"  # a sample that cannot be read: stop, or leave it out and list it
    augment: dict[str, Any] | None = None
    features: str | None = None  # a folder that `mglmm cache` filled: what frozen encoders see is read, not computed
    share_prefix: bool = True  # conversations of an image share its tokens under a block mask
    prompts_per_image: int = Field(default=4, gt=0)  # masks prompted for in each image of a pixels stage
    pixels_batch_size: int = Field(default=0, ge=0)  # images of pixel pre-training beside each grounding batch
    pixels_weight: float = 1.0  # of their losses
    masks_per_image: int | None = Field(default=None, ge=0)  # decoded in a step, drawn at random; all where null
    max_length: int = Field(default=2048, gt=0)  # tokens of a row; conversations that do not fit are left out, counted

    @model_validator(mode="after")
    def has_data(self) -> StageConfig:
        if self.kind == "grounding" and not self.sources:
            raise ValueError(
                f"stage {self.name!r} has no sources; name at least one, for example world: {{type: world}}"
            )
        for name, given in (("weights", self.weights), ("multiplicities", self.multiplicities)):
            unknown = set(given) - set(self.sources)
            if unknown:
                raise ValueError(
                    f"{name} name {sorted(unknown)}, which are not among the sources {sorted(self.sources)}"
                )
        if self.kind != "pixels" and (self.kind == "kin" or self.losses.kin > 0) != ("kin" in self.train):
            raise ValueError("losses.kin and the group kin under train (its head) go together; give both or neither")
        if (self.losses.named > 0) != ("named" in self.train):
            raise ValueError(
                "losses.named and the group named under train (its head) go together; give both or neither"
            )
        worlds = [source for source in self.sources.values() if source.get("type") == "world"]
        if self.losses.named > 0 and len(worlds) == len(self.sources) and not any(each.get("named") for each in worlds):
            raise ValueError("losses.named is given, but no source names anything; give the world `named: true`")
        if self.features is not None:
            moving = [name for name in ("encoder", "vision_tower") if name in self.train]
            wrong = f"{moving[0]} trains" if moving else "pictures are augmented" if self.augment is not None else ""
            if self.kind != "grounding":
                wrong = f"it is of kind {self.kind}"
            if wrong:
                raise ValueError(
                    f"stage {self.name!r} reads kept features, but {wrong}; leave one of the two out of the recipe"
                )
        if self.multiplicities and (self.weights or self.temperature != 1):
            raise ValueError("multiplicities stand instead of weights and temperature; give one or the other")
        return self


class TrainConfig(Strict):
    """A recipe: a model to start from, stages in order, and how to run and log them."""

    room: ClassVar[str] = "train"
    output_dir: str | None = None  # default: $MGLMM_RUNS/<name of the config>
    model: str = "bundled"  # a checkpoint folder, `bundled`, or a model config (YAML) to build from nothing
    seed: int = 0
    bf16: bool = False
    num_threads: int | None = Field(default=None, gt=0)
    dataloader_num_workers: int = Field(default=1, ge=0)
    logging_steps: int = Field(default=20, gt=0)
    save_steps: int = Field(default=500, gt=0)
    report_to: Literal["none", "wandb"] = "none"
    lora: LoraConfig | None = None
    stages: tuple[StageConfig, ...]

    @model_validator(mode="after")
    def names_differ(self) -> TrainConfig:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"stages need different names, at least one; got {names}")
        return self

    @model_validator(mode="after")
    def features_are_of_the_encoders(self) -> TrainConfig:
        """What was kept is of the encoders that the recipe begins with."""
        moved: tuple[str, str] | None = None
        for stage in self.stages:
            if stage.features is not None and moved:
                raise ValueError(
                    f"stage {stage.name!r} reads kept features, but {moved[1]} trains in stage {moved[0]!r} before it; "
                    "make a recipe of its own for what comes after, and fill the folder anew with mglmm cache"
                )
            trained = [name for name in ("encoder", "vision_tower") if name in stage.train]
            moved = moved or ((stage.name, trained[0]) if trained else None)
        return self


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def runs_dir() -> Path:
    """Where runs live: `$MGLMM_RUNS`, else a cache folder outside the checkout."""
    return Path(os.environ.get("MGLMM_RUNS") or Path.home() / ".cache" / "mglmm" / "runs")


class Loader(yaml.SafeLoader):
    """YAML in which a key may stand only once; else the last of them would count, without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"the key {key.value!r} is there twice, again in line {line}; keep one of them")
            seen.add((key.tag, str(key.value)))
        return node


def load_yaml(text: str) -> Any:
    """A YAML text as plain values.

    Raises:
        yaml.YAMLError: it is not YAML, or a key is there twice.
    """
    return yaml.load(text, Loader)


def read_yaml(path: str | Path, room: str = "") -> dict[str, Any]:
    """A YAML mapping; `path` may also name a config that ships, see `find_config`.

    `${NAME}` in a text value is the environment variable, `${NAME:-default}` falls back where it is unset or empty.

    Raises:
        ValueError: the file is missing, is not YAML, is not a mapping, or names a variable that is not set.
    """
    found = find_config(path, room)
    try:
        data = load_yaml(found.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{found} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{found} holds a {type(data).__name__}; a config is a mapping of keys to values")
    return expand(data, found)


def expand(value: Any, origin: Path) -> Any:
    """Put environment variables into every text of a YAML value; see `read_yaml`."""
    if isinstance(value, dict):
        return {key: expand(item, origin) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, origin) for item in value]
    if not isinstance(value, str):
        return value

    def variable(found: re.Match[str]) -> str:
        name, default = found.groups()
        text = os.environ.get(name) or default
        if text is None:
            raise ValueError(
                f"{origin} needs ${{{name}}}, which is not set; export {name}, or write ${{{name}:-default}}"
            )
        return text

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", variable, value)


def find_config(path: str | Path, room: str = "") -> Path:
    """The file meant by `path`: as given, with `.yaml`, or one that ships, checkout or not.

    `configs/train/world.yaml`, `train/world.yaml` and `train/world` are one; so is `world`, with or without its suffix,
    where `room` is `train` or no other config is called so.

    Args:
        room: the folder under `configs/` that a bare name is looked for in.

    Raises:
        ValueError: there is no such file, and the near miss is named; or a bare name is that of several.
    """
    given = Path(path)
    inside = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
    for base in (given, CONFIGS / inside, *([CONFIGS / room / given] if room else [])):
        for candidate in (base, base.with_name(f"{base.name}.yaml")) if base.name else ():
            if candidate.is_file():
                return candidate
    known = sorted(file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob("*.yaml"))
    same = [name for name in known if str(path) in (Path(name).name, Path(name).stem)]
    if len(same) == 1:
        return CONFIGS / same[0]
    if same:
        raise ValueError(f"{path} is the name of several configs; give one of {', '.join(same)}")
    raise ValueError(f"no config at {path}{near_config(given, known)}")


def near_config(path: Path, known: Sequence[str]) -> str:
    """What a mistyped path may have meant: a YAML file beside it, or a config that ships under any of its names."""
    meant = {str(file): str(file) for file in (*path.parent.glob("*.yaml"), *path.parent.glob("*.yml"))}
    for name in known:
        forms = (Path(name).name, Path(name).stem, name, name.removesuffix(".yaml"), f"configs/{name}")
        meant |= {form: f"configs/{name}" for form in forms if form not in meant}
    near = difflib.get_close_matches(str(path), meant, n=1, cutoff=0.6)
    listed = ", ".join(f"configs/{name}" for name in known)
    return f"; did you mean {meant[near[0]]}?" if near else f"; known: {listed or 'none'}"


def override(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `key.sub=value` (values are YAML; a number is an index of a list) to a copy of `data`.

    Raises:
        ValueError: an override has no `=`, or walks through something that is neither mapping nor list.
    """
    out = yaml.safe_load(yaml.safe_dump(data))
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"override {text!r} is not of the form key=value, for example stages.0.max_steps=100")
        *walk, last = key.strip().split(".")
        node: Any = out
        for part in walk:
            found = place(node, part, text)
            if isinstance(node, dict) and node.get(found) is None:
                node[found] = {}
            node = node[found]
        try:
            node[place(node, last, text)] = load_yaml(value)
        except yaml.YAMLError as error:
            raise ValueError(f"override {text!r}: {' '.join(str(error).split())}") from None
    return out


def place(node: Any, part: str, text: str) -> str | int:
    """The key or index of `node` that one part of an override's path means; lists also take the `name` of a stage."""
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise ValueError(f"override {text!r}: {part!r} asks for a key of {node!r}, which has none")
    names = [item.get("name") if isinstance(item, dict) else None for item in node]
    if part in names:
        return names.index(part)
    if not part.isdecimal() or int(part) >= len(node):
        raise ValueError(f"override {text!r}: {part!r} is neither an index below {len(node)} nor one of {names}")
    return int(part)


def parse(model: type[ConfigT], data: dict[str, Any], origin: str) -> ConfigT:
    """Validate `data` as `model`.

    Raises:
        ValueError: one sentence a mistake: where, what was found, and the near miss of an unknown key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{origin}: " + "; ".join(explain(model, item) for item in error.errors())) from None


def explain(model: type[BaseModel], error: Any) -> str:
    """One pydantic error as a sentence."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = known_keys(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if error["type"] == "missing":
        return f"key {where!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    found = "" if error["type"] == "value_error" else f" (found {error['input']!r})"
    return f"{where}: {message}{found}" if where else message


def known_keys(model: type[BaseModel], walk: Sequence[str | int]) -> list[str]:
    """Field names at a place inside `model`."""
    current: Any = model
    for part in walk:
        if isinstance(part, int) or part not in keys_of(current):
            continue
        annotation = keys_of(current)[part].annotation
        inner = [arg for arg in (annotation, *getattr(annotation, "__args__", ())) if keys_of(arg)]
        current = inner[0] if inner else current
    return sorted(keys_of(current))


def keys_of(model: Any) -> dict[str, Any]:
    """The fields of a pydantic model or dataclass; of anything else none."""
    return getattr(model, "__pydantic_fields__", {}) if isinstance(model, type) else {}


def load_config(model: type[ConfigT], path: str | Path, overrides: Sequence[str] = ()) -> ConfigT:
    """YAML file plus overrides, validated; see `read_yaml`, `override`, `parse`."""
    return parse(model, override(read_yaml(path, getattr(model, "room", "")), overrides), str(path))
