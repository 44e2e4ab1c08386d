"""The routes of what is stored; part of the table of reserved routes (routes.py)."""

from supervisor.gateway.route import Route, Scope
from supervisor.gateway.stored_vectors import (
    CollectionParameters,
    DocumentParameters,
    GivenPointsParameters,
    PointsParameters,
    SearchParameters,
    StoredVectors,
)

_STORE_REFUSALS = ("extra_missing", "store_failed")
_COLLECTION_REFUSALS = ("collection_not_found", *_STORE_REFUSALS)
_WITHDRAWAL_REFUSALS = ("job_not_cancellable", "queue_unreachable")

VECTOR_ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/search",
        purpose="The chunks that are nearest to `query`, with their score, document and text; "
        "optional `collection`, `limit`, `filter`, and `kind: document` for whole documents.",
        owner=StoredVectors,
        handler=StoredVectors.search,
        parameters=SearchParameters,
        refusals=("collection_mismatch", "model_not_found", *_COLLECTION_REFUSALS),
        scope=Scope.INFERENCE,
    ),
    Route(
        method="GET",
        path="/collections",
        purpose="All collections: model, dimension, and how much is in them.",
        owner=StoredVectors,
        handler=StoredVectors.collections,
        refusals=_STORE_REFUSALS,
    ),
    Route(
        method="GET",
        path="/collections/{collection}",
        purpose="One collection.",
        owner=StoredVectors,
        handler=StoredVectors.collection,
        parameters=CollectionParameters,
        refusals=_COLLECTION_REFUSALS,
    ),
    Route(
        method="DELETE",
        path="/collections/{collection}",
        purpose="Delete a collection with all that it holds; documents that are on their way into "
        "it, and batches that store their vectors there, are cancelled.",
        owner=StoredVectors,
        handler=StoredVectors.drop_collection,
        parameters=CollectionParameters,
        refusals=(*_WITHDRAWAL_REFUSALS, *_COLLECTION_REFUSALS),
        scope=Scope.CONTROL,
    ),
    Route(
        method="POST",
        path="/collections/{collection}/optimize",
        purpose="Begin to build the collection's index, which can take minutes; `indexed` of the "
        "collection tells what it holds. Searches go on, and what is stored meanwhile waits.",
        owner=StoredVectors,
        handler=StoredVectors.optimize,
        parameters=CollectionParameters,
        answers=(202,),
        refusals=_COLLECTION_REFUSALS,
        scope=Scope.CONTROL,
    ),
    Route(
        method="GET",
        path="/collections/{collection}/points",
        purpose="Points with their vectors (float32, base64), in the order of their ids: `limit` "
        "of them from the id `start` on. `next` is where the following ones start.",
        owner=StoredVectors,
        handler=StoredVectors.points,
        parameters=PointsParameters,
        refusals=_COLLECTION_REFUSALS,
    ),
    Route(
        method="POST",
        path="/collections/{collection}/points",
        purpose="Write `points` as GET shows them; makes the collection for `model` and "
        "`dimension` where it is missing.",
        owner=StoredVectors,
        handler=StoredVectors.put_points,
        parameters=GivenPointsParameters,
        refusals=("collection_mismatch", "storage_full", *_STORE_REFUSALS),
        scope=Scope.CONTROL,
    ),
    Route(
        method="GET",
        path="/documents/{document:path}",
        purpose="What is stored of a document in `collection`: metadata, and how many chunks.",
        owner=StoredVectors,
        handler=StoredVectors.document,
        parameters=DocumentParameters,
        refusals=("document_not_found", *_COLLECTION_REFUSALS),
    ),
    Route(
        method="DELETE",
        path="/documents/{document:path}",
        purpose="Delete a document and its chunks from `collection`; jobs that would store a state "
        "of it are cancelled.",
        owner=StoredVectors,
        handler=StoredVectors.delete_document,
        parameters=DocumentParameters,
        refusals=("document_not_found", *_WITHDRAWAL_REFUSALS, *_COLLECTION_REFUSALS),
        scope=Scope.CONTROL,
    ),
)
