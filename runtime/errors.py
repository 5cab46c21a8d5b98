"""Every error that Narrows raises, and the one table that turns them into exit codes and gRPC statuses.

    NarrowsError
    ├── UsageError              an argument or an option that cannot be
    ├── MissingDependencyError  an optional library that this verb needs
    ├── ModelError              a model that cannot be read or cut
    │   ├── UnknownTensorError  a tensor name that the graph does not have
    │   ├── CutError            tensors that do not separate the graph
    │   ├── ProofError          tail(head(x)) is not model(x)
    │   ├── ModelFormatError    a file that is no ONNX model, or is cut short
    │   ├── GraphError          a cycle, nodes out of order, a name that is made twice or by nobody
    │   ├── OperatorError       an op or a domain that nobody here knows
    │   ├── OpsetError          a model newer than the installed ONNX or ONNX Runtime
    │   ├── ExternalDataError   weights in a file that is missing, too short, or outside the model's folder
    │   └── NothingToCutError   no tensor that could cross a link
    ├── TrainingError           a training that cannot go on, or whose files are not its own
    ├── BundleError             a bundle that is damaged, incomplete or of another schema
    │   ├── BundleMismatchError the two ends hold halves of different bundles
    │   └── GoldenError         this machine does not reproduce the golden vectors
    ├── PlanError               a plan that cannot be made
    │   ├── ProfileError        a file that is no profile, of another schema, or of another model
    │   └── NothingPlannedError no operating point can be taken at all
    ├── SourceError             an input that cannot be read as a frame
    ├── FramesFailedError       a run in which some frames ended in an error
    ├── FrameError              a frame that the contract forbids
    │   ├── ChecksumError       the decoded symbols are not those that were sent
    │   ├── ShapeError          a shape or a type that the bundle does not have
    │   ├── QualityError        a cut or a quality that the bundle does not have
    │   ├── CoderError          a coder that is unknown here, or a payload it refuses
    │   └── FrameTooLargeError  more bytes or elements than the cap
    ├── LinkError               no answer over the network
    │   ├── ServerUnavailableError  nobody listens, or the connection was lost
    │   ├── DeadlineError       no answer in time
    │   └── OverloadedError     the server refuses more work for now
    ├── ModelNotFoundError      the server has no model of that name
    ├── DrainingError           the server is going down and takes no new frame
    ├── UnauthenticatedError    the server wants a token, and this is none of its own
    ├── PermissionDeniedError   the token does not cover this model
    ├── DeployError             a step of `narrows deploy` that the device refuses
    └── InternalError           a fault of ours; the details are in the log, not in the text

An error's text says what was expected, what was found, and what to do; it is written for strangers, so it never
holds a path of the server or a stack. `code` is the stable name that travels on the wire and stands in JSON output.
"""

from __future__ import annotations

from typing import ClassVar


class NarrowsError(Exception):
    """The root of the tree above.

    Attributes:
        code: stable kebab-case name, the same in JSON output, on the wire and in logs.
        exit_code: what the command line exits with (distinct per family; 0, 1 and 2 keep their usual meanings).
        grpc_status: the name of the gRPC status that carries this error.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    grpc_status: ClassVar[str] = "UNKNOWN"


class UsageError(NarrowsError):
    code, exit_code, grpc_status = "usage", 2, "INVALID_ARGUMENT"


class MissingDependencyError(NarrowsError):
    code, exit_code, grpc_status = "missing-dependency", 3, "UNIMPLEMENTED"


class ModelError(NarrowsError):
    code, exit_code, grpc_status = "model", 10, "INVALID_ARGUMENT"


class UnknownTensorError(ModelError):
    code, exit_code = "unknown-tensor", 11


class CutError(ModelError):
    code, exit_code = "not-a-cut", 12


class ProofError(ModelError):
    code, exit_code = "proof", 13


class ModelFormatError(ModelError):
    code, exit_code = "model-format", 14


class GraphError(ModelError):
    code, exit_code = "graph", 15


class OperatorError(ModelError):
    code, exit_code = "operator", 16


class OpsetError(ModelError):
    code, exit_code = "opset", 17


class ExternalDataError(ModelError):
    code, exit_code = "external-data", 18


class NothingToCutError(ModelError):
    code, exit_code = "nothing-to-cut", 19


class TrainingError(NarrowsError):
    code, exit_code, grpc_status = "training", 60, "FAILED_PRECONDITION"


class BundleError(NarrowsError):
    code, exit_code, grpc_status = "bundle", 20, "FAILED_PRECONDITION"


class BundleMismatchError(BundleError):
    code, exit_code = "bundle-mismatch", 21


class GoldenError(BundleError):
    code, exit_code = "golden", 22


class PlanError(NarrowsError):
    code, exit_code, grpc_status = "plan", 67, "FAILED_PRECONDITION"


class ProfileError(PlanError):
    code, exit_code = "profile", 68


class NothingPlannedError(PlanError):
    code, exit_code = "nothing-planned", 69


class SourceError(NarrowsError):
    code, exit_code, grpc_status = "source", 30, "INVALID_ARGUMENT"


class FramesFailedError(NarrowsError):
    code, exit_code = "frames-failed", 31


class FrameError(NarrowsError):
    code, exit_code, grpc_status = "frame", 40, "INVALID_ARGUMENT"


class ChecksumError(FrameError):
    code, exit_code, grpc_status = "checksum", 41, "DATA_LOSS"


class ShapeError(FrameError):
    code, exit_code = "shape", 42


class QualityError(FrameError):
    code, exit_code = "quality", 43


class CoderError(FrameError):
    code, exit_code = "coder", 44


class FrameTooLargeError(FrameError):
    code, exit_code, grpc_status = "frame-too-large", 45, "RESOURCE_EXHAUSTED"


class LinkError(NarrowsError):
    code, exit_code, grpc_status = "link", 50, "UNAVAILABLE"


class ServerUnavailableError(LinkError):
    code, exit_code = "unavailable", 51


class DeadlineError(LinkError):
    code, exit_code, grpc_status = "deadline", 52, "DEADLINE_EXCEEDED"


class OverloadedError(LinkError):
    code, exit_code, grpc_status = "overloaded", 53, "RESOURCE_EXHAUSTED"

    def __init__(self, text: str, retry_ms: int = 0) -> None:
        super().__init__(text)
        self.retry_ms = retry_ms
        """Milliseconds after which another try has a chance, as the server expects; 0 where it has no idea."""


class ModelNotFoundError(NarrowsError):
    code, exit_code, grpc_status = "model-not-found", 54, "NOT_FOUND"


class DrainingError(NarrowsError):
    code, exit_code, grpc_status = "draining", 55, "UNAVAILABLE"


class UnauthenticatedError(NarrowsError):
    code, exit_code, grpc_status = "unauthenticated", 56, "UNAUTHENTICATED"


class PermissionDeniedError(NarrowsError):
    code, exit_code, grpc_status = "permission-denied", 57, "PERMISSION_DENIED"


class DeployError(NarrowsError):
    code, exit_code, grpc_status = "deploy", 65, "FAILED_PRECONDITION"


class InternalError(NarrowsError):
    code, exit_code, grpc_status = "internal", 70, "INTERNAL"


def _tree(root: type[NarrowsError]) -> dict[str, type[NarrowsError]]:
    table = {root.code: root}
    for child in root.__subclasses__():
        table |= _tree(child)
    return table


BY_CODE: dict[str, type[NarrowsError]] = _tree(NarrowsError)
"""The table: stable code → class, and through the class its exit code and gRPC status."""


TRANSIENT: tuple[type[NarrowsError], ...] = (LinkError, DrainingError, InternalError)
"""What may be over at the next try; anything else is how the two ends are set up."""


def from_code(code: str, text: str) -> NarrowsError:
    """The error that a peer reported. A code from a newer peer that is unknown here becomes a plain `NarrowsError`."""
    return BY_CODE.get(code, NarrowsError)(text)


def first_line(error: BaseException) -> str:
    """What an error of a library's says, in one line of 300 characters at most."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
