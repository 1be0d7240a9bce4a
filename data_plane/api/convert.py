"""Protocol messages ↔ engine values. No decisions: a field is copied, or refused by name."""

from collections.abc import Callable
from typing import Any

from data_plane.adapters.revision import Tier
from data_plane.engine.events import (
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Logprobs,
    Started,
)
from data_plane.errors import InvalidRequest
from data_plane.scheduler.plan import TokenLogprob
from data_plane.scheduler.sampling import SamplingParams
from protos.inference.v1 import inference_pb2 as pb

TokenText = Callable[[int], str]  # a token id as text, for log-probabilities

TIER_TO_PROTO = {
    None: pb.TIER_UNSPECIFIED,
    Tier.SLOT: pb.TIER_SLOT,
    Tier.CPU: pb.TIER_CPU,
    Tier.DISK: pb.TIER_DISK,
    Tier.SOURCE: pb.TIER_SOURCE,
}
_REASON_TO_PROTO = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


def sampling_from_proto(message: pb.SamplingParams) -> SamplingParams:
    """Absent fields take the defaults of SamplingParams; raise InvalidRequest for a broken rule."""
    # Only what was sent: proto3 tells an absent optional scalar from a zero.
    given: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    stop, stop_token_ids = given.pop("stop", ()), given.pop("stop_token_ids", ())
    return SamplingParams(stop=tuple(stop), stop_token_ids=tuple(stop_token_ids), **given)


def chat_from_proto(chat: pb.ChatMessages) -> list[dict[str, str]]:
    """Messages as chat templates take them; only text parts are served by text models."""
    return [
        {"role": message.role, "content": "".join(_text_of(part) for part in message.parts)}
        for message in chat.messages
    ]


def _text_of(part: pb.ContentPart) -> str:
    kind = part.WhichOneof("content")
    if kind != "text":
        raise InvalidRequest("chat.messages.parts", kind, "is not served by this model: only text is")
    return part.text


def event_to_proto(
    event: Event,
    *,
    worker_id: str,
    base_model: str,
    base_digest: str,
    prompt_tokens: int,
    token_text: TokenText,
) -> pb.GenerateResponse:
    """One engine event as one message; a Failed raises its error, which becomes the call's status."""
    match event:
        case Delta():
            return _delta(event, token_text)
        case Started():
            started = _started(event, worker_id, base_model, base_digest)
            started.prompt_tokens = prompt_tokens
            return pb.GenerateResponse(started=started)
        case Finished():
            return pb.GenerateResponse(finished=_finished(event))
        case Failed():
            raise event.error


def _started(event: Started, worker_id: str, base_model: str, base_digest: str) -> pb.Started:
    revision = event.revision
    return pb.Started(
        request_id=event.request_id,
        base_model=base_model,
        adapter=revision.name if revision else "",
        revision=revision.number if revision else 0,
        digest=revision.digest if revision else base_digest,
        worker_id=worker_id,
        tier=TIER_TO_PROTO[event.tier],
        load_s=event.load_s,
        queue_s=event.queue_s,
    )


def _delta(event: Delta, token_text: TokenText) -> pb.GenerateResponse:
    # Filled in place: 1.4 µs, made from a Delta that is copied into it 2.0.
    response = pb.GenerateResponse()
    delta = response.delta
    delta.index = event.index
    delta.text = event.text
    delta.token_ids.extend(event.token_ids)
    if event.logprobs:
        delta.logprobs.extend(_logprobs(entry, token_text) for entry in event.logprobs)
    return response


def _logprobs(entry: Logprobs, token_text: TokenText) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        chosen=_logprob(entry.chosen, token_text), top=[_logprob(one, token_text) for one in entry.top]
    )


def _logprob(one: TokenLogprob, token_text: TokenText) -> pb.TokenLogprob:
    return pb.TokenLogprob(token_id=one.token_id, logprob=one.logprob, text=token_text(one.token_id))


def _finished(event: Finished) -> pb.Finished:
    return pb.Finished(
        choices=[
            pb.FinishedChoice(
                index=choice.index, reason=_REASON_TO_PROTO[choice.reason], matched_stop=choice.matched_stop
            )
            for choice in event.choices
        ],
        usage=pb.Usage(
            prompt_tokens=event.prompt_tokens,
            cached_tokens=event.cached_tokens,
            completion_tokens=event.completion_tokens,
        ),
    )
