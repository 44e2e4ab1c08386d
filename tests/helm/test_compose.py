"""The example for Docker Compose: what Compose takes, and what the image and the product expect."""

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from supervisor import __version__
from supervisor.config.load import load
from tests.helm.conftest import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "compose.yaml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


class Part(BaseModel):
    """A mapping of the Compose specification, with the keys that we use and no other."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Build(Part):
    context: str
    args: dict[str, str]


class DeviceRequest(Part):
    driver: str
    count: Annotated[int, Field(ge=1)] | Literal["all"]
    capabilities: list[str]


class Reservations(Part):
    devices: list[DeviceRequest]


class Resources(Part):
    reservations: Reservations


class Deploy(Part):
    resources: Resources


class Service(Part):
    image: str
    build: Build
    environment: dict[str, str]
    volumes: list[Annotated[str, Field(pattern=r"^[^:]+(:\?[^}]+\})?:/[^:]+(:ro)?$")]]
    ports: list[Annotated[str, Field(pattern=r"^127\.0\.0\.1:\d+:\d+$")]]
    deploy: Deploy
    restart: Literal["no", "always", "on-failure", "unless-stopped"]
    stop_grace_period: Annotated[str, Field(pattern=r"^(\d+m)?(\d+s)?$")]
    read_only: bool
    tmpfs: list[str]
    cap_drop: list[str]
    security_opt: list[str]


class Compose(Part):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    services: dict[str, Service]
    volumes: dict[str, None]


@pytest.fixture(scope="session")
def compose() -> Compose:
    return Compose.model_validate(yaml.safe_load(EXAMPLE.read_text()))


@pytest.fixture(scope="session")
def service(compose: Compose) -> Service:
    return compose.services["llama-supervisor"]


def mounts_of(service: Service) -> dict[str, str]:
    """Where each volume is mounted, and what stands there."""
    parts = (re.fullmatch(r"(.+?):(/[^:]+)(?::ro)?", volume) for volume in service.volumes)
    return {part[2]: part[1] for part in parts if part is not None}


def test_example_is_what_compose_takes(compose: Compose, service: Service) -> None:
    named = {source for source in mounts_of(service).values() if re.fullmatch(r"\w+", source)}

    assert [*compose.services] == ["llama-supervisor"]
    assert named == set(compose.volumes)


def test_gpu_is_reserved(service: Service) -> None:
    (device,) = service.deploy.resources.reservations.devices

    assert (device.driver, device.count, device.capabilities) == ("nvidia", 1, ["gpu"])


def test_image_is_built_of_this_version_from_the_dockerfile(service: Service) -> None:
    build_arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))

    assert service.image.endswith(f":{__version__}")
    assert service.build.args.keys() <= build_arguments
    assert (EXAMPLE.parent / service.build.context / "Dockerfile").resolve() == ROOT / "Dockerfile"


def test_volumes_and_port_are_those_of_the_image(service: Service) -> None:
    options = dict(re.findall(r'"--(\w+)=([^"]+)"', DOCKERFILE))
    mounts = mounts_of(service)

    assert options["models"] in mounts
    assert str(Path(options["data"]).parent) in mounts
    assert [port.rpartition(":")[2] for port in service.ports] == re.findall(
        r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE
    )


def test_product_takes_the_catalogue_that_is_mounted(service: Service) -> None:
    mounted = service.environment["MODEL_CONFIG_PATH"]
    catalogue = EXAMPLE.parent / mounts_of(service)[mounted]
    environ = {"MODEL_CONFIG_PATH": str(catalogue)}

    configuration = load(ROOT / "profiles", Path("/models"), environ)

    assert [*configuration.catalogue.models] == ["my-chat", "my-embedding"]


def test_container_gets_the_time_that_the_controller_takes_to_end(service: Service) -> None:
    configuration = load(ROOT / "profiles", Path("/models"), {})
    stop_s = max(profile.stop_grace_s for profile in configuration.profiles.values())
    units = {"m": 60, "s": 1}
    parts = re.findall(r"(\d+)([ms])", service.stop_grace_period)

    given_s = sum(int(number) * units[unit] for number, unit in parts)

    assert given_s > configuration.settings.switch.shutdown_drain_timeout_s + stop_s


def test_container_is_hardened_as_the_pod_is(service: Service) -> None:
    assert service.read_only
    assert service.tmpfs == ["/tmp"]
    assert service.cap_drop == ["ALL"]
    assert service.security_opt == ["no-new-privileges:true"]


def test_misspelt_key_is_found() -> None:
    content = EXAMPLE.read_text().replace("stop_grace_period", "stop_grace_seconds")

    with pytest.raises(ValueError, match="stop_grace_seconds"):
        Compose.model_validate(yaml.safe_load(content))
