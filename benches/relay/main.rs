//! This relay and the server of libp2p-relay, measured alternately in one run: `cargo bench --bench relay`.
//!
//! Each server runs in a process of its own; this process is the load. Rounds alternate, so that a busy moment of the
//! machine meets both; figures are medians of the rounds, and what counts is their ratio. Arguments after `--`: `rounds=N`
//! (5), `only=ours`, `only=upstream`, `only=reload`, `part=held`, `part=carried`.

#![allow(clippy::disallowed_methods, reason = "a measurement is the edge")]

mod client;
mod measure;
mod reload;
mod server;

use std::io;

use measure::{Part, Round};
use server::Kind;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    if let [first, port, ..] = arguments.as_slice()
        && first == server::UPSTREAM
    {
        return runtime.block_on(server::run_upstream(port));
    }
    let value_of = |key: &str| {
        arguments
            .iter()
            .find_map(|argument| argument.strip_prefix(key)?.strip_prefix('='))
    };
    let rounds = value_of("rounds").unwrap_or("5").parse()?;
    let part = match value_of("part") {
        None => Part::All,
        Some("held") => Part::Held,
        Some("carried") => Part::Carried,
        Some(other) => return Err(format!("no part {other}").into()),
    };
    runtime.block_on(compare(rounds, value_of("only"), part))?;
    Ok(())
}

async fn compare(rounds: usize, only: Option<&str>, part: Part) -> io::Result<()> {
    let (mut ours, mut upstream) = (Vec::new(), Vec::new());
    for number in 1..=rounds {
        for (kind, name, results) in [
            (Kind::Upstream, "upstream", &mut upstream),
            (Kind::Ours, "ours", &mut ours),
        ] {
            if only.is_none_or(|only| only == name) {
                let round = measure::round(kind, part).await?;
                eprintln!("round {number}, {name}: {round:.4?}");
                results.push(round);
            }
        }
    }
    print_comparison(&ours, &upstream);
    if only.is_none_or(|only| only == "reload") && part == Part::All {
        print_reload().await?;
    }
    Ok(())
}

fn print_comparison(ours: &[Round], upstream: &[Round]) {
    println!("| figure | ours | upstream | ratio |\n|---|---|---|---|");
    let held = measure::HELD;
    let row = |name: &str, unit: f64, figure: fn(&Round) -> f64| {
        let (ours, upstream) = (median(ours, figure), median(upstream, figure));
        println!(
            "| {name} | {:.2} | {:.2} | {:.2} |",
            ours / unit,
            upstream / unit,
            ours / upstream
        );
    };
    let (microseconds, kib, megabytes, per_gigabyte) = (1e-6, 1024.0, 1e6, 1e-9);
    row("new reservations/s, connection included", 1.0, |r| {
        r.reservations.per_second
    });
    row("CPU µs each", microseconds, |r| r.reservations.cpu_each);
    row(&format!("renewals/s with {held} held"), 1.0, |r| {
        r.renewals.per_second
    });
    row("CPU µs each", microseconds, |r| r.renewals.cpu_each);
    row("resident KiB per held reservation", kib, |r| {
        r.resident_each
    });
    row("circuits/s, opened and closed", 1.0, |r| {
        r.circuits.per_second
    });
    row("CPU µs each", microseconds, |r| r.circuits.cpu_each);
    row("one saturated circuit, MB/s", megabytes, |r| {
        r.one_circuit.per_second
    });
    row("CPU s/GB", per_gigabyte, |r| r.one_circuit.cpu_each);
    row("64 circuits, MB/s", megabytes, |r| {
        r.many_circuits.per_second
    });
    row("CPU s/GB", per_gigabyte, |r| r.many_circuits.cpu_each);
}

fn median(rounds: &[Round], figure: fn(&Round) -> f64) -> f64 {
    let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn print_reload() -> io::Result<()> {
    let (held, reloads) = (1_000, 500);
    let latency = reload::latency(held, reloads).await?;
    println!(
        "reload with {held} held circuits, {reloads} times: median {:.2?}, 99th percentile {:.2?}, worst {:.2?}",
        latency.median, latency.p99, latency.worst
    );
    let (held, reloads) = (200, 1_000);
    reload::swaps(held, reloads).await?;
    println!("{reloads} reloads under {held} circuits: none lost, no connection closed");
    Ok(())
}
