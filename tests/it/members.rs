//! Nodes of one network, each the real program in a folder of its own: who becomes a member, who does not, and what that
//! opens.

mod speaker;

use crate::support::{
    node::{DEADLINE, NodeUnderTest, get},
    relay::{Client, Refused, read_to_end},
    status::reload,
};
use edgevpn::{id::PeerId, net::exchange::PROTOCOL, wire::Token};
use libp2p::Multiaddr;
use serde_json::Value;
use speaker::{Speaker, now};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// PERMISSION_DENIED.
const DENIED: Refused = Refused(202);

/// A network of its own.
fn token() -> String {
    Token::generate(3600, |bytes| rand::fill(bytes)).to_base64()
}

/// A node that finds others through `[[peer]]` alone. Heartbeats are rare: what is seen in time was told at once.
fn member(token: &str, more: &str) -> String {
    format!(
        r#"
[network]
token = "{token}"
{}"#,
        on_its_own(more)
    )
}

fn on_its_own(more: &str) -> String {
    format!(
        r#"
[discovery]
mdns = false
dht = false
[relay]
service = true
{more}"#
    )
}

/// Nobody is admitted before a member is known.
const STRICT: &str = "[acl]\nbootstrap = \"0s\"\n";

fn peer_of(node: &NodeUnderTest) -> String {
    let address = node.address("tcp");
    let (address, id) = address.rsplit_once("/p2p/").expect("an address with an id");
    format!("[[peer]]\nid = \"{id}\"\naddresses = [\"{address}\"]\n")
}

fn address_of(node: &NodeUnderTest) -> (PeerId, Multiaddr) {
    let id = node.peer_id().parse().expect("a peer id");
    (id, node.address("tcp").parse().expect("an address"))
}

fn members(status: &Value) -> u64 {
    status["node"]["network"]["members"].as_u64().unwrap_or(0)
}

/// What a status says of one peer.
fn about<'a>(status: &'a Value, peer: &str) -> Option<&'a Value> {
    let peers = status["node"]["network"]["peers"].as_array()?;
    peers.iter().find(|known| known["peer"] == peer)
}

/// Entries taken over from others.
fn merged(status: &Value) -> u64 {
    let ledger = &status["node"]["network"]["ledger"];
    ledger["merged_total"].as_u64().unwrap_or(0)
}

fn reservations(status: &Value) -> u64 {
    status["node"]["relay"]["reservations"]
        .as_u64()
        .unwrap_or(0)
}

fn explained(node: &NodeUnderTest, peer: PeerId) -> Value {
    let path = format!("/v1/explain?peer={peer}&operation=reserve");
    get(&node.path("run/api.sock"), &path).expect("the node answers")
}

fn state_file(node: &NodeUnderTest) -> Option<PathBuf> {
    let files = fs::read_dir(node.path("state")).ok()?;
    files.flatten().map(|file| file.path()).find(|path| {
        path.extension()
            .is_some_and(|extension| extension == "state")
    })
}

#[test]
fn two_nodes_with_one_token_are_members_of_each_other() {
    let token = token();
    let hub = NodeUnderTest::start(&member(&token, ""));
    let other = NodeUnderTest::start(&member(&token, &peer_of(&hub)));
    other.until("the hub is a member", |status| members(status) == 1);
    let seen = hub.until("the other is a member", |status| members(status) == 1);
    let known = about(&seen, &other.peer_id()).expect("known");
    assert_eq!(known["path"], "direct");
    assert_eq!(known["member"], true);
    let status = other.until("the hub has told about itself", |status| {
        about(status, &hub.peer_id()).is_some_and(|hub| hub["version"] == env!("CARGO_PKG_VERSION"))
    });
    assert!(status["node"]["network"]["ledger"]["entries"].as_u64() >= Some(4));
    assert_eq!(status["node"]["panics"], 0);
}

#[test]
fn a_node_with_another_token_stays_a_stranger() {
    let hub = NodeUnderTest::start(&member(&token(), ""));
    let other = NodeUnderTest::start(&member(&token(), &peer_of(&hub)));
    let status = hub.until("the greeting is turned down", |status| {
        status["node"]["network"]["rejected"]["exchange_sealed"].as_u64() >= Some(1)
    });
    assert_eq!(members(&status), 0);
    assert_eq!(about(&status, &other.peer_id()), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_refused_a_member_is_admitted_at_once_and_one_that_leaves_loses_its_reservation()
 {
    let token = token();
    let hub = NodeUnderTest::start(&member(&token, STRICT));
    let (id, address) = address_of(&hub);
    let mut stranger = Client::by_hand();
    stranger.dial(&address).await.expect("connects");
    assert_eq!(stranger.reserve(id).await.err(), Some(DENIED));

    let mut member = Speaker::join(&token, id, &address).await;
    assert_eq!(member.client.reserve(id).await.err(), Some(DENIED));
    assert_eq!(
        explained(&hub, member.peer)["because"],
        "not a member: no heartbeat of it has been seen"
    );
    let said = Instant::now();
    member.beat(now()).await;
    while explained(&hub, member.peer)["admitted"] != true {
        assert!(said.elapsed() < DEADLINE, "never admitted");
    }
    member.client.reserve(id).await.expect("a member reserves");
    let took = said.elapsed();
    assert!(took <= Duration::from_secs(2), "admitted after {took:?}");
    assert_eq!(stranger.reserve(id).await.err(), Some(DENIED));

    let left = Instant::now();
    member.withdraw().await;
    hub.until("its reservation ends", |status| reservations(status) == 0);
    assert!(left.elapsed() <= Duration::from_secs(3));
    assert_eq!(
        explained(&hub, member.peer)["because"],
        "not a member: it withdrew its heartbeat"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_of_another_time_make_nobody_a_member() {
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    let token = token();
    let hub = NodeUnderTest::start(&member(&token, STRICT));
    let (id, address) = address_of(&hub);
    for said in [
        now().saturating_sub(Duration::from_secs(481)),
        now().saturating_add(Duration::from_secs(60)),
        now().saturating_add(YEAR),
    ] {
        let mut peer = Speaker::join(&token, id, &address).await;
        peer.beat(said).await;
        // What comes after it on the same stream is dealt with after it.
        let asked = Instant::now();
        while explained(&hub, peer.peer)["because"]
            == "not a member: no heartbeat of it has been seen"
        {
            assert!(asked.elapsed() < DEADLINE, "never looked at: {said:?}");
        }
        assert_eq!(peer.client.reserve(id).await.err(), Some(DENIED));
    }
    assert_eq!(hub.status().map_or(9, |status| members(&status)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_member_closes_the_window_and_guests_lose_what_they_hold() {
    let token = token();
    let hub = NodeUnderTest::start(&member(&token, ""));
    let (id, address) = address_of(&hub);
    let mut guest = Client::by_hand();
    guest.dial(&address).await.expect("connects");
    let granted = guest.reserve(id).await.expect("the window is open");
    let until = granted.reservation.map(|granted| granted.expire);
    let left = until.expect("an expiry").saturating_sub(now().as_secs());
    assert!(left <= 120, "a guest keeps it for {left} s");

    let mut member = Speaker::join(&token, id, &address).await;
    member.beat(now()).await;
    let status = hub.until("the guest loses it", |status| reservations(status) == 0);
    assert_eq!(status["node"]["network"]["bootstrap"]["open"], false);
    // It is disconnected once, so that it learns.
    guest.disconnected_from(id).await;
    guest.dial(&address).await.expect("connects");
    assert_eq!(guest.reserve(id).await.err(), Some(DENIED));

    member.withdraw().await;
    let status = hub.until("nobody is left", |status| members(status) == 0);
    assert_eq!(status["node"]["network"]["bootstrap"]["open"], false);
    assert_eq!(guest.reserve(id).await.err(), Some(DENIED));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_window_is_not_opened_again_by_killing_the_node() {
    let token = token();
    let file = member(&token, "");
    let hub = NodeUnderTest::start(&file);
    hub.until("the window is open", |status| {
        status["node"]["network"]["bootstrap"]["open"] == true
    });
    let folder = hub.kill();
    for left in fs::read_dir(folder.path().join("state")).expect("a folder") {
        let path = left.expect("a file").path();
        if path
            .extension()
            .is_some_and(|extension| extension == "state")
        {
            fs::remove_file(path).expect("an empty ledger");
        }
    }
    let hub = NodeUnderTest::start_in(folder, &[]);
    let status = hub.until("ready", |status| status["generation"].as_u64() >= Some(1));
    assert_eq!(status["node"]["network"]["bootstrap"]["open"], false);
    let (id, address) = address_of(&hub);
    let mut stranger = Client::by_hand();
    stranger.dial(&address).await.expect("connects");
    assert_eq!(stranger.reserve(id).await.err(), Some(DENIED));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_window_closes_when_its_time_is_up() {
    let hub = NodeUnderTest::start(&member(&token(), "[acl]\nbootstrap = \"1s\"\n"));
    let (id, address) = address_of(&hub);
    hub.until("the window is closed", |status| {
        status["node"]["network"]["bootstrap"]["open"] == false
    });
    let mut stranger = Client::by_hand();
    stranger.dial(&address).await.expect("connects");
    assert_eq!(stranger.reserve(id).await.err(), Some(DENIED));
    let status = hub.apply(&member(&token(), "[acl]\nbootstrap = \"10m\"\n"));
    assert_eq!(status["node"]["network"]["bootstrap"]["open"], false);
}

#[test]
fn a_node_that_stops_withdraws_and_one_that_comes_back_is_a_member_again() {
    let token = token();
    let hub = NodeUnderTest::start(&member(&token, ""));
    let other = NodeUnderTest::start(&member(&token, &peer_of(&hub)));
    hub.until("a member comes", |status| members(status) == 1);
    let (id, folder) = (other.peer_id(), other.folder.clone());
    assert!(other.stop().success());
    let status = hub.until("it has left", |status| members(status) == 0);
    let left = about(&status, &id).expect("still known");
    assert_eq!(left["why_not"], "it withdrew its heartbeat");
    let _other = NodeUnderTest::start_in(folder, &[]);
    hub.until("it is back", |status| members(status) == 1);
}

#[test]
fn a_node_whose_file_names_no_network_any_more_withdraws() {
    let token = token();
    let hub = NodeUnderTest::start(&member(&token, ""));
    let other = NodeUnderTest::start(&member(&token, &peer_of(&hub)));
    hub.until("a member comes", |status| members(status) == 1);
    let id = other.peer_id();
    other.edit("[acl]\nreserve = \"anyone\"\n");
    // A section that disappears is held back as half written unless somebody insists.
    reload(&other, "force");
    other.until("it is in no network", |status| {
        status["node"]["network"] == Value::Null
    });
    let status = hub.until("it has left", |status| members(status) == 0);
    let left = about(&status, &id).expect("still known");
    assert_eq!(left["why_not"], "it withdrew its heartbeat");
}

#[test]
fn a_killed_node_knows_its_members_when_it_starts_again() {
    let token = token();
    let hub = NodeUnderTest::start(&member(&token, ""));
    let other = NodeUnderTest::start(&member(&token, &peer_of(&hub)));
    hub.until("a member comes", |status| members(status) == 1);
    let id = other.peer_id();
    hub.until("the ledger is written", |_| {
        state_file(&hub).is_some_and(|file| {
            let state = fs::read(file).unwrap_or_default();
            // Two heartbeats and two descriptions.
            state.len() > 700
        })
    });
    other.kill();
    let hub = NodeUnderTest::start_in(hub.kill(), &[]);
    let status = hub.until("the member is remembered", |status| members(status) == 1);
    assert_eq!(about(&status, &id).expect("known")["member"], true);
}

#[test]
fn a_damaged_ledger_is_set_aside_and_comes_back_from_the_members() {
    let token = token();
    let hub = NodeUnderTest::start(&member(&token, ""));
    let other = NodeUnderTest::start(&member(&token, &peer_of(&hub)));
    other.until("the hub is a member", |status| members(status) == 1);
    let folder = other.folder.clone();
    let file = |node: &NodeUnderTest| state_file(node).expect("a state file");
    other.until("the ledger is written", |_| state_file(&other).is_some());
    let path = file(&other);
    other.kill();
    let mut state = fs::read(&path).expect("read");
    let middle = state.len() / 2;
    state[middle] ^= 1;
    fs::write(&path, &state).expect("damaged");
    let other = NodeUnderTest::start_in(folder, &[]);
    other.until_logged(&["set aside", "ledger-"]);
    other.until("the hub is a member again", |status| members(status) == 1);
    let aside = PathBuf::from(format!("{}.corrupt", path.display()));
    assert_eq!(fs::read(aside).expect("kept to be looked at"), state);
}

#[test]
fn a_disk_that_takes_no_ledger_is_a_problem_and_nothing_else() {
    let token = token();
    let often = "[ledger]\nheartbeat = \"1s\"\n";
    let hub = NodeUnderTest::start(&member(&token, often));
    let written = hub.until("the ledger is written", |_| state_file(&hub).is_some());
    let network = &written["node"]["network"]["fingerprint"];
    let network = network.as_str().expect("a fingerprint");
    // A directory in the way of the file that is written: nothing can be kept, not even by root.
    fs::create_dir_all(hub.path(&format!("state/ledger-{network}.tmp"))).expect("created");
    let told = |status: &Value| {
        let problems = status["problems"].as_array().expect("problems");
        problems.iter().any(|problem| {
            problem
                .as_str()
                .is_some_and(|problem| problem.contains("the ledger cannot be kept"))
        })
    };
    hub.until("the problem is told", told);
    let other = NodeUnderTest::start(&member(&token, &peer_of(&hub)));
    other.until("the hub goes on", |status| members(status) == 1);
    fs::remove_dir(hub.path(&format!("state/ledger-{network}.tmp"))).expect("removed");
    hub.until("it is kept again", |status| !told(status));
}

#[test]
fn a_new_token_is_followed_inside_the_process() {
    let (first, second) = (token(), token());
    let hub = NodeUnderTest::start(&member(&first, ""));
    let peer = peer_of(&hub);
    let other = NodeUnderTest::start(&member(&first, &peer));
    hub.until("they are members", |status| members(status) == 1);
    let before = other.until("both ways", |status| members(status) == 1);

    // The hub's port must stay, or the other does not find it.
    hub.apply(&member(&second, ""));
    hub.until("the hub has left", |status| members(status) == 0);
    other.until("which the other sees", |status| members(status) == 0);
    other.apply(&member(&second, &peer));
    let after = other.until("they meet in the other network", |status| {
        members(status) == 1
    });
    hub.until("both ways", |status| members(status) == 1);
    assert_ne!(
        before["node"]["network"]["fingerprint"],
        after["node"]["network"]["fingerprint"]
    );
}

#[test]
fn a_rotation_of_the_token_loses_nobody() {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let file = |name: &str, token: &str| {
        let path = folder.path().join(name);
        fs::write(&path, token).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("private");
        path.display().to_string()
    };
    let (old, new) = (file("old", &token()), file("new", &token()));
    let under = |own: &str, accepted: &[&str], more: &str| {
        format!(
            "[network]\ntoken_file = \"{own}\"\naccept_token_files = {accepted:?}\n[ledger]\nheartbeat = \"1s\"\nannounce_interval = \"1s\"\nsync_interval = \"1s\"\n{}",
            on_its_own(more)
        )
    };
    let hub = NodeUnderTest::start(&under(&old, &[], ""));
    let peer = peer_of(&hub);
    let other = NodeUnderTest::start(&under(&old, &[], &peer));
    let nodes = [(&hub, ""), (&other, peer.as_str())];
    for (node, _) in nodes {
        node.until("they are members", |status| members(status) == 1);
    }
    let steps: [(&str, Vec<&str>); 3] = [(&old, vec![&new]), (&new, vec![&old]), (&new, vec![])];
    for (own, accepted) in steps {
        for (changed, more) in nodes {
            changed.apply(&under(own, &accepted, more));
            let heard = nodes.map(|(node, _)| node.status().map_or(0, |status| merged(&status)));
            for ((node, _), heard) in nodes.into_iter().zip(heard) {
                let status = node.until("heartbeats go on", |status| merged(status) > heard);
                assert_eq!(members(&status), 1, "with {own} and {accepted:?}");
            }
        }
    }
    for (node, _) in nodes {
        assert!(!node.log_text().contains("left the network"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_floods_the_exchange_is_cut_off_counted_and_hardly_logged() {
    let hub = NodeUnderTest::start(&member(&token(), STRICT));
    let (id, address) = address_of(&hub);
    let mut stranger = Client::by_hand();
    stranger.dial(&address).await.expect("connects");
    for length in [0, 1, 29, 30, 4096].repeat(10) {
        let mut stream = stranger.open(id, PROTOCOL).await.expect("a stream");
        let junk = vec![1; length];
        let frame = async {
            use futures::AsyncWriteExt;
            let prefix = u32::try_from(length).expect("short").to_be_bytes();
            stream.write_all(&prefix).await?;
            stream.write_all(&junk).await?;
            stream.flush().await
        };
        // It may be cut off while it writes.
        let _ = frame.await;
        assert_eq!(read_to_end(&mut stream).await, b"");
    }
    let status = hub.status().expect("it answers");
    let rejected = &status["node"]["network"]["rejected"];
    assert!(
        rejected["exchange_sealed"].as_u64() >= Some(1),
        "{rejected}"
    );
    // How many get through depends on how long the rest takes: a peer is shunned for ten seconds at a time.
    let of = |reason: &str| rejected[reason].as_u64().unwrap_or(0);
    assert!(of("shunned") > of("exchange_sealed"), "{rejected}");
    assert_eq!(members(&status), 0);
    let log = hub.log_text();
    let lines = log
        .lines()
        .filter(|line| line.contains("not taken from a peer"));
    assert!(lines.count() <= 10, "{log}");
}
