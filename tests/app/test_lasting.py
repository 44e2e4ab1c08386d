"""Storage that does not last is known as such."""

from pathlib import Path

import pytest

from supervisor.lasting import MOUNTS, why_it_passes

MACHINE = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw,size=24684084k
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
40 27 0:40 / /run rw,nosuid - tmpfs tmpfs rw
41 27 254:16 / /srv/my\\040data rw - xfs /dev/vdb rw
"""

POD = """\
600 500 0:300 / / rw,relatime master:1 - overlay overlay rw,lowerdir=a,upperdir=b
610 600 8:1 /var/lib/kubelet/pods/1-2/volumes/kubernetes.io~empty-dir/data /data rw - ext4 /dev/sda1 rw
620 600 8:16 / /kept rw - ext4 /dev/sdb rw
630 600 8:1 /opt/local-path/pvc-1 /claim rw - ext4 /dev/sda1 rw
640 600 0:90 / /memory rw - tmpfs tmpfs rw
"""  # noqa: E501 - as the kernel writes it


@pytest.mark.parametrize(
    ("folder", "mounts", "reason"),
    [
        ("/home/me/data", MACHINE, None),
        ("/srv/my data/x", MACHINE, None),
        ("/dev/shm/data", MACHINE, "in memory"),
        ("/run/user/data", MACHINE, "in memory"),
        ("/running", MACHINE, None),
        ("/app/data", POD, "in the container"),
        ("/data", POD, "emptyDir"),
        ("/data/jobs", POD, "emptyDir"),
        ("/kept", POD, None),
        ("/claim/data", POD, None),
        ("/memory/data", POD, "in memory"),
    ],
)
def test_storage_that_passes_is_known(folder: str, mounts: str, reason: str | None) -> None:
    told = why_it_passes(Path(folder), mounts)
    assert (told is None) is (reason is None)
    assert reason is None or reason in (told or "")


def test_the_mount_on_top_counts() -> None:
    covered = MACHINE + "50 27 0:50 / /srv/my\\040data rw - tmpfs tmpfs rw\n"
    assert why_it_passes(Path("/srv/my data"), covered) is not None


def test_this_machine_is_understood() -> None:
    assert why_it_passes(Path("/dev/shm"), MOUNTS.read_text()) is not None
