"""Every spelling of an item, and what is said of a wrong one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.samples import encode, image
from vlembed import InvalidInputError, Item
from vlembed._items import PreparedItem, as_sequence, fit_all, prepare

PNG = encode(image())
BOUNDS = {"max_text_bytes": 100, "max_image_bytes": 3000}


def prepared(*items: Any, instruction: str | None = None, allow_reference_text: bool = False) -> list[PreparedItem]:
    return prepare(items, instruction=instruction, allow_reference_text=allow_reference_text)


def refused(*items: Any, **options: Any) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        prepared(*items, **options)
    return caught.value


def test_spellings(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    assert prepared(
        "text", tmp_path / "a.png", PNG, Item(text="both", image=PNG), Item(text="x", instruction="Find"), ""
    ) == [
        PreparedItem(b"text", b"", b""),
        PreparedItem(b"", PNG, b""),
        PreparedItem(b"", PNG, b""),
        PreparedItem(b"both", PNG, b""),
        PreparedItem(b"x", b"", b"Find"),
        PreparedItem(b"", b"", b""),
    ]


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(1 << 40)  # a hole
    (error,) = refused(tmp_path / "huge.png").items
    assert error.code == "IMAGE_TOO_LARGE"
    assert str(1 << 40) in error.message


def test_pixels_become_png() -> None:
    picture = image()
    for item in prepared(picture, np.asarray(picture)):
        assert item.image.startswith(b"\x89PNG")
        assert item.image_size == picture.size


def test_an_items_own_instruction_wins() -> None:
    ours = prepared("a", Item(text="b", instruction="own"), Item(text="c", instruction=""), instruction="the call's")
    assert [item.instruction for item in ours] == [b"the call's", b"own", b""]


@pytest.mark.parametrize(
    ("items", "count"),
    [
        *[("text", 1), (PNG, 1), (Path("x"), 1), (image(), 1), (np.zeros((2, 2, 3), np.uint8), 1), (Item("a"), 1)],
        *[([], 0), (("a", "b"), 2), (iter("ab"), 2), ([PNG, 3], 2)],
    ],
    ids=str,
)
def test_one_item_or_several(items: Any, count: int) -> None:
    assert len(as_sequence(items)) == count


@pytest.mark.parametrize("items", [3, None, {"text": "a"}, {"a", "b"}], ids=str)
def test_neither_item_nor_sequence(items: Any) -> None:
    with pytest.raises(InvalidInputError, match=type(items).__name__.removesuffix("Type")):
        as_sequence(items)


# --- the guard ---

REFERENCES = {
    "https://example.com/cat": "download it",
    " http://example.com/cat.jpg\n": "download it",
    "s3://bucket/cat": "download it",
    "file:///home/cat.png": "download it",
    "data:image/png;base64,iVBORw0KGgo=": "text.encode()",
    "cat.jpg": "Path('cat.jpg')",
    "./photos/Cat.JPEG": "Path('./photos/Cat.JPEG')",
    r"C:\photos\cat.webp": "Path(",
}
TEXTS = [
    "see https://example.com/cat",
    "https://example.com is down",
    "a cat.jpg",
    "cat.txt",
    "data: what it is",
    "data:",
    "png",
    ".png",
    "What is C://?",
    "",
]


@pytest.mark.parametrize("text", REFERENCES)
def test_references_are_refused(text: str) -> None:
    for item in (text, Item(text=text, image=PNG)):
        error = refused("fine", item)
        assert [(item.index, item.code) for item in error.items] == [(1, "TEXT_IS_REFERENCE")]
        assert REFERENCES[text] in str(error)
        assert "allow_reference_text=True" in str(error)


@pytest.mark.parametrize("text", REFERENCES)
def test_one_can_insist(text: str) -> None:
    assert prepared(text, allow_reference_text=True)[0].text == text.encode()


@pytest.mark.parametrize("text", TEXTS)
def test_prose_is_not_refused(text: str) -> None:
    assert prepared(text)[0].text == text.encode()


# --- wrong items ---


def broken_picture() -> Image.Image:
    return Image.open(io.BytesIO(PNG[: len(PNG) // 2]))


@pytest.mark.parametrize(
    ("item", "code", "says"),
    [
        (3, "WRONG_TYPE", "of type int"),
        (None, "ITEM_EMPTY", "neither text nor image"),
        (Item(), "ITEM_EMPTY", "neither text nor image"),
        (Item(instruction="Find"), "ITEM_EMPTY", "neither text nor image"),
        (["nested"], "WRONG_TYPE", "of type list"),
        (Item(text=b"bytes"), "WRONG_TYPE", "text is of type bytes"),  # type: ignore[arg-type]
        (Item(text="a", instruction=3), "WRONG_TYPE", "instruction is of type int"),  # type: ignore[arg-type]
        (Item(image="cat.png"), "WRONG_TYPE", "Path(...)"),  # type: ignore[arg-type]
        (b"", "IMAGE_EMPTY", "no bytes"),
        (Path("nowhere/cat.png"), "FILE_UNREADABLE", "'nowhere/cat.png' cannot be read (No such file"),
        (Path(), "FILE_UNREADABLE", "Is a directory"),
        (np.zeros((4, 4), np.uint8), "WRONG_ARRAY", "(4, 4)"),
        (np.zeros((4, 4, 3)), "WRONG_ARRAY", "float64"),
        (np.zeros((4, 4, 3), np.uint16), "WRONG_ARRAY", "scaled to 0 ... 255"),
        (np.zeros((4, 4, 4), np.float16), "WRONG_ARRAY", "float16"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), "IMAGE_NO_RANGE", "mode F does not say"),
        (Image.fromarray(np.zeros((4, 4), np.int32)), "IMAGE_NO_RANGE", "convert it to mode L"),
        (Path("a" * 5000), "FILE_UNREADABLE", "File name too long"),
        (np.zeros((2, 4, 4, 3), np.uint8), "WRONG_ARRAY", "as a list"),
        (np.zeros((0, 4, 3), np.uint8), "WRONG_ARRAY", "(0, 4, 3)"),
        (broken_picture(), "IMAGE_UNDECODABLE", "cannot be decoded"),
        ("\ud800", "TEXT_NOT_UTF8", "surrogates"),
    ],
    ids=str,
)
def test_wrong_items(item: Any, code: str, says: str) -> None:
    error = refused("fine", item)
    assert [(bad.index, bad.code) for bad in error.items] == [(1, code)]
    assert says in str(error)
    assert str(error).startswith("item 1 of 2: ")
    assert len(str(error)) < 1000


def test_all_wrong_items_are_told() -> None:
    assert [item.index for item in refused(3, "fine", b"", "cat.png").items] == [0, 2, 3]


def test_bounds() -> None:
    items = [
        PreparedItem(b"a" * 100, b"i" * 3000, b"b" * 100),
        PreparedItem(b"a" * 101, b"", b""),
        PreparedItem(b"a", b"", b"b" * 101),
        PreparedItem(b"", b"i" * 4101, b""),
    ]
    with pytest.raises(InvalidInputError, match="item 1 of 4: text has 101 bytes; the server takes 100") as caught:
        fit_all(items, BOUNDS, truncate=False)
    assert [(item.index, item.code) for item in caught.value.items] == [
        (1, "TEXT_TOO_LARGE"),
        (2, "TEXT_TOO_LARGE"),
        (3, "IMAGE_TOO_LARGE"),
    ]


@pytest.mark.parametrize("character", ["a", "é", "猫", "🐱"])
def test_texts_are_cut_on_request_between_characters(character: str) -> None:
    (cut,) = fit_all([PreparedItem(("x" + character * 101).encode(), b"", b"")], BOUNDS, truncate=True)
    assert cut.text.decode() == "x" + character * (99 // len(character.encode()))
    with pytest.raises(InvalidInputError, match="instruction has 101 bytes") as caught:
        fit_all([PreparedItem(b"a" * 101, b"", b"b" * 101)], BOUNDS, truncate=True)
    assert "truncate" not in str(caught.value)


def test_other_bytes_are_bytes() -> None:
    for data in (bytearray(PNG), memoryview(PNG)):
        assert prepared(*as_sequence(data)) == prepared(PNG)


def test_a_path_that_no_file_can_have() -> None:
    assert "cannot be read (embedded null byte" in str(refused(Path("a\0.png")))
