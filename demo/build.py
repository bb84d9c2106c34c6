"""Make the demonstration's data set: emoji pictures with their names and keywords in twenty languages.

The pictures are the colour bitmaps of Noto Color Emoji, the texts are the annotations of Unicode CLDR; both are Debian
packages. This module knows what training may see and what it may not; it knows nothing of models or tokens.

    python -m demo.build --output DIR [--seed 0] [--languages en de ...]

A symbol's id is its code points in hexadecimal, joined by dashes: `1f34e`. Files are JSON Lines, and image paths are
relative to the file's folder:

    images/ID.png             64 x 64 RGB, the glyph on white: the only pictures that training sees
    augmented/KIND/ID.png     glyphs as training never sees them
    train.jsonl               {"anchor": SIDE, "positive": SIDE, "group": ID}; a SIDE is a text, {"image": PATH}, or
                              {"text": TEXT, "instruction": TEXT} of keywords that search for an image
    validation.jsonl          the same with held-out names, to watch the loss
    tokenizer_corpus.txt      a training text per line: all names and keywords that are not held out
    eval/images.jsonl         {"id": ID, "image": PATH}: the gallery, every symbol
    eval/images_KIND.jsonl    {"id": ID, "image": PATH}: queries
    eval/names.jsonl          {"id": ID, "language": CODE, "text": TEXT}: the gallery of trained languages, seen or not
    eval/names_*.jsonl        the same: queries
    eval/images_named.jsonl   {"id": ID, "image": PATH}: queries, the symbols with a held-out name
    eval/names_to_find.jsonl  their gallery: eval/names.jsonl, where names that training saw have the id "seen"
    eval/keywords_*.jsonl     the same, where "id" is a list if the keyword has several symbols
    manifest.json             seed, sources, licences, counts, and what was left out

A text does not tell its language, so what is held out is held out as a text of its symbol: with "taxi" in German goes
"taxi" in French, and the keyword "taxi". Texts that differ in capitals or commas alone are the same. A held-out keyword
is held out with all of its symbols, so that no right answer was seen. A name of a new language is left out where
training has the same text with the same symbol. Two languages may give one name to two symbols ("kot" is a cat in
Polish and jeans in Turkish): rare, and each row keeps its own symbol.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import struct
import sys
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import PIL
from PIL import features

from demo.paths import local_path
from demo.render_images import FONT
from demo.symbols import KINDS, augmented_picture, find_symbols, training_picture

CLDR = Path("/usr/share/unicode/cldr/common")
INSTALL = "sudo apt-get install fonts-noto-color-emoji unicode-cldr-core"

# Complete in CLDR 41; ten scripts, and families from Germanic to Austroasiatic.
TRAINED = ["en", "de", "fr", "es", "pl", "ru", "el", "tr", "fi", "id", "vi", "ar", "hi", "bn", "th", "zh", "ja", "ko"]
# Ukrainian is the near one: Russian is trained, with the same script and many of the same roots. Persian is the far
# one: Arabic is trained, with the same script and some loanwords, but of another family.
HELD_OUT = ["uk", "fa"]

NAMES_HELD_OUT = 0.2  # of the trained languages' names
VALIDATION = 0.1  # of the held-out names
KEYWORDS_HELD_OUT = 0.1  # of the keywords with few symbols
MAX_SYMBOLS = 3  # of a keyword that is held out: "animal" has no right answer
NAME_IMAGES = 3  # rows (image, name) per training name, all alike
NAME_PARTNERS = 4  # rows (name, name in another language) per training name
KEYWORD_IMAGES = 3  # rows (keywords, image) per symbol and language
KEYWORD_NAMES = 5  # rows (keywords, name in any language) per symbol and language
MAX_JOINED = 3  # keywords in one such row
QUERY_INSTRUCTION = "Retrieve images or text relevant to the user's query."  # the client's own, of queries
NUM_AUGMENTED = 400  # symbols, the same ones in every kind of augmentation

Pair = tuple[str, str]  # symbol id, language
Unit = tuple[str, str]  # symbol id, same(text)
Row = dict[str, Any]


class BuildError(Exception):
    """The data set cannot be made; the message says the cure."""


def same(text: str) -> str:
    """Give what texts have in common that count as the same."""
    return text.casefold().replace(",", "")


def read_annotations(language: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Read the names and keywords of one language from CLDR, by glyph without variation selectors."""
    names, keywords = {}, {}
    for folder in ("annotations", "annotationsDerived"):
        for entry in ElementTree.parse(CLDR / folder / f"{language}.xml").iter("annotation"):
            text = unicodedata.normalize("NFC", entry.text or "").strip()
            glyph = entry.attrib["cp"].replace("\ufe0f", "")
            if "↑↑↑" in text:  # inherited, and these languages inherit from nobody who has names
                continue
            if entry.get("type") == "tts":
                names[glyph] = text
            else:
                keywords[glyph] = [keyword.strip() for keyword in text.split("|")]
    return names, keywords


def hold_out_names(names: Mapping[Pair, str], seed: int) -> list[Unit]:
    """Draw the names that training does not see, in the order of the draw.

    Of several languages, every symbol keeps a name that training sees; of one language there is no other to keep.
    """
    kept = 1 if len({language for _, language in names}) > 1 else 0
    times = Counter((symbol, same(name)) for (symbol, _), name in names.items())
    remaining = Counter(symbol for symbol, _ in times)
    units = sorted(times)
    random.Random(f"{seed} names").shuffle(units)
    drawn: list[Unit] = []
    missing = NAMES_HELD_OUT * len(names)
    for symbol, text in units:
        if missing > 0 and remaining[symbol] > kept:
            remaining[symbol] -= 1
            missing -= times[symbol, text]
            drawn.append((symbol, text))
    return drawn


def hold_out_keywords(keywords: Mapping[Pair, list[str]], names: set[str], seed: int) -> dict[str, list[str]]:
    """Draw the keywords that training does not see, with all of their symbols.

    Parameters
    ----------
    keywords : mapping
        From (symbol id, language) to texts.
    names : set
        Of same(name), which are not drawn.
    seed : int
        Of the draw.
    """
    symbols: dict[str, set[str]] = defaultdict(set)
    for (symbol, _), texts in keywords.items():
        for text in texts:
            symbols[same(text)].add(symbol)
    few = sorted(text for text in symbols.keys() - names if len(symbols[text]) <= MAX_SYMBOLS)
    drawn = random.Random(f"{seed} keywords").sample(few, round(KEYWORDS_HELD_OUT * len(few)))
    return {text: sorted(symbols[text]) for text in drawn}


def side(symbol: str) -> dict[str, str]:
    """Give a symbol's picture as one side of a row."""
    return {"image": f"images/{symbol}.png"}


def training_rows(
    names: Mapping[Pair, str], keywords: Mapping[Pair, list[str]], held_out: set[Unit], seed: int
) -> dict[str, list[Row]]:
    """Pair pictures, names and keywords, by kind of row; joined keywords that spell a held-out text are no row."""
    draw = random.Random(f"{seed} rows")
    rows: dict[str, list[Row]] = {
        kind: [] for kind in ("image, name", "name, name", "keywords, image", "keywords, name")
    }
    of_symbol: dict[str, list[str]] = defaultdict(list)
    for (symbol, _), name in names.items():
        of_symbol[symbol].append(name)

    def joined(symbol: str, texts: list[str], times: int) -> list[str]:
        drawn = {
            draw.choice((", ", " ")).join(draw.sample(texts, draw.randint(1, min(MAX_JOINED, len(texts)))))
            for _ in range(times if texts else 0)
        }
        return sorted(text for text in drawn if (symbol, same(text)) not in held_out)

    for (symbol, _), name in names.items():
        rows["image, name"] += [{"anchor": side(symbol), "positive": name, "group": symbol}] * NAME_IMAGES
        others = [other for other in of_symbol[symbol] if same(other) != same(name)]
        for other in draw.sample(others, min(NAME_PARTNERS, len(others))):
            rows["name, name"].append({"anchor": name, "positive": other, "group": symbol})
    for (symbol, _), texts in keywords.items():
        for text in joined(symbol, texts, KEYWORD_IMAGES):
            query = {"text": text, "instruction": QUERY_INSTRUCTION}
            rows["keywords, image"].append({"anchor": query, "positive": side(symbol), "group": symbol})
        for text in joined(symbol, texts, KEYWORD_NAMES if of_symbol[symbol] else 0):
            rows["keywords, name"].append({"anchor": text, "positive": draw.choice(of_symbol[symbol]), "group": symbol})
    return rows


def texts_of(row: Row) -> list[str]:
    """Give the texts of a training row."""
    sides = (row["anchor"], row["positive"])
    return [text for side in sides if (text := side if isinstance(side, str) else side.get("text"))]


def queries(names: Mapping[Pair, str]) -> list[Row]:
    """Ask for a symbol by each of these names."""
    return [{"id": symbol, "language": language, "text": name} for (symbol, language), name in names.items()]


def split(
    names: Mapping[Pair, str], keywords: Mapping[Pair, list[str]], seed: int, trained: Collection[str] = TRAINED
) -> tuple[dict[str, Any], Row]:
    """Split the texts of all languages into what training sees and what it does not.

    Parameters
    ----------
    names, keywords : mapping
        From (symbol id, language) to texts.
    seed : int
        Of all draws.
    trained : collection
        Languages that training sees; the others are new to it.

    Returns
    -------
    files : dict
        The rows of each file of texts by its path without suffix, and the texts of the tokenizer's corpus.
    counts : dict
        Of training rows by kind, and of what was left out by reason.
    """
    named = {(symbol, same(name)) for (symbol, _), name in names.items()}
    times = Counter((language, same(name)) for (_, language), name in names.items())
    clear = {pair: name for pair, name in names.items() if times[pair[1], same(name)] == 1}
    known = {pair: name for pair, name in clear.items() if pair[1] in trained}
    keywords = {  # without those that are names of their symbol
        (symbol, language): [text for text in dict.fromkeys(texts) if (symbol, same(text)) not in named]
        for (symbol, language), texts in keywords.items()
        if language in trained
    }
    drawn = hold_out_names(known, seed)
    symbols = hold_out_keywords(keywords, {name for _, name in named}, seed)
    watched = set(drawn[: round(VALIDATION * len(drawn))])
    final = set(drawn) - watched
    held_out = set(drawn) | {(symbol, text) for text, having in symbols.items() for symbol in having}

    def only(units: set[Unit]) -> dict[Pair, str]:
        return {(symbol, language): text for (symbol, language), text in known.items() if (symbol, same(text)) in units}

    seen_names = {pair: name for pair, name in known.items() if (pair[0], same(name)) not in held_out}
    seen_keywords = {pair: [text for text in texts if same(text) not in symbols] for pair, texts in keywords.items()}
    rows = training_rows(seen_names, seen_keywords, held_out, seed)
    train = [row for kind in rows.values() for row in kind]
    random.Random(f"{seed} order").shuffle(train)
    seen = {(row["group"], same(text)) for row in train for text in texts_of(row)}
    new = {pair: name for pair, name in clear.items() if pair[1] not in trained}
    unseen = {pair: name for pair, name in new.items() if (pair[0], same(name)) not in seen}
    asked = sorted(
        {(language, text) for (_, language), texts in keywords.items() for text in texts if same(text) in symbols}
    )
    to_find = only(final)
    files = {
        "train": train,
        "validation": [
            {"anchor": name, "positive": side(symbol), "group": symbol} for (symbol, _), name in only(watched).items()
        ],
        "tokenizer_corpus": [*seen_names.values(), *(text for texts in seen_keywords.values() for text in texts)],
        "eval/names": queries(known),
        "eval/names_seen": queries(seen_names),
        "eval/names_heldout": queries(to_find),
        "eval/names_to_find": [
            row if pair in to_find else row | {"id": "seen"} for pair, row in zip(known, queries(known), strict=True)
        ],
        "eval/names_new_languages": queries(unseen),
        "eval/keywords_heldout": [
            {"id": having if len(having) > 1 else having[0], "language": language, "text": text}
            for language, text in asked
            for having in [symbols[same(text)]]
        ],
    }
    counts = {
        "training rows": {kind: len(found) for kind, found in rows.items()},
        "left out": {
            "names of several symbols in one language": len(names) - len(clear),
            "names of new languages that training has": len(new) - len(unseen),
        },
    }
    return files, counts


def sources() -> dict[str, Row]:
    """Say what the data set is made from, by the files themselves."""
    data = FONT.read_bytes()
    tables = dict(struct.iter_unpack(">4s4xI4x", data[12 : 12 + 16 * int.from_bytes(data[4:6], "big")]))
    revision = int.from_bytes(data[tables[b"head"] + 4 :][:4], "big") / 65536  # fixed point, 16.16
    version = re.search(r'cldrVersion CDATA #FIXED "(.+?)"', (CLDR / "dtd/ldml.dtd").read_text(encoding="utf-8"))
    return {
        "Noto Color Emoji": {"version": f"{revision:.3f}", "licence": "OFL-1.1"},
        "Unicode CLDR": {"version": version and version[1], "licence": "Unicode-DFS-2016"},
        "Pillow": {"version": PIL.__version__, "raqm": features.version("raqm")},
    }


def write(path: Path, rows: Iterable[str | Row]) -> None:
    """Write texts as they are, and rows as JSON, by line."""
    path.parent.mkdir(exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def build(output: Path, seed: int = 0, trained: Sequence[str] = TRAINED, new: Sequence[str] = HELD_OUT) -> Row:
    """Make the data set, and give its manifest.

    Parameters
    ----------
    output : Path
        A folder that is new or empty; it is filled at once, or not at all.
    seed : int
        Of all splits and draws.
    trained, new : sequence
        Languages that training sees, and those that it does not, by their code in CLDR.

    Raises
    ------
    BuildError
        If the folder holds something, a Debian package is missing, or CLDR has no such language.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise BuildError(
            f"{str(output)!r} is not an empty folder, and nothing is overwritten: remove it or name another"
        )
    for source in (FONT, CLDR):
        if not source.exists():
            raise BuildError(f"{str(source)!r} is missing: run `{INSTALL}`")

    for language in (*trained, *new):
        if not (CLDR / f"annotationsDerived/{language}.xml").is_file():
            known = ", ".join(sorted(path.stem for path in (CLDR / "annotationsDerived").glob("*.xml")))
            raise BuildError(f"CLDR has no language {language!r}; name some of: {known}")

    languages = {language: read_annotations(language) for language in (*trained, *new)}
    glyphs = read_annotations("en")[0]
    symbols, left_out = find_symbols(glyphs)
    pairs = [(symbol, language) for language in languages for symbol in symbols]
    names = {(s, language): name for s, language in pairs if (name := languages[language][0].get(symbols[s]))}
    keywords = {(s, language): languages[language][1].get(symbols[s], []) for s, language in pairs}
    files, counts = split(names, keywords, seed, trained)

    draw = random.Random(f"{seed} augmentations")
    augmented = sorted(draw.sample(sorted(symbols), min(NUM_AUGMENTED, len(symbols))))
    pictures = {f"images/{symbol}.png": training_picture(glyph) for symbol, glyph in symbols.items()}
    files["eval/images"] = [{"id": symbol, "image": f"../images/{symbol}.png"} for symbol in symbols]
    named = {row["id"] for row in files["eval/names_heldout"]}
    files["eval/images_named"] = [row for row in files["eval/images"] if row["id"] in named]
    for kind in KINDS:
        pictures |= {f"augmented/{kind}/{s}.png": augmented_picture(symbols[s], kind, draw) for s in augmented}
        files[f"eval/images_{kind}"] = [{"id": s, "image": f"../augmented/{kind}/{s}.png"} for s in augmented]
    manifest = {
        "seed": seed,
        "sources": sources(),
        "languages": {"trained": list(trained), "held out": list(new)},
        "symbols": len(symbols),
        "lines": {path: len(rows) for path, rows in files.items()},
        "training rows": counts["training rows"],
        "left out": {
            **dict(sorted(left_out.items())),
            "names missing in CLDR": len(pairs) - len(names),
            **counts["left out"],
        },
    }

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        folder = Path(temporary) / "complete"
        for path, picture in pictures.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            picture.save(folder / path)
        for name, rows in files.items():
            write(folder / f"{name}{'.txt' if name == 'tokenizer_corpus' else '.jsonl'}", rows)
        manifest["train.jsonl sha256"] = hashlib.sha256((folder / "train.jsonl").read_bytes()).hexdigest()
        write(folder / "manifest.json", [json.dumps(manifest, ensure_ascii=False, indent=2)])
        folder.rename(output)
    return manifest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the demonstration's data set.")
    parser.add_argument("--output", type=local_path, required=True, help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=0, help="of all splits and draws (default: 0)")
    parser.add_argument("--languages", nargs="+", help="to train on alone (default: the eighteen, and two held out)")
    arguments = parser.parse_args()
    languages = (arguments.languages, ()) if arguments.languages else (TRAINED, HELD_OUT)
    try:
        print(json.dumps(build(arguments.output, arguments.seed, *languages), ensure_ascii=False, indent=2))
    except BuildError as error:
        sys.exit(f"error: {error}")
