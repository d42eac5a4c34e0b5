"""Mutants of ``/openapi.json``."""

from __future__ import annotations

from mutants.mutant import Mutant

_ROWS = (
    (
        "Routes with a name at the end of their path are not described.",
        "fronts.http.dispatch:_Routes.routes",
        "tables += [(path, '', each) for path, each in self._prefixes.items()]",
        "pass",
    ),
    (
        "The errors of an operation are not described.",
        "fronts.http.openapi:_operation",
        "operation.errors | ERRORS | (BODY_ERRORS if operation.body else frozenset())",
        "ERRORS",
    ),
    (
        "The parameter cluster, which every path takes, is not described.",
        "fronts.http.openapi:_parameters",
        "operation.parameters | {parameters.CLUSTER}",
        "operation.parameters",
    ),
    (
        "A path with a name in it is described without saying so.",
        "fronts.http.openapi:_parameters",
        "operation.name is not None",
        "False",
    ),
    (
        "HEAD of /v1/kv without a key is said to be no method of the path.",
        "fronts.http.dispatch:_Routes.find",
        "method == 'GET'",
        "method in ('GET', 'HEAD')",
    ),
    (
        "The document is sent again to who has it.",
        "fronts.http.openapi:DocumentHandler.get",
        "self._etag in {each.strip().removeprefix('W/') for each in known.split(',')}",
        "False",
    ),
)

MUTANTS = tuple(
    Mutant("openapi", fault, where, old, new, tests="tests/fronts/test_openapi.py", simulated=False)
    for fault, where, old, new in _ROWS
)
