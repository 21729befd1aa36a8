//! Paths, methods and bodies of the API, and the checks every request passes first.

use super::{
    Candidate, Order, Request,
    answer::{self, Problem},
    metrics,
};
use crate::{
    acl::Operation,
    id::{PeerId, parse_peer_id},
};
use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Deserialize, de::DeserializeOwned};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc, mpsc::error::TrySendError, oneshot},
    time::timeout,
};

/// A reload order is one short word.
const MAX_ORDER: usize = 4 * 1024;

/// A candidate is a file of at most 8 MiB (`reload/read.rs`), and JSON writes a line end in two bytes.
const MAX_CANDIDATE: usize = 17 * 1024 * 1024;

/// Candidates in memory at once: what plans cost is bounded by this, not by how many clients ask.
const MAX_CANDIDATES: usize = 2;

/// A body must be complete within this.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything, for the unix socket.
pub(super) fn api(requests: mpsc::Sender<Request>) -> Router {
    let routes = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/reload", post(reload))
        .route("/v1/plan", post(plan))
        .route("/v1/explain", get(explain))
        .route("/metrics", get(exposition));
    guarded(routes, requests).layer(middleware::from_fn(this_machine_only))
}

/// `GET /metrics` and nothing else, for a TCP port. One that only this machine reaches is not to be read through the name of
/// another; one that others reach is scraped by whatever name they know it by.
pub(super) fn metrics(requests: mpsc::Sender<Request>, loopback: bool) -> Router {
    let routes = guarded(Router::new().route("/metrics", get(exposition)), requests);
    if loopback {
        routes.layer(middleware::from_fn(this_machine_only))
    } else {
        routes
    }
}

/// One answer to whatever is asked, and the end of the connection.
pub(super) fn refusing(status: StatusCode, why: impl ToString) -> Router {
    let why = why.to_string();
    Router::new().fallback(move || {
        let problem = Problem::new(status, why.clone());
        async move { ([(header::CONNECTION, "close")], problem) }
    })
}

fn guarded(routes: Router<Node>, requests: mpsc::Sender<Request>) -> Router {
    routes
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(no_web_pages))
        .with_state(Node {
            requests,
            candidates: Arc::new(Semaphore::new(MAX_CANDIDATES)),
        })
}

/// The engine, as the routes see it.
#[derive(Clone)]
struct Node {
    requests: mpsc::Sender<Request>,
    candidates: Arc<Semaphore>,
}

impl Node {
    /// Asks the engine and waits for its answer. A client that leaves drops the waiting, not the work.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply))?;
        match timeout(answer::WITHIN, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Problem::stopping()),
            Err(_) => Err(Problem::new(
                StatusCode::GATEWAY_TIMEOUT,
                format!(
                    "the node did not answer within {} s",
                    answer::WITHIN.as_secs()
                ),
            )),
        }
    }

    fn send(&self, request: Request) -> Result<(), Problem> {
        self.requests
            .try_send(request)
            .map_err(|error| match error {
                TrySendError::Full(_) => Problem::busy(),
                TrySendError::Closed(_) => Problem::stopping(),
            })
    }
}

async fn status(State(node): State<Node>) -> Result<Response, Problem> {
    let report = node.ask(|reply| Request::Status { reply }).await?;
    Ok(Json(report).into_response())
}

/// The body of `POST /v1/reload`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReloadBody {
    #[serde(default)]
    order: Order,
    /// Whether the answer is the verdict (200) or only that the node has been told (202).
    #[serde(default = "yes")]
    wait: bool,
}

fn yes() -> bool {
    true
}

async fn reload(
    State(node): State<Node>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let ReloadBody { order, wait } = read(&headers, body, MAX_ORDER).await?;
    if wait {
        let verdict = node.ask(|reply| Request::Reload { order, reply }).await?;
        return Ok(Json(verdict).into_response());
    }
    let (reply, _) = oneshot::channel();
    node.send(Request::Reload { order, reply })?;
    Ok((StatusCode::ACCEPTED, Json(serde_json::json!({}))).into_response())
}

async fn plan(
    State(node): State<Node>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Ok(_place) = node.candidates.clone().try_acquire_owned() else {
        return Err(Problem::busy());
    };
    let candidate: Candidate = read(&headers, body, MAX_CANDIDATE).await?;
    let planned = node.ask(|reply| Request::Plan { candidate, reply }).await?;
    Ok(Json(planned).into_response())
}

async fn explain(State(node): State<Node>, uri: Uri) -> Result<Response, Problem> {
    let Question {
        peer,
        operation,
        address,
    } = Question::of(uri.query().unwrap_or_default())
        .map_err(|why| Problem::new(StatusCode::BAD_REQUEST, why))?;
    let explanation = node
        .ask(|reply| Request::Explain {
            peer,
            operation,
            address,
            reply,
        })
        .await?;
    Ok(Json(explanation).into_response())
}

/// The query of `GET /v1/explain`: `peer=…&operation=reserve|connect`, and `address=…` at will.
struct Question {
    peer: PeerId,
    operation: Operation,
    address: Option<IpAddr>,
}

impl Question {
    fn of(query: &str) -> Result<Question, String> {
        let (mut peer, mut operation, mut address) = (None, None, None);
        for (name, value) in query
            .split('&')
            .filter(|part| !part.is_empty())
            .map(|part| part.split_once('=').unwrap_or((part, "")))
        {
            match name {
                "peer" => {
                    peer = Some(parse_peer_id(value).map_err(|error| format!("peer: {error}"))?);
                }
                "operation" => {
                    operation = Some(match value {
                        "reserve" => Operation::Reserve,
                        "connect" => Operation::Connect,
                        _ => return Err("operation: expected reserve or connect".to_owned()),
                    });
                }
                "address" => {
                    let read = value
                        .parse()
                        .map_err(|_| "address: expected an IP address")?;
                    address = Some(read);
                }
                _ => return Err("expected peer, operation and at will address".to_owned()),
            }
        }
        Ok(Question {
            peer: peer.ok_or("peer is missing")?,
            operation: operation.ok_or("operation is missing: reserve or connect")?,
            address,
        })
    }
}

async fn exposition(State(node): State<Node>) -> Result<Response, Problem> {
    let report = node.ask(|reply| Request::Status { reply }).await?;
    Ok(answer::exposition(metrics::exposition(&report)))
}

async fn unknown_path(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("there is no {} here", uri.path()),
    )
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {method}", uri.path()),
    )
}

/// A JSON body of at most `limit` bytes, complete in time.
async fn read<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<T, Problem> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .and_then(|kind| kind.split(';').next())
        .map(str::trim);
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body must be sent as application/json",
        ));
    }
    let too_large = || {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {limit} bytes"),
        )
    };
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let body = match timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
        Ok(Err(error)) => {
            return Err(Problem::new(
                StatusCode::BAD_REQUEST,
                format!("the body did not arrive: {error}"),
            ));
        }
        Err(_) => {
            return Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not arrive in time",
            ));
        }
    };
    serde_json::from_slice(&body).map_err(|error| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            format!("the body is not what is expected here: {error}"),
        )
    })
}

/// A browser names the page that asks; no command and no scraper does.
async fn no_web_pages(request: axum::extract::Request, next: Next) -> Result<Response, Problem> {
    if request.headers().contains_key(header::ORIGIN) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "requests from web pages are not served",
        ));
    }
    Ok(next.run(request).await)
}

/// Keeps out who reaches this machine by a name of their own (DNS rebinding).
async fn this_machine_only(
    request: axum::extract::Request,
    next: Next,
) -> Result<Response, Problem> {
    let host = request.headers().get(header::HOST);
    if host.is_some_and(|host| !host.to_str().is_ok_and(names_this_machine)) {
        return Err(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "the Host header must be localhost or an IP address",
        ));
    }
    Ok(next.run(request).await)
}

/// An IP address cannot be rebound by anybody's name server, and `localhost` never leaves the machine.
fn names_this_machine(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return host.is_empty();
    };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_names_a_peer_and_an_operation() {
        const PEER: &str = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
        let query = format!("peer={PEER}&operation=reserve&address=::1");
        let question = Question::of(&query).map_err(|why| panic!("{why}"));
        let Ok(question) = question;
        assert_eq!(question.peer.to_string(), PEER);
        assert_eq!(question.operation, Operation::Reserve);
        assert_eq!(question.address, "::1".parse().ok());
        for bad in [
            "",
            "peer=hub&operation=reserve",
            &format!("peer={PEER}"),
            &format!("peer={PEER}&operation=both"),
            &format!("peer={PEER}&operation=connect&address=hub"),
            &format!("peer={PEER}&operation=connect&more=1"),
        ] {
            assert!(Question::of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_names_that_cannot_be_rebound_are_this_machine() {
        for good in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:9477",
            "[::1]:9477",
            "192.0.2.7",
            "",
        ] {
            assert!(names_this_machine(good), "{good}");
        }
        for bad in [
            "example.org",
            "localhost.example.org:80",
            "127.0.0.1.example.org",
            "?",
            "a b",
        ] {
            assert!(!names_this_machine(bad), "{bad}");
        }
    }
}
