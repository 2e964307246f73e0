from __future__ import annotations

import logging
import re
import subprocess
import sys

from kernelet.core.client.logs import LineFormatter


def test_a_line_has_time_level_component_message_and_fields() -> None:
    record = logging.makeLogRecord({"msg": "bound %s", "args": ("x",), "levelname": "INFO", "pod": "default/web"})
    record.__dict__["why"] = "two words"
    line = LineFormatter("scheduler").format(record)
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO scheduler bound x pod=default/web why="two words"', line
    )


def test_importing_the_client_loads_neither_models_nor_http_nor_cryptography() -> None:
    program = (
        "import sys, kernelet.core.client.raw, kernelet.core.client.client; "
        "print([m for m in ('lightkube', 'aiohttp', 'cryptography') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
