"""The processes of a build, as the system sees them."""

from pathlib import Path


def children_of(parent):
    """Process ids of the children of a process that extract."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                status, command = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if int(status.rpartition(")")[2].split()[1]) == parent and b"spawn_main" in command:
                found.append(int(entry.name))
    return sorted(found)
