"""What export and the builder of engines refuse."""


class ExportError(Exception):
    """The export cannot go on; the message says why and what to do."""


class DisagreementError(ExportError):
    """A tower is too far from transformers."""
