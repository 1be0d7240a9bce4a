"""Seeds: valid requests, whose mutated copies get further than random ones do.

By type of message; a type without one is fuzzed from random messages alone. `acme` is the tenant that
things are done to, on the worker `fake` and the key `key_id`.
"""

from collections.abc import Sequence

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from protos.access.v1 import access_pb2 as access
from protos.fleet.v1 import fleet_pb2 as fleet
from protos.inference.v1 import inference_pb2 as inference
from protos.quota.v1 import quota_pb2 as quota
from protos.registry.v1 import registry_pb2 as registry
from protos.relay.v1 import relay_pb2 as relay
from protos.sync.v1 import sync_pb2 as sync

Seeds = dict[str, list[Message]]  # by full name of the type
BASE_MODEL, FAKE_MODEL, FAKE_WORKER = "tiny", "fake-model", "fake"
_BOT = {"tenant": "acme", "name": "bot"}
_FAKE = {"tenant": "acme", "name": "fake"}


def seeds(*, sources: Sequence[str], key_id: str) -> Seeds:
    """Valid requests about adapters whose files are at `sources`."""
    by_type: Seeds = {}
    for message in (*_of_access(key_id), *_of_fleet(), *_of_inference(), *_of_quota(), *_of_sync(sources)):
        by_type.setdefault(message.DESCRIPTOR.full_name, []).append(message)
    for message in (*_of_registry(sources), *_of_relay(), *_of_orchestrators()):
        by_type.setdefault(message.DESCRIPTOR.full_name, []).append(message)
    return by_type


def _of_access(key_id: str) -> list[Message]:
    return [
        access.CreateKeyRequest(tenant="acme", role=access.ROLE_INFERENCE, description="app"),
        access.CreateKeyRequest(role=access.ROLE_WORKER),
        access.ListKeysRequest(tenant="acme"),
        access.RevokeKeyRequest(key_id=key_id),
        access.RotateKeyRequest(key_id=key_id, grace_s=1.5),
        access.ListAuditEventsRequest(page_size=3, page_token="1-1"),
    ]


def _of_fleet() -> list[Message]:
    return [
        fleet.GetWorkerRequest(worker_id=FAKE_WORKER),
        fleet.CordonWorkerRequest(worker_id=FAKE_WORKER, uncordon=True),
        fleet.DrainWorkerRequest(worker_id=FAKE_WORKER),
    ]


def _of_inference() -> list[Message]:
    text = inference.ContentPart(text="hello")
    chat = inference.ChatMessages(messages=[inference.ChatMessage(role="user", parts=[text, text])])
    sampling = inference.SamplingParams(
        temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.1,
        frequency_penalty=0.1, seed=7, max_tokens=4, min_tokens=1, stop=["zz"], stop_token_ids=[3],
        ignore_eos=True, logprobs=2, n=2,
    )  # fmt: skip
    short = inference.SamplingParams(max_tokens=3)
    return [
        inference.GenerateRequest(
            model=BASE_MODEL, text="hello", sampling=sampling, priority=1, routing_key="k"
        ),
        inference.GenerateRequest(model=BASE_MODEL, chat=chat, sampling=short),
        inference.GenerateRequest(
            model="acme/bot", token_ids=inference.TokenIds(ids=[5, 6, 7]), sampling=short
        ),
        inference.GenerateRequest(model="acme/bot@1", text="x", sampling=sampling),
        inference.GenerateRequest(model="acme/fake", text="x", sampling=short),
        inference.GenerateRequest(
            model=BASE_MODEL, text="x", sampling=short,
            structured_output=inference.StructuredOutput(regex="a+"),
        ),
        inference.TokenizeRequest(model=BASE_MODEL, text="hello"),
        inference.TokenizeRequest(model="acme/bot", chat=chat),
        inference.ListModelsRequest(page_size=2),
    ]  # fmt: skip


def _of_quota() -> list[Message]:
    limits = quota.Limits(
        requests_per_minute=100_000, tokens_per_minute=10**9, concurrent_requests=1000, resident_slots=2
    )
    return [
        quota.SetQuotaRequest(quota=quota.Quota(tenant="acme", limits=limits)),
        quota.SetQuotaRequest(quota=quota.Quota(tenant="acme", adapter="bot", limits=limits)),
        quota.GetQuotaRequest(tenant="acme", adapter="bot"),
        quota.DeleteQuotaRequest(tenant="acme", adapter="bot"),
        quota.ListQuotasRequest(page_size=2),
        quota.GetUsageRequest(tenant="acme"),
    ]


def _of_registry(sources: Sequence[str]) -> list[Message]:
    new = [
        registry.RegisterAdapterRequest(
            tenant="acme", name=f"new{i}", source=source, base_model=BASE_MODEL, labels={"team": "a"},
            aliases=[f"alias{i}"], shared_with=["globex"],
        )
        for i, source in enumerate(sources)
    ]  # fmt: skip
    shares = [
        registry.TrafficWeight(revision=1, weight=1),
        registry.TrafficWeight(revision=2, weight=3),
    ]
    return [
        *new,
        *(registry.PublishRevisionRequest(**_BOT, source=source) for source in sources),
        registry.PublishRevisionRequest(**_BOT, source=sources[0], expected_revision=2, keep_current=True),
        registry.GetAdapterRequest(**_BOT),
        registry.ListAdaptersRequest(tenant="acme", name_prefix="b", labels={"team": "a"}, page_size=3),
        registry.ListAdaptersRequest(page_size=3, page_token="acme/bot"),
        registry.RollbackRequest(**_BOT, revision=1, expected_revision=2),
        registry.SetTrafficRequest(**_BOT, traffic=shares),
        registry.StartCanaryRequest(**_BOT, revision=1, percent=10, max_error_increase=0.1, window_s=5),
        registry.EndCanaryRequest(**_BOT, promote=True),
        registry.PinAdapterRequest(**_BOT, tier=registry.PIN_TIER_SLOT),
        registry.UnpinAdapterRequest(**_BOT),
        registry.DeleteAdapterRequest(tenant="acme", name="new0"),
        registry.WatchAdaptersRequest(tenant="acme"),
        registry.WatchAdaptersRequest(resource_version="1"),
        registry.LoadAdapterRequest(**_BOT, load_inplace=True),
        registry.LoadAdapterRequest(**_FAKE, worker_ids=[FAKE_WORKER]),
        registry.EvictAdapterRequest(**_BOT, cancel_running=True),
        registry.EvictAdapterRequest(**_FAKE, worker_ids=[FAKE_WORKER]),
        registry.ReloadAdapterRequest(**_BOT, policy=registry.RELOAD_POLICY_DRAIN),
        registry.ReloadAdapterRequest(**_FAKE, worker_ids=[FAKE_WORKER]),
    ]


def _of_sync(sources: Sequence[str]) -> list[Message]:
    held = fleet.HeldAdapter(
        tenant="acme", name="bot", revision=1, digest="sha256:" + "0" * 64, rank=4, tier=inference.TIER_CPU,
        size_bytes=100, idle_s=0.5,
    )  # fmt: skip
    status = fleet.WorkerStatus(adapters=[held], free_blocks=10)
    hello = sync.Hello(
        worker_id="strange", instance_id="i", address="127.0.0.1:9", base_model="strange-model",
        base_model_digest="sha256:1", capacity=fleet.Capacity(max_loras=1, max_lora_rank=8, cpu_bytes=1000),
    )  # fmt: skip
    return [
        # Twice: most streams begin with it.
        sync.WorkerMessage(hello=hello),
        sync.WorkerMessage(hello=hello),
        sync.WorkerMessage(observed=sync.ObservedState(generation=1, status=status)),
        sync.WorkerMessage(ack=sync.Ack(command_id="c", elapsed_s=0.1, size_bytes=1)),
        sync.WorkerMessage(nack=sync.Nack(command_id="c", reason="no", terminal=True)),
    ]


def _of_relay() -> list[Message]:
    request = inference.GenerateRequest(
        model=BASE_MODEL, text="hello", sampling=inference.SamplingParams(max_tokens=3)
    )
    opened = relay.Open(
        call_id=1,
        request=request.SerializeToString(),
        metadata={"loraplane-grant": "x.y.z", "loraplane-request-id": "r"},
        timeout_ms=1000,
    )
    return [
        relay.Upward(open=opened),
        relay.Upward(cancel=relay.Cancel(call_id=1)),
    ]


def _of_orchestrators() -> list[Message]:
    return [
        health_pb2.HealthCheckRequest(service="liveness"),
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="loraplane.fleet.v1.Fleet"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="protos/fleet/v1/fleet.proto"),
    ]
