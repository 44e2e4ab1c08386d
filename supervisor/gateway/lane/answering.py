"""One request in the fast lane that the controller answers itself, in its caller's form."""

import asyncio

from supervisor.gateway.answer import Answer
from supervisor.gateway.call import Call
from supervisor.gateway.form_routes import FormRoute
from supervisor.gateway.lane.crossing import Lane, head_of_answer
from supervisor.observability.request_log import RequestRecord, request_log


class Answering:
    """What `Crossing` is for relayed calls: it ends with the answer, or when its client leaves."""

    __slots__ = ("_lane", "_record", "_task")

    is_streaming = False

    def __init__(
        self, lane: Lane, form: FormRoute, owner: object, call: Call, record: RequestRecord
    ) -> None:
        """Begin to answer; `owner` is the object whose method the form names."""
        self._lane = lane
        self._record = record
        record.model = call.wanted.model if call.wanted else None
        self._task = asyncio.create_task(self._answer(form, owner, call))

    def pause(self) -> None:
        """Nothing is read from anybody."""

    def resume(self) -> None:
        """The same."""

    def abandon(self) -> None:
        """Give it up, because its client has left."""
        self._task.cancel()
        request_log.done(self._record)

    async def _answer(self, form: FormRoute, owner: object, call: Call) -> None:
        answer = await form.answer(owner, call)
        self._record.status = answer.status
        self._record.waited_s = answer.waited_s
        self._lane.write(self._written(answer, call.request_id))
        request_log.done(self._record)
        self._lane.finish()

    def _written(self, answer: Answer, request_id: str) -> bytes:
        keeps_alive = self._lane.keeps_alive
        return head_of_answer(answer, request_id, keeps_alive=keeps_alive) + answer.body
