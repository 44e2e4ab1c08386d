"""The three models that the demo, the tests and the benchmarks run on.

`chat` writes sentences, `bench` computes like a real model, `minilm` embeds for real. They are
made here because a model file is too large for the repository.
"""
