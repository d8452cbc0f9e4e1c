"""Images: what was asked for is recorded and counts as built. Only a snapshot of a sandbox has files of its own."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.modal_local.routes import Metadata

BUILT = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)


class Images:
    """The images of one plane, by id. The same definition has the same id."""

    def __init__(self, folder: Path) -> None:
        self.definitions: dict[str, dict[str, Any]] = {}
        self.snapshots: dict[str, Path] = {}
        self._folder = folder

    def new_snapshot(self, name: str) -> Path:
        """Give the file for a snapshot, whose image is named after it."""
        path = self._folder / f"im-{hashlib.sha256(name.encode()).hexdigest()[:22]}.tar"
        self.snapshots[path.stem] = path
        return path

    def files(self, image: str) -> Path | None:
        """Give the files that an image adds, through however many layers it was built on a snapshot."""
        while image not in self.snapshots:
            bases = self.definitions.get(image, {}).get("base_images", [])
            if not bases:
                return None
            image = bases[0]["image_id"]
        return self.snapshots[image]

    def chain(self, image: str) -> list[dict[str, Any]]:
        """Give the definitions of an image's layers, its base first."""
        definition = self.definitions[image]
        bases = [base["image_id"] for base in definition.get("base_images", [])]
        return [layer for base in bases for layer in self.chain(base)] + [definition]

    def user(self, image: str) -> int:
        """Give the user that an image's last `USER` names by number; root where there is none."""
        if image not in self.definitions:
            return 0
        lines = [line for layer in self.chain(image) for line in layer.get("dockerfile_commands", [])]
        return int(([0] + [line.split()[1] for line in lines if line.startswith("USER ")])[-1])

    async def ImageGetOrCreate(
        self, request: api_pb2.ImageGetOrCreateRequest, _call: Metadata
    ) -> api_pb2.ImageGetOrCreateResponse:
        name = f"im-{hashlib.sha256(request.image.SerializeToString(deterministic=True)).hexdigest()[:22]}"
        self.definitions[name] = MessageToDict(request.image, preserving_proto_field_name=True)
        return api_pb2.ImageGetOrCreateResponse(image_id=name, result=BUILT, metadata=api_pb2.ImageMetadata())

    async def ImageJoinStreaming(
        self, request: api_pb2.ImageJoinStreamingRequest, _call: Metadata
    ) -> AsyncIterator[api_pb2.ImageJoinStreamingResponse]:
        self._known(request.image_id)
        yield api_pb2.ImageJoinStreamingResponse(result=BUILT, metadata=api_pb2.ImageMetadata(), eof=True)

    async def ImageFromId(self, request: api_pb2.ImageFromIdRequest, _call: Metadata) -> api_pb2.ImageFromIdResponse:
        self._known(request.image_id)
        return api_pb2.ImageFromIdResponse(image_id=request.image_id, metadata=api_pb2.ImageMetadata())

    def _known(self, image: str) -> None:
        if image not in self.definitions and image not in self.snapshots:
            raise GRPCError(Status.NOT_FOUND, f"no image {image}")
