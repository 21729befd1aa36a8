//! The node without its engine: what prepare and commit do to sockets and connections.

use std::{sync::Arc, time::Duration};

use edgevpn::{
    api,
    config::Config,
    node::{Node, PrepareError},
    telemetry::Log,
};
use tokio::sync::mpsc;

struct Bench {
    folder: tempfile::TempDir,
    node: Node,
    _requests: mpsc::Receiver<api::Request>,
}

impl Bench {
    async fn with(listen: &[&str], more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = config(folder.path(), listen, more);
        let (ask, requests) = mpsc::channel(1);
        let node = Node::start(&config, ask, Log::detached()).expect("starts");
        let mut bench = Self {
            folder,
            node,
            _requests: requests,
        };
        bench
            .apply(listen, more)
            .await
            .expect("the first configuration applies");
        bench
    }

    async fn apply(&mut self, listen: &[&str], more: &str) -> Result<u64, PrepareError> {
        let prepared = self
            .node
            .prepare(config(self.folder.path(), listen, more))
            .await?;
        let committed = self.node.commit(prepared);
        let generation = committed.generation.0;
        committed.settled().await.expect("settles");
        Ok(generation)
    }

    async fn listening(&self) -> Vec<String> {
        self.node.report().await.listening
    }

    /// The address of `transport` with the peer id, for another node to dial.
    async fn address(&self, transport: &str) -> String {
        let listening = self.listening().await;
        let found = listening
            .iter()
            .find(|address| address.contains(transport))
            .expect("listens");
        format!("{found}/p2p/{}", self.node.peer_id())
    }

    async fn until(&self, what: &str, holds: impl Fn(&api::NodeReport) -> bool) {
        let look = async {
            while !holds(&self.node.report().await) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), look)
            .await
            .unwrap_or_else(|_| panic!("never: {what}"));
    }
}

fn config(folder: &std::path::Path, listen: &[&str], more: &str) -> Arc<Config> {
    let text = format!(
        "version = 1\n[node]\nstate_dir = {folder:?}\n[transport]\nlisten = {listen:?}\n{more}\n[api]\nlisten = \"\"\n"
    );
    Arc::new(Config::from_toml(&text).unwrap_or_else(|rejected| panic!("{rejected}")))
}

/// `[[peer]]` for somebody who listens at `address`, which ends with a peer id.
fn peer(address: &str) -> String {
    let (at, id) = address.rsplit_once("/p2p/").expect("an id");
    format!("[[peer]]\nid = \"{id}\"\naddresses = [\"{at}\"]\n")
}

/// A port that was free a moment ago, on both protocols as likely as not.
fn free_port() -> u16 {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    socket.local_addr().expect("bound").port()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_is_replaced_and_nobody_is_disconnected() {
    let mut relay = Bench::with(&["/ip4/127.0.0.1/tcp/0"], "").await;
    let other = Bench::with(
        &["/ip4/127.0.0.1/tcp/0"],
        &peer(&relay.address("tcp").await),
    )
    .await;
    relay
        .until("connected", |report| report.connections.established == 1)
        .await;

    let generation = relay
        .apply(
            &["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0/ws"],
            "",
        )
        .await
        .expect("applies");

    assert_eq!(generation, 2);
    let listening = relay.listening().await;
    assert!(
        listening.iter().any(|address| address.ends_with("quic-v1")),
        "{listening:?}"
    );
    assert!(
        listening.iter().any(|address| address.ends_with("/ws")),
        "{listening:?}"
    );
    assert_eq!(listening.len(), 2, "the old one is closed: {listening:?}");
    assert_eq!(relay.node.report().await.connections.established, 1);
    assert_eq!(other.node.report().await.connections.established, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_fails_the_attempt_and_changes_nothing() {
    let mut node = Bench::with(&["/ip4/127.0.0.1/tcp/0"], "").await;
    let before = node.listening().await;
    let port = free_port();
    let other = Bench::with(&[&format!("/ip4/127.0.0.1/tcp/{port}")], "").await;

    let failed = node
        .apply(
            &[
                "/ip4/127.0.0.1/udp/0/quic-v1",
                &format!("/ip4/127.0.0.1/tcp/{port}"),
            ],
            "",
        )
        .await;

    let error = failed.expect_err("the port is taken").to_string();
    assert!(
        error.contains(&port.to_string()) && error.contains("transport.listen"),
        "{error}"
    );
    node.until("the new listener is closed again", |report| {
        report.listening == before
    })
    .await;
    drop(other);
    node.apply(&[&format!("/ip4/127.0.0.1/tcp/{port}")], "")
        .await
        .expect("the port is free now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wider_listener_takes_the_port_of_the_one_it_replaces() {
    let port = free_port();
    let narrow = [
        format!("/ip4/127.0.0.1/udp/{port}/quic-v1"),
        format!("/ip4/127.0.0.1/tcp/{port}"),
    ];
    let wide = [
        format!("/ip4/0.0.0.0/udp/{port}/quic-v1"),
        format!("/ip4/0.0.0.0/tcp/{port}"),
    ];
    let mut node = Bench::with(&narrow.each_ref().map(String::as_str), "").await;

    node.apply(&wide.each_ref().map(String::as_str), "")
        .await
        .expect("applies");
    node.apply(&narrow.each_ref().map(String::as_str), "")
        .await
        .expect("and back");

    node.until("only the narrow ones listen", |report| {
        report.listening.len() == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_displaced_listener_comes_back_when_the_attempt_fails() {
    let port = free_port();
    let narrow = format!("/ip4/127.0.0.1/udp/{port}/quic-v1");
    let mut node = Bench::with(&[&narrow], "").await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let taken = format!(
        "/ip4/127.0.0.1/tcp/{}",
        listener.local_addr().expect("bound").port()
    );
    node.apply(&[&format!("/ip4/0.0.0.0/udp/{port}/quic-v1"), &taken], "")
        .await
        .expect_err("the TCP port is taken");

    node.until("the old QUIC listener is back", |report| {
        report.listening == [narrow.clone()]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_the_file_is_dialled_kept_and_found_again() {
    let mut hub = Bench::with(
        &["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"],
        "",
    )
    .await;
    let tcp = hub.address("tcp").await;
    let node = Bench::with(&["/ip4/127.0.0.1/tcp/0"], &peer(&tcp)).await;
    node.until("connected", |report| report.connections.peers == 1)
        .await;

    let id = node.node.peer_id();
    let block = format!("block = [\"{id}\"]");
    let listen = hub.listening().await;
    let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
    hub.apply(&listen, &block).await.expect("applies");
    hub.until("a blocked peer is disconnected", |report| {
        report.connections.established == 0
    })
    .await;
    node.until("and told so by its absence", |report| {
        report.connections.established == 0
    })
    .await;

    hub.apply(&listen, "").await.expect("applies");
    node.until("it comes back by itself", |report| {
        report.connections.peers == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_network_is_neither_accepted_nor_dialled() {
    let hub = Bench::with(&["/ip4/127.0.0.1/tcp/0"], "").await;
    let address = hub.address("tcp").await;
    let node = Bench::with(
        &["/ip4/127.0.0.1/tcp/0"],
        &format!("block = [\"127.0.0.0/8\"]\n{}", peer(&address)),
    )
    .await;
    let blocked_too =
        Bench::with(&["/ip4/127.0.0.1/tcp/0"], &peer(&node.address("tcp").await)).await;

    node.until("its doors stay shut", |report| {
        report.connections.refused_total > 0
    })
    .await;

    assert_eq!(node.node.report().await.connections.established, 0);
    assert_eq!(blocked_too.node.report().await.connections.established, 0);
    assert_eq!(hub.node.report().await.connections.established, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_limits_follow_the_file() {
    let listen = ["/ip4/127.0.0.1/tcp/0"];
    let mut hub = Bench::with(&listen, "[limits]\nconnections = 1").await;
    let address = hub.address("tcp").await;
    let first = Bench::with(&listen, &peer(&address)).await;
    first
        .until("the first is in", |report| {
            report.connections.established == 1
        })
        .await;
    let second = Bench::with(&listen, &peer(&address)).await;
    hub.until("the second is refused", |report| {
        report.connections.refused_total > 0
    })
    .await;

    hub.apply(&listen, "[limits]\nconnections = 2")
        .await
        .expect("applies");

    second
        .until("and let in when there is room", |report| {
            report.connections.established == 1
        })
        .await;
    assert_eq!(first.node.report().await.connections.established, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_over_its_memory_takes_nobody_in() {
    let listen = ["/ip4/127.0.0.1/tcp/0"];
    let mut hub = Bench::with(&listen, "[limits]\nmemory = \"16MiB\"").await;
    let node = Bench::with(&listen, &peer(&hub.address("tcp").await)).await;
    hub.until("refused", |report| report.connections.refused_total > 0)
        .await;

    hub.apply(&listen, "[limits]\nmemory = \"64GiB\"")
        .await
        .expect("applies");

    node.until("let in", |report| report.connections.established == 1)
        .await;
}
