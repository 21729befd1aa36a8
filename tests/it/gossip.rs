//! Gossip between nodes on loopback sockets, across the ends of windows of a few seconds.

pub mod frame;
mod hostile;
mod node;
mod restarting;

use edgevpn::wire::Token;
use libp2p::Multiaddr;
use node::{Member, token};
use restarting::Restarting;
use std::{collections::HashMap, sync::Arc, time::Instant};
use tokio::time::{Duration, timeout};

#[tokio::test]
async fn two_nodes_of_one_token_hear_each_other_across_the_end_of_a_window() {
    let token = token(3);
    let mut one = Member::start(&token).await;
    let mut two = Member::start(&token).await;
    one.dial(&two).await;
    let first = one.say(b"before").await;
    assert_eq!(two.hear(b"before").await.author, one.id);
    two.say(b"and back").await;
    one.hear(b"and back").await;
    one.window_after(first).await;
    one.say(b"after").await;
    let heard = two.hear(b"after").await;
    assert!(heard.window > first, "{:?} is a later window", heard.window);
    two.say(b"back again").await;
    one.hear(b"back again").await;
}

#[tokio::test]
async fn a_new_token_leaves_the_old_room_and_joins_the_new_one_on_the_same_connection() {
    let (old, new) = (token(600), token(600));
    let mut one = Member::start(&old).await;
    let mut two = Member::start(&old).await;
    one.dial(&two).await;
    one.follow(std::slice::from_ref(&new));
    two.until("the room empties", |outlet| outlet.subscribers == 0)
        .await;
    two.follow(&[new, old]);
    one.until("the new room fills", |outlet| outlet.subscribers == 1)
        .await;
    one.say(b"new room").await;
    two.hear(b"new room").await;
}

#[tokio::test]
async fn without_a_token_nothing_is_spoken_and_with_one_it_begins_on_the_same_connection() {
    let token = token(600);
    let mut one = Member::start(&token).await;
    let mut two = Member::start(&token).await;
    two.follow(&[]);
    one.dial_address(two.id, two.tcp.clone());
    two.follow(std::slice::from_ref(&token));
    one.until("the room fills", |outlet| outlet.subscribers == 1)
        .await;
    two.follow(&[]);
    one.until("the room empties", |outlet| outlet.subscribers == 0)
        .await;
    assert_eq!(two.outlet(), None);
    two.follow(&[token]);
    one.until("the room fills again", |outlet| outlet.subscribers == 1)
        .await;
}

#[tokio::test]
async fn a_peer_that_restarts_its_router_twenty_five_times_is_heard_and_hears_each_time() {
    restarts_over(|member| member.tcp.clone()).await;
}

#[tokio::test]
async fn so_is_one_over_quic() {
    restarts_over(|member| member.quic.clone()).await;
}

async fn restarts_over(address: impl Fn(&Member) -> Multiaddr) {
    let token = token(600);
    let mut member = Member::start(&token).await;
    let mut peer = Restarting::start().await;
    let topic = current_topic(&token, &member);
    peer.restart(std::slice::from_ref(&topic));
    peer.dial(member.id, &address(&member));
    for round in 0..25 {
        peer.knows(member.id, &topic).await;
        let words = format!("to the member {round}");
        peer.publish(&topic, words.as_bytes());
        assert_eq!(member.hear(words.as_bytes()).await.author, peer.id);
        until_heard(&mut member, &mut peer, &format!("to the peer {round}")).await;
        peer.restart(std::slice::from_ref(&topic));
    }
}

/// Publishes until it is heard: what was sent while the router was replaced is lost.
async fn until_heard(member: &mut Member, peer: &mut Restarting, words: &str) {
    for _ in 0..100 {
        let window = member.outlet().expect("a network").window;
        // Nobody may be there yet.
        let _ = member.say_in(window, words.as_bytes()).await;
        let heard = async { while peer.next().await.data != words.as_bytes() {} };
        if timeout(Duration::from_millis(100), heard).await.is_ok() {
            return;
        }
    }
    panic!("{words:?} is not heard");
}

fn current_topic(token: &Arc<Token>, member: &Member) -> String {
    token.topic(member.outlet().expect("a network").window)
}

#[tokio::test]
async fn three_peers_that_lose_each_other_at_each_rotation_are_healed_by_one_node() {
    let silences = silences([0, 200, 400]).await;
    let longest = silences.values().max().expect("pairs");
    assert!(*longest < Duration::from_millis(1800), "{silences:?}");
}

#[tokio::test]
async fn clocks_that_differ_by_half_a_window_cost_their_difference_and_no_more() {
    let silences = silences([-700, 0, 300]).await;
    let longest = silences.values().max().expect("pairs");
    assert!(*longest < Duration::from_millis(2600), "{silences:?}");
}

/// Three restarting peers with their clocks so far ahead, each connected to the others and to a node of ours: how long each
/// has heard nothing of another, at most, in four windows of two seconds. Without our node, those that turn first are not
/// heard again in all that time.
async fn silences(skews: [i64; 3]) -> HashMap<(usize, usize), Duration> {
    let token = token(2);
    let member = Member::start(&token).await;
    let mut peers = Vec::new();
    for _ in skews {
        peers.push(Restarting::start().await);
    }
    for (index, peer) in peers.iter().enumerate() {
        peer.dial(member.id, &member.tcp);
        for other in &peers[..index] {
            peer.dial(other.id, &other.tcp);
        }
    }
    for (peer, skew) in peers.iter().zip(skews) {
        peer.follow(&token, skew, b"alive");
    }
    let ids: Vec<_> = peers.iter().map(|peer| peer.id).collect();
    let begin = Instant::now();
    let (mut last, mut longest) = (HashMap::new(), HashMap::new());
    while begin.elapsed() < Duration::from_secs(9) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        for (here, peer) in peers.iter_mut().enumerate() {
            for heard in peer.heard_so_far() {
                let there = ids
                    .iter()
                    .position(|id| *id == heard.author)
                    .expect("a peer");
                last.insert((here, there), Instant::now());
            }
        }
        // The first second is for getting to know each other.
        let settled = begin + Duration::from_secs(1);
        for (here, there) in (0..3).flat_map(|here| (0..3).map(move |there| (here, there))) {
            if here != there && Instant::now() > settled {
                let since = last
                    .get(&(here, there))
                    .copied()
                    .unwrap_or(begin)
                    .max(settled);
                let longest = longest.entry((here, there)).or_insert(Duration::ZERO);
                *longest = since.elapsed().max(*longest);
            }
        }
    }
    longest
}

#[tokio::test]
async fn a_thousand_messages_a_second_across_the_ends_of_windows_lose_nothing() {
    let token = token(2);
    let mut one = Member::start(&token).await;
    let mut two = Member::with_skew(&token, 900).await;
    one.dial(&two).await;
    two.until("the room fills", |outlet| outlet.subscribers == 1)
        .await;
    let begin = Instant::now();
    let mut beat = tokio::time::interval(Duration::from_millis(1));
    let mut sent = 0_u32;
    while begin.elapsed() < Duration::from_secs(5) {
        beat.tick().await;
        one.say(&sent.to_be_bytes()).await;
        sent += 1;
    }
    one.say(b"the last").await;
    two.hear(b"the last").await;
    assert!(sent > 2000, "{sent} messages are a load");
    assert_eq!(two.passed_over, u64::from(sent), "of {sent}");
}
