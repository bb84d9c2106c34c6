"""The page of a search: well-formed, self-contained, and true to what it shows."""

from __future__ import annotations

import base64
import io
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.samples import encode, image
from vlembed.cli._outputs import to_table
from vlembed.cli._report import PICTURE_PX, Card, picture_of, to_html

VOID = {"img", "meta", "wbr"}
NASTY = "<script>alert('x')</script> & \"quotes\""


class Page(HTMLParser):
    """A page, read strictly: every element is closed in its place."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_it_is_well_formed_and_self_contained(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(image(32, 32)))
    picture = picture_of("a.png", tmp_path)
    matches = [
        (Card("a.png", text=NASTY, picture=picture, facts={NASTY: NASTY}), 0.75),
        (Card(NASTY, missing=NASTY), 1.2),
        (Card("note", text="ein Text"), -0.1),
    ]
    page = Page(to_html(NASTY, {"k": NASTY}, [(Card("q", text=NASTY, picture=picture), matches), (Card("none"), [])]))
    assert page.all("html")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    names = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in ("href", "srcset")}
    assert all(attributes["src"].startswith("data:image/") for attributes in page.all("img"))
    assert [attributes["alt"] for attributes in page.all("img")] == [NASTY, NASTY]
    style = "".join(text for tag, text in page.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert ("h2", NASTY) in page.texts
    assert [attributes["value"] for attributes in page.all("data")] == ["0.750000", "1.200000", "-0.100000"]
    assert [attributes["style"] for attributes in page.all("i")] == ["width:75.0%", "width:100.0%", "width:0.0%"]
    assert ("p", "Nothing matched.") in page.texts


def test_pictures_are_scaled_down_and_turned_as_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image(800, 400).save(tmp_path / "photo.jpg", exif=exif)
    head, _, data = picture_of("photo.jpg", tmp_path).partition(",")
    assert head == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (PICTURE_PX // 2, PICTURE_PX)


def test_without_pillow_pictures_are_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlembed.cli._report.find_spec", lambda _: None)
    (tmp_path / "a.png").write_bytes(encode(image(32, 32)))
    assert picture_of("a.png", tmp_path) == f"data:image/png;base64,{base64.b64encode(encode(image(32, 32))).decode()}"


def test_only_files_are_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "large.png").write_bytes(encode(image(32, 32)))
    monkeypatch.setattr("vlembed.cli._report.MAX_FILE_BYTES", 10)
    for path in ("/dev/zero", "pipe.png", "large.png"):
        with pytest.raises(OSError, match="is no file"):
            picture_of(path, tmp_path)


def test_nothing_turns_the_text_around() -> None:
    page = to_html("t", {}, [(Card("a\u202eb\x00\x1b\u2066c\u2069", text="x\u200d\ny"), [])])
    assert not set("\u202e\x00\x1b\u2066\u2069") & set(page)
    assert "x\u200d\ny" in page
    assert to_table(["a"], [["b\u202ec\x1b\u2067"]]).splitlines()[1] == "bc"


def test_a_data_uri_stays_itself(tmp_path: Path) -> None:
    assert picture_of("data:image/png;base64,AAAA", tmp_path) == "data:image/png;base64,AAAA"


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_what_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(OSError, match=r"a\.png"):
        picture_of("a.png", tmp_path)
