"""Model folders, whole and to be broken."""

import shutil

import pytest

from tests.tiny import save, tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A folder with a tiny Llama, in one file of weights."""
    return save(tmp_path_factory.mktemp("whole"), tiny_model("llama"), tiny_tokenizer())


@pytest.fixture(scope="session")
def sharded(tmp_path_factory):
    """A folder with a tiny tied GPT-2 in bfloat16, in several files of weights."""
    model = tiny_model("gpt2", tie_word_embeddings=True).bfloat16()
    folder = tmp_path_factory.mktemp("sharded")
    return save(folder, model, tiny_tokenizer(), max_shard_size="20KB")


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture
def shards(sharded, tmp_path):
    return shutil.copytree(sharded, tmp_path / "model")
