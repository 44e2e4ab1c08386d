"""Many texts as a batch, which is handed over in a file, beside the same texts in arrays.

The batch's time is from its upload until its files are there. What it costs beside its texts is
what nobody waits for: a line of its own for each text, kept on the disk on its way in and out.
"""

import json
import time

from lab.bench.background import batch_of
from lab.bench.embedding.arrays import ARRAY, IN_FLIGHT
from lab.bench.embedding.direct import array_load, rate_of
from lab.bench.report import Figure, compare
from lab.harness.command import LabError, say
from lab.harness.servers import Controller
from lab.harness.setting import EMBEDDING_MODEL, Setting
from lab.harness.texts import short_texts

NAME = "batches"

WITHIN_S = 3600.0
LOOK_PAUSE_S = 0.1

FORMS = ("base64", "float")
"""How vectors are asked for; arrays, always in base64, as clients in Python do."""


def measure(setting: Setting) -> Figure:
    """Have all texts embedded in arrays, and as a batch in each form, in turns."""
    texts = short_texts(setting.texts, min_words=3, max_words=40)
    arrays = array_load(texts, min(ARRAY, len(texts)))
    rates: dict[str, list[float]] = {name: [] for name in ("arrays", *FORMS)}
    wrong = 0
    with Controller(setting) as controller:
        controller.load(EMBEDDING_MODEL)
        rate_of(array_load(texts[:ARRAY], min(ARRAY, len(texts))), controller.endpoint, 1)
        for number in range(1, setting.rounds + 1):
            say(f"  arrays and batches, turn {number} of {setting.rounds} …")
            rates["arrays"].append(rate_of(arrays, controller.endpoint, IN_FLIGHT))
            for form in FORMS:
                rate, faults = run_batch(controller, len(texts), form)
                rates[form].append(rate)
                wrong += faults
    rows = [
        compare(
            f"{len(texts)} texts as a batch, {form}, over arrays",
            "texts/s",
            direct=rates["arrays"],
            controller=rates[form],
            judged_as="ratio",
            at_least=0.95,
        )
        for form in FORMS
    ]
    lost = compare("lines lost or twice", "", direct=[0], controller=[wrong], at_most=0)
    return Figure(name=NAME, rows=(*rows, lost), samples=rates)


def run_batch(controller: Controller, count: int, form: str) -> tuple[float, int]:
    """Run a batch; return its texts a second, and how many of its lines are lost or there twice."""
    content = batch_of(count, encoding_format=form)
    began_at = time.monotonic()
    file = controller.upload("/v1/files?purpose=batch", content)
    asked = {"input_file_id": file["id"], "endpoint": "/v1/embeddings"}
    batch = controller.call("POST", "/v1/batches", asked)
    while batch["status"] not in {"completed", "failed"}:
        if time.monotonic() - began_at > WITHIN_S:
            raise LabError(f"the batch was not done within {WITHIN_S:.0f} s: {batch}")
        time.sleep(LOOK_PAUSE_S)
        batch = controller.call("GET", f"/v1/batches/{batch['id']}")
    took_s = time.monotonic() - began_at
    if batch["request_counts"]["completed"] != count:
        raise LabError(f"not every line was answered: {batch}")
    output = controller.download(f"/v1/files/{batch['output_file_id']}/content")
    found = [json.loads(line)["custom_id"] for line in output.splitlines()]
    faults = len({str(number) for number in range(count)} ^ set(found))
    return count / took_s, faults + len(found) - len(set(found))
