"""Ask a policy server for actions, from a robot: synchronously, asynchronously, chunk by chunk, or ahead of time.

from wamkit_client import Client, RealTimeChunks

with Client("ws://localhost:8000", token="…") as client:
    chunks = RealTimeChunks(client)
    while True:
        robot.run(chunks.act({"obs": frames, "state": state, "prompt": "open the drawer"}))
"""

from wamkit_client.asynchronous import AsyncClient
from wamkit_client.chunks import ChunkBroker, RealTimeChunks
from wamkit_client.client import Client
from wamkit_client.errors import BadRequest, Busy, ConnectionLost, DeadlineMissed, NotReady, PolicyChanged, ServerError
from wamkit_client.messages import MessageError, ReadLimits, pack, unpack

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "BadRequest",
    "Busy",
    "ChunkBroker",
    "Client",
    "ConnectionLost",
    "DeadlineMissed",
    "MessageError",
    "NotReady",
    "PolicyChanged",
    "ReadLimits",
    "RealTimeChunks",
    "ServerError",
    "pack",
    "unpack",
]
