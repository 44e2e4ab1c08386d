"""Facts into findings: pure, one rule for each thing that goes wrong on machines of this kind."""

from collections.abc import Callable, Iterator

from supervisor.config.exposure import describe_exposure
from supervisor.core.byte_size import MIB, format_bytes
from supervisor.doctor.facts import Facts
from supervisor.doctor.findings import Finding, Severity, error, warning
from supervisor.doctor.judging_devices import judge_devices
from supervisor.doctor.judging_engines import judge_engines
from supervisor.telemetry.vendors import VENDORS

FEW_OPEN_FILES = 4096
"""Below it fewer than 2,000 requests can be under way: each takes two descriptors."""

LITTLE_DISK_BYTES = 1024 * MIB
"""Below it, prompt caches will soon be skipped: they leave 512 MiB free."""

SEE_THE_LOGS = "see the kernel log (`dmesg`) and " + " or ".join(
    f"`{vendor.tool}`" for vendor in VENDORS.values()
)

_LOST_WITHOUT = {
    "jobs.queue_url": "work on jobs waits",
    "vectors.url": "searches and documents fail",
}


def judge(facts: Facts) -> tuple[Finding, ...]:
    """Return everything that is wrong, errors first."""
    found = [finding for rule in _RULES for finding in rule(facts)]
    return tuple(sorted(found, key=lambda finding: finding.severity is not Severity.ERROR))


def is_well(findings: tuple[Finding, ...]) -> bool:
    """Whether nothing was found that stops work."""
    return all(finding.severity is not Severity.ERROR for finding in findings)


def judge_telemetry(facts: Facts) -> Iterator[Finding]:
    """Telemetry's own sentences: `what: reason; remedy`."""
    for problem in facts.devices.problems:
        what, _, remedy = problem.partition("; ")
        yield error(what, remedy or SEE_THE_LOGS)


def judge_configuration(facts: Facts) -> Iterator[Finding]:
    """`check` judges the configuration; here it only could not be asked for the engine."""
    if facts.configuration.problem is not None:
        yield warning(
            f"the configuration cannot be used: {facts.configuration.problem}",
            "name its folder with --profiles; `llama-supervisor check` names every problem by line",
        )


def judge_services(facts: Facts) -> Iterator[Finding]:
    """The controller starts without them, and what needs them waits, or is refused."""
    for service in facts.configuration.services:
        if service.problem is not None:
            yield warning(
                f"{service.setting}: {service.place} cannot be reached: {service.problem}",
                f"start that server, or correct {service.setting}; {_LOST_WITHOUT[service.setting]}"
                " until it answers",
            )


def judge_exposure(facts: Facts) -> Iterator[Finding]:
    """Whoever reaches the controller is allowed everything."""
    exposure = describe_exposure(facts.configuration.hosts)
    if exposure is not None:
        what, _, remedy = exposure.partition("; ")
        yield warning(what, remedy)


def judge_data_folder(facts: Facts) -> Iterator[Finding]:
    """What is learned, kept and locked stands there; without it nothing starts."""
    data = facts.data
    if data.problem is not None:
        yield error(
            f"the data folder {data.path} cannot be written: {data.problem}",
            _data_remedy(facts),
        )
    elif data.free_bytes is not None and data.free_bytes < LITTLE_DISK_BYTES:
        yield warning(
            f"the disk of the data folder {data.path} has {format_bytes(data.free_bytes)} left",
            "make room, or choose another folder with --data; prompt caches are not saved where "
            "less than 512 MiB would be left",
        )


def _data_remedy(facts: Facts) -> str:
    who = f"user {facts.process.uid}"
    if facts.container.runtime == "kubernetes":
        return (
            f"mount a volume there that {who} may write (securityContext.fsGroup: "
            f"{facts.process.gid}), or name another folder with --data"
        )
    if facts.container.runtime is not None:
        return f"mount a volume there that {who} may write, or name another folder with --data"
    return f"let {who} write there, or name another folder with --data"


def judge_process(facts: Facts) -> Iterator[Finding]:
    """What the care of processes stands on, and how many requests can be under way."""
    process = facts.process
    if process.pidfd_problem is not None:
        yield error(
            f"pidfd_open does not work here ({process.pidfd_problem}; kernel {process.kernel}): "
            "the end of a server cannot be seen",
            "run on Linux 5.3 or newer, and in a container allow the call (seccomp profile "
            "RuntimeDefault does)",
        )
    if process.setpriv_problem is not None:
        yield error(
            f"setpriv does not work here ({process.setpriv_problem}): no server can be started, "
            "for it would outlive a controller that is killed",
            "install util-linux 2.33 or newer, and in a container allow prctl (seccomp profile "
            "RuntimeDefault does)",
        )
    if process.open_files_limit < FEW_OPEN_FILES:
        yield warning(
            f"at most {process.open_files_limit} files can be open, which is enough for about "
            f"{process.open_files_limit // 2} requests at a time",
            "raise the hard limit: `ulimit -Hn`, LimitNOFILE= in a systemd unit, `--ulimit "
            "nofile=` of docker, or the container runtime's own limit",
        )


def judge_host(facts: Facts) -> Iterator[Finding]:
    """A server maps its model file: what the page cache cannot hold is read again and again."""
    host = facts.host
    if host.largest_model is None or host.memory is None:
        return
    name, size_bytes = host.largest_model
    if size_bytes <= host.memory.total_bytes:
        return
    yield warning(
        f"the largest model ({name}, {format_bytes(size_bytes)}) is larger than the host memory "
        f"that may be used ({format_bytes(host.memory.total_bytes)}, {host.memory.source}): it is "
        "read from the disk again at each start",
        "raise resources.limits.memory of the container above it, which the page cache counts "
        "against"
        if host.limits
        else "keep it on a fast disk; a start takes as long as reading it",
    )


_RULES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    judge_telemetry,
    judge_devices,
    judge_engines,
    judge_data_folder,
    judge_process,
    judge_host,
    judge_configuration,
    judge_services,
    judge_exposure,
)
