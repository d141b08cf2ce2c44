"""The bundled model means what it says, on fixed scenes that it has never seen; random weights pass none of this."""

import numpy as np
import pytest

from mglmm.build import ModelConfig, build
from mglmm.config import load_config
from mglmm.eval.grounding import Grounding
from mglmm.eval.protocol import Item
from mglmm.eval.text import words
from mglmm.eval.world import VOCABULARY
from mglmm.grounder import Grounder
from mglmm_data import masks
from mglmm_data.sample import Region, Sample
from mglmm_data.world.scene import make_scene
from mglmm_data.world.tasks import write
from mglmm_data.world.vocabulary import CATEGORIES

SIZE = 192
WHOLE = (16_000_003, 16_000_010, 16_000_012)
"""Scenes whose every object and ground is to be named and masked, and nothing else."""
PRESENT_OR_ABSENT = (16_000_001, 16_000_002, 16_000_003)
SWAPPED = (16_000_000, 16_000_001, 16_000_002)


@pytest.fixture(scope="module")
def bundled():
    return Grounder.load()


@pytest.fixture(scope="module")
def random():
    return Grounder(*build(load_config(ModelConfig, "configs/model/bundled.yaml"), seed=0))


def question(seed: int, task: str, kind: str) -> Item:
    """A question of a task about the scene of a seed, with the true answer."""
    scene, regions = make_scene(seed, SIZE, held_out="allow"), []
    told = write(scene, task, np.random.default_rng(seed), regions, kind=kind)
    assert told is not None, f"scene {seed} has no {task} of kind {kind}"
    return Item(Sample(scene.image, tuple(regions), (told,), id=f"world-{seed}"), told)


def names_and_masks_all(grounder: Grounder, seed: int) -> bool:
    """A panoptic answer has a mask of IoU >= 0.5 with the right noun for every object, and no phrase without one."""
    item = question(seed, "panoptic", "all")
    metric = Grounding(VOCABULARY)
    metric.update(item, grounder.predict([item.query])[0])
    scores = metric.compute()
    return scores["recall_noun@0.5"] == 1 and scores["invented"] == 0


def tells_present_from_absent(grounder: Grounder, seed: int) -> bool:
    """What is there gets its mask, what is not is refused, in questions of one wording."""
    there, missing = (question(seed, task, "attribute") for task in ("referring", "absent"))
    found, refused = grounder.predict([there.query, missing.query])
    said = [i.mask for p in found.phrases for i in p.instances if i.mask is not None]
    if not said or any(phrase.instances for phrase in refused.phrases) or "no" not in refused.text:
        return False
    (index,) = {region for phrase in there.gold.phrases for region in phrase.regions}
    gold, mask = there.sample.regions[index].mask, np.logical_or.reduce(said)
    return bool((gold & mask).sum() > 0.5 * (gold | mask).sum())


def name_follows_region(grounder: Grounder, seed: int) -> bool:
    """The same question about two things of different kinds, each in its box: two names, and each the right one."""
    scene = make_scene(seed, SIZE, held_out="allow")
    first = scene.things[0].category
    other = next(i for i, thing in enumerate(scene.things) if thing.category != first)
    boxes = [masks.box_of(scene.thing_mask(i)) for i in (0, other)]
    asked = [(scene.image, "What is this region?", [Region(size=(SIZE, SIZE), box=box)]) for box in boxes]
    said = [{noun for noun in CATEGORIES if noun in words(answer.text)} for answer in grounder.ask_many(asked)]
    return said == [{first}, {scene.things[other].category}]


CASES = [
    *((names_and_masks_all, seed) for seed in WHOLE),
    *((tells_present_from_absent, seed) for seed in PRESENT_OR_ABSENT),
    *((name_follows_region, seed) for seed in SWAPPED),
]


@pytest.mark.parametrize(("check", "seed"), CASES)
def test_meaning(bundled, random, check, seed):
    assert check(bundled, seed)
    assert not check(random, seed)
