//! The API socket and the metrics port, against an engine that answers at once: who may ask, what is refused and how, and how
//! a server is replaced.

use crate::support::{
    engine::{answer, report, serve, verdict},
    skip::root_for,
};
use edgevpn::{
    api::{Bound, Candidate, Client, ClientError, Handle, Order, Request, Server},
    plan::Outcome,
};
use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::mpsc,
    task::JoinSet,
};

/// Long enough for a busy machine; nothing here waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn status_reload_and_plan_come_back_as_the_engine_gave_them() {
    let api = Api::started().await;
    let client = api.client();
    assert_eq!(client.status().await.unwrap(), report());
    assert_eq!(
        client.reload(Order::Force).await.unwrap(),
        verdict(Outcome::Applied)
    );
    assert_eq!(
        client.reload(Order::Rollback).await.unwrap(),
        verdict(Outcome::RolledBack)
    );
    let planned = client.plan(&candidate("version = 1\n")).await.unwrap();
    assert_eq!(planned.summary.keys, "version = 1\n".len());
    client.tell_to_reload(Order::Read).await.unwrap();
}

#[tokio::test]
async fn the_socket_is_0660_in_a_directory_that_is_0750() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("run/edgevpn/api.sock");
    let bound = Server::bind(&path).await.unwrap();
    assert_eq!(mode(&path), 0o660);
    assert_eq!(mode(path.parent().unwrap()), 0o750);
    assert_eq!(
        names(path.parent().unwrap()),
        ["api.sock"],
        "nothing else is left behind"
    );
    drop(bound);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stopped_server_removes_its_socket_and_answers_what_it_was_asked_before() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("api.sock");
    let (requests, mut engine) = mpsc::channel(4);
    let server = Server::bind(&path).await.unwrap().serve(requests);
    let client = Client::new(&path, PATIENCE);
    let asking = tokio::join!(client.status(), async {
        let Some(Request::Status { reply }) = engine.recv().await else {
            panic!("a status request")
        };
        let stopped = server.stop();
        tokio::join!(stopped, async { reply.send(report()).unwrap() });
    });
    assert_eq!(asking.0.unwrap(), report());
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "std leaves the file");
    let api = Api::at(&path).await;
    let second = Server::bind(&path).await.unwrap_err();
    assert!(
        second
            .to_string()
            .contains("is in use: another node answers there"),
        "{second}"
    );
    assert_eq!(api.client().status().await.unwrap(), report());
}

#[tokio::test]
async fn a_file_in_the_place_of_the_socket_is_not_touched() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("api.sock");
    fs::write(&path, "dear").unwrap();
    let error = Server::bind(&path).await.unwrap_err();
    assert!(error.to_string().contains("is not a socket"), "{error}");
    assert_eq!(fs::metadata(&path).unwrap().len(), 4);
}

#[tokio::test]
async fn a_path_that_no_socket_can_have_is_named_with_its_length() {
    let home = TempDir::new().unwrap();
    let error = Server::bind(&home.path().join("x".repeat(120)))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("too long for a socket"),
        "{error}"
    );
}

#[tokio::test]
async fn a_new_server_answers_before_the_old_one_stops() {
    let home = TempDir::new().unwrap();
    let (old, new) = (home.path().join("old.sock"), home.path().join("new.sock"));
    let first = Api::at(&old).await;
    let second = Api::at(&new).await;
    assert!(first.client().status().await.is_ok());
    assert!(second.client().status().await.is_ok());
    first.server.stop().await;
    assert!(!old.exists());
    assert!(second.client().status().await.is_ok());
}

#[tokio::test]
async fn the_successor_at_the_same_path_keeps_its_socket_when_the_old_server_stops() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("api.sock");
    let old = Api::at(&path).await;
    fs::remove_file(&path).unwrap();
    let new = Api::at(&path).await;
    old.server.stop().await;
    assert!(new.client().status().await.is_ok());
}

#[tokio::test]
async fn what_does_not_belong_here_is_refused_in_json() {
    let api = Api::started().await;
    let json = "content-type: application/json\r\n";
    for (request, status, says) in [
        (head("GET", "/", ""), 404, "there is no / here"),
        (head("GET", "/v1/../../etc/passwd", ""), 404, "there is no"),
        (
            head("DELETE", "/v1/status", ""),
            405,
            "does not take DELETE",
        ),
        (head("GET", "/v1/reload", ""), 405, "does not take GET"),
        (
            head("POST", "/v1/reload", "content-length: 2\r\n") + "{}",
            415,
            "application/json",
        ),
        (
            head(
                "POST",
                "/v1/reload",
                "content-type: text/plain\r\ncontent-length: 2\r\n",
            ) + "{}",
            415,
            "application/json",
        ),
        (
            head(
                "POST",
                "/v1/reload",
                &format!("{json}content-length: 1\r\n"),
            ) + "{",
            400,
            "not what is expected",
        ),
        (
            head(
                "POST",
                "/v1/reload",
                &format!("{json}content-length: 14\r\n"),
            ) + "{\"ordr\":\"read\"}",
            400,
            "not what is expected",
        ),
        (
            head(
                "POST",
                "/v1/reload",
                &format!("{json}content-length: 1073741824\r\n"),
            ),
            413,
            "larger than 4096 bytes",
        ),
        (
            head(
                "POST",
                "/v1/plan",
                &format!("{json}content-length: 1073741824\r\n"),
            ),
            413,
            "larger than",
        ),
        (chunked("/v1/reload", 5000), 413, "larger than 4096 bytes"),
        (
            "GET /v1/status HTTP/1.1\r\nhost: example.org\r\nconnection: close\r\n\r\n".into(),
            421,
            "Host",
        ),
        (
            head("GET", "/v1/status", "origin: http://example.org\r\n"),
            403,
            "web pages",
        ),
    ] {
        let answer = api.say(&request).await;
        let line = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&line), "{request:?} got {answer:?}");
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        let body: serde_json::Value = serde_json::from_str(body).expect(&answer);
        let message = body["error"].as_str().expect(&answer);
        assert!(message.contains(says), "{request:?} got {message:?}");
    }
    assert!(
        api.client().status().await.is_ok(),
        "the server has taken no harm"
    );
}

#[tokio::test]
async fn bytes_that_are_no_http_end_the_connection_and_nothing_else() {
    let api = Api::started().await;
    for noise in [
        &b"\x00\xff\xfe"[..],
        b"\x16\x03\x01\x02\x00",
        &[b'A'; 100_000],
        b"GET / HTTP/9.9\r\n\r\n",
    ] {
        let mut stream = UnixStream::connect(&api.path).await.unwrap();
        // The server may close in the middle of it.
        let _ = stream.write_all(noise).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    assert!(api.client().status().await.is_ok());
}

#[tokio::test]
async fn a_request_head_that_dribbles_gets_408() {
    let api = Api::started().await;
    let answer = api.say("GET /v1/status HTTP/1.1\r\nhost: loc").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
}

#[tokio::test]
async fn a_body_that_dribbles_gets_408() {
    let api = Api::started().await;
    let request = head(
        "POST",
        "/v1/reload",
        "content-type: application/json\r\ncontent-length: 2\r\n",
    ) + "{";
    let answer = api.say(&request).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
}

#[tokio::test]
async fn connections_beyond_the_cap_are_told_so_and_a_place_that_is_given_back_serves_again() {
    let api = Api::started().await;
    let mut hoard = Vec::new();
    let turned_away = loop {
        let mut stream = UnixStream::connect(&api.path).await.unwrap();
        stream
            .write_all(
                head("GET", "/metrics", "")
                    .replace("close", "keep-alive")
                    .as_bytes(),
            )
            .await
            .unwrap();
        let mut first = vec![0; 12];
        stream.read_exact(&mut first).await.unwrap();
        match &first[..] {
            b"HTTP/1.1 200" => hoard.push(stream),
            _ => break String::from_utf8_lossy(&first).into_owned(),
        }
        assert!(hoard.len() < 1000, "there is no cap");
    };
    assert_eq!(turned_away, "HTTP/1.1 503");
    assert_eq!(hoard.len(), 64);
    hoard.clear();
    // The server learns of the closed connections in its own time: ask until it has.
    while api.client().status().await.is_err() {}
}

#[tokio::test]
async fn a_client_cannot_pile_up_work() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("api.sock");
    let (requests, mut engine) = mpsc::channel(2);
    let room = requests.clone();
    let _server = Server::bind(&path).await.unwrap().serve(requests);
    let mut waiting = JoinSet::new();
    for _ in 0..2 {
        let client = Client::new(&path, PATIENCE);
        waiting.spawn(async move { client.status().await });
    }
    while room.capacity() > 0 {
        tokio::task::yield_now().await;
    }
    // Two wait for the engine, which does not look yet; whoever comes third learns so at once.
    let refused = Client::new(&path, PATIENCE).status().await.unwrap_err();
    assert!(
        matches!(refused, ClientError::Refused { status: 503, .. }),
        "{refused}"
    );
    while let Ok(request) = engine.try_recv() {
        answer(request);
    }
    while let Some(answered) = waiting.join_next().await {
        assert_eq!(answered.unwrap().unwrap(), report());
    }
}

#[tokio::test]
async fn an_engine_that_is_gone_is_a_503_and_no_hang() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("api.sock");
    let (requests, engine) = mpsc::channel(2);
    let _server = Server::bind(&path).await.unwrap().serve(requests);
    drop(engine);
    let error = Client::new(&path, PATIENCE).status().await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused { status: 503, message } if message == "the node is stopping"),
        "{error}"
    );
}

#[tokio::test]
async fn a_client_gives_up_at_its_deadline_and_says_which() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("api.sock");
    let (requests, _engine) = mpsc::channel(2);
    let _server = Server::bind(&path).await.unwrap().serve(requests);
    let error = Client::new(&path, Duration::from_millis(50))
        .status()
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    let error = Client::new(home.path().join("none"), PATIENCE)
        .status()
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn another_user_is_refused_even_when_the_socket_was_opened_to_all() {
    if !root_for("another user at the socket") {
        return;
    }
    let api = Api::started().await;
    fs::set_permissions(api.home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&api.path, fs::Permissions::from_mode(0o666)).unwrap();
    // A copy, because the directory of the build need not be readable by others.
    let program = api.home.path().join("edgevpn");
    fs::copy(env!("CARGO_BIN_EXE_edgevpn"), &program).unwrap();
    let status = async |uid, gid| {
        let mut command = Command::new(&program);
        command.args(["status", "--socket"]).arg(&api.path);
        command.uid(uid).gid(gid);
        tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap()
    };
    let outsider = status(65534, 65534).await;
    assert_eq!(outsider.status.code(), Some(2));
    let said = String::from_utf8_lossy(&outsider.stderr);
    assert!(said.contains("uid 65534 may not use this API"), "{said}");
    let member = status(65534, fs::metadata(&api.path).unwrap().gid()).await;
    assert_eq!(
        member.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&member.stderr)
    );
}

#[tokio::test]
async fn metrics_have_help_type_and_unit_and_the_names_of_the_contract() {
    let api = Api::started().await;
    let answer = api.say(&head("GET", "/metrics", "")).await;
    assert!(
        answer.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{answer}"
    );
    for line in [
        "# HELP edgevpn_config_generation ",
        "# TYPE edgevpn_config_reloads counter",
        "# UNIT edgevpn_config_last_reload_success_timestamp_seconds seconds",
        "edgevpn_config_last_reload_successful 1\n",
        "edgevpn_config_last_reload_success_timestamp_seconds 1700000000.5\n",
        "edgevpn_config_reloads_total{trigger=\"watch\",result=\"rejected\"} 2\n",
        "edgevpn_config_reloads_total{trigger=\"signal\",result=\"applied\"} 0\n",
        "edgevpn_config_generation 13.0\n",
        "edgevpn_config_in_sync 1\n",
        "edgevpn_config_watch_healthy 1\n",
        "edgevpn_relay_reservations 57.0\n",
        "edgevpn_relay_circuits 112.0\n",
        "edgevpn_relay_refused_total{reason=\"denied\"} 11\n",
        "edgevpn_relay_bytes_total{direction=\"to_source\"} 7\n",
        "edgevpn_connections 60.0\n",
        "edgevpn_task_panics_total 0\n",
        "# EOF\n",
    ] {
        assert!(answer.contains(line), "no {line:?} in\n{answer}");
    }
}

#[tokio::test]
async fn the_metrics_port_serves_metrics_and_nothing_else() {
    let (requests, engine) = mpsc::channel(4);
    let bound = Server::bind_metrics("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = bound.address().unwrap();
    let taken = Server::bind_metrics(address).await.unwrap_err();
    assert!(taken.to_string().contains(&address.to_string()), "{taken}");
    let server = bound.serve(requests);
    let mut engines = JoinSet::new();
    engines.spawn(serve(engine));
    for (request, status) in [
        (head("GET", "/metrics", ""), 200),
        (head("GET", "/v1/status", ""), 404),
        (
            head(
                "POST",
                "/v1/reload",
                "content-type: application/json\r\ncontent-length: 2\r\n",
            ) + "{}",
            404,
        ),
        (head("POST", "/metrics", ""), 405),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?} got {answer:?}"
        );
    }
    server.stop().await;
    assert!(TcpStream::connect(address).await.is_err());
}

/// A served socket with an engine behind it.
struct Api {
    home: TempDir,
    path: PathBuf,
    server: Handle,
    _engine: JoinSet<()>,
}

impl Api {
    async fn started() -> Api {
        let home = TempDir::new().unwrap();
        let path = home.path().join("api.sock");
        Api {
            home,
            ..Api::at(&path).await
        }
    }

    async fn at(path: &Path) -> Api {
        let (requests, engine) = mpsc::channel(16);
        let bound: Bound = Server::bind(path).await.unwrap();
        let mut engines = JoinSet::new();
        engines.spawn(serve(engine));
        Api {
            home: TempDir::new().unwrap(),
            path: path.to_owned(),
            server: bound.serve(requests),
            _engine: engines,
        }
    }

    fn client(&self) -> Client {
        Client::new(&self.path, PATIENCE)
    }

    /// Everything that comes back until the server closes.
    async fn say(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // An error after the answer is the server closing before it has read all of a body that it refused.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }
}

fn head(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n")
}

fn chunked(path: &str, length: usize) -> String {
    let headers = "content-type: application/json\r\ntransfer-encoding: chunked\r\n";
    format!(
        "{}{length:x}\r\n{}\r\n0\r\n\r\n",
        head("POST", path, headers),
        " ".repeat(length)
    )
}

fn candidate(text: &str) -> Candidate {
    Candidate {
        name: "new.toml".into(),
        text: text.into(),
        as_path: None,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}
