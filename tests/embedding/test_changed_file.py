"""Another file is configured for a model while its server still runs the one of before."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from supervisor.config.load import load
from supervisor.core.machine.values import Outcome
from supervisor.embedding.service import EmbeddingService
from supervisor.embedding.values import EmbeddingRequest
from supervisor.embedding.vectors import cosine
from supervisor.errors import RequestRefused
from tests.embedding.batching.conftest import Bench, running


class Changing:
    """A controller with a model `changing`, whose file another may take the place of."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench = bench
        self._folder = folder

    @property
    def service(self) -> EmbeddingService:
        return self.bench.parts.services.embedding.service

    async def vector(self, text: str) -> bytes:
        """Return the vector of a text, in the configuration of now."""
        target = self.bench.parts.targets.target("changing")
        return (await self.service.embed(EmbeddingRequest(target=target, inputs=(text,)))).vectors[
            0
        ]

    def configure(self, name: str, *, swaps: tuple[str, str], names_tokenizer: bool = True) -> None:
        """Put a copy of minilm in force, in whose tokenizer two words have each other's ids."""
        models_dir = self.bench.models_dir
        model, tokenizer = self._folder / f"{name}.gguf", self._folder / f"{name}.json"
        shutil.copy(models_dir / "minilm.gguf", model)
        content = json.loads((models_dir / "minilm.tokenizer.json").read_text())
        words, (one, other) = content["model"]["vocab"], swaps
        words[one], words[other] = words[other], words[one]
        tokenizer.write_text(json.dumps(content))
        entry: dict[str, Any] = {"path": str(model), "type": "embedding"}
        entry |= {"tokenizer": str(tokenizer)} if names_tokenizer else {}
        catalogue = self.bench.folder / "models.yaml"
        written = yaml.safe_load(catalogue.read_text())
        written["models"]["changing"] = entry
        catalogue.write_text(yaml.safe_dump(written))
        self.bench.parts.configuration.apply(load(self.bench.folder, models_dir, {}))

    async def make_live(self) -> None:
        """Switch to the model as it is configured now."""
        target = self.bench.parts.targets.target("changing")
        _, switched = self.bench.parts.arbiter.request_switch(target, "test")
        assert (await switched).outcome is Outcome.SWITCHED


async def test_a_server_gets_the_tokens_of_the_file_that_it_runs(
    models_dir: Path, tmp_path: Path
) -> None:
    async with running(models_dir) as bench:
        changing = Changing(bench, tmp_path)
        changing.configure("first", swaps=("cat", "cat"))
        fox, dog = await changing.vector("fox"), await changing.vector("dog")
        changing.configure("second", swaps=("fox", "dog"))
        assert cosine(await changing.vector("fox"), fox) > 0.9999
        await changing.make_live()
        assert cosine(await changing.vector("fox"), dog) > 0.9999


@pytest.mark.parametrize("names_tokenizer", [True, False])
async def test_tokens_of_a_file_that_nobody_has_read_are_never_sent_to_another(
    models_dir: Path, tmp_path: Path, *, names_tokenizer: bool
) -> None:
    async with running(models_dir) as bench:
        changing = Changing(bench, tmp_path)
        changing.configure("first", swaps=("cat", "cat"), names_tokenizer=names_tokenizer)
        await changing.make_live()
        changing.configure("second", swaps=("fox", "dog"), names_tokenizer=names_tokenizer)
        with pytest.raises(RequestRefused, match="configured with another file") as refused:
            await changing.vector("fox")
        assert refused.value.code == "model_not_live"
        await changing.make_live()
        assert await changing.vector("fox")
