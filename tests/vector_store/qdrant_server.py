"""The part of Qdrant's REST API that the store asks for, upon Qdrant's own engine.

    python -m tests.vector_store.qdrant_server FOLDER API_KEY

No package has the server's program, so that this stands in for it: filters, scores and storage are
the engine's, and the way of writing requests and answers is the client library's; routing, errors
and what is said of a collection are written here, after the API's reference. It prints its port.
"""

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import qdrant_edge as qdrant
from aiohttp import web

Handler = Callable[[str, Any], Any]
"""Takes a collection's name and a body, gives the result."""


class Server:
    """Collections, each a shard in a folder."""

    def __init__(self, folder: Path, api_key: str) -> None:
        self._folder = folder
        self._api_key = api_key
        self._given: dict[str, dict[str, Any]] = {}
        self._shards: dict[str, qdrant.EdgeShard] = {}

    def app(self) -> web.Application:
        """Return what serves."""
        app = web.Application(client_max_size=1 << 26)
        name = "/collections/{name}"
        for method, path, handler in (
            ("GET", "/collections", self._list),
            ("GET", f"{name}/exists", self._exists),
            ("PUT", name, self._create),
            ("GET", name, self._describe),
            ("DELETE", name, self._drop),
            ("PUT", f"{name}/index", self._index),
            ("PUT", f"{name}/points", self._upsert),
            ("POST", f"{name}/points/delete", self._delete),
            ("POST", f"{name}/points/query", self._query),
            ("POST", f"{name}/points/scroll", self._scroll),
            ("POST", f"{name}/points/count", self._count),
        ):
            app.router.add_route(method, path, partial(self._answer, handler))
        return app

    async def _answer(self, handler: Handler, request: web.Request) -> web.Response:
        if request.headers.get("api-key") != self._api_key:
            return web.json_response({"status": {"error": "Invalid API key"}}, status=401)
        name = request.match_info.get("name", "")
        may_be_missing = handler in {self._list, self._exists, self._create}
        if name not in self._given and not may_be_missing:
            reason = f"Not found: Collection `{name}` doesn't exist!"
            return web.json_response({"status": {"error": reason}}, status=404)
        body = await request.json() if request.can_read_body else {}
        return web.json_response({"result": handler(name, body), "status": "ok", "time": 0.0})

    def _list(self, _: str, __: Any) -> Any:
        return {"collections": [{"name": name} for name in self._given]}

    def _exists(self, name: str, _: Any) -> Any:
        return {"exists": name in self._given}

    def _create(self, name: str, body: Any) -> Any:
        distance = getattr(qdrant.Distance, body["vectors"]["distance"])
        vectors = qdrant.EdgeVectorParams(size=body["vectors"]["size"], distance=distance)
        path = self._folder / f"{len(list(self._folder.iterdir()))}"
        self._shards[name] = qdrant.EdgeShard.create(str(path), qdrant.EdgeConfig(vectors=vectors))
        self._given[name] = body
        return True

    def _describe(self, name: str, _: Any) -> Any:
        info, given = self._shards[name].info(), self._given[name]
        return {
            "status": "green",
            "optimizer_status": "ok",
            "segments_count": info.segments_count,
            "points_count": info.points_count,
            "indexed_vectors_count": info.indexed_vectors_count,
            "payload_schema": {},
            "config": {
                "params": {"vectors": given["vectors"]},
                "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000},
                "optimizer_config": {
                    "deleted_threshold": 0.2,
                    "vacuum_min_vector_number": 1000,
                    "default_segment_number": 0,
                    "flush_interval_sec": 5,
                },
                "metadata": given.get("metadata"),
            },
        }

    def _drop(self, name: str, _: Any) -> Any:
        del self._given[name]
        self._shards.pop(name).close()
        return True

    def _index(self, name: str, body: Any) -> Any:
        kind = getattr(qdrant.PayloadSchemaType, body["field_schema"].capitalize())
        return self._update(
            name, qdrant.UpdateOperation.create_field_index(body["field_name"], kind)
        )

    def _upsert(self, name: str, body: Any) -> Any:
        points = [qdrant.Point(p["id"], p["vector"], p["payload"]) for p in body["points"]]
        return self._update(name, qdrant.UpdateOperation.upsert_points(points))

    def _delete(self, name: str, body: Any) -> Any:
        condition = filter_of(body["filter"])
        return self._update(name, qdrant.UpdateOperation.delete_points_by_filter(condition))

    def _update(self, name: str, operation: qdrant.UpdateOperation) -> Any:
        self._shards[name].update(operation)
        return {"operation_id": 0, "status": "completed"}

    def _query(self, name: str, body: Any) -> Any:
        found = self._shards[name].query(
            qdrant.QueryRequest(
                query=qdrant.Query.Nearest(body["query"]["nearest"]),
                filter=filter_of(body.get("filter")),
                limit=body["limit"],
                with_payload=body["with_payload"],
            )
        )
        points = [
            {"id": str(p.id), "version": p.version, "score": p.score, "payload": p.payload}
            for p in found
        ]
        return {"points": points}

    def _scroll(self, name: str, body: Any) -> Any:
        records, following = self._shards[name].scroll(
            qdrant.ScrollRequest(
                offset=body.get("offset"),
                limit=body["limit"],
                filter=filter_of(body.get("filter")),
                with_payload=body["with_payload"],
                with_vector=body["with_vector"],
            )
        )
        points = [{"id": str(r.id), "payload": r.payload, "vector": r.vector} for r in records]
        return {"points": points, "next_page_offset": None if following is None else str(following)}

    def _count(self, name: str, body: Any) -> Any:
        request = qdrant.CountRequest(exact=body["exact"], filter=filter_of(body.get("filter")))
        return {"count": self._shards[name].count(request)}


def filter_of(given: Any) -> qdrant.Filter:
    """Return the engine's filter for one in JSON; one that all meet for None."""
    parts = {
        part: [condition_of(each) for each in (given or {}).get(part) or []] or None
        for part in ("must", "must_not")
    }
    return qdrant.Filter(must=parts["must"], must_not=parts["must_not"])


def condition_of(given: Any) -> Any:
    """Return the engine's condition for one in JSON."""
    if given.get("range"):
        return qdrant.FieldCondition(key=given["key"], range=qdrant.RangeFloat(**given["range"]))
    match = given["match"]
    if "any" in match:
        return qdrant.FieldCondition(key=given["key"], match=qdrant.MatchAny(any=match["any"]))
    return qdrant.FieldCondition(key=given["key"], match=qdrant.MatchValue(value=match["value"]))


async def main(folder: Path, api_key: str) -> None:
    """Serve until the process is ended."""
    runner = web.AppRunner(Server(folder, api_key).app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)  # noqa: T201 - what the fixture reads
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
