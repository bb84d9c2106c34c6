"""A page that shows people what a search found: one HTML file with everything in it, and no script.

Knows pictures and scores; knows nothing of indexes or servers.
"""

from __future__ import annotations

import base64
import io
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.util import find_spec
from pathlib import Path

from .._items import DATA_URI, MAX_FILE_BYTES
from ._outputs import without_controls

PICTURE_PX = 360  # longest side; twice what a card shows, for dense displays


@dataclass(frozen=True)
class Card:
    """A query or a match as people see it."""

    id: str
    text: str = ""
    picture: str = ""  # a data: URI; empty if there is none, or none that can be read
    missing: str = ""  # the picture that cannot be read
    facts: Mapping[str, str] = field(default_factory=dict)


def picture_of(image: str, folder: Path) -> str:
    """Return a data: URI of an image, scaled down where Pillow is installed.

    Parameters
    ----------
    image
        A data: URI, or a path.
    folder
        Where relative paths begin.

    Raises
    ------
    OSError
        It cannot be read.
    """
    if DATA_URI.fullmatch(image):
        return image
    path = folder / image
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        raise OSError(f"{image!r} is no file, or has more than {MAX_FILE_BYTES} bytes")
    data = path.read_bytes()
    kind = mimetypes.guess_type(image)[0] or "application/octet-stream"
    if find_spec("PIL"):
        try:
            data, kind = _scale_down(data), "image/webp"
        except Exception as error:  # Pillow's decoders raise anything
            raise OSError(f"{image!r} cannot be decoded ({error})") from error
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _scale_down(data: bytes) -> bytes:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGBA")
        image.thumbnail((PICTURE_PX, PICTURE_PX))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=82)
    return buffer.getvalue()


def to_html(title: str, facts: Mapping[str, str], results: Iterable[tuple[Card, Sequence[tuple[Card, float]]]]) -> str:
    """Return the page.

    Parameters
    ----------
    title
        What was searched.
    facts
        How: names and values.
    results
        Each query with its matches and their scores, best first; a bar of full length is 1.
    """
    sections = "\n".join(_section(query, matches) for query, matches in results)
    return without_controls(PAGE.format(style=STYLE, title=escape(title), facts=_facts(facts), sections=sections))


def _section(query: Card, matches: Sequence[tuple[Card, float]]) -> str:
    cards = "\n".join(_match(rank, card, score) for rank, (card, score) in enumerate(matches, 1))
    found = f"<ol>\n{cards}\n</ol>" if matches else '<p class="none">Nothing matched.</p>'
    name = escape(query.text) or _breakable(query.id)
    return f'<section>\n<header class="query">{_picture(query)}<h2 dir="auto">{name}</h2></header>\n{found}\n</section>'


def _match(rank: int, card: Card, score: float) -> str:
    length = f"{max(0.0, min(score, 1.0)):.1%}"
    text = f'<p dir="auto" title="{escape(card.text)}">{escape(card.text)}</p>' if card.text else ""
    above, below = (picture, text) if (picture := _picture(card)) else (f'<div class="frame words">{text}</div>', "")
    name = f'<p class="id">{_breakable(card.id)}</p>' if card.id != card.text else ""
    return (
        f'<li>{above}<div class="score"><b>{rank}</b><span class="bar"><i style="width:{length}"></i></span>'
        f'<data value="{score:.6f}">{score:.3f}</data></div>{below}{name}{_facts(card.facts)}</li>'
    )


def _picture(card: Card) -> str:
    if card.missing:
        return f'<div class="frame missing"><p>no picture at {_breakable(card.missing)}</p></div>'
    if not card.picture:
        return ""
    alt = escape(card.text or card.id)
    return f'<div class="frame"><img src="{escape(card.picture)}" alt="{alt}" loading="lazy" decoding="async"></div>'


def _breakable(path: str) -> str:
    """Escape a path, which may break after its separators."""
    return escape(path).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _facts(facts: Mapping[str, str]) -> str:
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{pairs}</dl>" if pairs else ""


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header class="page"><h1>{title}</h1>{facts}</header>
<main>
{sections}
</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --paper: #f6f5f2; --card: #fff; --ink: #1d1c1a; --soft: #6d6a64; --line: #e3e0da;
  --well: #efede8; --bar: #2f6f4f; }
@media (prefers-color-scheme: dark) { :root { --paper: #161614; --card: #20201d; --ink: #eceae4; --soft: #9d998f;
  --line: #33322d; --well: #2a2a26; --bar: #7cc79d; } }
* { box-sizing: border-box; margin: 0; }
body { background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; max-width: 1440px;
  margin: auto; padding: clamp(16px, 4vw, 48px); }
h1, h2, p, dd { overflow-wrap: anywhere; min-width: 0; }
h1 { font-size: 1.05rem; font-weight: 600; }
h2 { font-size: 1.5rem; font-weight: 600; line-height: 1.25; }
dl { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: .8rem; color: var(--soft); }
dl div { display: flex; gap: .4em; min-width: 0; }
dt::after { content: ":"; }
dd { color: var(--ink); }
.page { border-bottom: 1px solid var(--line); padding-bottom: 16px; }
.page dl { margin-top: 6px; font-size: .875rem; }
section { padding: 28px 0; border-bottom: 1px solid var(--line); }
section:last-child { border: 0; }
.query { display: flex; align-items: center; gap: 18px; margin-bottom: 18px; }
.query .frame { width: 104px; flex: none; }
ol { list-style: none; padding: 0; display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(168px, 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 10px; min-width: 0;
  display: flex; flex-direction: column; gap: 8px; }
.frame { aspect-ratio: 1; background: var(--well); border-radius: 8px; overflow: hidden; display: grid;
  place-items: center; }
.frame img { width: 100%; height: 100%; object-fit: contain; }
.words { padding: 12px; }
.words p { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 6; overflow: hidden; }
.missing { color: var(--soft); font-size: .8rem; padding: 12px; text-align: center; }
.score { display: flex; align-items: center; gap: 8px; font-variant-numeric: tabular-nums; }
.score b { color: var(--soft); font-weight: 600; min-width: 1.2em; }
.score data { font-weight: 600; }
.bar { flex: 1; height: 6px; border-radius: 3px; background: var(--well); overflow: hidden; }
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--bar); }
.id { color: var(--soft); font-size: .8rem; }
.none { color: var(--soft); }
@media (max-width: 460px) { ol { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  h2 { font-size: 1.25rem; } .query .frame { width: 72px; } }
"""
