"""Who gets in: certificates, tokens, and what each caller may hold."""

from __future__ import annotations

import datetime as dt
import hashlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from bundles import make_bundle, pictures
from grpc_health.v1 import health_pb2, health_pb2_grpc
from narrows.protos import split_pb2 as pb
from narrows.protos import split_pb2_grpc
from narrows.runtime.bundle import Bundle
from narrows.runtime.credentials import LinkSecurity
from narrows.runtime.errors import UnauthenticatedError, UsageError
from narrows.runtime.link import LinkOptions, open_channel
from narrows.runtime.session import SessionOptions
from narrows.runtime.wire import frame_to_wire
from narrows.server import BatchOptions, ClientLimits, ServeOptions, ServerThread, TlsOptions, certs
from narrows.server.clients import TokenFile
from server_client import Frames, StreamClient, code_of, hello

pytest.importorskip("cryptography", reason="making certificates needs the cryptography library")

TOKENS = f"""
# who      token                                            models
everything token-one
hashed     sha256:{hashlib.sha256(b"token-two").hexdigest()} tiny
other      token-three                                      somethingelse
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def options(bundle: Bundle) -> ServeOptions:
    return ServeOptions(
        bundle.root, port=0, session=SessionOptions(threads=1), batch=BatchOptions(learn_s=0), drain_s=2
    )


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    certs.make_certificates(certs.CertOptions(folder, clients=("greenhouse",)))
    return folder


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(TOKENS)
    return path


def describe(address: str, security: LinkSecurity, model: str = "") -> pb.DescribeResponse:
    with open_channel(address, LinkOptions(security=security)) as channel:
        return split_pb2_grpc.SplitInferenceStub(channel).Describe(pb.DescribeRequest(model=model), timeout=5)


def refused(address: str, security: LinkSecurity) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        describe(address, security)
    return caught.value.code()


def test_tls_with_our_own_authority(options: ServeOptions, pems: Path) -> None:
    tls = TlsOptions(pems / "server.pem", pems / "server-key.pem")
    with ServerThread(replace(options, tls=tls)) as server:
        assert describe(server.address, LinkSecurity(ca=pems / "ca.pem")).models
        assert refused(server.address, LinkSecurity()) is grpc.StatusCode.UNAVAILABLE
        assert refused(server.address, LinkSecurity(tls=True)) is grpc.StatusCode.UNAVAILABLE


def test_openssl_agrees(options: ServeOptions, pems: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    tls = TlsOptions(pems / "server.pem", pems / "server-key.pem")
    with ServerThread(replace(options, tls=tls)) as server:
        command = ["openssl", "s_client", "-connect", server.address, "-CAfile", str(pems / "ca.pem"), "-alpn", "h2"]
        said = subprocess.run(command, input=b"", capture_output=True, timeout=20, check=False).stdout
    assert b"Verify return code: 0 (ok)" in said
    assert b"ALPN protocol: h2" in said


def test_mutual_tls_wants_a_certificate_of_the_right_authority(
    options: ServeOptions, pems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign, expired = tmp_path / "foreign", tmp_path / "expired"
    certs.make_certificates(certs.CertOptions(foreign, clients=("greenhouse",)))
    shutil.copytree(pems, expired)
    monkeypatch.setattr(certs, "CLOCK_SLACK", dt.timedelta(days=3))
    monkeypatch.setattr(certs.CertOptions, "__post_init__", lambda self: None)
    certs.make_certificates(certs.CertOptions(expired, clients=("greenhouse",), days=-1))
    monkeypatch.undo()

    tls = TlsOptions(pems / "server.pem", pems / "server-key.pem", client_ca=pems / "ca.pem")
    with ServerThread(replace(options, tls=tls)) as server:

        def shown(folder: Path) -> LinkSecurity:
            own = {"cert": folder / "greenhouse.pem", "key": folder / "greenhouse-key.pem"}
            return LinkSecurity(ca=pems / "ca.pem", **own)

        assert describe(server.address, shown(pems)).models
        assert refused(server.address, LinkSecurity(ca=pems / "ca.pem")) is grpc.StatusCode.UNAVAILABLE
        assert refused(server.address, shown(foreign)) is grpc.StatusCode.UNAVAILABLE
        assert refused(server.address, shown(expired)) is grpc.StatusCode.UNAVAILABLE


def test_a_renewed_certificate_is_shown_without_a_restart(options: ServeOptions, tmp_path: Path) -> None:
    served, renewed = tmp_path / "served", tmp_path / "renewed"
    for folder in (served, renewed):
        certs.make_certificates(certs.CertOptions(folder))
    tls = TlsOptions(served / "server.pem", served / "server-key.pem")
    old, new = (LinkSecurity(ca=shutil.copy(f / "ca.pem", tmp_path / f"{f.name}-ca.pem")) for f in (served, renewed))
    with ServerThread(replace(options, tls=tls)) as server:
        assert describe(server.address, old).models
        (served / "server-key.pem").write_text("half of a file")
        assert describe(server.address, old).models, "a pair that cannot be read changes nothing"
        for name in ("server-key.pem", "server.pem"):
            shutil.copy(renewed / name, served / name)
        assert describe(server.address, new).models
        assert refused(server.address, old) is grpc.StatusCode.UNAVAILABLE


def test_files_that_are_no_certificate_are_refused_at_the_start(options: ServeOptions, pems: Path) -> None:
    for cert, key in (("server.pem", "ca-key.pem"), ("nowhere.pem", "server-key.pem")):
        with pytest.raises(UsageError), ServerThread(replace(options, tls=TlsOptions(pems / cert, pems / key))):
            pass


def test_tokens_open_doors(options: ServeOptions, tokens: Path) -> None:
    with ServerThread(replace(options, tokens=tokens)) as server:
        for token in ("token-one", "token-two"):
            assert [model.name for model in describe(server.address, LinkSecurity(token=token)).models] == ["tiny"]
        assert not describe(server.address, LinkSecurity(token="token-three")).models
        for token in ("", "token", "token-one-and-more", "sha256:" + hashlib.sha256(b"token-two").hexdigest()):
            assert refused(server.address, LinkSecurity(token=token)) is grpc.StatusCode.UNAUTHENTICATED
        with open_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING, "probes have no token"


def test_a_token_covers_its_models_alone(options: ServeOptions, tokens: Path, bundle: Bundle) -> None:
    frame = Frames(bundle).make(1, pictures(1)[0])
    security = LinkSecurity(token="token-three")
    with (
        ServerThread(replace(options, tokens=tokens)) as server,
        open_channel(server.address, LinkOptions(security=security)) as channel,
    ):
        stub = split_pb2_grpc.SplitInferenceStub(channel)
        stream = StreamClient(channel, hello(bundle))
        request = pb.InferRequest(model="tiny", bundle=bundle.digest, frame=frame_to_wire(frame))
        for call in (
            lambda: stub.Describe(pb.DescribeRequest(model="tiny")),
            lambda: list(stub.FetchHead(pb.FetchHeadRequest(model="tiny"))),
            lambda: stub.Infer(request),
            stream.receive,
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert code_of(caught.value) == "permission-denied"
        stream.close()


def test_tokens_are_read_again_and_a_bad_file_changes_nothing(tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = TokenFile(tokens)
    assert known.identify("Bearer token-one").name == "everything"
    tokens.write_text("broken\n")
    assert known.identify("Bearer token-one").name == "everything"
    assert "stay as they were" in caplog.text
    tokens.write_text("everything a-new-one\n")
    assert known.identify("bearer a-new-one").name == "everything"
    with pytest.raises(UnauthenticatedError):
        known.identify("Bearer token-one")


@pytest.mark.parametrize("text", ["", "# nothing\n", "name\n", "name sha256:abc\n", "name sha256:xyz\n"])
def test_token_files_that_cannot_be(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(UsageError):
        TokenFile(tmp_path / "tokens")


@pytest.fixture
def one_stream(options: ServeOptions) -> Iterator[ServerThread]:
    with ServerThread(replace(options, clients=ClientLimits(max_streams_per_client=1, max_bytes=200))) as server:
        yield server


def test_a_client_holds_as_many_streams_as_it_may(one_stream: ServerThread, bundle: Bundle) -> None:
    with open_channel(one_stream.address) as channel:
        first, second = StreamClient(channel, hello(bundle)), StreamClient(channel, hello(bundle))
        outcomes = []
        for stream in (first, second):
            try:
                outcomes.append(stream.receive().WhichOneof("message"))
            except grpc.RpcError as error:
                outcomes.append(
                    (error.code(), code_of(error), dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
                )
        assert sorted(map(str, outcomes)) == sorted(
            ["welcome", str((grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded", "1000"))]
        )
        for stream in (first, second):
            stream.close()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:  # the place is free as soon as the server has seen the end
            third = StreamClient(channel, hello(bundle))
            try:
                assert third.receive().HasField("welcome")
                third.close()
                break
            except grpc.RpcError:
                third.close()
        else:
            pytest.fail("the first stream's place was never free again")


def test_bytes_in_flight_are_capped_and_given_back(one_stream: ServerThread, bundle: Bundle) -> None:
    frames = Frames(bundle)
    small, large = frames.make(1, pictures(1)[0], 0), frames.make(2, pictures(1)[0], 2)
    assert small.payload_bytes <= 200 < large.payload_bytes
    with open_channel(one_stream.address) as channel:
        stream = StreamClient(channel, hello(bundle))
        stream.receive()
        for _ in range(5):
            stream.send(small)
            assert stream.reply().error is None
            stream.send(large)
            refusal = stream.reply().error
            assert refusal.code == "overloaded"
            assert refusal.retry_ms > 0
        stream.close()


@pytest.mark.parametrize("fields", [{"cert": Path("a.pem")}, {"cert": Path("a.pem"), "key": Path("a-key.pem")}])
def test_link_security_that_cannot_be(fields) -> None:
    with pytest.raises(UsageError):
        LinkSecurity(**fields)
