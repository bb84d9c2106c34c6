"""client/CLI.md is what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from tests.client.cli.help_pages import walk, write

CLI_MD = Path(__file__).resolve().parents[3] / "client/CLI.md"


def test_the_document_is_what_the_commands_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    cure = "Run: python -m tests.client.cli.help_pages > client/CLI.md"
    assert write() == CLI_MD.read_text(encoding="utf-8"), cure


def test_every_command_and_option_has_help() -> None:
    for context in walk():
        assert context.command.help, context.command_path
        for parameter in context.command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{context.command_path} {parameter.name}"
