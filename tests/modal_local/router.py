"""A task's command router: exec, standard streams, readiness, snapshots. What the SDK asks of the worker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import task_command_router_pb2 as rpc

from tests.modal_local import probes, snapshots
from tests.modal_local.boxes import Box
from tests.modal_local.credentials import Credentials
from tests.modal_local.images import Images
from tests.modal_local.objects import Objects
from tests.modal_local.processes import Exec, Process
from tests.modal_local.routes import Metadata
from tests.modal_local.sandboxes import Sandbox, Sandboxes
from tests.modal_local.streams import ClosedError, Input, OffsetError, Output


class Router:
    """Serves `TaskCommandRouter` for all tasks of a plane."""

    def __init__(self, sandboxes: Sandboxes, objects: Objects, images: Images, credentials: Credentials) -> None:
        self._sandboxes, self._objects, self._images, self._credentials = sandboxes, objects, images, credentials

    def _sandbox(self, task: str, call: Metadata) -> Sandbox:
        if self._credentials.use(str(call.get("authorization", "")).removeprefix("Bearer ")) != task:
            raise GRPCError(Status.PERMISSION_DENIED, "this token is for another task")
        sandbox = self._sandboxes.by_task.get(task)
        if sandbox is None:
            raise GRPCError(Status.NOT_FOUND, f"no task {task}")
        if not sandbox.take_call():
            raise GRPCError(Status.UNAVAILABLE, "the worker is gone")
        return sandbox

    def _box(self, task: str, call: Metadata) -> tuple[Sandbox, Box]:
        sandbox = self._sandbox(task, call)
        if sandbox.box is None or sandbox.ending:
            raise GRPCError(Status.NOT_FOUND, f"task {task} has already shut down")
        return sandbox, sandbox.box

    def _exec(self, request: Any, call: Metadata) -> Exec:
        sandbox = self._sandbox(request.task_id, call)
        if request.exec_id not in sandbox.execs:
            raise GRPCError(Status.NOT_FOUND, f"no exec {request.exec_id}")
        return sandbox.execs[request.exec_id]

    async def TaskExecStart(self, request: rpc.TaskExecStartRequest, call: Metadata) -> rpc.TaskExecStartResponse:
        sandbox, _ = self._box(request.task_id, call)
        env = self._objects.values(request.secret_sources, request.secret_ids)
        await sandbox.exec(request.exec_id, request.command_args, env, request.workdir, request.timeout_secs)
        return rpc.TaskExecStartResponse()

    async def TaskExecStdioRead(
        self, request: rpc.TaskExecStdioReadRequest, call: Metadata
    ) -> AsyncIterator[rpc.TaskExecStdioReadResponse]:
        process = self._exec(request, call)
        errors = request.file_descriptor == rpc.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDERR
        async for data in _read(process.errors if errors else process.output, request.offset):
            yield rpc.TaskExecStdioReadResponse(data=data)

    async def TaskExecStdinWrite(
        self, request: rpc.TaskExecStdinWriteRequest, call: Metadata
    ) -> rpc.TaskExecStdinWriteResponse:
        process = self._exec(request, call)
        self._sandboxes.by_task[request.task_id].touch()
        await _write(process.given, request.offset, request.data, request.eof)
        return rpc.TaskExecStdinWriteResponse()

    async def TaskExecStdinWriteStream(
        self, requests: AsyncIterator[rpc.TaskExecStdinWriteStreamRequest], call: Metadata
    ) -> rpc.TaskExecStdinWriteStreamResponse:
        start = (await anext(requests)).start
        given, offset = self._exec(start, call).given, start.offset
        task = asyncio.current_task()
        assert task is not None
        given.begin(task)
        async for request in requests:
            ended = request.WhichOneof("payload") == "end"
            await _write(given, offset, request.data, ended)
            offset += len(request.data)
            if ended:
                return rpc.TaskExecStdinWriteStreamResponse()
        raise GRPCError(Status.INVALID_ARGUMENT, "the stream of standard input ended without its end")

    async def TaskExecStdinStatus(
        self, request: rpc.TaskExecStdinStatusRequest, call: Metadata
    ) -> rpc.TaskExecStdinStatusResponse:
        given = self._exec(request, call).given
        given.evict()
        return rpc.TaskExecStdinStatusResponse(num_bytes_written=given.size, closed=given.closed)

    async def TaskExecPoll(self, request: rpc.TaskExecPollRequest, call: Metadata) -> rpc.TaskExecPollResponse:
        return rpc.TaskExecPollResponse(**_ending(self._exec(request, call)))

    async def TaskExecWait(self, request: rpc.TaskExecWaitRequest, call: Metadata) -> rpc.TaskExecWaitResponse:
        process = self._exec(request, call)
        await process.over.wait()
        return rpc.TaskExecWaitResponse(**_ending(process))

    async def SandboxStdioReadV2(
        self, request: rpc.SandboxStdioReadV2Request, call: Metadata
    ) -> AsyncIterator[rpc.SandboxStdioReadV2Response]:
        entry = self._entry(request.task_id, call)
        errors = request.file_descriptor == rpc.SANDBOX_STDIO_FILE_DESCRIPTOR_STDERR
        offset = request.offset
        async for data in _read(entry.errors if errors else entry.output, offset):
            yield rpc.SandboxStdioReadV2Response(data=data, starting_offset=offset)
            offset += len(data)

    async def SandboxStdinWriteV2(
        self, request: rpc.SandboxStdinWriteV2Request, call: Metadata
    ) -> rpc.SandboxStdinWriteV2Response:
        await _write(self._entry(request.task_id, call).given, request.offset, request.data, request.eof)
        return rpc.SandboxStdinWriteV2Response()

    def _entry(self, task: str, call: Metadata) -> Process:
        entry = self._sandbox(task, call).entry
        if entry is None:
            raise GRPCError(Status.NOT_FOUND, f"task {task} did not start")
        return entry

    async def SandboxWaitUntilReady(
        self, request: rpc.SandboxWaitUntilReadyTcrRequest, call: Metadata
    ) -> rpc.SandboxWaitUntilReadyTcrResponse:
        sandbox, box = self._box(request.task_id, call)
        if not sandbox.definition.HasField("readiness_probe"):
            raise GRPCError(Status.FAILED_PRECONDITION, "the sandbox has no readiness probe")
        try:
            await asyncio.wait_for(probes.ready(sandbox, box), request.timeout)
        except TimeoutError as error:
            raise GRPCError(Status.DEADLINE_EXCEEDED, "the sandbox did not become ready in time") from error
        return rpc.SandboxWaitUntilReadyTcrResponse(ready_at=time.time())

    async def TaskSnapshotFilesystem(
        self, request: rpc.TaskSnapshotFilesystemRequest, call: Metadata
    ) -> rpc.TaskSnapshotFilesystemResponse:
        _, box = self._box(request.task_id, call)
        path = self._images.new_snapshot(request.snapshot_id)
        await snapshots.pack(box, "/", path)
        return rpc.TaskSnapshotFilesystemResponse(image_id=path.stem)

    async def TaskSnapshotDirectory(
        self, request: rpc.TaskSnapshotDirectoryRequest, call: Metadata
    ) -> rpc.TaskSnapshotDirectoryResponse:
        _, box = self._box(request.task_id, call)
        path = self._images.new_snapshot(request.snapshot_id)
        await snapshots.pack(box, request.path.decode(), path)
        return rpc.TaskSnapshotDirectoryResponse(image_id=path.stem)

    async def TaskMountDirectory(self, request: rpc.TaskMountDirectoryRequest, call: Metadata) -> Empty:
        _, box = self._box(request.task_id, call)
        files = self._images.files(request.image_id)
        if files is None:
            raise GRPCError(Status.NOT_FOUND, f"no snapshot {request.image_id}")
        folder = request.path.decode()
        (box.root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        await snapshots.unpack(box, files, folder)
        return Empty()


async def _read(output: Output, offset: int) -> AsyncIterator[bytes]:
    try:
        async with contextlib.aclosing(output.read(offset)) as pieces:
            async for piece in pieces:
                yield piece
    except OffsetError as error:
        raise GRPCError(Status.OUT_OF_RANGE, str(error)) from error


async def _write(given: Input, offset: int, data: bytes, eof: bool) -> None:
    try:
        await given.write(offset, data, eof)
    except ClosedError as error:
        raise GRPCError(Status.FAILED_PRECONDITION, str(error)) from error
    except OffsetError as error:
        raise GRPCError(Status.INVALID_ARGUMENT, str(error)) from error


def _ending(process: Process) -> dict[str, int]:
    if process.code is None:
        return {}
    return {"code": process.code} if process.code >= 0 else {"signal": -process.code}
