"""What operators ask a server, at an address of its own, in plaintext and without tokens: health (for probes that
speak no TLS), channelz (its connections and calls, https://github.com/grpc/proposal/blob/master/A14-channelz.md)
and reflection. It belongs on loopback, or on a port that only the cluster's own can reach.
"""

from __future__ import annotations

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

_CHANNELZ = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name
_SERVICES = (health.SERVICE_NAME, _CHANNELZ, reflection.SERVICE_NAME)


class AdminServer:
    """A server at ``listen`` ("127.0.0.1:50061"; port 0 picks a free one) that tells another's ``health``."""

    def __init__(self, listen: str, health_servicer: health.aio.HealthServicer) -> None:
        self.port = 0
        self._listen = listen
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, self._server)
        channelz.add_channelz_servicer(self._server)
        reflection.enable_server_reflection(_SERVICES, self._server)

    async def start(self) -> None:
        """Listens; :attr:`port` tells where. Raises OSError."""
        try:
            self.port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._listen} for operators: is the port taken?") from error
        await self._server.start()

    async def stop(self) -> None:
        """Ends it and whatever it answers at this moment."""
        await self._server.stop(0)
