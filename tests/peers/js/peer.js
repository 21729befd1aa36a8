// Lets a test drive a stock js-libp2p node. ../README.md has the line protocol.

import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { publicKeyFromProtobuf } from '@libp2p/crypto/keys'
import { identify } from '@libp2p/identify'
import { peerIdFromMultihash, peerIdFromPublicKey, peerIdFromString } from '@libp2p/peer-id'
import { RecordEnvelope } from '@libp2p/peer-record'
import { tcp } from '@libp2p/tcp'
import { webSockets } from '@libp2p/websockets'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import * as Digest from 'multiformats/hashes/digest'
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { encode as varint } from 'uint8-varint'

const ECHO = '/edgevpn-test/echo/1'

// Every request ends within this, so that a test fails with an answer and not with its own deadline.
const REQUEST_TIMEOUT_MS = 15_000

const libraryVersion = JSON.parse(readFileSync(new URL('package.json', import.meta.url))).dependencies.libp2p

// It listens nowhere, so that nobody reaches it but through a relay.
const node = await createLibp2p({
  transports: [tcp(), webSockets(), circuitRelayTransport()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionMonitor: { enabled: false },
  services: { identify: identify() }
})

await node.handle(ECHO, echoBack, { runOnLimitedConnection: true })
say({ ready: { peer: node.peerId.toString(), library: `js-libp2p v${libraryVersion}` } })

for await (const line of createInterface({ input: process.stdin })) {
  say(await answer(line))
}
process.exit(0)

function say (object) {
  process.stdout.write(JSON.stringify(object) + '\n')
}

async function answer (line) {
  try {
    const request = JSON.parse(line)
    switch (request.do) {
      case 'reserve': return await reserve(multiaddr(request.relay))
      case 'echo': return await echo(multiaddr(request.through), request.bytes)
      default: return { failed: `unknown request ${request.do}` }
    }
  } catch (error) {
    const status = statusIn(error)
    return status == null ? { failed: String(error) } : { refused: status }
  }
}

// The library tells a status only in the text of its errors, sometimes one cause further down.
function statusIn (error) {
  for (const e of [error, error.cause, ...(error.errors ?? [])]) {
    const found = /(?:reservation failed|failed to connect via relay) with status ([A-Z_]+)/.exec(e?.message)
    if (found != null) {
      return found[1]
    }
  }
}

async function reserve (relay) {
  const relayId = peerIdOf(relay)
  const transport = node.components.transportManager.getTransports().find(t => t.reservationStore != null)
  const store = transport.reservationStore
  if (node.getConnections(relayId).length === 0) {
    await node.dial(relay, { signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS) })
  }
  // What listening on `relay`/p2p-circuit does, and the library's own timer at each renewal. It asks the relay again
  // when less than ten minutes are left of what it has.
  await store.addRelay(relayId, 'configured')
  const reservation = store.getReservation(relayId)
  if (reservation == null) {
    throw new Error('the connection closed right after the reservation')
  }
  // The library does not keep the limit of a reservation; `echo` tells whether the circuit had one.
  return {
    reserved: {
      expires_in: Number(reservation.expire) - Math.floor(Date.now() / 1000),
      addresses: reservation.addrs.map(bytes => multiaddr(bytes).toString()),
      voucher: await verify(reservation, relayId)
    }
  }
}

// The library decodes a voucher and checks nothing. It hands out the envelope with its payload already decoded, so the
// payload is encoded once more, canonically, for its signature.
async function verify ({ voucher, expire }, relayId) {
  if (voucher?.payload == null) {
    return 'none in the reply'
  }
  const { relay, peer, expiration } = voucher.payload
  const publicKey = publicKeyFromProtobuf(voucher.publicKey)
  const envelope = new RecordEnvelope({
    publicKey,
    payloadType: voucher.payloadType,
    payload: Uint8Array.from([0x0a, ...varint(relay.length), ...relay, 0x12, ...varint(peer.length), ...peer, 0x18, ...varint(Number(expiration))]),
    signature: voucher.signature
  })
  if (!await envelope.validate('libp2p-relay-rsvp')) return 'wrong signature'
  if (Buffer.from(voucher.payloadType).toString('hex') !== '0302') return 'wrong payload type'
  if (!peerIdFromPublicKey(publicKey).equals(relayId)) return 'not signed by the relay'
  if (!peerIdFromMultihash(Digest.decode(relay)).equals(relayId)) return 'for another relay'
  if (!peerIdFromMultihash(Digest.decode(peer)).equals(node.peerId)) return 'for another peer'
  if (expiration !== expire) return `expires at ${expiration}, the reservation at ${expire}`
  return 'verified'
}

async function echo (through, size) {
  const signal = AbortSignal.timeout(REQUEST_TIMEOUT_MS)
  // A new circuit each time.
  await node.hangUp(peerIdOf(through), { signal })
  const connection = await node.dial(through, { signal })
  const stream = await connection.newStream(ECHO, { runOnLimitedConnection: true, signal })

  signal.addEventListener('abort', () => { stream.abort(signal.reason) })

  const sent = Buffer.from(Array.from({ length: size }, (_, i) => i * 31))
  const chunks = []
  const ended = receive(stream, chunk => { chunks.push(chunk) })
  stream.send(sent)
  await stream.close({ signal })
  await ended
  const received = Buffer.concat(chunks)
  if (!received.equals(sent)) {
    throw new Error(`sent ${sent.length} bytes, got ${received.length} that differ`)
  }
  return { echoed: { bytes: received.length, limited: connection.limits != null } }
}

async function echoBack (stream) {
  try {
    await receive(stream, chunk => { stream.send(chunk) })
    await stream.close()
  } catch (error) {
    stream.abort(error)
  }
}

// Resolves when the other end has closed and all it sent has been taken. Data that came with the protocol negotiation is
// delivered after the events that announce the end, so the state decides and not the event.
function receive (stream, take) {
  return new Promise((resolve, reject) => {
    stream.addEventListener('remoteCloseWrite', () => { resolve() })
    stream.addEventListener('close', ({ error }) => { error == null ? resolve() : reject(error) })
    stream.addEventListener('message', ({ data }) => {
      take(data.subarray())
      if (stream.remoteWriteStatus === 'closed') {
        resolve()
      }
    })
  })
}

// The peer a multiaddr ends in.
function peerIdOf (address) {
  return peerIdFromString(address.getComponents().findLast(c => c.name === 'p2p').value)
}
