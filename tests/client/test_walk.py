"""Which files a folder or a pattern stands for."""

from __future__ import annotations

import os
from collections import Counter
from glob import glob
from pathlib import Path
from typing import NoReturn

import pytest

from vlembed._walk import expand, is_side_name, walk

FILES = ["a.png", "b.png", "c.txt", "sub/a.png", "sub/deep/d.png", "sub2/e.png", "[1].png", "日本/f.png"]
SIDE = [
    *("._a.png", ".hidden.png", "sub/._a.png", ".thumbnails/t.png", "@eaDir/a.png/SYNO.png", "__MACOSX/sub/._a.png"),
    *(
        "#recycle/g.png",
        "$RECYCLE.BIN/h.png",
        "sub/.git/i.png",
        "~$a.png",
        "_temporary/0/j.png",
        "lost+found/#1/k.jpg",
        "Thumbs.db",
        "desktop.ini",
        ".DS_Store",
    ),
]


def refuse(error: OSError) -> NoReturn:
    raise error


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [*FILES, *SIDE]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def walked(folder: Path) -> tuple[list[str], Counter[str]]:
    ignored = Counter[str]()
    paths = [path.relative_to(folder).as_posix() for path in walk(folder, ignored, refuse)]
    return paths, +ignored


def expanded(pattern: str) -> tuple[list[str], Counter[str]]:
    ignored = Counter[str]()
    return expand(pattern, ignored), +ignored


def test_a_folder(folder: Path) -> None:
    paths, ignored = walked(folder)
    assert sorted(paths) == sorted(FILES)
    assert ignored == {"side files": len(SIDE)}


def test_a_folder_that_is_named_is_no_side_folder(folder: Path) -> None:
    assert walked(folder / ".thumbnails") == (["t.png"], {})
    (folder / ".thumbnails/x").mkdir()
    (folder / ".thumbnails/x/y.png").touch()
    (folder / "link").symlink_to(".thumbnails")
    assert walked(folder / "link") == (["t.png", "x/y.png"], {})


def test_links_to_folders_are_counted_and_not_entered(folder: Path) -> None:
    for place, target in (("loop", "."), ("sub/up", ".."), ("sub/other", "../sub2"), (".hidden", "sub")):
        (folder / place).symlink_to(target)
    paths, ignored = walked(folder)
    assert sorted(paths) == sorted(FILES)
    assert ignored == {"side files": len(SIDE), "links to folders": 3 + 1}  # a hidden one is a link all the same


PATTERNS = [
    *(
        "*",
        "*.png",
        "**/*.png",
        "**",
        "sub/**",
        "sub/**/*.png",
        "*/*.png",
        "s*/*.png",
        "sub/*/*.png",
        "?.png",
        "[ab].png",
    ),
    *(
        "[!a].png",
        "**/sub*/*.png",
        "**/deep/*",
        "./*.png",
        "./**/*.png",
        "sub/../*.png",
        "[[]1].png",
        "日*/*",
        "**/**/*.png",
    ),
    *("none/*.png", "a.png/*", "**/none", "sub2/../sub/**/d*", "*/deep/d.png", "**/deep/d.png"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("is_absolute", [False, True])
def test_patterns_match_what_glob_matches(folder: Path, pattern: str, is_absolute: bool) -> None:
    """Python's own, without links and side files."""
    pattern = f"{folder}/{pattern}" if is_absolute else pattern
    theirs = {
        path
        for path in glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if Path(path).is_file() and not any(map(is_side_name, os.path.relpath(path, folder).split("/")))
    }
    ours, _ = expanded(pattern)
    assert ours == sorted(theirs)


@pytest.mark.parametrize(
    ("pattern", "matches", "left_out"),
    [
        ("*.png", ["[1].png", "a.png", "b.png"], 3),
        ("sub/*.png", ["sub/a.png"], 1),
        (".*.png", ["._a.png", ".hidden.png"], 0),
        ("sub/._*", ["sub/._a.png"], 0),
        (".thumbnails/*.png", [".thumbnails/t.png"], 0),
        (".thumb*/*.png", [".thumbnails/t.png"], 0),
        ("*/.git/*.png", ["sub/.git/i.png"], 0),
        ("@eaDir/**/*.png", ["@eaDir/a.png/SYNO.png"], 0),
        ("@*/**/*.png", [], 1),
        ("**/[a-z].png", ["a.png", "b.png", "sub/a.png", "sub/deep/d.png", "sub2/e.png", "日本/f.png"], 5),
        ("**/.*.png", ["._a.png", ".hidden.png", "sub/._a.png"], 1),  # that of __MACOSX
    ],
)
def test_side_files_are_matched_by_name_alone(folder: Path, pattern: str, matches: list[str], left_out: int) -> None:
    assert expanded(pattern) == (matches, {"side files": left_out} if left_out else {})


@pytest.mark.parametrize("num_links", [1, 2, 30])
def test_a_folder_that_links_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_links: int) -> None:
    """Followed, one link made 82 rows of 2 pictures; two of them would never end."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.png", "photos/sub/b.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for number in range(num_links):
        Path(f"photos/loop{number}").symlink_to(".")
    expected = ["photos/a.png", "photos/sub/b.png"], {"links to folders": num_links}
    for pattern in ("photos/**/*.png", "**/*.png", "photos/**", "**/**/*.png"):
        assert expanded(pattern) == expected
    assert expanded("photos/*/*.png") == (["photos/sub/b.png"], {"links to folders": num_links})
    assert expanded("photos/loop0/a.png*") == (["photos/loop0/a.png"], {})  # by its name
    paths, ignored = walked(tmp_path / "photos")
    assert (paths, ignored) == (["a.png", "sub/b.png"], {"links to folders": num_links})


def test_links_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos/.store").mkdir(parents=True)
    for name in ("photos/b.png", "away.png", "photos/.store/s.png"):
        Path(name).touch()
    os.link("photos/b.png", "photos/hard.png")
    for link, target in (("a.png", "b.png"), ("c.png", "../away.png"), ("d.png", "c.png"), ("e.png", ".store/s.png")):
        Path("photos", link).symlink_to(target)
    Path("photos/gone.png").symlink_to("nowhere.png")
    expected = ["photos/b.png", "photos/c.png", "photos/e.png", "photos/hard.png"]
    assert expanded("photos/*.png") == (expected, {"links to files that are there": 2})
    assert expanded("photos/a*.png") == (["photos/a.png"], {})  # the file itself is not meant
