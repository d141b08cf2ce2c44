# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""Published layouts at other sizes: made here from random models of transformers, converted, and compared with them."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mglmm.checkpoint import load_checkpoint, save_checkpoint
from mglmm.grounder import Grounder
from mglmm.importers import FAMILIES, convert, merge
from mglmm.importers.lisa import form_of
from mglmm.importers.lora import without_wrappers
from mglmm.templates import FAMILIES as FORMS
from mglmm_data.sample import Turn
from sam_bridge.config import sam_config
from sam_bridge.sam import HfSam
from sam_bridge.weights import to_official


@dataclass
class Made:
    """A checkpoint in a published layout, and the parts it was made from."""

    folder: Path
    family: str
    language: LlamaForCausalLM
    clip: CLIPVisionModel
    sam: HfSam
    rest: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def state(self):
        sam = {FAMILIES[self.family].sam + key: value for key, value in to_official(self.sam.sam).items()}
        return {**self.language.state_dict(), **sam, **self.rest}

    def write(self, dtype: torch.dtype, shards: int, suffix: str) -> None:
        """`shards` files of `dtype` with their index, beside config.json and the tokenizer."""
        stem, save = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
        state = {key: value.to(dtype).contiguous() for key, value in self.state.items()}
        names = [f"{stem}-{i:05}-of-{shards:05}.{suffix}" for i in range(1, shards + 1)]
        where = {key: names[number % shards] for number, key in enumerate(state)}
        for name in names:
            save({key: value for key, value in state.items() if where[key] == name}, self.folder / name)
        index = f"{stem}{'.safetensors' if suffix == 'safetensors' else '.bin'}.index.json"
        (self.folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))


TEXT = """Can you segment the red dog in this picture? Sure, it is there. A man rides a horse on the beach.
Describe the image, please; respond with masks for parts of the answer. Where are both of the small cars?
What is the color of this bird? There is no such thing here. Both boats lie in the harbor behind a long wall.
"""


def tokenizer_of(folder: Path, family: str, pieces: int) -> int:
    """A slow sentencepiece tokenizer and nothing else but its added tokens; returns the ids."""
    text = folder / "text"
    text.write_text(TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=pieces, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    text.unlink()
    (folder / "tokenizer.vocab").unlink()
    tokens = FORMS[family].tokens
    (folder / "added_tokens.json").write_text(json.dumps({token: pieces + n for n, token in enumerate(tokens)}))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return pieces + len(tokens)


def published(root: Path, family: str, pieces: int = 310, seed: int = 0, clip_px: int = 28, **language: Any) -> Made:
    """Random parts in the layout of LISA or MGLMM; `language` are fields of config.json, None leaves one out."""
    torch.manual_seed(seed)
    folder = root / "released"
    folder.mkdir(parents=True)
    rows = tokenizer_of(folder, family, pieces)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 512}  # fmt: skip
    told = {**sizes, "vocab_size": rows, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **language}
    content = {key: value for key, value in told.items() if value is not None}
    clip = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
                            image_size=clip_px, patch_size=14)  # fmt: skip
    tower = CLIPVisionModel(clip).eval()
    tower.save_pretrained(root / "tower")
    square = {"height": clip_px, "width": clip_px}
    CLIPImageProcessorPil(size={"shortest_edge": clip_px}, crop_size=square).save_pretrained(root / "tower")
    sam = HfSam.from_config(
        sam_config(side=64, hidden=16, depth=2, heads=2, window=2, global_layers=(1,), width=16, decoder_heads=2,
                   decoder_mlp=16)
    ).eval()  # fmt: skip
    llama = LlamaForCausalLM(LlamaConfig(**{**content, "vocab_size": rows, "tie_word_embeddings": False})).eval()
    wide = content["hidden_size"]
    layers = {"model.mm_projector": (16, wide)} if family == "lisa" else {
        "model.mm_projector.0": (16, wide), "model.mm_projector.2": (wide, wide)}  # fmt: skip
    layers |= {"model.text_hidden_fcs.0.0": (wide, wide), "model.text_hidden_fcs.0.2": (wide, 16)}
    rest = {
        f"{name}.{key}": value for name, size in layers.items() for key, value in nn.Linear(*size).state_dict().items()
    }
    config = {"model_type": "llava", "mm_vision_tower": "../tower", "architectures": ["Anything"], **content}
    (folder / "config.json").write_text(json.dumps(config))
    return Made(folder, family, llama, tower, sam, rest)


VARIANTS = {
    "grouped queries": {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 3},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 24, "num_hidden_layers": 1},
    "other rotations": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}, "rms_norm_eps": 1e-3},
    "LLaMA 1's config": {"num_key_value_heads": None, "max_position_embeddings": None, "pad_token_id": -1,
                         "bos_token_id": None, "eos_token_id": None, "rms_norm_eps": None, "vocab_size": None},
    "biases": {"attention_bias": True, "mlp_bias": True},
}  # fmt: skip
FILES = [("bin", 1, torch.float32), ("bin", 3, torch.float16), ("safetensors", 2, torch.bfloat16)]


def same(model: Any, made: Made, dtype: torch.dtype) -> None:
    """Weights to the bit; states, embeddings and patches of the parts themselves."""
    language, sam = (part.to(dtype).float() for part in (made.language, made.sam))  # the tower's file is of its own
    ids, pixels = torch.arange(3, 40)[None], torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = language(ids).logits
        found = model.llava.lm_head(model.llava.model.language_model(input_ids=ids).last_hidden_state)
        assert torch.allclose(found, wanted, atol=1e-5)
        assert torch.equal(model.bridge.encode(pixels).embedding, sam.encode(pixels).embedding)
        clip = torch.rand(1, 3, made.clip.config.image_size, made.clip.config.image_size)
        states = made.clip(clip, output_hidden_states=True).hidden_states
        assert torch.allclose(model.clip_states(clip)[-2], states[-2], atol=1e-5)
    own = dict(model.named_parameters())
    for key, value in made.rest.items():
        kind = FAMILIES[made.family]
        assert torch.equal(own[kind.ours(key)], value.to(dtype).float()), key


@pytest.mark.parametrize("family", ["lisa", "mglmm"])
@pytest.mark.parametrize("name", VARIANTS)
def test_other_sizes(tmp_path, family, name):
    number = list(VARIANTS).index(name)
    made = published(tmp_path, family, pieces=300 + 7 * number, seed=number, **VARIANTS[name])
    suffix, shards, dtype = FILES[number % len(FILES)]
    made.write(dtype, shards, suffix)
    done = convert(made.folder, tmp_path / "out", sam_decoder_heads=2)
    assert done.family == family and not done.notes
    model, processor = load_checkpoint(tmp_path / "out")
    same(model, made, dtype)
    stored = {value.dtype for file in (tmp_path / "out").glob("*.safetensors") for value in load_file(file).values()}
    assert dtype in stored and len(stored) <= 2  # the tower keeps its own
    save_checkpoint(tmp_path / "again", model, processor)
    again, _ = load_checkpoint(tmp_path / "again")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_larger_vision_tower_and_an_answer(tmp_path):
    made = published(tmp_path, "mglmm", clip_px=70)
    made.write(torch.float32, 2, "bin")
    (note,) = convert(made.folder, tmp_path / "out").notes
    assert "mask decoder is 16 wide, not 256; nothing tells its attention heads, 2 were taken" in note
    grounder = Grounder.load(tmp_path / "out", max_new_tokens=5)
    assert grounder.model.num_image_tokens == 25
    picture = torch.randint(0, 255, (40, 50, 3), dtype=torch.uint8).numpy()
    assert grounder.ask(picture, "Can you segment the dog?").truncated in (True, False)


@pytest.mark.parametrize("pieces", [299, 333])
def test_other_vocabularies_by_the_rule(tmp_path, pieces):
    """Pieces between added tokens, white space beside them dropped, each with sentencepiece's own prefix."""
    made = published(tmp_path, "lisa", pieces=pieces)
    made.write(torch.float32, 1, "bin")
    convert(made.folder, tmp_path / "out")
    spoken = sentencepiece.SentencePieceProcessor(str(made.folder / "tokenizer.model"))
    added = json.loads((made.folder / "added_tokens.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "USER: <im_start> Can  you [SEG] . <im_end>\nzebra über 7?[SEG]"
    wanted = [spoken.bos_id()]
    for piece in re.split(r"(<im_start>|<im_end>|\[SEG\])", text):
        wanted += [added[piece]] if piece in added else spoken.encode(piece.strip())
    assert tokenizer(text).input_ids == wanted


def first_release(made):
    """Rewrite a LISA as v0 was released: language model with index, SAM and projection in files of their own."""
    patch = made.language.config.vocab_size  # the tokens of a first LLaVA: <im_patch>, then the two around it
    added = json.loads((made.folder / "added_tokens.json").read_text())
    (made.folder / "added_tokens.json").write_text(json.dumps({**added, "<im_patch>": patch}))
    made.language.resize_token_embeddings(patch + 1)
    config = json.loads((made.folder / "config.json").read_text())
    (made.folder / "config.json").write_text(json.dumps({**config, "vocab_size": patch + 1}))
    parts = {"visual_model": {}, "text_hidden_fcs": {}}
    language = {}
    for key, value in made.state.items():
        part = parts.get(key.split(".")[1])
        (language if part is None else part)[key if part is None else key.removeprefix("model.")] = value.clone()
    for name, part in parts.items():
        torch.save(part, made.folder / f"pytorch_model-{name}.bin")
    where = {}
    for number in (1, 2):
        name = f"pytorch_model-{number:05}-of-00002.bin"
        part = {key: value for index, (key, value) in enumerate(language.items()) if index % 2 == number - 1}
        torch.save(part, made.folder / name)
        where |= dict.fromkeys(part, name)
    (made.folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_lisas_first_release(tmp_path, command):
    """LISA-13B-llama2-v0: its layout of files and keys, `<im_patch>`, and the system prompt it was trained with."""
    made = published(tmp_path, "lisa")
    first_release(made)
    looked = command("doctor", made.folder)
    assert looked.code == 0, looked.out
    done = command("convert", made.folder, tmp_path / "out", "--sam-decoder-heads", "2")
    assert done.code == 0, done.err
    model, processor = load_checkpoint(tmp_path / "out")
    assert model.config.prompt_format == "lisa_v0"
    same(model, made, torch.float32)
    assert "referring segmentation" in command("doctor", tmp_path / "out").out
    spoken = sentencepiece.SentencePieceProcessor(str(made.folder / "tokenizer.model"))
    encoder, tokens = processor.encoder, processor.tokenizer.convert_tokens_to_ids
    system = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives "
              "helpful, detailed, and polite answers to the user's questions. USER:")  # fmt: skip
    wanted = [spoken.bos_id(), *spoken.encode(system), tokens("<im_start>")]
    wanted += [processor.ids.image] * model.num_image_tokens + [tokens("<im_end>")]
    wanted += spoken.encode("Where is the dog? ASSISTANT:")
    assert [*encoder.prefix().ids, *encoder.prompt([Turn("user", "Where is the dog?")], ()).ids] == wanted
    (made.folder / "pytorch_model-visual_model.bin").unlink()
    left = command("convert", made.folder, tmp_path / "half")
    assert left.code == 2 and not (tmp_path / "half").exists(), left.err


@pytest.mark.parametrize("outer", ["", "module."])
def test_names_of_lisas_first_trainer(outer):
    """Its model held the language model as `lm`, wrapped by peft, and the rest beside it."""
    assert without_wrappers(f"{outer}lm.base_model.model.model.layers.0.mlp.up_proj.weight").startswith("model.layers")
    assert without_wrappers(f"{outer}lm.base_model.model.lm_head.weight") == "lm_head.weight"
    assert without_wrappers(f"{outer}visual_model.image_encoder.pos_embed").startswith("model.visual_model.image")
    assert form_of("lisa", [f"{outer}visual_model.image_encoder.pos_embed"]).name == "lisa_v0"
    assert form_of("lisa", [f"{outer}base_model.model.model.visual_model.image_encoder.pos_embed"]).name == "lisa"


ADAPTERS = {
    "every projection": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj",
                                                                     "gate_proj", "down_proj"]},
    "rank-stabilised": {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    "patterns": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
                 "rank_pattern": {"layers.1.self_attn.q_proj": 5}, "alpha_pattern": {"v_proj": 9}},
    "head and embedding whole": {"r": 2, "lora_alpha": 8, "target_modules": ["o_proj"],
                                 "modules_to_save": ["lm_head", "embed_tokens"]},
}  # fmt: skip


@pytest.mark.parametrize("ours", [True, False], ids=["into ours", "into theirs"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_merge_as_peft_merges_them(tmp_path, name, ours):
    from peft import LoraConfig, get_peft_model

    made = published(tmp_path, "mglmm", num_key_value_heads=2)
    made.write(torch.float32, 1, "safetensors")
    base = made.folder
    if ours:
        base = convert(made.folder, tmp_path / "ours").folder
    model = get_peft_model(made.language, LoraConfig(**ADAPTERS[name]))
    for key, value in model.named_parameters():
        if "lora_B" in key or "modules_to_save" in key:
            nn.init.normal_(value, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    merged = model.merge_and_unload().eval()
    found = load_checkpoint(tmp_path / "merged")[0].llava
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        logits = found.lm_head(found.model.language_model(input_ids=ids).last_hidden_state)
        assert torch.allclose(logits, merged(ids).logits, atol=1e-5)
