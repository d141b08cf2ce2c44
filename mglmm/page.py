"""Answers as one HTML page that needs nothing else: hover a phrase to see its mask, click it to switch the mask off.

The page carries its pictures, masks (SVG outlines), style and script, and its own policy forbids it any request.
Text from users and models is escaped everywhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np
from PIL import Image

from mglmm.answer import Answer
from mglmm.badges import POINT_REACH, letter, spots_of
from mglmm.draw import notes_of, prompt_pieces
from mglmm.outline import Frame, Shape, layers_of, shapes_of
from mglmm.palette import Color, ink_on, palette
from mglmm_data.sample import Region

MAX_SIDE = 1600  # longest side of the picture inside the page, px
MANY = 12  # phrases, above which an answer takes the room of two
CRISP = 512  # up to this size pictures are stored without loss

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def answer_page(
    answers: Sequence[tuple[str, Answer]], title: str, regions: Sequence[Sequence[Region]] | None = None
) -> str:
    """The page.

    Args:
        answers: (heading, answer) each; an empty heading is left out.
        title: of the page.
        regions: for every answer, the regions that its user pointed at; None: no regions at all.

    Raises:
        ValueError: `regions` is not of the length of `answers`, or a region is for an image of another size.

    """
    given = [()] * len(answers) if regions is None else list(regions)
    if len(given) != len(answers):
        raise ValueError(f"{len(answers)} answers, but regions for {len(given)}; give one sequence (may be empty) each")
    cards = [_card(heading, answer, own) for (heading, answer), own in zip(answers, given, strict=True)]
    kind = "one" if len(cards) == 1 else "many"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body class="{kind}">\n'
        f"<header><h1>{escape(title)}</h1><p>Hover a phrase to light up its mask, click it to switch the mask off and "
        "on.</p></header>\n<main>\n" + "\n".join(cards) + f"\n</main>\n<script>{_SCRIPT}</script>\n"
        "</body>\n</html>\n"
    )


def _card(heading: str, answer: Answer, regions: Sequence[Region]) -> str:
    frame, colors = Frame(answer.size), palette(len(answer.phrases))
    for index, region in enumerate(regions):
        if tuple(region.size) != answer.size:
            raise ValueError(
                f"region {index} is for an image of {tuple(region.size)}, this one is {answer.size} (H, W)"
            )
    shapes = shapes_of(answer, frame)
    height, width = frame.shape
    spots, letters = spots_of(frame, shapes, regions, max(12, round(13.5 * frame.unit)))
    outlines = [
        f'<path class="mask{"" if layer.shape.is_mask else " box"}{" whole" if layer.whole else ""}" '
        f'data-p="{layer.phrase}" style="--c:{_css(colors[layer.phrase])};--o:{layer.opacity:.2f}" '
        f'd="{_path(layer.shape)}"/>'
        for layer in layers_of(frame, shapes)
    ]
    marks = [
        f'<b class="badge" data-p="{i}" style="--c:{_css(colors[i])};--i:{_css(ink_on(colors[i]))};'
        f'left:{100 * spot.x / width:.2f}%;top:{100 * spot.y / height:.2f}%">{i + 1}</b>'
        for i, items in enumerate(spots)
        for spot in items
    ] + [
        f'<b class="badge given" style="left:{100 * spot.x / width:.2f}%;top:{100 * spot.y / height:.2f}%">'
        f"{letter(i)}</b>"
        for i, spot in enumerate(letters)
    ]
    given = [_given(region, frame) for region in regions]
    leaders = [
        f'<path class="leader" data-p="{i}" style="--c:{_css(colors[i])}" '
        f'd="M{spot.anchor[0]:.1f} {spot.anchor[1]:.1f}L{spot.x:.1f} {spot.y:.1f}"/>'
        for i, items in enumerate(spots)
        for spot in items
        if spot.anchor is not None
    ]
    asked = "".join(
        escape(text) if index is None else f'<b class="chip given">{letter(index)}</b>'
        for text, index in prompt_pieces(answer.prompt.strip(), len(regions))
    )
    said = "".join(
        escape(text) if index is None else _phrase(answer, index, colors[index], bool(shapes[index]))
        for text, index in answer.pieces
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in notes_of(answer))
    return (
        f"<article{' class=wide' if len(answer.phrases) > MANY else ''}>"
        + (f"<h2>{escape(heading)}</h2>" if heading else "")
        + f'<figure style="--ratio:{width / height:.4f}"><img alt="the image that is asked about" '
        f'src="{_picture(answer.image)}">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
        + "".join([*outlines, *given, *leaders])
        + "</svg>"
        + "".join(marks)
        + "</figure><div class=text>"
        + (f"<p class=q>{asked}</p>" if asked else "")
        + f"<p class=a>{said or '<i>(no text)</i>'}</p>"
        + (f"<ul class=notes>{notes}</ul>" if notes else "")
        + "</div></article>"
    )


def _phrase(answer: Answer, index: int, color: Color, drawn: bool) -> str:
    phrase = answer.phrases[index]
    score = f"score {phrase.score:.2f}" if phrase.instances else "no mask"
    number = len(phrase.instances)
    hint = escape(f"{score}, {number} masks" if number > 1 else score, quote=True)
    return (
        f'<button type="button" class="p{"" if drawn else " hollow"}" data-p="{index}" aria-pressed="true" '
        f'title="{hint}" style="--c:{_css(color)};--i:{_css(ink_on(color))}"><b>{index + 1}</b>'
        f"{escape(phrase.text)}</button>"
    )


def _given(region: Region, frame: Frame) -> str:
    """The region that a user pointed at, as SVG with a white and a dashed black line."""
    if region.point is not None:
        x, y = region.point[0] * frame.scale, region.point[1] * frame.scale
        reach = POINT_REACH * frame.unit
        return "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{share * reach:.1f}" fill="{color}"/>'
            for share, color in ((1.0, "#111"), (0.8, "#fff"), (0.5, "#111"), (0.25, "#fff"))
        )
    if region.scribble is not None:
        path = _line(np.array(region.scribble) * frame.scale, closed=False)
    else:
        path = _path(Shape(frame, region.mask if region.kind == "mask" else None, region.box))
    return f'<path class="ground" d="{path}"/><path class="dash" d="{path}"/>'


def _path(shape: Shape) -> str:
    """All outlines of a shape as one SVG path; holes are holes under the even-odd rule."""
    return "".join(_line(_thin(line, 0.4 * shape.frame.unit)) for line in shape.outlines)


def _thin(line: np.ndarray, slack: float) -> np.ndarray:
    """The closed line float[N, 2] with fewer points, nowhere farther than `slack` px from where it was."""
    return cv2.approxPolyDP(line.astype(np.float32).reshape(-1, 1, 2), slack, True).reshape(-1, 2)


def _line(points: np.ndarray, closed: bool = True) -> str:
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points.tolist())
    return f"M{steps}{'Z' if closed else ''}"


def _picture(image: np.ndarray) -> str:
    """uint8[H, W, 3] as a data address: lossless when small, else JPEG of at most `MAX_SIDE` px."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    if max(image.shape[:2]) <= CRISP:
        picture.save(buffer, "PNG")
        kind = "png"
    else:
        picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=90)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _css(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


_STYLE = """
:root{color-scheme:light dark;--bg:#f3f4f7;--card:#fff;--ink:#15161a;--soft:#646a76;--bubble:#eef0f5;--edge:#dfe2e9}
@media(prefers-color-scheme:dark){:root{--bg:#101116;--card:#191b22;--ink:#eceef4;--soft:#9aa1b0;--bubble:#262a34;
--edge:#2c303b}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header{max-width:1500px;margin:0 auto;padding:28px 24px 4px}
h1{font-size:25px;line-height:1.25;margin:0 0 2px;overflow-wrap:anywhere}
header p{margin:0;color:var(--soft);font-size:14px}
main{max-width:1500px;margin:0 auto;padding:16px 24px 48px;display:grid;gap:22px;align-items:start}
.many main{grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr))}
.one main,.one header{max-width:1000px}
@media(min-width:900px){.many .wide{grid-column:span 2}}
article{background:var(--card);border:1px solid var(--edge);border-radius:14px;overflow:hidden}
h2{font-size:15px;margin:0;padding:11px 16px;overflow-wrap:anywhere}
figure{position:relative;margin:0 auto;width:min(100%,calc(82vh*var(--ratio)));aspect-ratio:var(--ratio);
overflow:hidden}
figure img,figure svg{position:absolute;inset:0;width:100%;height:100%;display:block}
path{vector-effect:non-scaling-stroke;stroke-linejoin:round;stroke-linecap:round;fill:none}
.mask{fill:var(--c);fill-opacity:var(--o);fill-rule:evenodd;stroke:var(--c);stroke-width:2;cursor:pointer;
transition:fill-opacity .12s,opacity .12s}
.mask.box{stroke-width:3}
.mask.whole{stroke-width:5}
.leader{stroke:var(--c);stroke-width:2;pointer-events:none}
.ground{stroke:#fff;stroke-width:3.5;pointer-events:none}
.dash{stroke:#111;stroke-width:2.5;stroke-dasharray:7 7;stroke-linecap:butt;pointer-events:none}
.badge{position:absolute;transform:translate(-50%,-50%);min-width:21px;padding:0 5px;border-radius:11px;
text-align:center;font-size:12px;line-height:18px;background:var(--c);color:var(--i);
border:1.5px solid #fff;pointer-events:none;
box-shadow:0 0 2px #0009;transition:opacity .12s}
.given{background:#fff;color:#111;border-color:#111}
.text{padding:14px 16px 16px}
.q{margin:0 0 10px;padding:7px 13px;background:var(--bubble);border-radius:12px;font-weight:600;width:fit-content;
max-width:100%;overflow-wrap:anywhere;white-space:pre-wrap}
.a{margin:0;line-height:2;overflow-wrap:anywhere;white-space:pre-wrap}
.chip{display:inline-block;border:1.5px solid;border-radius:11px;min-width:21px;padding:0 5px;text-align:center;
font-size:12px;line-height:18px}
.p{display:inline;font:inherit;line-height:1.5;font-weight:550;border:0;border-radius:14px;padding:2px 11px 3px 4px;
margin:0;background:var(--c);color:var(--i);cursor:pointer;text-align:left;box-decoration-break:clone;
-webkit-box-decoration-break:clone;white-space:pre-wrap;overflow-wrap:anywhere;transition:opacity .12s}
.p b{display:inline-block;min-width:20px;padding:0 5px;margin-right:6px;border-radius:10px;background:var(--i);
color:var(--c);text-align:center;font-size:12px;line-height:20px;vertical-align:1px}
.p.hollow{background:color-mix(in srgb,var(--c) 14%,transparent);color:var(--ink);outline:1.5px solid var(--c);
outline-offset:-1.5px}
.p.hollow b{background:var(--c);color:var(--i)}
.p[aria-pressed=false]{opacity:.45;text-decoration:line-through}
.p:focus-visible{outline:2px solid var(--ink);outline-offset:2px}
.off{display:none}
.lit .mask,.lit .leader{opacity:.13}
.lit .badge:not(.given){opacity:.15}
.lit .mask.on{opacity:1;fill-opacity:.62;stroke-width:3.5}
.lit .mask.box.on{fill-opacity:.25}
.lit .leader.on,.lit .badge.on:not(.given){opacity:1}
.lit .p:not(.on){opacity:.35}
.notes{margin:10px 0 0;padding:0;list-style:none;color:var(--soft);font-size:13px}
.notes li::before{content:"Note: "}
@media(prefers-reduced-motion:reduce){*{transition:none!important}}
"""

_SCRIPT = """
for (const card of document.querySelectorAll('article')) {
  const of = (phrase) => card.querySelectorAll('[data-p="' + phrase + '"]');
  const light = (phrase) => {
    for (const item of card.querySelectorAll('.on')) item.classList.remove('on');
    card.classList.toggle('lit', phrase !== null);
    if (phrase !== null) for (const item of of(phrase)) item.classList.add('on');
  };
  const toggle = (phrase) => {
    const button = card.querySelector('button[data-p="' + phrase + '"]');
    const shown = button.getAttribute('aria-pressed') !== 'true';
    button.setAttribute('aria-pressed', String(shown));
    for (const item of of(phrase)) if (item !== button) item.classList.toggle('off', !shown);
    light(shown ? phrase : null);
  };
  const phraseAt = (event) => {
    const item = event.target.closest('[data-p]');
    return item ? item.dataset.p : null;
  };
  card.addEventListener('pointerover', (event) => light(phraseAt(event)));
  card.addEventListener('pointerleave', () => light(null));
  card.addEventListener('focusin', (event) => light(phraseAt(event)));
  card.addEventListener('focusout', () => light(null));
  card.addEventListener('click', (event) => {
    const phrase = phraseAt(event);
    if (phrase !== null) toggle(phrase);
  });
}
"""
