"""The tasks of the world by name, their kinds, and `write`, which makes one conversation about a scene."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from numpy.random import Generator

from mglmm_data.sample import Conversation, Region
from mglmm_data.world import chat, expressions, grounded, questions
from mglmm_data.world.draft import Draft, finish
from mglmm_data.world.scene import Scene
from mglmm_data.world.view import Target, View, order

Task = Callable[[View, Generator, str], Draft | None]

TASKS: dict[str, Task] = {
    "panoptic": grounded.panoptic,
    "fine": grounded.fine,
    "referring": grounded.referring,
    "absent": grounded.nothing,
    "several": grounded.several,
    "reasoning": grounded.reasoning,
    "grounded_chat": chat.grounded_chat,
    "caption": questions.caption,
    "vqa": questions.vqa,
    "region": questions.region,
    "box": grounded.box,
}
_EXPRESSIONS: dict[str, float] = dict(zip(expressions.KINDS, expressions.KIND_WEIGHTS, strict=True))
_SEVERAL: dict[str, float] = {"one_phrase": 0.6, "phrases": 0.4}
KINDS: dict[str, dict[str, float]] = {
    "panoptic": {"all": 1.0},
    "fine": {"attribute": 0.5, "ordinal": 0.5},
    "referring": _EXPRESSIONS,
    "absent": {**_EXPRESSIONS, **_SEVERAL},
    "several": _SEVERAL,
    "reasoning": {"present": 0.76, "absent": 0.24},  # comes out even: fewer scenes have the first
    "grounded_chat": {"color": 0.35, "neighbor": 0.4, "count": 0.25},
    "caption": {"short": 1.0},
    "vqa": {"count": 0.25, "color": 0.25, "where": 0.25, "yesno": 0.25},
    "region": {"point": 0.25, "box": 0.25, "scribble": 0.25, "mask": 0.25},
    "box": _EXPRESSIONS,
}
"""Task -> its kinds and how often each is tried first. `absent` draws its family first, see `write`."""

SEVERAL_SHARE = 0.3
"""Share of `absent` that is worded as `several`, the rest as `referring`."""


def write(
    scene: Scene | View,
    task: str,
    rng: Generator,
    regions: list[Region],
    *,
    kind: str = "",
    drawn: dict[Target, int] | None = None,
    allow_unseen: bool = True,
    several_share: float = SEVERAL_SHARE,
    kinds: Mapping[str, Mapping[str, float]] = KINDS,
    named: bool = False,
) -> Conversation | None:
    """One conversation about a scene.

    Args:
        scene: a scene, or a view of it when several conversations are written (then `allow_unseen` is the view's).
        task: a name of `TASKS`.
        rng: where every choice comes from.
        regions: the sample's regions; those the conversation needs are appended.
        kind: a name of `KINDS[task]`; without one, kinds are tried in random order.
        drawn: targets that already have their mask in `regions` -> its index; extended, so that no mask is made twice.
        allow_unseen: whether held-out pairs and relations may be asked for.
        several_share: share of `absent` that is worded as `several`; for 50:50 in both families, the share of
            `several` among `several` and `referring`, with `absent` as frequent as the two together.
        kinds: task -> its kinds and how often each is tried first, where `kind` names none; see `KINDS`.
        named: whether the names of things in a question ("the dog left of the red ball") are grounded, too.

    Returns:
        The conversation with its task and kind (with ":unseen" where something held out is involved); None if the
        scene has none.

    Raises:
        ValueError: the task or the kind is unknown.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} is unknown; use one of {', '.join(TASKS)}")
    if kind and kind not in KINDS[task]:
        raise ValueError(f"task {task} has no kind {kind!r}; use one of {', '.join(KINDS[task])}")
    view = scene if isinstance(scene, View) else View(scene, allow_unseen=allow_unseen)
    if not view.things:
        return None
    tried = {kind: 1.0} if kind else kinds[task]
    if task == "absent" and not kind:
        family = _SEVERAL if rng.random() < several_share else _EXPRESSIONS
        tried = {name: weight for name, weight in tried.items() if name in family}
    for name in order(rng, tuple(tried), tuple(tried.values())):
        draft = TASKS[task](view, rng, name)
        if draft is not None:
            return finish(view, task, draft, regions, {} if drawn is None else drawn, named)
    return None
