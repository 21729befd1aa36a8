//! Gossip between nodes on loopback sockets, across the ends of windows of a few seconds.

mod frame;
mod node;
mod restarting;

use edgevpn::wire::Token;
use libp2p::Multiaddr;
use node::{Member, token};
use restarting::Restarting;
use std::sync::Arc;
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
    one.follow(&[new.clone()]);
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
    two.follow(&[token.clone()]);
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
