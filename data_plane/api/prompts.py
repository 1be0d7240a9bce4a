"""Prompts to token ids, exactly as the model was trained: special tokens, chat template.

Tokenizers are fast but not free: long texts are tokenized on a thread, off the event loop.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from data_plane.api import convert
from data_plane.errors import InvalidRequest
from protos.inference.v1 import inference_pb2 as pb

# Below this, a thread's hand-over (~100 µs) costs more than tokenizing (~1 µs a word).
INLINE_CHARACTERS = 2_000


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    chat_template: Any

    def __len__(self) -> int:
        """Size of the vocabulary, added tokens included."""

    def encode(self, text: str, /) -> list[int]:
        """Ids of a text, with the model's special tokens."""

    def decode(self, token_ids: Sequence[int], /) -> str:
        """Text of ids."""

    def apply_chat_template(self, conversation: Any, /, **kwargs: Any) -> Any:
        """Render messages with the model's template."""


class Prompts:
    """Turns the prompt of a request into token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    async def token_ids(self, request: pb.GenerateRequest | pb.TokenizeRequest) -> tuple[int, ...]:
        """Ids of the request's prompt; raise InvalidRequest naming the field."""
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise InvalidRequest("prompt", None, "is missing: set text, token_ids or chat")
        if kind == "token_ids":
            return self._checked(request.token_ids.ids)  # type: ignore[union-attr]
        if kind == "chat":
            messages = convert.chat_from_proto(request.chat)
            size = sum(len(message["content"]) for message in messages)
            return await self._off_loop(size, self._render, messages)
        return await self._off_loop(len(request.text), self._tokenizer.encode, request.text)

    def text_of(self, token_id: int) -> str:
        """One token as text."""
        return self._tokenizer.decode([token_id])

    def _checked(self, ids: Sequence[int]) -> tuple[int, ...]:
        size = len(self._tokenizer)
        for position, token_id in enumerate(ids):
            if token_id >= size:
                raise InvalidRequest(
                    f"token_ids.ids[{position}]", token_id, f"must be below the vocabulary size {size}"
                )
        return tuple(ids)

    def _render(self, messages: list[dict[str, str]]) -> list[int]:
        if not messages:
            raise InvalidRequest("chat.messages", [], "must not be empty")
        if self._tokenizer.chat_template is None:
            raise InvalidRequest(
                "chat", "messages", "need a chat template, and this model has none: use text"
            )
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates raise jinja2 errors of their own making for roles they refuse
            raise InvalidRequest(
                "chat.messages", [m["role"] for m in messages], f"do not fit: {error}"
            ) from error
        return self._tokenizer.encode(text, add_special_tokens=False)  # type: ignore[call-arg]

    @staticmethod
    async def _off_loop(size: int, function: Any, argument: Any) -> tuple[int, ...]:
        ids = function(argument) if size < INLINE_CHARACTERS else await asyncio.to_thread(function, argument)
        return tuple(ids)
