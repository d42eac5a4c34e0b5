"""Fetch pip's wheel from the package index into a folder, for a Python without ensurepip: fetch_pip.py FOLDER

Prints the path of the file. Needs the standard library only. The index is PIP_INDEX_URL, by default PyPI.
"""

import hashlib
import os
import re
import ssl
import sys
import urllib.parse
import urllib.request

VERSION = "25.3"
SHA256 = "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd"
TIMEOUT_S = 60


def main() -> int:
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"
    try:
        print(fetch(index, f"pip-{VERSION}-py3-none-any.whl", SHA256, sys.argv[1]))
    except (OSError, ValueError) as error:
        print(f"pip {VERSION} cannot be fetched from {index}: {error}", file=sys.stderr)
        return 1
    return 0


def fetch(index: str, name: str, sha256: str, folder: str) -> str:
    """Return the path of the file that the index page links to.

    Raises:
        OSError: it cannot be fetched.
        ValueError: it is not there, or not the file with this hash.
    """
    page = _get(index).decode("utf-8", "replace")
    found = re.search(rf'href="([^"]*/)?{re.escape(name)}[^"]*"', page)
    if found is None:
        raise ValueError(f"{name} is not there")
    data = _get(urllib.parse.urljoin(index, found[0][len('href="') : -1]))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{name} has another hash than expected")
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(data)
    return path


def _get(url: str) -> bytes:
    context = ssl.create_default_context()
    # A fresh Debian has no certificates of authorities. What is fetched is known by its hash.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context) as answer:
        return answer.read()


if __name__ == "__main__":
    sys.exit(main())
