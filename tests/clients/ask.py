"""Asks a controller for embeddings by a vendor's own client, and prints what it gives as JSON.

    python ask.py CLIENT URL

Runs in an environment of its own (requirements.lock), without this project.
"""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

TEXTS = ["a cat sits on a mat", "memory is free"]


def openai(url: str) -> dict[str, Any]:
    from openai import BadRequestError, NotFoundError, OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    made = client.embeddings.create(model="minilm", input=TEXTS)
    floats = client.embeddings.create(model="minilm", input=TEXTS, encoding_format="float")
    short = client.embeddings.create(model="minilm", input=TEXTS[0], dimensions=64)
    ids = client.embeddings.create(model="minilm", input=[[101, 1037, 4937, 102], [101, 102]])
    errors = {}
    for name, kind, asked in (
        ("unknown model", NotFoundError, {"model": "nobody", "input": "a"}),
        ("nothing", BadRequestError, {"model": "minilm", "input": []}),
        ("too long", BadRequestError, {"model": "minilm", "input": ["a", "word " * 3000]}),
    ):
        try:
            client.embeddings.create(**asked)
        except kind as error:
            errors[name] = {"code": error.code, "body": error.body}
    return {
        "vectors": [each.embedding for each in made.data],
        "floats": [each.embedding for each in floats.data],
        "short": short.data[0].embedding,
        "ids": [each.index for each in ids.data],
        "tokens": made.usage.prompt_tokens,
        "model": made.model,
        "errors": errors,
    }


@contextmanager
def others_waiting(url: str) -> Iterator[None]:
    """Have texts of others wait meanwhile, new ones as soon as there is room for them."""
    is_over = threading.Event()
    body = json.dumps({"inputs": ["word " * 60] * 75}).encode()

    def keep_asking() -> None:
        while not is_over.is_set():
            with suppress(HTTPError):
                urlopen(Request(f"{url}/embed?model=minilm", body)).read()

    for _ in range(2):
        threading.Thread(target=keep_asking, daemon=True).start()
    while True:
        with urlopen(f"{url}/status") as answer:
            queue = json.load(answer)["embedding"].get("minilm")
        if queue and queue["queued"]["interactive"]["inputs"]:
            break
    yield
    is_over.set()


def openai_retries(url: str) -> dict[str, Any]:
    from openai import ConflictError, OpenAI, RateLimitError

    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    refused: dict[str, Any] = {}
    try:
        with others_waiting(url):
            client.embeddings.create(model="minilm", input=["word " * 60] * 100)
    except RateLimitError as error:
        refused["busy"] = [error.code, error.request_id]
    try:
        message: Any = {"role": "user", "content": "Hello"}
        client.chat.completions.create(model="demo-chat", messages=[message])
    except ConflictError as error:
        refused["not live"] = [error.code, error.request_id]
    return refused


def huggingface_hub(url: str) -> dict[str, Any]:
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    client = InferenceClient(model=url)
    one = client.feature_extraction(TEXTS[0])
    query = client.feature_extraction(TEXTS[0], prompt_name="query", normalize=False)
    cut = client.feature_extraction("word " * 3000, truncate=True)
    try:
        client.feature_extraction("word " * 3000, truncate=False)
        refusal = None
    except HfHubHTTPError as error:
        refusal = [error.response.status_code, error.response.json()]
    return {
        "vectors": one.tolist(),
        "query": query.tolist(),
        "cut": list(cut.shape),
        "refusal": refusal,
        "similarity": client.sentence_similarity(TEXTS[0], other_sentences=[TEXTS[0], TEXTS[1]]),
    }


def ollama(url: str) -> dict[str, Any]:
    from ollama import Client, ResponseError

    client = Client(host=url)
    made = client.embed(model="minilm", input=TEXTS)
    none = client.embed(model="minilm", input=[])
    tagged = client.embed(model="minilm:latest", input=TEXTS[0], dimensions=64)
    try:
        client.embed(model="nobody", input="a")
        refusal = None
    except ResponseError as error:
        refusal = [error.status_code, error.error]
    return {
        "vectors": list(map(list, made.embeddings)),
        "none": list(none.embeddings),
        "short": list(tagged.embeddings[0]),
        "tokens": made.prompt_eval_count,
        "duration_ns": made.total_duration,
        "refusal": refusal,
    }


def langchain(url: str) -> dict[str, Any]:
    from langchain_openai import OpenAIEmbeddings

    client = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key="none", model="minilm", check_embedding_ctx_length=False
    )
    return {"vectors": client.embed_documents(TEXTS), "query": client.embed_query(TEXTS[0])}


if __name__ == "__main__":
    asked = {"openai": openai, "huggingface_hub": huggingface_hub, "ollama": ollama}
    asked |= {"langchain": langchain, "openai_retries": openai_retries}
    answer = asked[sys.argv[1]](sys.argv[2])
    json.dump(answer, sys.stdout)
