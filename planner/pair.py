"""A device's profile and a server's, put together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from ..runtime.errors import ProfileError
from .profile import CutProfile, Encoding, Profile, QualityProfile, Transport, Whole

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two profiles of one model; the same one twice where one machine plays both parts."""

    device: Profile
    server: Profile

    @classmethod
    def of(cls, device: Profile, server: Profile) -> Pair:
        """Put two profiles together.

        Raises:
            ProfileError: they are of two models.
        """
        if device.digest != server.digest:
            raise ProfileError(
                f"the profile of {device.machine.name} is of the model {device.model} ({device.digest[:12]}), that of "
                f"{server.machine.name} of {server.model} ({server.digest[:12]}); profile one model on both"
            )
        return cls(device, server)

    @property
    def transport(self) -> Transport:
        """As measured by the device, else by the server's profile; nothing where neither did."""
        return self.device.transport or self.server.transport or Transport(0.0, how="not measured")

    @property
    def reply_bytes(self) -> float:
        """Of an answer."""
        return self.device.reply_bytes or self.server.reply_bytes

    @property
    def server_whole(self) -> Whole:
        """The uncut model on the server."""
        return self.server.server_whole or (Whole() if self.server.served_by else self.server.whole)

    @property
    def whole_accuracy(self) -> float | None:
        """Of the uncut model."""
        return _first(self._accurate.whole.accuracy, self.device.whole.accuracy, self.server.whole.accuracy)

    def cuts(self) -> Iterator[CutProfile]:
        """The cuts whose head the device and whose tail the server has measured, each with both ends' figures."""
        for own in self.device.cuts:
            other = self.server.cut(own.name)
            if own.head is None or other is None or other.tail is None or len(own.qualities) != len(other.qualities):
                continue
            yield replace(
                own,
                tail=other.tail,
                tail_batches=other.tail_batches,
                tail_bytes=other.tail_bytes,
                held_out_accuracy=_first(own.held_out_accuracy, other.held_out_accuracy),
                qualities=tuple(map(self._quality, own.qualities, other.qualities)),
            )

    def encodings(self) -> Iterator[Encoding]:
        """The ways to compress the input that the device has timed, with what is known of them."""
        there = {(one.format, one.quality): one for one in self.server.encodings}
        for own in self.device.encodings:
            other = there.get((own.format, own.quality))
            if own.encode is not None and other is not None:
                best = own if self._accurate is self.device else other
                yield replace(
                    own,
                    payload=best.payload,
                    decode=other.decode,
                    agreement=_first(best.agreement, own.agreement, other.agreement),
                    accuracy=_first(best.accuracy, own.accuracy, other.accuracy),
                )

    @property
    def _accurate(self) -> Profile:
        """The one that saw more pictures: its sizes and its accuracy count."""
        return self.device if self.device.frames >= self.server.frames else self.server

    def _quality(self, own: QualityProfile, other: QualityProfile) -> QualityProfile:
        best = own if self._accurate is self.device else other
        return QualityProfile(
            bits=own.bits,
            payload=best.payload,
            encode=own.encode,
            decode=other.decode,
            max_deviation=_first(best.max_deviation, own.max_deviation, other.max_deviation),
            mean_deviation=_first(best.mean_deviation, own.mean_deviation, other.mean_deviation),
            agreement=_first(best.agreement, own.agreement, other.agreement),
            accuracy=_first(best.accuracy, own.accuracy, other.accuracy),
        )


def _first(*values: _T | None) -> _T | None:
    return next((value for value in values if value is not None), None)
