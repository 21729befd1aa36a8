//! Peers that mean harm: what they do costs them, and nobody else.

use edgevpn::net::streams::Stream;
use futures::{AsyncReadExt, AsyncWriteExt};
use std::time::Duration;
use tokio::time::timeout;

use super::{
    current_topic,
    frame::{self, Control, Ids, Ihave, Publication, Rpc},
    node::{Member, token, within},
    restarting::Restarting,
};

/// A node, an honest neighbour of it, and somebody else.
struct Scene {
    member: Member,
    neighbour: Member,
    hostile: Restarting,
    topic: String,
}

impl Scene {
    async fn set() -> Self {
        let token = token(600);
        let member = Member::start(&token).await;
        let mut neighbour = Member::start(&token).await;
        neighbour.dial(&member).await;
        let hostile = Restarting::start().await;
        hostile.dial(member.id, &member.tcp);
        let topic = current_topic(&token, &member);
        Self {
            member,
            neighbour,
            hostile,
            topic,
        }
    }

    async fn stream(&self) -> Stream {
        self.hostile.open(self.member.id).await
    }

    /// The neighbour is heard as if nothing were.
    async fn nobody_else_notices(&mut self) {
        self.neighbour.say(b"all is well").await;
        self.member.hear(b"all is well").await;
    }
}

#[tokio::test]
async fn a_frame_without_end_is_cut_off_and_the_next_stream_is_heard() {
    let mut scene = Scene::set().await;
    let (mut read, mut write) = scene.stream().await.split();
    let endless = async move {
        // A gigabyte is announced.
        write.write_all(&[0x80, 0x80, 0x80, 0x80, 0x04]).await?;
        loop {
            write.write_all(&[0x12; 65536]).await?;
        }
    };
    let endless = tokio::spawn(async move {
        let done: std::io::Result<()> = endless.await;
        done
    });
    let mut end = [0];
    let end = within("the stream ends", read.read(&mut end)).await;
    assert!(matches!(end, Err(_) | Ok(0)), "{end:?}");
    endless.abort();
    let mut stream = scene.stream().await;
    let hello = Rpc::hello([&scene.topic]);
    frame::write(&mut stream, &hello).await.expect("a hello");
    let message = Publication::signed(&scene.hostile.keypair, 1, &scene.topic, b"in order");
    let message = Rpc::publish(message);
    frame::write(&mut stream, &message)
        .await
        .expect("a message");
    scene.member.hear(b"in order").await;
    scene.nobody_else_notices().await;
}

#[tokio::test]
async fn forged_and_repeated_messages_are_not_heard() {
    let mut scene = Scene::set().await;
    let mut stream = scene.stream().await;
    let keypair = scene.hostile.keypair.clone();
    let signed = |number, words: &[u8]| Publication::signed(&keypair, number, &scene.topic, words);
    let mut forged = signed(1, b"forged");
    forged.from = Some(scene.neighbour.id.to_bytes());
    let mut unsigned = signed(2, b"unsigned");
    unsigned.signature = None;
    let mut without_number = signed(3, b"without number");
    without_number.seqno = None;
    let again = signed(4, b"again");
    let elsewhere = Publication::signed(&keypair, 5, "elsewhere", b"elsewhere");
    let mut all = vec![forged, unsigned, without_number, elsewhere];
    all.extend(std::iter::repeat_n(again, 500));
    all.push(signed(6, b"the last"));
    for message in all {
        let rpc = Rpc::publish(message);
        frame::write(&mut stream, &rpc).await.expect("written");
    }
    scene.member.hear(b"the last").await;
    assert_eq!(scene.member.passed_over, 1, "`again`, once");
    let tally = scene.member.tally().await;
    assert_eq!(tally.refused.get("invalid"), Some(&3), "{tally:?}");
    scene.nobody_else_notices().await;
}

#[tokio::test]
async fn floods_of_subscriptions_and_control_messages_leave_the_rooms_alone() {
    let mut scene = Scene::set().await;
    let mut stream = scene.stream().await;
    let before = scene.member.outlet();
    let strange: Vec<String> = (0..4_000).map(|number| format!("{number:032}")).collect();
    let ids: Vec<Vec<u8>> = (0..4_000_u64).map(|id| id.to_be_bytes().to_vec()).collect();
    let ihave = |topic: &String| Ihave {
        topic: Some(topic.clone()),
        ids: ids.clone(),
    };
    let control = Rpc::control(Control {
        ihave: vec![ihave(&scene.topic)],
        iwant: vec![Ids { ids: ids.clone() }],
        graft: Rpc::graft(&scene.topic).control.expect("control").graft,
        idontwant: vec![Ids { ids: ids.clone() }],
    });
    let flood = async {
        loop {
            frame::write(&mut stream, &Rpc::hello(&strange)).await?;
            frame::write(&mut stream, &control).await?;
        }
    };
    // Who talks too fast is not read any more, and so cannot write.
    let flood: Result<std::io::Result<()>, _> = timeout(Duration::from_secs(2), flood).await;
    assert!(flood.is_err(), "{flood:?}");
    scene.nobody_else_notices().await;
    assert_eq!(scene.member.outlet(), before);
}

#[tokio::test]
async fn a_storm_of_streams_is_answered_with_few_hellos() {
    let mut scene = Scene::set().await;
    for _ in 0..200 {
        let mut stream = scene.stream().await;
        let hello = Rpc::hello([&scene.topic]);
        // The one before may be reset by now.
        let _ = frame::write(&mut stream, &hello).await;
    }
    scene.nobody_else_notices().await;
    let tally = scene.member.tally().await;
    assert!(tally.hellos <= 34, "{tally:?}");
}

#[tokio::test]
async fn of_many_strangers_a_few_may_send_much_and_who_proves_itself_may_too() {
    let mut scene = Scene::set().await;
    let mut crowd = Vec::new();
    for _ in 0..16 {
        let stranger = Restarting::start().await;
        stranger.dial(scene.member.id, &scene.member.tcp);
        crowd.push((stranger.open(scene.member.id).await, stranger));
    }
    let last = Restarting::start().await;
    last.dial(scene.member.id, &scene.member.tcp);
    let large = vec![7; 2 << 20];
    let mut number = 0;
    let mut said = |words: &[u8]| {
        number += 1;
        Rpc::publish(Publication::signed(
            &last.keypair,
            number,
            &scene.topic,
            words,
        ))
    };
    let (mut read, mut write) = last.open(scene.member.id).await.split();
    // It may be cut off while it writes.
    let _ = timeout(
        Duration::from_secs(2),
        frame::write(&mut write, &said(&large)),
    )
    .await;
    let end = within("the stream ends", read.read(&mut [0])).await;
    assert!(matches!(end, Err(_) | Ok(0)), "{end:?}");
    let mut stream = last.open(scene.member.id).await;
    frame::write(&mut stream, &said(b"a little"))
        .await
        .expect("written");
    scene.member.hear(b"a little").await;
    let mut stream = last.open(scene.member.id).await;
    frame::write(&mut stream, &said(&large))
        .await
        .expect("written");
    scene.member.hear(&large).await;
}
