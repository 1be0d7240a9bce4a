"""`loraplane generate`: stream one generation to the terminal."""

import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from control_plane.api.meter import completion_bound, prompt_bound
from control_plane.cli.command import Session
from control_plane.cli.output import console, enum_label, note, print_json, short_digest
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1 import inference_pb2_grpc

STUB = inference_pb2_grpc.InferenceStub
GRANT = "loraplane-grant"
Model = Annotated[str, typer.Argument(help="base model, adapter, alias, adapter@revision, tenant/adapter")]
Prompt = Annotated[str, typer.Argument(help="what to say; `-` reads standard input")]
RawPrompt = Annotated[bool, typer.Option("--raw", help="plain text instead of a chat message")]
SystemMessage = Annotated[str, typer.Option(help="a system message before the prompt")]


def generate(
    session: Session,
    model: Model,
    prompt: Prompt,
    raw: RawPrompt = False,
    system: SystemMessage = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="most new tokens")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    top_p: Annotated[
        float | None, typer.Option(help="of the likeliest tokens, those with this share")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="only so many of the likeliest tokens")] = None,
    seed: Annotated[int | None, typer.Option(help="the same again: the same tokens")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="a stop string; repeat for more")] = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="ask the worker itself, past the control plane's relay")
    ] = False,
) -> None:
    """Stream one generation; the receipt and the usage go to standard error."""
    sampling = pb.SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, stop=stop or ()
    )
    request = pb.GenerateRequest(model=model, sampling=sampling)
    _set_prompt(request, sys.stdin.read() if prompt == "-" else prompt, system, raw)
    began_s = time.monotonic()
    for response in _ask_worker(session, request) if direct else session.stream(STUB, "Generate", request):
        if session.as_json:
            print_json(response, indent=None)
        else:
            _print(response, time.monotonic() - began_s)


def _ask_worker(session: Session, request: pb.GenerateRequest) -> Iterator[pb.GenerateResponse]:
    """Get leave from the control plane and stream from the worker that it names."""
    wanted = pb.RouteRequest(
        model=request.model,
        prompt_tokens=prompt_bound(request),
        max_tokens=completion_bound(request.sampling),
    )
    routed: pb.RouteResponse = session.call(STUB, "Route", wanted)
    with session.connection.tls.channel(routed.address, routed.tls_server_name) as channel:
        call = STUB(channel).Generate(request, metadata=((GRANT, routed.grant),))
        try:
            yield from call
        finally:
            call.cancel()


def _set_prompt(request: pb.GenerateRequest, prompt: str, system: str, raw: bool) -> None:
    if raw:
        request.text = prompt
        return
    request.chat.CopyFrom(chat_of(prompt, system))


def chat_of(prompt: str, system: str) -> pb.ChatMessages:
    """A conversation that begins."""
    turns = [("system", system)] if system else []
    return pb.ChatMessages(
        messages=[
            pb.ChatMessage(role=role, parts=[pb.ContentPart(text=text)])
            for role, text in [*turns, ("user", prompt)]
        ]
    )


def _print(response: pb.GenerateResponse, elapsed_s: float) -> None:
    match response.WhichOneof("event"):
        case "started":
            note(receipt(response.started))
        case "delta":
            console.file.write(response.delta.text)
            console.file.flush()
        case "finished":
            console.file.write("\n")
            note(summary(response.finished, elapsed_s))


def receipt(started: pb.Started) -> str:
    """The receipt in one line."""
    who = f"{started.adapter}@{started.revision}" if started.adapter else started.base_model
    tier = enum_label(pb.Tier.Name(started.tier), "TIER_") if started.adapter else "base"
    return (
        f"[{who} {short_digest(started.digest)} from {tier}, load {started.load_s * 1e3:.0f} ms, "
        f"queue {started.queue_s * 1e3:.0f} ms, {started.worker_id}]"
    )


def summary(finished: pb.Finished, elapsed_s: float) -> str:
    """Usage and speed in one line."""
    usage = finished.usage
    rate = usage.completion_tokens / elapsed_s
    reasons = ", ".join(
        enum_label(pb.FinishReason.Name(choice.reason), "FINISH_REASON_") for choice in finished.choices
    )
    return (
        f"[{reasons}: {usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), "
        f"{usage.completion_tokens} new, {rate:.1f} tokens/s]"
    )
