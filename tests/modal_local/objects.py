"""Apps, environments, secrets, volumes and mounts: named things that a sandbox refers to.

Mounts hold the local files that an image adds (`add_local_file` and its kind), each below 4 MiB, as the SDK sends them
whole up to there. Volumes have names and ids and no contents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.modal_local.credentials import Credentials
from tests.modal_local.routes import Metadata

CREATE = (api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING, api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS)
BUILDER = "2025.06"


class Objects:
    """The named objects of one plane."""

    def __init__(self, credentials: Credentials) -> None:
        self.apps: dict[str, str] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.mounts: dict[str, list[api_pb2.MountFile]] = {}
        self._files: dict[str, bytes] = {}
        self._named: dict[tuple[str, str], str] = {}
        self._numbers = itertools.count(1)
        self._credentials = credentials

    def _id(self, prefix: str) -> str:
        return f"{prefix}-{next(self._numbers):022d}"

    def _find(self, prefix: str, name: str, creation: int) -> str:
        """Find an object by name or make it, as the request says; an object without a name is always new."""
        if not name:
            return self._id(prefix)
        if (prefix, name) not in self._named:
            if creation not in CREATE:
                raise GRPCError(Status.NOT_FOUND, f"no {prefix} with the name {name!r}")
            self._named[prefix, name] = self._id(prefix)
        return self._named[prefix, name]

    def app(self, name: str) -> str:
        """Give the id of an app that is there."""
        return self._find("ap", name, 0)

    def values(self, sources: Iterable[api_pb2.SecretSource], ids: Iterable[str] = ()) -> dict[str, str]:
        """Give the environment variables that secrets stand for; later ones win."""
        found: dict[str, str] = {}
        for name in ids:
            found.update(self._secret(name))
        for source in sources:
            found.update(self._secret(source.secret_id) if source.secret_id else source.env.contents)
        return found

    def contents(self, mounts: Iterable[str]) -> list[tuple[str, bytes, int]]:
        """Give the files of mounts: path, contents, mode."""
        files = [file for mount in mounts for file in self.mounts.get(mount, ())]
        return [(file.filename, self._files[file.sha256_hex], file.mode or 0o644) for file in files]

    def _secret(self, name: str) -> dict[str, str]:
        if name not in self.secrets:
            raise GRPCError(Status.NOT_FOUND, f"no secret {name}")
        return self.secrets[name]

    async def ClientHello(self, _request: Empty, _call: Metadata) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse(image_builder_version=BUILDER)

    async def AuthTokenGet(self, _request: api_pb2.AuthTokenGetRequest, _call: Metadata) -> api_pb2.AuthTokenGetResponse:
        return api_pb2.AuthTokenGetResponse(token=self._credentials.token("control"))

    async def EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest, _call: Metadata
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        settings = api_pb2.EnvironmentSettings(image_builder_version=BUILDER)
        metadata = api_pb2.EnvironmentMetadata(name=request.deployment_name or "main", settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id=self._find("en", "main", CREATE[0]), metadata=metadata)

    async def AppGetOrCreate(self, request: api_pb2.AppGetOrCreateRequest, _call: Metadata) -> api_pb2.AppGetOrCreateResponse:
        app = self._find("ap", request.app_name, request.object_creation_type)
        self.apps[app] = request.app_name
        metadata = api_pb2.AppHandleMetadata(description=request.app_name, app_id=app)
        return api_pb2.AppGetOrCreateResponse(app_id=app, handle_metadata=metadata)

    async def SecretGetOrCreate(
        self, request: api_pb2.SecretGetOrCreateRequest, _call: Metadata
    ) -> api_pb2.SecretGetOrCreateResponse:
        name = self._find("st", request.deployment_name, request.object_creation_type)
        if request.env_dict or name not in self.secrets:
            self.secrets[name] = dict(request.env_dict)
        if missing := set(request.required_keys) - set(self.secrets[name]):
            raise GRPCError(Status.FAILED_PRECONDITION, f"the secret has no {', '.join(sorted(missing))}")
        return api_pb2.SecretGetOrCreateResponse(secret_id=name)

    async def VolumeGetOrCreate(
        self, request: api_pb2.VolumeGetOrCreateRequest, _call: Metadata
    ) -> api_pb2.VolumeGetOrCreateResponse:
        name = self._find("vo", request.deployment_name, request.object_creation_type)
        metadata = api_pb2.VolumeMetadata(name=request.deployment_name, version=request.version)
        return api_pb2.VolumeGetOrCreateResponse(volume_id=name, version=request.version, metadata=metadata)

    async def MountGetOrCreate(
        self, request: api_pb2.MountGetOrCreateRequest, _call: Metadata
    ) -> api_pb2.MountGetOrCreateResponse:
        name = self._find("mo", request.deployment_name, CREATE[0])
        self.mounts[name] = list(request.files)
        return api_pb2.MountGetOrCreateResponse(mount_id=name)

    async def MountBatchedCheckExistence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest, _call: Metadata
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        missing = [digest for digest in request.sha256_hex_hashes if digest not in self._files]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def MountPutFile(self, request: api_pb2.MountPutFileRequest, _call: Metadata) -> api_pb2.MountPutFileResponse:
        if request.WhichOneof("data_oneof") == "data":
            self._files[request.sha256_hex] = request.data
        return api_pb2.MountPutFileResponse(exists=request.sha256_hex in self._files)
