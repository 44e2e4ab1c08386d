"""Makes what lets requests in, and those who answer our own routes."""

from supervisor.documents.searching import Searcher
from supervisor.embedding.batching.batcher import Batcher
from supervisor.engine.targets import Targets
from supervisor.gateway.call_reader import CallReader
from supervisor.gateway.control import Control
from supervisor.gateway.devices import Devices
from supervisor.gateway.door import Door
from supervisor.gateway.origins import Origins
from supervisor.gateway.relay import Relay
from supervisor.gateway.status import Status
from supervisor.gateway.stored_vectors import StoredVectors
from supervisor.gateway.uploads import Uploads
from supervisor.wiring.embedding import make_embedding, make_forms
from supervisor.wiring.ground import Ground
from supervisor.wiring.machine import Machine


def make_door(ground: Ground, machine: Machine, targets: Targets) -> Door:
    """Make what lets requests in, and those who answer our own routes."""
    arbiter, holder, telemetry = machine.arbiter, ground.configuration, ground.telemetry
    batcher = Batcher(arbiter=arbiter, configuration=holder, targets=targets)
    status = Status(
        arbiter=arbiter,
        configuration=holder,
        telemetry=telemetry,
        engines=ground.engines,
        warnings=ground.warnings,
        impairments=ground.impairments,
        readiness=machine.readiness,
        batcher=batcher,
    )
    control = Control(
        arbiter=arbiter, configuration=holder, targets=targets, history=ground.stores.history
    )
    devices = Devices(arbiter=arbiter, telemetry=telemetry, rings=machine.rings)
    embedding = make_embedding(ground, arbiter, targets, batcher)
    searcher = Searcher(embedding.service, targets, ground.vectors)
    stored = StoredVectors(searcher, ground.vectors)
    return Door(
        configuration=holder,
        reader=CallReader(holder, targets),
        origins=Origins(holder, ground.hosts),
        relay=Relay(arbiter=arbiter, configuration=holder, targets=targets),
        uploads=Uploads(ground.uploads_dir),
        owners=(control, status, devices, stored, *make_forms(embedding, ground, targets)),
    )
