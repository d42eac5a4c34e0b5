"""One row of the table of mutants."""

from __future__ import annotations

import msgspec

SIMULATED = frozenset({"raft", "kv", "node", "service"})
"""The packages whose mutants every seed of the simulator can notice."""


class Mutant(msgspec.Struct, frozen=True):
    """A known bug, put back by a change to one function.

    Attributes:
        bug: what the row belongs to: B1 to B40, K1 to K12, a section of the Raft paper or thesis, or a topic.
        fault: what goes wrong, in one sentence.
        where: ``module:qualified.name`` below ``kvorum``: a function, a method, a class or a module's variable; of the
            client ``kvorum_client.module:qualified.name``. When the module does not define the name (any more), the
            name alone is looked up in the whole package.
        old: the Python that is replaced: one expression, or one or more consecutive statements. It must occur in
            ``where`` exactly once. Syntax trees are compared: layout, comments and quotes do not matter. ``if x: ...``
            is an ``if`` with any body.
        new: what replaces it; ``pass`` removes statements.
        tests: what pytest runs to kill the mutant; empty: the tests of the package (``tests/raft`` for ``raft.log``).
        simulated: whether the simulator runs this code, so that a seed may notice; None: if its package is one of
            ``SIMULATED``.
    """

    bug: str
    fault: str
    where: str
    old: str
    new: str
    tests: str = ""
    simulated: bool | None = None

    @property
    def module(self) -> str:
        """The module below ``kvorum``, or of the client, as the row names it."""
        return self.where.partition(":")[0]

    @property
    def function(self) -> str:
        """The qualified name inside the module."""
        return self.where.partition(":")[2]

    @property
    def name(self) -> str:
        """The row in one line, the same as long as the row does not change."""
        return f"{self.bug} {self.where}: {_line(self.old)} -> {_line(self.new)}"

    @property
    def judged_by(self) -> str:
        """The arguments of pytest."""
        return self.tests or f"tests/{self.module.partition('.')[0]}"

    @property
    def is_simulated(self) -> bool:
        """Whether seeds are run as well."""
        return self.module.partition(".")[0] in SIMULATED if self.simulated is None else self.simulated


def _line(code: str) -> str:
    return "; ".join(line.strip() for line in code.strip().splitlines())
