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
        print(
            json.dumps({"status": response.status, "pod": response.getheader("X-Pod"), **json.loads(response.read())})
        )
    except OSError as error:
        print(json.dumps({"error": repr(error)}))
        sys.exit(1)


if __name__ == "__main__":
    main()
