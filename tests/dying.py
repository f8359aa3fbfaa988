"""Children of a test that are killed at a chosen moment."""

import os
import signal
import sys

OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "fcntl.flock")


def killed(function, operation=None, folder=None, seconds=None):
    """Calls `function` in a child and returns whether the child was killed.

    It is killed before its file operation of this number, of those that name a path below `folder` if one is given; or
    after some seconds."""
    child = os.fork()
    if not child:
        if seconds is not None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)
        else:
            sys.addaudithook(_killer(operation, folder))
        try:
            function()
        finally:
            os._exit(0)
    return bool(os.waitpid(child, 0)[1])


def _killer(operation, folder):
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event not in OPERATIONS or (folder and not any(str(each).startswith(str(folder)) for each in arguments[:2])):
            return
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    return hook
