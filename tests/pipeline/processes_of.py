"""The processes of a build, as the system sees them."""

from pathlib import Path


def children_of(parent):
    """Process ids of the children of a process that extract, and of those that a fork server makes for it."""
    found, servers = {}, {parent}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                status, command = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            number, above = int(entry.name), int(status.rpartition(")")[2].split()[1])
            if b"spawn_main" in command:
                found[number] = above
            elif b"forkserver" in command:
                found[number] = above
                if above == parent:
                    servers.add(number)
    return sorted(number for number, above in found.items() if above in servers and number not in servers)
