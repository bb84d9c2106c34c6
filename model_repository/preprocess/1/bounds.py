"""What one request may cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Bounds:
    """What one request may cost; the `parameters` of preprocess/config.pbtxt."""

    max_items: int = 64  # items of a pack
    max_tokens: int = 8192  # tokens of an item, template and image included
    max_pack_tokens: int = 16384  # tokens of a pack
    max_pack_image_tokens: int = 4096  # visual tokens of a pack
    max_text_bytes: int = 262_144  # UTF-8 bytes of a text or an instruction
    max_image_bytes: int = 20_971_520  # bytes of an encoded image
    max_image_pixels: int = 67_108_864  # pixels of an image, checked before decoding
    max_pack_pixels: int = 134_217_728  # pixels that the images of a pack have to be decoded; see `Picture.work_pixels`
    max_pack_text_bytes: int = 1_048_576  # UTF-8 bytes of a pack that are tokenised, the instruction's for each item
    min_pixels: int = 4096  # an image is scaled up to at least this
    max_pixels: int = 1_843_200  # and down to at most this: 1800 visual tokens

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Mapping[str, str]]) -> Bounds:
        """Read the `parameters` of a model configuration, as Triton passes them."""
        return cls(**{field.name: int(parameters[field.name]["string_value"]) for field in fields(cls)})
