"""Models of a hub that is played."""

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from capcheck.backends.hub import inspect, load, prepare
from tests.faults import pickled, refused
from tests.tiny import CONTEXT

# The hub's client uses one of two HTTP libraries, by its version.
AWAY = [type("ConnectError", (Exception,), {"__module__": lib})() for lib in ("httpx", "httpx2")]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def answered(kind, status):
    response = SimpleNamespace(
        status_code=status, headers={}, request=None, url="", text="", json=dict
    )
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status} from the hub")
    error.response = response
    return error


def hub_raises(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (answered(errors.GatedRepoError, 403), r"org/name is gated: accept its terms"),
        (answered(errors.RepositoryNotFoundError, 404), "no folder 'org/name' and no such model"),
        (answered(errors.RevisionNotFoundError, 404), "no revision 'v9' on the hub"),
        (answered(errors.HfHubHTTPError, 429), "the hub refused org/name: 429"),
        (answered(errors.HfHubHTTPError, 503), "the hub cannot be reached"),
        (AWAY[0], r"hub cannot be reached.*ConnectError"),
        (AWAY[1], r"hub cannot be reached.*ConnectError"),
        (TimeoutError(), "the hub cannot be reached"),
        (errors.OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE is set"),
    ],
)
def test_the_hubs_errors_are_one_sentence_each(monkeypatch, empty_cache, error, match):
    hub_raises(monkeypatch, error)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(lambda: inspect("org/name", "v9"), match)


@pytest.mark.parametrize(
    "error",
    [
        answered(errors.RepositoryNotFoundError, 404),
        errors.OfflineModeIsEnabled("off"),
        TimeoutError(),
    ],
)
def test_a_slip_in_the_name_of_the_embedded_model(monkeypatch, empty_cache, error):
    hub_raises(monkeypatch, error)
    refused(lambda: inspect("referense"), r"did you mean 'reference'\?")


def test_a_name_that_cannot_be_an_id(empty_cache):
    refused(lambda: inspect("org/na me"), "neither a folder that exists nor a hub id")


def test_the_cache_serves_where_the_hub_is_away(monkeypatch, empty_cache, whole):
    repository = empty_cache / "models--org--name"
    shutil.copytree(whole, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    hub_raises(monkeypatch, AWAY[1])
    info = inspect("org/name")
    assert info.commit == COMMIT
    assert "using commit 0123456789ab of org/name from the local cache" in info.note
    backend = load("org/name", device="cpu")
    assert backend.identity["weights"] == f"commit:{COMMIT}"
    assert backend.identity["name"] == "org/name"
    refused(lambda: inspect("org/name", "v9"), "the hub cannot be reached")


def played_hub(monkeypatch, folder, extra=()):
    """A hub that has one repository; returns the list of files that were fetched."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()} | dict(extra)
    info = SimpleNamespace(
        sha=COMMIT,
        siblings=[SimpleNamespace(rfilename=f, size=size) for f, size in sizes.items()],
        safetensors=None,
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: info)
    fetched = []

    def download(name, revision, allow_patterns):
        assert (name, revision) == ("org/name", COMMIT)
        fetched.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return fetched


def test_a_hub_model_is_looked_at_without_its_weights(monkeypatch, sharded):
    extra = {"pytorch_model.bin": 9, "original.pth": 9, "consolidated.safetensors": 9}
    fetched = played_hub(monkeypatch, sharded, extra)
    info = inspect("org/name")
    assert set(fetched) == {"config.json", "model.safetensors.index.json"}
    assert (info.commit, info.folder, info.dtype) == (COMMIT, None, "bfloat16")
    assert info.parameters == pytest.approx(inspect(str(sharded)).parameters, rel=0.1)
    assert not set(info.files) & set(extra)

    prepared = prepare("org/name", device="cpu")
    assert prepared.identity["weights"] == f"commit:{COMMIT}"
    assert prepared.encoder.context == CONTEXT
    assert not any(file.endswith(".safetensors") for file in fetched)
    assert prepared.load().identity == prepared.identity
    assert any(file.endswith(".safetensors") for file in fetched)


def test_a_hub_model_is_checked_before_it_is_fetched(monkeypatch, whole, tmp_path):
    broken = shutil.copytree(whole, tmp_path / "broken")
    pickled(broken)
    fetched = played_hub(monkeypatch, broken)
    refused(lambda: inspect("org/name"), "only pickled weights")
    assert fetched == ["config.json"]
