// Command peer lets a test drive a stock go-libp2p host. ../README.md has the line protocol.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime/debug"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	pb "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/multiformats/go-multiaddr"
)

const echoProtocol = protocol.ID("/edgevpn-test/echo/1")

// Every request ends within this, so that a test fails with an answer and not with its own deadline.
const requestTimeout = 15 * time.Second

type request struct {
	Do      string `json:"do"`
	Relay   string `json:"relay"`
	Through string `json:"through"`
	Bytes   int    `json:"bytes"`
	Bucket  string `json:"bucket"`
	Key     string `json:"key"`
	Value   string `json:"value"`
}

type object map[string]any

// A relayStatus is an answer of the relay other than OK, by its name in the specification.
type relayStatus string

func (s relayStatus) Error() string { return string(s) }

func main() {
	var err error
	if len(os.Args) > 1 && os.Args[1] == "member" {
		err = runMember(os.Args[2:])
	} else {
		err = run(len(os.Args) > 1 && os.Args[1] == "--relay")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(asRelay bool) error {
	h, err := newHost(asRelay)
	if err != nil {
		return err
	}
	defer h.Close()
	h.SetStreamHandler(echoProtocol, serveEcho)

	ready := object{"peer": h.ID().String(), "library": "go-libp2p " + libraryVersion()}
	if asRelay {
		ready["addresses"] = h.Addrs()
	}
	return serve(ready, func(r request) (object, error) { return useRelay(h, r) })
}

// useRelay answers the requests of a relay's client.
func useRelay(h host.Host, r request) (object, error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	switch r.Do {
	case "reserve":
		return reserve(ctx, h, r.Relay)
	case "echo":
		return echo(ctx, h, r.Through, r.Bytes)
	}
	return nil, fmt.Errorf("unknown request %q", r.Do)
}

func runMember(arguments []string) error {
	m, err := newMember(arguments)
	if err != nil {
		return err
	}
	defer m.host.Close()
	m.host.SetStreamHandler(echoProtocol, serveEcho)
	return serve(object{"peer": m.host.ID().String(), "library": "go-libp2p " + libraryVersion(), "addresses": m.host.Addrs()}, m.answer)
}

// serve introduces the program, then answers one line after the other until there is none.
func serve(ready object, answer func(request) (object, error)) error {
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(object{"ready": ready}); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if err := out.Encode(answerTo(lines.Bytes(), answer)); err != nil {
			return err
		}
	}
	return lines.Err()
}

func answerTo(line []byte, answer func(request) (object, error)) object {
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return object{"failed": err.Error()}
	}
	done, err := answer(r)
	var refused relayStatus
	switch {
	case errors.As(err, &refused):
		return object{"refused": string(refused)}
	case err != nil:
		return object{"failed": err.Error()}
	}
	return done
}

// newHost listens nowhere, so that nobody reaches it but through a relay. With asRelay it is go-libp2p's own relay on
// loopback, to try these programs without edgevpn.
func newHost(asRelay bool) (host.Host, error) {
	if !asRelay {
		return libp2p.New(libp2p.NoListenAddrs, libp2p.EnableRelay())
	}
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0/ws"))
	if err != nil {
		return nil, err
	}
	resources := relay.DefaultResources()
	resources.ReservationTTL = 5 * time.Minute
	_, err = relay.New(h, relay.WithResources(resources))
	return h, err
}

func reserve(ctx context.Context, h host.Host, address string) (object, error) {
	relayInfo, err := peer.AddrInfoFromString(address)
	if err != nil {
		return nil, err
	}
	reservation, err := client.Reserve(ctx, h, *relayInfo)
	var failure client.ReservationError
	if errors.As(err, &failure) && failure.Reason == "reservation failed" {
		return nil, relayStatus(pb.Status_name[int32(failure.Status)])
	}
	if err != nil {
		return nil, err
	}
	// A reservation lives as long as a connection to the relay: keep this one.
	h.ConnManager().Protect(relayInfo.ID, "relay")

	// The library checks signature, relay and peer of a voucher, and fails when one of them is wrong.
	voucher := "verified"
	if reservation.Voucher == nil {
		voucher = "none in the reply"
	} else if !reservation.Voucher.Expiration.Equal(reservation.Expiration) {
		voucher = fmt.Sprintf("expires at %s, the reservation at %s", reservation.Voucher.Expiration, reservation.Expiration)
	}
	limit := object{"data": nil, "duration": nil}
	if reservation.LimitData != 0 {
		limit["data"] = reservation.LimitData
	}
	if reservation.LimitDuration != 0 {
		limit["duration"] = int(reservation.LimitDuration.Seconds())
	}
	return object{"reserved": object{
		"expires_in": int(time.Until(reservation.Expiration).Seconds()),
		"addresses":  reservation.Addrs,
		"voucher":    voucher,
		"limit":      limit,
	}}, nil
}

// circuitStatus finds the status in the text of a failed dial, the only place where the library leaves it.
var circuitStatus = regexp.MustCompile(`error opening relay circuit: ([A-Z_]+) \(`)

func echo(ctx context.Context, h host.Host, address string, size int) (object, error) {
	through, err := multiaddr.NewMultiaddr(address)
	if err != nil {
		return nil, err
	}
	destination, err := peer.AddrInfoFromP2pAddr(through)
	if err != nil {
		return nil, err
	}
	// A new circuit each time, even right after a refused one.
	if err := h.Network().ClosePeer(destination.ID); err != nil {
		return nil, err
	}
	if s, ok := h.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(destination.ID)
	}
	ctx = network.WithAllowLimitedConn(ctx, "test")
	if err := h.Connect(ctx, *destination); err != nil {
		if status := circuitStatus.FindStringSubmatch(err.Error()); status != nil {
			return nil, relayStatus(status[1])
		}
		return nil, err
	}
	stream, err := h.NewStream(ctx, destination.ID, echoProtocol)
	if err != nil {
		return nil, err
	}
	defer stream.Reset()
	deadline, _ := ctx.Deadline()
	if err := stream.SetDeadline(deadline); err != nil {
		return nil, err
	}

	sent := make([]byte, size)
	for i := range sent {
		sent[i] = byte(i * 31)
	}
	go func() {
		if _, err := stream.Write(sent); err == nil {
			stream.CloseWrite()
		}
	}()
	received, err := io.ReadAll(stream)
	if err != nil {
		return nil, fmt.Errorf("after %d bytes: %w", len(received), err)
	}
	if !bytes.Equal(sent, received) {
		return nil, fmt.Errorf("sent %d bytes, got %d that differ", len(sent), len(received))
	}
	return object{"echoed": object{"bytes": len(received), "limited": stream.Conn().Stat().Limited}}, nil
}

func serveEcho(stream network.Stream) {
	if _, err := io.Copy(stream, stream); err != nil {
		stream.Reset()
		return
	}
	stream.Close()
}

func libraryVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, module := range info.Deps {
		if module.Path == "github.com/libp2p/go-libp2p" {
			return module.Version
		}
	}
	return "unknown"
}
