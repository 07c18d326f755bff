"""Messages to training rows: `render`, the renderer that every stage uses (its core is `common.chats`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.chats import PromptMismatch, Rendered, Renderer, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Rendered", "Renderer", "render"]


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: list | None = None,
    template_arguments: Mapping[str, Any] | None = None,
    turns: Turns = "all",
    prompt_mismatch: PromptMismatch = "as_inferred",
    supervise_after_end: bool = False,
) -> list[Rendered]:
    """The training rows of a chat: its token ids and, for each, whether the model would have to generate it.

    Args:
        messages: {role, content} and, where the template reads them, tool_calls, reasoning_content, name, ...; an
            assistant message with `weight: 0` or `train: false` is not supervised.
        tools: JSON schemas of the functions that the chat may call.
        template_arguments: variables of the template, such as {"enable_thinking": False}.
        turns: `all` assistant turns are supervised, or the `last`.
        prompt_mismatch: what becomes of a turn whose prompt is no prefix of the whole rendering: a row of its own, the
            prompt and the answer (`as_inferred`), or a ConfigError (`error`).
        supervise_after_end: also the white space after the token that ends a turn.

    Returns:
        One row; several where the prompt of some turn is no prefix of the whole rendering.

    Raises:
        ConfigError: the template refuses the chat, leaves something of it out, or ends a turn with nothing; one line
            that names the turn.
    """
    renderer = Renderer(
        tokenizer,
        template_arguments=template_arguments,
        turns=turns,
        prompt_mismatch=prompt_mismatch,
        supervise_after_end=supervise_after_end,
    )
    return renderer.rows(messages, tools)
