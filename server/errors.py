"""The one error of this package that a user sees."""


class ServerStartError(RuntimeError):
    """A server that cannot be started, or that died while loading: why, and the cure."""
