//! A member by hand: it holds a token, speaks the exchange of our nodes, and says what the test wants said.

use crate::support::relay::{Client, within};
use edgevpn::{
    id::{PeerId, UnixTime},
    ledger::{Exchange, Ledger, Outgoing, Ownership, Terms},
    net::exchange::PROTOCOL,
    wire::{Token, seal_bytes, value},
};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{Multiaddr, Stream, identity::Keypair};
use std::time::{Duration, Instant, SystemTime};

/// Kinds of frames, and what a greeting seals: this, and whether it asks for an answer.
const HELLO: u8 = 0;
const MESSAGE: u8 = 1;
const VERSION: u8 = 1;

pub struct Speaker {
    pub client: Client,
    pub peer: PeerId,
    key: Keypair,
    token: Token,
    hub: PeerId,
    ledger: Ledger,
    exchange: Exchange,
    stream: Stream,
    /// The hub's stream to us; while it is held, we are a neighbour.
    _answers: Stream,
}

impl Speaker {
    /// Connects to the hub and greets it. It is no member yet, for it has said nothing.
    pub async fn join(token: &str, hub: PeerId, address: &Multiaddr) -> Self {
        let key = Keypair::generate_ed25519();
        let peer = key.public().to_peer_id();
        let token = Token::parse(token.as_bytes()).expect("a token");
        let mut client = Client::by_hand_as(key.clone(), &[PROTOCOL]);
        client.dial(address).await.expect("connects");
        let mut stream = client.open(hub, PROTOCOL).await.expect("a stream");
        let hello = sealed(&token, &[VERSION, 0], HELLO, peer, hub);
        write(&mut stream, &hello).await;
        let mut accepted = client.accept().await;
        assert_eq!(accepted.protocol, PROTOCOL);
        // Its greeting says that it knows us as a neighbour; what comes earlier is not heard.
        let mut kind = [0; 5];
        within("a greeting", accepted.stream.read_exact(&mut kind))
            .await
            .expect("a greeting");
        assert_eq!(kind[4], HELLO);
        let terms = Terms {
            ownership: Ownership::Enforce,
            ttl: Duration::from_secs(480),
            quota_entries: 256,
            quota_bytes: 64 << 10,
        };
        Self {
            client,
            peer,
            key,
            token,
            hub,
            ledger: Ledger::new(peer, terms),
            exchange: Exchange::new(peer, Duration::from_secs(10), 0),
            stream,
            _answers: accepted.stream,
        }
    }

    /// Says that it is alive, by a clock that shows `said`.
    pub async fn beat(&mut self, said: UnixTime) {
        let key = self.peer.to_base58();
        let value = value::heartbeat(said);
        assert!(
            self.ledger
                .put("healthcheck", &key, &value, &self.key, said)
        );
        let outgoing = self
            .exchange
            .connected(self.hub, &mut self.ledger, said, Instant::now());
        self.send(outgoing).await;
    }

    /// Takes that back.
    pub async fn withdraw(&mut self) {
        let withdrawn = self.ledger.withdraw(&self.key, now());
        let outgoing = self
            .exchange
            .spread(&withdrawn, &self.ledger, Instant::now());
        self.send(outgoing).await;
    }

    async fn send(&mut self, outgoing: Vec<Outgoing>) {
        for Outgoing { message, .. } in outgoing {
            let frame = sealed(&self.token, &message.encode(), MESSAGE, self.peer, self.hub);
            write(&mut self.stream, &frame).await;
        }
    }
}

pub fn now() -> UnixTime {
    UnixTime(SystemTime::UNIX_EPOCH.elapsed().expect("after 1970"))
}

/// A frame as our nodes write it: its kind, then bytes sealed for this way under the key of the present window.
fn sealed(token: &Token, plain: &[u8], kind: u8, from: PeerId, to: PeerId) -> Vec<u8> {
    let key = token.seal_key(token.window(now()));
    let mut context = b"edgevpn ledger frame 1".to_vec();
    context.push(kind);
    context.extend(from.to_bytes());
    context.extend(to.to_bytes());
    let mut frame = vec![kind];
    frame.extend(seal_bytes(plain, &key, rand::random(), &context));
    frame
}

pub async fn write(stream: &mut Stream, frame: &[u8]) {
    let length = u32::try_from(frame.len()).expect("short").to_be_bytes();
    let written = async {
        stream.write_all(&length).await?;
        stream.write_all(frame).await?;
        stream.flush().await
    };
    within("a frame is written", written)
        .await
        .expect("written");
}
