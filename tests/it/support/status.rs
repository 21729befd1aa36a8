//! What tests ask of a status.
#![allow(dead_code, reason = "each test module uses its part")]

use crate::support::node::{DEADLINE, NodeUnderTest};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

pub fn sha256(text: impl AsRef<[u8]>) -> String {
    Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Holds when this very text is in force.
pub fn applied(text: impl AsRef<[u8]>) -> impl Fn(&Value) -> bool {
    let sha256 = sha256(text);
    move |status| status["applied_sha256"] == sha256
}

/// How the latest attempt ended.
pub fn outcome(status: &Value) -> &str {
    status["last_attempt"]["outcome"].as_str().unwrap_or("none")
}

/// Attempts since the start.
pub fn attempts(status: &Value) -> u64 {
    let reloads = status["reloads"].as_array().expect("counts");
    reloads
        .iter()
        .filter_map(|reload| reload["count"].as_u64())
        .sum()
}

/// The verdict on an order: `read`, `force`, `confirm` or `rollback`.
pub fn reload(node: &NodeUnderTest, order: &str) -> Value {
    post(node, "/v1/reload", &json!({ "order": order }))
}

pub fn post(node: &NodeUnderTest, path: &str, body: &Value) -> Value {
    let body = body.to_string();
    let mut stream = UnixStream::connect(node.path("run/api.sock")).expect("the node answers");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {answer:?}"));
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
