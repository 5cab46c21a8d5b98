"""Folders of bundles: what is loaded, what is left out, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import make_bundle
from narrows.runtime import halves, session
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import BundleError, BundleMismatchError, GoldenError, ModelNotFoundError
from narrows.runtime.frame import Limits
from narrows.runtime.manifest import Half
from narrows.runtime.session import CPU, SessionOptions
from narrows.server.batcher import BatchOptions
from narrows.server.catalogue import Catalogue, Served
from narrows.server.heads import HeadStore
from narrows.server.repository import Changes, Loader, Model, Repository

HEADS = HeadStore()


@pytest.fixture(autouse=True, scope="module")
def _heads() -> Iterator[None]:
    yield
    HEADS.close()


def opened(path: Path, limits: Limits | None = None) -> Repository:
    options = {"session": SessionOptions(threads=1), "batch": BatchOptions(learn_s=0)}
    return Repository(path, Loader(HEADS, limits or Limits(), **options))


def load(path: Path, limits: Limits | None = None) -> list[Model]:
    return list(opened(path, limits).open().added)


def catalogue_of(models: list[Model]) -> Catalogue:
    catalogue = Catalogue(lambda model: Served(model, ()))
    catalogue.apply(Changes(models, []))
    return catalogue


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path / "cache"))


def test_folders_archives_and_a_single_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    one = make_bundle(folder / "one", "one")
    make_bundle(tmp_path / "two", "two", seed=1).write_archive(folder / "two.zip", *Half)
    (folder / "notes").mkdir()
    assert {model.name for model in load(folder)} == {"one", "two"}
    assert all(model.head is not None for model in load(folder))
    assert [model.digest for model in load(folder / "one")] == [one.digest]


def test_the_highest_version_of_a_name_is_current_and_others_are_found_by_digest(tmp_path: Path) -> None:
    digests = {v: make_bundle(tmp_path / "b" / "net" / v, "net", seed).digest for seed, v in enumerate(["v10", "v9"])}
    catalogue = catalogue_of(load(tmp_path / "b"))
    assert [served.model.digest for served in catalogue.current()] == [digests["v10"]]
    assert catalogue.find("net").model.digest == digests["v10"]
    assert catalogue.find("net", digests["v9"]).model.digest == digests["v9"]


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b" / "net", "net")
    catalogue = catalogue_of(load(tmp_path / "b"))
    with pytest.raises(ModelNotFoundError, match=r"'other'.*there are net"):
        catalogue.find("other")
    with pytest.raises(BundleMismatchError, match=f"{'0' * 64}.*{bundle.digest}"):
        catalogue.find("net", "0" * 64)


def test_a_second_look_finds_what_came_changed_and_went(tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "net", "net", seed=1).digest
    repository = opened(tmp_path)
    repository.open()
    assert repository.look() == Changes([], [])
    second = make_bundle(tmp_path / "net", "net", seed=2).digest
    changes = repository.look()
    assert ([model.digest for model in changes.added], changes.removed) == ([second], [first])
    other = make_bundle(tmp_path / "more" / "v1", "other").digest
    assert [model.digest for model in repository.look().added] == [other]
    shutil.rmtree(tmp_path / "more")
    assert repository.look() == Changes([], [other])


def test_a_bundle_that_is_replaced_by_a_bad_one_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_bundle(tmp_path / "net", "net", seed=1)
    repository = opened(tmp_path)
    repository.open()
    bundle = make_bundle(tmp_path / "net", "net", seed=2)
    bundle.file("tail.onnx").write_bytes(b"nonsense")
    for _ in range(3):
        assert repository.look() == Changes([], [])
    assert caplog.text.count("left out") == 1, "and is complained of once"
    third = make_bundle(tmp_path / "net", "net", seed=3).digest
    assert [model.digest for model in repository.look().added] == [third]


def test_a_bad_bundle_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_bundle(tmp_path / "good", "good")
    for name, file in (("bad-tail", "tail.onnx"), ("bad-head", "head.onnx")):
        broken = make_bundle(tmp_path / name, name).file(file)
        broken.write_bytes(broken.read_bytes()[:-1] + b"?")
    (tmp_path / "bad.zip").write_bytes(b"PK no archive")
    assert [model.name for model in load(tmp_path)] == ["good"]
    assert all(name in caplog.text for name in ("bad-tail", "bad-head", "bad.zip"))
    with pytest.raises(BundleError, match=r"tail\.onnx"):
        load(tmp_path / "bad-tail")


def test_nothing_to_serve_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="neither"):
        load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="no bundle"):
        load(tmp_path)


def test_a_bundle_over_the_caps_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path / "net")
    with pytest.raises(BundleError, match="symbols"):
        load(tmp_path / "net", Limits(max_elements=100))


def test_the_servers_half_alone_is_served_without_heads(tmp_path: Path) -> None:
    make_bundle(tmp_path / "whole")
    make_bundle(tmp_path / "whole").write_archive(tmp_path / "half.zip", Half.SERVER)
    assert [model.head is not None for model in load(tmp_path / "half.zip")] == [False]
    half = shutil.copytree(tmp_path / "whole", tmp_path / "half")
    for name, _ in list(Bundle.open(half).members(Half.DEVICE)):
        (half / name).unlink()
    assert [model.head is not None for model in load(half)] == [False]


def test_a_tail_that_answers_otherwise_than_its_golden_vectors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "net")
    monkeypatch.setattr("narrows.runtime.halves.OUTPUT_TOLERANCE", -1.0)  # no machine that differs is at hand
    with pytest.raises(GoldenError):
        load(tmp_path / "net")


def test_a_provider_that_cannot_be_used_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What ONNX Runtime does where CUDA's libraries are missing: the session runs on the CPU, and says so when asked.
    real = session.open_session
    monkeypatch.setattr(
        halves, "open_session", lambda path, options: real(path, SessionOptions(threads=options.threads))
    )
    make_bundle(tmp_path / "bundles" / "one")
    make_bundle(tmp_path / "bundles" / "two")
    wanted = SessionOptions(("CUDAExecutionProvider", CPU), threads=1)
    Repository(tmp_path / "bundles", Loader(HEADS, Limits(), wanted, BatchOptions(learn_s=0))).open()
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert told[0].startswith("CUDAExecutionProvider cannot be used here, and CPUExecutionProvider runs instead")
