"""Make the demonstration's data set: emoji pictures with their names and keywords in twenty languages.

The pictures are the colour bitmaps of Noto Color Emoji, the texts are Unicode CLDR's annotations; both are Debian
packages. This module knows what training may see and what it may not; it knows nothing of models or tokens.

    python -m demo.build --output DIR [--seed 0]

A symbol's id is its code points in hexadecimal, joined by dashes: `1f34e`. Files are JSON Lines, and image paths are
relative to the file's folder:

    images/ID.png           64 x 64 RGB, the glyph on white: the only pictures that training sees
    augmented/KIND/ID.png   the same glyphs as training never sees them
    train.jsonl             {"anchor": SIDE, "positive": SIDE, "group": ID}; a SIDE is a text or {"image": PATH}
    validation.jsonl        the same with held-out names, to watch the loss
    tokenizer_corpus.txt    a training text per line
    eval/images.jsonl       the gallery: {"id": ID, "image": PATH}
    eval/*.jsonl            queries: {"id": ID, "language": CODE, "text": TEXT}, or images as in the gallery
    manifest.json           seed, sources, licences, counts, and what was left out

What is held out is held out as a text, whatever its language, because a text does not tell its language: where "taxi"
is held out for a symbol in German, it is held out for that symbol in French, too, and as a keyword. Texts are equal
where only capitals or commas differ. In `eval/keywords_heldout.jsonl` a keyword may have several symbols, and then "id"
is a list; such a keyword is held out with all of them, so that no right answer was seen.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import struct
import sys
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import PIL
from PIL import Image, features

from demo.render_images import FONT, font, render

CLDR = Path("/usr/share/unicode/cldr/common")
INSTALL = "sudo apt-get install fonts-noto-color-emoji unicode-cldr-core"

# Complete in CLDR 41, of fourteen families in ten scripts.
TRAINED = ["en", "de", "fr", "es", "pl", "ru", "el", "tr", "fi", "id", "vi", "ar", "hi", "bn", "th", "zh", "ja", "ko"]
# Ukrainian is the near one: Russian is trained, with the same script and many of the same roots. Persian is the far
# one: Arabic is trained, with the same script and some loanwords, but of another family.
HELD_OUT = ["uk", "fa"]

GLYPH_PX = 136  # the wider side of the font's bitmaps
IMAGE_PX = 64  # 2 x 2 visual tokens for a model with patches of 16 pixels, merged by 2
LARGE_PX = 96
WHITE = (255, 255, 255)
BACKGROUNDS = [(255, 236, 179), (187, 222, 251), (200, 230, 201), (225, 190, 231), (96, 96, 96), (255, 171, 145)]
KINDS = ("background", "rotation", "small", "large")  # of augmentations, of the same symbols each
NUM_AUGMENTED = 400  # symbols

NAMES_HELD_OUT = 0.2  # of the trained languages' names
VALIDATION = 0.1  # of the held-out names
KEYWORDS_HELD_OUT = 0.1  # of the keywords with few symbols
MAX_SYMBOLS = 3  # of a keyword that is held out: "animal" has no right answer
NAME_PARTNERS = 1  # rows (name, name in another language) per training name
KEYWORD_ROWS = 2  # rows (keywords, image) per symbol and language
MAX_JOINED = 3  # keywords in one text

Pair = tuple[str, str]  # symbol id, language
Row = dict[str, Any]


class BuildError(Exception):
    """The data set cannot be made; the message says how it can."""


def same(text: str) -> str:
    """Give what two texts share that count as the same."""
    return text.casefold().replace(",", "")


def read_annotations(language: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Read the names and keywords of one language from CLDR, by glyph without variation selectors."""
    names, keywords = {}, {}
    for folder in ("annotations", "annotationsDerived"):
        path = CLDR / folder / f"{language}.xml"
        if not path.is_file():
            raise BuildError(f"{str(path)!r} is missing, which holds the names in {language!r}. Run `{INSTALL}`.")
        for entry in ElementTree.parse(path).getroot().iter("annotation"):
            text = unicodedata.normalize("NFC", entry.text or "").strip()
            glyph = entry.attrib["cp"].replace("\ufe0f", "")
            if "↑↑↑" in text or not text:  # inherited from a locale that none of these languages has
                continue
            if entry.get("type") == "tts":
                names[glyph] = text
            else:
                keywords[glyph] = [keyword for part in text.split("|") if (keyword := part.strip())]
    return names, keywords


def unwanted(glyph: str) -> str | None:
    """Say why a glyph is no symbol of its own by its code points alone."""
    if re.search("[\U0001f3fb-\U0001f3ff]", glyph):
        return "skin tones"
    if re.search("[\U0001f1e6-\U0001f1ff\U000e0020-\U000e007f]", glyph):
        return "flags of countries and regions"
    if re.search("[\u20e3\U0001f51f]", glyph):
        return "keycaps"
    if re.fullmatch("[\U0001f9b0-\U0001f9b3]", glyph):
        return "hair components"
    return None


def on_background(glyph: Image.Image, side_px: int, colour: tuple[int, int, int] = WHITE) -> Image.Image:
    """Put a transparent square picture on a colour, and fit it into a square of `side_px` pixels."""
    picture = Image.new("RGBA", glyph.size, (*colour, 255))
    picture.alpha_composite(glyph)
    return picture.convert("RGB").resize((side_px, side_px), Image.Resampling.LANCZOS)


def find_symbols(glyphs: Iterable[str], left_out: Counter[str]) -> dict[str, str]:
    """Give the glyphs that the font draws as one picture of their own, by symbol id.

    Parameters
    ----------
    glyphs : iterable of str
        What has a name.
    left_out : Counter
        Receives how many were left out, by reason.
    """
    one_px = font().getlength("\U0001f34e")  # all glyphs are equally wide
    symbols: dict[str, str] = {}
    seen: set[bytes] = set()
    for glyph in sorted(glyphs, key=lambda glyph: (len(glyph), glyph)):  # of identical pictures the simplest stays
        reason = unwanted(glyph)
        if not reason and font().getlength(glyph) != one_px:
            reason = "not one glyph"
        if not reason:
            picture = render(glyph, GLYPH_PX)
            pixels = on_background(picture, IMAGE_PX).tobytes()
            if picture.getbbox() is None:
                reason = "not drawn by the font"
            elif pixels in seen:
                reason = "drawn like another symbol"
            seen.add(pixels)
        if reason:
            left_out[reason] += 1
        else:
            symbols["-".join(f"{ord(character):x}" for character in glyph)] = glyph
    return symbols


def augment(glyph: str, kind: str, draw: random.Random) -> Image.Image:
    """Draw a glyph as training never sees it; `kind` is one of KINDS."""
    if kind == "background":
        return on_background(render(glyph, GLYPH_PX), IMAGE_PX, draw.choice(BACKGROUNDS))
    if kind == "rotation":
        angle = draw.choice((-1, 1)) * draw.uniform(15, 30)  # degrees
        picture = render(glyph, 2 * GLYPH_PX).rotate(angle, Image.Resampling.BICUBIC)
        left, top, right, bottom = picture.getbbox() or (0, 0, *picture.size)
        reach = max(GLYPH_PX - left, GLYPH_PX - top, right - GLYPH_PX, bottom - GLYPH_PX, GLYPH_PX // 2)
        crop = picture.crop((GLYPH_PX - reach, GLYPH_PX - reach, GLYPH_PX + reach, GLYPH_PX + reach))  # nothing cut off
        return on_background(crop, IMAGE_PX)
    if kind == "small":
        return on_background(render(glyph, 2 * GLYPH_PX), IMAGE_PX)
    return on_background(render(glyph, GLYPH_PX), LARGE_PX)


@dataclass(frozen=True)
class Texts:
    """All texts, split into what training sees and what it does not."""

    names: dict[Pair, str]
    keywords: dict[Pair, list[str]]
    validation: dict[Pair, str]
    heldout_names: dict[Pair, str]
    heldout_keywords: list[Row]
    heldout: set[tuple[str, str]]  # symbol id, same(text)


def split(names: Mapping[Pair, str], keywords: Mapping[Pair, list[str]], named: set[Pair], seed: int) -> Texts:
    """Hold out names and keywords.

    Parameters
    ----------
    names : mapping of (symbol id, language) to str
        The unambiguous names of the trained languages.
    keywords : mapping of (symbol id, language) to list of str
        None of which is a name of its symbol.
    named : set of (symbol id, same(text))
        All names, the ambiguous ones too.
    seed : int
        Of the draws.
    """
    units: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for pair, name in names.items():
        units[pair[0], same(name)].append(pair)
    order = sorted(units)
    remaining = Counter(symbol for symbol, _ in order)
    random.Random(f"{seed} names").shuffle(order)
    drawn: list[Pair] = []
    heldout = set()
    for unit in order:
        if len(drawn) >= NAMES_HELD_OUT * len(names):
            break
        if remaining[unit[0]] > 1:  # every symbol keeps a name
            remaining[unit[0]] -= 1
            heldout.add(unit)
            drawn += units[unit]
    watched = {(symbol, same(names[symbol, language])) for symbol, language in drawn[: round(VALIDATION * len(drawn))]}
    of_keyword: dict[str, set[str]] = defaultdict(set)
    for (symbol, _), texts in keywords.items():
        for text in texts:
            of_keyword[same(text)].add(symbol)
    all_names = {name for _, name in named}
    few = sorted(key for key, having in of_keyword.items() if len(having) <= MAX_SYMBOLS and key not in all_names)
    random.Random(f"{seed} keywords").shuffle(few)
    chosen = set(few[: round(KEYWORDS_HELD_OUT * len(few))])
    heldout |= {(symbol, key) for key in chosen for symbol in of_keyword[key]}
    queries = {
        (language, text): sorted(of_keyword[same(text)])
        for (_, language), texts in keywords.items()
        for text in texts
        if same(text) in chosen
    }
    return Texts(
        names={pair: name for pair, name in names.items() if (pair[0], same(name)) not in heldout},
        keywords={
            pair: [text for text in texts if (pair[0], same(text)) not in heldout] for pair, texts in keywords.items()
        },
        validation={pair: names[pair] for pair in sorted(drawn) if (pair[0], same(names[pair])) in watched},
        heldout_names={pair: names[pair] for pair in sorted(drawn) if (pair[0], same(names[pair])) not in watched},
        heldout_keywords=[
            {"id": having[0] if len(having) == 1 else having, "language": language, "text": text}
            for (language, text), having in sorted(queries.items())
        ],
        heldout=heldout,
    )


def image(symbol: str) -> dict[str, str]:
    """Name a symbol's picture as one side of a row."""
    return {"image": f"images/{symbol}.png"}


def training_rows(texts: Texts, seed: int) -> dict[str, list[Row]]:
    """Pair pictures, names and keywords, by kind of row."""
    draw = random.Random(f"{seed} rows")
    rows: dict[str, list[Row]] = {"image, name": [], "name, name": [], "keywords, image": []}
    of_symbol: dict[str, list[str]] = defaultdict(list)
    for (symbol, _), name in texts.names.items():
        of_symbol[symbol].append(name)
    for (symbol, _), name in texts.names.items():
        rows["image, name"].append({"anchor": image(symbol), "positive": name, "group": symbol})
        partners = [other for other in of_symbol[symbol] if same(other) != same(name)]
        for partner in draw.sample(partners, min(NAME_PARTNERS, len(partners))):
            rows["name, name"].append({"anchor": name, "positive": partner, "group": symbol})
    for (symbol, _), keywords in texts.keywords.items():
        joined = set()
        for _ in range(KEYWORD_ROWS if keywords else 0):
            chosen = draw.sample(keywords, draw.randint(1, min(MAX_JOINED, len(keywords))))
            joined.add(draw.choice((", ", " ")).join(chosen))
        for text in sorted(joined):
            if (symbol, same(text)) not in texts.heldout:
                rows["keywords, image"].append({"anchor": text, "positive": image(symbol), "group": symbol})
    return rows


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write JSON Lines."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def versions() -> dict[str, Row]:
    """Say what the pictures and texts are made from, by the files themselves."""
    data = FONT.read_bytes()
    tables = (
        struct.unpack_from(">4s4xI", data, 12 + 16 * index) for index in range(struct.unpack_from(">H", data, 4)[0])
    )
    revision = struct.unpack_from(">I", data, dict(tables)[b"head"] + 4)[0] / 65536  # fixed point, 16.16
    found = re.search(r'cldrVersion CDATA #FIXED "([^"]+)"', (CLDR / "dtd/ldml.dtd").read_text(encoding="utf-8"))
    return {
        "Noto Color Emoji": {"version": f"{revision:.3f}", "licence": "OFL-1.1", "package": "fonts-noto-color-emoji"},
        "Unicode CLDR": {
            "version": found[1] if found else "unknown",
            "licence": "Unicode-DFS-2016",
            "package": "unicode-cldr-core",
        },
        "Pillow": {"version": PIL.__version__, "raqm": features.version("raqm")},
    }


def build(output: Path, seed: int = 0) -> dict[str, Any]:
    """Make the data set in a folder that must be new or empty, and give its manifest.

    Raises
    ------
    BuildError
        If the folder is not empty, or a Debian package is missing.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise BuildError(
            f"{str(output)!r} is not an empty folder, and nothing is overwritten. Remove it or name another."
        )
    if not FONT.is_file():
        raise BuildError(f"{str(FONT)!r} is missing, which holds the pictures. Run `{INSTALL}`.")
    left_out: Counter[str] = Counter()
    read = {language: read_annotations(language) for language in [*TRAINED, *HELD_OUT]}
    symbols = find_symbols(read["en"][0], left_out)
    names: dict[Pair, str] = {}
    keywords: dict[Pair, list[str]] = {}
    for language, (language_names, language_keywords) in read.items():
        own = {symbol: language_names[glyph] for symbol, glyph in symbols.items() if glyph in language_names}
        left_out["names missing in CLDR"] += len(symbols) - len(own)
        times = Counter(map(same, own.values()))
        names |= {(symbol, language): name for symbol, name in own.items() if times[same(name)] == 1}
        left_out["names of several symbols in one language"] += sum(count for count in times.values() if count > 1)
        keywords |= {(symbol, language): language_keywords.get(glyph, []) for symbol, glyph in symbols.items()}
    named = {
        (symbol, same(language_names[glyph]))
        for language, (language_names, _) in read.items()
        for symbol, glyph in symbols.items()
        if language in TRAINED and glyph in language_names
    }
    texts = split(
        {pair: name for pair, name in names.items() if pair[1] in TRAINED},
        {
            (symbol, language): [text for text in dict.fromkeys(words) if (symbol, same(text)) not in named]
            for (symbol, language), words in keywords.items()
            if language in TRAINED
        },
        named,
        seed,
    )
    rows = training_rows(texts, seed)
    sides = [(row["group"], row[side]) for kind in rows.values() for row in kind for side in ("anchor", "positive")]
    known = {(symbol, same(side)) for symbol, side in sides if isinstance(side, str)}
    known |= {(symbol, same(text)) for (symbol, _), words in texts.keywords.items() for text in words}
    new = {pair: name for pair, name in names.items() if pair[1] in HELD_OUT}
    left_out["names of new languages that training has in another"] = sum(
        (s, same(t)) in known for (s, _), t in new.items()
    )
    queries = {
        "names_seen": texts.names,
        "names_heldout": texts.heldout_names,
        "names_new_languages": {pair: name for pair, name in new.items() if (pair[0], same(name)) not in known},
    }
    manifest = {
        "seed": seed,
        "sources": versions(),
        "languages": {"trained": TRAINED, "held out": HELD_OUT},
        "symbols": len(symbols),
        "augmented symbols per kind": min(NUM_AUGMENTED, len(symbols)),
        "training rows": {kind: len(found) for kind, found in rows.items()},
        "validation rows": len(texts.validation),
        "queries": {name: len(found) for name, found in queries.items()}
        | {"keywords_heldout": len(texts.heldout_keywords)},
        "left out": dict(sorted(left_out.items())),
    }

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        folder = Path(temporary) / "data"  # becomes the output when it is complete
        (folder / "images").mkdir(parents=True)
        for symbol, glyph in symbols.items():
            on_background(render(glyph, GLYPH_PX), IMAGE_PX).save(folder / "images" / f"{symbol}.png")
        shuffled = [row for kind in rows.values() for row in kind]
        random.Random(f"{seed} order").shuffle(shuffled)
        write(folder / "train.jsonl", shuffled)
        write(
            folder / "validation.jsonl",
            (
                {"anchor": name, "positive": image(symbol), "group": symbol}
                for (symbol, _), name in texts.validation.items()
            ),
        )
        corpus = [*texts.names.values(), *(text for words in texts.keywords.values() for text in words)]
        (folder / "tokenizer_corpus.txt").write_text("".join(f"{text}\n" for text in corpus), encoding="utf-8")
        write(folder / "eval/images.jsonl", ({"id": symbol, "image": f"../images/{symbol}.png"} for symbol in symbols))
        for name, found in queries.items():
            write(
                folder / f"eval/{name}.jsonl",
                ({"id": symbol, "language": language, "text": text} for (symbol, language), text in found.items()),
            )
        write(folder / "eval/keywords_heldout.jsonl", texts.heldout_keywords)
        draw = random.Random(f"{seed} augmentations")
        augmented = sorted(draw.sample(sorted(symbols), min(NUM_AUGMENTED, len(symbols))))
        for kind in KINDS:
            (folder / "augmented" / kind).mkdir(parents=True)
            for symbol in augmented:
                augment(symbols[symbol], kind, draw).save(folder / "augmented" / kind / f"{symbol}.png")
            write(
                folder / f"eval/images_{kind}.jsonl",
                ({"id": symbol, "image": f"../augmented/{kind}/{symbol}.png"} for symbol in augmented),
            )
        (folder / "manifest.json").write_text(
            json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
        folder.rename(output)
    return manifest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the demonstration's data set.")
    parser.add_argument("--output", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=0, help="of the splits and draws (default: 0)")
    arguments = parser.parse_args()
    try:
        manifest = build(arguments.output, arguments.seed)
    except BuildError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(manifest, ensure_ascii=False, indent=2))
