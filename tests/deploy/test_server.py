"""The policy server over real sockets: openpi's protocol, what is refused and how, and many clients at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from bimact_client import PolicyClient, ServerError
from bimact_client.wire import pack, unpack
from conftest import tiny_config
from guide_files import write_dataset
from serving import NAMES, running, running_server, small_policy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from bimact.deploy.server import Metrics, ServerSettings, resized
from bimact.errors import UserError
from bimact.files import sha256_of
from bimact.policy.metadata import Execution
from bimact.run_directory import Run
from bimact.training.act_trainer import train_run
from bimact.training.prepare import prepare_run


def observation(seed: int = 0, size: tuple[int, int] = (16, 24)) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    images = {f"image_{camera}": draw.integers(0, 256, (*size, 3), dtype=np.uint8) for camera in ("left", "right")}
    return {"state": draw.normal(size=14).astype(np.float32), **images}


@pytest.fixture(scope="module")
def port() -> Any:
    with running(small_policy()) as port:
        yield port


def ask(port: int, *messages: Any, headers: dict[str, str] | None = None) -> list[Any]:
    """The frames after the metadata; then the code and reason with which the server closed, if it did."""
    frames: list[Any] = []
    with connect(f"ws://127.0.0.1:{port}", compression=None, additional_headers=headers, proxy=None) as connection:
        unpack(connection.recv(timeout=10))
        try:
            for message in messages:
                connection.send(message if isinstance(message, (str, bytes)) else pack(message))
                frame = connection.recv(timeout=10)
                frames.append(frame if isinstance(frame, str) else unpack(frame))
            connection.recv(timeout=0.2)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            frames.append((closed.rcvd.code, closed.rcvd.reason))
        except TimeoutError:
            pass
    return frames


def test_served_and_in_process_inference_agree_to_the_last_bit(port: int) -> None:
    policy = small_policy()
    with PolicyClient(port=port) as client:
        for seed in range(5):
            reply = client.infer(observation(seed))
            assert reply["actions"].dtype == np.float32
            np.testing.assert_array_equal(reply["actions"], policy.predict_chunk(observation(seed)))
            assert set(reply) == {"actions", "server_timing", "policy_timing"}
            assert set(reply["server_timing"]) == {"infer_ms", *(["prev_total_ms"] if seed else [])}


def test_openpi_form_of_observations(port: int) -> None:
    ours = observation()
    images = {"left": ours["image_left"].transpose(2, 0, 1), "right": ours["image_right"]}
    theirs = {"state": ours["state"].astype(np.float64), "images": images, "prompt": "stack the cups"}
    own, other = ask(port, ours, theirs)
    np.testing.assert_array_equal(own["actions"], other["actions"])


def test_metadata(port: int) -> None:
    with PolicyClient(port=port) as client:
        metadata = client.metadata
    assert metadata == {
        "protocol_version": 1,
        "run": "small",
        "checkpoint": "act-train-best.pth",
        "weights_sha256": small_policy().weights_sha256,
        "task": "cups",
        "action_names": list(NAMES),
        "state_names": list(NAMES),
        "action_dim": 14,
        "state_dim": 14,
        "control_hz": 50.0,
        "cameras": {camera: {"height": 16, "width": 24, "color_order": "rgb"} for camera in ("left", "right")},
        "chunk_size": 5,
        "temporal_context": 1,
        "execution": {"mode": "chunk", "execute_steps": 5, "temporal_ensemble": False},
        "action_ranges": {"low": [-2.0] * 14, "high": [2.0] * 14},
        "state_ranges": {"low": [-1.0] * 14, "high": [1.0] * 14},
        "needs_reset": False,
        "needs": "nothing: each observation stands alone",
        "max_delay": 0,
        "tasks": None,
        "prompt": "ignored: the policy is not told its task",
    }


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in observation().items() if key != name}


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (without("image_right"), "the observation has no 'image_right': the policy takes state, image_left, image_ri"),
        (without("state"), "the observation has no 'state'"),
        ({**observation(), "image_left": np.zeros((16, 24, 3), np.float32)}, "'image_left' is float32, it has to be u"),
        ({**observation(), "image_left": np.zeros((8, 8, 3), np.uint8)}, "has shape (8, 8, 3), it has to be (16, 24, "),
        ({**observation(), "image_left": "picture"}, "'image_left' is str, it has to be an array"),
        ({**observation(), "state": np.full(14, np.nan)}, "'state' holds NaN or Inf in dimension 0 (joint_0)"),
        ({**observation(), "state": np.zeros(7)}, "'state' has shape (7,), it has to be (14,)"),
        ({**observation(), "state": ["a"] * 14}, "'state' is <U1, it has to be numbers"),
        ({**observation(), "reset": 1}, "'reset' is int, it has to be true or false"),
        ({**observation(), "step": "three"}, "'step' is str, it has to be a whole number"),
        ({**observation(), "images": 3}, "'images' is int, it has to be a map of cameras"),
        ([1, 2], "an observation has to be a map, not list"),
        ("hello", "an observation has to be a binary message"),
        (b"\xc1\xff\x00", "the message is malformed"),
        (msgpack.packb({b"__ndarray__": True, b"data": b"", b"dtype": "O", b"shape": [1]}), "malformed"),
        (msgpack.packb({"state": msgpack.ExtType(4, b"code")}), "msgpack extension 4 is not used here"),
        (msgpack.packb({b"__ndarray__": True, b"data": b"12", b"dtype": "<f8", b"shape": [9]}), "data of another size"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_a_wrong_observation_is_one_sentence_and_ends_the_connection(port: int, message: Any, sentence: str) -> None:
    first, *rest = ask(port, message)
    assert isinstance(first, str) and sentence in first and "\n" not in first.strip()
    assert rest == [(1011, "the observation was refused")]
    assert "actions" in ask(port, observation())[0]  # others are served on


def test_a_message_beyond_the_policys_size_is_refused(port: int) -> None:
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None) as connection:
        connection.recv()
        connection.send(b"x" * (3 << 20))
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=10)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_keys() -> None:
    with running(small_policy(), ServerSettings(port=0, api_key="sesame")) as port:
        for headers in ({}, {"Authorization": "Api-Key other"}, {"Authorization": "sesame"}):
            with pytest.raises(InvalidStatus) as refused:
                ask(port, headers=headers)
            assert refused.value.response.status_code == 401
        for kind in ("Api-Key", "Bearer"):
            assert "actions" in ask(port, observation(), headers={"Authorization": f"{kind} sesame"})[0]
        with PolicyClient(port=port, api_key="sesame") as client:
            assert client.metadata["run"] == "small"
        with pytest.raises(ServerError, match="wants another API key"):
            PolicyClient(port=port, api_key="wrong", timeout=2)
        assert get(port, "/healthz") == (200, "OK\n")  # of a load balancer, which has no key
        assert get(port, "/metrics")[0] == 401


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::", "robot.local"])
def test_without_a_key_only_this_machine_is_served(host: str) -> None:
    with pytest.raises(UserError, match="can be reached from other machines: set a key"):
        ServerSettings(host=host)
    ServerSettings(host=host, api_key="sesame")


def test_a_port_that_is_taken(port: int) -> None:
    with (
        pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{port}"),
        running(small_policy(), ServerSettings(port=port)),
    ):
        pass


def test_metrics(port: int) -> None:
    ask(port, observation(), observation())
    ask(port, "nonsense")
    status, text = get(port, "/metrics")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert status == 200
    assert int(values["bimact_requests_total"]) >= 2 and int(values["bimact_errors_total"]) >= 1
    assert 0 < float(values['bimact_reply_seconds{quantile="0.5"}']) < 10
    assert values["bimact_reply_seconds_count"] == values["bimact_requests_total"]
    metrics = Metrics(requests=3, infer_ms=[1.0, 2.0, 3.0], total_ms=[2.0, 3.0, 4.0])  # type: ignore[arg-type]
    assert metrics.line() == (
        "requests 3 · errors 0 · connections 0 · reply in 3.0 ms median, 3.8 p90, 4.0 p99 · inference 2.0 ms median"
    )
    assert Metrics().line() == "requests 0 · errors 0 · connections 0"


class Slow:
    """A policy that takes its time, and fails if it is asked twice at once."""

    def __init__(self, seconds: float) -> None:
        self.policy, self.seconds, self.busy = small_policy(), seconds, False
        self.metadata, self.weights_sha256 = self.policy.metadata, self.policy.weights_sha256

    def new_session(self) -> Slow:
        return self

    def reset(self) -> None:
        pass

    def predict_chunk(self, observation: Any) -> np.ndarray:
        assert not self.busy
        self.busy = True
        time.sleep(self.seconds)
        self.busy = False
        if observation["state"][0] == 7:
            raise RuntimeError("out of\nluck")
        return np.zeros((5, 14), np.float32)


def test_health_and_pings_are_answered_during_inference() -> None:
    with running(Slow(0.6)) as port, connect(f"ws://127.0.0.1:{port}", proxy=None) as connection:
        connection.recv()
        connection.send(pack(observation()))
        time.sleep(0.1)
        began = time.perf_counter()
        assert get(port, "/healthz") == (200, "OK\n")
        assert connection.ping().wait(timeout=0.4)
        assert time.perf_counter() - began < 0.4
        assert unpack(connection.recv())["server_timing"]["infer_ms"] > 500


def test_an_unexpected_error_is_one_sentence() -> None:
    with running(Slow(0.0)) as port:
        sentence, closed = ask(port, {**observation(), "state": np.full(14, 7.0)})
    assert sentence == "the server failed: RuntimeError: out of luck" and closed == (1011, "the server failed")


def test_clients_take_turns() -> None:
    """Each client has one request in the queue, so that one that asks often delays the others by one inference."""
    with running(Slow(0.02)) as port:
        done: dict[int, int] = {}

        def work(number: int) -> None:
            with PolicyClient(port=port, timeout=30) as client:
                for _ in range(8):
                    client.infer(observation())
                    done[number] = done.get(number, 0) + 1
                    assert max(done.values()) - min(done.get(n, 0) for n in range(4)) <= 4 or len(done) < 4

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
    assert done == dict.fromkeys(range(4), 8)


@pytest.mark.slow
def test_fifty_clients(port: int) -> None:
    policy = small_policy()
    expected = [policy.predict_chunk(observation(seed)) for seed in range(5)]

    async def one(seed: int) -> None:
        from websockets.asyncio.client import connect

        async with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as connection:
            await connection.recv()
            for turn in range(3):
                await connection.send(pack(observation((seed + turn) % 5)))
                reply = unpack(await connection.recv())
                np.testing.assert_array_equal(reply["actions"], expected[(seed + turn) % 5])

    async def all_of_them() -> None:
        await asyncio.gather(*(one(seed) for seed in range(50)))

    asyncio.run(asyncio.wait_for(all_of_them(), 60))


def test_too_many_connections_and_idle_ones() -> None:
    settings = ServerSettings(port=0, max_connections=1, idle_timeout=0.3)
    with running(small_policy(), settings) as port:
        with connect(f"ws://127.0.0.1:{port}", proxy=None) as connection:
            connection.recv()
            with pytest.raises(InvalidStatus) as refused:
                ask(port)
            assert refused.value.response.status_code == 503
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(timeout=5)
        assert closed.value.rcvd is not None and closed.value.rcvd.reason == "no observation for a long time"
        assert "actions" in ask(port, observation())[0]  # the place is free again


def test_half_open_connections_end() -> None:
    with running(small_policy(), ServerSettings(port=0, handshake_timeout=0.3)) as port:
        with socket.create_connection(("127.0.0.1", port)) as half:
            half.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
            half.settimeout(5)
            while half.recv(1000):
                pass
        assert "actions" in ask(port, observation())[0]


def test_a_client_that_vanishes_harms_nobody(port: int) -> None:
    for _ in range(3):
        connection = connect(f"ws://127.0.0.1:{port}", proxy=None).__enter__()
        connection.recv()
        connection.send(pack(observation()))
        connection.socket.shutdown(socket.SHUT_RDWR)
        connection.close()
    assert "actions" in ask(port, observation())[0]


@pytest.mark.parametrize("ensembles", [False, True])
def test_histories_of_two_clients_do_not_mix(ensembles: bool) -> None:
    execution = Execution(1, True) if ensembles else None
    changes = {"temporal_context": 3}
    with (
        running(small_policy(execution, **changes)) as port,
        PolicyClient(port=port) as one,
        PolicyClient(port=port) as two,
    ):
        assert one.metadata["needs_reset"] and "at each control step" in one.metadata["needs"]
        found: dict[int, list[np.ndarray]] = {0: [], 1: []}
        for step in range(6):
            for number, client in enumerate((one, two)):
                if step == 4 and number == 1:
                    client.reset()
                found[number].append(client.infer(observation(10 * number + step))["actions"])
    for number in (0, 1):
        alone = small_policy(execution, **changes)
        for step in range(6):
            if step == 4 and number == 1:
                alone.reset()
            seen = observation(10 * number + step)
            expected = alone.act(seen)[None] if ensembles else alone.predict_chunk(seen)
            np.testing.assert_array_equal(found[number][step], expected)


def test_steps_that_are_numbered_tell_a_new_episode() -> None:
    """A lower number begins an episode; after a gap the history begins anew, too; `observe` asks for no actions."""
    sent = [(0, False), (1, True), (2, False), (9, False), (10, False), (0, False)]
    with running(small_policy(temporal_context=2)) as port:
        messages = [
            {**observation(number), "step": step, **({"observe": True} if observes else {})}
            for number, (step, observes) in enumerate(sent)
        ]
        replies = ask(port, *messages)
    assert "actions" not in replies[1]
    alone = small_policy(temporal_context=2)
    for number, (step, observes) in enumerate(sent):
        if number and step != sent[number - 1][0] + 1:
            alone.reset()
        if observes:
            alone.observe(observation(number))
        else:
            np.testing.assert_array_equal(replies[number]["actions"], alone.predict_chunk(observation(number)))


@pytest.mark.parametrize("mode", ["stretch", "pad"])
def test_images_of_another_size(mode: str) -> None:
    policy, other = small_policy(), observation(size=(30, 50))
    with running(policy, ServerSettings(port=0, resize=mode)) as port:
        first_form = {**other, "image_left": other["image_left"].transpose(2, 0, 1)}
        replies = ask(port, other, first_form, observation())
    changed = {name: resized(value, (16, 24), mode) if name != "state" else value for name, value in other.items()}
    np.testing.assert_array_equal(replies[0]["actions"], policy.predict_chunk(changed))
    np.testing.assert_array_equal(replies[1]["actions"], replies[0]["actions"])
    np.testing.assert_array_equal(replies[2]["actions"], policy.predict_chunk(observation()))
    assert (resized(np.full((10, 30, 3), 9, np.uint8), (16, 24), "pad")[[0, -1]] == 0).all()
    assert (resized(np.full((10, 30, 3), 9, np.uint8), (16, 24), "stretch") == 9).all()


def test_tls(tmp_path: Path) -> None:
    certificate = tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    try:
        subprocess.run(
            [*command, *names, "-keyout", str(tmp_path / "key.pem"), "-out", str(certificate)],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl")
    settings = ServerSettings(port=0, certfile=certificate, keyfile=tmp_path / "key.pem")
    with running(small_policy(), settings) as port:
        trusted = ssl.create_default_context(cafile=str(certificate))
        with PolicyClient(f"wss://localhost:{port}", ssl_context=trusted) as client:
            assert client.infer(observation())["actions"].shape == (5, 14)
    with (
        pytest.raises(UserError, match="cannot read the certificate"),
        running(small_policy(), ServerSettings(port=0, certfile=tmp_path / "nothing.pem")),
    ):
        pass


def test_a_stopped_server_answers_what_it_has_begun() -> None:
    with running_server(Slow(0.5)) as server, connect(f"ws://127.0.0.1:{server.port}", proxy=None) as connection:
        connection.recv()
        connection.send(pack(observation()))
        time.sleep(0.1)
        stopper = threading.Timer(0.0, lambda: server._loop.call_soon_threadsafe(server.stop))
        stopper.start()
        assert unpack(connection.recv(timeout=5))["actions"].shape == (5, 14)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """A run, served by a process of its own that SIGTERM ends; its weights are those of the file."""
    dataset = write_dataset(tmp_path / "dataset", [9, 12, 7], size=(16, 24))
    config = tiny_config(dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), num_epochs=1, temporal_context=1)
    train_run(prepare_run(config))
    command = [sys.executable, "-m", "bimact", "serve", "--run", str(tmp_path / "run"), "--port", "0"]
    environment = {**os.environ, "BIMACT_API_KEY": "sesame"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving run (act-train-best.pth) at ws://127.0.0.1:") and "with an API key" in line
        port = int(line.split(":")[-1].split()[0])
        with PolicyClient(port=port, api_key="sesame", timeout=20) as client:
            weights = Run(tmp_path / "run").checkpoint("best")
            assert client.metadata["weights_sha256"] == sha256_of(weights)
            assert client.infer(observation())["actions"].shape == (5, 14)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        assert process.stdout.read().splitlines()[-1] == "Stopped: all requests were answered"
    finally:
        process.kill()
        process.stdout.close()


def test_metadata_is_json() -> None:
    """Anything in it can be written down, so that exported models carry the same."""
    with running_server(small_policy()) as server:
        assert json.loads(json.dumps(server.policy.metadata)) == server.policy.metadata
