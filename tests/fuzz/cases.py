"""Cases: one call each, made from a seed and a number alone, so that any of them can be made again."""

from dataclasses import dataclass
from random import Random

from google.protobuf.message import DecodeError, Message

from tests.fuzz import wire
from tests.fuzz.credentials import Caller, Credentials
from tests.fuzz.messages import mutated, random_message
from tests.fuzz.seeds import Seeds
from tests.fuzz.surface import Rpc

# Above anything that a call takes here: a call that reaches it hangs.
HANG_S = 30.0
_SHORT_S = (0.0005, 0.01, 0.1)
# A watch never ends: leave after so long without a message; any other stream is left early now and then.
_PATIENCE_S = (0.02, 0.02, 0.1, 1.0)
_MAX_FRAMES = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call as it goes over the wire."""

    name: str  # seed and number
    rpc: Rpc
    frames: tuple[bytes, ...]  # one, but for streams of requests
    caller: Caller
    timeout_s: float
    patience_s: float

    def __str__(self) -> str:
        """What was sent, in text form as far as it has one."""
        sent = "\n".join(_text(self.rpc, frame) for frame in self.frames)
        return f"case {self.name}: {self.rpc} by {self.caller.who}\n{sent}"


def make_case(seed: int, number: int, rpc: Rpc, seeds: Seeds, credentials: Credentials) -> Case:
    """The case of this number."""
    rng = Random(f"{seed}:{number}")
    count = rng.randrange(_MAX_FRAMES) if rpc.descriptor.client_streaming else 1
    frames = [_frame(rpc, seeds, rng) for _ in range(count)]
    if count and rng.random() < 0.7 and rpc.descriptor.client_streaming:
        frames[0] = seeds[rpc.descriptor.input_type.full_name][0].SerializeToString()
    return Case(
        name=f"{seed}:{number}",
        rpc=rpc,
        frames=tuple(frames),
        caller=credentials.draw(rpc, rng),
        timeout_s=HANG_S if rng.random() < 0.95 else rng.choice(_SHORT_S),
        patience_s=_patience_s(rpc, rng),
    )


def _patience_s(rpc: Rpc, rng: Random) -> float:
    is_watch = rpc.descriptor.name.startswith("Watch")
    return rng.choice(_PATIENCE_S) if is_watch or rng.random() < 0.2 else HANG_S


def _frame(rpc: Rpc, seeds: Seeds, rng: Random) -> bytes:
    message = _message(rpc, seeds, rng)
    return wire.broken(message, rng) if rng.random() < 0.25 else message.SerializeToString()


def _message(rpc: Rpc, seeds: Seeds, rng: Random) -> Message:
    descriptor = rpc.descriptor.input_type
    known = seeds.get(descriptor.full_name)
    kind = rng.random()
    if not known or kind < 0.25:
        return random_message(descriptor, rng)
    return rng.choice(known) if kind < 0.35 else mutated(rng.choice(known), rng)


def _text(rpc: Rpc, frame: bytes) -> str:
    try:
        return str(rpc.request.FromString(frame)) or "(an empty message)\n"
    except DecodeError:
        return f"not a message: {frame[:200].hex()}{'…' if len(frame) > 200 else ''}"
