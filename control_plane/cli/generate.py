"""`loraplane generate`: stream one generation to the terminal."""

import sys
import time
from typing import Annotated

import typer

from control_plane.cli.command import Session
from control_plane.cli.output import console, enum_label, print_json, short_digest
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1 import inference_pb2_grpc

STUB = inference_pb2_grpc.InferenceStub


def generate(
    session: Session,
    model: Annotated[
        str, typer.Argument(help="base model, adapter, alias, adapter@revision, tenant/adapter")
    ],
    prompt: Annotated[str, typer.Argument(help="what to say; `-` reads standard input")],
    raw: Annotated[bool, typer.Option("--raw", help="plain text instead of a chat message")] = False,
    system: Annotated[str, typer.Option(help="a system message before the prompt")] = "",
    max_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    top_p: Annotated[float | None, typer.Option()] = None,
    top_k: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    stop: Annotated[list[str] | None, typer.Option(help="a stop string; repeat for more")] = None,
) -> None:
    """Stream one generation; the receipt and the usage go to standard error."""
    sampling = pb.SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, stop=stop or ()
    )
    request = pb.GenerateRequest(model=model, sampling=sampling)
    _set_prompt(request, sys.stdin.read() if prompt == "-" else prompt, system, raw)
    began_s = time.monotonic()
    for response in session.stream(STUB, "Generate", request):
        if session.as_json:
            print_json(response, indent=None)
        else:
            _print(response, time.monotonic() - began_s)


def _set_prompt(request: pb.GenerateRequest, prompt: str, system: str, raw: bool) -> None:
    if raw:
        request.text = prompt
        return
    turns = [("system", system)] if system else []
    for role, text in [*turns, ("user", prompt)]:
        request.chat.messages.append(pb.ChatMessage(role=role, parts=[pb.ContentPart(text=text)]))


def _print(response: pb.GenerateResponse, elapsed_s: float) -> None:
    match response.WhichOneof("event"):
        case "started":
            _note(receipt(response.started))
        case "delta":
            console.file.write(response.delta.text)
            console.file.flush()
        case "finished":
            console.file.write("\n")
            _note(summary(response.finished, elapsed_s))


def _note(line: str) -> None:
    typer.echo(typer.style(line, dim=True), err=True)


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
