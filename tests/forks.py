"""A Python that has torch and other libraries loaded already, and is forked for each program.

`Forks.python` stands for `python` in a command: its client hands the command, the environment, the folder and the
standard streams to a server, which loaded the libraries and forks. Importing them takes six seconds, as long as most
commands take. Nothing of parnb is loaded before."""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from types import ModuleType

LIBRARIES = ("torch", "open_clip", "pandas", "scipy.stats", "matplotlib.pyplot")  # IPython would mean a notebook
# beginnings of variables that no library reads when it is imported
OWN = ("PARNB_", "PYTEST_")
OWN += ("TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR")  # open_clip sets them when a test imports it
OWN += ("KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK")  # joblib and scikit-learn do
ENDED: list[int] = []  # the exit code of a forked program


class Forks:
    "Two servers, each started when it is first used, that end with this process."

    def __init__(self):
        self.servers, self.calls, self.environment = {}, 0, {}

    def expect(self, environment):
        "Name the environment in which most programs run."
        self.environment = {k: v for k, v in environment.items() if not k.startswith(OWN)}

    def python(self, environment) -> list[str]:
        """What runs a program in an environment; a real Python where libraries would read another one.

        The servers take turns: hashes of texts differ in a command and the next one, as they do in real processes."""
        others = {k: v for k, v in environment.items() if not k.startswith(OWN)}
        if sys.platform != "linux" or others != self.environment:
            return [sys.executable]
        self.calls += 1
        if (turn := self.calls % 2) not in self.servers:
            self.servers[turn] = Server(LIBRARIES, others)
        return self.servers[turn].client

    def stop(self):
        "End the servers, and wait for them."
        for server in self.servers.values():
            server.stop()


FORKS = Forks()


class Server:
    "A process that forks for each client."

    def __init__(self, libraries, environment):
        self.folder = tempfile.TemporaryDirectory(prefix="forks")  # only this user can open it
        path = f"{self.folder.name}/socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
            s.bind(path)
            s.listen(64)
            command = [sys.executable, __file__, "serve", str(s.fileno()), *libraries]
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
            self.process = subprocess.Popen(command, env=environment, pass_fds=[s.fileno()], **pipes)
        self.client = [sys.executable, "-SE", __file__, "ask", path]

    def stop(self):
        self.process.communicate()
        self.folder.cleanup()


def ask(path, *command):
    "Have a command run, and end as it ended."
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(path)
        socket.send_fds(server, [json.dumps([command, dict(os.environ), os.getcwd()]).encode()], [0, 1, 2])
        code = int(server.recv(100))
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


def serve(listening, *libraries):
    "Fork for each client, until standard input is closed."
    atexit.register(end)  # the first that is registered is the last that is called
    sys.path.pop(0)  # the folder of this file
    for name in libraries:
        importlib.import_module(name)
    gc.freeze()  # so that the memory stays shared
    listening = socket.socket(fileno=int(listening))
    while listening in select.select([0, listening], [], [])[0]:
        client, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            return attend(client)
        client.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def attend(client):
    "Fork once more; tell the client how that process ended, and end it if the client ended before."
    message, streams, *_ = socket.recv_fds(client, 1 << 20, 3)
    pid = os.fork()
    os.setpgid(pid, pid)  # both do, whichever is first; 0 is the process itself
    if pid == 0:
        client.close()
        return ENDED.append(become(*json.loads(message), streams))
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(pid)
    if ended not in select.select([client, ended], [], [])[0]:
        os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        client.send(str(code).encode())
    os._exit(0)


def end():
    "Leave the libraries of a forked program as they are: to free all memory takes half a second."
    if ENDED:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(ENDED[0])


def become(command, environment, folder, streams):
    "Do what `python COMMAND` does; its exit code."
    for own, stream in enumerate(streams):
        os.dup2(stream, own)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.modules["numpy"].random.seed()  # as every process has its own
    try:
        run(*command)
        return 0
    except SystemExit as e:
        if not isinstance(e.code, int | None):
            print(e.code, file=sys.stderr)
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1


def run(first, *rest):
    "Run a file, `-c CODE` or `-m MODULE` with arguments."
    if first == "-c":
        sys.argv, sys.path[:0] = ["-c", *rest[1:]], [""]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif first == "-m":
        sys.argv, sys.path[:0] = [*rest], [os.getcwd()]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = [first, *rest], [os.path.dirname(os.path.realpath(first))]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    dict(ask=ask, serve=serve)[sys.argv[1]](*sys.argv[2:])
