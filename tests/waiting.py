"Waiting for a condition: every wait of a test has a reason, a limit, and a message that says both."

import time
from collections.abc import Callable
from subprocess import Popen
from typing import Any


def wait_for(
    condition: Callable[[], Any],  # polled until it is true
    reason: str,  # "the stage poisoned begins"
    process: Popen | None = None,  # what should bring it about; if it ends first, the wait fails at once
    seconds: float = 600,  # generous: the machine may be busy with other work on every core
    every: float = 0.05,  # s between two looks
) -> Any:
    "The first true value of the condition. Raises `AssertionError` with the reason."
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if process is not None and process.poll() is not None:
            if value := condition():
                break
            raise AssertionError(f"waited for this, but the process ended with {process.returncode}: {reason}")
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for this: {reason}")
        time.sleep(every)
    return value
