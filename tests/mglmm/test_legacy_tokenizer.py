"""Imported tokenizers give the ids those models were trained with: every recorded row, and any text by the rule."""

import json
import re
import shutil
from functools import cache

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoTokenizer

from mglmm.encode import Encoder
from mglmm.formats import FAMILIES
from mglmm.importers.tokenizer import legacy_tokenizer, original_size
from mglmm.pieces import LegacyTokens
from mglmm.tokenizer import tokenizer_hash
from mglmm.tokens import LiteralTokenizer, special_ids
from mglmm_data.sample import Grounding, Mention, Region, Turn

PEERS = ("lisa", "glamm", "mglmm")
IMAGE = -200  # how the published codes write the place of the image
IGNORE = -100
UNDISTURBED = ("<s>", "</s>", "<unk>")
REGIONS = tuple(Region((90, 90), box=(i, i, i + 9, i + 9)) for i in range(8))


@pytest.fixture(params=PEERS)
def family(request):
    return request.param


@pytest.fixture
def folder(family, shared):
    return shared("golden", family, "checkpoint")


@cache
def fresh(folder, family):
    return legacy_tokenizer(folder, family)


@pytest.fixture(params=["made", "saved and loaded"])
def tokenizer(request, folder, family, tmp_path):
    made = fresh(folder, family)
    if request.param == "made":
        return made
    made.save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def prompts(value, path=()):
    """Every recorded prompt or conversation with the path to it."""
    if isinstance(value, str):
        if "USER" in value and ("conversation_list" in path or path[-1] == "prompt"):
            yield path, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from prompts(item, (*path, key))


@cache
def recorded(folder):
    """(name, prompt, ids, labels or None) of every recorded row, without padding."""
    golden = json.loads((folder.parent / "golden.json").read_text())
    rows = []
    with safe_open(folder.parent / "golden.safetensors", "pt") as stored:
        for path, text in prompts(golden):
            if path[0] == "evaluate":
                key, index = f"eval.{golden['evaluate'][path[1]]['name']}", 0
            else:
                key, index = ("train" if path[0] == "conversation_list" else path[0]), path[-1]
            ids = stored.get_tensor(f"{key}.input_ids")[index].tolist()
            length = len(ids) - next(count for count, token in enumerate(reversed(ids)) if token != 0)
            labels = None
            if f"{key}.labels" in stored.keys():  # noqa: SIM118
                labels = stored.get_tensor(f"{key}.labels")[index].tolist()[:length]
            rows.append((f"{key}.{index}", text, ids[:length], labels))
        for case in golden["evaluate"]:
            if "prompt" not in case:  # GLaMM's record holds the question
                ids = stored.get_tensor(f"eval.{case['name']}.input_ids")[0].tolist()
                text = FAMILIES["glamm"].before_image + "<im_start><image><im_end>" + FAMILIES["glamm"].after_image
                rows.append((f"eval.{case['name']}", f"{text}{case['question']} ASSISTANT:", ids, None))
    return rows


def test_every_recorded_row_as_text(tokenizer, folder, family):
    image = tokenizer.convert_tokens_to_ids("<image>")
    rows = recorded(folder)
    assert len(rows) >= 14
    for name, text, ids, _ in rows:
        assert [IMAGE if index == image else index for index in tokenizer(text).input_ids] == ids, name


def read_turns(text, form):
    """A recorded prompt as the turns that a data set of ours would hold."""
    middle = form.after_image.strip("\n")
    rest = text.removeprefix(form.before_image).removeprefix("<im_start><image><im_end>")
    rest = rest.removeprefix(middle).removeprefix("\n")
    turns, regions = [], iter(range(len(REGIONS)))
    for number, round_ in enumerate(rest.split("</s>")):
        if not round_:
            continue
        question, _, answer = round_.removeprefix("USER: " if number else "").partition(" ASSISTANT:")
        clean, mentions = "", []
        for piece in re.split(r"(<bbox>)", question):
            if piece == "<bbox>":
                mentions.append(Mention(len(clean), len(clean) + 4, next(regions)))
                piece = "this"
            clean += piece
        turns.append(Turn("user", clean, mentions=tuple(mentions)))
        if answer:
            turns.append(read_answer_turn(answer.removeprefix(" "), regions))
    return turns


def read_answer_turn(answer, regions):
    clean, phrases, start, end = "", [], None, 0
    for piece in re.split(r"(<p>|</p>|\[SEG\])", answer):
        if piece == "<p>":
            start = len(clean)
        elif piece == "</p>":
            end = len(clean.rstrip())
        elif piece == "[SEG]":
            begin = len(clean) if start is None else start + len(clean[start:]) - len(clean[start:].lstrip())
            phrases.append(Grounding(begin, len(clean) if start is None else end, (next(regions),)))
            start = None
        else:
            clean += piece
    return Turn("assistant", clean, tuple(phrases))


def test_every_recorded_row_through_the_encoder(tokenizer, folder, family):
    """Ids and labels as the published collate functions make them, from clean text and spans."""
    form = FAMILIES[family]
    ids = special_ids(tokenizer, form.region)
    encoder = Encoder(LiteralTokenizer(tokenizer), ids, form, num_image=1)
    checked = 0
    for name, text, wanted, labels in recorded(folder):
        prefix, rest = encoder.prefix(), encoder.prompt(read_turns(text, form), REGIONS)
        whole = prefix.ids + rest.ids
        assert [IMAGE if index == ids.image else index for index in whole] == wanted, name
        assert len(rest.targets) == wanted.count(ids.seg)
        if labels is not None:
            on = prefix.labelled + rest.labelled
            assert [i if said else IGNORE for i, said in zip(whole, on, strict=True)] == labels, name
            checked += 1
    assert checked >= 7


@cache
def oracle(folder):
    return sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))


def by_the_rule(folder, tokens, pieces):
    """The rule of the fixtures' README, spelt out on sentencepiece itself."""
    out, spoken = [], oracle(folder)
    for number, piece in enumerate(pieces):
        if piece in tokens:
            out.append(tokens[piece])
            continue
        left = number and pieces[number - 1] not in UNDISTURBED
        right = number + 1 < len(pieces) and pieces[number + 1] not in UNDISTURBED
        piece = piece.lstrip() if left else piece
        piece = piece.rstrip() if right else piece
        out += spoken.encode(piece) if piece else []
    return out


LETTERS = st.characters(exclude_categories=("Cs", "Co", "Cn"), exclude_characters="\u2581")
TEXTS = st.text(st.one_of(st.sampled_from(" .,\n\tabethSg<>[]"), LETTERS), min_size=1, max_size=24)


@settings(max_examples=150)
@given(st.data())
def test_any_text_by_the_rule(shared, data):
    family = data.draw(st.sampled_from(PEERS))
    folder = shared("golden", family, "checkpoint")
    tokenizer, form = fresh(folder, family), FAMILIES[family]
    tokens = {token: tokenizer.get_vocab()[token] for token in (*form.tokens, *UNDISTURBED)}
    markers = st.sampled_from([*form.tokens, "<s>", "</s>"])
    words = TEXTS.filter(lambda text: not any(token in text for token in tokens))
    pieces = []
    for _ in range(data.draw(st.integers(0, 3))):
        pieces += [data.draw(words), *data.draw(st.lists(markers, min_size=1, max_size=2))]
    pieces.append(data.draw(words))
    wanted = by_the_rule(folder, tokens, pieces)
    if not set("".join(pieces)) & set("\x1c\x1d\x1e\x1f"):  # white space to Python alone
        assert tokenizer("".join(pieces), add_special_tokens=False).input_ids == wanted
    out, literal = LegacyTokens(), LiteralTokenizer(tokenizer)
    for piece in pieces:
        if piece in tokens:
            out.mark([tokens[piece]], strips=piece not in UNDISTURBED)
        else:
            out.text(piece, literal)
    out.flush(strips=False)
    assert out.ids == wanted


def test_typed_tokens_stay_text(tokenizer, folder, family):
    """A user who types a token gets letters, the ones that sentencepiece gives for them."""
    form = FAMILIES[family]
    ids = special_ids(tokenizer, form.region)
    literal = LiteralTokenizer(tokenizer)
    encoder = Encoder(literal, ids, form, num_image=4)
    for token in literal.special:
        typed = f"Is {token} text?"
        said = encoder.prompt([Turn("user", typed)], ()).ids
        assert not set(said) & set(literal.special.values()), token
        assert literal.decode(said).lstrip().startswith((form.after_image + typed).lstrip())
        assert literal.encode(f" {typed}") == oracle(folder).encode(typed)


def test_ids_stay_and_markers_follow(tokenizer, folder, family):
    count = original_size(folder)
    published = json.loads((folder / "added_tokens.json").read_text())
    assert count == oracle(folder).get_piece_size() + len(published)
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in published} == published
    ids = special_ids(tokenizer, FAMILIES[family].region)
    assert all(tokenizer.convert_tokens_to_ids(token) >= count for token in FAMILIES[family].untrained)
    assert len(tokenizer) == count + len(FAMILIES[family].untrained)
    assert (ids.seg in published.values(), ids.pad, ids.bos, ids.eos) == (True, 0, 1, 2)


def test_saving_changes_nothing(folder, family, tmp_path):
    made = fresh(folder, family)
    made.save_pretrained(tmp_path / "one")
    once = AutoTokenizer.from_pretrained(tmp_path / "one")
    once.save_pretrained(tmp_path / "two")
    twice = AutoTokenizer.from_pretrained(tmp_path / "two")
    assert tokenizer_hash(made) == tokenizer_hash(once) == tokenizer_hash(twice)
    assert made.backend_tokenizer.to_str() == twice.backend_tokenizer.to_str()


def test_a_folder_with_the_fast_files_only(folder, family, tmp_path):
    made = fresh(folder, family)
    made.save_pretrained(tmp_path)
    again = legacy_tokenizer(tmp_path, family)
    assert again.get_vocab() == made.get_vocab()


@pytest.fixture
def copied(shared, tmp_path):
    """A LISA tokenizer's files, to be spoilt."""
    for name in ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(shared("golden", "lisa", "checkpoint", name), tmp_path / name)
    return tmp_path


def added(folder, **tokens):
    (folder / "added_tokens.json").write_text(json.dumps(tokens))


def test_tokenizer_of_the_base_model_is_refused(copied):
    (copied / "added_tokens.json").unlink()
    with pytest.raises(ValueError, match=r"has no \[SEG\], <im_start>, <im_end>, which lisa writes.*fine-tuned"):
        legacy_tokenizer(copied, "lisa")


def test_ids_with_a_gap_are_refused(copied):
    added(copied, **{"[SEG]": 700, "<im_start>": 701, "<im_end>": 799})
    with pytest.raises(ValueError, match=r"id 702 is missing or double.*do not belong together"):
        legacy_tokenizer(copied, "lisa")


def test_files_that_disagree_are_refused(copied):
    config = json.loads((copied / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"701": {"content": "[SEG]"}}
    (copied / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"'\[SEG\]' is id 700 in added_tokens.json and 701 in tokenizer_config.json"):
        legacy_tokenizer(copied, "lisa")


def test_damaged_files_are_refused(copied):
    (copied / "added_tokens.json").write_text("{")
    with pytest.raises(ValueError, match=r"added_tokens.json is damaged .*copy it again"):
        legacy_tokenizer(copied, "lisa")
    model = copied / "tokenizer.model"
    model.write_bytes(model.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"tokenizer.model cannot be read as a tokenizer"):
        legacy_tokenizer(copied, "lisa")
    model.unlink()
    with pytest.raises(ValueError, match=r"holds neither tokenizer.model nor tokenizer.json"):
        legacy_tokenizer(copied, "lisa")


def test_unknown_family_is_refused(copied):
    with pytest.raises(ValueError, match=r"unknown family 'shikra'; known: lisa, glamm, mglmm, llava"):
        legacy_tokenizer(copied, "shikra")
