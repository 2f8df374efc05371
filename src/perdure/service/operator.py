"""The operator's RPCs: search attributes, deleting namespaces, and what the cluster is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    AddSearchAttributesResponse,
    ClusterMetadata,
    DeleteNamespaceRequest,
    DeleteNamespaceResponse,
    ListClustersRequest,
    ListClustersResponse,
    ListSearchAttributesRequest,
    ListSearchAttributesResponse,
    RemoveSearchAttributesRequest,
    RemoveSearchAttributesResponse,
)

from perdure.api.errors import AlreadyExists, InvalidArgument, NotFound
from perdure.service import search_attributes
from perdure.service.namespaces import CLUSTER, DELETED, Namespace

if TYPE_CHECKING:
    from perdure.service.node import Node


class OperatorRPCs:
    """OperatorService, as a part of the service."""

    node: Node

    # -- search attributes -------------------------------------------------------------------------

    async def add_search_attributes(
        self, request: AddSearchAttributesRequest
    ) -> AddSearchAttributesResponse:
        """Register custom attributes in a namespace; those that are there with that type stay.

        Raises:
            InvalidArgument: none named, a reserved name, no type, or too many in the namespace.
            AlreadyExists: one is registered with another type. Nothing was added.
        """
        self.node.namespaces.get(request.namespace or "default")
        if not request.search_attributes:
            raise InvalidArgument("SearchAttributes are not set on request.")
        await self.node.namespaces.change(
            request.namespace or "default", lambda found: self._with_attributes(found, request)
        )
        return AddSearchAttributesResponse()

    def _with_attributes(self, found: Namespace, request: AddSearchAttributesRequest) -> Namespace:
        for name, kind in request.search_attributes.items():
            search_attributes.check_name(name)
            if kind not in search_attributes.NAMES:
                raise InvalidArgument(
                    f"search attribute {name} has no type: give one of "
                    f"{', '.join(search_attributes.NAMES.values())}"
                )
            known = found.search_attributes.get(name, kind)
            if known != kind:
                given, there = map(search_attributes.type_name, (kind, known))
                raise AlreadyExists(
                    f"Search attribute {name} already exists with type {there}, not {given}."
                )
        added = {name: int(kind) for name, kind in request.search_attributes.items()}
        search_attributes.check_room(found.search_attributes, added, self.node.settings)
        return msgspec.structs.replace(found, search_attributes=found.search_attributes | added)

    async def remove_search_attributes(
        self, request: RemoveSearchAttributesRequest
    ) -> RemoveSearchAttributesResponse:
        """Forget custom attributes. Runs keep their values, which no filter can name any more.

        Raises:
            InvalidArgument: none named, or one that is not custom.
            NotFound: one is not registered. Nothing was removed.
        """
        found = self.node.namespaces.get(request.namespace or "default")
        names = list(request.search_attributes)
        if not names:
            raise InvalidArgument("SearchAttributes are not set on request.")
        for name in names:
            if name in search_attributes.BUILT_IN or name in search_attributes.PREDEFINED:
                raise InvalidArgument(f"Unable to remove non-custom search attributes: {name}.")
            if name not in found.search_attributes:
                raise NotFound(f"Search attribute {name} doesn't exist.")
        await self.node.namespaces.forget_search_attributes(found.name, names)
        return RemoveSearchAttributesResponse()

    async def list_search_attributes(
        self, request: ListSearchAttributesRequest
    ) -> ListSearchAttributesResponse:
        """The custom attributes of a namespace, and those that every namespace has."""
        found = self.node.namespaces.get(request.namespace or "default")
        system = search_attributes.BUILT_IN | search_attributes.PREDEFINED
        return ListSearchAttributesResponse(
            custom_attributes=_typed(found.search_attributes), system_attributes=_typed(system)
        )

    # -- namespaces and clusters -------------------------------------------------------------------

    async def delete_namespace(self, request: DeleteNamespaceRequest) -> DeleteNamespaceResponse:
        """Delete a namespace: at once nobody can use it; its runs are removed by and by.

        Raises:
            InvalidArgument: it is ``default``, or none is named.
            NamespaceNotFound: there is none.
        """
        namespaces = self.node.namespaces
        found = namespaces.find(request.namespace, request.namespace_id)
        if found.name == "default":
            raise InvalidArgument("The namespace default cannot be deleted.")
        deleted = await namespaces.change(
            found.name, lambda found: msgspec.structs.replace(found, state=int(DELETED))
        )
        self.node.purger.start(deleted)
        return DeleteNamespaceResponse(deleted_namespace=found.name)

    async def list_clusters(self, request: ListClustersRequest) -> ListClustersResponse:
        """This one."""
        cluster = ClusterMetadata(cluster_name=CLUSTER, is_connection_enabled=True)
        return ListClustersResponse(clusters=[cluster])


def _typed(types: dict[str, int]) -> dict[str, IndexedValueType.ValueType]:
    return {name: IndexedValueType.ValueType(kind) for name, kind in types.items()}
