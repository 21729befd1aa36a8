//! The listening side: the unix socket of the API, and the TCP port that serves metrics and nothing else.
//!
//! A server can be replaced while it runs: bind the new one, serve it, then stop the old one.

use super::{Request, answer, routes};
use crate::task::{self, Task};
use axum::http::StatusCode;
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use hyper::{server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixListener, UnixStream},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

/// Connections served at once on one socket. Commands use one each and leave; sixty-four leave room for a fleet tool and a
/// scraper besides a client that hoards them.
const MAX_CONNECTIONS: usize = 64;

/// Connections beyond those that are still told in HTTP that the API is busy. Whoever comes after them is told so without being
/// read, which a client that is slow to write may miss.
const MAX_TURNED_AWAY: usize = 16;

const BUSY: &str = "the API serves as many connections as it can; try again";

/// A request head must arrive within this, and an idle connection is kept this long. Clients sit on the same machine.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection ends after this even if it is busy, so that one that never reads its answers gives its place back. Longer than
/// the longest answer takes ([`answer::WITHIN`]).
const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);

/// What a connection may still take once it is asked to end.
const LAST_ANSWER: Duration = Duration::from_secs(5);

/// Pause after a failed accept (no file descriptors left), so that the loop does not spin until one is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a request head; hyper refuses more with 431.
const MAX_HEAD: usize = 16 * 1024;

/// `sun_path` holds 108 bytes with the closing zero (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// Where servers come from.
pub struct Server;

/// A socket that is bound but not served: clients that connect wait. Dropping it undoes everything.
#[derive(Debug)]
pub struct Bound(Socket);

/// A served socket. Dropping it ends it at once; [`Handle::stop`] lets answers in progress finish.
#[derive(Debug)]
pub struct Handle {
    stop: watch::Sender<bool>,
    task: Task,
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{} is in use: another node answers there; stop it, or give this one its own `api.listen`", path.display())]
    InUse { path: PathBuf },
    #[error("{} exists and is not a socket; remove it, or change `api.listen`", path.display())]
    NotASocket { path: PathBuf },
    #[error(
        "{} is too long for a socket: {} bytes, the system takes {MAX_SOCKET_PATH}; shorten `api.listen`",
        path.display(), path.as_os_str().len()
    )]
    TooLong { path: PathBuf },
    #[error("cannot create the API socket {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("cannot listen on {address} for `api.metrics`: {source}")]
    Metrics {
        address: SocketAddr,
        source: io::Error,
    },
}

impl Server {
    /// Binds the API socket: mode 0660 before anybody can reach it, in a directory that is created 0750. A socket that nobody
    /// answers on is replaced.
    pub async fn bind(path: &Path) -> Result<Bound, BindError> {
        let (listener, file) = bind_unix(path).await?;
        Ok(Bound(Socket::Unix(listener, file)))
    }

    /// Binds the port for `GET /metrics`.
    pub async fn bind_metrics(address: SocketAddr) -> Result<Bound, BindError> {
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Bound(Socket::Tcp(listener))),
            Err(source) => Err(BindError::Metrics { address, source }),
        }
    }
}

impl Bound {
    /// The address of a metrics port, the chosen one if port 0 was asked for.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Socket::Unix(..) => None,
            Socket::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    /// Answers from here on, by asking through `requests`. The bound of that channel is the bound on work that waits.
    pub fn serve(self, requests: mpsc::Sender<Request>) -> Handle {
        let (stop, stopping) = watch::channel(false);
        let task = task::spawn("api", accept(self.0, requests, stopping));
        Handle { stop, task }
    }
}

impl Handle {
    /// Removes the socket, lets answers in progress finish for up to five seconds, then ends the rest.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.task.ended().await;
    }
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener),
}

/// The file of a bound socket. Removed when dropped, if it is still that socket: a successor may have put its own there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
    group: u32,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.inode);
        if ours {
            // Nothing depends on it: the next start replaces a socket that nobody answers on.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn bind_unix(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let failed = |source| BindError::Socket {
        path: path.to_owned(),
        source,
    };
    let directory = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(BindError::TooLong {
            path: path.to_owned(),
        });
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(directory)
        .map_err(failed)?;
    match std::fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => {
            return Err(BindError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err(BindError::InUse {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // Bound under another name, made 0660, then renamed: nobody meets it with other permissions, and a stale socket gives way
    // without a moment in which there is none. A directory of our own, because bind(2) takes no existing name.
    let nursery = tempfile::Builder::new()
        .prefix(".")
        .rand_bytes(3)
        .tempdir_in(directory)
        .map_err(failed)?;
    let newborn = nursery.path().join("s");
    let listener = UnixListener::bind(&newborn).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidInput => BindError::TooLong {
            path: path.to_owned(),
        },
        _ => failed(source),
    })?;
    std::fs::set_permissions(&newborn, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    let file = std::fs::symlink_metadata(&newborn).map_err(failed)?;
    std::fs::rename(&newborn, path).map_err(failed)?;
    let file = SocketFile {
        path: path.to_owned(),
        inode: (file.dev(), file.ino()),
        group: file.gid(),
    };
    Ok((listener, file))
}

/// Serves until told to stop. Connections are tasks of their own, so that a panic in one is counted and ends only that one.
async fn accept(
    socket: Socket,
    requests: mpsc::Sender<Request>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut connections = FuturesUnordered::new();
    let everything = routes::api(requests.clone());
    let metrics_only = routes::metrics(requests, socket.is_loopback());
    loop {
        let accepted = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(()) = connections.next(), if !connections.is_empty() => continue,
            accepted = socket.accept() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an API connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if connections.len() >= MAX_CONNECTIONS + MAX_TURNED_AWAY {
            stream.turn_away();
            continue;
        }
        let busy = connections.len() >= MAX_CONNECTIONS;
        let routes = match &stream {
            _ if busy => routes::refusing(StatusCode::SERVICE_UNAVAILABLE, BUSY),
            Stream::Unix(..) => everything.clone(),
            Stream::Tcp(_) => metrics_only.clone(),
        };
        let stopping = stopping.clone();
        let task = match stream {
            Stream::Tcp(stream) => {
                task::spawn("metrics connection", converse(stream, routes, stopping))
            }
            Stream::Unix(stream, group) => task::spawn("api connection", async move {
                let routes = match credentials(&stream, group).await {
                    Ok(()) => routes,
                    Err(stranger) => {
                        tracing::warn!(%stranger, "refused an API connection");
                        routes::refusing(StatusCode::FORBIDDEN, stranger)
                    }
                };
                converse(stream, routes, stopping).await;
            }),
        };
        connections.push(task.ended());
    }
    drop(socket);
    let rest = async { while connections.next().await.is_some() {} };
    if timeout(LAST_ANSWER, rest).await.is_err() {
        tracing::debug!("ended API connections that did not finish");
    }
}

enum Stream {
    /// With the group that owns the socket.
    Unix(UnixStream, u32),
    Tcp(tokio::net::TcpStream),
}

impl Socket {
    fn is_loopback(&self) -> bool {
        match self {
            Socket::Unix(..) => true,
            Socket::Tcp(listener) => listener
                .local_addr()
                .is_ok_and(|address| address.ip().is_loopback()),
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Socket::Unix(listener, file) => {
                let (stream, _) = listener.accept().await?;
                Ok(Stream::Unix(stream, file.group))
            }
            Socket::Tcp(listener) => Ok(Stream::Tcp(listener.accept().await?.0)),
        }
    }
}

impl Stream {
    /// Answers 503 without reading anything, as far as it can be done without waiting.
    fn turn_away(self) {
        let answer = answer::canned("503 Service Unavailable", BUSY);
        let _ = match self {
            Stream::Unix(stream, _) => stream.try_write(answer.as_bytes()),
            Stream::Tcp(stream) => stream.try_write(answer.as_bytes()),
        };
    }
}

/// Whether the process at the other end may use the API: root, the user of the node, or a member of the socket's group. The
/// mode of the socket says the same; this holds even when somebody has loosened it.
async fn credentials(stream: &UnixStream, socket_group: u32) -> Result<(), Stranger> {
    let peer = stream
        .peer_cred()
        .map_err(|error| Stranger::Unknown(error.kind()))?;
    let ours = rustix::process::geteuid().as_raw();
    if peer.uid() == 0 || peer.uid() == ours || peer.gid() == socket_group {
        return Ok(());
    }
    // SO_PEERCRED knows the primary group only.
    if let Some(pid) = peer.pid()
        && let Ok(status) = tokio::fs::read_to_string(format!("/proc/{pid}/status")).await
        && in_group(&status, socket_group)
    {
        return Ok(());
    }
    Err(Stranger::Outsider {
        uid: peer.uid(),
        ours,
        group: socket_group,
    })
}

/// Whether `/proc/<pid>/status` names the group among the supplementary ones.
fn in_group(status: &str, group: u32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .is_some_and(|groups| groups.split_whitespace().any(|id| id.parse() == Ok(group)))
}

#[derive(Debug, thiserror::Error)]
enum Stranger {
    #[error(
        "uid {uid} may not use this API: it is for root, uid {ours} and members of group {group}"
    )]
    Outsider { uid: u32, ours: u32, group: u32 },
    #[error("the system does not say who is connected ({0})")]
    Unknown(io::ErrorKind),
}

/// One connection, until it ends, is told to, or has had its time.
async fn converse<S>(stream: S, routes: axum::Router, mut stopping: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(routes);
    let service = hyper::service::service_fn(move |request| service.call(request).boxed());
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        ended = poll_fn(|context| connection.poll_without_shutdown(context)) => Some(ended),
        _ = stopping.wait_for(|stop| *stop) => None,
        () = sleep(CONNECTION_LIFETIME) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            let last = poll_fn(|context| connection.poll_without_shutdown(context));
            match timeout(LAST_ANSWER, last).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    match ended {
        Ok(()) => {}
        // hyper closes without a word; a client that was cut off in the middle of its request head deserves one. One that was
        // merely idle does not expect any.
        Err(error) if error.is_timeout() => {
            let parts = connection.into_parts();
            if !parts.read_buf.is_empty() {
                let why = "the request head did not arrive in time";
                let answer = answer::canned("408 Request Timeout", why);
                let mut stream = parts.io.into_inner();
                let _ = timeout(LAST_ANSWER, stream.write_all(answer.as_bytes())).await;
            }
        }
        Err(error) => tracing::debug!(%error, "an API connection ended early"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supplementary_groups_are_read_as_numbers() {
        let status = "Name:\tcat\nGroups:\t4 24 1000 \nVmSize: 27\n";
        assert!(in_group(status, 24));
        assert!(!in_group(status, 2));
        assert!(!in_group(status, 27));
        assert!(!in_group("Name:\tcat\n", 24));
    }
}
