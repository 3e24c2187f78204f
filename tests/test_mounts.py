"""What doctor says of the file system of a folder."""

import pytest

from featurestore.mounts import Mount, describe_mount, mount_of

TABLE = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
35 22 0:40 / /data rw,relatime shared:2 - nfs4 server:/data rw,vers=4.2,hard,local_lock=none,addr=10.0.0.1
36 35 0:41 / /data/my\040disk rw - fuse.sshfs you@host:/ rw,user_id=0
37 35 0:42 / /data/old rw - ext4 /dev/sdb1 rw
38 37 0:43 / /data/old rw - nfs server:/old rw,vers=3,local_lock=all
a line that is none
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/home/you", "ext4"),
        ("/data", "nfs4"),
        ("/data/a/b", "nfs4"),
        ("/database", "ext4"),
        ("/data/my disk/store.zarr", "fuse.sshfs"),
        ("/data/old/x", "nfs"),
    ],
)
def test_the_mount_of_a_folder_is_the_nearest_and_last(folder, kind):
    assert mount_of(folder, TABLE).kind == kind


def test_the_options_are_those_of_the_mount_and_the_disk():
    assert {"relatime", "vers=4.2", "local_lock=none"} <= mount_of("/data", TABLE).options


def test_there_may_be_no_table():
    assert mount_of("/data", "") is None


@pytest.mark.parametrize(
    ("kind", "options", "ok", "says"),
    [
        ("nfs4", ["vers=4.2", "local_lock=none"], True, "after about a minute"),
        ("nfs", ["vers=3"], None, "until it is back"),
        ("nfs", [], None, "NFS 3"),
        ("nfs", ["vers=3", "nolock"], False, "nolock: locks hold within a host only"),
        ("nfs4", ["vers=4.1", "local_lock=flock"], False, "mounted with local_lock=flock"),
        ("lustre", ["flock"], True, "share a store"),
        ("lustre", ["localflock"], False, "within a host"),
        ("lustre", [], False, "no locks"),
        ("fuse.sshfs", [], None, "within a host"),
        ("fuse.s3fs", [], False, "object storage"),
        ("ext4", [], True, "of this machine"),
        ("beegfs", [], None, "nobody has tried"),
    ],
)
def test_what_a_type_means(kind, options, ok, says):
    found, text = describe_mount(Mount(kind, frozenset(options)))
    assert found is ok
    assert says in text
