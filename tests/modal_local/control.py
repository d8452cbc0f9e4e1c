"""The control plane's procedures for sandboxes, of both back ends: V2, the default of the SDK, and V1 (`gpu=`)."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.modal_local.credentials import Credentials
from tests.modal_local.objects import Objects
from tests.modal_local.routes import Metadata
from tests.modal_local.sandboxes import TERMINATED, Result, Sandbox, Sandboxes
from tests.modal_local.streams import ClosedError
from tests.modal_local.tunnels import HOST

LONGEST = 24 * 3600
"""The longest `timeout` that Modal's documentation allows a sandbox."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to create a sandbox, as it came."""

    sandbox: str
    backend: str
    app: str
    request: dict[str, Any]


class Control:
    """Serves the sandbox procedures of `ModalClient`."""

    def __init__(self, sandboxes: Sandboxes, objects: Objects, credentials: Credentials) -> None:
        self.asked: list[Asked] = []
        self.router_url = ""
        self._sandboxes, self._objects, self._credentials = sandboxes, objects, credentials
        self._creating: dict[str, asyncio.Task[Sandbox]] = {}

    async def SandboxCreateV2(self, request: api_pb2.SandboxCreateV2Request, call: Metadata) -> api_pb2.SandboxCreateV2Response:
        if request.definition.resources.gpu_config.gpu_type:
            raise GRPCError(Status.INVALID_ARGUMENT, "GPUs are not supported by V2 Sandboxes")
        env = self._objects.values(request.secret_sources, request.definition.secret_ids)
        sandbox = await self._once(call, self._create("V2", request, env))
        return api_pb2.SandboxCreateV2Response(
            sandbox_id=sandbox.id,
            task_id=sandbox.task_id,
            metadata=self._metadata(sandbox),
            tunnels=self._tunnels(sandbox),
            command_router_access=self._access(sandbox.task_id),
        )

    async def SandboxCreate(self, request: api_pb2.SandboxCreateRequest, call: Metadata) -> api_pb2.SandboxCreateResponse:
        env = self._objects.values((), request.definition.secret_ids)
        sandbox = await self._once(call, self._create("V1", request, env))
        return api_pb2.SandboxCreateResponse(sandbox_id=sandbox.id, metadata=self._metadata(sandbox))

    async def _once(self, call: Metadata, work: Coroutine[Any, Any, Sandbox]) -> Sandbox:
        """Do this once for all tries of one call, and to its end even if the client's connection is lost."""
        key = str(call.get("x-idempotency-key") or uuid.uuid4())
        if key in self._creating:
            work.close()
        else:
            self._creating[key] = asyncio.create_task(work)
        return await asyncio.shield(self._creating[key])

    async def _create(self, backend: str, request: Any, env: dict[str, str]) -> Sandbox:
        definition: api_pb2.Sandbox = request.definition
        if request.app_id not in self._objects.apps:
            raise GRPCError(Status.NOT_FOUND, f"no app {request.app_id}")
        if not 0 < definition.timeout_secs <= LONGEST:
            raise GRPCError(Status.INVALID_ARGUMENT, f"timeout must be between 1 and {LONGEST} seconds")
        if definition.name and self._sandboxes.named(request.app_id, definition.name, over=False):
            raise GRPCError(Status.ALREADY_EXISTS, f"a sandbox with the name {definition.name!r} is running")
        sandbox = Sandbox(definition, request.app_id, _tags(request.tags), env, backend)
        self.asked.append(Asked(sandbox.id, backend, self._objects.apps[request.app_id], _as_dict(request)))
        await self._sandboxes.create(sandbox, self._objects.contents(definition.mount_ids))
        return sandbox

    def _access(self, task: str) -> api_pb2.CommandRouterAccess:
        return api_pb2.CommandRouterAccess(jwt=self._credentials.token(task), url=self.router_url)

    def _metadata(self, sandbox: Sandbox) -> api_pb2.SandboxHandleMetadata:
        result = sandbox.result if sandbox.over.is_set() else None
        return api_pb2.SandboxHandleMetadata(app_id=sandbox.app_id, result=result)

    def _tunnels(self, sandbox: Sandbox) -> list[api_pb2.TunnelData]:
        made = []
        for spec in sandbox.definition.open_ports.ports:
            tunnel = sandbox.tunnels.get(spec.port)
            if tunnel is None:
                continue
            data = api_pb2.TunnelData(host=HOST, port=tunnel.port, container_port=spec.port)
            if spec.unencrypted:
                data.unencrypted_host, data.unencrypted_port = HOST, tunnel.port
            made.append(data)
        return made

    def _sandbox(self, name: str) -> Sandbox:
        if name not in self._sandboxes.by_id:
            raise GRPCError(Status.NOT_FOUND, f"Sandbox with ID {name} not found")
        return self._sandboxes.by_id[name]

    async def SandboxWait(self, request: api_pb2.SandboxWaitRequest, _call: Metadata) -> api_pb2.SandboxWaitResponse:
        sandbox = self._sandbox(request.sandbox_id)
        if request.timeout > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(sandbox.over.wait(), request.timeout)
        return api_pb2.SandboxWaitResponse(result=sandbox.result, metadata=self._metadata(sandbox))

    async def SandboxTerminate(
        self, request: api_pb2.SandboxTerminateRequest, _call: Metadata
    ) -> api_pb2.SandboxTerminateResponse:
        sandbox = self._sandbox(request.sandbox_id)
        already = sandbox.result if sandbox.over.is_set() else None
        sandbox.end(Result(status=TERMINATED, exception="terminated"))
        return api_pb2.SandboxTerminateResponse(existing_result=already)

    async def SandboxGetTunnels(
        self, request: api_pb2.SandboxGetTunnelsRequest, _call: Metadata
    ) -> api_pb2.SandboxGetTunnelsResponse:
        return api_pb2.SandboxGetTunnelsResponse(tunnels=self._tunnels(self._sandbox(request.sandbox_id)))

    async def SandboxGetTaskId(
        self, request: api_pb2.SandboxGetTaskIdRequest, _call: Metadata
    ) -> api_pb2.SandboxGetTaskIdResponse:
        sandbox = self._sandbox(request.sandbox_id)
        if sandbox.over.is_set():
            return api_pb2.SandboxGetTaskIdResponse(task_result=sandbox.result)
        return api_pb2.SandboxGetTaskIdResponse(task_id=sandbox.task_id)

    async def SandboxTagsGet(self, request: api_pb2.SandboxTagsGetRequest, _call: Metadata) -> api_pb2.SandboxTagsGetResponse:
        return api_pb2.SandboxTagsGetResponse(tags=_tag_protos(self._sandbox(request.sandbox_id).tags))

    async def SandboxTagsSet(self, request: api_pb2.SandboxTagsSetRequest, _call: Metadata) -> Empty:
        self._sandbox(request.sandbox_id).tags = _tags(request.tags)
        return Empty()

    async def SandboxList(self, request: api_pb2.SandboxListRequest, _call: Metadata) -> api_pb2.SandboxListResponse:
        wanted, before = _tags(request.tags).items(), request.before_timestamp or float("inf")
        found = [
            api_pb2.SandboxInfo(
                id=box.id,
                created_at=box.created_at,
                app_id=box.app_id,
                tags=_tag_protos(box.tags),
                name=box.definition.name,
                image_id=box.definition.image_id,
                timeout_secs=box.definition.timeout_secs,
                metadata=self._metadata(box),
                task_info=api_pb2.TaskInfo(id=box.task_id, sandbox_id=box.id, started_at=box.created_at),
            )
            for box in self._sandboxes.by_id.values()
            if box.created_at < before
            and (not request.app_id or box.app_id == request.app_id)
            and (request.include_finished or not box.over.is_set())
            and wanted <= box.tags.items()
        ]
        return api_pb2.SandboxListResponse(sandboxes=sorted(found, key=lambda info: -info.created_at)[:100])

    async def SandboxGetFromName(
        self, request: api_pb2.SandboxGetFromNameRequest, _call: Metadata
    ) -> api_pb2.SandboxGetFromNameResponse:
        app = self._objects.app(request.app_name)
        sandbox = self._sandboxes.named(app, request.sandbox_name, request.include_terminated)
        if sandbox is None:
            raise GRPCError(Status.NOT_FOUND, f"no running sandbox {request.sandbox_name!r} in the app {request.app_name!r}")
        return api_pb2.SandboxGetFromNameResponse(sandbox_id=sandbox.id, metadata=self._metadata(sandbox))

    SandboxWaitV2, SandboxTerminateV2, SandboxGetTunnelsV2 = SandboxWait, SandboxTerminate, SandboxGetTunnels
    SandboxGetTaskIdV2, SandboxTagsGetV2, SandboxTagsSetV2 = SandboxGetTaskId, SandboxTagsGet, SandboxTagsSet
    SandboxListV2, SandboxGetFromNameV2 = SandboxList, SandboxGetFromName

    async def SandboxGetCommandRouterAccess(
        self, request: api_pb2.SandboxGetCommandRouterAccessRequest, _call: Metadata
    ) -> api_pb2.SandboxGetCommandRouterAccessResponse:
        task = request.task_id or self._sandbox(request.sandbox_id).task_id
        self._running(task)
        access = self._access(task)
        return api_pb2.SandboxGetCommandRouterAccessResponse(jwt=access.jwt, url=access.url)

    async def TaskGetCommandRouterAccess(
        self, request: api_pb2.TaskGetCommandRouterAccessRequest, _call: Metadata
    ) -> api_pb2.TaskGetCommandRouterAccessResponse:
        self._running(request.task_id)
        access = self._access(request.task_id)
        return api_pb2.TaskGetCommandRouterAccessResponse(jwt=access.jwt, url=access.url)

    def _running(self, task: str) -> None:
        sandbox = self._sandboxes.by_task.get(task)
        if sandbox is None:
            raise GRPCError(Status.NOT_FOUND, f"no task {task}")
        if sandbox.over.is_set():
            raise GRPCError(Status.FAILED_PRECONDITION, f"Sandbox {sandbox.id} has already shut down")

    async def SandboxGetLogs(
        self, request: api_pb2.SandboxGetLogsRequest, _call: Metadata
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        sandbox = self._sandbox(request.sandbox_id)
        assert sandbox.entry is not None
        errors = request.file_descriptor == api_pb2.FILE_DESCRIPTOR_STDERR
        offset = int(request.last_entry_id or 0)
        async for data in (sandbox.entry.errors if errors else sandbox.entry.output).read(offset):
            offset += len(data)
            items = [api_pb2.TaskLogs(data=data.decode(errors="replace"), file_descriptor=request.file_descriptor)]
            yield api_pb2.TaskLogsBatch(task_id=sandbox.task_id, items=items, entry_id=str(offset))
        yield api_pb2.TaskLogsBatch(task_id=sandbox.task_id, eof=True, entry_id=str(offset))

    async def SandboxStdinWrite(
        self, request: api_pb2.SandboxStdinWriteRequest, _call: Metadata
    ) -> api_pb2.SandboxStdinWriteResponse:
        sandbox = self._sandbox(request.sandbox_id)
        assert sandbox.entry is not None
        try:
            await sandbox.entry.given.write(sandbox.entry.given.size, request.input, request.eof)
        except ClosedError as error:
            raise GRPCError(Status.FAILED_PRECONDITION, str(error)) from error
        return api_pb2.SandboxStdinWriteResponse()


def _tags(protos: Iterable[api_pb2.SandboxTag]) -> dict[str, str]:
    return {tag.tag_name: tag.tag_value for tag in protos}


def _tag_protos(tags: dict[str, str]) -> list[api_pb2.SandboxTag]:
    return [api_pb2.SandboxTag(tag_name=name, tag_value=value) for name, value in tags.items()]


def _as_dict(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return fields
