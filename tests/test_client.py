"""The client against a real server: what it sends, what it makes of replies good and bad, and what it never repeats."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_jupyter.errors import LMError, LMRefused, LMReplyError, LMUnavailable
from rlm_jupyter.events import Usage
from rlm_jupyter.lm.client import Completion, Message, OpenAILM
from rlm_jupyter.lm.completion import StreamedReply, WholeReply
from rlm_jupyter.lm.connection import Connection
from rlm_jupyter.lm.failures import Failure, ParameterRefused, Spent, Told, one_line, redact, retry_after
from rlm_jupyter.lm.table import PROVIDERS
from rlm_jupyter.testing import Reply, Request, ScriptedServer

pytestmark = pytest.mark.anyio

KEY = "sk-proj-C4n4ryC4n4ryC4n4ryC4n4ry"
HELLO: list[Message] = [{"role": "user", "content": "hello"}]


@asynccontextmanager
async def open_client(url: str, key: str | None = None, **sampling: Any) -> AsyncIterator[OpenAILM]:
    lm = OpenAILM("gpt-5-mini", url, key, sampling)
    try:
        yield lm
    finally:
        await lm.aclose()


async def ask(lm: OpenAILM, *, stream: bool = False, patience: float = 20) -> tuple[Completion, list[str]]:
    pieces: list[str] = []
    completion = await lm.complete(HELLO, max_output_tokens=100, timeout=patience, on_text=pieces.append if stream else None)
    return completion, pieces


async def failure(reply: Reply, kind: type[LMError], *, stream: bool = False, key: str | None = None) -> LMError:
    with ScriptedServer([reply]) as server:
        async with open_client(server.url, key) as lm:
            with pytest.raises(kind) as caught:
                await ask(lm, stream=stream)
    text = str(caught.value)
    assert "\n" not in text
    assert 0 < len(text) <= 420
    return caught.value


PICTURED: list[Message] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "a plot"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        ],
    }
]


@pytest.mark.parametrize(
    "told",
    [
        "Invalid content type. image_url is only supported by certain models.",
        "No endpoints found that support image input",
        "m is not a multimodal model",
        "messages[0].content must be a string",
    ],
)
async def test_a_model_that_takes_no_pictures_is_sent_the_text_alone_from_then_on(told: str) -> None:
    def reply(request: Request) -> Reply:
        return Reply(status=400, error={"message": told}) if b"image_url" in request.raw else Reply("seen")

    with ScriptedServer(reply) as server:
        async with open_client(server.url) as lm:
            with pytest.raises(ParameterRefused, match="takes no pictures: sent again without"):
                await lm.complete(PICTURED, max_output_tokens=100, timeout=20)
            for _ in range(2):
                assert (await lm.complete(PICTURED, max_output_tokens=100, timeout=20)).text == "seen"
    assert [request.prompt for request in server.requests[1:]] == ["a plot", "a plot"]


async def test_a_failure_that_speaks_of_no_picture_is_not_taken_for_one() -> None:
    with ScriptedServer([Reply(status=400, error={"message": "the prompt was flagged"})]) as server:
        async with open_client(server.url) as lm:
            with pytest.raises(LMRefused, match="flagged"):
                await lm.complete(PICTURED, max_output_tokens=100, timeout=20)
    assert len(server.requests) == 1


async def test_ollama_gets_pictures_beside_the_text_as_its_own_form_has_them() -> None:
    with ScriptedServer(["seen"], dialect="ollama") as server:
        lm = OpenAILM("llava", server.url.removesuffix("/v1"), dialect=PROVIDERS["ollama"].dialect)
        try:
            await lm.complete([*HELLO, *PICTURED], max_output_tokens=100, timeout=20)
        finally:
            await lm.aclose()
    plain, pictured = server.requests[0].body["messages"]
    assert plain == HELLO[0]
    assert pictured == {"role": "user", "content": "a plot", "images": ["iVBORw0KGgo="]}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_has_text_usage_and_reason(stream: bool) -> None:
    text = "Grüße 🌍, a text of more than one piece: " + "x" * 100
    with ScriptedServer([Reply(text, usage=(11, 7, 3), finish_reason="length")], strict=True) as server:
        async with open_client(server.url) as lm:
            completion, pieces = await ask(lm, stream=stream)
    assert completion == Completion(text, Usage(11, 7, 3), "length", "gpt-5-mini")
    assert "".join(pieces) == (text if stream else "")
    assert len(pieces) > 3 if stream else pieces == []
    body = server.requests[0].body
    assert body["model"] == "gpt-5-mini"
    assert body["max_completion_tokens"] == 100
    assert "max_tokens" not in body
    assert body.get("stream_options") == ({"include_usage": True} if stream else None)


async def test_text_comes_while_the_stream_is_still_open() -> None:
    with ScriptedServer([Reply("x" * 96, pause=0.5)]) as server:
        async with open_client(server.url) as lm:
            at: list[float] = []
            await lm.complete(HELLO, max_output_tokens=9, timeout=20, on_text=lambda text: at.append(time.monotonic()))
            assert len(at) == 4
            assert at[0] < server.wait_for(1, ended=True)[0].ended


@pytest.mark.parametrize("stream", [False, True])
async def test_a_usage_that_is_not_told_is_none(stream: bool) -> None:
    with ScriptedServer(["yes"], omit_usage=True) as server:
        async with open_client(server.url) as lm:
            assert (await ask(lm, stream=stream))[0].usage is None


IMPOSSIBLE: list[Any] = [
    "x",
    [],
    {"prompt_tokens": 1},
    {"prompt_tokens": -1, "completion_tokens": 2},
    {"prompt_tokens": 1e300, "completion_tokens": 2},
    {"prompt_tokens": True, "completion_tokens": 2},
    {"prompt_tokens": 10**20, "completion_tokens": 2},
]


@pytest.mark.parametrize("usage", IMPOSSIBLE)
async def test_an_impossible_usage_counts_as_not_told(usage: Any) -> None:
    body = json.dumps({"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": usage})
    with ScriptedServer([Reply(body=body)]) as server:
        async with open_client(server.url) as lm:
            assert (await ask(lm))[0] == Completion("yes", None, "stop", "gpt-5-mini")


async def test_the_old_name_of_the_output_cap_is_used_where_the_new_one_is_refused_and_remembered() -> None:
    with ScriptedServer(["one", "two"], old=True) as server:
        async with open_client(server.url) as lm:
            with pytest.raises(ParameterRefused, match="max_completion_tokens"):
                await ask(lm)
            assert (await ask(lm))[0].text == "one"
            assert (await ask(lm))[0].text == "two"
    assert [("max_tokens" in r.body, "max_completion_tokens" in r.body) for r in server.requests] == [
        (False, True), (True, False), (True, False)
    ]  # fmt: skip


async def test_a_server_that_refuses_both_names_of_the_cap_is_a_clear_error() -> None:
    def refuse(request: Request) -> Reply:
        name = "max_tokens" if "max_tokens" in request.body else "max_completion_tokens"
        return Reply(status=400, error={"message": f"unknown {name}", "param": name, "code": "unknown_parameter"})

    with ScriptedServer(refuse) as server:
        async with open_client(server.url) as lm:
            with pytest.raises(ParameterRefused):
                await ask(lm)
            with pytest.raises(LMRefused, match="unknown max_tokens"):
                await ask(lm)


async def test_a_server_without_stream_options_is_asked_without() -> None:
    def reply(request: Request) -> Reply:
        if "stream_options" in request.body:
            return Reply(status=422, error={"message": "extra inputs are not permitted: stream_options"})
        return Reply("yes")

    with ScriptedServer(reply) as server:
        async with open_client(server.url) as lm:
            with pytest.raises(ParameterRefused):
                await ask(lm, stream=True)
            completion, pieces = await ask(lm, stream=True)
    assert (completion.text, completion.usage, pieces) == ("yes", None, ["yes"])


async def test_a_refused_sampling_argument_is_named_with_its_value() -> None:
    with ScriptedServer(["yes"], strict=True) as server:
        async with open_client(server.url, temperature=0.3) as lm:
            with pytest.raises(LMRefused, match=r"gpt-5-mini does not take temperature=0.3: leave it out or change it"):
                await ask(lm)


async def test_sampling_arguments_are_sent_as_they_are_and_cannot_take_the_place_of_ours() -> None:
    with ScriptedServer(["yes"]) as server:
        async with open_client(server.url, reasoning_effort="low", model="other", max_tokens=5) as lm:
            await ask(lm)
    body = server.requests[0].body
    assert body["reasoning_effort"] == "low"
    assert body["model"] == "gpt-5-mini"
    assert "max_tokens" not in body


REFUSALS = {
    "key": (401, {"message": "Incorrect API key provided"}, "refused the key"),
    "permission": (403, {"message": "project has no access"}, "refused the key"),
    "model": (404, {"message": "The model does not exist", "code": "model_not_found"}, "knows no model 'gpt-5-mini'"),
    "quota": (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}, "no quota left"),
    "billing": (402, {"message": "Insufficient Balance"}, "no quota left"),
    "length": (400, {"message": "maximum is 128000 tokens", "code": "context_length_exceeded"}, "too long for gpt-5-mini"),
    "length by words": (400, {"message": "prompt is too long: 250000 tokens > 200000 maximum"}, "too long for gpt-5-mini"),
    "payload": (413, {"message": "Request too large"}, "too long for gpt-5-mini"),
    "filter": (400, {"message": "triggered the content management policy", "code": "content_filter"}, "refused the content"),
    "redirect": (307, {}, "redirects elsewhere"),
    "other": (418, {"message": "I am a teapot"}, "I am a teapot"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refusal_is_told_in_one_line_and_not_to_be_retried(name: str) -> None:
    status, error, words = REFUSALS[name]
    headers = {"Location": "http://127.0.0.1:1/v1/chat/completions"} if status == 307 else {}
    caught = await failure(Reply(status=status, error=error, headers=headers), LMRefused)
    assert words in str(caught)
    assert not caught.retryable


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
async def test_what_may_pass_is_to_be_retried(status: int) -> None:
    caught = await failure(Reply(status=status, error={"message": "try later"}, headers={"Retry-After": "7"}), LMUnavailable)
    assert "try later" in str(caught)
    assert caught.retryable
    assert caught.retry_after == 7


async def test_a_page_of_a_proxy_is_not_repeated() -> None:
    page = "<html><body><script>alert(1)</script>" + "x" * 10_000
    caught = await failure(Reply(status=502, body=page), LMUnavailable)
    assert "<" not in str(caught)


def test_retry_after_is_read_in_every_form() -> None:
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after({"retry-after": "2.5"}) == 2.5
    soon = retry_after({"retry-after": email.utils.formatdate(time.time() + 60, usegmt=True)})
    assert soon is not None
    assert 50 < soon <= 60
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    for odd in ("soon", "-3", "nan", "inf", "", "Wed, 99 Foo 99999 07:28:00 GMT"):
        assert retry_after({"retry-after": odd}) is None


ODD_REPLIES = {
    "malformed": ('{"choices": [', "malformed JSON"),
    "html": ("<!doctype html><title>Welcome</title>", "is --base-url right?"),
    "array": ("[1, 2]", "another shape"),
    "null": ("null", "another shape"),
    "number": ("12", "another shape"),
    "no choices": ('{"object": "x"}', "no choices"),
    "empty choices": ('{"choices": []}', "no choices"),
    "odd choices": ('{"choices": {"a": 1}}', "no choices"),
    "choice without message": ('{"choices": [{"index": 0}]}', "no choices"),
    "null content": ('{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}', "without text"),
    "a number as content": ('{"choices": [{"message": {"content": 5}}]}', "without text"),
    "deep": ("[" * 100_000, "malformed JSON"),
}


@pytest.mark.parametrize("name", ODD_REPLIES)
async def test_what_is_no_reply_is_told_as_such_and_may_be_retried(name: str) -> None:
    body, words = ODD_REPLIES[name]
    caught = await failure(Reply(body=body), LMReplyError)
    assert words in str(caught)
    assert caught.retryable


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_in_a_body_with_status_200_is_an_error(stream: bool) -> None:
    error = json.dumps({"error": {"message": "the upstream is overloaded", "code": 529}})
    reply = Reply(
        body=f"data: {error}\n\n" if stream else error,
        headers={"Content-Type": "text/event-stream" if stream else "application/json"},
    )
    caught = await failure(reply, LMUnavailable, stream=stream)
    assert "the upstream is overloaded" in str(caught)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_that_the_content_filter_stopped_is_refused(stream: bool) -> None:
    caught = await failure(Reply("half of", finish_reason="content_filter"), LMRefused, stream=stream)
    assert "content filter" in str(caught)


async def test_a_refusal_of_the_model_is_told() -> None:
    body = json.dumps({"choices": [{"message": {"content": None, "refusal": "I cannot help"}, "finish_reason": "stop"}]})
    assert "I cannot help" in str(await failure(Reply(body=body), LMRefused))


async def test_content_in_parts_is_joined_and_an_empty_text_is_a_text() -> None:
    parts = json.dumps({"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}]})
    with ScriptedServer([Reply(body=parts), Reply("")]) as server:
        async with open_client(server.url) as lm:
            assert (await ask(lm))[0].text == "ab"
            assert (await ask(lm))[0].text == ""


async def test_a_reply_cut_by_the_token_limit_before_any_text_is_an_empty_text() -> None:
    with ScriptedServer([Reply(null_content=True, finish_reason="length")]) as server:
        async with open_client(server.url) as lm:
            completion, _ = await ask(lm)
    assert (completion.text, completion.finish_reason) == ("", "length")


@pytest.mark.parametrize("cut", [0, 40, 150, 600])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_connection_cut_anywhere_is_an_error_that_may_be_retried(stream: bool, cut: int) -> None:
    caught = await failure(Reply("x" * 1000, cut_after=cut), LMError, stream=stream)
    assert caught.retryable


async def test_a_stream_without_an_end_was_cut() -> None:
    caught = await failure(Reply("x" * 100, no_end=True), LMReplyError, stream=True)
    assert "cut the reply in the middle" in str(caught)


async def test_malformed_events_in_a_stream_are_no_reply() -> None:
    reply = Reply(body='data: {"choices": [\n\n', headers={"Content-Type": "text/event-stream"})
    assert "malformed" in str(await failure(reply, LMReplyError, stream=True))


async def test_a_stream_in_odd_but_allowed_form_is_read() -> None:
    piece = '{"choices":[{"delta":{"content":"%s"},"finish_reason":%s}]}'
    body = (
        ": comment\r\n\r\nevent: x\r\ndata:" + piece % ("a", "null") + "\r\n\r\ndata: " + piece % ("b", '"stop"') + "\r\n\r\n"
    )
    with ScriptedServer([Reply(body=body, headers={"Content-Type": "text/event-stream; charset=utf-8"})]) as server:
        async with open_client(server.url) as lm:
            completion, pieces = await ask(lm, stream=True)
    assert (completion.text, pieces) == ("ab", ["a", "b"])


async def test_a_server_that_answers_a_stream_whole_is_understood() -> None:
    body = json.dumps({"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]})
    with ScriptedServer([Reply(body=body)]) as server:
        async with open_client(server.url) as lm:
            completion, pieces = await ask(lm, stream=True)
    assert (completion.text, pieces) == ("whole", ["whole"])


async def test_lone_surrogates_are_replaced_both_ways() -> None:
    body = '{"choices": [{"message": {"content": "a\\ud800b"}, "finish_reason": "stop"}]}'
    with ScriptedServer([Reply(body=body)]) as server:
        async with open_client(server.url) as lm:
            message: Message = {"role": "user", "content": "x\udcffy 🌍"}
            completion = await lm.complete([message], max_output_tokens=5, timeout=20)
    assert server.requests[0].prompt == "x?y 🌍"
    assert completion.text == "a?b"


async def test_a_dropped_connection_and_a_refused_one_are_told_apart() -> None:
    caught = await failure(Reply(drop=True), LMUnavailable)
    assert "was lost" in str(caught)
    with ScriptedServer() as server:
        url = server.url
    async with open_client(url) as lm:
        with pytest.raises(LMUnavailable, match=r"no server listens at 127\.0\.0\.1:\d+"):
            await ask(lm)


async def test_an_address_without_a_server_is_told_and_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: object, **more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with open_client("http://no-such-host.invalid:8000/v1") as lm:
        with pytest.raises(LMUnavailable) as caught:
            await ask(lm)
    assert str(caught.value) == (
        "no server was found at no-such-host.invalid:8000 (Name or service not known): check its address"
    )
    assert not isinstance(caught.value.__cause__, Spent)


@pytest.mark.matrix  # it waits for as long as users would
@pytest.mark.parametrize("stream", [False, True])
async def test_a_port_that_takes_no_tls_is_told_and_counts_for_nothing(stream: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with open_client(f"https://127.0.0.1:{silent.getsockname()[1]}/v1") as lm:
            with pytest.raises(LMUnavailable, match=r"no connection within 30 s, as of https to a port for http") as caught:
                await ask(lm, stream=stream, patience=60)
    assert caught.value.unreached
    assert not isinstance(caught.value.__cause__, Spent)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_that_does_not_come_in_time_is_given_up_and_the_connection_closed(stream: bool) -> None:
    with ScriptedServer([Reply(hold=True)]) as server:
        async with open_client(server.url) as lm:
            with pytest.raises(LMUnavailable, match=r"within 0\.3 s"):
                await ask(lm, stream=stream, patience=0.3)
            requests = await anyio.to_thread.run_sync(lambda: server.wait_for(1, ended=True))
    assert requests[0].aborted


async def test_a_stream_that_drips_is_bounded_by_the_whole_time() -> None:
    with ScriptedServer([Reply("x" * 100_000, pause=0.1)]) as server:
        async with open_client(server.url) as lm:
            with pytest.raises(LMUnavailable, match="no whole reply"):
                await ask(lm, stream=True, patience=0.5)


async def test_a_cancelled_request_closes_its_connection() -> None:
    with ScriptedServer([Reply(hold=True)]) as server:
        async with open_client(server.url) as lm, anyio.create_task_group() as group:
            group.start_soon(ask, lm)
            await anyio.to_thread.run_sync(lambda: server.wait_for(1))
            group.cancel_scope.cancel()
        assert server.wait_for(1, ended=True)[0].aborted


async def test_an_endless_reply_is_cut_off() -> None:
    class Endless(BaseHTTPRequestHandler):
        sent = 0

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            block = b"data: " + b"x" * (1024 * 1024) + b"\n" if self.path.startswith("/lines") else b"x" * (1024 * 1024)
            try:
                while Endless.sent < 1024:
                    self.wfile.write(block)
                    Endless.sent += 1
            except OSError:
                pass

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with plain_server(Endless) as url:
        async with open_client(url) as lm:
            with pytest.raises(LMReplyError, match="longer than"):
                await ask(lm, stream=True, patience=60)
    assert Endless.sent < 200


async def test_a_packed_reply_is_refused_before_it_is_unpacked() -> None:
    reply = Reply(body="xxxx", headers={"Content-Encoding": "gzip"})
    assert "packs its replies" in str(await failure(reply, LMReplyError))
    with ScriptedServer(["yes"]) as server:
        async with open_client(server.url) as lm:
            await ask(lm)
    assert server.requests[0].headers["accept-encoding"] == "identity"


GARBAGE = {
    "no http": b"hello\r\n\r\n",
    "a bad status": b"HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\n{}",
    "a bad length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
    "a bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    "a bad header": b"HTTP/1.1 200 OK\r\nContent Length\x00: 2\r\n\r\n{}",
    "an endless header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    "other statuses": b"HTTP/1.1 204 No Content\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", GARBAGE)
async def test_what_is_not_http_is_an_lm_error(name: str, stream: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(GARBAGE[name])
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, open_client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1") as lm:
        with pytest.raises(LMError) as caught:
            await ask(lm, stream=stream)
    assert len(str(caught.value)) < 420


@contextmanager
def plain_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.mark.parametrize("stream", [False, True])
async def test_no_key_sends_no_authorization_whatever_the_environment_holds(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_WEBHOOK_SECRET"):
        monkeypatch.setenv(name, "canary-" + name)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer canary\nX-Secret: canary")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with ScriptedServer(["yes", "yes"]) as server:
        async with open_client(server.url) as lm, open_client(server.url, KEY) as other:
            await ask(lm, stream=stream)
            await ask(other, stream=stream)
    none, ours = (request.headers for request in server.requests)
    assert "authorization" not in none
    assert ours["authorization"] == f"Bearer {KEY}"
    assert "canary" not in (json.dumps(none) + json.dumps(ours)).replace(KEY, "")


async def test_the_environments_base_url_never_takes_a_key_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(["yes"]) as server, ScriptedServer(["no"]) as other:
        monkeypatch.setenv("OPENAI_BASE_URL", other.url)
        async with open_client(server.url, KEY) as lm:
            assert (await ask(lm))[0].text == "yes"
    assert other.requests == []


async def test_what_the_environment_says_for_openai_goes_to_openai_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: blue\nauthorization: Bearer other")
    openais, others = Connection("https://api.openai.com/v1", KEY), Connection("https://api.openai.com.example/v1", KEY)
    for connection, organisation, team in ((openais, "org-1", "blue"), (others, None, None)):
        headers = connection.headers
        assert headers.get("OpenAI-Organization") == organisation
        assert headers.get("X-Team") == team
        assert [value for name, value in headers.items() if name.lower() == "authorization"] == [f"Bearer {KEY}"]
        await connection.aclose()


async def test_a_redirect_is_not_followed() -> None:
    with ScriptedServer(["stolen"]) as other:
        reply = Reply(status=307, headers={"Location": other.url + "/chat/completions"})
        assert "redirects elsewhere" in str(await failure(reply, LMRefused, key=KEY))
    assert other.requests == []


async def test_loopback_is_asked_around_a_proxy_and_other_hosts_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ScriptedServer(["direct"]) as server, ScriptedServer(["through the proxy"]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        async with open_client(server.url) as lm:
            assert (await ask(lm))[0].text == "direct"
        async with open_client("http://models.example.invalid/v1") as lm:
            assert (await ask(lm))[0].text == "through the proxy"
    assert proxy.requests[0].path == "http://models.example.invalid/v1/chat/completions"


async def test_connections_are_used_again_after_streams() -> None:
    ports: set[str] = set()

    class Ports(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            ports.add(str(self.client_address[1]))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            piece = {"choices": [{"message": {"content": "x"}, "delta": {"content": "x"}, "finish_reason": "stop"}]}
            data = json.dumps(piece).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream" if body.get("stream") else "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (b"data: " + data + b"\n\n", b"data: [DONE]\n\n") if body.get("stream") else (data,):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with plain_server(Ports) as url:
        async with open_client(url) as lm:
            for stream in (True, False, True, True, False):
                assert (await ask(lm, stream=stream))[0].text == "x"
    assert len(ports) == 1


async def test_a_client_may_be_used_by_many_at_once_before_it_is_open() -> None:
    with ScriptedServer(lambda request: Reply("yes", hold=True)) as server:
        async with open_client(server.url) as lm:
            asked = asyncio.gather(*(ask(lm) for _ in range(64)))
            await asyncio.to_thread(server.wait_for, 64)
            server.release()
            replies = await asked
        assert {completion.text for completion, _ in replies} == {"yes"}
        assert server.peak == 64


def test_secrets_are_taken_out_of_texts() -> None:
    assert KEY not in redact(f"key {KEY} is wrong", KEY)
    masked = KEY[:12] + "********" + KEY[-4:]
    assert KEY[:12] not in redact(f"Incorrect API key provided: {masked}.", KEY)
    for text in (
        "sk-abcdefghijklmnopqrst1vwx",
        "Bearer abc.def-ghi",
        "http://me:pass@host/x",
        "AIzaSyA1234567890abcdefghij",
        "gsk_0123456789abcdef",
    ):
        assert "[redacted]" in redact(text), text
    for plain in (
        "the task-force asked-questions",
        "https://platform.openai.com/account/api-keys",
        "key-value pairs",
        "sk-learn-contributors",
        "sketch",
    ):
        assert redact(plain) == plain


def test_a_line_is_one_printable_line_of_bounded_length() -> None:
    line = one_line("a\nb\x1b[31m\u202ec\x00" + "d" * 10_000)
    assert line.startswith("a b [31m c d")
    assert line.isprintable()
    assert len(line) <= 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["stop", "length", KEY]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "delta", "content", "finish_reason", "usage", "error", "code", "refusal", "text"]
            )
            | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(data=JSON, noise=st.binary(max_size=30))
def test_whatever_a_server_sends_is_a_completion_or_an_error_of_ours(data: Any, noise: bytes) -> None:
    body = json.dumps(data).encode()

    def check(completion: Completion) -> None:
        assert KEY not in completion.text
        completion.text.encode()
        assert completion.usage is None or completion.usage.total_tokens >= 0

    for whole in (body, noise, b'{"choices": [%s]}' % body, body[:-1]):
        with contextlib.suppress(LMError, Failure):
            check(WholeReply("server", KEY, whole).completion("m"))

    async def read() -> None:
        async def chunks() -> AsyncGenerator[bytes]:
            for chunk in (b"data: " + body + b"\n\n", noise, b'\ndata: {"choices": [' + body + b"]}\r\n", b"data: [DONE]\n"):
                yield chunk

        pieces: list[str] = []
        reply = StreamedReply("server", KEY, pieces.append)
        await reply.read(chunks())
        check(reply.completion("m"))

    with contextlib.suppress(LMError, Failure):
        anyio.run(read)


NESTS = [
    '{"error": %s}',
    '{"error": {"message": %s}}',
    '{"error": "{\\"error\\": %s}"}',
    '{"choices": [{"message": {"content": %s}}]}',
    '{"choices": [{"message": {"content": "x"}, "finish_reason": %s}]}',
    '{"usage": %s}',
]


@pytest.mark.parametrize("depth", [100, 900, 990, 5000])
@pytest.mark.parametrize("place", NESTS)
def test_deep_nesting_anywhere_is_no_surprise(place: str, depth: int) -> None:
    body = (place % ("[" * depth + "]" * depth)).encode()
    for status in (200, 400):
        with contextlib.suppress(LMError):
            try:
                if status == 200:
                    WholeReply("server", KEY, body).completion("m")
                else:
                    raise Failure(status, {}, body)
            except Failure as failure:
                raise failure.to_error(Told("m", "server", KEY)) from None
