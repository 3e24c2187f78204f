"""A cluster of Slurm on loopback: munged, slurmctld, and two nodes, each a slurmd."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue")
NODES = ("n1", "n2")

CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdTimeout=5
SlurmctldTimeout=5
InactiveLimit=0
KillWait=5
MinJobAge=3600
OverTimeLimit=0
ReturnToService=2
RequeueExit=3
JobRequeue=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=2 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=2 RealMemory=1000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """What a cluster needs and this machine has not."""
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    found = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return found if os.getuid() == 0 else [*found, "root"]


class Cluster:
    """Daemons that run until `close`; nothing of the machine's own Slurm is touched.

    Parameters
    ----------
    folder : Path
        For their files, with a short path, as that of a socket is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        host = socket.gethostname().split(".")[0]
        ports = dict(zip(("port", "port1", "port2"), _free_ports(3), strict=True))
        (folder / "state").mkdir()
        self._configuration = folder / "slurm.conf"
        self._configuration.write_text(CONFIGURATION.format(host=host, folder=folder, **ports))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(self._configuration),
            "PATH": os.environ["PATH"] + ":/usr/sbin",
        }
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        munge = [f"--{name}={folder}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        self._start("munged", "munged", "--foreground", "--force", f"--key-file={key}", *munge)
        self.wait_until((folder / "munge.socket").exists)
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self._configuration))
        for node in NODES:
            self.start_node(node)
        self.wait_until(lambda: self.run("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"])

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def start_node(self, node: str) -> None:
        """Start a node."""
        self._start(node, "slurmd", "-D", "-N", node, "-f", str(self._configuration))

    def kill_node(self, node: str) -> None:
        """End a node as a loss of power does: the daemon, and all processes of its jobs."""
        self._daemons[node].kill()
        jobs = self.processes(f"SLURMD_NODENAME={node}")
        # What watches over the jobs comes first, or it would report how they ended.
        for process in [*filter(_is_of_slurm, map(_parent, jobs)), *jobs]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._daemons.pop(node).wait()

    def processes(self, variable: str) -> list[int]:
        """Process ids of what runs in jobs of this cluster with a variable in its environment."""
        found = []
        wanted = {variable.encode(), b"SLURM_CONF=" + os.fsencode(self._configuration)}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def run(self, *command: str) -> str:
        """What a command prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, (command, done.stderr, self.logs())
        return done.stdout

    def submit(self, script: str, *options: str) -> str:
        """Submit a job, and give its id."""
        path = self.folder / f"job-{time.monotonic_ns()}.sh"
        path.write_text(script)
        output = f"--output={self.folder}/%A_%a.out"
        return self.run("sbatch", "--parsable", "--open-mode=append", output, *options, str(path)).strip()

    def jobs(self, job: str) -> dict[str, dict[str, str]]:
        """What Slurm says of each task of a job, by its number in the array."""
        found = {}
        for block in self.run("scontrol", "show", "job", job, "--details", "--oneliner").splitlines():
            values = dict(pair.split("=", 1) for pair in block.split() if "=" in pair)
            found[values.get("ArrayTaskId", "")] = values
        return found

    def start_soon(self, task: str) -> None:
        """Start a task that is queued again, which waits for two minutes else.

        Not at once: for what its node has ended in a second, it takes no credential of the same second ("Job
        credential revoked"), and the task fails with 1.
        """
        self.run("scontrol", "update", f"JobId={task}", "StartTime=now+2")

    def wait_for(self, job: str, seconds: float = 240) -> dict[str, dict[str, str]]:
        """Wait until all tasks of a job have ended."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
        self.wait_until(lambda: {task["JobState"] for task in self.jobs(job).values()} <= ended, seconds)
        return self.jobs(job)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def logs(self) -> str:
        """The ends of all logs and outputs."""
        files = sorted(path for path in self.folder.iterdir() if path.suffix in (".log", ".out"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in files)

    def close(self) -> None:
        """End all daemons and what is left of their jobs."""
        for name in reversed(list(self._daemons)):
            self._daemons[name].terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _parent(process: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _is_of_slurm(process: int) -> bool:
    with contextlib.suppress(OSError):
        return "slurmstepd" in Path(f"/proc/{process}/stat").read_text()
    return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
