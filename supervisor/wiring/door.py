"""Makes what lets requests in, and those who answer our own routes."""

from supervisor.documents.searching import Searcher
from supervisor.engine.targets import Targets
from supervisor.gateway.batches import Batches
from supervisor.gateway.control import Control
from supervisor.gateway.devices import Devices
from supervisor.gateway.documents import Documents
from supervisor.gateway.door import Door
from supervisor.gateway.files import Files
from supervisor.gateway.jobs import Jobs
from supervisor.gateway.origins import Origins
from supervisor.gateway.relay import Relay
from supervisor.gateway.status import Status
from supervisor.gateway.stored_vectors import StoredVectors
from supervisor.gateway.uploads import Uploads
from supervisor.vector_store.opening import StoreOpener
from supervisor.wiring.embedding import make_forms
from supervisor.wiring.ground import Ground
from supervisor.wiring.machine import Machine
from supervisor.wiring.services import Services


def make_door(ground: Ground, machine: Machine, targets: Targets, services: Services) -> Door:
    """Make what lets requests in, and those who answer our own routes."""
    arbiter, holder, telemetry = machine.arbiter, ground.configuration, ground.telemetry
    status = Status(
        arbiter=arbiter,
        configuration=holder,
        telemetry=telemetry,
        engines=ground.engines,
        warnings=ground.warnings,
        impairments=ground.impairments,
        readiness=machine.readiness,
        batcher=services.batcher,
        twins=machine.twins,
        describe_jobs=services.jobs.describe,
    )
    control = Control(
        arbiter=arbiter, configuration=holder, targets=targets, history=ground.stores.history
    )
    devices = Devices(arbiter=arbiter, telemetry=telemetry, rings=machine.rings)
    searcher = Searcher(services.embedding.service, targets, ground.vectors)
    stored = StoredVectors(holder, searcher, ground.vectors, services.jobs.withdraw)
    forms = make_forms(services.embedding, ground, targets)
    return Door(
        configuration=holder,
        reader=services.reader,
        origins=Origins(holder, ground.hosts),
        relay=Relay(arbiter=arbiter, configuration=holder, targets=targets),
        uploads=Uploads(ground.uploads_dir),
        owners=(control, status, devices, stored, *forms, *job_owners(services, ground.vectors)),
    )


def job_owners(services: Services, opener: StoreOpener) -> tuple[object, ...]:
    """Make those who answer the routes of jobs, their files and documents."""
    open_jobs = services.jobs.open
    documents = Documents(services.jobs.open_documents)
    return Files(open_jobs), Batches(open_jobs, opener), Jobs(open_jobs), documents
