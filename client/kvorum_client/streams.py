"""What a node sends for as long as it takes: the events of a watch, or a backup."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable

from kvorum_client.arguments import check_timeout
from kvorum_client.backup import Backup, Verifier
from kvorum_client.calls import BACKOFF_MAX_S, PROBE_S, Call, Caller
from kvorum_client.errors import BackupDamagedError, UnavailableError
from kvorum_client.ranges import Parameters
from kvorum_client.transport import (
    CLOSED,
    DownloadDeclinedError,
    DownloadInterruptedError,
    NoAnswerError,
    NotSentError,
)
from kvorum_client.watch import AttemptEndedError, Resumed, Watch, target_of

WATCH_PROGRESS_S = 5
"""How often a node shows that a watch lives on which nothing happens."""
WATCH_SILENCE_S = 15.0
"""After so long without a sign of life a watch goes on at another node."""
BACKUP_SILENCE_S = 60.0
"""How long a node may take to write a backup, or its next piece."""


class Streams(Caller):
    """The calls of a client whose answers have no end, or are large."""

    def watch(
        self,
        key: bytes | str | None = None,
        *,
        prefix: bytes | str | None = None,
        start: bytes | str | None = None,
        end: bytes | str | None = None,
        from_revision: int | None = None,
        prev_value: bool = False,
        only: str | None = None,
        timeout_s: float | None = None,
        on_resume: Resumed | None = None,
    ) -> Watch:
        """Return the events of a key, of all keys with a prefix, or of those from ``start`` on and before ``end``.

        Each event comes once, in the order of revisions. When a node stops or fails, the watch goes on at another one.

        Args:
            key: one key.
            prefix: the beginning of keys; empty: all keys.
            start: the first key of a range.
            end: the first key behind it.
            from_revision: the first revision to see, from 1. By default the watch begins when it is entered, or when
                its first event is asked for.
            prev_value: tell what each event replaced.
            only: ``put`` or ``delete``.
            timeout_s: how long to look for a node, to begin and then each time the watch has to resume. By default the
                client's deadline to begin, and no limit to resume.
            on_resume: called with a revision and a reason when the watch goes on at another node.
        """
        target = target_of(key, prefix, start, end, only, prev_value=prev_value) + f"&progress_s={WATCH_PROGRESS_S}"
        begin_timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return Watch(self._stream, target, from_revision, begin_timeout_s, timeout_s, on_resume)

    async def _stream(self, target: str, within_s: float) -> AsyncGenerator[bytes, None]:
        """Yield what one node sends of a watch, or of an election; see :class:`kvorum_client.watch.Connect`."""
        deadline, has_answered = time.monotonic() + within_s, False
        call = Call("GET", "/v1/watch", self._deadline(min(within_s, self._attempt_timeout_s)), any_node=True)
        call.foreign = self._foreign
        base = await self._router.pick_any(call.remaining_s())
        if self._transport.is_closed:
            raise UnavailableError(CLOSED)
        try:
            if self.cluster_id or await self._learn_cluster(call, base, call.remaining_s()):
                target += f"&timeout_ms={max(1, int(900 * call.remaining_s()))}"
                pieces = self._transport.download(base, target, self._cluster_header(), WATCH_SILENCE_S)
                async with contextlib.aclosing(pieces):
                    async with asyncio.timeout(call.remaining_s()):
                        piece = await anext(pieces, None)
                    if piece is not None:
                        self._foreign = {}
                    while piece is not None:
                        self.has_heard, self.last_failure = True, None
                        has_answered, self.streams_from = True, base
                        yield piece[0]
                        piece = await anext(pieces, None)
                call.reason = f"{base}: the connection ended"
        except (NotSentError, NoAnswerError, DownloadInterruptedError) as error:
            call.reason = str(error)
        except TimeoutError:
            call.reason = f"{base}: no answer in time"
        except DownloadDeclinedError as error:
            self.has_heard = True
            if self._is_ours(call, error.answer) and error.answer.status != 307:
                self._judge(call, error.answer)
            nodes = self._router.others("")
            self._foreign = {node: cluster for node, cluster in call.foreign.items() if node in nodes}
            self._check_cluster(call)
        except GeneratorExit:
            # The node said that it ends the watch, or nobody wants more of it.
            self._router.skip(base)
            raise
        self.last_failure = call.reason
        # A stream may have lasted for days: the time to find the next node begins when it is lost.
        left_s = within_s if has_answered else deadline - time.monotonic()
        await self._router.failed(base, max(0.0, min(left_s, self._attempt_timeout_s)))
        raise AttemptEndedError(call.reason)

    async def backup(
        self, write: Callable[[bytes, int], object], *, stale: bool = False, timeout_s: float | None = None
    ) -> Backup:
        """Fetch a backup of all that was acknowledged before the call, from any node; return what it is.

        Args:
            write: called with each piece and the size of the whole; it may block for as long as a disk does. What it
                was given is a backup only once this returns.
            stale: what the node has applied is enough. It works without a quorum, may lack acknowledged writes, and the
                file says so.
            timeout_s: how long to look for a node that gives one, and how long a quorum may take to confirm it. The
                node may then be silent for a minute (or this long, if it is more) while it writes the backup.

        Raises:
            RefusedError, UnavailableError: there is none; ``write`` was not called.
            BackupDamagedError: it broke off, or is not what the node meant to send.
        """
        timeout_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        silence_s = max(timeout_s, BACKUP_SILENCE_S)
        parameters: Parameters = {"consistency": "stale"} if stale else {}
        call = Call("GET", "/v1/snapshot", self._deadline(timeout_s), parameters=parameters, any_node=True)
        verifier = Verifier()
        while (remaining_s := call.remaining_s()) > 0:
            base = await self._router.pick_any(remaining_s)
            if self._transport.is_closed:
                raise UnavailableError(CLOSED)
            try:
                pieces = self._transport.download(base, call.target(remaining_s), self._cluster_header(), silence_s)
                async with contextlib.aclosing(self._while_alive(pieces, base)) as living:
                    async for chunk, size_bytes in living:
                        self.has_heard, self.last_failure = True, None
                        verifier.feed(chunk)
                        write(chunk, size_bytes)
                return verifier.finish()
            except (NotSentError, NoAnswerError) as error:
                call.reason = str(error)
            except DownloadDeclinedError as error:
                self.has_heard = True
                if self._is_ours(call, error.answer):
                    self._judge(call, error.answer)
                self._check_cluster(call)
            except DownloadInterruptedError as error:
                raise BackupDamagedError(f"the backup broke off after {verifier.size_bytes} bytes: {error}") from None
            self.last_failure = call.reason
            await self._router.failed(base, call.remaining_s())
            await self._pause(call, BACKOFF_MAX_S)
        raise UnavailableError(call.reason)

    async def _while_alive(
        self, pieces: AsyncGenerator[tuple[bytes, int], None], base: str
    ) -> AsyncGenerator[tuple[bytes, int], None]:
        """Yield the pieces. Until the first is there, a node that does not answer its probe either is given up.

        A large snapshot takes a while; a node that is gone, paused or cut off should not be waited for as long.

        Raises:
            NoAnswerError: it does not answer.
        """
        async with contextlib.aclosing(pieces):
            first = asyncio.ensure_future(anext(pieces, None))
            try:
                while not (await asyncio.wait([first], timeout=PROBE_S))[0]:
                    try:
                        await self._transport.exchange(base, "GET", "/livez", b"", {}, PROBE_S)
                    except (NotSentError, NoAnswerError):
                        if not first.done():
                            raise
            finally:
                if not first.done():
                    first.cancel()
                    await asyncio.wait([first])
            if (piece := first.result()) is None:
                return
            yield piece
            async for piece in pieces:
                yield piece
