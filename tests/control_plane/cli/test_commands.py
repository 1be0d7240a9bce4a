"""The command against a scripted API over real gRPC."""

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from typer.testing import CliRunner

from control_plane.cli import app
from control_plane.cli.connection import write_client_file
from protos.inference.v1 import inference_pb2, inference_pb2_grpc
from protos.registry.v1 import registry_pb2 as pb
from protos.registry.v1 import registry_pb2_grpc

PIRATE = pb.Adapter(
    tenant="acme",
    name="pirate",
    current_revision=2,
    revisions=[
        pb.Revision(number=1, digest="sha256:" + "1" * 64, state=pb.REVISION_STATE_READY),
        pb.Revision(
            number=2, digest="sha256:" + "2" * 64, rank=16, size_bytes=3 << 20, state=pb.REVISION_STATE_READY
        ),
    ],
)


class Api(registry_pb2_grpc.AdapterRegistryServicer, inference_pb2_grpc.InferenceServicer):
    """Answers as told and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[object] = []
        self.metadata: list[dict[str, str]] = []
        self.failure: status_pb2.Status | None = None
        self.reports = pb.WorkerReports()
        self.worker = ""  # whom Route names; empty: this one
        self.left: pb.Adapter | None = None  # of what is deleted
        self.breaks = False  # a watch, when it has shown what it has

    def _take(self, request, context) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.failure:
            context.abort_with_status(rpc_status.to_status(self.failure))

    def ListAdapters(self, request, context):
        self._take(request, context)
        if not request.page_token:
            return pb.ListAdaptersResponse(adapters=[PIRATE], next_page_token="more")
        return pb.ListAdaptersResponse(adapters=[pb.Adapter(**_second())])

    def RegisterAdapter(self, request, context):
        self._take(request, context)
        return PIRATE

    def PublishRevision(self, request, context):
        self._take(request, context)
        return PIRATE

    def LoadAdapter(self, request, context):
        self._take(request, context)
        return self.reports

    def Rollback(self, request, context):
        self._take(request, context)
        return PIRATE

    def DeleteAdapter(self, request, context):
        self._take(request, context)
        return pb.DeleteAdapterResponse(adapter=self.left)

    def GetAdapter(self, request, context):
        self._take(request, context)
        return self.left or PIRATE

    def EvictAdapter(self, request, context):
        self._take(request, context)
        return self.reports

    def WatchAdapters(self, request, context):
        self._take(request, context)
        yield pb.AdapterEvent(type=pb.AdapterEvent.TYPE_ADDED, adapter=PIRATE)
        yield pb.AdapterEvent(type=pb.AdapterEvent.TYPE_ADDED, adapter=PIRATE, resume_version="41")
        yield pb.AdapterEvent(
            type=pb.AdapterEvent.TYPE_DELETED, adapter=pb.Adapter(**_second()), resume_version="42"
        )
        if self.breaks:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server goes away")

    def ListModels(self, request, context):
        self._take(request, context)
        if not request.page_token:
            base = inference_pb2.Model(id="smollm2", root="/models/smollm2")
            return inference_pb2.ListModelsResponse(models=[base], next_page_token="smollm2")
        adapter = inference_pb2.Model(id="pirate", parent="smollm2", revision=2, created_unix_s=86400)
        return inference_pb2.ListModelsResponse(models=[adapter])

    def Tokenize(self, request, context):
        self._take(request, context)
        return inference_pb2.TokenizeResponse(token_ids=[7, 8, 9], max_model_len=2048)

    def Route(self, request, context):
        self._take(request, context)
        return inference_pb2.RouteResponse(address=self.worker or f"127.0.0.1:{self.port}", grant="signed")

    def Generate(self, request, context):
        self._take(request, context)
        yield inference_pb2.GenerateResponse(
            started=inference_pb2.Started(adapter="pirate", revision=2, digest="sha256:22", worker_id="w1")
        )
        for text in ("Yo ", "ho"):
            yield inference_pb2.GenerateResponse(delta=inference_pb2.Delta(text=text, token_ids=[1]))
        yield inference_pb2.GenerateResponse(
            finished=inference_pb2.Finished(usage=inference_pb2.Usage(prompt_tokens=3, completion_tokens=2))
        )


def _second() -> dict[str, object]:
    return {
        "tenant": "globex",
        "name": "legalese",
        "current_revision": 1,
        "revisions": [pb.Revision(number=1)],
    }


@pytest.fixture
def api():
    servicer = Api()
    server = grpc.server(ThreadPoolExecutor(2))
    registry_pb2_grpc.add_AdapterRegistryServicer_to_server(servicer, server)
    inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server)
    servicer.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer
    server.stop(None)


@pytest.fixture
def run(api, tmp_path):
    (tmp_path / "admin.key").write_text("lp_secret\n")
    write_client_file(tmp_path, f"127.0.0.1:{api.port}", tmp_path / "admin.key")

    def run(*arguments: str, **options):
        environment = {"LORAPLANE_STATE_DIR": str(tmp_path), "COLUMNS": "200"}
        return CliRunner(env=environment).invoke(app, arguments, **options)

    return run


def failure(code: grpc.StatusCode, message: str, *details) -> status_pb2.Status:
    packed = []
    for detail in details:
        one = Any()
        one.Pack(detail)
        packed.append(one)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)


def test_endpoint_and_key_come_from_the_file_that_up_wrote(api, run):
    assert run("adapter", "list").exit_code == 0
    assert api.metadata[0]["authorization"] == "Bearer lp_secret"


def test_a_key_that_is_given_wins_over_the_file(api, run):
    run("adapter", "list", "--key", "lp_other")
    assert api.metadata[0]["authorization"] == "Bearer lp_other"


def test_a_listing_has_the_rows_of_every_page_with_the_current_revision(run):
    lines = run("adapter", "list").output.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["pirate", "acme", "2"], ["legalese", "globex", "1"]]
    assert "sha256:222222222222 " in lines[1]
    assert "3.0 MiB" in lines[1]


def test_json_has_every_field_under_its_protocol_name(run):
    adapters = json.loads(run("adapter", "list", "--json").stdout)["adapters"]
    assert [adapter["current_revision"] for adapter in adapters] == ["2", "1"]
    assert adapters[1]["aliases"] == []


def test_options_reach_the_request(api, run):
    run(
        "adapter",
        "register",
        "pirate",
        "--tenant",
        "acme",
        "--source",
        "/a",
        "--label",
        "team=x",
        "--alias",
        "p",
    )
    request = api.requests[0]
    assert (request.tenant, request.name, request.source) == ("acme", "pirate", "/a")
    assert dict(request.labels) == {"team": "x"}
    assert list(request.aliases) == ["p"]


def test_a_revision_that_is_not_expected_is_not_sent_as_zero(api, run):
    run("adapter", "publish", "pirate", "--policy", "drain")
    assert not api.requests[0].HasField("expected_revision")
    assert api.requests[0].reload_policy == pb.RELOAD_POLICY_DRAIN


def test_a_label_without_a_value_is_wrong_usage(run):
    result = run("adapter", "register", "pirate", "--label", "team")
    assert result.exit_code == 2
    assert "KEY=VALUE" in result.output


def test_a_failed_call_is_one_line_with_status_and_advice(api, run):
    api.failure = failure(grpc.StatusCode.PERMISSION_DENIED, "not yours")
    result = run("adapter", "list")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: PERMISSION_DENIED: not yours — use a key whose role and tenant allow it"
    ]


def test_a_quota_refusal_says_when_to_retry(api, run):
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
    api.failure = failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "over requests_per_minute", retry)
    result = run("generate", "pirate", "hi")
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("retry in 1.5 s")


def about(kind: str) -> error_details_pb2.ResourceInfo:
    return error_details_pb2.ResourceInfo(resource_type=kind, resource_name="acme/pirate")


def bad(*fields: str) -> error_details_pb2.BadRequest:
    violations = [error_details_pb2.BadRequest.FieldViolation(field=field) for field in fields]
    return error_details_pb2.BadRequest(field_violations=violations)


@pytest.mark.parametrize(
    ("code", "details", "advice"),
    [
        (grpc.StatusCode.NOT_FOUND, [about("adapter")], "`loraplane adapter list` shows what there is"),
        (grpc.StatusCode.NOT_FOUND, [about("model")], "`loraplane models` shows what your key may use"),
        (grpc.StatusCode.NOT_FOUND, [], "check the name and the tenant"),
        (grpc.StatusCode.ALREADY_EXISTS, [about("adapter")],
         "`loraplane adapter publish NAME` gives it new weights, `adapter delete NAME` frees it"),
        (grpc.StatusCode.FAILED_PRECONDITION, [],
         "nothing was changed; mend what it names, then call again"),
        (grpc.StatusCode.INVALID_ARGUMENT, [bad("labels['a']", "source")],
         "change labels['a'], source: --help says what it may be"),
        (grpc.StatusCode.INVALID_ARGUMENT, [], "change what you gave: --help says what it may be"),
        (grpc.StatusCode.ABORTED, [about("adapter")], "read the adapter again and decide"),
        (grpc.StatusCode.ABORTED, [about("change")], "watch again without --from-version"),
    ],
)  # fmt: skip
def test_every_refusal_says_what_to_do_by_its_details(api, run, code, details, advice):
    api.failure = failure(code, "it [is]\nnot so", *details)
    assert run("adapter", "list").stderr == f"error: {code.name}: it [is] not so — {advice}\n"


def test_every_status_has_advice(api, run):
    for code in set(grpc.StatusCode) - {grpc.StatusCode.OK}:
        api.failure = failure(code, "no")
        head, dash, advice = run("adapter", "list").stderr.partition(" — ")
        assert (head, dash) == (f"error: {code.name}: no", " — ")
        assert advice.strip()


def test_no_control_plane_is_said_with_what_to_do(run):
    result = run("adapter", "list", "--endpoint", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "loraplane up" in result.stderr


def test_a_worker_that_refused_makes_the_command_fail(api, run):
    api.reports = pb.WorkerReports(
        reports=[pb.WorkerReport(worker_id="w1", ok=True), pb.WorkerReport(worker_id="w2", reason="leased")]
    )
    result = run("adapter", "evict", "pirate")
    assert result.exit_code == 1
    assert "leased" in result.stdout


def test_generated_text_alone_is_on_standard_output(run):
    result = run("generate", "pirate", "hi")
    assert result.stdout == "Yo ho\n"
    assert "pirate@2" in result.stderr
    assert "2 new" in result.stderr


def test_a_prompt_is_a_chat_message_unless_raw(api, run):
    run("generate", "pirate", "hi", "--system", "be brief")
    run("generate", "pirate", "-", "--raw", input="from stdin")
    chat, raw = api.requests
    assert [message.role for message in chat.chat.messages] == ["system", "user"]
    assert raw.text == "from stdin"


def test_a_stream_as_json_is_one_document_a_line(run):
    lines = run("generate", "pirate", "hi", "--json").stdout.splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["started", "delta", "delta", "finished"]


def test_a_direct_generation_takes_its_grant_and_no_key_to_the_worker(api, run):
    answered = run("generate", "pirate", "hi", "--raw", "--max-tokens", "7", "--direct")
    assert answered.stdout == "Yo ho\n", answered.stderr
    route, generate = api.requests
    assert (route.model, route.max_tokens) == ("pirate", 7)
    assert len("hi") <= route.prompt_tokens < 100
    assert generate.text == "hi"
    of_route, of_generate = api.metadata
    assert of_route["authorization"] == "Bearer lp_secret"
    assert of_generate["loraplane-grant"] == "signed"
    assert "authorization" not in of_generate


@pytest.mark.parametrize("endpoint", ["10.0.0.1:8470", "example.org:8470", "dns:///example.org:8470"])
def test_a_key_is_not_sent_beyond_this_machine_in_plain_text_unless_that_is_said(run, monkeypatch, endpoint):
    dialed = []

    def dial(endpoint: str) -> grpc.Channel:
        dialed.append(endpoint)
        raise OSError("dialed")

    monkeypatch.setattr(grpc, "insecure_channel", dial)
    refused = run("adapter", "list", "--endpoint", endpoint)
    assert (refused.exit_code, dialed) == (1, [])
    assert len(refused.stderr.splitlines()) == 1
    assert endpoint in refused.stderr
    assert "--tls-ca-file" in refused.stderr
    assert "LORAPLANE_ALLOW_INSECURE" in refused.stderr
    run("adapter", "list", "--endpoint", endpoint, "--allow-insecure")
    monkeypatch.setenv("LORAPLANE_ALLOW_INSECURE", "true")
    run("adapter", "list", "--endpoint", endpoint)
    assert dialed == [endpoint, endpoint]


def test_a_grant_is_not_sent_beyond_this_machine_in_plain_text(api, run):
    api.worker = "10.0.0.1:8480"
    refused = run("generate", "acme/pirate", "hi", "--direct")
    assert refused.exit_code == 1
    assert "'10.0.0.1:8480' is beyond this machine" in refused.stderr


def test_a_watch_is_a_line_an_event_with_the_version_of_each(api, run):
    result = run("adapter", "watch", "--tenant", "acme", "--from-version", "17")
    assert (api.requests[0].tenant, api.requests[0].resource_version) == ("acme", "17")
    head, *lines = [line.split() for line in result.stdout.splitlines()]
    assert head == ["version", "change", "adapter", "revision", "digest", "state"]
    assert [line[:3] for line in lines] == [
        ["added", "acme/pirate", "2"],
        ["added", "acme/pirate", "2"],
        ["deleted", "globex/legalese", "1"],
    ]


def test_a_watch_that_breaks_says_from_where_to_go_on(api, run):
    api.breaks = True
    result = run("adapter", "watch", "--json")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "go on with --from-version 42"
    assert result.stderr.splitlines()[1].startswith("error: UNAVAILABLE: the server goes away")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["resume_version"] for event in events] == ["", "41", "42"]


def test_models_of_every_page_are_listed_with_their_lineage(run):
    base, adapter = [line.split() for line in run("models").stdout.splitlines()[1:]]
    assert base[:2] == ["smollm2", "/models/smollm2"]
    assert adapter == ["pirate", "smollm2", "2", "1970-01-02", "00:00:00Z"]
    assert [model["id"] for model in json.loads(run("models", "--json").stdout)["models"]] == [
        "smollm2",
        "pirate",
    ]


def test_tokens_of_a_prompt_are_printed_or_counted(api, run):
    result = run("tokenize", "pirate", "hi", "--system", "be brief")
    assert result.stdout == "7 8 9\n"
    assert "3 tokens; prompt and output may have 2048" in result.stderr
    assert [message.role for message in api.requests[0].chat.messages] == ["system", "user"]
    assert run("tokenize", "pirate", "-", "--raw", "--count", input="from stdin").stdout == "3\n"
    assert api.requests[1].text == "from stdin"


def test_a_load_in_place_and_an_expected_revision_reach_the_request(api, run):
    run("adapter", "load", "pirate", "--inplace")
    run("adapter", "rollback", "pirate", "--expected-revision", "3")
    load, rollback = api.requests
    assert load.load_inplace
    assert rollback.expected_revision == 3


def test_a_deleted_adapter_that_workers_hold_is_shown_as_deleting(api, run):
    assert run("adapter", "delete", "pirate").stdout == "deleted pirate\n"
    api.left = pb.Adapter()
    api.left.CopyFrom(PIRATE)
    api.left.delete_time.GetCurrentTime()
    assert run("adapter", "delete", "pirate").stdout == "deleting pirate: workers still hold it\n"
    assert "deleting" in run("adapter", "get", "pirate").stdout.splitlines()[1].split()
