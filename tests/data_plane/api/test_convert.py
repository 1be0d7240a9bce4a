import pytest

from data_plane.api import convert
from data_plane.errors import InvalidRequest
from data_plane.scheduler.sampling import SamplingParams
from protos.inference.v1 import inference_pb2 as pb


def test_absent_sampling_fields_take_the_documented_defaults():
    assert convert.sampling_from_proto(pb.SamplingParams()) == SamplingParams()


def test_a_zero_that_was_sent_is_not_an_absent_field():
    sampling = convert.sampling_from_proto(pb.SamplingParams(temperature=0, logprobs=0, seed=0))
    assert (sampling.temperature, sampling.logprobs, sampling.seed) == (0, 0, 0)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.SamplingParams(temperature=-1), "sampling.temperature"),
        (pb.SamplingParams(temperature=float("nan")), "sampling.temperature"),
        (pb.SamplingParams(top_p=0), "sampling.top_p"),
        (pb.SamplingParams(top_k=-1), "sampling.top_k"),
        (pb.SamplingParams(min_p=2), "sampling.min_p"),
        (pb.SamplingParams(max_tokens=0), "sampling.max_tokens"),
        (pb.SamplingParams(max_tokens=2, min_tokens=3), "sampling.min_tokens"),
        (pb.SamplingParams(n=17), "sampling.n"),
        (pb.SamplingParams(logprobs=21), "sampling.logprobs"),
        (pb.SamplingParams(stop=[""]), "sampling.stop"),
        (pb.SamplingParams(stop=["x"] * 17), "sampling.stop"),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(message, field):
    with pytest.raises(InvalidRequest) as error:
        convert.sampling_from_proto(message)
    assert error.value.field == field


def test_a_picture_is_refused_by_a_text_model():
    picture = pb.ContentPart(image=pb.Media(data=b"x", mime_type="image/png"))
    chat = pb.ChatMessages(messages=[pb.ChatMessage(role="user", parts=[picture])])
    with pytest.raises(InvalidRequest, match="only text"):
        convert.chat_from_proto(chat)
