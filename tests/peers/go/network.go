package main

import (
	"bytes"
	"compress/gzip"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"gopkg.in/yaml.v3"
)

// A definition is what a token says of a network.
type definition struct {
	OTP struct {
		DHT    rotating
		Crypto rotating
	}
	Room           string
	Rendezvous     string
	MDNS           string `yaml:"mdns"`
	MaxMessageSize int    `yaml:"max_message_size"`
}

// A rotating secret gives another text in each window of Interval seconds.
type rotating struct {
	Interval int64
	Key      string
	Length   int
}

func parseToken(token string) (*definition, error) {
	text, err := base64.StdEncoding.DecodeString(token)
	if err != nil {
		return nil, fmt.Errorf("the token is not base64: %w", err)
	}
	var d definition
	if err := yaml.Unmarshal(text, &d); err != nil {
		return nil, fmt.Errorf("the token is not YAML: %w", err)
	}
	if d.OTP.Crypto.Interval <= 0 || d.OTP.DHT.Interval <= 0 || d.OTP.Crypto.Length > 44 || d.MaxMessageSize <= 0 {
		return nil, fmt.Errorf("the token has no usable interval, length or message size")
	}
	return &d, nil
}

func (d *definition) window(now time.Time) uint64 {
	return uint64(now.Unix() / d.OTP.Crypto.Interval)
}

func (d *definition) topic(now time.Time) string {
	return md5Hex(totp(d.Room, d.window(now), d.OTP.Crypto.Length))
}

// rendezvous is the name under which members find each other in a distributed hash table.
func (d *definition) rendezvous(now time.Time) string {
	if d.OTP.DHT.Key == "" {
		return d.Rendezvous
	}
	length := d.OTP.DHT.Length
	if length == 0 {
		length = 12
	}
	return md5Hex(totp(d.OTP.DHT.Key, uint64(now.Unix()/d.OTP.DHT.Interval), length))
}

// sealKey is the text of the sum, used as the 32 bytes of the key.
func (d *definition) sealKey(now time.Time) []byte {
	return []byte(md5Hex(totp(d.OTP.Crypto.Key, d.window(now), d.OTP.Crypto.Length)))
}

// totp is the whole sum as base64, cut; there is no truncation to digits.
func totp(secret string, window uint64, length int) string {
	mac := hmac.New(sha256.New, []byte(secret))
	binary.Write(mac, binary.BigEndian, window)
	if length <= 0 {
		length = 6
	}
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))[:length]
}

func md5Hex(text string) string {
	sum := md5.Sum([]byte(text))
	return hex.EncodeToString(sum[:])
}

type envelope struct {
	Message     string
	SenderID    string
	Annotations map[string]any
}

// seal makes of a block what a gossip message carries: JSON, gzip, AES-GCM, hex, JSON.
func seal(b *block, key []byte) ([]byte, error) {
	clear, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(clear); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return json.Marshal(envelope{Message: hex.EncodeToString(aead.Seal(nonce, nonce, packed.Bytes(), nil))})
}

func open(data, key []byte) (*block, error) {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, err
	}
	sealed, err := hex.DecodeString(e.Message)
	if err != nil {
		return nil, err
	}
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	if len(sealed) < aead.NonceSize() {
		return nil, fmt.Errorf("%d bytes are no sealed message", len(sealed))
	}
	packed, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], nil)
	if err != nil {
		return nil, err
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	var b block
	return &b, json.NewDecoder(io.LimitReader(r, 64<<20)).Decode(&b)
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	c, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(c)
}
