package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// A block is the whole ledger as it travels. Only Storage matters to those who merge it.
type block struct {
	Index     int
	Timestamp string
	Storage   map[string]map[string]entry
	Hash      string
	PrevHash  string
}

type entry struct {
	Value     string
	Owner     string
	Version   uint64
	UpdatedAt int64
	Deleted   bool
	Sig       []byte
}

type plainEntry entry

// An unsigned entry is a text, any other one an object.
func (e entry) MarshalJSON() ([]byte, error) {
	if e.Owner == "" && len(e.Sig) == 0 && !e.Deleted && e.Version == 0 {
		return json.Marshal(e.Value)
	}
	return json.Marshal(plainEntry(e))
}

func (e *entry) UnmarshalJSON(text []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		return json.Unmarshal(text, (*plainEntry)(e))
	}
	*e = entry{}
	return json.Unmarshal(text, &e.Value)
}

// canonical is what the owner signs.
func (e *entry) canonical(bucket, key string) []byte {
	var b bytes.Buffer
	number := func(n uint64) { binary.Write(&b, binary.BigEndian, n) }
	text := func(s string) { number(uint64(len(s))); b.WriteString(s) }
	text(bucket)
	text(key)
	text(e.Owner)
	number(e.Version)
	number(uint64(e.UpdatedAt))
	if e.Deleted {
		b.WriteByte(1)
	} else {
		b.WriteByte(0)
	}
	text(e.Value)
	return b.Bytes()
}

func (e *entry) verify(bucket, key string) bool {
	owner, err := peer.Decode(e.Owner)
	if err != nil {
		return false
	}
	public, err := owner.ExtractPublicKey()
	if err != nil {
		return false
	}
	ok, err := public.Verify(e.canonical(bucket, key), e.Sig)
	return err == nil && ok
}

// A ledger holds the entries of the network as one member knows them, under the rules of `enforce`. The buckets that a test
// uses are all owned ones.
type ledger struct {
	self    peer.ID
	key     crypto.PrivKey
	ttl     time.Duration
	buckets map[string]map[string]entry
	last    block
	// changed says when an entry last was new here, and worst how long that took at most since the last reset.
	changed map[[2]string]*freshness
}

type freshness struct {
	at    time.Time
	worst time.Duration
}

func newLedger(self peer.ID, key crypto.PrivKey, ttl time.Duration) *ledger {
	return &ledger{
		self: self, key: key, ttl: ttl,
		buckets: map[string]map[string]entry{},
		changed: map[[2]string]*freshness{},
	}
}

// put writes an own entry, unless it is there already. A heartbeat changes each time.
func (l *ledger) put(bucket, key, value string, deleted bool, now time.Time) error {
	previous := l.buckets[bucket][key]
	if previous.Owner == l.self.String() && !previous.Deleted && !deleted && previous.Value == value {
		return nil
	}
	e := entry{
		Value: value, Owner: l.self.String(), Deleted: deleted,
		Version: max(previous.Version+1, uint64(now.UnixNano())), UpdatedAt: now.Unix(),
	}
	var err error
	if e.Sig, err = l.key.Sign(e.canonical(bucket, key)); err != nil {
		return err
	}
	l.store(bucket, key, e)
	return nil
}

func (l *ledger) store(bucket, key string, e entry) {
	if l.buckets[bucket] == nil {
		l.buckets[bucket] = map[string]entry{}
	}
	l.buckets[bucket][key] = e
	name := [2]string{bucket, key}
	if f := l.changed[name]; f == nil {
		l.changed[name] = &freshness{at: time.Now()}
	} else {
		f.worst = max(f.worst, time.Since(f.at))
		f.at = time.Now()
	}
}

// merge takes over what the rules of an owned bucket accept and says how much it was.
func (l *ledger) merge(in *block, now time.Time) (accepted, rejected int) {
	health := map[string]entry{}
	for key, e := range l.buckets["healthcheck"] {
		health[key] = e
	}
	for bucket, entries := range in.Storage {
		for key, e := range entries {
			stored, exists := l.buckets[bucket][key]
			if exists && stored.equal(&e) {
				continue
			}
			if !l.accepts(bucket, key, &e, stored, exists, health, now) {
				rejected++
				continue
			}
			l.store(bucket, key, e)
			accepted++
		}
	}
	return accepted, rejected
}

func (l *ledger) accepts(bucket, key string, in *entry, stored entry, exists bool, health map[string]entry, now time.Time) bool {
	if !in.verify(bucket, key) {
		return false
	}
	expired := func() bool {
		if bucket == "healthcheck" {
			return time.Unix(stored.UpdatedAt, 0).Add(l.ttl).Before(now)
		}
		return !l.alive(stored.Owner, health, now)
	}
	if in.Deleted {
		return exists && (in.Owner == stored.Owner || expired()) && in.Version > stored.Version
	}
	switch {
	case impliedOwner(bucket, key, in.Value) != in.Owner:
		return false
	case !exists:
		return true
	case stored.Deleted:
		return in.Version > stored.Version
	case in.Owner != stored.Owner && !expired():
		return false
	case in.Version == stored.Version && in.Owner == stored.Owner:
		return bytes.Compare(in.Sig, stored.Sig) > 0
	case in.Version == stored.Version:
		return in.Owner > stored.Owner
	}
	return in.Version > stored.Version
}

func (l *ledger) alive(owner string, health map[string]entry, now time.Time) bool {
	var text string
	if json.Unmarshal([]byte(health[owner].Value), &text) != nil {
		return false
	}
	seen, err := time.Parse(time.RFC3339, text)
	return err == nil && seen.Add(l.ttl).After(now)
}

// impliedOwner is who may write an entry: the key itself, or the peer that the value names.
func impliedOwner(bucket, key, value string) string {
	if bucket == "healthcheck" || bucket == "users" || bucket == "egress" {
		return key
	}
	var named struct{ PeerID string }
	if json.Unmarshal([]byte(value), &named) != nil {
		return ""
	}
	return named.PeerID
}

func (e *entry) equal(other *entry) bool {
	return e.Value == other.Value && e.Owner == other.Owner && e.Version == other.Version &&
		e.UpdatedAt == other.UpdatedAt && e.Deleted == other.Deleted && bytes.Equal(e.Sig, other.Sig)
}

// block gives the whole ledger with the next index.
func (l *ledger) block(now time.Time) *block {
	next := block{
		Index: l.last.Index + 1, Timestamp: now.UTC().String(), Storage: l.buckets, PrevHash: l.last.Hash,
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d%s%v%s", next.Index, next.Timestamp, next.Storage, next.PrevHash))
	next.Hash = hex.EncodeToString(sum[:])
	l.last = next
	return &next
}
