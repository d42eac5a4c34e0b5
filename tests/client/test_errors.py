"""The exceptions of the client: their names, old and new, and their way to another process."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - what multiprocessing does with a result
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

import kvorum_client
from kvorum_client import (
    ClientError,
    CompactedError,
    CompareFailedError,
    FutureRevisionError,
    LeaseExistsError,
    LeaseNotFoundError,
    LockHeldError,
    NoSpaceError,
    RefusedError,
    WrongClusterError,
    errors,
)

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
SAMPLES = {
    RefusedError: RefusedError(413, "too_large", "the key is too long"),
    NoSpaceError: NoSpaceError("the quota is used up", "quota", 8, 9),
    CompactedError: CompactedError("revision 3 is compacted", 5, 9),
    FutureRevisionError: FutureRevisionError("the cluster is at revision 9", 9),
    CompareFailedError: CompareFailedError("the key is at revision 7", 7, 12),
    LeaseExistsError: LeaseExistsError("there is a lease 1f already", 30, False),
    LeaseNotFoundError: LeaseNotFoundError("the lease 1f does not exist"),
    LockHeldError: LockHeldError("the lease 1f holds the lock", 31, 7, 1500),
    WrongClusterError: WrongClusterError("n1 belongs to another cluster", "d" * 32, "c" * 32),
}


@pytest.mark.parametrize("module", [kvorum_client, errors])
@pytest.mark.parametrize("name", errors.RENAMED)
def test_an_old_name_is_still_the_same_class_and_warns(module: object, name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"kvorum_client.{name} is now {errors.RENAMED[name].__name__}"):
        assert getattr(module, name) is errors.RENAMED[name]


def test_the_warning_names_the_line_that_imports_the_old_name() -> None:
    code = "x = 1\nfrom kvorum_client import Refused\n"
    command = [sys.executable, "-W", "always", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    assert "<string>:2: DeprecationWarning: kvorum_client.Refused is now RefusedError" in result.stderr


def test_a_name_that_never_was_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'kvorum_client' has no attribute 'Refusal'"):
        _ = kvorum_client.Refusal  # type: ignore[attr-defined]


def test_every_exception_ends_in_error() -> None:
    assert len(KINDS) == 16
    assert all(kind.__name__.endswith("Error") for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_exception_is_copied_and_pickled_with_all_its_facts(kind: type[ClientError]) -> None:
    error = SAMPLES.get(kind) or kind("what happened")
    error.add_note("a note")
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]  # noqa: S301
    for other in [*copies, copy.copy(error), copy.deepcopy(error)]:
        assert type(other) is kind
        assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))


def test_an_exception_with_an_initializer_of_its_own_needs_no_more_than_that() -> None:
    error = pickle.loads(pickle.dumps(QuotaError(3)))  # noqa: S301
    assert (type(error), str(error), error.code, error.missing) == (QuotaError, "3 missing", "quota", 3)


class QuotaError(RefusedError):
    def __init__(self, missing: int) -> None:
        super().__init__(507, "quota", f"{missing} missing")
        self.missing = missing


def _fail() -> None:
    raise CompareFailedError("the key is at revision 7", 7, 12)


def test_a_failed_compare_in_a_process_pool_arrives_as_what_it_is() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        error = pool.submit(_fail).exception(timeout=30)
    assert isinstance(error, CompareFailedError)
    assert (error.mod_revision, error.revision) == (7, 12)
