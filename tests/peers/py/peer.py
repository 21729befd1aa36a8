"""Lets a test drive a stock py-libp2p host. ../README.md has the line protocol."""

import json
import logging
import sys
import time
import traceback
from importlib.metadata import version

import trio
from multiaddr import Multiaddr

from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.envelope import unmarshal_envelope
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.relay.circuit_v2.config import RelayConfig, RelayRole
from libp2p.relay.circuit_v2.exceptions import RelayConnectionError
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID, CircuitV2Protocol
from libp2p.relay.circuit_v2.protocol_buffer import StatusCode
from libp2p.relay.circuit_v2.transport import CircuitV2Transport
from libp2p.tools.anyio_service import background_trio_service

ECHO = "/edgevpn-test/echo/1"

# Every request ends within this, so that a test fails with an answer and not with its own deadline.
REQUEST_TIMEOUT_SECONDS = 15


class Refused(Exception):
    """The relay answered with a status other than OK."""


class StatusLog(logging.Handler):
    """Remembers the last status that a relay refused with: the library tells it in its log only."""

    def __init__(self):
        super().__init__()
        self.last = None

    def emit(self, record):
        for value in record.args or ():
            if isinstance(value, StatusCode):
                self.last = value.name


class Peer:
    def __init__(self, host, transport, statuses, nursery):
        self.host = host
        self.transport = transport
        self.statuses = statuses
        self.nursery = nursery

    async def answer(self, line):
        try:
            request = json.loads(line)
            with trio.fail_after(REQUEST_TIMEOUT_SECONDS):
                match request["do"]:
                    case "reserve":
                        return await self.reserve(request["relay"])
                    case "echo":
                        return await self.echo(request["through"], request["bytes"])
                    case other:
                        return {"failed": f"unknown request {other}"}
        except Refused as refused:
            return {"refused": str(refused)}
        except Exception as error:
            traceback.print_exc()
            return {"failed": f"{type(error).__name__}: {error}"}

    async def reserve(self, address):
        relay = info_from_p2p_addr(Multiaddr(address))
        await self.connect(relay)
        stream = await self.host.new_stream(relay.peer_id, [PROTOCOL_ID])
        self.statuses.last = None
        held = await self.transport.reserve(stream, relay.peer_id, self.nursery)
        await stream.close()
        if not held:
            if self.statuses.last is not None:
                raise Refused(self.statuses.last)
            raise RuntimeError("no reservation, see the log on standard error")
        # The library keeps expiry and voucher of a reply, and neither its addresses nor its limit.
        proof = self.transport._reservation_proofs[relay.peer_id]
        return {
            "reserved": {
                "expires_in": proof.expire - int(time.time()),
                "voucher": self.verify(proof, relay.peer_id),
            }
        }

    async def connect(self, relay):
        """The library goes on listing a connection that the other end has closed, and opens no stream and no other one."""
        if any(connection.is_closed for connection in self.host.get_network().get_connections(relay.peer_id)):
            await self.host.disconnect(relay.peer_id)
        await self.host.connect(relay)

    def verify(self, proof, relay):
        """The library hands the voucher on unread; this checks it as the specification asks."""
        if not proof.voucher:
            return "none in the reply"
        envelope = unmarshal_envelope(proof.voucher)
        envelope.validate("libp2p-relay-rsvp")
        voucher = fields_of(envelope.raw_payload)
        if envelope.payload_type != b"\x03\x02":
            return "wrong payload type"
        if ID.from_pubkey(envelope.public_key) != relay:
            return "not signed by the relay"
        if ID(voucher[1]) != relay:
            return "for another relay"
        if ID(voucher[2]) != self.host.get_id():
            return "for another peer"
        if voucher[3] != proof.expire:
            return f"expires at {voucher[3]}, the reservation at {proof.expire}"
        return "verified"

    async def echo(self, address, size):
        through = Multiaddr(address)
        destination = info_from_p2p_addr(through).peer_id
        await self.connect(info_from_p2p_addr(Multiaddr(address.split("/p2p-circuit")[0])))
        # A new circuit each time.
        await self.host.disconnect(destination)
        try:
            await self.transport.dial(through)
        except ConnectionError as error:
            if isinstance(error.__context__, RelayConnectionError):
                raise Refused(StatusCode(error.__context__.status_code).name) from error
            raise
        stream = await self.host.new_stream(destination, [ECHO])

        sent = bytes(i * 31 % 256 for i in range(size))
        async with trio.open_nursery() as sending:
            sending.start_soon(send, stream, sent)
            received = await read_all(stream)
        if received != sent:
            raise RuntimeError(f"sent {len(sent)} bytes, got {len(received)} that differ")
        await stream.close()
        return {"echoed": {"bytes": len(received)}}


def fields_of(message):
    """The fields of a protobuf message that has bytes and integers only, by number: the library has no type for a voucher."""
    fields, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        number, wire_type = divmod(varint(), 8)
        value = varint()
        if wire_type == 2:
            value, at = message[at : at + value], at + value
        fields[number] = value
    return fields


async def send(stream, data):
    await stream.write(data)
    await stream.close_write()


async def read_all(stream):
    received = b""
    while chunk := await read_some(stream):
        received += chunk
    return received


async def read_some(stream):
    """Some bytes, or none at the end of the stream."""
    try:
        return await stream.read(16384)
    except StreamEOF:
        return b""


async def echo_back(stream):
    try:
        while chunk := await read_some(stream):
            await stream.write(chunk)
        await stream.close()
    except Exception:
        traceback.print_exc()
        await stream.reset()


def say(message):
    print(json.dumps(message), flush=True)


async def main():
    statuses = StatusLog()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("libp2p.relay.circuit_v2.transport").addHandler(statuses)

    # It listens nowhere, so that nobody reaches it but through a relay.
    host = new_host(key_pair=create_new_key_pair())
    config = RelayConfig(roles=RelayRole.STOP)
    protocol = CircuitV2Protocol(host, allow_hop=False)
    host.set_stream_handler(ECHO, echo_back)
    async with host.run(listen_addrs=[]), background_trio_service(protocol), trio.open_nursery() as nursery:
        await protocol.event_started.wait()
        transport = CircuitV2Transport(host, protocol, config)
        peer = Peer(host, transport, statuses, nursery)
        say({"ready": {"peer": host.get_id().to_string(), "library": f"py-libp2p v{version('libp2p')}"}})
        async for line in trio.wrap_file(sys.stdin):
            say(await peer.answer(line))
        nursery.cancel_scope.cancel()


trio.run(main)
