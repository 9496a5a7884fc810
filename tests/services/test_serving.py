"""What a process that serves needs of its machine."""

import subprocess
import sys

PROGRAM = """
import resource
from services.serving import raise_descriptor_limit
raise_descriptor_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_a_server_takes_all_the_open_files_that_it_may_have() -> None:
    command = ("prlimit", "--nofile=128:512", sys.executable, "-c", PROGRAM)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["512", "512"]
