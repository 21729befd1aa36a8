//! What a reload costs, and what it must not cost.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::core::muxing::SubstreamBox;

use crate::{
    client::Client,
    measure::pairs,
    server::{Kind, Server},
};

pub struct Latency {
    pub median: Duration,
    pub p99: Duration,
    pub worst: Duration,
}

/// From the request to the acknowledgement, each with a changed file, while `held` circuits are open.
pub async fn latency(held: usize, reloads: usize) -> io::Result<Latency> {
    let server = Server::start(Kind::Ours)?;
    let circuits = open(&server, held).await?;
    let mut took = Vec::with_capacity(reloads);
    for turn in 0..reloads {
        server.edit(if turn % 2 == 0 { "2h" } else { "3h" })?;
        let began = Instant::now();
        applied(server.reload()?)?;
        took.push(began.elapsed());
    }
    took.sort();
    drop(circuits);
    let at = |part: usize| {
        took.get(took.len() * part / 100)
            .or(took.last())
            .copied()
            .unwrap_or_default()
    };
    Ok(Latency {
        median: at(50),
        p99: at(99),
        worst: at(100),
    })
}

/// Reloads while every circuit carries data both ways between any two of them: none may be lost, no connection closed.
pub async fn swaps(held: usize, reloads: usize) -> io::Result<()> {
    let server = Server::start(Kind::Ours)?;
    let mut circuits = open(&server, held).await?;
    for turn in 0..reloads {
        server.edit(if turn % 2 == 0 { "2h" } else { "3h" })?;
        applied(server.reload()?)?;
        let at = turn % circuits.len();
        circuits[at].exchange(turn as u8).await?;
    }
    for (at, circuit) in circuits.iter_mut().enumerate() {
        circuit
            .exchange(at as u8)
            .await
            .map_err(|error| io::Error::other(format!("circuit {at} was lost: {error}")))?;
        if circuit.source.is_closed() || circuit.destination.is_closed() {
            return Err(io::Error::other(format!(
                "a connection of circuit {at} was closed"
            )));
        }
    }
    Ok(())
}

fn applied(acknowledgement: serde_json::Value) -> io::Result<()> {
    match acknowledgement["outcome"].as_str() {
        Some("applied") => Ok(()),
        _ => Err(io::Error::other(acknowledgement.to_string())),
    }
}

struct Circuit {
    source: Arc<Client>,
    destination: Arc<Client>,
    there: SubstreamBox,
    here: SubstreamBox,
}

impl Circuit {
    /// A byte each way.
    async fn exchange(&mut self, byte: u8) -> io::Result<()> {
        carry(&mut self.there, &mut self.here, byte).await?;
        carry(&mut self.here, &mut self.there, byte).await
    }
}

async fn carry(from: &mut SubstreamBox, to: &mut SubstreamBox, byte: u8) -> io::Result<()> {
    from.write_all(&[byte]).await?;
    from.flush().await?;
    let mut got = [0];
    to.read_exact(&mut got).await?;
    if got[0] == byte {
        Ok(())
    } else {
        Err(io::Error::other("another byte arrived"))
    }
}

/// Circuits between 100 pairs of peers, as many each as it takes.
async fn open(server: &Server, count: usize) -> io::Result<Vec<Circuit>> {
    let pairs = pairs(server, count.min(100)).await?;
    let mut circuits = Vec::with_capacity(count);
    for turn in 0..count {
        let (source, destination) = pairs[turn % pairs.len()].clone();
        let there = source.dial(destination.peer).await?;
        let here = destination.accept().await?;
        circuits.push(Circuit {
            source,
            destination,
            there,
            here,
        });
    }
    Ok(circuits)
}
