"""Serve a vlembed model repository: checked before, and proved by one embedding after the start."""

from __future__ import annotations

from .canary import CanaryError, embed_canary
from .errors import ServerStartError
from .gpu import check_gpus
from .locate import find_server
from .process import TritonProcess
from .repository import PUBLIC_MODELS, check_repository, needs_gpu

FIRST_CANARY_TIMEOUT_S = 300.0  # the first request pays for lazy allocations

__all__ = ["ServerStartError", "TritonServer"]


class TritonServer(TritonProcess):
    """Serve a vlembed model repository while a `with` block lasts.

    Parameters and errors are those of `TritonProcess`; the repository must be one that export wrote.
    """

    def __enter__(self) -> TritonServer:
        """Start the server; return when it has embedded a text."""
        check_repository(self.repository, self.model_config_name)
        if needs_gpu(self.repository, self.model_config_name):
            check_gpus(find_server())
        super().__enter__()
        try:
            embed_canary(self.http_url, FIRST_CANARY_TIMEOUT_S)
        except CanaryError as error:
            reason = f"the models loaded, but {error}."
            if (died := self.wait(0)) is not None:
                reason += f" {died}:\n{self._log.failure()}"
            self.__exit__(None, None, None)
            raise ServerStartError(reason) from None
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _entrances(self) -> list[str]:
        """Return the public models: those behind them finish what these have begun."""
        return [*PUBLIC_MODELS]
