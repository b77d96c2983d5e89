"""Stage `push`: what leaves the machine, and each refusal in one line, against a small hub of our own."""

import base64
import hashlib
import json
import shutil
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import huggingface_hub
import pytest
import yaml

from talltree import checkpoint, rewards
from talltree.cli import main
from talltree.config import flaws
from talltree.errors import RunError
from talltree.models.load import save_model
from talltree.stages import push

from ..tiny import llama, tokenizer
from ..tiny_reward import COMPLETIONS, PROMPTS, saved, trained

CARD = "---\nlicense: mit\n---\n# A model\n"


class Hub(BaseHTTPRequestHandler):
    """The few answers that create_repo and upload_folder need; weights go as large files, as on the hub."""

    def do_GET(self):
        self._answer(200, {"id": "me/tiny", "private": self.server.is_private, "siblings": []})

    def do_PUT(self):
        content = self._body()
        self.server.large[self.path.rpartition("/")[2]] = content
        self._answer(200, {})

    def do_POST(self):
        server, body = self.server, self._body()
        server.asked.append(self.path)
        if self.headers.get("authorization") != "Bearer hf_good":
            self._answer(401, {"error": "Invalid user token"})
        elif "others" in self.path or (self.path == "/api/repos/create" and b"others" in body):
            self._answer(403, {"error": "You don't have the rights to write under others"})
        elif self.path == "/api/repos/create":
            server.created = json.loads(body)
            self._answer(200, {"url": f"{server.url}/me/tiny"})
        elif self.path == "/api/validate-yaml":
            about = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            server.about = about
            errors = [] if "license" in about else [{"message": "license is missing"}]
            self._answer(200 if not errors else 400, {"errors": errors, "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": each["path"], "shouldIgnore": False, "oid": None}
                | {"uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular"}
                for each in files
            ]
            self._answer(200, {"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                each | {"actions": {"upload": {"href": f"{server.url}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            server.commits[self.path.rpartition("/")[2]] = [json.loads(line) for line in body.splitlines()]
            url = f"{server.url}/me/tiny/commit/1"
            self._answer(200, {"commitUrl": url, "commitOid": "1", "success": True})
        else:
            self._answer(200, {})

    def _body(self):
        if self.headers.get("transfer-encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine, which huggingface_hub takes for the real one, and a token that it accepts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.asked, server.large, server.commits, server.is_private = [], {}, {}, False
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    # The library's own switch to plain HTTP: the other protocol for large files talks to a server of its own.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(tmp_path):
    """A run folder as a stage leaves it, with things in it that are nobody's business."""
    folder = tmp_path / "run"

    def write(target):
        save_model(target, llama(), tokenizer())
        (target / "README.md").write_text(CARD)

    checkpoint.save_folder(folder / "final", write)
    (folder / "config.yaml").write_text("steps: 3\n")
    (folder / "before.jsonl").write_text("{}\n")
    return folder


def committed(hub, branch="main"):
    """Name -> content of every file that was uploaded; large ones by their SHA-256."""
    found = {}
    for line in hub.commits[branch]:
        if line["key"] == "file":
            found[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        elif line["key"] == "lfsFile":
            found[line["value"]["path"]] = hub.large[line["value"]["oid"]]
    return found


MODEL = {
    "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


@pytest.mark.parametrize("part", ["", "final"])
def test_a_model_and_its_card_are_uploaded_and_nothing_else(hub, run, part, capsys):
    assert main(["push", str(run / part), "--repo_id", "me/tiny"]) == 0
    files = committed(hub)
    assert set(files) == MODEL
    for name, content in files.items():
        assert content == (run / "final" / name).read_bytes(), name
    assert list(hub.large) == [hashlib.sha256(files["model.safetensors"]).hexdigest()]
    assert hub.about == {"license": "mit"}
    assert hub.created["name"].endswith("tiny") and "private" not in json.dumps(hub.created)
    assert capsys.readouterr().out.endswith(f"{hub.url}/me/tiny/commit/1\n")


def test_training_state_and_samples_stay_here(hub, run, tmp_path):
    folder = shutil.copytree(run / "final", tmp_path / "mine")
    (folder / "manifest.json").unlink()
    for name in ("state.json", "state.safetensors", "samples.parquet", "notes.txt", ".env"):
        (folder / name).write_text("secret")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "config.json").write_text("secret")
    assert main(["push", str(folder), "--repo_id", "me/tiny"]) == 0
    assert set(committed(hub)) == MODEL


@pytest.mark.parametrize("body", ["own", "shared"])
def test_an_ensemble_of_reward_models_is_uploaded_whole(hub, run, tmp_path, body):
    """What was uploaded scores as what was trained; of further members, too, the model alone goes."""
    count = {"own": {"member_count": 2}, "shared": {"heads": 3}}[body]
    final = saved(tmp_path / "reward", trained(run / "final", how="worst", **count))
    expected = rewards.load(str(final))(PROMPTS, COMPLETIONS)
    (final / "manifest.json").unlink()
    (final / "README.md").write_text(CARD)
    for member in final.glob("member-*"):
        (member / "state.safetensors").write_text("secret")
    assert main(["push", str(final), "--repo_id", "me/tiny"]) == 0
    arrived = tmp_path / "arrived"
    for name, content in committed(hub).items():
        (arrived / name).parent.mkdir(parents=True, exist_ok=True)
        (arrived / name).write_bytes(content)
    assert not list(arrived.rglob("state*"))
    assert rewards.load(str(arrived))(PROMPTS, COMPLETIONS) == expected


def test_private_and_a_branch(hub, run):
    hub.is_private = True
    assert main(["push", str(run), "--repo_id", "me/tiny", "--private", "--revision", "v1"]) == 0
    # Versions of the library differ in the key.
    assert hub.created.get("private") is True or hub.created.get("visibility") == "private"
    assert "/api/models/me/tiny/branch/v1" in hub.asked
    assert set(committed(hub, "v1")) == MODEL


def test_private_does_not_fill_a_public_repository(hub, run, capsys):
    assert main(["push", str(run), "--repo_id", "me/tiny", "--private"]) == 2
    assert "me/tiny exists and is public" in capsys.readouterr().err
    assert hub.commits == {} and hub.large == {}


def one_line(capsys, message):
    err = capsys.readouterr().err.strip()
    assert err.startswith("talltree push: error: ") and "\n" not in err
    assert message in err


def test_no_token(hub, run, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["push", str(run), "--repo_id", "me/tiny"]) == 2
    one_line(capsys, "run `hf auth login`, or set HF_TOKEN")
    assert hub.asked == []


def test_a_token_that_is_not_accepted(hub, run, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    assert main(["push", str(run), "--repo_id", "me/tiny"]) == 2
    one_line(capsys, "does not accept the token")


def test_a_repository_of_somebody_else(hub, run, capsys):
    assert main(["push", str(run), "--repo_id", "others/tiny"]) == 2
    one_line(capsys, "refuses the upload to others/tiny (You don't have the rights to write under others)")


def test_a_card_that_the_hub_does_not_take(hub, run, capsys):
    (run / "final" / "README.md").write_text("---\ntags: [a]\n---\nAn edited card is not damage.\n")
    assert main(["push", str(run), "--repo_id", "me/tiny"]) == 2
    one_line(capsys, "license is missing")
    assert hub.commits == {}


def test_no_network(hub, run, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nobody)
    assert main(["push", str(run), "--repo_id", "me/tiny"]) == 2
    one_line(capsys, f"{nobody} cannot be reached")


def test_offline_mode(hub, run, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["push", str(run), "--repo_id", "me/tiny"]) == 2
    one_line(capsys, "HF_HUB_OFFLINE")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("final", "the run has not ended; finish it with --resume"),
        ("final/model.safetensors", "has no model.safetensors"),
        ("final/README.md", "has no README.md, the model card"),
        ("final/config.json", "is damaged: config.json is missing"),
    ],
)
def test_folders_that_are_not_uploaded(run, lacking, message):
    path = run / lacking
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(RunError, match=message):
        push.model_folder(run)
    with pytest.raises(RunError, match="is not a folder"):
        push.model_folder(run / "none")


def test_damaged_weights_are_found(run):
    path = run / "final" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="model.safetensors does not have the SHA-256"):
        push.model_folder(run)


def test_names_that_no_repository_can_have(run, capsys):
    assert main(["push", str(run), "--repo_id", "me/ti ny"]) == 2
    one_line(capsys, "repo_id")
    assert main(["push", str(run)]) == 2
    one_line(capsys, "--repo_id is required")


def test_every_option_is_described():
    assert flaws(push.Config) == []
