"""What the demonstration's data set promises: what training never sees, and that everything else is there."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import build, symbols
from demo.render_images import FONT
from vlembed._client import DEFAULT_QUERY_INSTRUCTION

pytestmark = pytest.mark.skipif(
    not (FONT.is_file() and build.CLDR.is_dir()),
    reason=f"the emoji font or Unicode CLDR is missing: run `{build.INSTALL}`",
)


def same(text: str) -> str:
    return text.casefold().replace(",", "")


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def texts(row: dict) -> list[str]:
    sides = (row["anchor"], row["positive"])
    return [side if isinstance(side, str) else side["text"] for side in sides if not is_image(side)]


def is_image(side: str | dict) -> bool:
    return isinstance(side, dict) and "image" in side


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data set of the default seed."""
    output = tmp_path_factory.mktemp("demo") / "data"
    build.build(output)
    return output


@pytest.fixture(scope="module")
def train(folder: Path) -> list[dict]:
    return rows(folder / "train.jsonl")


@pytest.fixture(scope="module")
def trained(train: list[dict]) -> set[tuple[str, str]]:
    """Return every text of training with its symbol."""
    return {(row["group"], same(text)) for row in train for text in texts(row)}


@pytest.fixture(scope="module")
def gallery(folder: Path) -> list[str]:
    return [row["id"] for row in rows(folder / "eval/images.jsonl")]


@pytest.fixture(scope="module")
def cldr(gallery: list[str]) -> dict[str, tuple[dict[str, str], dict[str, list[str]]]]:
    """Return names and keywords by language, by symbol id."""
    glyphs = {symbol: "".join(chr(int(code, 16)) for code in symbol.split("-")) for symbol in gallery}
    return {
        language: tuple(
            {symbol: of_glyph[glyph] for symbol, glyph in glyphs.items() if glyph in of_glyph}
            for of_glyph in build.read_annotations(language)
        )
        for language in (*build.TRAINED, *build.HELD_OUT)
    }


def test_held_out_names_are_never_trained(folder, trained, gallery, cldr):
    final = rows(folder / "eval/names_heldout.jsonl")
    watched = rows(folder / "validation.jsonl")
    held_out = {(row["id"], same(row["text"])) for row in final}
    validation = {(row["group"], same(row["anchor"])) for row in watched}
    assert not held_out & trained and not validation & trained and not held_out & validation
    assert all(row["positive"] == {"image": f"images/{row['group']}.png"} for row in watched)
    assert all(cldr[row["language"]][0][row["id"]] == row["text"] for row in final)
    every = len(gallery) * len(build.TRAINED)
    assert (len(final) + len(watched)) / every == pytest.approx(0.2, abs=0.001)
    assert len(watched) / (len(final) + len(watched)) == pytest.approx(0.1, abs=0.01)
    for language, count in Counter(row["language"] for row in final).items():
        assert count / len(gallery) == pytest.approx(0.18, abs=0.04), language  # 20 % less validation
    assert {row["language"] for row in final} == set(build.TRAINED)


def test_held_out_keywords_are_never_trained(folder, trained, cldr):
    queries = rows(folder / "eval/keywords_heldout.jsonl")
    corpus = {same(line) for line in (folder / "tokenizer_corpus.txt").read_text(encoding="utf-8").split("\n")}
    names = {same(name) for by_symbol, _ in cldr.values() for name in by_symbol.values()}
    having = defaultdict(set)
    for language in build.TRAINED:
        for symbol, keywords in cldr[language][1].items():
            for keyword in keywords:
                having[same(keyword)].add(symbol)
    assert len(queries) > 2000
    for row in queries:
        answers = row["id"] if isinstance(row["id"], list) else [row["id"]]
        assert not {(symbol, same(row["text"])) for symbol in answers} & trained
        assert same(row["text"]) not in corpus and same(row["text"]) not in names
        assert set(answers) == having[same(row["text"])]
        assert 1 <= len(answers) <= 3 and any(row["text"] in cldr[row["language"]][1][symbol] for symbol in answers)
    assert len({(row["language"], row["text"]) for row in queries}) == len(queries)


def test_new_languages_are_never_trained(folder, trained, cldr):
    queries = rows(folder / "eval/names_new_languages.jsonl")
    assert {row["language"] for row in queries} == set(build.HELD_OUT)
    assert not {(row["id"], same(row["text"])) for row in queries} & trained
    assert all(cldr[row["language"]][0][row["id"]] == row["text"] for row in queries)
    corpus = set((folder / "tokenizer_corpus.txt").read_text(encoding="utf-8").split("\n")[:-1])
    assert corpus <= {
        text
        for language in build.TRAINED
        for text in (*cldr[language][0].values(), *(word for words in cldr[language][1].values() for word in words))
    }


def test_training_texts_belong_to_the_group(train, cldr):
    names = {(s, name) for language in build.TRAINED for s, name in cldr[language][0].items()}
    words = {
        (language, symbol): {word for keyword in keywords for word in re.split(r",? ", keyword)}
        for language in build.TRAINED
        for symbol, keywords in cldr[language][1].items()
    }
    kinds = Counter()
    for row in train:
        group, anchor, positive = row["group"], row["anchor"], row["positive"]
        found = texts(row)
        assert [side for side in (anchor, positive) if is_image(side)] == (
            [{"image": f"images/{group}.png"}] * (2 - len(found))
        )
        named = [(group, text) in names for text in found]
        is_pair = len(found) == 2 and all(named) and same(found[0]) != same(found[1])
        if is_image(anchor) or is_pair:
            assert all(named)
            kinds["image, name" if is_image(anchor) else "name, name"] += 1
            continue
        used = {word for word in re.split(r",? ", found[0]) if word}  # keywords of one language
        assert any(used <= words[language, group] for language in build.TRAINED if (language, group) in words)
        if is_image(positive):
            assert anchor == {"text": found[0], "instruction": DEFAULT_QUERY_INSTRUCTION}
        else:
            assert named[1] and isinstance(anchor, str)
        kinds["keywords, image" if is_image(positive) else "keywords, name"] += 1
    assert min(kinds.values()) > 20_000 and len(kinds) == 4


def test_every_training_name_is_paired(folder, train):
    seen = Counter((row["id"], row["text"]) for row in rows(folder / "eval/names_seen.jsonl"))
    with_image = Counter((row["group"], row["positive"]) for row in train if is_image(row["anchor"]))
    assert with_image == Counter({name: build.NAME_IMAGES * times for name, times in seen.items()})
    paired = {(row["group"], text) for row in train if len(texts(row)) == 2 for text in texts(row)}
    assert len(paired & seen.keys()) > 0.99 * len(seen)


def test_every_symbol_has_a_picture_and_a_training_name(folder, gallery):
    assert len(set(gallery)) == len(gallery) > 1300
    assert {row["id"] for row in rows(folder / "eval/names_seen.jsonl")} == set(gallery)
    assert {path.stem for path in (folder / "images").iterdir()} == set(gallery)
    pixels = set()
    for symbol in gallery:
        with Image.open(folder / f"images/{symbol}.png") as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")
            assert image.convert("L").getextrema()[0] < 255  # not blank
            pixels.add(image.tobytes())
    assert len(pixels) == len(gallery)


def test_no_symbol_is_a_flag_skin_tone_keycap_or_component(gallery):
    left_out = {0x20E3, 0x23, 0x2A, *range(0x1F1E6, 0x1F200), *range(0x1F3FB, 0x1F400), *range(0xE0020, 0xE0080)}
    for symbol in gallery:
        assert not {int(code, 16) for code in symbol.split("-")} & left_out, symbol
    assert {"1f34e", "1f468-200d-1f33e", "2764-200d-1f525"} <= set(gallery)  # apple, farmer, heart on fire


def test_augmentations_are_never_trained(folder, train):
    used = {side["image"] for row in train for side in (row["anchor"], row["positive"]) if is_image(side)}
    assert all(path.startswith("images/") for path in used)
    for kind in symbols.KINDS:
        found = rows(folder / f"eval/images_{kind}.jsonl")
        assert len(found) == build.NUM_AUGMENTED
        for row in found:
            with (
                Image.open(folder / "eval" / row["image"]) as image,
                Image.open(folder / f"images/{row['id']}.png") as ours,
            ):
                assert (image.size, image.mode) == (((96, 96) if kind == "large" else (64, 64)), "RGB")
                assert image.resize(ours.size).tobytes() != ours.tobytes()
                if kind == "small":
                    assert image.crop((0, 0, 64, 15)).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("glyph", ["🟥", "🌅", "🅰"])
def test_a_rotation_cuts_nothing_off(glyph):
    for seed in range(5):
        image = np.asarray(symbols.augmented_picture(glyph, "rotation", random.Random(seed)).convert("L"))
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (border < 250).mean() < 0.2  # the four corners of the glyph touch it, and no more


def test_annotations_are_read_normalised(tmp_path, monkeypatch):
    content = {
        "annotations": "<annotation cp='❤\ufe0f'> a\u0308 |b |b c</annotation>"
        "<annotation cp='❤\ufe0f' type='tts'> o\u0308 </annotation>",
        "annotationsDerived": "<annotation cp='A'>↑↑↑</annotation><annotation cp='A' type='tts'>↑↑↑</annotation>",
    }
    for folder, entries in content.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "xx.xml").write_text(
            f"<ldml><annotations>{entries}</annotations></ldml>", encoding="utf-8"
        )
    monkeypatch.setattr(build, "CLDR", tmp_path)
    assert build.read_annotations("xx") == ({"❤": "\u00f6"}, {"❤": ["\u00e4", "b", "b c"]})


def test_texts_are_normalised(folder, train):
    lines = (folder / "tokenizer_corpus.txt").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    queries = [row["text"] for path in folder.glob("eval/[nk]*.jsonl") for row in rows(path)]
    for text in (*lines, *queries, *(text for row in train for text in texts(row))):
        assert text and text == unicodedata.normalize("NFC", text).strip() and "↑↑↑" not in text and "|" not in text


def test_the_corpus_is_what_training_may_see(folder, train):
    corpus = set((folder / "tokenizer_corpus.txt").read_text(encoding="utf-8").split("\n"))
    assert {text for row in train for text in texts(row) if is_image(row["anchor"])} <= corpus


def test_the_manifest_counts(folder, train, gallery):
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    lines = {
        str(path.relative_to(folder).with_suffix("")): path.read_text(encoding="utf-8").count("\n")
        for path in folder.rglob("*.*")
        if path.suffix in {".jsonl", ".txt"}
    }
    assert manifest["lines"] == lines
    assert manifest["symbols"] == len(gallery)
    assert sum(manifest["training rows"].values()) == len(train)
    assert manifest["seed"] == 0
    assert manifest["train.jsonl sha256"] == hashlib.sha256((folder / "train.jsonl").read_bytes()).hexdigest()
    assert len(manifest["languages"]["trained"]) == 18 and len(manifest["languages"]["held out"]) == 2
    assert all(re.fullmatch(r"[\d.]+", source["version"]) for source in manifest["sources"].values())
    assert manifest["left out"]["skin tones"] > 1000


def test_two_runs_are_identical(folder, tmp_path):
    (tmp_path / "data").mkdir()  # an empty folder may be there
    build.build(tmp_path / "data")
    ours = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = {path.relative_to(tmp_path / "data"): path for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in again.items()} == ours
    assert list(tmp_path.iterdir()) == [tmp_path / "data"]


NAMES = {("s1", "en"): "cat", ("s2", "en"): "Cat", ("s1", "de"): "Katze", ("s2", "de"): "Kater", ("s1", "uk"): "кіт"}


def test_a_name_of_two_symbols_is_left_out_for_both():
    files, counts = build.split(NAMES, {}, seed=0)
    assert counts["left out"]["names of several symbols in one language"] == 2
    assert not {"cat", "Cat"} & {row["text"] for name in files if name.startswith("eval/") for row in files[name]}
    assert not {"cat", "Cat"} & {*files["tokenizer_corpus"], *(text for row in files["train"] for text in texts(row))}


def test_a_name_is_held_out_in_all_its_languages():
    names = {
        (f"s{n}", language): f"{'taxi' if language in 'en de' else language} {n}"
        for n in range(50)
        for language in ("en", "de", "fr", "ru")
    }
    for seed in range(5):
        files, _ = build.split(names, {}, seed)
        seen = {(row["id"], row["text"]) for row in files["eval/names_seen"]}
        held_out = {(row["id"], row["text"]) for row in files["eval/names_heldout"]}
        assert any("taxi" in text for _, text in held_out) and not seen & held_out


def test_a_name_of_a_new_language_that_training_has_is_left_out(monkeypatch):
    monkeypatch.setattr(build, "NAMES_HELD_OUT", 0)
    names = {("s1", "ru"): "торт", ("s1", "uk"): "торт", ("s2", "ru"): "кот", ("s2", "uk"): "кіт"}
    files, counts = build.split(names, {}, seed=0)
    assert [row["text"] for row in files["eval/names_new_languages"]] == ["кіт"]
    assert counts["left out"]["names of new languages that training has"] == 1


def test_joined_keywords_never_spell_a_held_out_text():
    keywords = {("s1", "en"): ["red", "apple"]}
    spelled = {
        row["anchor"]["text"]
        for seed in range(50)
        for row in build.training_rows({}, keywords, {("s1", "red apple")}, seed)["keywords, image"]
    }
    assert spelled == {"red", "apple", "apple red", "apple, red"}


def test_a_keyword_that_is_a_name_is_no_keyword():
    keywords = {("s1", "en"): ["Katze", "pet", "кіт"], ("s1", "uk"): ["тварина"]}
    files, _ = build.split(NAMES, keywords, seed=0)
    trained = {text for row in files["train"] if is_image(row["positive"]) for text in texts(row)}
    assert trained == {"pet"} or (not trained and [row["text"] for row in files["eval/keywords_heldout"]] == ["pet"])


def test_held_out_names_are_found_among_all(folder):
    everything, to_find = rows(folder / "eval/names.jsonl"), rows(folder / "eval/names_to_find.jsonl")
    assert [row["text"] for row in to_find] == [row["text"] for row in everything]
    asked = [row for row in to_find if row["id"] != "seen"]
    assert asked == rows(folder / "eval/names_heldout.jsonl")
    assert {row["id"] for row in rows(folder / "eval/images_named.jsonl")} == {row["id"] for row in asked}


def test_one_language_alone():
    names = {(f"s{n}", "uk"): f"uk {n}" for n in range(50)}
    keywords = {pair: [f"{name} keyword", "of many"] for pair, name in names.items()}
    files, _ = build.split(names, keywords, 0, ["uk"])
    held_out = {row["text"] for row in files["eval/names_heldout"]}
    assert len(held_out) == 9 and len(files["validation"]) == 1
    assert not held_out & {text for row in files["train"] for text in texts(row)}
    assert {row["group"] for row in files["train"]} == {symbol for symbol, _ in names}


def test_an_unknown_language_is_refused(tmp_path):
    with pytest.raises(build.BuildError, match=r"CLDR has no language 'xx'; name some of: af, am, .* zu$"):
        build.build(tmp_path / "data", 0, ["xx"], [])


def test_the_seed_draws_the_split():
    names = {(f"s{n}", language): f"{language} {n}" for n in range(20) for language in ("en", "de")}
    assert build.split(names, {}, 0) == build.split(names, {}, 0)
    assert build.split(names, {}, 0)[0]["eval/names_heldout"] != build.split(names, {}, 1)[0]["eval/names_heldout"]


def test_glyphs_without_a_picture_of_their_own_are_left_out():
    glyphs = [
        "🍎",
        "👨‍🌾",
        "👪",
        "👨‍👨‍👦",
        "👍🏽",
        "🏽",
        "🇩🇪",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "#",
        "1⃣",
        "🔟",
        "🦰",
        "{",
        "🍎🍏",
    ]
    found, left_out = symbols.find_symbols(glyphs)
    assert found == {"1f34e": "🍎", "1f46a": "👪", "1f468-200d-1f33e": "👨‍🌾"}
    assert left_out == {
        "drawn like another symbol": 1,
        "skin tones": 2,
        "flags of countries and regions": 2,
        "keycaps": 3,
        "hair components": 1,
        "not drawn by the font": 1,
        "sequences that are not one glyph": 1,
    }


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = subprocess.run(
        [sys.executable, "-m", "demo.build", "--output", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert re.fullmatch(f"error: '{tmp_path}' is not an empty folder, .* remove it or name another\n", result.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(build.BuildError, match="is not an empty folder"):
        build.build(tmp_path / "mine.txt")


@pytest.mark.parametrize("source", ["FONT", "CLDR"])
def test_a_missing_package_names_the_cure(source, tmp_path, monkeypatch):
    monkeypatch.setattr(build, source, tmp_path / "missing")
    cure = "missing' is missing: run `sudo apt-get install fonts-noto-color-emoji unicode-cldr-core`"
    with pytest.raises(build.BuildError, match=cure):
        build.build(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "find_symbols", lambda glyphs: ({"1f34e": "🍎"}, Counter()))
    monkeypatch.setattr(build, "write", lambda path, rows: path.write_text("a line")["no such thing"])
    with pytest.raises(TypeError):
        build.build(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []
