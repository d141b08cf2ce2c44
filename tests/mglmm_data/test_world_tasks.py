"""What the world says about its scenes is true, unambiguous and balanced.

Expressions are read back by `Reader`, which knows English and the scene's table but nothing of how they were made.
"""

import re
from collections import Counter

import numpy as np
import pytest

from mglmm_data.sample import Conversation, Region, Sample
from mglmm_data.world import templates
from mglmm_data.world.scene import Scene, make_scene
from mglmm_data.world.source import EVAL_SEED_START, World
from mglmm_data.world.tasks import KINDS, TASKS, write
from mglmm_data.world.vocabulary import CATEGORIES, COLORS, HELD_OUT, PARTS

NUM_SCENES = 60
SINGULAR = {templates.plural(name): name for name in (*CATEGORIES, "thing")}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(EVAL_SEED_START + 1000 + i, 192) for i in range(NUM_SCENES)]


class Reader:
    """Reads "the leftmost dog", "the wheel of the red car" ... literally: indices of all things that answer to it."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        boxes = [thing.box for thing in scene.things]
        self.x = [(box[0] + box[2]) / 2 / scene.image.shape[1] for box in boxes]
        self.y = [(box[1] + box[3]) / 2 / scene.image.shape[0] for box in boxes]

    def noun(self, words: str) -> list[int]:
        found = list(range(len(self.scene.things)))
        for word in words.split():
            word = SINGULAR.get(word, word)
            if word == "thing":
                continue
            assert word in (*CATEGORIES, *COLORS, "small", "large"), words
            found = [
                i
                for i in found
                if word in (self.scene.things[i].category, self.scene.things[i].color, self.scene.things[i].size)
            ]
        return found

    def part(self, words: str) -> tuple[str, str]:
        """("wheel", "the red car") or ("", words)."""
        match = re.fullmatch(r"the (?:\w+ )?(\w+) of (the .+)", words)
        is_part = match is not None and any(match[1] in parts for parts in PARTS.values())
        return (match[1], match[2]) if match and is_part else ("", words)

    def things(self, words: str, margin: float = 0.0) -> list[int]:
        words = words.removeprefix("the ")
        if match := re.fullmatch(r"(.+?) (?:to the )?(left|right) of the (.+)", words):
            return self.beside(match[1], match[2], match[3], margin)
        if match := re.fullmatch(r"(.+?) (above|below) the (.+)", words):
            return self.beside(match[1], match[2], match[3], margin)
        if match := re.fullmatch(r"(.+) on the (\w+)", words):
            return [i for i in self.noun(match[1]) if self.ground(i) == match[2]]
        if match := re.fullmatch(r"(\w+) (.+) from the (left|right)", words):
            place, noun, side = templates.ORDINALS.index(match[1]), match[2], match[3]
        elif match := re.fullmatch(r"(left|right)most (.+)", words):
            place, noun, side = 0, match[2], match[1]
        else:
            return self.noun(words)
        ranked = sorted(self.noun(noun), key=lambda i: self.x[i] if side == "left" else -self.x[i])
        return ranked[place : place + 1]

    def beside(self, noun: str, relation: str, anchor: str, margin: float) -> list[int]:
        anchors = self.noun(anchor)
        assert len(anchors) == 1, anchor
        axis, sign = (self.x if relation in ("left", "right") else self.y), (1 if relation in ("left", "above") else -1)
        return [i for i in self.noun(noun) if i != anchors[0] and sign * (axis[anchors[0]] - axis[i]) > margin]

    def ground(self, index: int) -> str:
        x1, _, x2, y2 = (int(value) for value in self.scene.things[index].box)
        row = self.scene.leaves[y2, (3 * x1 + x2) // 4 : (x1 + 3 * x2) // 4 + 1]
        names = {stuff.leaf: stuff.name for stuff in self.scene.stuff}
        return names.get(Counter(row.tolist()).most_common(1)[0][0], "")


def asked(question: str, wordings: tuple[str, ...]) -> str:
    """What stands at {x}: the longest wording that fits decides."""
    for wording in sorted(wordings, key=len, reverse=True):
        if match := re.fullmatch(re.escape(wording).replace(re.escape("{x}"), "(.+)"), question):
            return match[1]
    raise AssertionError(f"{question!r} has none of the wordings")


def wording_of(question: str, wordings: tuple[str, ...]) -> str:
    return question.replace(asked(question, wordings), "{x}")


def told(scene: Scene, task: str, kind: str = "", seed: int = 0) -> tuple[Conversation, list[Region]] | None:
    regions: list[Region] = []
    conversation = write(scene, task, np.random.default_rng((seed, scene.seed)), regions, kind=kind)
    return None if conversation is None else (conversation, regions)


def many(scenes: list[Scene], task: str, kind: str = "", times: int = 4):
    """(scene, conversation, regions) over scenes and seeds."""
    for seed in range(times):
        for scene in scenes:
            found = told(scene, task, kind, seed)
            if found is not None:
                yield scene, *found


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_well_formed(scenes, task):
    found = list(many(scenes, task, times=1))
    assert len(found) >= 0.8 * len(scenes)
    for scene, conversation, regions in found:
        Sample(scene.image, tuple(regions), (conversation,))
        assert conversation.task == task and conversation.kind.removesuffix(":unseen") in KINDS[task]
        for turn in conversation.turns:
            assert "{" not in turn.text and "  " not in turn.text
            assert turn.text == turn.text.strip() and "None" not in turn.text
            assert turn.role == "assistant" or turn.text[0].isupper()
            for phrase in turn.phrases:
                words = turn.text[phrase.start : phrase.end].split()
                for region in phrase.regions:
                    label = regions[region].label.split(" of ")[0].split()[-1]
                    assert (
                        label in words[-1]
                        or label in words
                        or label == SINGULAR.get(words[-1])
                        or words[-1]
                        in (
                            "thing",
                            "things",
                        )
                    )
                    assert regions[region].mask.any()


@pytest.mark.parametrize("task, kinds", [(task, list(KINDS[task])) for task in TASKS])
def test_every_kind_comes_up(scenes, task, kinds):
    for kind in kinds:
        found = [conversation for _, conversation, _ in many(scenes[:40], task, kind, times=2)]
        assert len(found) >= 10, kind
        assert all(conversation.kind.removesuffix(":unseen") == kind for conversation in found)


@pytest.mark.parametrize("task, wordings", [("referring", templates.FIND_ONE), ("box", templates.FIND_BOX)])
def test_an_expression_names_one_thing_with_a_margin(scenes, task, wordings):
    for scene, conversation, regions in many(scenes, task):
        question, answer = conversation.turns
        reader = Reader(scene)
        part, whole = reader.part(asked(question.text, wordings))
        found = reader.things(whole)
        assert len(found) == 1, question.text
        if conversation.kind.startswith("relation"):
            assert reader.things(whole, margin=0.079) == found
        (phrase,) = answer.phrases
        expected = scene.part_mask(found[0], part) if part else scene.thing_mask(found[0])
        assert (regions[phrase.regions[0]].mask == expected).all(), question.text
        thing = scene.things[found[0]]
        look = f"{thing.size} {thing.color} {thing.category}".strip()
        assert answer.text.endswith(f"the {look}.") and (answer.grounding == "box") == (task == "box")


def test_what_is_absent_is_not_there(scenes):
    for scene, conversation, regions in many(scenes, "absent"):
        question, answer = conversation.turns
        reader, kind = Reader(scene), conversation.kind.removesuffix(":unseen")
        assert not answer.phrases and not regions
        assert answer.text.startswith(("There is no ", "There are no ")) and answer.text.endswith(" in the image.")
        if kind in ("one_phrase", "phrases"):
            words = asked(question.text, templates.FIND_SEVERAL).removeprefix("all ")
            for name in re.split(" and |, ", words):
                assert not reader.noun(name.removeprefix("the ")), question.text
            continue
        part, whole = reader.part(asked(question.text, templates.FIND_ONE))
        found = reader.things(whole)
        if part and found:
            assert all(part not in PARTS[scene.things[i].category] for i in found), question.text
        else:
            assert not found, question.text


def test_wordings_do_not_tell_what_is_absent(scenes):
    present = Counter(wording_of(c.turns[0].text, templates.FIND_ONE) for _, c, _ in many(scenes, "referring"))
    several = {wording_of(c.turns[0].text, templates.FIND_SEVERAL) for _, c, _ in many(scenes, "several")}
    missing = [c for _, c, _ in many(scenes, "absent", times=6)]
    one = [c for c in missing if c.kind.removesuffix(":unseen") not in KINDS["several"]]
    other = [c for c in missing if c.kind.removesuffix(":unseen") in KINDS["several"]]
    assert {wording_of(c.turns[0].text, templates.FIND_ONE) for c in one} == set(present) == set(templates.FIND_ONE)
    assert {wording_of(c.turns[0].text, templates.FIND_SEVERAL) for c in other} == several
    kinds = Counter(c.kind.removesuffix(":unseen") for c in one)
    for kind in KINDS["referring"]:
        here = Counter(c.kind.removesuffix(":unseen") for _, c, _ in many(scenes, "referring"))
        assert abs(kinds[kind] / len(one) - here[kind] / here.total()) < 0.09, kind


def test_panoptic_lists_all_stuff_and_all_things_in_order(scenes):
    for scene, conversation, regions in many(scenes, "panoptic", times=1):
        answer = conversation.turns[1]
        stuff = answer.phrases[: len(answer.phrases) - len(scene.things)]
        things = answer.phrases[len(stuff) :]
        assert len(stuff) >= len(scene.stuff) - 1
        for index, phrase in enumerate(things):
            thing = scene.things[index]
            words = f"{thing.size} {thing.color} {thing.category}".strip()
            assert answer.text[phrase.start : phrase.end] == f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
            assert (regions[phrase.regions[0]].mask == scene.thing_mask(index)).all()
        covered = np.sum([regions[r].mask for phrase in answer.phrases for r in phrase.regions], axis=0)
        assert covered.max() == 1 and (covered == 1).mean() > 0.99


def test_parts_of_one_thing_with_their_colors(scenes):
    for scene, conversation, regions in many(scenes, "fine", times=2):
        question, answer = conversation.turns
        (index,) = Reader(scene).things(asked(question.text, templates.FINE))
        colors = {part.name: part.color for part in scene.things[index].parts}
        assert len(answer.phrases) >= 2
        for phrase in answer.phrases:
            _, color, name = answer.text[phrase.start : phrase.end].split()
            assert colors[name] == color
            assert (regions[phrase.regions[0]].mask == scene.part_mask(index, name)).all()


def test_all_things_of_a_look_in_reading_order(scenes):
    counts = Counter()
    for scene, conversation, regions in many(scenes, "several", "one_phrase"):
        question, answer = conversation.turns
        noun = asked(question.text, templates.FIND_SEVERAL).removeprefix("all ").removeprefix("the ")
        expected = Reader(scene).noun(noun)
        (phrase,) = answer.phrases
        assert [regions[r].label for r in phrase.regions] == [
            f"{scene.things[i].size} {scene.things[i].color} {scene.things[i].category}".strip() for i in expected
        ]
        counts[len(expected)] += 1
        if len(expected) > 1:
            assert f" {templates.NUMBERS[len(expected)]} " in answer.text
    assert counts[1] < 0.4 * counts.total() and counts[2] > 0 and counts[3] > 0


def test_reasoning_has_one_answer_or_none(scenes):
    for scene, conversation, regions in many(scenes, "reasoning"):
        words = asked(conversation.turns[0].text, templates.REASONING)
        category = next(name for name, purpose in templates.PURPOSES.items() if words in purpose.asks)
        count = sum(thing.category == category for thing in scene.things)
        if conversation.kind.startswith("absent"):
            assert count == 0 and not regions and conversation.turns[1].text.startswith("There is no")
        else:
            assert count == 1 and regions[0].label.endswith(category)


def test_counts_and_places_are_true_and_balanced(scenes):
    counts, places = Counter(), Counter()
    for scene, conversation, _ in many(scenes, "vqa", "count", times=6):
        question, answer = conversation.turns
        assert len(Reader(scene).noun(asked(question.text, templates.COUNT))) == int(answer.text)
        counts[answer.text] += 1
    assert set(counts) == set("01234") and max(counts.values()) < 0.34 * counts.total()
    for scene, conversation, _ in many(scenes, "vqa", "where", times=6):
        question, answer = conversation.turns
        axis = "x" if "left" in question.text else "y"
        reader = Reader(scene)
        (index,) = reader.things(asked(question.text, templates.WHERE[axis]))
        third = int((reader.x if axis == "x" else reader.y)[index] * 3)
        assert answer.text == (("left", "middle", "right") if axis == "x" else ("top", "middle", "bottom"))[third]
        places[answer.text] += 1
    assert len(places) == 5 and max(places.values()) < 0.32 * places.total()


def test_colors_are_true_and_balanced(scenes):
    colors = Counter()
    for scene, conversation, _ in many(scenes, "vqa", "color", times=6):
        question, answer = conversation.turns
        reader = Reader(scene)
        part, whole = reader.part(asked(question.text, templates.COLOR))
        stuff = {s.name: s.color for s in scene.stuff}
        if whole.removeprefix("the ") in stuff:
            assert answer.text == stuff[whole.removeprefix("the ")]
        else:
            (index,) = reader.things(whole)
            thing = scene.things[index]
            assert answer.text == ({p.name: p.color for p in thing.parts}[part] if part else thing.color)
        colors[answer.text] += 1
    assert set(colors) == set(COLORS) and max(colors.values()) < 0.18 * colors.total()


def test_yes_and_no_are_true_and_even(scenes):
    answers, starts = Counter(), {}
    for scene, conversation, _ in many(scenes, "vqa", "yesno", times=12):
        question, answer = (turn.text for turn in conversation.turns)
        reader, text = Reader(scene), question.removesuffix("?")
        if match := re.fullmatch(r"Are there more (\w+) than (\w+)", text):
            truth = len(reader.noun(match[1])) > len(reader.noun(match[2]))
        elif match := re.fullmatch(r"Is the (.+?) (?:to the )?(left|right|above|below)(?: of)? (the .+)", text):
            truth = len(reader.beside(match[1], match[2], match[3].removeprefix("the "), 0.0)) > 0
        elif match := re.fullmatch(r"Is (the .+) (\w+)", text):
            (index,) = reader.things(match[1])
            truth = scene.things[index].color == match[2]
        else:
            truth = bool(reader.noun(asked(question, templates.EXISTS).split(" ", 1)[1]))
        assert answer == ("yes" if truth else "no"), question
        answers[answer] += 1
        starts.setdefault(question.split()[0], Counter())[answer] += 1
    assert abs(answers["yes"] / answers.total() - 0.5) < 0.06
    assert all(0.3 < counts["yes"] / counts.total() < 0.7 for counts in starts.values()), starts


def test_given_regions_lie_on_what_is_named(scenes):
    kinds, grounded = Counter(), 0
    for _, conversation, regions in many(scenes, "region", times=3):
        question, answer = conversation.turns
        (mention,) = question.mentions
        assert question.text[mention.start : mention.end] in templates.REGION_WORDS
        given = regions[mention.region]
        kinds[given.kind] += 1
        grounded += bool(answer.phrases)
        for phrase in answer.phrases:
            mask = regions[phrase.regions[0]].mask
            if given.kind == "box":
                assert given.bounds == regions[phrase.regions[0]].bounds
            elif given.kind == "mask":
                assert mention.region == phrase.regions[0]
            else:
                points = given.scribble or ((given.point,) if given.point else ())
                assert len(points) in ((1,) if given.kind == "point" else (3, 4, 5))
                assert all(mask[int(y), int(x)] for x, y in points)
    assert set(kinds) == {"point", "box", "scribble", "mask"} == set(KINDS["region"])
    assert 0.35 < grounded / kinds.total() < 0.65


def test_a_point_on_a_thing_lies_in_its_main_part(scenes):
    for scene in scenes:
        conversation, regions = told(scene, "region", "point") or (None, [])
        label = next((r.label for r in regions if r.kind == "mask"), "")
        if conversation is None or " of " in label or not label:
            continue
        x, y = next(r.point for r in regions if r.point)
        leaf = scene.leaves[int(y), int(x)]
        owner = [part.color for thing in scene.things for part in thing.parts if part.leaf == leaf]
        assert not owner or owner[0] in label.split()


def test_conversations_tell_the_truth(scenes):
    answers = Counter()
    for scene, conversation, regions in many(scenes, "grounded_chat"):
        assert len(conversation.turns) in (4, 6)
        first = conversation.turns[1]
        reader = Reader(scene)
        it = -1
        if not conversation.kind.startswith("count"):
            (it,) = reader.things(asked(conversation.turns[0].text, templates.FIND_ONE))
            assert (regions[first.phrases[0].regions[0]].mask == scene.thing_mask(it)).all()
        for question, answer in zip(conversation.turns[2::2], conversation.turns[3::2], strict=True):
            if match := re.search(
                r"(?:there|see) an? (\w+) (?:to the )?(left|right|above|below)(?: of)? it", question.text
            ):
                axis = reader.x if match[2] in ("left", "right") else reader.y
                sign = 1 if match[2] in ("left", "above") else -1
                near = [i for i in reader.noun(match[1]) if i != it and sign * (axis[it] - axis[i]) > 0]
                answers[answer.text.split(",")[0]] += 1
                assert len(near) == (1 if answer.text.startswith("Yes, ") else 0)
                if near:
                    (it,) = near
                    assert (regions[answer.phrases[0].regions[0]].mask == scene.thing_mask(it)).all()
            elif "most" in question.text:
                noun = first.text.rstrip(".").split()[-1]
                side = "left" if "left" in question.text else "right"
                (it,) = reader.things(f"the {side}most {SINGULAR[noun]}")
            elif answer.text.startswith("It is ") and not answer.phrases:
                assert answer.text == f"It is {scene.things[it].color}."
            elif answer.text.startswith("It is on "):
                assert reader.ground(it) == answer.text.rstrip(".").split()[-1]
            else:
                _, color, part = answer.text.rstrip(".").split()
                assert {p.name: p.color for p in scene.things[it].parts}[part] == color
    assert 0.3 < answers["Yes"] / answers.total() < 0.7


def test_evaluation_asks_for_what_is_held_out_and_says_so(scenes):
    unseen = [c for _, c, _ in many(scenes, "referring", "relation") if c.kind == "relation:unseen"]
    assert unseen
    for _, conversation, _ in many(scenes, "referring", "attribute"):
        words = asked(conversation.turns[0].text, templates.FIND_ONE).split()
        assert conversation.kind.endswith(":unseen") == ((words[2], words[1]) in HELD_OUT)
    sample = World(EVAL_SEED_START, split="eval", tasks={"panoptic": 1.0}, turns=1, held_out="require").sample(0)
    assert sample.conversations[0].kind == "all:unseen"
