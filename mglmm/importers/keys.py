"""Foreign checkpoints on disk: which keys there are, of which shapes, and their tensors a few at a time.

Nothing of a file is run: `.bin` and `.pth` are read with `weights_only`, others are safetensors. Files are mapped, not
read: a tensor costs memory while it is used, so that a conversion streams from shard to shard.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.(bin|safetensors))")
STEMS = ("model", "pytorch_model")
"""What shards without an index are called, first choice first; then any other name."""
BESIDE = (
    ("non_lora_trainables.bin", "non_lora_trainables.safetensors"),
    ("pytorch_model-visual_model.bin",),
    ("pytorch_model-text_hidden_fcs.bin",),
)
"""Files that belong to the weights though no index names them, one of each group: LLaVA's LoRA, LISA v0's parts."""
CODE = re.compile(r"(?:GLOBAL|global|function|class|type) (?:<[\w-]+ ?[\w-]* )?([\w.]+)")
"""What torch names when it refuses a pickle that would run something."""
PICKLE = b"\x80"  # how a bare pickle begins
POINTER = b"version https://git-lfs"
MAX_LISTED = 6


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and what it is."""

    file: Path
    key: str  # inside the file
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Store:
    """All tensors of a checkpoint by key; `path` is what the user named."""

    path: Path
    entries: dict[str, Entry]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: entry.shape for key, entry in self.entries.items()}

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of some keys, mapped where the file allows it."""
        wanted: dict[Path, list[str]] = {}
        for key in keys:
            wanted.setdefault(self.entries[key].file, []).append(key)
        found: dict[str, Tensor] = {}
        for file, names in wanted.items():
            tensors = load_file(file, {self.entries[name].key for name in names})
            found |= {name: tensors[self.entries[name].key] for name in names}
        return found

    def renamed(self, names: Mapping[str, str]) -> Store:
        """The same tensors under other keys."""
        return Store(self.path, {names.get(key, key): entry for key, entry in self.entries.items()})


def open_store(path: str | Path) -> Store:
    """The tensors of a folder (one file, or shards with or without an index) or of one file.

    Raises:
        ValueError: there are no weights, shards are missing, a file is cut short, is no checkpoint, or holds code.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no checkpoint at {path}; give a folder with weights and config.json, or a weights file")
    files, promised = weight_files(path) if path.is_dir() else ([path], {})
    entries: dict[str, Entry] = {}
    for file in files:
        for entry in file_entries(file):
            if entry.key in entries:
                raise ValueError(
                    f"{path}: key {entry.key} is in both {entries[entry.key].file.name} and {file.name}; "
                    "remove the file that is not part of this checkpoint"
                )
            entries[entry.key] = entry
    lost = sorted(key for key in promised if key not in entries)
    if lost:
        raise ValueError(
            f"{path}: its index promises {len(promised)} tensors, {len(lost)} are in none of its files "
            f"({listed(lost)}); download it again"
        )
    if not entries:
        raise ValueError(f"{path} holds no tensors; download it again")
    return Store(path, entries)


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files of a folder, and the keys its index promises (empty without one).

    Folders hold leftovers (an index without its shards, an optimizer's parts): the first layout that is whole is taken.

    Raises:
        ValueError: no layout is whole; says what the first one lacks.
    """
    found = layouts(folder)
    if not found:
        raise ValueError(
            f"{folder} holds no weights (looked for {', '.join((*WHOLE, *ADAPTERS, *INDEXES))} and their shards); "
            "give the folder that holds them"
        )
    names, promised = next((each for each in found if not absent(folder, each[0])), found[0])
    check_shards(folder, names)
    beside = [next((name for name in group if (folder / name).exists()), None) for group in BESIDE]
    names = [*names, *(name for name in beside if name is not None and name not in names)]
    return [folder / name for name in names], promised


def layouts(folder: Path, adapters: bool = True) -> list[tuple[list[str], dict[str, str]]]:
    """Every way in which a folder might hold weights, in the order that transformers prefers: files, promised keys.

    Args:
        adapters: peft's files count, where no file of a whole model is there.
    """
    found: list[tuple[list[str], dict[str, str]]] = []
    for whole, name in zip(WHOLE, INDEXES, strict=True):
        if (folder / whole).exists():
            found.append(([whole], {}))
        if (index := folder / name).exists():
            promised = read_json(index).get("weight_map")
            if not isinstance(promised, dict) or not promised:
                raise ValueError(f"{index} has no weight_map; download it again")
            found.append((sorted(set(promised.values())), promised))
    groups = {
        (match["stem"], int(match["total"]), match["suffix"])
        for file in folder.iterdir()
        if (match := PART.fullmatch(file.name)) and not match["stem"].startswith("optim")
    }
    for stem, total, suffix in sorted(groups, key=lambda group: (group[0] not in STEMS, group)):
        found.append(([f"{stem}-{i:05}-of-{total:05}{suffix}" for i in range(1, total + 1)], {}))
    whole_models = [each for each in found if not each[0][0].startswith("adapter_model")]
    if whole_models or not adapters:
        return whole_models
    found += [([name], {}) for name in ADAPTERS if (folder / name).exists()]
    beside = [name for group in BESIDE for name in group if (folder / name).exists()]
    return found or ([(beside[:1], {})] if beside else [])


def absent(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if not (folder / name).exists()]


def check_shards(folder: Path, names: list[str]) -> None:
    """Raise where shards of a checkpoint are not there."""
    if missing := absent(folder, names):
        raise ValueError(
            f"{folder} holds {len(names) - len(missing)} of {len(names)} shards; missing are {listed(missing)}: "
            "download them into the same folder"
        )


def file_entries(file: Path) -> list[Entry]:
    """What is in one file, without reading the tensors."""
    with file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise ValueError(f"{file} is a Git LFS pointer, not the weights; fetch them: git lfs pull, or hf download")
    if file.suffix == ".safetensors":
        with reading(file), safe_open(file, framework="pt") as handle:
            return [Entry(file, key, *kind(handle.get_slice(key))) for key in handle.keys()]  # noqa: SIM118
    return [Entry(file, key, tuple(value.shape), value.dtype) for key, value in load_file(file).items()]


def kind(part: Any) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of a slice of a safetensors file."""
    names = {"BOOL": "bool", "U8": "uint8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    name = str(part.get_dtype())
    long = name.replace("BF", "bfloat") if name[0] == "B" else name.replace("F", "float").replace("I", "int")
    return tuple(part.get_shape()), getattr(torch, names.get(name, long))


def load_file(file: Path, keys: set[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a weights file (all, or some), mapped where its format allows it.

    Raises:
        ValueError: the file is cut short, is no checkpoint, or holds code.
    """
    with reading(file):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as handle:
                return {key: handle.get_tensor(key) for key in (handle.keys() if keys is None else keys)}
        state = load_pickle(file)
    for name in ("state_dict", "module", "model"):  # what trainers wrap a state in
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} holds no flat state dict of tensors, but {type(state).__name__}; give its weights")
    return {str(key): value for key, value in state.items() if keys is None or key in keys}


def load_pickle(file: Path) -> Any:
    """A torch file with `weights_only`, mapped if it is of the zip format (older ones are read whole)."""
    with file.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles in unusual protocols; what cannot be read raises
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped or None)


@contextlib.contextmanager
def reading(file: Path):
    """Turn what the readers raise into sentences."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut short ({error}); download it again") from None
    except pickle.UnpicklingError as error:
        text = str(error)
        named = CODE.search(text)
        if named or ("Unsupported" in text and file.read_bytes()[:1] == PICKLE):
            what = named[1] if named else "objects of other kinds"
            raise ValueError(
                f"{file} holds code ({what}), not only tensors; it was not run: get the checkpoint as safetensors, "
                "or from someone you trust to save plain tensors"
            ) from None
        raise ValueError(f"{file} is damaged or no torch checkpoint; download it again") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__).partition(". ")[0]
        raise ValueError(f"{file} is damaged, cut short or no torch checkpoint ({first}); download it again") from None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing; it belongs beside the weights: copy the whole folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}, expected an object; download it again")
    return content


@contextlib.contextmanager
def described(where: Path, what: str) -> Iterator[None]:
    """Turn what transformers says of a config's values into a sentence with the file."""
    try:
        yield
    except Exception as error:  # of transformers' and the hub's own kinds
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        reason = re.sub(r"^\w+Error: ", "", last[0].strip()).rstrip(".")
        raise ValueError(f"{where} describes no {what} ({reason}); restore the one saved with the weights") from error


def listed(names: Iterable[str], limit: int = MAX_LISTED) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
