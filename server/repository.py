"""Is a folder a vlembed model repository that can be served? Checked before a server is started on it."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import ServerStartError

TOWERS = ("vision_encoder", "language_model")
MODELS = ("embed", "embed_text", "info", "pooling", "preprocess", *TOWERS)
GRAPHS = ("model.onnx", "model.plan")
EXPORT_CURE = "Run `python -m export --checkpoint DIR_OR_HUB_ID --output REPOSITORY` and serve that."
PARAMETER = re.compile(r'parameters\s*\{\s*key:\s*"([^"]*)"\s*value\s*\{\s*string_value:\s*"([^"]*)"')


def check_repository(repository: Path, model_config_name: str | None = None) -> None:
    """Check that the seven models, both graphs and the chosen configs are there, and that the bounds agree.

    Parameters
    ----------
    repository
        Folder that export wrote.
    model_config_name
        Variant of the configs, as for tritonserver.

    Raises
    ------
    ServerStartError
        Something is missing, or `info` would advertise other bounds than `preprocess` enforces.
    """
    if not repository.is_dir():
        raise ServerStartError(f"the model repository {repository} does not exist. {EXPORT_CURE}")
    missing = [model for model in MODELS if not (repository / model / "config.pbtxt").is_file()]
    if missing:
        raise ServerStartError(f"{repository} lacks the models {', '.join(missing)}. {EXPORT_CURE}")
    lost = [f"{model}/1" for model in MODELS if not (repository / model / "1").is_dir()]
    if lost:
        raise ServerStartError(
            f"{repository} lacks the folders {', '.join(lost)}. Git and object stores lose empty folders: make them "
            "again, or export again."
        )
    for tower in TOWERS:
        folder = repository / tower / "1"
        if not any((folder / graph).exists() for graph in GRAPHS):
            raise ServerStartError(f"{folder} has no {' or '.join(GRAPHS)}. {EXPORT_CURE}")
    if model_config_name is not None:
        _check_variant(repository, model_config_name)
    _check_bounds(repository, model_config_name)


def _check_variant(repository: Path, name: str) -> None:
    """Refuse a name that no model knows: tritonserver would quietly take every default."""
    known = sorted({path.stem for path in repository.glob("*/configs/*.pbtxt")})
    if name not in known:
        cure = f"Pass one of {known}, or leave it out." if known else "There is none: leave it out."
        raise ServerStartError(f"--model-config-name {name!r}: no model of {repository} has that config. {cure}")


def _check_bounds(repository: Path, model_config_name: str | None) -> None:
    enforced, advertised = (
        dict(PARAMETER.findall(_config(repository / model, model_config_name).read_text(encoding="utf-8")))
        for model in ("preprocess", "info")
    )
    for name in sorted(enforced.keys() | advertised.keys()):
        if enforced.get(name) != advertised.get(name):
            raise ServerStartError(
                f"the bound {name} is {enforced.get(name)} in preprocess and {advertised.get(name)} in info. "
                "Make the parameters lines of both config.pbtxt the same."
            )


def _config(model: Path, model_config_name: str | None) -> Path:
    variant = model / "configs" / f"{model_config_name}.pbtxt"
    return variant if variant.exists() else model / "config.pbtxt"
