//! The other end of the API: what the commands ask a running node with. One connection a question, each with a deadline.

use super::{Candidate, Explanation, Order, Planned, StatusReport};
use crate::{acl::Operation, id::PeerId, plan::Acknowledgement};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{convert::Infallible, io, net::IpAddr, path::PathBuf, time::Duration};
use tokio::{net::UnixStream, time::timeout};

/// Bytes of an answer. A status is below 64 KiB; a plan lists at most a hundred entries a key and all diagnostics.
const MAX_ANSWER: usize = 32 * 1024 * 1024;

/// Asks one node.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    deadline: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no node answers on {}: {source}", socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("the node on {} did not answer within {} s", socket.display(), deadline.as_secs())]
    TimedOut { socket: PathBuf, deadline: Duration },
    #[error("the node on {} ended the connection: {source}", socket.display())]
    Broken {
        socket: PathBuf,
        source: hyper::Error,
    },
    /// The node did answer: not this.
    #[error("{message} (status {status})")]
    Refused { status: u16, message: String },
    #[error("the node on {} answered what this version does not understand: {reason}", socket.display())]
    Foreign { socket: PathBuf, reason: String },
}

impl Client {
    /// Every question is answered within `deadline` or fails with [`ClientError::TimedOut`].
    pub fn new(socket: impl Into<PathBuf>, deadline: Duration) -> Self {
        Self {
            socket: socket.into(),
            deadline,
        }
    }

    pub async fn status(&self) -> Result<StatusReport, ClientError> {
        let answer = self.ask(Method::GET, "/v1/status", None::<&()>).await?;
        self.understand(&answer)
    }

    /// Gives an order and waits for the verdict.
    pub async fn reload(&self, order: Order) -> Result<Acknowledgement, ClientError> {
        let body = ReloadBody { order, wait: true };
        let answer = self.ask(Method::POST, "/v1/reload", Some(&body)).await?;
        self.understand(&answer)
    }

    /// Gives an order and leaves.
    pub async fn tell_to_reload(&self, order: Order) -> Result<(), ClientError> {
        let body = ReloadBody { order, wait: false };
        self.ask(Method::POST, "/v1/reload", Some(&body)).await?;
        Ok(())
    }

    pub async fn plan(&self, candidate: &Candidate) -> Result<Planned, ClientError> {
        let answer = self.ask(Method::POST, "/v1/plan", Some(candidate)).await?;
        self.understand(&answer)
    }

    /// Why `peer` may or may not do `operation`; `address` is where it would come from, if not from where it is connected.
    pub async fn explain(
        &self,
        peer: PeerId,
        operation: Operation,
        address: Option<IpAddr>,
    ) -> Result<Explanation, ClientError> {
        let from = address.map_or_else(String::new, |address| format!("&address={address}"));
        let path = format!("/v1/explain?peer={peer}&operation={operation}{from}");
        let answer = self.ask(Method::GET, &path, None::<&()>).await?;
        self.understand(&answer)
    }

    async fn ask<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Bytes, ClientError> {
        match timeout(self.deadline, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::TimedOut {
                socket: self.socket.clone(),
                deadline: self.deadline,
            }),
        }
    }

    async fn exchange<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Bytes, ClientError> {
        let broken = |source| ClientError::Broken {
            socket: self.socket.clone(),
            source,
        };
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|source| ClientError::Unreachable {
                    socket: self.socket.clone(),
                    source,
                })?;
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| self.foreign(error))?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.foreign(error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let answer = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| self.foreign(error))?;
            Ok((status, answer.to_bytes()))
        };
        // The connection makes progress beside the exchange, which learns from it how it ended.
        let connection = async {
            let _ = connection.await;
            std::future::pending::<Infallible>().await
        };
        let (status, answer) = tokio::select! {
            answered = exchange => answered?,
            never = connection => match never {},
        };
        match status {
            StatusCode::OK | StatusCode::ACCEPTED => Ok(answer),
            status => Err(ClientError::Refused {
                status: status.as_u16(),
                message: match serde_json::from_slice::<ProblemBody>(&answer) {
                    Ok(problem) => problem.error,
                    Err(_) => "the node gave no reason".to_owned(),
                },
            }),
        }
    }

    fn understand<T: DeserializeOwned>(&self, answer: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(answer).map_err(|error| self.foreign(error))
    }

    fn foreign(&self, error: impl ToString) -> ClientError {
        ClientError::Foreign {
            socket: self.socket.clone(),
            reason: error.to_string(),
        }
    }
}

#[derive(Serialize)]
struct ReloadBody {
    order: Order,
    wait: bool,
}

#[derive(Deserialize)]
struct ProblemBody {
    error: String,
}
