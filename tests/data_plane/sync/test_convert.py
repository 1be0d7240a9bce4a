"""Commands from the protocol: what this worker does not know is refused by name."""

import pytest

from data_plane.errors import InvalidRequest
from data_plane.sync.convert import command_from_proto
from protos.sync.v1 import sync_pb2 as pb


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (pb.Command(pin=pb.PinCommand(digest="sha256:a", tier=99)), "command.pin.tier"),
        (pb.Command(reload=pb.ReloadCommand(policy=99)), "command.reload.policy"),
        (pb.Command(), "command.action"),
    ],
)
def test_a_value_of_a_newer_control_plane_is_refused_by_name(command: pb.Command, field: str):
    with pytest.raises(InvalidRequest, match=field):
        command_from_proto(command)
