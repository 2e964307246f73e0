"""One HTTP GET, from wherever this runs: prints status and body as JSON. Exit status 1 where no answer comes."""

import http.client
import json
import sys
from urllib.parse import urlsplit


def main() -> None:
    url = urlsplit(sys.argv[1])
    connection = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=5)
    try:
        connection.request("GET", url.path or "/", headers={"Connection": "close"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        # Who is named is the tier that was asked, not the one behind it.
        answer |= {"status": response.status, "pod": response.getheader("X-Pod") or answer.get("pod")}
        print(json.dumps(answer))
    except OSError as error:
        print(json.dumps({"error": repr(error)}))
        sys.exit(1)


if __name__ == "__main__":
    main()
