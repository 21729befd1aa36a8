#!/usr/bin/env python3
"""The wire format once more, in Python: test vectors, and a second opinion on random inputs.

Written from a description of what EdgeVPN nodes send, not from their code. Needs only `cryptography`.

    python3 wire-vectors.py            the vectors, for people
    python3 wire-vectors.py --json     the content of wire-vectors.json
    python3 wire-vectors.py --answer   one JSON request a line, one answer a line (tests/it/wire/differential.rs)
"""
import base64
import gzip
import hashlib
import hmac
import json
import struct
import sys

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

OUT = {}


def put(name, value):
    OUT[name] = value
    return value


# --------------------------------------------------------------------------
# network definition and token
# --------------------------------------------------------------------------
NET = {
    "dht_interval": 360,
    "dht_key": "dhtKEY0123456789abcdefghijklmnopqrstuvwxyzA",
    "dht_length": 43,
    "crypto_interval": 360,
    "crypto_key": "cryptoKEY0123456789abcdefghijklmnopqrstuvwx",
    "crypto_length": 43,
    "room": "roomNAME0123456789abcdefghijklmnopqrstuvwxy",
    "rendezvous": "rendezvous0123456789abcdefghijklmnopqrstuvw",
    "mdns": "mdnsTAG0123456789abcdefghijklmnopqrstuvwxyz",
    "max_message_size": 20971520,
}
for k in ("dht_key", "crypto_key", "room", "rendezvous", "mdns"):
    assert len(NET[k]) == 43 and NET[k].isalnum(), (k, len(NET[k]))

YAML_FORM = (
    "otp:\n"
    "  dht:\n"
    "    interval: {dht_interval}\n"
    "    key: {dht_key}\n"
    "    length: {dht_length}\n"
    "  crypto:\n"
    "    interval: {crypto_interval}\n"
    "    key: {crypto_key}\n"
    "    length: {crypto_length}\n"
    "room: {room}\n"
    "rendezvous: {rendezvous}\n"
    "mdns: {mdns}\n"
    "max_message_size: {max_message_size}\n"
)
YAML = YAML_FORM.format(**NET)
put("yaml", YAML)
put("token", base64.standard_b64encode(YAML.encode()).decode())


# --------------------------------------------------------------------------
# time based derivations
# --------------------------------------------------------------------------
def totp(key: str, interval: int, digits: int, now: int) -> str:
    """HMAC-SHA256 over the 8 byte big endian window number, whole MAC to
    standard base64 (44 characters for 32 bytes), cut to `digits` characters."""
    if digits <= 0:
        digits = 6
    window = now // interval
    mac = hmac.new(key.encode(), struct.pack(">Q", window), hashlib.sha256).digest()
    text = base64.standard_b64encode(mac).decode()
    if digits > len(text):
        raise ValueError("the reference implementation panics when length > 44")
    return text[:digits]


def md5hex(s: str) -> str:
    return hashlib.md5(s.encode()).hexdigest()


def derive(now: int, net: dict = NET) -> dict:
    t_dht = totp(net["dht_key"], net["dht_interval"], net["dht_length"] or 12, now)
    t_room = totp(net["room"], net["crypto_interval"], net["crypto_length"], now)
    t_seal = totp(net["crypto_key"], net["crypto_interval"], net["crypto_length"], now)
    rendezvous = md5hex(t_dht) if net["dht_key"] else net["rendezvous"]
    digest = hashlib.sha256(rendezvous.encode()).digest()
    mh = b"\x12\x20" + digest                       # sha2-256 multihash
    cid = b"\x01\x55" + mh                          # CIDv1, raw codec
    cid_txt = "b" + base64.b32encode(cid).decode().lower().rstrip("=")
    return {
        "unix": now,
        "window": now // net["crypto_interval"],
        "totp_dht": t_dht,
        "totp_room": t_room,
        "totp_seal": t_seal,
        "rendezvous": rendezvous,
        "topic": md5hex(t_room),
        "topic_public": md5hex(t_room + "public"),
        "seal_key_ascii": md5hex(t_seal),
        "seal_key_bytes_hex": md5hex(t_seal).encode().hex(),
        "cid": cid_txt,
        "provider_key_multihash_hex": mh.hex(),
        "kad_xor_key_hex": hashlib.sha256(mh).hexdigest(),
    }


T0 = 1785931200                                     # 2026-08-05T12:00:00Z, start of a window
put("at_T0", derive(T0))
put("at_T0_plus_359", derive(T0 + 359))             # same window
put("at_T0_minus_1", derive(T0 - 1))                # previous window
put("at_T0_plus_360", derive(T0 + 360))             # next window
assert OUT["at_T0"]["topic"] == OUT["at_T0_plus_359"]["topic"]
assert OUT["at_T0"]["topic"] != OUT["at_T0_minus_1"]["topic"]

# length 44 keeps the '=' pad; length 0 falls back to 6 characters
put("totp_len44", totp(NET["crypto_key"], 360, 44, T0))
put("totp_len0", totp(NET["crypto_key"], 360, 0, T0))
put("totp_interval_9000", totp(NET["crypto_key"], 9000, 43, T0))

# --------------------------------------------------------------------------
# sealing and envelope
# --------------------------------------------------------------------------
SEAL_KEY = OUT["at_T0"]["seal_key_ascii"].encode()
assert len(SEAL_KEY) == 32
NONCE = bytes(range(12))
PLAIN = b"hello edgevpn"
sealed = (NONCE + AESGCM(SEAL_KEY).encrypt(NONCE, PLAIN, None)).hex()
put("seal_nonce_hex", NONCE.hex())
put("seal_plain", PLAIN.decode())
put("sealed_hex", sealed)
envelope = json.dumps({"Message": sealed, "SenderID": "", "Annotations": None},
                      separators=(",", ":"))
put("envelope_json", envelope)
raw = bytes.fromhex(sealed)
assert AESGCM(SEAL_KEY).decrypt(raw[:12], raw[12:], None) == PLAIN

# --------------------------------------------------------------------------
# identity, signed entries, block checksum
# --------------------------------------------------------------------------
B58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def b58(b: bytes) -> str:
    n = int.from_bytes(b, "big")
    s = ""
    while n:
        n, r = divmod(n, 58)
        s = B58[r] + s
    return "1" * (len(b) - len(b.lstrip(b"\0"))) + s


SEED = bytes(range(1, 33))
sk = ed25519.Ed25519PrivateKey.from_private_bytes(SEED)
pk = sk.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
pub_pb = b"\x08\x01\x12\x20" + pk                   # PublicKey{Type:Ed25519,Data:32}
priv_pb = b"\x08\x01\x12\x40" + SEED + pk           # PrivateKey{Type:Ed25519,Data:64}
peer_bytes = b"\x00\x24" + pub_pb                   # identity multihash, 36 bytes
PEER = b58(peer_bytes)
put("ed25519_seed_hex", SEED.hex())
put("privkey_file_hex", priv_pb.hex())              # content of <privkey-cache-dir>/privkey
put("peer_id", PEER)
put("peer_id_bytes_hex", peer_bytes.hex())


def field(b: bytes) -> bytes:
    return struct.pack(">Q", len(b)) + b


def canonical(bucket, key, owner, version, updated_at, deleted, value) -> bytes:
    return (field(bucket.encode()) + field(key.encode()) + field(owner.encode())
            + struct.pack(">Q", version) + struct.pack(">q", updated_at)
            + (b"\x01" if deleted else b"\x00") + field(value.encode()))


machine = json.dumps({"PeerID": PEER, "Hostname": "alpha", "OS": "linux", "Arch": "amd64",
                      "Address": "10.1.0.11", "Version": "v0.0.0"}, separators=(",", ":"))
VERSION = 1785931200000000001
can = canonical("machines", "10.1.0.11", PEER, VERSION, T0, False, machine)
sig = sk.sign(can)
put("machine_value", machine)
put("canonical_hex", can.hex())
put("entry_sig_b64", base64.standard_b64encode(sig).decode())
entry = {"Value": machine, "Owner": PEER, "Version": VERSION, "UpdatedAt": T0,
         "Deleted": False, "Sig": base64.standard_b64encode(sig).decode()}
put("entry_json", json.dumps(entry, separators=(",", ":")))

tomb = canonical("machines", "10.1.0.11", PEER, VERSION + 1, T0 + 1, True, "")
put("tombstone_canonical_hex", tomb.hex())
put("tombstone_sig_b64", base64.standard_b64encode(sk.sign(tomb)).decode())


def go_struct(e) -> str:
    """How the reference prints one entry when it hashes a block."""
    s = base64.standard_b64decode(e["Sig"]) if e["Sig"] else b""
    return "{%s %s %d %d %s [%s]}" % (e["Value"], e["Owner"], e["Version"], e["UpdatedAt"],
                                      "true" if e["Deleted"] else "false",
                                      " ".join(str(x) for x in s))


def go_map(d, f) -> str:
    # keys in ascending byte order
    return "map[" + " ".join("%s:%s" % (k, f(d[k])) for k in sorted(d, key=lambda x: x.encode())) + "]"


def checksum(index, timestamp, storage, prev) -> str:
    record = "%d%s%s%s" % (index, timestamp, go_map(storage, lambda b: go_map(b, go_struct)), prev)
    return hashlib.sha256(record.encode()).hexdigest()


put("genesis_hash", checksum(0, "", {}, ""))
legacy = {"Value": '"2026-08-05T12:00:00Z"', "Owner": "", "Version": 0, "UpdatedAt": 0,
          "Deleted": False, "Sig": ""}
TS = "2026-08-05 12:00:00.123456789 +0000 UTC m=+12.345678901"
STORE = {"machines": {"10.1.0.11": entry}, "healthcheck": {PEER: legacy}}
put("block_timestamp", TS)
put("block_hash", checksum(1, TS, STORE, OUT["genesis_hash"]))

# --------------------------------------------------------------------------
# leader election and lease file
# --------------------------------------------------------------------------


def fnv1a32(s: str) -> int:
    h = 0x811C9DC5
    for c in s.encode():
        h = ((h ^ c) * 0x01000193) & 0xFFFFFFFF
    return h


def leader(ids):
    best = ids[0]
    for i in ids:
        if fnv1a32(i) > fnv1a32(best):
            best = i
    return best


assert (fnv1a32(""), fnv1a32("a"), fnv1a32("foobar")) == (0x811C9DC5, 0xE40C292C, 0xBF9CF968)
for ids in (["alpha", "bravo", "charlie"],
            ["node-01", "node-02", "node-03", "node-04", "node-05"]):
    put("leader_of_" + "_".join(ids), leader(ids))
put("fnv1a32_peer", fnv1a32(PEER))
put("dhcp_lease_filename", md5hex(NET["crypto_key"] + "-ek"))

# --------------------------------------------------------------------------
# gossip message as it is signed on the wire
# --------------------------------------------------------------------------


def varint(n: int) -> bytes:
    o = b""
    while n >= 0x80:
        o += bytes([n & 0x7F | 0x80])
        n >>= 7
    return o + bytes([n])


def ld(tag: int, b: bytes) -> bytes:
    return bytes([tag << 3 | 2]) + varint(len(b)) + b


SEQ = struct.pack(">Q", VERSION)
TOPIC = OUT["at_T0"]["topic"].encode()
unsigned = ld(1, peer_bytes) + ld(2, envelope.encode()) + ld(3, SEQ) + ld(4, TOPIC)
psig = sk.sign(b"libp2p-pubsub:" + unsigned)
put("pubsub_unsigned_hex", unsigned.hex())
put("pubsub_signature_hex", psig.hex())
put("pubsub_message_id_hex", (peer_bytes + SEQ).hex())
put("pubsub_hello_rpc_hex", (lambda sub: (varint(len(sub)) + sub).hex())(
    ld(1, b"\x08\x01" + ld(2, TOPIC))))             # length prefixed RPC{subscribe topic}

# --------------------------------------------------------------------------
# PeerGuardian ECDSA challenge (P-521)
# --------------------------------------------------------------------------
d = int.from_bytes(hashlib.sha512(b"edgevpn test vector").digest(), "big")
ek = ec.derive_private_key(d, ec.SECP521R1())


def pem(kind: str, der: bytes) -> bytes:
    b = base64.standard_b64encode(der).decode()
    body = "\n".join(b[i:i + 64] for i in range(0, len(b), 64))
    return ("-----BEGIN %s-----\n%s\n-----END %s-----\n" % (kind, body, kind)).encode()


priv_der = ek.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL,
                            serialization.NoEncryption())
pub_der = ek.public_key().public_bytes(serialization.Encoding.DER,
                                       serialization.PublicFormat.SubjectPublicKeyInfo)
put("ecdsa_private_key", base64.urlsafe_b64encode(pem("EC PRIVATE KEY", priv_der)).decode())
put("ecdsa_public_key", base64.urlsafe_b64encode(pem("EC PUBLIC KEY", pub_der)).decode())
# the value that is signed is the 64 byte ASCII hex of sha256("challenge")
prehash = hashlib.sha256(b"challenge").hexdigest().encode()
assert len(prehash) == 64
alg = ec.ECDSA(utils.Prehashed(hashes.SHA512()), deterministic_signing=True)
esig = ek.sign(prehash, alg)
ek.public_key().verify(esig, prehash, ec.ECDSA(utils.Prehashed(hashes.SHA512())))
put("ecdsa_prehash_ascii", prehash.decode())
put("ecdsa_sigs_annotation", base64.urlsafe_b64encode(pem("SIGNATURE", esig)).decode())

# --------------------------------------------------------------------------
# DNS value
# --------------------------------------------------------------------------
put("dns_value", json.dumps({"1": "10.1.0.11", "28": "fd00::11"}, separators=(",", ":")))


# --------------------------------------------------------------------------
# answers to random questions
# --------------------------------------------------------------------------
def seal(key: bytes, nonce: bytes, plain: bytes, context: bytes = b"") -> bytes:
    return nonce + AESGCM(key).encrypt(nonce, plain, context or None)


def unseal(key: bytes, sealed: bytes, context: bytes = b"") -> bytes:
    return AESGCM(key).decrypt(sealed[:12], sealed[12:], context or None)


def full(e) -> dict:
    """An entry as an object, whichever way it is written."""
    if isinstance(e, str):
        return {"Value": e, "Owner": "", "Version": 0, "UpdatedAt": 0, "Deleted": False, "Sig": None}
    return e


def answer(q: dict) -> dict:
    ask = q["ask"]
    if ask == "derive":
        return derive(q["now"], q["net"])
    if ask == "token":
        return {"token": base64.standard_b64encode(YAML_FORM.format(**q["net"]).encode()).decode()}
    if ask == "seal":
        parts = [bytes.fromhex(q[part]) for part in ("key", "nonce", "plain", "context")]
        return {"sealed": seal(*parts).hex()}
    if ask == "entry":
        e = q["entry"]
        signer = ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(q["seed"]))
        public = signer.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        owner = b58(b"\x00\x24\x08\x01\x12\x20" + public)
        text = canonical(q["bucket"], q["key"], owner, e["Version"], e["UpdatedAt"], e["Deleted"], e["Value"])
        return {"owner": owner, "canonical": text.hex(), "signature": signer.sign(text).hex()}
    if ask == "message":
        # Opens a message, reads its block, and makes a message of its own from what was read.
        key = bytes.fromhex(q["key"])
        sealed = bytes.fromhex(json.loads(q["data"])["Message"])
        block = json.loads(gzip.decompress(unseal(key, sealed)))
        storage = {b: {k: full(e) for k, e in entries.items()} for b, entries in block["Storage"].items()}
        again = gzip.compress(json.dumps(block).encode())
        return {
            "block": block,
            "checksum": checksum(block["Index"], block["Timestamp"], storage, block["PrevHash"]),
            "data": json.dumps({"Message": seal(key, bytes(12), again).hex(), "SenderID": "", "Annotations": None}),
        }
    if ask == "weight":
        return {"weight": fnv1a32(q["text"])}
    raise ValueError(ask)


if __name__ == "__main__":
    if "--answer" in sys.argv:
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), flush=True)
    elif "--json" in sys.argv:
        print(json.dumps(OUT, indent=1))
    else:
        for k, v in OUT.items():
            if isinstance(v, dict):
                print(k + ":")
                for kk, vv in v.items():
                    print("   %-28s %s" % (kk, vv))
            else:
                print("%-26s %s" % (k, v))
