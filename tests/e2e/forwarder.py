"""Runs in a pod: puts keys at each node in turn, which hands them to the leader, once each; standard library only.

It follows no redirect and tries nothing again. Input: a line ends it. Output: ``{"answered": N}`` for each answer of
200, and at the end one JSON line with the status that was answered for each key (0: no answer), in order.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import sys
import threading
from urllib.parse import urlsplit

TIMEOUT_S = 8.0
PAUSE_S = 0.02


def put(endpoint: str, key: str, value: bytes) -> int:
    """Put at this node; return the status, or 0 if there was no answer."""
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=TIMEOUT_S)
    try:
        connection.request("PUT", f"/v1/kv/{key}?forward=true", value)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
    return answer.status


def say(line: dict[str, object]) -> None:
    """Write a line of JSON."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--prefix", required=True)
    arguments = parser.parse_args()
    is_over = threading.Event()

    def wait_for_a_line() -> None:
        sys.stdin.readline()
        is_over.set()

    threading.Thread(target=wait_for_a_line, daemon=True).start()
    statuses: list[int] = []
    answered = 0
    for endpoint in itertools.cycle(arguments.endpoints.split(",")):
        if is_over.wait(PAUSE_S):
            break
        status = put(endpoint, f"{arguments.prefix}{len(statuses)}", str(len(statuses)).encode())
        statuses.append(status)
        if status == 200:
            answered += 1
            say({"answered": answered})
    say({"statuses": statuses})


if __name__ == "__main__":
    main()
