"""Is a folder a vlembed model repository that can be served? Checked before a server is started on it."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import ServerStartError

TOWERS = ("vision_encoder", "language_model")
PUBLIC_MODELS = ("embed", "embed_text", "info")
MODELS = (*PUBLIC_MODELS, "pooling", "preprocess", *TOWERS)
DEFAULT_VARIANT = "cpu"  # of the configs beside `configs/`
EXPORT_CURE = "Run `python -m export --checkpoint DIR_OR_HUB_ID --output REPOSITORY` and serve that."
GRAPH = re.compile(r'default_model_filename:\s*"([^"]*)"')
KIND_GPU = re.compile(r"kind:\s*KIND_GPU")
PARAMETER = re.compile(r'parameters\s*\{\s*key:\s*"([^"]*)"\s*value\s*\{\s*string_value:\s*"([^"]*)"')


def check_repository(repository: Path, model_config_name: str | None = None) -> None:
    """Check that the seven models and the chosen variant's graphs are there, and that the bounds agree.

    Parameters
    ----------
    repository
        Folder that export wrote.
    model_config_name
        The variant: `<model>/configs/<name>.pbtxt`, where a model has it. By default cpu.

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
    _check_graphs(repository, DEFAULT_VARIANT if model_config_name is None else model_config_name)
    _check_bounds(repository, model_config_name)


def needs_gpu(repository: Path, model_config_name: str | None = None) -> bool:
    """Tell whether the chosen variant has a model that runs on a GPU alone."""
    return any(KIND_GPU.search(_config(repository / tower, model_config_name).read_text("utf-8")) for tower in TOWERS)


def _check_graphs(repository: Path, variant: str) -> None:
    """Refuse a variant that is not there: tritonserver would quietly take the default of every model."""
    known = [DEFAULT_VARIANT, *sorted({path.stem for path in repository.glob("*/configs/*.pbtxt")})]
    held = [name for name in known if all(_graph(repository / tower, name).exists() for tower in TOWERS)]
    if not held:
        missing = next(path for tower in TOWERS if not (path := _graph(repository / tower, DEFAULT_VARIANT)).exists())
        raise ServerStartError(f"{missing.parent} has no {missing.name}. {EXPORT_CURE}")
    if variant not in held:
        raise ServerStartError(
            f"--variant {variant!r}: {repository} holds {', '.join(held)} alone. Serve that, or export with "
            "--variant of what you need."
        )


def _graph(tower: Path, variant: str) -> Path:
    """Return the file that a variant's config loads."""
    named = GRAPH.search(_config(tower, variant).read_text(encoding="utf-8"))
    return tower / "1" / (named[1] if named else "model.onnx")


def _check_bounds(repository: Path, model_config_name: str | None) -> None:
    enforced, advertised = (
        dict(PARAMETER.findall(_config(repository / model, model_config_name).read_text(encoding="utf-8")))
        for model in ("preprocess", "info")
    )
    for name in sorted((enforced.keys() | advertised.keys()) - {"variant"}):
        if enforced.get(name) != advertised.get(name):
            raise ServerStartError(
                f"the bound {name} is {enforced.get(name)} in preprocess and {advertised.get(name)} in info. "
                "Make the parameters lines of both config.pbtxt the same."
            )


def _config(model: Path, model_config_name: str | None) -> Path:
    variant = model / "configs" / f"{model_config_name}.pbtxt"
    return variant if variant.exists() else model / "config.pbtxt"
