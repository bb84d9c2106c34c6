"""What preprocessing must know of a checkpoint beside its tokenizer: the content of `preprocessing.json`.

Derived from the checkpoint's own configuration and chat template by those who load one (export, fine-tuning), never
while serving. Takes transformers' config and tokenizer as they are and imports neither.
"""

from __future__ import annotations

from typing import Any

DEFAULT_INSTRUCTION = "Represent the user's input."  # of the official embedder
MIN_DIMENSIONS = 64  # of the model card: Matryoshka sizes from 64
IMAGE_RULES = 2  # of `decode`; counted up when an image may give other pixels, since the fingerprint has to change


def preprocessing_settings(config: Any, tokenizer: Any, *, exif_orientation: bool = True) -> dict[str, Any]:
    """Return what `Preprocessor` reads from preprocessing.json.

    Parameters
    ----------
    config
        The Qwen3VLConfig of the checkpoint.
    tokenizer
        Its tokenizer, with the chat template.
    exif_orientation
        Whether pictures are turned upright as EXIF says; the official script turns TIFF alone.

    Raises
    ------
    ValueError
        The chat template fails, or does not lay an item out as Qwen3-VL-Embedding's does.
    """
    hidden_size = int(config.text_config.hidden_size)
    image_token = str(tokenizer.convert_ids_to_tokens(config.image_token_id))
    return {
        "hidden_size": hidden_size,
        "min_dimensions": MIN_DIMENSIONS,
        # main features and DeepStack features of a visual token: 4D for a DeepStack of three
        "image_embeds_size": (1 + len(config.vision_config.deepstack_visual_indexes)) * hidden_size,
        "default_instruction": DEFAULT_INSTRUCTION,
        "image_rules": IMAGE_RULES,
        "exif_orientation": exif_orientation,
        "image_token": image_token,
        "prompt": _prompt_pieces(tokenizer, image_token),
    }


def render(tokenizer: Any, instruction: str, content: list[dict[str, str]]) -> str:
    """Render one item through the checkpoint's chat template, in the sandbox of transformers.

    Raises
    ------
    ValueError
        The template fails, or asks for what the sandbox forbids.
    """
    messages: list[Any] = [
        {"role": "system", "content": [{"type": "text", "text": instruction}]},
        {"role": "user", "content": content},
    ]
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except Exception as error:  # a template is a program, and fails in any way
        raise ValueError(
            f"the chat template cannot be rendered ({type(error).__name__}: {str(error)[:200]}). "
            "Use the chat template of Qwen3-VL-Embedding."
        ) from error


def _prompt_pieces(tokenizer: Any, image_token: str) -> dict[str, str]:
    """Take the template apart around instruction, image and text, and prove that the pieces make it again."""
    instruction, text = "⟦instruction⟧", " ⟦text⟧ "
    image_item, text_item = {"type": "image"}, {"type": "text", "text": text}
    with_text = render(tokenizer, instruction, [text_item])
    with_image = render(tokenizer, instruction, [image_item, text_item])
    try:
        before_instruction, rest = with_text.split(instruction)
        after_instruction, after_content = rest.split(text)
        image = with_image.removeprefix(before_instruction + instruction + after_instruction)
        image = image.removesuffix(text + after_content)
    except ValueError as error:
        raise ValueError(
            "the chat template does not put instruction and text in the prompt once and unchanged. "
            "Use the chat template of Qwen3-VL-Embedding."
        ) from error
    pieces = {
        "before_instruction": before_instruction,
        "after_instruction": after_instruction,
        "image": image,
        "after_content": after_content,
    }
    if image.count(image_token) != 1 or render(tokenizer, instruction, [image_item]) != (
        before_instruction + instruction + after_instruction + image + after_content
    ):
        raise ValueError(
            f"the chat template gives an image as {image!r}; it must stand before the text with one {image_token}. "
            "Use the chat template of Qwen3-VL-Embedding."
        )
    return pieces
