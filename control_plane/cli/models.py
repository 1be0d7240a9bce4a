"""`loraplane models` and `loraplane tokenize`: what can be asked for, and what a prompt costs."""

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from control_plane.cli.command import Session
from control_plane.cli.generate import Model, Prompt, RawPrompt, SystemMessage, chat_of
from control_plane.cli.output import console, note, print_table, short_digest
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1 import inference_pb2_grpc

STUB = inference_pb2_grpc.InferenceStub
PAGE_SIZE = 1000


def models(session: Session) -> None:
    """List base models and adapters that your key may use."""
    request = pb.ListModelsRequest(page_size=PAGE_SIZE)
    found: list[pb.Model] = []
    while True:
        page: pb.ListModelsResponse = session.call(STUB, "ListModels", request)
        found.extend(page.models)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    session.show(pb.ListModelsResponse(models=found), _print_models)


def tokenize(
    session: Session,
    model: Model,
    prompt: Prompt,
    raw: RawPrompt = False,
    system: SystemMessage = "",
    count: Annotated[bool, typer.Option("--count", help="print how many, not which")] = False,
) -> None:
    """Print the token ids of a prompt, as a generation would have them."""
    request = pb.TokenizeRequest(model=model)
    text = sys.stdin.read() if prompt == "-" else prompt
    if raw:
        request.text = text
    else:
        request.chat.CopyFrom(chat_of(text, system))
    answer = session.call(STUB, "Tokenize", request)
    session.show(answer, _print_count if count else _print_tokens)


def _print_models(page: pb.ListModelsResponse) -> None:
    columns = ("id", "parent", "root", "revision", "digest", "created")
    print_table(
        columns,
        (
            (one.id, one.parent, one.root, one.revision or "", short_digest(one.digest), _created(one))
            for one in page.models
        ),
    )


def _created(model: pb.Model) -> str:
    if not model.created_unix_s:
        return ""
    return f"{datetime.fromtimestamp(model.created_unix_s, UTC):%Y-%m-%d %H:%M:%S}Z"


def _print_tokens(answer: pb.TokenizeResponse) -> None:
    console.print(" ".join(map(str, answer.token_ids)), soft_wrap=True)
    note(f"[{len(answer.token_ids)} tokens; prompt and output may have {answer.max_model_len}]")


def _print_count(answer: pb.TokenizeResponse) -> None:
    console.print(len(answer.token_ids))
