"""Programs that are killed by SIGKILL at random times."""

import os
import random
import signal
import subprocess
import sys
import time

KILLS = int(os.environ.get("FEATURESTORE_KILLS", "10"))
"""How often, of each program; FEATURESTORE_KILLS=200 for a night."""

_FORKING = """
import os, sys
exec(sys.argv[1])
print(0, flush=True)
for _ in sys.stdin:
    if not (pid := os.fork()):
        exec(sys.argv[2])
        os._exit(0)
    print(pid, flush=True)
    sys.stdin.readline()  # until then its id is not free
    print(os.waitpid(pid, 0)[1], flush=True)
"""


def killed(imports, code, *arguments, kills=KILLS):
    """Run `code` with the arguments in `sys.argv[3:]`: once to its end, then killed again and again.

    Yields after each kill how many there were; code that ended before is not counted, and yields as well.
    """
    chance = random.Random(0)
    command = [sys.executable, "-c", _FORKING, imports, code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as forking:

        def ask():
            forking.stdin.write("\n")
            return int(forking.stdout.readline())

        forking.stdout.readline()  # all is imported
        began = time.monotonic()
        ask()
        assert ask() == 0
        longest, count = time.monotonic() - began, 0
        yield 0
        while count < kills:
            pid = ask()
            time.sleep(chance.uniform(0, longest))
            os.kill(pid, signal.SIGKILL)
            count += ask() == signal.SIGKILL
            yield count
        forking.stdin.close()
