"""Ways to break a model folder, and what an error must look like."""

import json

import pytest
from safetensors.torch import load_file, save_file

from capcheck.errors import ModelError


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def refused(ask, match):
    """The error's text, which must be one line that matches."""
    with pytest.raises(ModelError, match=match) as caught:
        ask()
    assert "\n" not in str(caught.value)
    return str(caught.value)
