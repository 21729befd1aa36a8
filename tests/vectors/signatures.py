#!/usr/bin/env python3
"""Entries whose signatures sit on the edges of what is accepted: `python3 signatures.py > wire-signatures.json`.

Pure Python, no time, no randomness. `valid` is what the rule at the end of each case's note says; a Go program on
crypto/ed25519 and go-libp2p 0.51 (peer.Decode, ExtractPublicKey, Verify) agreed with every line.
"""
import base64
import hashlib
import json
import struct

# ---- Ed25519, RFC 8032 section 5.1 ------------------------------------------
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
I = pow(2, (P - 1) // 4, P)


def add(a, b):
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2 % P
    return ((x1 * y2 + x2 * y1) * pow(1 + t, P - 2, P) % P,
            (y1 * y2 + x1 * x2) * pow(1 - t, P - 2, P) % P)


def mul(n, a):
    r = (0, 1)
    while n:
        if n & 1:
            r = add(r, a)
        a = add(a, a)
        n >>= 1
    return r


def recover(y, sign):
    """The point with this y, or None. x = 0 with the sign bit set is taken, as Go takes it."""
    y %= P
    xx = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(xx, (P + 3) // 8, P)
    if x * x % P != xx:
        x = x * I % P
    if x * x % P != xx:
        return None
    if x & 1 != sign:
        x = -x % P
    return (x, y)


def encode(point):
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def decode(raw):
    n = int.from_bytes(raw, "little")
    return recover(n & (1 << 255) - 1, n >> 255)


B = recover(4 * pow(5, P - 2, P), 0)
ZERO = (0, 1)
# A point of order 8: L times any point whose image is not of smaller order.
T8 = next(t for t in (mul(L, recover(y, 0)) for y in range(2, 99) if recover(y, 0)) if mul(4, t) != ZERO)
assert mul(8, T8) == ZERO


def h(*parts):
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little")


def go_accepts(key, message, signature):
    """Cofactorless, R compared as bytes, S below the order, any encoding of A."""
    a = decode(key)
    if a is None or len(signature) != 64:
        return False
    s = int.from_bytes(signature[32:], "little")
    if s >= L:
        return False
    k = h(signature[:32], key, message) % L
    minus = ((-a[0]) % P, a[1])
    return encode(add(mul(s, B), mul(k, minus))) == signature[:32]


# ---- secp256k1 ----------------------------------------------------------------
Q = 2**256 - 2**32 - 977
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
G = (0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
     0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8)


def kadd(a, b):
    if a is None or b is None:
        return a or b
    if a[0] == b[0] and (a[1] + b[1]) % Q == 0:
        return None
    m = 3 * a[0] * a[0] * pow(2 * a[1], Q - 2, Q) if a == b else (b[1] - a[1]) * pow(b[0] - a[0], Q - 2, Q)
    x = (m * m - a[0] - b[0]) % Q
    return (x, (m * (a[0] - x) - a[1]) % Q)


def kmul(n, a):
    r = None
    while n:
        if n & 1:
            r = kadd(r, a)
        a = kadd(a, a)
        n >>= 1
    return r


def ecdsa(secret, message, nonce):
    z = int.from_bytes(hashlib.sha256(message).digest(), "big")
    r = kmul(nonce, G)[0] % N
    s = pow(nonce, -1, N) * (z + r * secret) % N
    return r, min(s, N - s)


def integer(n):
    raw = n.to_bytes((n.bit_length() + 8) // 8, "big")
    return bytes([2, len(raw)]) + raw


def der(r, s):
    body = integer(r) + integer(s)
    return bytes([0x30, len(body)]) + body


# ---- entries --------------------------------------------------------------------
B58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def b58(raw):
    n, s = int.from_bytes(raw, "big"), ""
    while n:
        n, r = divmod(n, 58)
        s = B58[r] + s
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + s


def owner(kind, key):
    public = bytes([8, kind, 0x12, len(key)]) + key
    return b58(bytes([0, len(public)]) + public)


def field(text):
    return struct.pack(">Q", len(text.encode())) + text.encode()


def canonical(who, value):
    return (field("machines") + field("10.1.0.9") + field(who) + struct.pack(">Qq", 7, 1785931200) + b"\0"
            + field(value))


OUT = []


def put(note, who, value, signature, valid):
    OUT.append({"note": note, "bucket": "machines", "key": "10.1.0.9", "valid": valid,
                "entry": {"Value": value, "Owner": who, "Version": 7, "UpdatedAt": 1785931200, "Deleted": False,
                          "Sig": base64.b64encode(signature).decode()}})


def edge(note, expected, key, make):
    """Tries values until `make` gives a signature for one of them."""
    who = owner(1, key)
    for n in range(4096):
        value = json.dumps({"PeerID": who, "n": n})
        message = canonical(who, value)
        signature = make(message)
        if signature is not None:
            valid = go_accepts(key, message, signature)
            assert valid == expected, note
            return put("Ed25519: " + note, who, value, signature, valid)
    raise AssertionError(note)


def scalar(label):
    return h(label.encode()) % L


def s32(n):
    return n.to_bytes(32, "little")


a = scalar("a secret")
A = encode(mul(a, B))
r = scalar("a nonce")
R = encode(mul(r, B))


def regular(message, key=A, rr=R, extra=0):
    return rr + s32((r + h(rr, key, message) * a) % L + extra)


edge("an ordinary signature counts", True, A, regular)
edge("S + L does not count", False, A, lambda m: regular(m, extra=L))
edge("S + 2L does not count", False, A, lambda m: regular(m, extra=2 * L))
edge("S = L does not count", False, encode(ZERO), lambda m: encode(ZERO) + s32(L))

# A of order 8, S = 0: the equation is R = -kA.
small = encode(T8)


def small_order(message, fits):
    for i in range(8):
        rr = encode(mul(i, T8))
        k = h(rr, small, message) % L
        if (encode(mul((-k) % 8, T8)) == rr) == fits:
            return rr + s32(0)
    return None


edge("A and R of small order count where the equation holds without cofactor", True, small,
     lambda m: small_order(m, True))
edge("A and R of small order do not count where it holds with cofactor only", False, small,
     lambda m: small_order(m, False))
edge("A = identity and S = 0 count, for every message", True, encode(ZERO), lambda m: encode(ZERO) + s32(0))

mixed = encode(add(mul(a, B), T8))


def of_mixed(message, fits):
    k = h(R, mixed, message) % L
    return R + s32((r + k * a) % L) if (k % 8 == 0) == fits else None


edge("A of mixed order counts where the equation holds without cofactor", True, mixed, lambda m: of_mixed(m, True))
edge("A of mixed order does not count where it holds with cofactor only", False, mixed,
     lambda m: of_mixed(m, False))
mixed_r = encode(add(mul(r, B), T8))
edge("R of mixed order does not count with an ordinary A", False, A, lambda m: regular(m, rr=mixed_r))

odd_r = (P + 1).to_bytes(32, "little")
edge("R = identity counts in its one encoding", True, A,
     lambda m: encode(ZERO) + s32(h(encode(ZERO), A, m) * a % L))
edge("R = identity written as p + 1 does not count", False, A, lambda m: odd_r + s32(h(odd_r, A, m) * a % L))
minus_r = (1 | 1 << 255).to_bytes(32, "little")
edge("R = identity with the sign bit does not count", False, A, lambda m: minus_r + s32(h(minus_r, A, m) * a % L))

odd_a = (P + 1).to_bytes(32, "little")
edge("A = identity written as p + 1 counts", True, odd_a, lambda m: R + s32(r))
edge("A = identity with the sign bit counts", True, minus_r, lambda m: R + s32(r))
# y = 0 has order 4; written as p it is hashed as it is written.
four, four_odd = encode(recover(0, 0)), P.to_bytes(32, "little")
edge("A of order 4 written as p counts, hashed as written", True, four_odd,
     lambda m: R + s32(r) if h(R, four_odd, m) % L % 4 == 0 else None)
edge("A of order 4 written as p does not count when hashed as it should be written", False, four_odd,
     lambda m: R + s32(r) if h(R, four, m) % L % 4 == 0 and h(R, four_odd, m) % L % 4 else None)
off = next(y for y in range(2, 99) if recover(y, 0) is None).to_bytes(32, "little")
edge("A that is no point does not count", False, off, lambda m: R + s32(r))
edge("63 bytes do not count", False, A, lambda m: regular(m)[:63])
edge("65 bytes do not count", False, A, lambda m: regular(m) + b"\0")

secret = int.from_bytes(hashlib.sha256(b"a secret").digest(), "big") % N
point = kmul(secret, G)
compressed = bytes([2 + (point[1] & 1)]) + point[0].to_bytes(32, "big")
who = owner(2, compressed)
value = json.dumps({"PeerID": who})
rs = ecdsa(secret, canonical(who, value), int.from_bytes(hashlib.sha256(b"a nonce").digest(), "big") % N)
low = der(*rs)
high = der(rs[0], N - rs[1])
for note, signature, valid in [
    ("an ordinary signature counts", low, True),
    ("the higher S counts", high, True),
    ("S + n does not count", der(rs[0], rs[1] + N), False),
    ("S = 0 does not count", der(rs[0], 0), False),
    ("r = 0 does not count", der(0, rs[1]), False),
    ("a byte behind the signature does not count", low + b"\0", False),
    ("a byte behind the higher S does not count", high + b"\0", False),
    ("a length in two bytes does not count", bytes([0x30, 0x81]) + low[1:], False),
    ("a negative S does not count", low[:2] + low[2:4 + low[3]] + bytes([2, 32]) + (N - rs[1]).to_bytes(32, "big"),
     False),
    ("r and S without DER do not count", rs[0].to_bytes(32, "big") + rs[1].to_bytes(32, "big"), False),
    ("another message's signature does not count", der(*ecdsa(secret, b"another", 5)), False),
]:
    if "negative" in note:
        signature = bytes([0x30, len(signature) - 2]) + signature[2:]
    put("secp256k1: " + note, who, value, signature, valid)

print(json.dumps(OUT, indent=1))
