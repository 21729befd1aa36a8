package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
)

// How often a member looks whether its topic has changed.
const poll = time.Second

// A member is a node of a network as the Go ones are: it floods its whole ledger on the topic of the window, and replaces its
// gossip router by a new one whenever the window has changed.
type member struct {
	network *definition
	host    host.Host
	skew    time.Duration
	peers   []peer.AddrInfo

	mu     sync.Mutex
	ledger *ledger
	counts counts
	room   *room
}

// counts are what has happened since the start.
type counts struct {
	Rotations int    `json:"rotations"`
	Published int    `json:"published"`
	Bytes     int    `json:"bytes"`
	Opened    int    `json:"opened"`
	Unopened  int    `json:"unopened"`
	Merged    int    `json:"merged"`
	Rejected  int    `json:"rejected"`
	Complaint string `json:"complaint,omitempty"`
}

// A room is one router's life.
type room struct {
	topic *pubsub.Topic
	name  string
	leave context.CancelFunc
}

type words []string

func (w *words) String() string        { return strings.Join(*w, ",") }
func (w *words) Set(word string) error { *w = append(*w, word); return nil }

func newMember(arguments []string) (*member, error) {
	var listen, peers, bootstrap words
	flags := flag.NewFlagSet("member", flag.ContinueOnError)
	token := flags.String("token", "", "`file` with the token of the network")
	seed := flags.Int("seed", 0, "makes the identity; 0 is a new one at each start")
	skew := flags.Duration("skew", 0, "how far the clock is ahead")
	heartbeat := flags.Duration("heartbeat", time.Second, "how often the own heartbeat is renewed")
	sync := flags.Duration("sync", time.Second, "how often the whole ledger is sent")
	ttl := flags.Duration("ttl", 8*time.Minute, "how long a heartbeat counts")
	announce := flags.String("machine", "", "own `address` in the network")
	withMDNS := flags.Bool("mdns", false, "look for others on the local network")
	flags.Var(&listen, "listen", "`address` to listen on, may be repeated")
	withDHT := flags.Bool("dht", false, "serve a distributed hash table, and look for others there")
	flags.Var(&bootstrap, "bootstrap", "`address` of a peer to enter the distributed hash table by, may be repeated")
	flags.Var(&peers, "peer", "`address` of a peer to stay connected to, may be repeated")
	if err := flags.Parse(arguments); err != nil {
		return nil, err
	}

	text, err := os.ReadFile(*token)
	if err != nil {
		return nil, err
	}
	m := &member{skew: *skew}
	if m.network, err = parseToken(strings.TrimSpace(string(text))); err != nil {
		return nil, err
	}
	if m.peers, err = parsePeers(peers); err != nil {
		return nil, err
	}
	entrances, err := parsePeers(bootstrap)
	if err != nil {
		return nil, err
	}
	key, err := identity(*seed)
	if err != nil {
		return nil, err
	}
	m.host, err = libp2p.New(
		libp2p.Identity(key), libp2p.ListenAddrStrings(listen...), libp2p.UserAgent("edgevpn"), libp2p.ProtocolVersion(""),
		libp2p.EnableRelay(), libp2p.EnableNATService(), libp2p.ResourceManager(&network.NullResourceManager{}),
	)
	if err != nil {
		return nil, err
	}
	m.ledger = newLedger(m.host.ID(), key, *ttl)
	if *withMDNS {
		if err := mdns.NewMdnsService(m.host, m.network.MDNS, m).Start(); err != nil {
			return nil, err
		}
	}
	if err := m.enter(); err != nil {
		return nil, err
	}
	if *withDHT {
		d, err := newDirectory(m, entrances)
		if err != nil {
			return nil, err
		}
		go m.every(announcePause, d.pass)
	}
	go m.every(poll, m.rotate)
	go m.every(poll, m.stayConnected)
	go m.every(*heartbeat, m.renew(*announce))
	go m.every(*sync, m.publish)
	return m, nil
}

func parsePeers(addresses []string) ([]peer.AddrInfo, error) {
	var all []peer.AddrInfo
	for _, address := range addresses {
		info, err := peer.AddrInfoFromString(address)
		if err != nil {
			return nil, err
		}
		all = append(all, *info)
	}
	return all, nil
}

// identity is the same for the same seed, so that tests know who is who.
func identity(seed int) (crypto.PrivKey, error) {
	if seed == 0 {
		key, _, err := crypto.GenerateEd25519Key(nil)
		return key, err
	}
	bytes := make([]byte, ed25519.SeedSize)
	bytes[0], bytes[1] = byte(seed), byte(seed>>8)
	return crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(bytes))
}

func (m *member) now() time.Time { return time.Now().Add(m.skew) }

func (m *member) every(interval time.Duration, do func() error) {
	for {
		if err := do(); err != nil {
			m.mu.Lock()
			m.counts.Complaint = err.Error()
			m.mu.Unlock()
		}
		time.Sleep(interval)
	}
}

// HandlePeerFound is called for whom mDNS finds.
func (m *member) HandlePeerFound(found peer.AddrInfo) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	// A peer that cannot be reached is found again.
	_ = m.host.Connect(ctx, found)
}

func (m *member) stayConnected() error {
	var failed error
	for _, p := range m.peers {
		if m.host.Network().Connectedness(p.ID) == network.Connected {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		if err := m.host.Connect(ctx, p); err != nil {
			failed = err
		}
		cancel()
	}
	return failed
}

// rotate leaves the room when its window is over. The old router's streams to others are closed with it; those that others
// have opened to it stay open, and nobody reads them any more.
func (m *member) rotate() error {
	m.mu.Lock()
	stays := m.room.name == m.network.topic(m.now())
	m.mu.Unlock()
	if stays {
		return nil
	}
	m.room.leave()
	if err := m.enter(); err != nil {
		return err
	}
	m.mu.Lock()
	m.counts.Rotations++
	m.mu.Unlock()
	return nil
}

// enter makes a new router on the host that is there, and reads what it hears.
func (m *member) enter() error {
	ctx, leave := context.WithCancel(context.Background())
	name := m.network.topic(m.now())
	router, err := pubsub.NewGossipSub(ctx, m.host,
		pubsub.WithMaxMessageSize(m.network.MaxMessageSize), pubsub.WithFloodPublish(true), pubsub.WithPeerExchange(true))
	if err != nil {
		leave()
		return err
	}
	topic, err := router.Join(name)
	if err != nil {
		leave()
		return err
	}
	subscription, err := topic.Subscribe()
	if err != nil {
		leave()
		return err
	}
	m.mu.Lock()
	m.room = &room{topic: topic, name: name, leave: leave}
	m.mu.Unlock()
	go func() {
		for {
			message, err := subscription.Next(ctx)
			if err != nil {
				return
			}
			if message.ReceivedFrom != m.host.ID() {
				m.hear(message.Data)
			}
		}
	}()
	return nil
}

// hear opens a message with the key of this very moment, no other.
func (m *member) hear(data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	in, err := open(data, m.network.sealKey(m.now()))
	if err != nil {
		m.counts.Unopened++
		return
	}
	m.counts.Opened++
	merged, rejected := m.ledger.merge(in, m.now())
	m.counts.Merged += merged
	m.counts.Rejected += rejected
}

// publish sends everything, sealed for this very moment, on the topic of the router, which may be of the window before.
func (m *member) publish() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	data, err := seal(m.ledger.block(m.now()), m.network.sealKey(m.now()))
	if err != nil {
		return err
	}
	if err := m.room.topic.Publish(context.Background(), data); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	m.counts.Published++
	m.counts.Bytes += len(data)
	return nil
}

// renew writes the own heartbeat, and what the member announces of itself.
func (m *member) renew(address string) func() error {
	return func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		self, now := m.host.ID().String(), m.now()
		value, err := json.Marshal(now.UTC().Format(time.RFC3339))
		if err != nil {
			return err
		}
		if err := m.ledger.put("healthcheck", self, string(value), false, now); err != nil || address == "" {
			return err
		}
		machine, err := json.Marshal(map[string]string{
			"PeerID": self, "Hostname": "go-" + self[len(self)-6:], "OS": "linux", "Arch": "amd64", "Address": address, "Version": "",
		})
		if err != nil {
			return err
		}
		return m.ledger.put("machines", address, string(machine), false, now)
	}
}

func (m *member) answer(r request) (object, error) {
	if r.Do == "reserve" || r.Do == "echo" {
		return useRelay(m.host, r)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch r.Do {
	case "put":
		return object{"done": nil}, m.ledger.put(r.Bucket, r.Key, r.Value, false, m.now())
	case "delete":
		return object{"done": nil}, m.ledger.put(r.Bucket, r.Key, "", true, m.now())
	case "reset":
		for _, f := range m.ledger.changed {
			f.at, f.worst = time.Now(), 0
		}
		m.counts = counts{}
		return object{"done": nil}, nil
	case "report":
		return object{"report": m.report()}, nil
	}
	return nil, fmt.Errorf("unknown request %q", r.Do)
}

// report tells every entry: its value, how long ago it was new here, and the longest that this took since the last reset.
func (m *member) report() object {
	entries := []object{}
	for bucket, keys := range m.ledger.buckets {
		for key, e := range keys {
			f := m.ledger.changed[[2]string{bucket, key}]
			age := time.Since(f.at)
			entries = append(entries, object{
				"bucket": bucket, "key": key, "value": e.Value, "owner": e.Owner, "deleted": e.Deleted,
				"age_ms": age.Milliseconds(), "worst_ms": max(age, f.worst).Milliseconds(),
			})
		}
	}
	connected := []string{}
	for _, p := range m.host.Network().Peers() {
		connected = append(connected, p.String())
	}
	return object{"entries": entries, "counts": m.counts, "connected": connected, "window": m.network.window(m.now())}
}
