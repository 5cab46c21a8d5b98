"""What a running server does with frames: its tails' times, and what the way to it costs beside the link."""

from __future__ import annotations

import ipaddress
import queue
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from ..device.conversation import Greeting
from ..device.offload import picture_frame
from ..device.uplink import Parcel, Uplink, UplinkOptions
from ..planner.profile import Batch, CutProfile, Encoding, Profile, Transport, Whole
from ..runtime.answer import Form, Reply, Wanted
from ..runtime.bundle import Bundle
from ..runtime.codec import labels
from ..runtime.errors import NarrowsError, OverloadedError, ServerUnavailableError
from ..runtime.frame import Frame as CodedFrame
from ..runtime.frame import FrameCodec
from ..runtime.halves import Head
from ..runtime.link import wire_bytes
from ..runtime.manifest import Half
from ..runtime.wire import reply_to_wire
from ..server_process import server_process
from .fidelity import sizes_of
from .frames import Frame
from .options import ProfileOptions, Progress
from .stopwatch import Stopwatch, timing_of

_FRAMES = 8
"""Of each quality, one after the other."""
_APART_BYTES = 2048
_BURSTS = 4
"""Of each size."""
_CONNECTS = 7
_PAUSE_S = 0.02
"""Before a frame that is timed: a device's frame finds threads and caches that have waited, too, and none that just
served another."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and what its way took."""

    reply: Reply
    link_ms: float
    """From sending to reply, without the server's own time."""
    server_ms: float
    """The server's own time: queue, decoding and tail."""
    wire_bytes: int
    """Of the frame."""

    @property
    def reply_bytes(self) -> int:
        """In the TCP stream; the few bytes of the stream's own message around it are left out."""
        return wire_bytes(reply_to_wire(self.reply).ByteSize())


class Client:
    """Frames to one server, and back."""

    def __init__(self, bundle: Bundle, address: str, options: ProfileOptions) -> None:
        greeting = Greeting(bundle.manifest.name, bundle.digest, Wanted(Form.TOP))
        self._timeout_s = options.timeout_s
        self._uplink = Uplink([address], greeting, UplinkOptions(timeout_s=options.timeout_s, link=options.link))

    def __enter__(self) -> Client:
        self._uplink.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self._uplink.close()

    def send(self, frame: CodedFrame, done: Callable[[Answer | NarrowsError], None]) -> None:
        """Send a frame; returns at once.

        Args:
            frame: what to send; its id may be any.
            done: called once, from another thread, with what came of it.
        """
        self._uplink.send(
            Parcel(
                frame=frame,
                expires=time.monotonic() + self._timeout_s,
                pack=lambda _coder: frame,
                done=lambda parcel, result: done(_answer(parcel, result)),
            )
        )

    def ask(self, frames: Sequence[CodedFrame]) -> list[Answer]:
        """Send some frames at once, and wait for all the answers.

        Raises:
            NarrowsError: what a frame ended in.
        """
        found = []
        for answer in self.burst(frames):
            if isinstance(answer, NarrowsError):
                raise answer
            found.append(answer)
        return found

    def burst(self, frames: Sequence[CodedFrame]) -> list[Answer | NarrowsError]:
        """The same, with what frames ended in that were not answered."""
        arrived: queue.SimpleQueue[Answer | NarrowsError] = queue.SimpleQueue()
        for frame in frames:
            self.send(frame, arrived.put)
        return [arrived.get() for _ in frames]


def _answer(parcel: Parcel, result: Reply | NarrowsError) -> Answer | NarrowsError:
    error = result if isinstance(result, NarrowsError) else result.error
    if error is not None:
        return error
    assert isinstance(result, Reply)
    timing = result.timing
    server_ms = timing.queue_ms + timing.decode_ms + timing.tail_ms
    link_ms = max(0.0, (time.monotonic() - parcel.sent) * 1000 - server_ms)
    return Answer(result, link_ms, server_ms, parcel.wire_bytes)


def with_server(
    profile: Profile, bundles: Sequence[Bundle], frames: Sequence[Frame], options: ProfileOptions, tell: Progress
) -> Profile:
    """The profile with what a server adds to it.

    Where `options.server` names one, tails, batches, decoding and transport are measured on it. Otherwise a server
    process on this machine, where a bundle's halves are both here, says what the transport costs.

    Raises:
        LinkError: the server does not answer.
        BundleMismatchError: it serves another bundle.
    """
    if options.on_device:
        return profile
    if options.server is not None:
        return _measured(profile, [_Remote(bundle, options.server, frames, options, tell) for bundle in bundles])
    whole = [bundle for bundle in bundles if Half.SERVER in bundle.halves]
    if not whole:
        return replace(profile, notes=(*profile.notes, "no server was measured: the transport's own cost is not known"))
    with server_process(whole[0].root) as served:
        remote = _Remote(whole[0], served.address, frames, options, tell)
        return remote.with_transport(profile, "a server process on this machine")


class _Remote:
    """One server that is measured."""

    def __init__(
        self, bundle: Bundle, address: str, frames: Sequence[Frame], options: ProfileOptions, tell: Progress
    ) -> None:
        self.bundle, self.address, self.frames, self.options, self.tell = bundle, address, frames, options, tell
        self.answers: list[Answer] = []

    def measured(self, profile: Profile) -> Profile:
        """The profile with this server's tails, batches and decoding of the bundle's cuts, and its whole model."""
        cuts = [cut for cut in self.bundle.manifest.cuts if profile.cut(cut.name) is not None]
        found: dict[str, CutProfile] = {}
        with self._client() as client:
            for done, cut in enumerate(cuts):
                own = profile.cut(cut.name)
                assert own is not None
                found[cut.name] = self._cut(client, own)
                self.tell("measuring the server", done + 1, len(cuts))
            encodings, server_whole = self._offloads(client, profile)
        return replace(
            profile,
            cuts=tuple(found.get(cut.name, cut) for cut in profile.cuts),
            served_by=self.address,
            server_whole=server_whole or profile.server_whole,
            encodings=encodings,
        )

    def with_transport(self, profile: Profile, how: str) -> Profile:
        """The profile with nothing but the transport from here."""
        with self._client() as client:
            self._ask(client, self.bundle.manifest.cuts[0].name)
        return self.transport(profile, self.answers, how)

    @contextmanager
    def _client(self) -> Iterator[Client]:
        with Client(self.bundle, self.address, self.options) as client:
            yield client

    def _cut(self, client: Client, own: CutProfile) -> CutProfile:
        watch = Stopwatch()
        for number, answers in self._ask(client, own.name).items():
            for answer in answers:
                watch.add("tail", answer.reply.timing.tail_ms)
                watch.add(number, answer.reply.timing.decode_ms)
        frames = self._coded(own.name, len(own.qualities) - 1)
        return replace(
            own,
            tail=watch.timing("tail"),
            qualities=tuple(replace(q, decode=watch.timing(number)) for number, q in enumerate(own.qualities)),
            tail_batches=tuple(_batches(client, frames, self.options.max_batch)),
        )

    def _offloads(self, client: Client, profile: Profile) -> tuple[tuple[Encoding, ...], Whole | None]:
        """The server's decoding of pictures, and its whole model; None where it does not hold that."""
        manifest, points = self.bundle.manifest, self.options.encodings
        local = manifest.local
        if (
            local is None
            or Half.SERVER not in manifest.files[local].halves
            or manifest.preprocess is None
            or not points
        ):
            return profile.encodings, None
        watch = Stopwatch()
        known = {(one.format, one.quality): one for one in profile.encodings}
        found = []
        for done, point in enumerate(points):
            assert point.quality is not None
            coded = []
            for number in range(_FRAMES):
                picture = self.frames[number % len(self.frames)].arrays[0]
                with watch(("encode", point)):
                    coded.append(picture_frame(number, picture, point.quality, point.format))
            client.ask(coded[:1])
            for answer in (answer for frame in coded for answer in self._alone(client, frame)):
                watch.add("whole", answer.reply.timing.tail_ms)
                watch.add(point, answer.reply.timing.decode_ms)
            sizes = sizes_of([frame.payload_bytes for frame in coded])
            own = known.get((point.format, point.quality)) or Encoding(
                point.format, point.quality, sizes, watch.timing(("encode", point))
            )
            found.append(replace(own, decode=watch.timing(point)))
            self.tell("offloading pictures", done + 1, len(points))
        batches = tuple(_batches(client, coded, self.options.max_batch))
        return tuple(found), Whole(run=watch.timing("whole"), batches=batches)

    def _ask(self, client: Client, cut_name: str) -> dict[int, list[Answer]]:
        """Frames of every quality in turns, each alone, so that a machine whose speed drifts does so for all sizes."""
        cut = self.bundle.manifest.cut(cut_name)[1]
        coded = {quality: self._coded(cut_name, quality) for quality in range(len(cut.qualities))}
        client.ask(coded[0][:1])
        answers: dict[int, list[Answer]] = {quality: [] for quality in coded}
        for number in range(_FRAMES):
            for quality, frames in coded.items():
                answers[quality] += self._alone(client, frames[number])
            self.tell("measuring the transport", number + 1, _FRAMES)
        return answers

    def _alone(self, client: Client, frame: CodedFrame) -> list[Answer]:
        """One frame after a pause; its link's time counts from here to here, hand-overs between threads included."""
        time.sleep(_PAUSE_S)
        began = time.monotonic()
        (answer,) = client.ask([frame])
        self.answers.append(replace(answer, link_ms=(time.monotonic() - began) * 1000 - answer.server_ms))
        return [answer]

    def _coded(self, cut: str, quality: int) -> list[CodedFrame]:
        return coded_frames(self.bundle, cut, quality, [self.frames[n % len(self.frames)] for n in range(_FRAMES)])

    def transport(self, profile: Profile, answers: Sequence[Answer], how: str) -> Profile:
        """A straight line through link times over sizes, less the round trip of the link itself."""
        fixed_ms, byte_ms = straight_line([a.wire_bytes for a in answers], [a.link_ms for a in answers])
        rtt_ms, here = _round_trip(self.address, self.options.timeout_s)
        return replace(
            profile,
            # Over a real link, what a byte takes is the link's and not the transport's.
            transport=Transport(max(0.0, fixed_ms - rtt_ms), 1000 * byte_ms if here else 0.0, how),
            reply_bytes=float(np.mean([answer.reply_bytes for answer in answers])),
        )


def _measured(profile: Profile, remotes: Sequence[_Remote]) -> Profile:
    """The profile with one server's figures for several bundles that it serves."""
    profile = replace(profile, server_whole=None)  # this machine's is not that server's
    for remote in remotes:
        profile = remote.measured(profile)
    answers = [answer for remote in remotes for answer in remote.answers]
    return remotes[0].transport(profile, answers, f"the server at {remotes[0].address}")


def coded_frames(bundle: Bundle, cut_name: str, quality: int, frames: Sequence[Frame]) -> list[CodedFrame]:
    """What a device would send of some frames.

    Args:
        bundle: its device half at least.
        cut_name: one of its cuts.
        quality: of that.
        frames: the inputs.
    """
    index, cut = bundle.manifest.cut(cut_name)
    head, codec = Head(bundle, cut, golden=False), FrameCodec(bundle, index)
    names = [spec.name for spec in bundle.manifest.inputs]
    coded = []
    for number, frame in enumerate(frames):
        arrays = dict(zip(names, frame.arrays, strict=True))
        features = head.run([arrays[spec.name] for spec in head.inputs], quality)
        coded.append(codec.pack(number, features.symbols, quality, labels()[0]))
    return coded


def straight_line(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope, not below 0, of times over sizes: medians over all pairs (Sen, JASA 1968).

    Only pairs of clearly different sizes have a say: a byte takes nanoseconds, and what lies between two frames of
    nearly one size is noise. Without any such pair the slope is 0.
    """
    x, y = np.asarray(sizes, float), np.asarray(times, float)
    first, second = np.triu_indices(len(x), 1)
    apart = np.abs(x[second] - x[first]) >= _APART_BYTES
    slopes = (y[second] - y[first])[apart] / (x[second] - x[first])[apart]
    slope = max(0.0, float(np.median(slopes))) if len(slopes) else 0.0
    return float(np.median(y - slope * x)), slope


def _batches(client: Client, frames: Sequence[CodedFrame], most: int) -> Iterator[Batch]:
    """Times of the server's own batches, which gather while bursts of frames wait; up to those that it refuses."""
    seen: dict[int, list[float]] = {}
    size, refused = 1, False
    while size <= most and not refused:
        for _ in range(_BURSTS):
            for answer in client.burst([frames[i % len(frames)] for i in range(2 * size)]):
                if isinstance(answer, OverloadedError):
                    refused = True
                elif isinstance(answer, NarrowsError):
                    raise answer
                else:
                    timing = answer.reply.timing
                    seen.setdefault(max(1, timing.batch), []).append(timing.tail_ms)
        size *= 2
    return (Batch(frames_of_run, timing_of(times).ms) for frames_of_run, times in sorted(seen.items()))


def _round_trip(address: str, timeout_s: float) -> tuple[float, bool]:
    """How long a TCP connection takes to be made, in milliseconds, and whether the server is on this machine.

    Raises:
        ServerUnavailableError: nobody listens.
    """
    host, _, port = address.rpartition(":")
    times, here = [], False
    try:
        for _ in range(_CONNECTS):
            began = time.perf_counter()
            with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as connection:
                times.append((time.perf_counter() - began) * 1000)
                peer = ipaddress.ip_address(connection.getpeername()[0])
                here = peer.is_loopback or connection.getpeername()[0] == connection.getsockname()[0]
    except OSError as error:
        raise ServerUnavailableError(f"{address} does not answer ({error.strerror or error})") from None
    return float(np.median(times)), here
