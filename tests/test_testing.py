"""The scripted server and the event builders do what their pages say, since users' tests stand on them."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from typing import Any

import pytest

from rlm_jupyter import events
from rlm_jupyter.testing import Reply, Request, ScriptedServer, Story
from rlm_jupyter.trace import Trace

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def post(server: ScriptedServer, body: Any = None, path: str = "/v1/chat/completions") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("POST", path, json.dumps(ASK if body is None else body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def pieces(data: bytes) -> list[Any]:
    lines = [line[6:] for line in data.decode().split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_replies_come_in_order_and_the_end_of_the_script_is_told() -> None:
    with ScriptedServer(["one", Reply("two", usage=(3, 4, 2))]) as server:
        first, second, third = (post(server) for _ in range(3))
    assert json.loads(first[2])["choices"][0]["message"]["content"] == "one"
    data = json.loads(second[2])
    assert data["usage"]["prompt_tokens"] == 3
    assert data["usage"]["prompt_tokens_details"]["cached_tokens"] == 2
    assert third[0] == 400
    assert json.loads(third[2])["error"]["code"] == "script_end"


def test_models_have_scripts_of_their_own() -> None:
    with ScriptedServer(["default"], models={"root": ["r"], "sub": lambda request: f"to {request.prompt}"}) as server:
        texts = [
            json.loads(post(server, ASK | {"model": name})[2])["choices"][0]["message"]["content"]
            for name in ("sub", "root", "x")
        ]
        assert [request.model for request in server.requests] == ["sub", "root", "x"]
        assert len(server.requests_to("sub")) == 1
    assert texts == ["to hi", "r", "default"]


def test_a_function_that_fails_is_told_to_the_client() -> None:
    def script(request: Request) -> str:
        raise KeyError("oh")

    with ScriptedServer(script) as server:
        status, _, body = post(server)
    assert status == 400
    assert b"KeyError" in body


def test_a_stream_tells_its_usage_only_when_asked() -> None:
    with ScriptedServer(lambda request: Reply("a text of several pieces, that is", finish_reason="length")) as server:
        without = pieces(post(server, ASK | {"stream": True})[2])
        with_usage = pieces(post(server, ASK | {"stream": True, "stream_options": {"include_usage": True}})[2])
    assert without[-1] == with_usage[-1] == "[DONE]"
    assert all("usage" not in piece for piece in without[:-1])
    assert with_usage[-2]["choices"] == []
    assert with_usage[-2]["usage"]["completion_tokens"] > 0
    text = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in without[:-1])
    assert text == "a text of several pieces, that is"
    assert without[-2]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("body", [{"max_tokens": 5}, {"temperature": 0.2}])
def test_the_strict_profile_refuses_as_the_newest_models_do(body: dict[str, Any]) -> None:
    with ScriptedServer(["yes"], strict=True) as server:
        status, _, data = post(server, ASK | body)
        assert post(server, ASK | {"temperature": 1, "max_completion_tokens": 5})[0] == 200
    error = json.loads(data)["error"]
    (name,) = body
    assert (status, error["param"], error["type"], error["code"]) == (
        400,
        name,
        "invalid_request_error",
        "unsupported_parameter",
    )


def test_failures_have_openais_shape_and_headers() -> None:
    reply = Reply(status=429, error={"message": "slow", "code": "rate_limit"}, headers={"Retry-After": "3"})
    with ScriptedServer([reply]) as server:
        status, headers, body = post(server)
    assert (status, headers["Retry-After"]) == (429, "3")
    assert json.loads(body)["error"] == {"message": "slow", "type": None, "param": None, "code": "rate_limit"}


def test_a_dropped_and_a_cut_answer_break_the_connection() -> None:
    with ScriptedServer([Reply(drop=True), Reply("x" * 500, cut_after=120)]) as server:
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            post(server)
        with pytest.raises(http.client.IncompleteRead):
            post(server)


def test_the_log_has_what_was_asked_and_when() -> None:
    with ScriptedServer(["yes"], latency=0.1) as server:
        post(server, ASK | {"n": 1})
        (request,) = server.wait_for(1, ended=True)
    assert (request.method, request.path, request.body["n"], request.prompt) == ("POST", "/v1/chat/completions", 1, "hi")
    assert request.headers["content-type"] == "application/json"
    assert request.ended - request.started >= 0.1
    assert (request.status, request.aborted) == (200, False)


def test_held_replies_show_the_peak_and_go_when_released() -> None:
    with ScriptedServer(lambda request: Reply("yes", hold=True)) as server:
        threads = [threading.Thread(target=post, args=(server,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        server.wait_for(12)
        assert (server.peak, server.under_way) == (12, 12)
        with pytest.raises(TimeoutError, match="12 requests"):
            server.wait_for(13, timeout=0.05)
        server.release()
        for thread in threads:
            thread.join(20)
        server.wait_for(12, ended=True)
        assert server.under_way == 0
        assert post(server)[0] == 200


def test_a_client_that_goes_away_is_noticed() -> None:
    with ScriptedServer([Reply(hold=True)]) as server:
        client = socket.create_connection(("127.0.0.1", server.port))
        body = json.dumps(ASK).encode()
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        server.wait_for(1)
        client.close()
        assert server.wait_for(1, ended=True)[0].aborted


def test_a_request_may_come_in_pieces_and_several_in_one() -> None:
    body = json.dumps(ASK).encode()
    whole = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with ScriptedServer(["one", "two", "three"]) as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(20)
        for start in range(0, len(whole), 17):
            client.sendall(whole[start : start + 17])
        client.sendall(whole + whole)
        got = b""
        while got.count(b"HTTP/1.1 200") < 3 or b"three" not in got:
            got += client.recv(65536)
    assert len(server.requests) == 3


def test_models_are_listed_and_other_paths_are_not_there() -> None:
    with ScriptedServer(models={"a": [], "b": []}) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("GET", "/v1/models")
        assert [row["id"] for row in json.loads(connection.getresponse().read())["data"]] == ["a", "b"]
        connection.close()
        assert post(server, path="/v1/embeddings")[0] == 404


def test_it_carries_a_thousand_requests_a_second() -> None:
    """By its own clock on its own thread: what a request costs the server, whoever else uses the machine."""
    with ScriptedServer(lambda request: "yes") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        body = json.dumps(ASK)
        began = time.process_time()
        for _ in range(500):
            connection.request("POST", "/v1/chat/completions", body)
            connection.getresponse().read()
        spent = time.process_time() - began
        connection.close()
    assert len(server.requests) == 500
    assert spent < 0.5 * 4  # client and server together, with room for a slow machine


def test_the_port_is_closed_at_the_end() -> None:
    with ScriptedServer() as server:
        port = server.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    server.close()


def test_a_story_is_a_run_that_a_trace_can_read() -> None:
    story = Story("How many?", model="gpt-5")
    story.iteration("I count.", "len(context)", "3\n", calls=[("which?", "the first"), ("what?", "")])
    story.call("again", error="LMUnavailable: busy", batch="b")
    story.iteration("Done.").answered("3")
    trace = Trace.from_jsonl("".join(event.to_json() + "\n" for event in story.events))
    assert (trace.status, trace.answer, trace.question, trace.settings["model"]) == ("answered", "3", "How many?", "gpt-5")
    assert [event.number for event in story.events] == list(range(len(story.events)))
    assert [call.state for call in trace.calls] == ["ok", "ok", "failed"]
    assert trace.requests == 5
    end = story.events[-1]
    assert isinstance(end, events.RunEnded)
    assert end.usage == sum(
        (turn.usage for turn in trace.iterations), sum((call.usage for call in trace.calls), events.Usage())
    )
