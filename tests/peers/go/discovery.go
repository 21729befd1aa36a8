package main

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
)

// How often a member announces itself and looks for others. Go nodes take minutes; a test has no time for that.
const announcePause = 3 * time.Second

// A directory finds members through a distributed hash table, and serves it to others.
type directory struct {
	member    *member
	table     *dht.IpfsDHT
	bootstrap []peer.AddrInfo
	// seen are the last two names of the network, as they were when it was looked for.
	seen []string
}

func newDirectory(m *member, bootstrap []peer.AddrInfo) (*directory, error) {
	table, err := dht.New(context.Background(), m.host, dht.Mode(dht.ModeServer), dht.BootstrapPeers(bootstrap...))
	if err != nil {
		return nil, err
	}
	return &directory{member: m, table: table, bootstrap: bootstrap}, nil
}

// pass announces this member under the names of now and before, and connects to whom it finds there.
func (d *directory) pass() error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	for _, p := range d.bootstrap {
		if err := d.member.host.Connect(ctx, p); err != nil {
			return err
		}
	}
	if name := d.member.network.rendezvous(d.member.now()); len(d.seen) == 0 || d.seen[len(d.seen)-1] != name {
		d.seen = append(d.seen, name)
	}
	d.seen = d.seen[max(0, len(d.seen)-2):]
	for _, name := range d.seen {
		key, err := providerKey(name)
		if err != nil {
			return err
		}
		// One that serves the table alone has nobody to tell yet.
		provideErr := d.table.Provide(ctx, key, true)
		for found := range d.table.FindProvidersAsync(ctx, key, 100) {
			if found.ID == d.member.host.ID() || d.member.host.Network().Connectedness(found.ID) == network.Connected {
				continue
			}
			if err := d.member.host.Connect(ctx, found); err != nil {
				return err
			}
		}
		if provideErr != nil && len(d.bootstrap) > 0 {
			return provideErr
		}
	}
	return nil
}

// providerKey names content nobody has: the sum of the name. On the wire it is the multihash.
func providerKey(name string) (cid.Cid, error) {
	sum := sha256.Sum256([]byte(name))
	hash, err := multihash.Encode(sum[:], multihash.SHA2_256)
	return cid.NewCidV1(cid.Raw, hash), err
}
