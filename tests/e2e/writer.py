"""Runs in a pod: writes through the Service, each on a connection of its own and never retried; counts what fails.

A client without retries sees every moment in which the Service leads to a pod that has stopped. Standard library only.
Input: a line ends it. Output: one JSON line with the number of writes and the failures, each as ``[second, reason]``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

REDIRECTS_MAX = 5
TIMEOUT_S = 5.0


class Writer:
    """Writes from several threads.

    Args:
        url: of the Service.
        prefix: of the keys.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self._url = url
        self._prefix = prefix
        self._is_over = threading.Event()
        self._started_s = time.monotonic()
        self._lock = threading.Lock()
        self.writes = 0
        self.failures: list[tuple[float, str]] = []

    def run(self, threads: int) -> None:
        """Write until a line, or the end, comes on the standard input."""
        workers = [threading.Thread(target=self._write_on, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        sys.stdin.readline()
        self._is_over.set()
        for worker in workers:
            worker.join()

    def _write_on(self, number: int) -> None:
        count = 0
        while not self._is_over.is_set():
            count += 1
            failure = put(self._url, f"/v1/kv/{self._prefix}-{number}", str(count).encode())
            with self._lock:
                self.writes += 1
                if failure:
                    self.failures.append((round(time.monotonic() - self._started_s, 1), failure))


def put(url: str, target: str, value: bytes) -> str:
    """Put once, following redirects; return why it failed, or the empty string."""
    for _ in range(REDIRECTS_MAX):
        host = urlsplit(url).netloc
        connection = http.client.HTTPConnection(host, timeout=TIMEOUT_S)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            return f"no connection to {host}: {error}"
        try:
            connection.request("PUT", target, value)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            return f"no answer from {host}: {error!r}"
        finally:
            connection.close()
        if answer.status != 307:
            return "" if answer.status == 200 else f"{answer.status} from {host}: {body[:200].decode(errors='replace')}"
        location = urlsplit(answer.headers["Location"])
        url = f"{location.scheme}://{location.netloc}"
        target = location.path + (f"?{location.query}" if location.query else "")
    return "too many redirects"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--threads", type=int, default=4)
    arguments = parser.parse_args()
    writer = Writer(arguments.url, arguments.prefix)
    writer.run(arguments.threads)
    sys.stdout.write(json.dumps({"writes": writer.writes, "failures": writer.failures}) + "\n")


if __name__ == "__main__":
    main()
