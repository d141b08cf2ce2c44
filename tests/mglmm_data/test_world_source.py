"""The world as a source: what training may see, determinism, evaluation samples, the corpus, bad input."""

import re
from collections import Counter

import numpy as np
import pytest

from mglmm_data.world import templates
from mglmm_data.world.scene import make_scene
from mglmm_data.world.source import EVAL_SEED_START, WORLD_VERSION, World, eval_samples
from mglmm_data.world.tasks import KINDS, write
from mglmm_data.world.vocabulary import CATEGORIES, COLORS, HELD_OUT


def test_training_neither_shows_nor_asks_for_what_is_held_out():
    world = World(77, turns=12)
    pairs, seen = {f"{color} {category}" for category, color in HELD_OUT}, 0
    for index in range(25):
        for conversation in world.sample(index).conversations:
            assert not conversation.kind.endswith(":unseen")
            for turn in conversation.turns:
                assert not any(pair in turn.text for pair in pairs), turn.text
                relations = r"(?:to the )?(left|right|above|below)(?: of)?"
                ends = [
                    found[::-1] for found in re.findall(rf"{relations} the (?:small |large )?(\w+) (\w+)", turn.text)
                ]
                ends += [(b, a, r) for a, b, r in re.findall(rf"(\w+) (\w+) {relations}", turn.text)]
                for category, color, relation in ends:
                    if category in CATEGORIES and color in COLORS:
                        seen += 1
                        assert not templates.held_out_relation(category, color, relation), turn.text
    assert seen > 20
    triples = [(c, k, r) for c in CATEGORIES for k in COLORS for r in templates.RELATIONS]
    assert 0.06 < np.mean([templates.held_out_relation(*triple) for triple in triples]) < 0.10


def test_samples_are_a_function_of_seed_index_and_epoch():
    world = World(5, turns=4)
    one, two, later = world.sample(3), World(5, turns=4).sample(3), world.sample(3, epoch=1)
    assert (one.image == two.image).all() and one.conversations == two.conversations and one.regions == two.regions
    assert (one.image == later.image).all() and one.conversations != later.conversations
    assert one.meta == {"scene_seed": 8, "version": WORLD_VERSION} and len(one.conversations) == 4
    assert World(5, size=(96, 128)).sample(0).size in ((96, 96), (128, 128))


def test_kinds_of_a_task_are_asked_for_as_often_as_given():
    few = {**dict.fromkeys(KINDS["absent"], 0.0), "relation": 1.0, "phrases": 1.0}
    asked: dict[str, Counter] = {}
    for name, kinds in (("as it is", None), ("given", {"absent": few})):
        world = World(40, tasks={"absent": 1.0}, turns=6, kinds=kinds)
        asked[name] = Counter(c.kind for index in range(20) for c in world.sample(index).conversations)
    assert asked["given"]["relation"] + asked["given"]["phrases"] > 100  # of 120; some scenes have neither
    assert asked["as it is"]["relation"] + asked["as it is"]["phrases"] < 60
    with pytest.raises(ValueError, match=r"kinds of 'vqa' are \{'count': 1\}; .* each of count, color, where, yesno"):
        World(0, kinds={"vqa": {"count": 1}})
    with pytest.raises(ValueError, match="kinds are given for 'absnt', which is no task; use one of panoptic, fine"):
        World(0, kinds={"absnt": {}})


def test_masks_are_made_once_a_sample():
    sample = World(9, turns=10).sample(0)
    counts = [region.rle["counts"] for region in sample.regions if region.rle is not None]
    assert len(counts) == len(set(counts))


def test_evaluation_samples_have_one_conversation_and_kinds_in_turn():
    samples = list(eval_samples("vqa", 8, EVAL_SEED_START + 50, 96))
    assert [len(sample.conversations) for sample in samples] == [1] * 8
    kinds = Counter(sample.conversations[0].kind.removesuffix(":unseen") for sample in samples)
    assert kinds == dict.fromkeys(KINDS["vqa"], 2)
    assert len({sample.meta["scene_seed"] for sample in samples}) == 8
    again = list(eval_samples("vqa", 8, EVAL_SEED_START + 50, 96))
    assert [sample.conversations for sample in samples] == [sample.conversations for sample in again]


def test_the_corpus_holds_every_word():
    texts = list(World(11).text_corpus(400))
    words = set(re.findall(r"\w+", " ".join(texts)))
    assert len(texts) == 400
    assert {*CATEGORIES, *COLORS, *map(templates.plural, CATEGORIES)} <= words
    assert "{" not in "".join(texts)


def test_every_category_has_a_purpose():
    assert set(templates.PURPOSES) == set(CATEGORIES)
    for purpose in templates.PURPOSES.values():
        assert len(purpose.asks) >= 2 and all(templates.negation(words) != words for words in purpose.asks)
        assert set(purpose.also) <= set(CATEGORIES)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: World(0, tasks={"refering": 1.0}), r"'refering' is unknown; use one of .*referring"),
        (lambda: World(0, tasks={"vqa": 0.0}), r"weights of 0 or more, one at least above 0"),
        (lambda: World(0, turns=0), r"turns is 0; give at least 1"),
        (lambda: World(EVAL_SEED_START), r"seed_start 10000000 is not of split train"),
        (lambda: World(0, split="eval"), r"seed_start 0 is not of split eval"),
        (lambda: World(0).sample(-1), r"index is -1"),
        (lambda: next(eval_samples("vqa", 1, seed=3)), r"seed 3 is one of training"),
        (lambda: next(eval_samples("quiz", 1)), r"'quiz' is unknown"),
        (
            lambda: write(make_scene(1), "vqa", np.random.default_rng(0), [], kind="why"),
            r"no kind 'why'; use one of count",
        ),
    ],
)
def test_errors_name_the_value_and_the_way_out(call, message):
    with pytest.raises(ValueError, match=message):
        call()
