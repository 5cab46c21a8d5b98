"""The table of errors."""

from __future__ import annotations

import grpc
import pytest
from narrows.runtime import errors
from narrows.runtime.errors import BY_CODE, NarrowsError, from_code


def test_codes_and_exit_codes_are_unique() -> None:
    assert len({error.exit_code for error in BY_CODE.values()}) == len(BY_CODE)
    assert all(0 < error.exit_code < 128 for error in BY_CODE.values())


def test_every_class_is_in_the_table_and_in_the_picture() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, NarrowsError)]
    assert set(classes) == set(BY_CODE.values())
    for error in classes:
        assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("error", BY_CODE.values())
def test_every_status_is_one_of_grpc(error: type[NarrowsError]) -> None:
    assert error.grpc_status in grpc.StatusCode.__members__


def test_errors_survive_the_wire() -> None:
    assert type(from_code("checksum", "text")) is errors.ChecksumError
    assert type(from_code("of-tomorrow", "text")) is NarrowsError
