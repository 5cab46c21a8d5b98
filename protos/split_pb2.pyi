from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_SPLIT: _ClassVar[Mode]
    MODE_OFFLOAD: _ClassVar[Mode]
    MODE_TENSORS: _ClassVar[Mode]
MODE_SPLIT: Mode
MODE_OFFLOAD: Mode
MODE_TENSORS: Mode

class DescribeRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("server_version", "coders", "models")
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    CODERS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    coders: _containers.RepeatedScalarFieldContainer[str]
    models: _containers.RepeatedCompositeFieldContainer[ModelDescription]
    def __init__(self, server_version: _Optional[str] = ..., coders: _Optional[_Iterable[str]] = ..., models: _Optional[_Iterable[_Union[ModelDescription, _Mapping]]] = ...) -> None: ...

class ModelDescription(_message.Message):
    __slots__ = ("name", "bundle", "cuts", "whole")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    bundle: str
    cuts: _containers.RepeatedCompositeFieldContainer[CutDescription]
    whole: bool
    def __init__(self, name: _Optional[str] = ..., bundle: _Optional[str] = ..., cuts: _Optional[_Iterable[_Union[CutDescription, _Mapping]]] = ..., whole: bool = ...) -> None: ...

class CutDescription(_message.Message):
    __slots__ = ("name", "qualities", "tails")
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUALITIES_FIELD_NUMBER: _ClassVar[int]
    TAILS_FIELD_NUMBER: _ClassVar[int]
    name: str
    qualities: _containers.RepeatedCompositeFieldContainer[QualityDescription]
    tails: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., qualities: _Optional[_Iterable[_Union[QualityDescription, _Mapping]]] = ..., tails: _Optional[_Iterable[str]] = ...) -> None: ...

class QualityDescription(_message.Message):
    __slots__ = ("bits", "payload_bytes", "agreement")
    BITS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    bits: int
    payload_bytes: float
    agreement: float
    def __init__(self, bits: _Optional[int] = ..., payload_bytes: _Optional[float] = ..., agreement: _Optional[float] = ...) -> None: ...

class FetchHeadRequest(_message.Message):
    __slots__ = ("model", "bundle", "offset")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    model: str
    bundle: str
    offset: int
    def __init__(self, model: _Optional[str] = ..., bundle: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class FetchHeadChunk(_message.Message):
    __slots__ = ("bundle", "total_bytes", "sha256", "data")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    total_bytes: int
    sha256: str
    data: bytes
    def __init__(self, bundle: _Optional[str] = ..., total_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class CodedTensor(_message.Message):
    __slots__ = ("payload", "shape")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, payload: _Optional[bytes] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("id", "mode", "cut", "quality", "coder", "checksum", "deadline_ms", "tensors", "trace")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    CODER_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    id: int
    mode: Mode
    cut: int
    quality: int
    coder: int
    checksum: int
    deadline_ms: int
    tensors: _containers.RepeatedCompositeFieldContainer[CodedTensor]
    trace: bytes
    def __init__(self, id: _Optional[int] = ..., mode: _Optional[_Union[Mode, str]] = ..., cut: _Optional[int] = ..., quality: _Optional[int] = ..., coder: _Optional[int] = ..., checksum: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[CodedTensor, _Mapping]]] = ..., trace: _Optional[bytes] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("form", "top", "tails")
    class Form(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TENSORS: _ClassVar[Answer.Form]
        TOP: _ClassVar[Answer.Form]
    TENSORS: Answer.Form
    TOP: Answer.Form
    FORM_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    TAILS_FIELD_NUMBER: _ClassVar[int]
    form: Answer.Form
    top: int
    tails: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, form: _Optional[_Union[Answer.Form, str]] = ..., top: _Optional[int] = ..., tails: _Optional[_Iterable[str]] = ...) -> None: ...

class InferRequest(_message.Message):
    __slots__ = ("model", "bundle", "answer", "frame")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    model: str
    bundle: str
    answer: Answer
    frame: Frame
    def __init__(self, model: _Optional[str] = ..., bundle: _Optional[str] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "model", "bundle", "coders", "answer", "several")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    CODERS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SEVERAL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    model: str
    bundle: str
    coders: _containers.RepeatedScalarFieldContainer[str]
    answer: Answer
    several: bool
    def __init__(self, protocol: _Optional[int] = ..., model: _Optional[str] = ..., bundle: _Optional[str] = ..., coders: _Optional[_Iterable[str]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., several: bool = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("coder", "max_frame_bytes", "max_in_flight", "server_version", "several")
    CODER_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    SEVERAL_FIELD_NUMBER: _ClassVar[int]
    coder: str
    max_frame_bytes: int
    max_in_flight: int
    server_version: str
    several: bool
    def __init__(self, coder: _Optional[str] = ..., max_frame_bytes: _Optional[int] = ..., max_in_flight: _Optional[int] = ..., server_version: _Optional[str] = ..., several: bool = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClientMessage(_message.Message):
    __slots__ = ("hello", "frame", "frames")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    frame: Frame
    frames: Frames
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., frames: _Optional[_Union[Frames, _Mapping]] = ...) -> None: ...

class Frames(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    def __init__(self, frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ...) -> None: ...

class ServerMessage(_message.Message):
    __slots__ = ("welcome", "outcome", "draining", "outcomes")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    outcome: Outcome
    draining: Draining
    outcomes: Outcomes
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., outcomes: _Optional[_Union[Outcomes, _Mapping]] = ...) -> None: ...

class Outcomes(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class TopClass(_message.Message):
    __slots__ = ("index", "score")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    index: int
    score: float
    def __init__(self, index: _Optional[int] = ..., score: _Optional[float] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "text", "retry_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RETRY_MS_FIELD_NUMBER: _ClassVar[int]
    code: str
    text: str
    retry_ms: int
    def __init__(self, code: _Optional[str] = ..., text: _Optional[str] = ..., retry_ms: _Optional[int] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_us", "decode_us", "tail_us", "batch")
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    DECODE_US_FIELD_NUMBER: _ClassVar[int]
    TAIL_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    queue_us: int
    decode_us: int
    tail_us: int
    batch: int
    def __init__(self, queue_us: _Optional[int] = ..., decode_us: _Optional[int] = ..., tail_us: _Optional[int] = ..., batch: _Optional[int] = ...) -> None: ...

class TailAnswer(_message.Message):
    __slots__ = ("tail", "outputs", "top")
    TAIL_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    tail: str
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    top: _containers.RepeatedCompositeFieldContainer[TopClass]
    def __init__(self, tail: _Optional[str] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., top: _Optional[_Iterable[_Union[TopClass, _Mapping]]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("id", "error", "outputs", "top", "timing", "further")
    ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    FURTHER_FIELD_NUMBER: _ClassVar[int]
    id: int
    error: Error
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    top: _containers.RepeatedCompositeFieldContainer[TopClass]
    timing: Timing
    further: _containers.RepeatedCompositeFieldContainer[TailAnswer]
    def __init__(self, id: _Optional[int] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., top: _Optional[_Iterable[_Union[TopClass, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., further: _Optional[_Iterable[_Union[TailAnswer, _Mapping]]] = ...) -> None: ...
