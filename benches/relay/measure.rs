//! What is measured, the same for both servers.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{AsyncReadExt, AsyncWriteExt, future::try_join_all};
use libp2p::{Multiaddr, core::muxing::SubstreamBox};

use crate::{
    client::Client,
    server::{Kind, Server},
};

/// Held while renewals are counted; the open-file limit of one process is 20,000 where this was written.
pub const HELD: usize = 9_000;

/// Requests in flight at once.
const WORKERS: usize = 64;

/// How long each steady rate is watched.
const WINDOW: Duration = Duration::from_secs(3);

/// One write of a saturated circuit.
const WRITE: usize = 64 * 1024;

/// A rate and what it cost the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    pub per_second: f64,
    /// CPU seconds for one operation, or one byte.
    pub cpu_each: f64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Round {
    pub reservations: Rate,
    pub renewals: Rate,
    /// Bytes.
    pub resident_each: f64,
    pub circuits: Rate,
    pub one_circuit: Rate,
    pub many_circuits: Rate,
}

/// What a round is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    All,
    Held,
    Carried,
}

pub async fn round(kind: Kind, part: Part) -> io::Result<Round> {
    let mut round = Round::default();
    if part != Part::Carried {
        let server = Server::start(kind)?;
        let before = server.resident()?;
        let held;
        (round.reservations, held) = reservations(&server).await?;
        round.resident_each = server.resident()?.saturating_sub(before) as f64 / HELD as f64;
        round.renewals = renewals(&server, held).await?;
    }
    if part != Part::Held {
        let server = Server::start(kind)?;
        round.circuits = circuits(&server).await?;
        round.one_circuit = throughput(&server, 1).await?;
        round.many_circuits = throughput(&server, 64).await?;
    }
    Ok(round)
}

/// New reservations, each by a peer of its own over a connection of its own.
async fn reservations(server: &Server) -> io::Result<(Rate, Vec<Arc<Client>>)> {
    let left = Arc::new(AtomicUsize::new(HELD));
    let (began, cpu) = (Instant::now(), server.cpu()?);
    let workers = (0..WORKERS).map(|_| {
        let (left, address) = (left.clone(), server.address.clone());
        tokio::spawn(async move {
            let mut held = Vec::new();
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok()
            {
                held.push(reserved(&address).await?);
            }
            io::Result::Ok(held)
        })
    });
    let mut held = Vec::with_capacity(HELD);
    for worker in try_join_all(workers).await? {
        held.extend(worker?);
    }
    Ok((rate(server, began, cpu, HELD as u64)?, held))
}

pub async fn reserved(address: &Multiaddr) -> io::Result<Arc<Client>> {
    let client = Client::connect(address).await?;
    client.reserve().await?;
    Ok(Arc::new(client))
}

async fn renewals(server: &Server, held: Vec<Arc<Client>>) -> io::Result<Rate> {
    let held = Arc::new(held);
    repeated(server, WORKERS, move |turn| {
        let client = held[turn % held.len()].clone();
        async move { client.reserve().await }
    })
    .await
}

/// Circuits opened and closed again, by 64 pairs of peers.
async fn circuits(server: &Server) -> io::Result<Rate> {
    let pairs = Arc::new(pairs(server, WORKERS).await?);
    repeated(server, WORKERS, move |turn| {
        let (source, destination) = pairs[turn % pairs.len()].clone();
        async move {
            let mut there = source.dial(destination.peer).await?;
            let mut here = destination.accept().await?;
            there.close().await?;
            here.close().await
        }
    })
    .await
}

/// Bytes a second through `count` circuits, from source to destination.
async fn throughput(server: &Server, count: usize) -> io::Result<Rate> {
    let received = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    let pairs = pairs(server, count).await?;
    for (source, destination) in &pairs {
        let there = source.dial(destination.peer).await?;
        let here = destination.accept().await?;
        tasks.push(tokio::spawn(send(there, stop.clone())));
        tasks.push(tokio::spawn(receive(here, received.clone())));
    }
    tokio::time::sleep(WINDOW / 6).await;
    let (began, cpu, already) = (
        Instant::now(),
        server.cpu()?,
        received.load(Ordering::Relaxed),
    );
    tokio::time::sleep(WINDOW).await;
    let rate = rate(
        server,
        began,
        cpu,
        received.load(Ordering::Relaxed) - already,
    )?;
    stop.store(true, Ordering::Relaxed);
    for task in try_join_all(tasks).await? {
        task?;
    }
    Ok(rate)
}

async fn send(mut stream: SubstreamBox, stop: Arc<AtomicBool>) -> io::Result<()> {
    let data = vec![7; WRITE];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&data).await?;
    }
    stream.close().await
}

async fn receive(mut stream: SubstreamBox, received: Arc<AtomicU64>) -> io::Result<()> {
    let mut data = vec![0; WRITE];
    loop {
        match stream.read(&mut data).await? {
            0 => return Ok(()),
            count => received.fetch_add(count as u64, Ordering::Relaxed),
        };
    }
}

/// Pairs of clients; the second of each holds a reservation.
pub async fn pairs(server: &Server, count: usize) -> io::Result<Vec<(Arc<Client>, Arc<Client>)>> {
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        pairs.push((
            Arc::new(Client::connect(&server.address).await?),
            reserved(&server.address).await?,
        ));
    }
    Ok(pairs)
}

/// Runs `operation` over and over on some workers for [`WINDOW`]. A worker's turns are `worker, worker + workers, …`, so
/// that no two work on the same client at once.
async fn repeated<F, O>(server: &Server, workers: usize, operation: F) -> io::Result<Rate>
where
    F: Fn(usize) -> O + Clone + Send + 'static,
    O: Future<Output = io::Result<()>> + Send + 'static,
{
    let (began, cpu) = (Instant::now(), server.cpu()?);
    let running = (0..workers).map(|worker| {
        let operation = operation.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while began.elapsed() < WINDOW {
                operation(worker + done * workers).await?;
                done += 1;
            }
            io::Result::Ok(done)
        })
    });
    let mut done = 0;
    for worker in try_join_all(running).await? {
        done += worker?;
    }
    rate(server, began, cpu, done as u64)
}

fn rate(server: &Server, began: Instant, cpu: Duration, count: u64) -> io::Result<Rate> {
    let count = count as f64;
    Ok(Rate {
        per_second: count / began.elapsed().as_secs_f64(),
        cpu_each: (server.cpu()?.saturating_sub(cpu)).as_secs_f64() / count.max(1.0),
    })
}
