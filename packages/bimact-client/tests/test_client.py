"""The connection: with a server process, and networks that are slow or break."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from fakes import FakeRobot, metadata
from processes_and_networks import ServerProcess, SlowNetwork

from bimact_client import ControlLoop, PolicyClient, Safety, ServerError, ServerTimeout, ServerUnreachable, Stopped
from bimact_client.wire import pack

OBS = {"state": np.array([0.1, 0.2, 0.3], np.float32), "image_top": np.zeros((4, 6, 3), np.uint8)}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        yield server


def test_metadata_and_actions(server: ServerProcess) -> None:
    with PolicyClient(port=server.port) as client:
        assert client.metadata == metadata(run="cube")
        reply = client.infer(OBS)
        np.testing.assert_array_equal(reply["actions"], np.tile(OBS["state"], (10, 1)))


def test_a_reset_is_told_once(server: ServerProcess) -> None:
    with PolicyClient(port=server.port) as client:
        for _ in range(2):
            client.infer(OBS)
        client.reset()
        for _ in range(2):
            reply = client.infer(OBS)
    assert reply["resets"] == [True, False, True, False]


def test_a_whole_address_can_be_given(server: ServerProcess) -> None:
    with PolicyClient(f"ws://localhost:{server.port}") as client:
        assert client.infer(OBS)["actions"].shape == (10, 3)
    with pytest.raises(ServerError, match="ws://: is no address of a policy server"):
        PolicyClient("ws://:")


def test_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(ServerUnreachable, match=rf"no policy server at ws://127.0.0.1:{port} within 0.5 s"):
        PolicyClient(port=port, timeout=0.5)
    assert time.monotonic() - begin < 2


def test_a_server_that_starts_later_is_awaited() -> None:
    with ServerProcess() as server:
        server.kill()
        threading.Timer(0.3, server.start).start()
        with PolicyClient(port=server.port, timeout=20) as client:
            assert client.infer(OBS)["actions"].shape == (10, 3)


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    with ServerProcess(key="secret") as server:
        for key in ("wrong", None):
            with pytest.raises(ServerError, match="wants another API key"):
                PolicyClient(port=server.port, api_key=key)
        PolicyClient(port=server.port, api_key="secret").close()
        monkeypatch.setenv("BIMACT_API_KEY", "secret")
        PolicyClient(port=server.port).close()


def test_an_error_of_the_server_is_its_sentence() -> None:
    with ServerProcess(error_at=0) as server, PolicyClient(port=server.port) as client:
        with pytest.raises(ServerError, match="the policy server says: the observation has no 'image_wrist'"):
            client.infer(OBS)
        assert client.infer(OBS)["resets"] == [True], "connected again, and the reset is still told"


def test_a_time_out_is_an_exception_and_the_late_answer_is_not_taken() -> None:
    with ServerProcess(delay=0.6) as server, PolicyClient(port=server.port, timeout=0.3) as client:
        begin = time.monotonic()
        with pytest.raises(ServerTimeout, match=r"has not answered in 0\.3 s"):
            client.infer(OBS)
        assert time.monotonic() - begin < 1.5
        client.timeout = 5
        other = {**OBS, "state": OBS["state"] + 1}
        np.testing.assert_array_equal(client.infer(other)["actions"][0], other["state"])


def test_what_is_no_policy_server_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        with pytest.raises(ServerUnreachable):
            PolicyClient(port=silent.getsockname()[1], timeout=0.4)
        assert time.monotonic() - begin < 2


def test_a_network_that_takes_nothing_times_out(server: ServerProcess) -> None:
    large = {**OBS, "image_top": np.zeros((4000, 4000, 3), np.uint8)}
    with SlowNetwork(server.port) as network, PolicyClient(port=network.port, timeout=1) as client:
        network.blocked = True
        begin = time.monotonic()
        with pytest.raises(ServerTimeout, match="has not answered in 1 s"):
            client.infer(large)
        assert time.monotonic() - begin < 3


def test_an_observation_that_is_too_large_is_refused_for_good(server: ServerProcess) -> None:
    with PolicyClient(port=server.port) as client:
        with pytest.raises(ServerError, match="refused the observation .*limit") as refused:
            client.infer({**OBS, "image_top": np.zeros((5000, 5000, 3), np.uint8)})
        assert not isinstance(refused.value, ServerUnreachable)


def test_a_connection_that_breaks_is_made_again(server: ServerProcess) -> None:
    with SlowNetwork(server.port) as network, PolicyClient(port=network.port) as client:
        client.infer(OBS)
        network.cut()
        time.sleep(0.1)
        with pytest.raises(ServerUnreachable, match="broke"):
            client.infer(OBS)
        assert not client.connected
        assert client.infer(OBS)["actions"].shape == (10, 3)


def test_another_policy_after_a_restart_is_refused() -> None:
    with ServerProcess() as server, PolicyClient(port=server.port) as client:
        client.infer(OBS)
        server.kill()
        server.start(run="insertion")
        with pytest.raises(ServerUnreachable):
            client.infer(OBS)
        with pytest.raises(ServerError, match=r"has another policy than before \(run changed\)"):
            client.infer(OBS)


def test_another_version_of_the_protocol(monkeypatch: pytest.MonkeyPatch, server: ServerProcess) -> None:
    monkeypatch.setattr("bimact_client.client.PROTOCOL_VERSION", 2)
    with pytest.raises(ServerError, match="speaks version 1 of the protocol, this client 2"):
        PolicyClient(port=server.port)


def test_messages_are_not_compressed(server: ServerProcess) -> None:
    with PolicyClient(port=server.port) as client:
        assert client._connection is not None and not client._connection.protocol.extensions
    assert len(pack(OBS)) > OBS["image_top"].nbytes


# The loop with a real server -------------------------------------------------------------------------


def loop_on(port: int, timeout: float = 5.0, **settings: object) -> tuple[ControlLoop, FakeRobot]:
    robot = FakeRobot(time, pose=[0.1, 0.2, 0.3])
    client = PolicyClient(port=port, timeout=timeout)
    return ControlLoop(robot, client, say=lambda text: None, **settings), robot  # type: ignore[arg-type]


def test_the_loop_keeps_its_rate(server: ServerProcess) -> None:
    loop, robot = loop_on(server.port)
    report = loop.run(100)
    assert report.stopped is None and len(robot.sent) == 100 + report.held_cycles
    assert report.hz > 45  # a busy machine loses some


@pytest.mark.parametrize("execution", ["chunk", "async"])
def test_a_server_that_is_killed_and_restarted_in_an_episode(execution: str) -> None:
    with ServerProcess() as server:
        loop, robot = loop_on(server.port, execution=execution, safety=Safety(stop_after=20))

        def restart() -> None:
            server.kill()
            time.sleep(0.3)
            server.start(nan_at=3)

        timer = threading.Timer(0.5, restart)
        timer.start()
        with pytest.raises(Stopped, match="NaN or Inf for waist"):  # it was used again, and checked again
            loop.run(1000)
        timer.join()
    assert loop.report.lost >= 1 and loop.report.held_cycles > 5
    assert np.isfinite(robot.sent).all() and robot.stops == 1
    np.testing.assert_allclose(robot.sent, np.tile([0.1, 0.2, 0.3], (len(robot.sent), 1)), atol=1e-6)


def test_a_server_that_is_killed_stops_the_loop_if_configured() -> None:
    with ServerProcess() as server:
        loop, robot = loop_on(server.port, reconnect=False)
        threading.Timer(0.5, server.process.kill).start()
        with pytest.raises(Stopped, match="broke"):
            loop.run(1000)
    assert robot.stops == 1


def test_a_server_that_fails_never_freezes_the_loop_silently() -> None:
    """LeRobot's asynchronous client goes on without actions (its issue 1772)."""
    said: list[str] = []
    with ServerProcess() as server:
        loop, robot = loop_on(server.port, timeout=0.3, execution="async", safety=Safety(stop_after=0.6))
        loop._say = said.append
        threading.Timer(0.4, server.process.kill).start()
        with pytest.raises(Stopped, match=r"no action of the policy for 0\.\d s: .*server"):
            loop.run(1000)
    assert robot.stops == 1 and said and "trying again" in said[0]


def test_a_slow_network(server: ServerProcess) -> None:
    with SlowNetwork(server.port, delay=0.02, jitter=0.03, loss=0.05) as network:
        loop, robot = loop_on(network.port, execution="async")
        report = loop.run(100)
    assert report.stopped is None and len(robot.sent) >= 100
    assert report.chunks >= 5 and report.latency(50) > 40
    assert report.held_cycles < 60
    np.testing.assert_allclose(robot.sent[-1], [0.1, 0.2, 0.3], atol=1e-6)
