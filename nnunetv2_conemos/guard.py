"""Run a command, and end it and all that it starts as soon as the process that wants it is gone.

A program of its own, since nnU-Net's commands know nothing of their parent: it leads the session of the command, and
its standard input is a pipe that closes with the parent, even when that is killed. Exit status: that of the command.
"""

import os
import signal
import subprocess
import sys
import threading
import time

PATIENCE = 5  # seconds that the command has to clean up


def end_without_parent(process: subprocess.Popen) -> None:
    """Wait for the end of standard input, then end the whole session."""
    while os.read(0, 1):
        pass
    if process.poll() is None:
        os.killpg(0, signal.SIGTERM)
        time.sleep(PATIENCE)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: None)  # not SIG_IGN, which the command would inherit
    signal.signal(signal.SIGINT, lambda *_: None)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, close_fds=False)
    threading.Thread(target=end_without_parent, args=(process,), daemon=True).start()
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
